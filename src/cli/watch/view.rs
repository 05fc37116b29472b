//! A room as lines of text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::terminal::{Paint, clean};
use crate::engine::time::Time;
use crate::viewer::{
    Event, Failure, Gap, GapReason, Happening, Snapshot, Status, Total, Why, Withheld,
};

/// Characters of a payload that are shown.
const MAX_PAYLOAD: usize = 400;
/// Characters of a name that are shown.
const MAX_NAME: usize = 64;
/// Totals in one line.
const MAX_TOTALS: usize = 20;

/// Turns what happens into lines.
pub(super) struct View {
    paint: Paint,
}

impl View {
    pub(super) fn new(paint: Paint) -> Self {
        Self { paint }
    }

    /// The lines of a change of the connection; why there is none is told
    /// elsewhere.
    pub(super) fn status(&self, status: &Status) -> Vec<String> {
        match status {
            Status::Connected { transport, address } => {
                vec![self.paint.dim(&format!("connected by {transport} to {address}"))]
            }
            _ => Vec::new(),
        }
    }

    /// The lines of a happening.
    pub(super) fn show(&self, happening: &Happening, now: Time) -> Vec<String> {
        let time = clock_time(now.as_millis());
        match happening {
            Happening::Joined(snapshot) => self.joined(snapshot, now),
            Happening::Event(event) => vec![self.event(event, &time, now)],
            Happening::Totals(totals) => self.totals(totals, &time).into_iter().collect(),
            Happening::Online(online) => vec![self.paint.dim(&format!("{time} online {online}"))],
            Happening::Gap(gap) => vec![self.gap(gap, &time)],
            Happening::Withheld(withheld) => vec![self.withheld(*withheld, &time)],
            Happening::Dropped(dropped) => {
                let text = format!("{time} the room dropped {}", counts(dropped));
                vec![self.paint.dim(&text)]
            }
            Happening::Missed { from, to } => {
                let text = format!("{time} important {} missed, to be pulled", range(*from, *to));
                vec![self.paint.red(&text)]
            }
            Happening::Lost { from, to } => {
                let text = format!("{time} important {} lost", range(*from, *to));
                vec![self.paint.red(&text)]
            }
            Happening::Failed(Failure { code, reason, .. }) => {
                let (code, reason) = (clean(code, MAX_NAME), clean(reason, MAX_PAYLOAD));
                vec![self.paint.red(&format!("error {code}: {reason}"))]
            }
            Happening::Leaving { reconnect_after } => {
                let wait = reconnect_after.as_millis();
                vec![self.paint.bold(&format!("the server is leaving, back in {wait} ms"))]
            }
            // The connection's own state is told once, not for every room.
            _ => Vec::new(),
        }
    }

    fn joined(&self, snapshot: &Snapshot, now: Time) -> Vec<String> {
        let how = match snapshot.why {
            Why::First | Why::Behind => "",
            Why::Recovered => ", recovered",
            Why::Renumbered => ", opened anew",
            Why::Rebased => ", sent anew since this viewer was slow",
        };
        let at = snapshot.position;
        let mut lines = vec![self.paint.bold(&format!(
            "joined: epoch {}, seq {}, important {}, online {}{how}",
            at.epoch, at.seq, at.important, snapshot.online
        ))];
        for event in &snapshot.state {
            lines.push(self.event(event, "state   ", now));
        }
        lines.extend(self.totals(&snapshot.totals, "        "));
        lines
    }

    fn gap(&self, gap: &Gap, time: &str) -> String {
        let numbers = if gap.first_seq <= gap.last_seq {
            range(gap.first_seq, gap.last_seq)
        } else {
            "no numbers".to_owned()
        };
        let lost = if gap.dropped.is_empty() { String::new() } else { counts(&gap.dropped) };
        self.paint.red(&match gap.why {
            GapReason::Slow => format!("{time} gap {numbers} {lost}"),
            GapReason::Away => format!("{time} missed while away: {numbers}"),
            GapReason::Unannounced => format!("{time} missing {numbers}"),
        })
    }

    fn withheld(&self, withheld: Withheld, time: &str) -> String {
        let what = match withheld {
            Withheld::Nothing => {
                return self.paint.bold(&format!("{time} keeping up again: everything is sent"));
            }
            Withheld::Sampled => "without sampled events",
            Withheld::Totals => "without sampled events and totals",
            Withheld::Ordered => "important events only",
        };
        self.paint.red(&format!("{time} too slow, from here on {what}"))
    }

    fn event(&self, event: &Event, time: &str, now: Time) -> String {
        let kind = clean(&event.kind, MAX_NAME);
        let kind = self.paint.named(&kind, &format!("{kind:12}"));
        let mut line = format!("{} {kind}", self.paint.dim(time));
        if !event.user.is_empty() {
            line.push_str(&format!(" {}:", self.paint.bold(&clean(&event.user, MAX_NAME))));
        }
        line.push_str(&format!(" {}", payload(event)));
        if let Some(key) = event.key.as_ref().filter(|key| !key.is_empty()) {
            line.push_str(&format!(" [{}]", clean(key, MAX_NAME)));
        }
        if let Some(amount) = event.amount {
            line.push_str(&format!(" ×{amount}"));
        }
        let mut notes = Vec::new();
        notes.extend(event.seq.map(|seq| format!("#{seq}")));
        notes.extend(event.important.map(|important| format!("!{important}")));
        notes.push(age(event.time_ms, now));
        line.push_str(&self.paint.dim(&format!("  ({})", notes.join(", "))));
        line
    }

    /// All on one line: `like +12 = 340`.
    fn totals(&self, totals: &[Total], time: &str) -> Option<String> {
        if totals.is_empty() {
            return None;
        }
        let mut parts: Vec<String> =
            totals.iter().take(MAX_TOTALS).map(|t| self.total(t)).collect();
        if totals.len() > MAX_TOTALS {
            parts.push(format!("and {} more", totals.len() - MAX_TOTALS));
        }
        Some(format!("{} {}", self.paint.dim(time), parts.join(", ")))
    }

    fn total(&self, total: &Total) -> String {
        let kind = clean(&total.kind, MAX_NAME);
        let mut text = self.paint.named(&kind, &kind);
        for part in [total.user.as_deref().unwrap_or_default(), &total.key] {
            if !part.is_empty() {
                text.push_str(&format!(" {}", clean(part, MAX_NAME)));
            }
        }
        if total.delta != 0 {
            text.push_str(&format!(" {:+}", total.delta));
        }
        text.push_str(&format!(" = {}", total.sum));
        text
    }
}

fn payload(event: &Event) -> String {
    match event.json() {
        None => format!("<{} bytes>", event.payload.len()),
        Some(Value::String(text)) => clean(&text, MAX_PAYLOAD),
        Some(Value::Null) => String::new(),
        Some(Value::Object(fields)) => match (fields.get("text"), fields.len()) {
            (Some(Value::String(text)), 1) => clean(text, MAX_PAYLOAD),
            _ => clean(&String::from_utf8_lossy(&event.payload), MAX_PAYLOAD),
        },
        Some(_) => clean(&String::from_utf8_lossy(&event.payload), MAX_PAYLOAD),
    }
}

fn range(first: u64, last: u64) -> String {
    if first == last { format!("#{first}") } else { format!("#{first} to #{last}") }
}

fn counts(dropped: &BTreeMap<String, u64>) -> String {
    let part = |(kind, count): (&String, &u64)| format!("{} {count}", clean(kind, MAX_NAME));
    dropped.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// Time of day, UTC.
fn clock_time(millis: u64) -> String {
    let seconds = millis / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// How old something is; the clocks of two machines may differ by more than that.
fn age(time_ms: u64, now: Time) -> String {
    match now.as_millis().saturating_sub(time_ms) {
        millis if millis < 10_000 => format!("{millis} ms"),
        millis => format!("{} s", millis / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::Transport;
    use crate::viewer::room::Position;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn show(happening: &Happening) -> Vec<String> {
        View::new(Paint { on: false }).show(happening, Time::from_millis(NOW_MS))
    }

    fn event(kind: &str, user: &str, payload: &str, age_ms: u64) -> Event {
        Event {
            id: "i".to_owned(),
            kind: kind.to_owned(),
            user: user.to_owned(),
            seq: None,
            important: None,
            payload: payload.as_bytes().to_vec().into(),
            key: None,
            amount: None,
            time_ms: NOW_MS - age_ms,
        }
    }

    fn total(kind: &str, user: Option<&str>, key: &str, sum: i64, delta: i64) -> Total {
        let user = user.map(str::to_owned);
        Total { kind: kind.to_owned(), user, key: key.to_owned(), sum, delta }
    }

    fn joined(why: Why, state: Vec<Event>) -> Happening {
        Happening::Joined(Snapshot {
            why,
            position: Position { epoch: 1, seq: 4, important: 2 },
            online: 3,
            users: 3,
            users_exact: true,
            state,
            totals: vec![total("like", None, "", 5, 0)],
        })
    }

    #[test]
    fn what_happens_is_read_at_a_glance() {
        let chat = Event { seq: Some(4), ..event("chat", "mei", "{\"text\":\"hi\"}", 35) };
        let gift = Event {
            key: Some("rose".to_owned()),
            amount: Some(3),
            seq: Some(5),
            important: Some(2),
            ..event("gift", "bo", "{\"a\":1}", 60_000)
        };
        let totals =
            vec![total("like", None, "", 340, 12), total("gift", Some("bo"), "rose", 9, 3)];
        let lines: Vec<String> = [
            Happening::Event(chat),
            Happening::Event(gift),
            Happening::Totals(totals),
            Happening::Dropped([("chat".to_owned(), 7)].into()),
            Happening::Online(12),
            Happening::Lost { from: 3, to: 4 },
        ]
        .iter()
        .flat_map(show)
        .collect();
        assert_eq!(
            lines,
            [
                "08:00:00 chat         mei: hi  (#4, 35 ms)",
                "08:00:00 gift         bo: {\"a\":1} [rose] ×3  (#5, !2, 60 s)",
                "08:00:00 like +12 = 340, gift bo rose +3 = 9",
                "08:00:00 the room dropped chat 7",
                "08:00:00 online 12",
                "08:00:00 important #3 to #4 lost",
            ]
        );
    }

    #[test]
    fn joining_shows_where_the_room_stands() {
        let lines = show(&joined(Why::First, vec![event("product_card", "", "\"tea\"", 0)]));
        assert_eq!(lines[0], "joined: epoch 1, seq 4, important 2, online 3");
        assert!(lines[1].starts_with("state    product_card tea"), "{lines:?}");
        assert_eq!(lines[2].trim(), "like = 5");
        let lines = show(&joined(Why::Rebased, Vec::new()));
        assert!(lines[0].ends_with(", sent anew since this viewer was slow"), "{lines:?}");
    }

    #[test]
    fn it_is_told_what_carries_the_connection() {
        let address = "127.0.0.1:7400".parse().unwrap();
        let status = Status::Connected { transport: Transport::Quic, address };
        let lines = View::new(Paint { on: false }).status(&status);
        assert_eq!(lines, ["connected by quic to 127.0.0.1:7400"]);
    }

    #[test]
    fn a_gap_says_what_was_lost_and_why() {
        let gap = |why| {
            let dropped = [("chat".to_owned(), 3)].into();
            show(&Happening::Gap(Gap { first_seq: 3, last_seq: 5, dropped, why }))
        };
        assert_eq!(gap(GapReason::Slow), ["08:00:00 gap #3 to #5 chat 3"]);
        assert_eq!(gap(GapReason::Away), ["08:00:00 missed while away: #3 to #5"]);
        assert_eq!(gap(GapReason::Unannounced), ["08:00:00 missing #3 to #5"]);
    }

    #[test]
    fn a_slow_viewer_is_told_what_it_is_sent() {
        let lines: Vec<String> =
            [Withheld::Sampled, Withheld::Totals, Withheld::Ordered, Withheld::Nothing]
                .into_iter()
                .flat_map(|withheld| show(&Happening::Withheld(withheld)))
                .collect();
        assert_eq!(
            lines,
            [
                "08:00:00 too slow, from here on without sampled events",
                "08:00:00 too slow, from here on without sampled events and totals",
                "08:00:00 too slow, from here on important events only",
                "08:00:00 keeping up again: everything is sent",
            ]
        );
    }

    #[test]
    fn nothing_a_stranger_wrote_reaches_the_terminal_as_a_command() {
        let nasty = "\u{1b}[2J\u{9b}1m\r\n\u{7}";
        let json = serde_json::to_string(nasty).unwrap();
        let one = Event { key: Some(nasty.to_owned()), ..event(nasty, nasty, &json, 0) };
        let raw = event("x", nasty, nasty, 0);
        let counted = BTreeMap::from([(nasty.to_owned(), 1)]);
        let why = GapReason::Slow;
        let gap = Gap { first_seq: 1, last_seq: 0, dropped: counted.clone(), why };
        let failure = Failure { code: nasty.into(), reason: nasty.into(), retry_after: None };
        let lines: Vec<String> = [
            joined(Why::First, vec![one.clone()]),
            Happening::Event(one),
            Happening::Event(raw),
            Happening::Totals(vec![total(nasty, Some(nasty), nasty, 1, 1)]),
            Happening::Dropped(counted),
            Happening::Gap(gap),
            Happening::Failed(failure),
        ]
        .iter()
        .flat_map(show)
        .collect();
        assert!(lines.len() > 7);
        for line in lines {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

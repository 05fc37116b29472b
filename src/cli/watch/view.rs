//! A room as lines of text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::terminal::{Paint, clean};
use super::message::{Event, Failure, Frame, Gap, Incoming, Joined, Missed, Total};
use super::room::Room;
use crate::engine::time::Time;

/// Characters of a payload that are shown.
const MAX_PAYLOAD: usize = 400;
/// Characters of a name that are shown.
const MAX_NAME: usize = 64;
/// Totals in one line.
const MAX_TOTALS: usize = 20;

/// Turns messages into lines.
pub(super) struct View {
    paint: Paint,
}

impl View {
    pub(super) fn new(paint: Paint) -> Self {
        Self { paint }
    }

    /// The lines of a message. `room` is as it was before the message.
    pub(super) fn show(&self, incoming: &Incoming, room: &Room, now: Time) -> Vec<String> {
        let mut lines = Vec::new();
        if incoming.unreadable {
            lines.push(self.paint.red("a message that cannot be read"));
        }
        if let Some(welcome) = &incoming.welcome {
            let session = clean(&welcome.session, MAX_NAME);
            lines.push(self.paint.dim(&format!("connected, session {session}")));
        }
        if let Some(joined) = &incoming.joined {
            self.joined(joined, room, now, &mut lines);
        }
        if let Some(frame) = &incoming.frame {
            self.frame(frame, room, now, &mut lines);
        }
        if let Some(gap) = &incoming.gap {
            lines.push(self.gap(gap, now));
        }
        if let Some(Missed { from, to, .. }) = incoming.missed {
            let text = format!("important {} missed, to be pulled", range(from, to));
            lines.push(self.paint.red(&text));
        }
        if let Some(Failure { code, reason, .. }) = &incoming.error {
            let text = format!("error {}: {}", clean(code, MAX_NAME), clean(reason, MAX_PAYLOAD));
            lines.push(self.paint.red(&text));
        }
        if let Some(goaway) = &incoming.goaway {
            let text = format!("the server is leaving, back in {} ms", goaway.reconnect_after_ms);
            lines.push(self.paint.bold(&text));
        }
        lines
    }

    fn joined(&self, joined: &Joined, room: &Room, now: Time, lines: &mut Vec<String>) {
        let how = match (joined.rebased, joined.recovered) {
            (true, _) => ", sent anew since this viewer was slow",
            (_, true) => ", recovered",
            _ => "",
        };
        lines.push(self.paint.bold(&format!(
            "{}: epoch {}, seq {}, important {}, online {}{how}",
            clean(&joined.room, MAX_NAME),
            joined.epoch,
            joined.seq,
            joined.important,
            joined.online
        )));
        if let Some((first, last)) = room.missed(joined) {
            lines.push(self.paint.red(&format!("missed while away: {}", range(first, last))));
        }
        for event in &joined.state {
            lines.push(self.event(event, "state   ", now));
        }
        lines.extend(self.totals(&joined.totals, "        "));
    }

    fn frame(&self, frame: &Frame, room: &Room, now: Time, lines: &mut Vec<String>) {
        let time = clock_time(frame.time_ms);
        if let Some((first, last)) = room.missing(frame) {
            lines.push(self.paint.red(&format!("{time} missing {}", range(first, last))));
        }
        for event in frame.events.iter().filter(|event| !room.seen(event)) {
            lines.push(self.event(event, &time, now));
        }
        lines.extend(self.totals(&frame.totals, &time));
        if !frame.dropped.is_empty() {
            let text = format!("{time} the room dropped {}", counts(&frame.dropped));
            lines.push(self.paint.dim(&text));
        }
        if let Some(online) = frame.online {
            lines.push(self.paint.dim(&format!("{time} online {online}")));
        }
    }

    fn gap(&self, gap: &Gap, now: Time) -> String {
        let numbers = if gap.first_seq <= gap.last_seq {
            range(gap.first_seq, gap.last_seq)
        } else {
            "no numbers".to_owned()
        };
        let time = clock_time(now.as_millis());
        let lost = if gap.dropped.is_empty() { String::new() } else { counts(&gap.dropped) };
        self.paint.red(&format!("{time} gap {numbers} {lost}"))
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
    match (&event.encoding, &event.payload) {
        (Some(encoding), Value::String(text)) => {
            format!("<{} of {} characters>", clean(encoding, MAX_NAME), text.len())
        }
        (_, Value::String(text)) => clean(text, MAX_PAYLOAD),
        (_, Value::Null) => String::new(),
        (_, Value::Object(fields)) => match (fields.get("text"), fields.len()) {
            (Some(Value::String(text)), 1) => clean(text, MAX_PAYLOAD),
            _ => clean(&event.payload.to_string(), MAX_PAYLOAD),
        },
        (_, other) => clean(&other.to_string(), MAX_PAYLOAD),
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
    use serde_json::json;

    use super::super::message::parse;
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn show(message: &Value) -> Vec<String> {
        let view = View::new(Paint { on: false });
        let incoming = parse(&message.to_string());
        view.show(&incoming, &Room::new("r"), Time::from_millis(NOW_MS))
    }

    #[test]
    fn a_frame_is_read_at_a_glance() {
        let lines = show(&json!({"frame": {
            "epoch": 1, "first_seq": 4, "last_seq": 6, "time_ms": NOW_MS, "online": 12,
            "events": [
                {"kind": "chat", "user": "mei", "payload": {"text": "hi"}, "seq": 4,
                 "time_ms": NOW_MS - 35},
                {"kind": "gift", "user": "bo", "payload": {"a": 1}, "key": "rose", "amount": 3,
                 "seq": 5, "important": 2, "time_ms": NOW_MS - 60_000},
            ],
            "totals": [{"kind": "like", "key": "", "sum": 340, "delta": 12},
                       {"kind": "gift", "user": "bo", "key": "rose", "sum": 9, "delta": 3}],
            "dropped": {"chat": 7},
        }}));
        assert_eq!(
            lines,
            [
                "08:00:00 chat         mei: hi  (#4, 35 ms)",
                "08:00:00 gift         bo: {\"a\":1} [rose] ×3  (#5, !2, 60 s)",
                "08:00:00 like +12 = 340, gift bo rose +3 = 9",
                "08:00:00 the room dropped chat 7",
                "08:00:00 online 12",
            ]
        );
    }

    #[test]
    fn joining_shows_where_the_room_stands() {
        let lines = show(&json!({"joined": {
            "room": "r", "epoch": 1, "seq": 4, "important": 2, "online": 3,
            "state": [{"kind": "product_card", "payload": "tea", "time_ms": NOW_MS}],
            "totals": [{"kind": "like", "key": "", "sum": 5}],
        }}));
        assert_eq!(lines[0], "r: epoch 1, seq 4, important 2, online 3");
        assert!(lines[1].starts_with("state    product_card tea"), "{lines:?}");
        assert_eq!(lines[2].trim(), "like = 5");
    }

    #[test]
    fn a_slow_viewer_is_told_that_it_goes_on_from_here() {
        let lines = show(&json!({"joined": {"room": "r", "epoch": 1, "seq": 9, "rebased": true}}));
        assert!(lines[0].ends_with("online 0, sent anew since this viewer was slow"), "{lines:?}");
    }

    #[test]
    fn a_gap_says_what_was_lost() {
        let gap = json!({"gap": {"first_seq": 3, "last_seq": 5, "dropped": {"chat": 3}}});
        assert_eq!(show(&gap), ["08:00:00 gap #3 to #5 chat 3"]);
    }

    #[test]
    fn nothing_a_stranger_wrote_reaches_the_terminal_as_a_command() {
        let nasty = "\u{1b}[2J\u{9b}1m\r\n\u{7}";
        let lines = show(&json!({
            "welcome": {"session": nasty},
            "joined": {"room": nasty, "state": [{"kind": nasty, "user": nasty, "payload": nasty}]},
            "frame": {
                "events": [{"kind": nasty, "user": nasty, "payload": {nasty: nasty}, "key": nasty,
                            "encoding": null},
                           {"kind": "x", "payload": nasty, "encoding": nasty}],
                "totals": [{"kind": nasty, "user": nasty, "key": nasty}],
                "dropped": {nasty: 1},
            },
            "gap": {"dropped": {nasty: 1}},
            "error": {"code": nasty, "reason": nasty},
        }));
        assert!(lines.len() > 7);
        for line in lines {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

//! What a client keeps of a room, and what it answers: a machine without I/O.
//!
//! It keeps two numbers, as the server does. `seq` says where the ordered stream
//! ends; what is missing of it is gone, and [`Room::missing`] says so. Of the
//! important events none may be missing: a frame names the latest, so one look
//! shows what to pull.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::json;

use super::message::{Asked, Event, Frame, Incoming, Joined, Missed};
use crate::engine::digest;
use crate::engine::ids::ImportantNo;

/// Important numbers beyond a hole that are remembered while it is filled.
const MAX_BEYOND: usize = 1_024;

/// What a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this.
    Send(String),
    /// Do this at a random moment within so long.
    Later(Duration, Later),
    /// The server pings this often.
    PingInterval(Duration),
    /// When the connection ends, come back after this long.
    Goaway(Duration),
    /// The join was refused for now: connect again after this.
    Again(Duration, String),
    /// There is no use in coming back.
    Stop(String),
}

/// What can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    /// Acknowledge what has come by then.
    Ack,
    /// Ask for what is still missing by then, up to this number.
    Pull(u64),
    /// Ask for these again, although they have come.
    Again(u64, u64),
    /// Say what has come of these, up to what has come by then.
    Digest(u64),
}

/// Where the client stands in the room.
#[derive(Debug)]
pub(super) struct Room {
    name: String,
    /// Whether this connection has joined.
    pub(super) joined: bool,
    epoch: Option<u64>,
    seq: u64,
    /// Everything important up to here has come.
    important: u64,
    /// Hashes of the newest, by number, for a digest.
    hashes: VecDeque<(u64, u32)>,
    /// Important numbers that came beyond it.
    beyond: BTreeSet<u64>,
    /// Says which samples of acknowledgements we belong to.
    slot: u16,
    /// What was last asked for: from where, up to where.
    pulled: (u64, u64),
    /// The server no longer has what was asked for.
    gone: bool,
}

impl Room {
    /// A room that was not joined yet.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            joined: false,
            epoch: None,
            seq: 0,
            important: 0,
            hashes: VecDeque::new(),
            beyond: BTreeSet::new(),
            slot: 0,
            pulled: (0, 0),
            gone: false,
        }
    }

    /// The message that joins, and says where we left off.
    pub(super) fn join(&self, token: &str) -> String {
        let mut join = json!({"room": self.name, "token": token, "acks": true});
        if let Some(epoch) = self.epoch {
            let (seq, important) = (self.seq, self.important);
            join["resume"] = json!({"epoch": epoch, "seq": seq, "important": important});
        }
        json!({"join": join}).to_string()
    }

    /// The numbers between what we have and this frame, if it leaves some out.
    pub(super) fn missing(&self, frame: &Frame) -> Option<(u64, u64)> {
        let numbered = frame.first_seq <= frame.last_seq;
        let known = self.joined && self.epoch == Some(frame.epoch);
        let skips = numbered && known && frame.first_seq > self.seq + 1;
        skips.then(|| (self.seq + 1, frame.first_seq - 1))
    }

    /// The numbers that went by while we were away, if they are not sent again.
    pub(super) fn missed(&self, joined: &Joined) -> Option<(u64, u64)> {
        let same = self.epoch == Some(joined.epoch) && !joined.recovered;
        (same && joined.seq > self.seq).then(|| (self.seq + 1, joined.seq))
    }

    /// Whether this event was here before.
    pub(super) fn seen(&self, event: &Event) -> bool {
        event.important.is_some_and(|no| no <= self.important || self.beyond.contains(&no))
    }

    /// Takes a message in. Call it after the message was shown, since showing
    /// looks at what was there before.
    pub(super) fn receive(&mut self, incoming: &Incoming) -> Vec<Step> {
        let mut steps = Vec::new();
        if incoming.ping.is_some() {
            steps.push(Step::Send(json!({"pong": {}}).to_string()));
        }
        if let Some(welcome) = &incoming.welcome {
            self.slot = welcome.ack_slot;
        }
        if let Some(interval) = incoming.welcome.as_ref().and_then(|w| w.ping_interval_ms) {
            steps.push(Step::PingInterval(Duration::from_millis(interval)));
        }
        if let Some(goaway) = &incoming.goaway {
            steps.push(Step::Goaway(Duration::from_millis(goaway.reconnect_after_ms)));
        }
        if let Some(failure) = &incoming.error {
            self.gone |= failure.code == "history_gone";
            if failure.code == "pull_limited" {
                let after = Duration::from_millis(failure.retry_after_ms.unwrap_or(1_000));
                let wanted = std::mem::take(&mut self.pulled).1;
                steps.push(Step::Later(after, Later::Pull(wanted)));
            }
            let why = || format!("{}: {}", failure.code, failure.reason);
            if !self.joined && !failure.temporary {
                steps.push(Step::Stop(why()));
            } else if let Some(after) = failure.retry_after_ms.filter(|_| !self.joined) {
                steps.push(Step::Again(Duration::from_millis(after), why()));
            }
        }
        if let Some(joined) = &incoming.joined {
            self.joined(joined, &mut steps);
        }
        if let Some(gap) = &incoming.gap {
            self.seq = self.seq.max(gap.last_seq);
        }
        if let Some(Missed { from, to, within_ms }) = incoming.missed {
            self.pulled = (0, 0);
            let known = to <= self.important;
            let what = if known { Later::Again(from, to) } else { Later::Pull(to) };
            steps.push(Step::Later(Duration::from_millis(within_ms), what));
        }
        if let Some(frame) = &incoming.frame {
            self.frame(frame, &mut steps);
        }
        steps
    }

    fn joined(&mut self, joined: &Joined, steps: &mut Vec<Step>) {
        let before = self.epoch;
        let known = before == Some(joined.epoch);
        self.joined = true;
        self.epoch = Some(joined.epoch);
        self.pulled = (0, 0);
        if known && joined.recovered {
            return;
        }
        self.seq = joined.seq;
        if known {
            // The rest of what we have not follows by itself.
            if let Some(missed) = joined.missed {
                self.pull(missed.to, steps);
            }
        } else {
            // A numbering that began after the one we know is new from its first
            // event; a room that we see for the first time begins for us now.
            let later = before.is_some_and(|before| before < joined.epoch);
            self.important = if later { 0 } else { joined.important };
            self.beyond.clear();
            self.hashes.clear();
            self.pull(joined.important, steps);
        }
    }

    fn frame(&mut self, frame: &Frame, steps: &mut Vec<Step>) {
        if self.epoch != Some(frame.epoch) {
            self.epoch = Some(frame.epoch);
            self.seq = frame.first_seq.saturating_sub(1);
            self.important = 0;
            self.beyond.clear();
            self.hashes.clear();
            self.pulled = (0, 0);
        }
        if frame.first_seq <= frame.last_seq {
            self.seq = self.seq.max(frame.last_seq);
        }
        let before = self.important;
        let numbers: Vec<u64> = frame.events.iter().filter_map(|event| event.important).collect();
        if std::mem::take(&mut self.gone) {
            // What was asked for begins with what is left of it.
            let first = numbers.first().map_or(self.pulled.1, |first| first - 1);
            self.important = self.important.max(first);
        }
        let new = frame.events.iter().filter(|event| !self.seen(event));
        let hashes: Vec<(u64, u32)> = new
            .filter_map(|event| Some((event.important?, &event.id)))
            .map(|(number, id)| (number, digest::hash(ImportantNo(number), id)))
            .collect();
        self.hashes.extend(hashes);
        while self.hashes.len() > MAX_BEYOND {
            self.hashes.pop_front();
        }
        self.beyond.extend(numbers.into_iter().filter(|no| *no > self.important));
        while self.beyond.remove(&(self.important + 1)) {
            self.important += 1;
        }
        self.beyond = self.beyond.split_off(&self.important);
        while self.beyond.len() > MAX_BEYOND {
            self.beyond.pop_last();
        }
        let answers_pull = self.pulled.1 > 0 && frame.first_seq > frame.last_seq;
        match frame.ack {
            Some(Asked { one_in, within_ms, digest_from })
                if u32::from(self.slot) < 65_536 / one_in.max(1) =>
            {
                let within = Duration::from_millis(within_ms);
                steps.push(Step::Later(within, Later::Ack));
                steps.extend(digest_from.map(|from| Step::Later(within, Later::Digest(from))));
            }
            None if answers_pull && self.important > before => {
                steps.push(Step::Later(Duration::ZERO, Later::Ack));
            }
            _ => {}
        }
        self.pull(frame.important, steps);
    }

    /// What was put off is due.
    pub(super) fn due(&mut self, later: Later) -> Option<String> {
        let mut steps = Vec::new();
        match later {
            Later::Ack => {
                let ack = json!({"ack": {"room": self.name, "important": self.important}});
                return self.joined.then(|| ack.to_string());
            }
            Later::Pull(to) => self.pull(to, &mut steps),
            Later::Digest(from) => return self.digest(from),
            Later::Again(from, to) => {
                let pull = json!({"pull": {"room": self.name, "from": from, "to": to}});
                return self.joined.then(|| pull.to_string());
            }
        }
        match steps.pop() {
            Some(Step::Send(pull)) if self.joined => Some(pull),
            _ => None,
        }
    }

    /// What has come without a hole since `from`, but not before we came.
    fn digest(&self, from: u64) -> Option<String> {
        let first = self.hashes.iter().map(|(number, _)| *number).min()?.max(from);
        let range = first..=self.important;
        let hashes: Vec<u32> = self
            .hashes
            .iter()
            .filter(|(no, _)| range.contains(no))
            .map(|(_, hash)| *hash)
            .collect();
        let xor = hashes.iter().fold(0, |xor, hash| xor ^ hash);
        let digest = json!({"room": self.name, "from": first, "to": self.important,
            "count": hashes.len(), "xor": xor});
        (self.joined && !range.is_empty()).then(|| json!({"digest": digest}).to_string())
    }

    /// What to say before leaving: of the newest hundred.
    pub(super) fn farewell(&self) -> Option<String> {
        self.digest(self.important.saturating_sub(99))
    }

    /// Asks for what is missing up to `latest`, once for every state of things.
    fn pull(&mut self, latest: u64, steps: &mut Vec<Step>) {
        let wanted = (self.important + 1, latest);
        let asked = wanted.0 <= self.pulled.0 && wanted.1 <= self.pulled.1;
        if wanted.0 <= wanted.1 && !asked {
            self.pulled = wanted;
            let pull = json!({"pull": {"room": self.name, "from": wanted.0, "to": wanted.1}});
            steps.push(Step::Send(pull.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::parse;
    use super::*;

    fn sent(steps: &[Step]) -> Vec<String> {
        let text = |step: &Step| match step {
            Step::Send(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        steps.iter().map(text).collect()
    }

    fn joined_at(seq: u64, important: u64) -> Room {
        let mut room = Room::new("r");
        let message = json!({"joined": {"epoch": 7, "seq": seq, "important": important}});
        assert!(room.receive(&parse(&message.to_string())).is_empty());
        room
    }

    fn frame(first: u64, last: u64, important: u64, numbers: &[u64]) -> Incoming {
        let events: Vec<_> = numbers.iter().map(|no| json!({"important": no})).collect();
        let frame = json!({"epoch": 7, "first_seq": first, "last_seq": last,
            "important": important, "events": events});
        parse(&json!({"frame": frame}).to_string())
    }

    #[test]
    fn a_ping_is_answered() {
        let steps = Room::new("r").receive(&parse(r#"{"ping":{}}"#));
        assert_eq!(sent(&steps), [r#"{"pong":{}}"#]);
    }

    #[test]
    fn joining_again_says_where_we_left_off() {
        let mut room = Room::new("r");
        assert!(!room.join("t").contains("resume"));
        room = joined_at(5, 2);
        room.receive(&frame(6, 8, 2, &[]));
        let join: serde_json::Value = serde_json::from_str(&room.join("t")).unwrap();
        assert_eq!(join["join"]["resume"], json!({"epoch": 7, "seq": 8, "important": 2}));
    }

    #[test]
    fn important_events_are_acknowledged_in_order() {
        let mut room = joined_at(5, 2);
        assert!(room.receive(&frame(6, 7, 4, &[3, 4])).is_empty(), "nobody asked");
        let mut asking = frame(8, 8, 5, &[5]);
        let ask = |one_in| Some(Asked { one_in, within_ms: 70, digest_from: None });
        asking.frame.as_mut().unwrap().ack = ask(1);
        assert_eq!(room.receive(&asking), [Step::Later(Duration::from_millis(70), Later::Ack)]);
        let ack = r#"{"ack":{"important":5,"room":"r"}}"#;
        assert_eq!(room.due(Later::Ack).as_deref(), Some(ack));
        room.slot = 40_000;
        asking.frame.as_mut().unwrap().ack = ask(2);
        assert!(room.receive(&asking).is_empty(), "in the other half");
    }

    #[test]
    fn a_digest_covers_what_has_come_here_without_a_hole() {
        let mut room = joined_at(5, 2);
        assert_eq!(room.farewell(), None, "nothing came");
        let event = |no: u64, id: &str| json!({"important": no, "id": id});
        let frame = json!({"epoch": 7, "first_seq": 6, "last_seq": 9, "important": 6,
            "ack": {"one_in": 1, "within_ms": 0, "digest_from": 1},
            "events": [event(3, "a"), event(4, "b"), event(6, "d")]});
        let steps = room.receive(&parse(&json!({"frame": frame}).to_string()));
        assert!(steps.contains(&Step::Later(Duration::ZERO, Later::Digest(1))), "{steps:?}");
        let xor = digest::hash(ImportantNo(3), "a") ^ digest::hash(ImportantNo(4), "b");
        let said: serde_json::Value =
            serde_json::from_str(&room.due(Later::Digest(1)).unwrap()).unwrap();
        let expected = json!({"room": "r", "from": 3, "to": 4, "count": 2, "xor": xor});
        assert_eq!(said["digest"], expected);
        let told = parse(r#"{"missed":{"room":"r","from":3,"to":4,"within_ms":0}}"#);
        let again = Later::Again(3, 4);
        assert_eq!(room.receive(&told), [Step::Later(Duration::ZERO, again)]);
        assert!(room.due(again).unwrap().contains("pull"), "though both have come");
    }

    #[test]
    fn what_was_missed_is_pulled_when_told_unless_it_has_come() {
        let mut room = joined_at(5, 2);
        let told = parse(r#"{"missed":{"room":"r","from":3,"to":4,"within_ms":9}}"#);
        let later = Later::Pull(4);
        assert_eq!(room.receive(&told), [Step::Later(Duration::from_millis(9), later)]);
        let pull = r#"{"pull":{"from":3,"room":"r","to":4}}"#;
        assert_eq!(room.due(later).as_deref(), Some(pull));
        let limited = r#"{"error":{"code":"pull_limited","temporary":true,"retry_after_ms":8}}"#;
        let again = room.receive(&parse(limited));
        assert_eq!(again, [Step::Later(Duration::from_millis(8), later)]);
        room.receive(&frame(9, 8, 4, &[3, 4]));
        assert_eq!(room.due(later), None);
    }

    #[test]
    fn a_missing_important_event_is_pulled_once_and_then_complete() {
        let mut room = joined_at(5, 2);
        let steps = room.receive(&frame(6, 6, 5, &[5]));
        assert_eq!(sent(&steps), [r#"{"pull":{"from":3,"room":"r","to":5}}"#]);
        assert!(room.receive(&frame(7, 7, 5, &[])).is_empty(), "asked already");
        // The answer carries no numbers of the ordered stream.
        let steps = room.receive(&frame(9, 8, 5, &[3, 4, 5]));
        assert_eq!(steps, [Step::Later(Duration::ZERO, Later::Ack)]);
        assert_eq!(room.due(Later::Ack).as_deref(), Some(r#"{"ack":{"important":5,"room":"r"}}"#));
        assert_eq!(room.missing(frame(8, 8, 5, &[]).frame.as_ref().unwrap()), None);
    }

    #[test]
    fn what_the_server_no_longer_has_is_given_up() {
        let mut room = joined_at(5, 0);
        room.receive(&frame(6, 6, 9, &[9]));
        room.receive(&parse(r#"{"error":{"code":"history_gone","temporary":false}}"#));
        room.receive(&frame(7, 6, 9, &[8, 9]));
        assert_eq!(room.due(Later::Ack).as_deref(), Some(r#"{"ack":{"important":9,"room":"r"}}"#));
    }

    #[test]
    fn a_pulled_event_is_recognised_the_second_time() {
        let mut room = joined_at(5, 2);
        room.receive(&frame(6, 6, 5, &[5]));
        let again = frame(7, 6, 5, &[3, 5]);
        let seen: Vec<bool> =
            again.frame.as_ref().unwrap().events.iter().map(|event| room.seen(event)).collect();
        assert_eq!(seen, [false, true]);
    }

    #[test]
    fn missing_numbers_are_noticed_and_announced_ones_are_not() {
        let mut room = joined_at(5, 0);
        let skipping = frame(8, 9, 0, &[]);
        assert_eq!(room.missing(skipping.frame.as_ref().unwrap()), Some((6, 7)));
        room.receive(&parse(r#"{"gap":{"first_seq":6,"last_seq":7}}"#));
        assert_eq!(room.missing(skipping.frame.as_ref().unwrap()), None);
    }

    #[test]
    fn what_went_by_while_away_is_known() {
        let room = joined_at(5, 0);
        let back = |recovered| Joined { epoch: 7, seq: 9, recovered, ..Joined::default() };
        assert_eq!(room.missed(&back(false)), Some((6, 9)));
        assert_eq!(room.missed(&back(true)), None);
        assert_eq!(room.missed(&Joined { epoch: 8, seq: 9, ..Joined::default() }), None);
    }

    #[test]
    fn important_events_that_do_not_follow_are_pulled() {
        let mut room = joined_at(5, 2);
        let follows = r#"{"joined":{"epoch":7,"seq":9,"important":4}}"#;
        assert!(room.receive(&parse(follows)).is_empty(), "they follow by themselves");
        let text = r#"{"joined":{"epoch":7,"seq":9,"important":4,"missed":{"from":3,"to":4}}}"#;
        let steps = room.receive(&parse(text));
        assert_eq!(sent(&steps), [r#"{"pull":{"from":3,"room":"r","to":4}}"#]);
    }

    #[test]
    fn skipping_ahead_asks_for_nothing_and_misses_nothing_unannounced() {
        let mut room = joined_at(5, 2);
        room.receive(&parse(r#"{"gap":{"first_seq":6,"last_seq":9,"dropped":{"chat":3}}}"#));
        // What is owed comes without numbers, then the state.
        room.receive(&frame(10, 9, 3, &[3]));
        let rebased = r#"{"joined":{"epoch":7,"seq":9,"important":3,"rebased":true}}"#;
        assert_eq!(room.missed(parse(rebased).joined.as_ref().unwrap()), None);
        assert!(room.receive(&parse(rebased)).is_empty());
        assert_eq!(room.missing(frame(10, 11, 3, &[]).frame.as_ref().unwrap()), None);
    }

    #[test]
    fn a_later_numbering_is_new_from_its_first_event() {
        let mut room = joined_at(5, 2);
        let steps = room.receive(&parse(r#"{"joined":{"epoch":8,"seq":9,"important":3}}"#));
        assert_eq!(sent(&steps), [r#"{"pull":{"from":1,"room":"r","to":3}}"#]);
    }

    #[test]
    fn a_new_numbering_starts_over() {
        let mut room = joined_at(5, 2);
        room.receive(&parse(r#"{"joined":{"epoch":8,"seq":1,"important":0}}"#));
        let frame = frame(2, 2, 0, &[]);
        assert_eq!(room.missing(frame.frame.as_ref().unwrap()), None, "another epoch");
    }

    #[test]
    fn a_lasting_error_before_joining_ends_it_and_a_passing_one_does_not() {
        let mut room = Room::new("r");
        let error = |temporary: bool| {
            parse(
                &json!({"error": {"code": "c", "reason": "r", "temporary": temporary}}).to_string(),
            )
        };
        assert!(room.receive(&error(true)).is_empty());
        let later = parse(r#"{"error":{"code":"c","temporary":true,"retry_after_ms":7}}"#);
        let again = Step::Again(Duration::from_millis(7), "c: ".into());
        assert_eq!(room.receive(&later), [again]);
        assert_eq!(room.receive(&error(false)), [Step::Stop("c: r".into())]);
        assert!(joined_at(1, 0).receive(&error(false)).is_empty(), "about something else");
    }
}

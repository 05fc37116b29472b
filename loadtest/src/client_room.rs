//! A room as a well-behaved client holds it, without I/O: what it has shown,
//! what it drops because it has it, what it holds back behind a hole, and what
//! it says in return.
//!
//! Calls: [`Room::joined`] once per connection, then [`Room::frame`],
//! [`Room::gap`] and [`Room::missed`] as messages come, [`Room::due`] when the
//! time of [`Room::next_deadline`] has come. Times are microseconds.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Important events that one `pull` asks for: the server brings no more.
const PULL_EVENTS: u64 = 200;
/// A hole is often filled by what is on its way: so long it is waited for at most.
const HOLE_WAIT_US: u64 = 200_000;
/// An unanswered pull is repeated after this.
const PULL_AGAIN_US: u64 = 2_000_000;

/// Messages from the server; one that is not here is not for a room.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// First on a connection.
    Welcome {
        /// Draws samples of acknowledgements.
        ack_slot: u16,
    },
    /// In the room.
    Joined(Joined),
    /// What the room says.
    Frame(Frame),
    /// What only this viewer lost.
    Gap {
        /// First number it lost content of.
        first_seq: u64,
        /// Last one.
        last_seq: u64,
    },
    /// To be pulled.
    Missed {
        /// Last.
        to: u64,
        /// At a random moment within this.
        within_ms: u64,
    },
    /// A request failed.
    Error {
        /// Machine-readable.
        code: String,
        /// When to try again.
        retry_after_ms: Option<u64>,
    },
    /// The server is leaving.
    Goaway {
        /// Wait this long before reconnecting.
        reconnect_after_ms: u64,
    },
    /// Are you there?
    Ping {},
}

/// `joined`.
#[derive(Debug, Deserialize)]
pub(crate) struct Joined {
    epoch: u64,
    seq: u64,
    /// The room's last important number.
    pub(crate) important: u64,
    /// What was missed follows.
    #[serde(default)]
    pub(crate) recovered: bool,
    missed: Option<Range>,
}

#[derive(Debug, Deserialize)]
struct Range {
    from: u64,
    to: u64,
}

/// `frame`.
#[derive(Debug, Deserialize)]
pub(crate) struct Frame {
    epoch: u64,
    first_seq: u64,
    last_seq: u64,
    important: u64,
    events: Vec<Event>,
    ack: Option<Asked>,
}

/// How to acknowledge.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Asked {
    one_in: u32,
    within_ms: u64,
}

/// One event of ours.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    important: Option<u64>,
    payload: Mark,
}

/// What our payloads carry.
#[derive(Debug, Clone, Deserialize)]
struct Mark {
    lt: [u64; 3],
}

/// An important event as it is shown: once, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Its number in the room.
    pub(crate) number: u64,
    /// Which of the publisher's events of this room it is.
    pub(crate) n: u32,
    /// When it was sent.
    pub(crate) sent_us: u64,
}

/// What the client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// It has everything up to here.
    Ack(u64),
    /// Send these again.
    Pull(u64, u64),
}

/// Where its knowledge ends, for `resume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Numbering.
    pub(crate) epoch: u64,
    /// Last number a frame covered.
    pub(crate) seq: u64,
    /// Everything important up to here was shown.
    pub(crate) important: u64,
}

/// What went by that should not, or might.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Events that came again and were dropped by their number.
    pub(crate) dropped: u64,
    /// Events held back behind a hole.
    pub(crate) held: u64,
    /// Pulls.
    pub(crate) pulls: u64,
    /// Acknowledgements.
    pub(crate) acks: u64,
    /// Numbers that a frame skipped without a notice.
    pub(crate) skipped: u64,
    /// Times the numbering was another one than before, or went back.
    pub(crate) renumbered: u64,
    /// Joins that were recovered in full.
    pub(crate) recovered: u64,
    /// Joins with a position that began anew.
    pub(crate) fresh: u64,
}

impl Tally {
    /// Adds another client's.
    pub(crate) fn absorb(&mut self, other: &Tally) {
        self.dropped += other.dropped;
        self.held += other.held;
        self.pulls += other.pulls;
        self.acks += other.acks;
        self.skipped += other.skipped;
        self.renumbered += other.renumbered;
        self.recovered += other.recovered;
        self.fresh += other.fresh;
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Room {
    at: Option<Position>,
    held: BTreeMap<u64, Shown>,
    /// The room's last important number that we heard of.
    newest: u64,
    /// What follows the last join covers numbers up to here.
    following: u64,
    /// Asked to acknowledge up to here, and when.
    asked: Option<(u64, u64)>,
    pull_at: Option<u64>,
    /// A uniform number for draws below.
    slot: u16,
    /// What went by.
    pub(crate) tally: Tally,
}

impl Room {
    /// Where it stands; `None` before it joined for the first time.
    pub(crate) fn position(&self) -> Option<Position> {
        self.at
    }

    /// Whether every important event that it heard of was shown, and what was
    /// to follow the last join has come.
    pub(crate) fn caught_up(&self) -> bool {
        self.at.is_some_and(|at| at.important >= self.newest && at.seq >= self.following)
    }

    /// The server's number for it on this connection.
    pub(crate) fn welcomed(&mut self, slot: u16) {
        self.slot = slot;
    }

    /// It is in.
    pub(crate) fn joined(&mut self, joined: &Joined, now: u64) {
        // What was asked or held on another connection is void.
        (self.asked, self.pull_at) = (None, None);
        self.held.clear();
        let Joined { epoch, seq, important, recovered, .. } = *joined;
        match &mut self.at {
            Some(at) if at.epoch == epoch => {
                // What it was shown was logged: no room may stand before that.
                self.tally.renumbered += u64::from(important < at.important);
                if recovered {
                    self.tally.recovered += 1;
                } else {
                    self.tally.fresh += 1;
                    at.seq = seq;
                }
            }
            at => {
                self.tally.renumbered += u64::from(at.is_some());
                *at = Some(Position { epoch, seq, important });
            }
        }
        (self.newest, self.following) = (important, seq);
        if let Some(Range { from, to }) = joined.missed
            && from <= to
        {
            self.pull_at = Some(now);
        }
    }

    /// A frame has come: `show` gets what is shown for it, `random` gives a
    /// number below its argument.
    pub(crate) fn frame(
        &mut self,
        frame: &Frame,
        now: u64,
        random: &mut impl FnMut(u64) -> u64,
        show: &mut impl FnMut(Shown),
    ) -> Option<Say> {
        let at = self.at.as_mut()?;
        if frame.epoch != at.epoch {
            self.tally.renumbered += 1;
            return None;
        }
        if frame.first_seq <= frame.last_seq {
            self.tally.skipped += frame.first_seq.abs_diff(at.seq + 1);
            at.seq = frame.last_seq;
        }
        self.newest = self.newest.max(frame.important);
        for event in &frame.events {
            let Some(number) = event.important else { continue };
            let [_, n, sent_us] = event.payload.lt;
            let shown = Shown { number, n: u32::try_from(n).unwrap_or(u32::MAX), sent_us };
            if number <= at.important || self.held.contains_key(&number) {
                self.tally.dropped += 1;
            } else if number == at.important + 1 {
                at.important = number;
                show(shown);
            } else {
                self.tally.held += 1;
                self.held.insert(number, shown);
            }
        }
        while let Some(next) = self.held.first_entry().filter(|e| *e.key() == at.important + 1) {
            at.important += 1;
            show(next.remove());
        }
        if at.important >= self.newest {
            self.pull_at = None;
        } else if self.pull_at.is_none() {
            self.pull_at = Some(now + random(HOLE_WAIT_US));
        }
        self.asked_by(frame, now, random)
    }

    fn asked_by(
        &mut self,
        frame: &Frame,
        now: u64,
        random: &mut impl FnMut(u64) -> u64,
    ) -> Option<Say> {
        let asked = frame.ack?;
        if u32::from(self.slot) >= 65_536 / asked.one_in.max(1) {
            return None;
        }
        let at = match asked.within_ms {
            0 => now,
            within_ms => now + random(within_ms * 1_000),
        };
        let at = self.asked.map_or(at, |(_, before)| before.min(at));
        self.asked = Some((frame.important, at));
        self.acknowledge(now)
    }

    /// The acknowledgement, if its time has come and there is something to say.
    fn acknowledge(&mut self, now: u64) -> Option<Say> {
        let (upto, at) = self.asked?;
        let important = self.at?.important;
        // With a hole it waits until that is filled; the server sends again or
        // tells to pull meanwhile.
        if at > now || important < upto {
            return None;
        }
        self.asked = None;
        self.tally.acks += 1;
        Some(Say::Ack(important))
    }

    /// Numbers whose content only this viewer lost.
    pub(crate) fn gap(&mut self, first_seq: u64, last_seq: u64) {
        let Some(at) = &mut self.at else { return };
        if first_seq <= last_seq {
            at.seq = at.seq.max(last_seq);
        }
    }

    /// The server gave up sending these again.
    pub(crate) fn missed(
        &mut self,
        to: u64,
        within_ms: u64,
        now: u64,
        random: &mut impl FnMut(u64) -> u64,
    ) {
        let Some(at) = self.at else { return };
        if to > at.important {
            self.newest = self.newest.max(to);
            self.pull_at = Some(now + random(within_ms * 1_000 + 1));
        } else {
            // It has them all, only its word was lost.
            self.asked = Some((to, now));
        }
    }

    /// When [`Room::due`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let ack = self.asked.filter(|(upto, _)| self.at.is_some_and(|at| at.important >= *upto));
        ack.map(|(_, at)| at).into_iter().chain(self.pull_at).min()
    }

    /// What is to be said now.
    pub(crate) fn due(&mut self, now: u64) -> Option<Say> {
        if let Some(ack) = self.acknowledge(now) {
            return Some(ack);
        }
        let important = self.at?.important;
        if self.pull_at.is_none_or(|at| at > now) {
            return None;
        }
        self.pull_at = None;
        if important >= self.newest {
            return None;
        }
        self.pull_at = Some(now + PULL_AGAIN_US);
        self.tally.pulls += 1;
        let before_held = self.held.keys().next().map_or(self.newest, |first| first - 1);
        let to = before_held.min(important + PULL_EVENTS).max(important + 1);
        Some(Say::Pull(important + 1, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A room that joined at seq 4 and important 2.
    fn room() -> Room {
        let mut room = Room::default();
        room.joined(&joined(4, 2, false), 0);
        room
    }

    fn joined(seq: u64, important: u64, recovered: bool) -> Joined {
        Joined { epoch: 7, seq, important, recovered, missed: None }
    }

    /// A frame with these important numbers, whose newest is `important`.
    fn frame(seqs: (u64, u64), important: u64, numbers: &[u64]) -> Frame {
        let event =
            |&number: &u64| Event { important: Some(number), payload: Mark { lt: [0, number, 0] } };
        let (first_seq, last_seq) = seqs;
        let events = numbers.iter().map(event).collect();
        Frame { epoch: 7, first_seq, last_seq, important, events, ack: None }
    }

    fn asking(one_in: u32, within_ms: u64, frame: Frame) -> Frame {
        Frame { ack: Some(Asked { one_in, within_ms }), ..frame }
    }

    /// Takes a frame; returns what was shown and said. Draws are always the half.
    fn take(room: &mut Room, frame: &Frame, now: u64) -> (Vec<u64>, Option<Say>) {
        let mut shown = Vec::new();
        let mut half = |end: u64| end / 2;
        let say = room.frame(frame, now, &mut half, &mut |event| shown.push(event.number));
        (shown, say)
    }

    #[test]
    fn what_it_has_is_dropped_and_what_is_next_is_shown() {
        let mut room = room();
        assert_eq!(take(&mut room, &frame((5, 6), 4, &[3, 4]), 1).0, [3, 4]);
        assert_eq!(take(&mut room, &frame((7, 6), 4, &[3, 4]), 2).0, [0; 0]);
        assert_eq!((room.tally.dropped, room.tally.skipped), (2, 0));
        assert!(room.caught_up());
    }

    #[test]
    fn behind_a_hole_nothing_is_shown_until_it_is_filled() {
        let mut room = room();
        assert_eq!(take(&mut room, &frame((5, 7), 5, &[4, 5]), 10).0, [0; 0]);
        assert!(!room.caught_up());
        assert_eq!(room.next_deadline(), Some(10 + HOLE_WAIT_US / 2));
        assert_eq!(room.due(9 + HOLE_WAIT_US / 2), None);
        assert_eq!(room.due(10 + HOLE_WAIT_US / 2), Some(Say::Pull(3, 3)));
        assert_eq!(take(&mut room, &frame((8, 7), 5, &[3]), 20).0, [3, 4, 5]);
        assert_eq!(room.next_deadline(), None);
    }

    #[test]
    fn a_newer_number_alone_tells_of_a_hole_and_long_ones_are_pulled_in_parts() {
        let mut room = room();
        take(&mut room, &frame((5, 5), 302, &[]), 0);
        let at = room.next_deadline().unwrap();
        assert_eq!(room.due(at), Some(Say::Pull(3, 202)));
        let part: Vec<u64> = (3..=202).collect();
        assert_eq!(take(&mut room, &frame((6, 5), 302, &part), at).0.len(), 200);
        let again = room.next_deadline().unwrap();
        assert_eq!(room.due(again), Some(Say::Pull(203, 302)));
    }

    #[test]
    fn a_sampled_viewer_acknowledges_within_its_time_and_others_never() {
        let mut room = room();
        room.welcomed(20_000);
        let asked = asking(2, 100, frame((5, 5), 3, &[3]));
        assert_eq!(take(&mut room, &asked, 0).1, None);
        assert_eq!(room.next_deadline(), Some(50_000));
        assert_eq!(room.due(50_000), Some(Say::Ack(3)));
        assert_eq!(take(&mut room, &asking(4, 0, frame((6, 6), 4, &[4])), 1).1, None);
        assert_eq!(take(&mut room, &asking(2, 0, frame((7, 7), 5, &[5])), 2).1, Some(Say::Ack(5)));
    }

    #[test]
    fn what_was_asked_across_a_hole_is_acknowledged_when_it_is_filled() {
        let mut room = room();
        assert_eq!(take(&mut room, &asking(1, 0, frame((5, 6), 4, &[4])), 0).1, None);
        let (shown, _) = take(&mut room, &frame((7, 6), 4, &[3]), 5);
        assert_eq!(shown, [3, 4]);
        assert_eq!(room.due(5), Some(Say::Ack(4)));
    }

    #[test]
    fn told_that_it_missed_what_it_has_it_says_so_again() {
        let mut room = room();
        room.missed(2, 100, 5, &mut |end| end / 2);
        assert_eq!(room.due(5), Some(Say::Ack(2)));
        room.missed(4, 100, 5, &mut |end| end / 2);
        let at = room.next_deadline().unwrap();
        assert_eq!((at > 5, room.due(at)), (true, Some(Say::Pull(3, 4))));
    }

    #[test]
    fn it_comes_back_to_where_it_was_and_notices_another_numbering() {
        let mut room = room();
        take(&mut room, &frame((5, 6), 4, &[4]), 1);
        let from = room.position().unwrap();
        assert_eq!((from.seq, from.important), (6, 2), "what is held was not shown");
        room.joined(&joined(8, 5, true), 2);
        assert_eq!(take(&mut room, &frame((7, 8), 5, &[3, 4, 5]), 3).0, [3, 4, 5]);
        assert_eq!((room.tally.recovered, room.tally.renumbered), (1, 0));
        room.joined(&joined(9, 3, false), 4);
        assert_eq!((room.tally.fresh, room.tally.renumbered), (1, 1), "numbers went back");
    }

    #[test]
    fn a_skipped_number_is_counted_unless_a_notice_names_it() {
        let mut room = room();
        take(&mut room, &frame((7, 8), 2, &[]), 0);
        assert_eq!(room.tally.skipped, 2);
        room.gap(9, 10);
        take(&mut room, &frame((11, 11), 2, &[]), 0);
        assert_eq!(room.tally.skipped, 2);
    }

    #[test]
    fn messages_are_read() {
        let text = r#"{"frame":{"room":"r","epoch":7,"first_seq":5,"last_seq":5,"important":3,
            "time_ms":1,"events":[{"id":"a","kind":"red_packet","user":"u","seq":5,"important":3,
            "payload":{"lt":[0,9,8],"x":""},"time_ms":1}],"totals":[],"online":3,
            "ack":{"one_in":1,"within_ms":0}}}"#;
        let Told::Frame(frame) = serde_json::from_str(text).unwrap() else { panic!() };
        assert_eq!(take(&mut room(), &frame, 0), (vec![3], Some(Say::Ack(3))));
        for text in
            [r#"{"welcome":{"session":"s","ping_interval_ms":1,"ack_slot":9}}"#, r#"{"ping":{}}"#]
        {
            serde_json::from_str::<Told>(text).unwrap();
        }
    }
}

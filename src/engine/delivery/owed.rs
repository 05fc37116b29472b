//! What a viewer is given so that it is whole again: numberless frames, which a
//! client reads as any other.

use std::sync::Arc;

use super::super::event::{Frame, Numbered, Snapshot, Total};
use super::super::ids::ImportantNo;
use super::super::time::Time;

/// Important events that a viewer is owed, as far as they go at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Oldest first.
    pub events: Vec<Arc<Numbered>>,
    /// How many of those before and between them the room no longer remembers.
    pub gone: u64,
    /// Where the rest begins, if there is one.
    pub rest: Option<ImportantNo>,
}

impl Owed {
    /// Of the events `from..=last`, of which `events` are remembered (possibly
    /// not up to the last), those that fit into `bytes` and at least one. So a
    /// slow viewer gets its debt in pieces that it can take, and a rebase in
    /// between costs it one piece.
    #[must_use]
    pub fn within(
        events: Vec<Arc<Numbered>>,
        from: ImportantNo,
        last: ImportantNo,
        more: bool,
        bytes: usize,
    ) -> Self {
        let mut owed = Self { events: Vec::new(), gone: 0, rest: None };
        let (mut next, mut held) = (from.0, 0);
        for event in events {
            let Some(number) = event.important.filter(|no| *no <= last) else { continue };
            held += event.event.weight();
            if held > bytes && !owed.events.is_empty() {
                owed.rest = Some(number);
                return owed;
            }
            owed.gone += number.0.saturating_sub(next);
            next = number.0 + 1;
            owed.events.push(event);
        }
        if more {
            owed.rest = Some(ImportantNo(next)).filter(|rest| *rest <= last);
        } else {
            owed.gone += (last.0 + 1).saturating_sub(next);
        }
        owed
    }

    /// The frame that brings them, before the state of `snapshot`; `None` when
    /// there are none.
    #[must_use]
    pub fn frame(&self, snapshot: &Snapshot, now: Time) -> Option<Frame> {
        let last = self.events.last()?.important?;
        // A client that looks for holes must not ask for what is about to come.
        let important = if self.rest.is_some() { last } else { snapshot.important };
        let mut frame = numberless(snapshot, important, now);
        frame.events.clone_from(&self.events);
        frame.represents = self.events.len() as u64;
        Some(frame)
    }
}

/// The newest totals, for a viewer that was not sent some.
#[must_use]
pub fn totals(snapshot: &Snapshot, now: Time) -> Frame {
    Frame {
        totals: snapshot.totals.iter().map(|total| Total { delta: 0, ..total.clone() }).collect(),
        online: Some(snapshot.online.max(1)),
        ..numberless(snapshot, snapshot.important, now)
    }
}

fn numberless(snapshot: &Snapshot, important: ImportantNo, now: Time) -> Frame {
    let at = (snapshot.epoch, snapshot.seq);
    Frame::beside(snapshot.room.clone(), at, important, Vec::new(), now)
}

#[cfg(test)]
mod tests {
    use super::super::super::ids::Seq;
    use super::super::super::testing::red_packet;
    use super::*;

    fn events(numbers: &[u64]) -> Vec<Arc<Numbered>> {
        let event = |no: &u64| Numbered {
            event: red_packet(&no.to_string()).event(),
            seq: Some(Seq(*no)),
            important: Some(ImportantNo(*no)),
        };
        numbers.iter().map(event).map(Arc::new).collect()
    }

    fn within(numbers: &[u64], from: u64, last: u64, more: bool, bytes: usize) -> Owed {
        Owed::within(events(numbers), ImportantNo(from), ImportantNo(last), more, bytes)
    }

    #[test]
    fn all_that_fits_comes_at_once_and_nothing_beyond_the_last() {
        let owed = within(&[4, 5, 6], 4, 5, false, 10_000);
        assert_eq!((owed.events.len(), owed.gone, owed.rest), (2, 0, None));
    }

    #[test]
    fn pieces_are_bounded_and_hold_at_least_one() {
        let one = events(&[4])[0].event.weight();
        let owed = within(&[4, 5, 6], 4, 6, false, 2 * one);
        assert_eq!((owed.events.len(), owed.rest), (2, Some(ImportantNo(6))));
        let owed = within(&[4, 5, 6], 4, 6, false, 1);
        assert_eq!((owed.events.len(), owed.rest), (1, Some(ImportantNo(5))));
    }

    #[test]
    fn what_the_room_forgot_is_counted_and_a_limit_is_no_loss() {
        assert_eq!(within(&[6, 7], 4, 7, false, 10_000).gone, 2);
        assert_eq!(within(&[], 4, 7, false, 10_000).gone, 4);
        let owed = within(&[4, 5], 4, 9, true, 10_000);
        assert_eq!((owed.gone, owed.rest), (0, Some(ImportantNo(6))));
        assert_eq!(within(&[4, 5], 4, 5, true, 10_000).rest, None);
    }
}

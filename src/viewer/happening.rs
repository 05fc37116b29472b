//! What happens in a room, as its viewer is told.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::outcome::Failure;
use super::room::{Entry, Incoming, Position};
use crate::wire::proto::v1;

/// Something that happened, in the order in which it is to be shown.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Happening {
    /// The room as it stands. The first thing that is told, and told again after
    /// every reconnect; it replaces what is held of state and totals.
    Joined(Snapshot),
    /// An event. An important one comes once, and in the order of its number; an
    /// ordered one in the order of `seq`; a sampled one at any time.
    Event(Event),
    /// Sums that have changed, each newer than the last of its kind, user and key.
    Totals(Vec<Total>),
    /// How many viewers there are.
    Online(u32),
    /// Ordered events that this viewer does not get.
    Gap(Gap),
    /// This viewer is slow, and is sent less from here on; or more again.
    Withheld(Withheld),
    /// Events that the room itself left out of what everybody gets, by kind.
    Dropped(BTreeMap<String, u64>),
    /// The server says that these important events did not arrive, first and last.
    /// What is missing is being pulled.
    Missed {
        /// First.
        from: u64,
        /// Last.
        to: u64,
    },
    /// Important events that the server no longer has, first and last.
    Lost {
        /// First.
        from: u64,
        /// Last.
        to: u64,
    },
    /// Something about this room, or the connection, failed for now.
    Failed(Failure),
    /// The server is leaving; the connection will be made anew.
    Leaving {
        /// When.
        reconnect_after: Duration,
    },
    /// The connection is gone. It will be made anew, and `Joined` follows.
    Disconnected {
        /// Why, for people.
        why: String,
        /// When the next attempt begins.
        again_in: Duration,
    },
    /// Nothing more will come: the last thing that is told.
    Ended(End),
}

/// What a slow viewer is not sent (docs/slow-viewers.md).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Withheld {
    /// It is sent everything.
    #[default]
    Nothing,
    /// Sampled events.
    Sampled,
    /// And totals and the number of viewers; the newest follow when all else is sent.
    Totals,
    /// And ordered events; a `Gap` says how many.
    Ordered,
}

impl Withheld {
    /// What a frame says, `None` if it says nothing: those without numbers are also
    /// sent beside the ladder.
    pub(super) fn of(frame: &v1::Frame) -> Option<Self> {
        match frame.withheld {
            0 => (frame.first_seq <= frame.last_seq).then_some(Withheld::Nothing),
            1 => Some(Withheld::Sampled),
            2 => Some(Withheld::Totals),
            // A newer server's may withhold more.
            _ => Some(Withheld::Ordered),
        }
    }
}

/// Why nothing more will come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The server does not let this viewer in again.
    Refused(Failure),
    /// The server closed the connection and said not to come back.
    Dismissed {
        /// 3500 to 3999, or the status of a refused upgrade.
        code: u16,
        /// Why, for people.
        reason: String,
    },
    /// There was no token to join with.
    NoToken(String),
}

/// Why a viewer is told where the room stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It came in.
    First,
    /// It came back, and what it missed follows.
    Recovered,
    /// It came back, and talk in between is lost; a `Gap` names it. Important
    /// events follow nevertheless.
    Behind,
    /// It came back to another numbering: the room was opened anew.
    Renumbered,
    /// It was slow, and goes on from here. Nothing important is lost.
    Rebased,
}

impl From<Entry> for Why {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::First => Why::First,
            Entry::Recovered => Why::Recovered,
            Entry::Behind(_) => Why::Behind,
            Entry::Renumbered => Why::Renumbered,
            Entry::Rebased => Why::Rebased,
        }
    }
}

/// Where a room stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Why it is told.
    pub why: Why,
    /// Where the room stands; events after it follow.
    pub position: Position,
    /// Viewers.
    pub online: u32,
    /// Different users that have been in the room.
    pub users: u64,
    /// Whether `users` is counted rather than estimated.
    pub users_exact: bool,
    /// Current values of kinds that keep the latest.
    pub state: Vec<Event>,
    /// All sums; `delta` is 0.
    pub totals: Vec<Total>,
}

/// An event of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its publisher's name for it.
    pub id: String,
    /// Name of its kind.
    pub kind: String,
    /// Who caused it; empty if nobody did.
    pub user: String,
    /// Its number; none on the sampled lane.
    pub seq: Option<u64>,
    /// Its number among the important events, if it is one.
    pub important: Option<u64>,
    /// What it says: JSON where the publisher wrote JSON, otherwise its bytes.
    pub payload: Bytes,
    /// What it was merged by.
    pub key: Option<String>,
    /// What it adds.
    pub amount: Option<i64>,
    /// When the server received it, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

impl Event {
    /// Its payload as JSON; `None` if it is none.
    #[must_use]
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.payload).ok()
    }

    pub(super) fn incoming(event: v1::Event) -> Incoming<Event> {
        Incoming::of(&event, ()).with(|()| event.into())
    }
}

impl<T> Incoming<T> {
    fn with<U>(self, hand: impl FnOnce(T) -> U) -> Incoming<U> {
        let Self { seq, important, hash, event } = self;
        Incoming { seq, important, hash, event: hand(event) }
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let v1::Event { id, kind, user, seq, important, payload, key, amount, time_ms } = event;
        Self { id, kind, user, seq, important, payload, key, amount, time_ms }
    }
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// Name of the kind.
    pub kind: String,
    /// Whose, for kinds that sum by user and key.
    pub user: Option<String>,
    /// By what it is summed; empty if by nothing.
    pub key: String,
    /// What counts.
    pub sum: i64,
    /// What was added; 0 where only the sum is told.
    pub delta: i64,
}

impl From<v1::Total> for Total {
    fn from(total: v1::Total) -> Self {
        let v1::Total { kind, key, sum, delta, user } = total;
        Self { kind, user, key, sum, delta }
    }
}

/// Numbers whose ordered events this viewer does not get. Important ones among
/// them are exempt: they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// First number.
    pub first_seq: u64,
    /// Last one; one less than the first if there were none.
    pub last_seq: u64,
    /// How many events of which kind, where the server says so.
    pub dropped: BTreeMap<String, u64>,
    /// Why.
    pub why: GapReason,
}

/// Why a viewer does not get some ordered events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// It was slow.
    Slow,
    /// It was away, and the server no longer has them.
    Away,
    /// The server did not say; no server of ours does that.
    Unannounced,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_without_numbers_say_nothing_of_what_is_sent_again() {
        let of = |last_seq, withheld| {
            Withheld::of(&v1::Frame { first_seq: 5, last_seq, withheld, ..v1::Frame::default() })
        };
        assert_eq!((of(4, 0), of(5, 0)), (None, Some(Withheld::Nothing)));
        assert_eq!((of(4, 2), of(5, 1)), (Some(Withheld::Totals), Some(Withheld::Sampled)));
        assert_eq!(of(5, 9), Some(Withheld::Ordered), "all that is known here");
    }
}

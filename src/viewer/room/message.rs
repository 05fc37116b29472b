//! What a room's model takes in and gives out.

use crate::engine::digest::{self, Digest};
use crate::engine::ids::ImportantNo;
use crate::wire::proto::v1;

/// What brought a frame. Nothing orders one of these against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The WebSocket, or the control stream.
    Control,
    /// The stream of important events.
    Important,
    /// A datagram: may be lost, and overtaken.
    Datagram,
}

/// Where a viewer's knowledge ends, for `resume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Numbering.
    pub epoch: u64,
    /// Last number that was covered.
    pub seq: u64,
    /// Everything important up to here was shown.
    pub important: u64,
}

/// `joined`, without its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Joined {
    /// Numbering.
    pub epoch: u64,
    /// The room's last sequence number.
    pub seq: u64,
    /// Its last important number.
    pub important: u64,
    /// What was missed follows.
    pub recovered: bool,
    /// It replaces what the viewer holds of a room that it is in.
    pub rebased: bool,
    /// Some important events do not follow and are to be pulled.
    pub missed: bool,
}

/// What a frame says beside its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Numbering.
    pub epoch: u64,
    /// First number it covers.
    pub first_seq: u64,
    /// Last one; one less than the first if it covers none.
    pub last_seq: u64,
    /// The room's last important number.
    pub important: u64,
    /// How its important events are to be acknowledged.
    pub ack: Option<Asked>,
}

impl Header {
    pub(super) fn covers(&self) -> bool {
        self.first_seq <= self.last_seq
    }
}

/// How important events are to be acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Viewers whose slot is below 65,536 ÷ this.
    pub one_in: u32,
    /// Each after a random delay below this, in milliseconds.
    pub within_ms: u32,
    /// With a digest of what came from this number on.
    pub digest_from: Option<u64>,
}

/// An event as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<T> {
    /// Its number, if it has one.
    pub seq: Option<u64>,
    /// Its number among the important events, if it is one.
    pub important: Option<u64>,
    /// Of an important one: [`digest::hash`].
    pub hash: u32,
    /// What is handed through.
    pub event: T,
}

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<T> {
    /// An event: an important one once and in order of its number; an ordered one
    /// once and in order of `seq`, in a frame's own order beside the others.
    Event(T),
    /// Numbers went by without a notice, which no server of ours does.
    Skipped {
        /// First.
        first_seq: u64,
        /// Last.
        last_seq: u64,
    },
    /// Important events that the server no longer has.
    Lost {
        /// First.
        from: u64,
        /// Last.
        to: u64,
    },
}

/// What a viewer says to its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// It has everything up to here.
    Ack(u64),
    /// Send these again, first and last.
    Pull(u64, u64),
    /// What it received of these.
    Digest {
        /// First.
        from: u64,
        /// Last.
        to: u64,
        /// Of them.
        digest: Digest,
    },
}

/// What a `joined` meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The room begins here.
    First,
    /// It goes on where it was left.
    Recovered,
    /// These numbers went by and will not come; none if nothing did.
    Behind(Option<(u64, u64)>),
    /// Another numbering than before.
    Renumbered,
    /// The viewer was slow, and goes on from here.
    Rebased,
}

impl<T> Incoming<T> {
    /// From an event of the protocol, and what is handed through for it.
    #[must_use]
    pub fn of(event: &v1::Event, handed: T) -> Self {
        let hash = event.important.map_or(0, |no| digest::hash(ImportantNo(no), &event.id));
        Self { seq: event.seq, important: event.important, hash, event: handed }
    }
}

impl From<&v1::Joined> for Joined {
    fn from(joined: &v1::Joined) -> Self {
        Self {
            epoch: joined.epoch,
            seq: joined.seq,
            important: joined.important,
            recovered: joined.recovered,
            rebased: joined.rebased,
            missed: joined.missed.as_ref().is_some_and(|missed| missed.from <= missed.to),
        }
    }
}

impl From<&v1::Frame> for Header {
    fn from(frame: &v1::Frame) -> Self {
        let asked = |ack: &v1::AckAsked| Asked {
            one_in: ack.one_in,
            within_ms: ack.within_ms,
            digest_from: ack.digest_from,
        };
        Self {
            epoch: frame.epoch,
            first_seq: frame.first_seq,
            last_seq: frame.last_seq,
            important: frame.important,
            ack: frame.ack.as_ref().map(asked),
        }
    }
}

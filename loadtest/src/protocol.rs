//! What parent and workers tell each other: JSON, one message a line, over pipes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::check::Recording;
use crate::hist::Recorded;
use crate::transport::Wire;

/// Parent to worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Prepare these viewers; answered by [`Report::Prepared`].
    Prepare(Box<Plan>),
    /// Connect what was prepared; answered by [`Report::Settled`].
    Connect,
    /// A new window begins now: forget what was counted; answered by [`Report::WindowOpen`].
    Window,
    /// Tell what was counted since; answered by [`Report::Stats`].
    Collect {
        /// With what the recording viewers hold.
        recordings: bool,
    },
    /// Slow viewers stop reading, or read again.
    SlowRead(bool),
    /// End.
    Quit,
}

/// Worker to parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Ready to connect.
    Prepared,
    /// While connecting.
    Progress {
        /// Joined so far.
        joined: u32,
        /// Failed so far.
        failed: u32,
        /// When the last connection had been begun, by the monotonic clock; 0: not yet.
        opened_us: u64,
    },
    /// Every viewer has joined or failed.
    Settled {
        /// Joined.
        joined: u32,
        /// Failures by reason.
        failed: BTreeMap<String, u32>,
        /// When the last one joined, by the monotonic clock.
        at_us: u64,
        /// When the last connection had been begun.
        opened_us: u64,
    },
    /// Counters are at zero.
    WindowOpen,
    /// In `room`, all of this worker's viewers that read have event `n`.
    Done {
        /// Index into [`Plan::rooms`].
        room: u16,
        /// Event counter.
        n: u64,
    },
    /// The answer to [`Command::Collect`].
    Stats(Box<Stats>),
    /// The worker gives up.
    Fatal(String),
}

/// How a worker's sockets talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// Join, frames.
    Viewer,
    /// Bare TCP: frames come without handshake or join.
    Bare,
}

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Where to connect.
    pub(crate) addr: SocketAddr,
    /// How to talk.
    pub(crate) mode: Mode,
    /// Over what.
    pub(crate) wire: Wire,
    /// Second and third number of the loopback addresses to connect from.
    pub(crate) source: [u8; 2],
    /// All rooms of the run, also those this worker has no viewers of.
    pub(crate) rooms: Vec<String>,
    /// The worker's viewers.
    pub(crate) shares: Vec<Share>,
    /// One of so many viewers parses every frame and checks the stream; 0: none.
    pub(crate) check_every: u32,
    /// So many viewers keep all they saw, for the exact end check.
    pub(crate) recorders: u32,
    /// Fold every viewer's frames between event 0 and event 1 into a digest.
    pub(crate) digest: bool,
    /// Offer permessage-deflate.
    pub(crate) compress: bool,
    /// Connections per second; 0: as fast as possible.
    pub(crate) connect_rate: u32,
    /// Connections in progress at most.
    pub(crate) in_progress: u32,
    /// Key to sign the viewers' tokens with.
    pub(crate) secret: String,
    /// Prefix of the viewers' names.
    pub(crate) user: String,
    /// Added to the worker's nice value.
    pub(crate) nice: i32,
    /// Real-time priority of the worker, where that is allowed; 0: none.
    pub(crate) priority: u8,
    /// Viewers who are told when to come back do, and reconnect if need be.
    pub(crate) patient: bool,
    /// Until the last connection has been begun the worker does nothing else, and has
    /// nearly all of its processor, where that is allowed: so they come as fast as asked. What its viewers receive once they are in is not counted.
    pub(crate) rush: bool,
}

/// Some viewers alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Index into [`Plan::rooms`].
    pub(crate) room: u16,
    /// Counted together, by this index.
    pub(crate) group: u8,
    /// How many.
    pub(crate) count: u32,
    /// With a small receive buffer, and not reading while told so.
    pub(crate) slow: bool,
}

/// What a worker counted in a window.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// By [`Share::group`].
    pub(crate) groups: Vec<GroupStats>,
    /// Deliveries per [`BIN_US`] since the window began.
    pub(crate) bins: Vec<u64>,
    /// Connections that ended, by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// Streams that were parsed in full.
    pub(crate) checked: u64,
    /// Frames that were parsed in full.
    pub(crate) frames_checked: u64,
    /// Broken promises seen by them, first ones in words.
    pub(crate) errors: Vec<String>,
    /// All of them.
    pub(crate) error_count: u64,
    /// Events that the room itself reported as dropped, by kind, as one checking
    /// viewer saw it (the most that any saw).
    pub(crate) room_dropped: BTreeMap<String, u64>,
    /// Distinct streams by (digest, frames), and how many viewers had each.
    pub(crate) digests: Vec<(u64, u64, u64)>,
    /// From recording viewers.
    pub(crate) recordings: Vec<Recording>,
    /// What patient viewers met with while joining, since the start.
    pub(crate) returns: Returns,
    /// What QUIC viewers sent, and what the network lost.
    pub(crate) datagrams: Datagrams,
}

/// Datagrams of a worker's QUIC viewers in a window.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    /// Sent.
    pub(crate) sent: u64,
    /// System calls for that.
    pub(crate) sends: u64,
    /// Not taken by the kernel.
    pub(crate) refused: u64,
    /// Packets that viewers hold for lost, since the start.
    pub(crate) lost: u64,
}

/// Joins that did not go through at once, and what became of them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Returns {
    /// Joins refused with a time to come back.
    pub(crate) refused: u64,
    /// Viewers that joined after they had been refused or cut off.
    pub(crate) came_back: u64,
    /// Connections made anew, because the first one ended.
    pub(crate) reconnected: u64,
}

/// Width of a bin of [`Stats::bins`].
pub(crate) const BIN_US: u64 = 500_000;

/// Counters of one group of viewers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct GroupStats {
    /// Viewers alive.
    pub(crate) viewers: u64,
    /// Events that arrived for the first time.
    pub(crate) deliveries: u64,
    /// Events that arrived again.
    pub(crate) duplicated: u64,
    /// Events that were skipped over.
    pub(crate) skipped: u64,
    /// Frames of the room.
    pub(crate) frames: u64,
    /// Frames that carry at least one of our events.
    pub(crate) marked_frames: u64,
    /// Bytes of their content, WebSocket header or length excluded.
    pub(crate) marked_bytes: u64,
    /// Successful `read(2)` calls; over QUIC, datagrams.
    pub(crate) reads: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Gap notices.
    pub(crate) gaps: u64,
    /// Events that gap notices named as dropped.
    pub(crate) gap_dropped: u64,
    /// From intended send time to arrival, in microseconds.
    pub(crate) latency: Recorded,
    /// From the start of a connection to `joined`, in microseconds.
    pub(crate) join: Recorded,
}

impl GroupStats {
    /// Adds another worker's count of the same group.
    pub(crate) fn absorb(&mut self, other: &GroupStats) {
        self.viewers += other.viewers;
        self.deliveries += other.deliveries;
        self.duplicated += other.duplicated;
        self.skipped += other.skipped;
        self.frames += other.frames;
        self.marked_frames += other.marked_frames;
        self.marked_bytes += other.marked_bytes;
        self.reads += other.reads;
        self.bytes += other.bytes;
        self.gaps += other.gaps;
        self.gap_dropped += other.gap_dropped;
        self.latency.absorb(&other.latency);
        self.join.absorb(&other.join);
    }
}

impl Stats {
    /// Adds another worker's account.
    pub(crate) fn absorb(&mut self, other: Stats) {
        if self.groups.len() < other.groups.len() {
            self.groups.resize_with(other.groups.len(), GroupStats::default);
        }
        for (mine, theirs) in self.groups.iter_mut().zip(&other.groups) {
            mine.absorb(theirs);
        }
        if self.bins.len() < other.bins.len() {
            self.bins.resize(other.bins.len(), 0);
        }
        for (mine, theirs) in self.bins.iter_mut().zip(&other.bins) {
            *mine += theirs;
        }
        for (reason, count) in other.closed {
            *self.closed.entry(reason).or_default() += count;
        }
        self.checked += other.checked;
        self.frames_checked += other.frames_checked;
        self.error_count += other.error_count;
        self.errors.extend(other.errors);
        self.errors.truncate(20);
        for (kind, count) in other.room_dropped {
            let most = self.room_dropped.entry(kind).or_default();
            *most = count.max(*most);
        }
        for (digest, frames, viewers) in other.digests {
            match self.digests.iter_mut().find(|known| known.0 == digest && known.1 == frames) {
                Some(known) => known.2 += viewers,
                None => self.digests.push((digest, frames, viewers)),
            }
        }
        self.recordings.extend(other.recordings);
        self.returns.refused += other.returns.refused;
        self.returns.came_back += other.returns.came_back;
        self.returns.reconnected += other.returns.reconnected;
        self.datagrams.sent += other.datagrams.sent;
        self.datagrams.sends += other.datagrams.sends;
        self.datagrams.refused += other.datagrams.refused;
        self.datagrams.lost += other.datagrams.lost;
    }
}

//! A room as one shard sees it: its members there, in one dense array.
//!
//! A fan-out job walks that array with a cursor while members come and go.
//! Newcomers are appended behind the job's end (their snapshot already holds
//! what the frame says); leavers are marked and taken out when the job is done,
//! so that no member is moved past the cursor and missed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::connection::{Connections, ViewerKey};
use super::rebase::Answers;
use crate::engine::confirm::{self, Confirmations};
use crate::engine::ids::{Epoch, RoomId, Seq, ShardId};
use crate::engine::room::Position;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::shared::SharedFrame;

/// What the fan-out loop reads of a viewer, besides its descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Row of the viewer.
    pub viewer: u32,
    /// What it reads.
    pub format: Format,
    /// [`GONE`], [`BACKLOGGED`], [`INDIRECT`]; zero in the common case.
    pub marks: u8,
}

/// Who has come to a room and left it, for its home.
#[derive(Debug, Default)]
pub struct Moves {
    /// Users that came, by [`LevelKey::visitor`](crate::engine::level::LevelKey::visitor).
    pub visitors: Vec<u64>,
    /// Some of those that came, by name.
    pub entered: Vec<Arc<str>>,
    /// Some of those that left.
    pub left: Vec<Arc<str>>,
}

/// Names told at once: who comes with a thousand others is not announced.
const NAMES: usize = 32;

impl Moves {
    /// Somebody came.
    pub fn entered(&mut self, visitor: u64, user: &Arc<str>) {
        self.visitors.push(visitor);
        if self.entered.len() < NAMES {
            self.entered.push(Arc::clone(user));
        }
    }

    /// Somebody left.
    pub fn left(&mut self, user: &Arc<str>) {
        if self.left.len() < NAMES {
            self.left.push(Arc::clone(user));
        }
    }
}

/// A join that waits for the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// Who.
    pub key: ViewerKey,
    /// Where it left off.
    pub resume: Option<Position>,
    /// It acknowledges important events as told.
    pub acks: bool,
}

/// Left while a frame was going out.
pub const GONE: u8 = 1;
/// Has a backlog: the frame goes behind it.
pub const BACKLOGGED: u8 = 2;
/// Has no plain socket that a frame could be written to at once.
pub const INDIRECT: u8 = 4;

/// A frame on its way to the members `cursor..end`.
#[derive(Debug)]
pub struct Job {
    /// What goes out.
    pub frame: Arc<SharedFrame>,
    /// Next member.
    pub cursor: usize,
    /// Behind the last member.
    pub end: usize,
    /// When it reached this shard.
    pub started: Time,
    /// When its first member's turn came.
    pub begun: Option<Time>,
    /// Members whose socket took it whole.
    pub whole: u32,
    /// Members who had left before their turn.
    pub gone: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LocalRoom {
    /// Name.
    pub id: RoomId,
    /// Shard that numbers it.
    pub home: ShardId,
    /// In order of joining.
    pub members: Vec<Member>,
    /// The frame going out.
    pub job: Option<Job>,
    /// Frames behind it. The home sends the next one when all shards are done
    /// with the last, so there is at most one.
    pub queue: VecDeque<Arc<SharedFrame>>,
    /// Viewers whose join waits for the snapshot, and where they left off.
    pub waiting: Vec<Waiting>,
    /// Positions for which a snapshot was asked.
    pub asked: Vec<Option<Position>>,
    /// What slow viewers are to be told between two frames.
    pub answers: Answers,
    /// Of its viewers, those in the shard's sum.
    counted: u32,
    /// The home must hear how many viewers there are.
    pub presence_dirty: bool,
    /// Who has come and gone since the home last heard.
    pub moves: Moves,
    /// Second of the last frame, for pings.
    pub last_frame: u32,
    /// Numbering and last number of the last frame that began to go out.
    pub stands_at: (Epoch, Seq),
    /// Its scores wait for something, and the shard knows.
    pub chased: bool,
    /// What its viewers have acknowledged, in the order of `members`.
    pub confirmations: Confirmations,
    gone: Vec<u32>,
    by_format: [u32; Format::COUNT],
}

impl LocalRoom {
    /// Nobody is in it yet.
    #[must_use]
    pub fn new(id: RoomId, home: ShardId, confirm: confirm::Settings) -> Self {
        Self {
            id,
            home,
            members: Vec::new(),
            job: None,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            asked: Vec::new(),
            answers: Answers::default(),
            counted: 0,
            presence_dirty: false,
            moves: Moves::default(),
            last_frame: 0,
            stands_at: Default::default(),
            chased: false,
            confirmations: Confirmations::new(confirm),
            gone: Vec::new(),
            by_format: [0; Format::COUNT],
        }
    }

    /// Brings a sum over rooms up to date.
    pub fn count_viewers(&mut self, sum: &mut u64) {
        let now = self.viewers();
        *sum = *sum - u64::from(self.counted) + u64::from(now);
        self.counted = now;
    }

    /// Viewers that are in it.
    #[must_use]
    pub fn viewers(&self) -> u32 {
        (self.members.len() - self.gone.len()) as u32
    }

    /// Formats in use, a bit each; those of waiting viewers included by the caller.
    #[must_use]
    pub fn formats(&self) -> u8 {
        let used = Format::ALL.iter().filter(|f| self.by_format[f.index()] > 0);
        used.fold(0, |mask, f| mask | 1 << f.index())
    }

    /// A snapshot was asked for.
    #[must_use]
    pub fn is_subscribing(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Nobody is in it or about to be, and nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.members.is_empty()
            && self.waiting.is_empty()
            && self.job.is_none()
            && self.queue.is_empty()
            && self.answers.is_empty()
            && !self.is_subscribing()
            && !self.presence_dirty
    }

    /// Appends a viewer, with its marks; returns its place.
    pub fn add(&mut self, viewer: u32, format: Format, marks: u8) -> u32 {
        self.by_format[format.index()] += 1;
        self.presence_dirty = true;
        self.members.push(Member { viewer, format, marks });
        (self.members.len() - 1) as u32
    }

    /// Takes a viewer out. `room` is this room's index, for telling the member
    /// that is moved into the hole. `excused`: what it has not confirmed is not
    /// due any more.
    pub fn remove(&mut self, room: u32, member: u32, excused: bool, viewers: &mut Connections) {
        let entry = &mut self.members[member as usize];
        debug_assert_eq!(entry.marks & GONE, 0, "a member leaves once");
        self.by_format[entry.format.index()] -= 1;
        self.presence_dirty = true;
        entry.marks |= GONE;
        if excused {
            self.confirmations.left(member as usize);
        }
        self.gone.push(member);
        if self.job.is_none() {
            self.close_holes(room, viewers);
        }
    }

    /// The next frame may begin; returns false if none waits.
    pub fn begin_job(&mut self, now: Time) -> bool {
        debug_assert!(self.job.is_none());
        let Some(frame) = self.queue.pop_front() else { return false };
        let end = self.members.len();
        self.stands_at = (frame.frame().epoch, frame.frame().last_seq);
        self.confirmations.sent(frame.frame(), end, now);
        self.job =
            Some(Job { frame, cursor: 0, end, started: now, begun: None, whole: 0, gone: 0 });
        true
    }

    /// The frame went to everyone.
    pub fn finish_job(&mut self, room: u32, viewers: &mut Connections) -> Option<Job> {
        let job = self.job.take();
        self.close_holes(room, viewers);
        job
    }

    fn close_holes(&mut self, room: u32, viewers: &mut Connections) {
        // From the back, so that what is moved into a hole is never a hole.
        self.gone.sort_unstable();
        while let Some(hole) = self.gone.pop() {
            self.members.swap_remove(hole as usize);
            self.confirmations.removed(hole as usize);
            let Some(moved) = self.members.get(hole as usize) else { continue };
            let memberships = &mut viewers.row_mut(moved.viewer).memberships;
            if let Some(membership) = memberships.iter_mut().find(|m| m.room == room) {
                membership.member = hole;
            }
        }
        if self.members.is_empty() {
            // A room that was once huge must not hold the memory for ever.
            self.members = Vec::new();
        }
    }
}

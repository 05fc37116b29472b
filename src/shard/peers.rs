//! Who is a room's home, and how a message gets to a shard.
//!
//! Both are traits with one answer today, threads of one process. With several
//! machines a home is a shard of some node and a message travels over the bus;
//! nothing else of the shard needs to know.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use super::asks::{LogRead, Reconcile, Wanted};
use super::connection::ViewerKey;
use super::rebase::Located;
use super::room::Moves;
use super::stats::ShardStats;
use crate::engine::delivery::Ask;
use crate::engine::event::{Event, Numbered};
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, ShardId};
use crate::engine::ladder::Rung;
use crate::engine::level::{HourKey, LevelKey};
use crate::engine::mark::Mark;
use crate::engine::outcome::Outcome;
use crate::engine::priority::{AdmissionLevel, Advice, Priority};
use crate::engine::room::Position;
use crate::engine::time::Time;
use crate::log::Logged;
use crate::trace::{Query, View};
use crate::wire::Format;
use crate::wire::shared::{SharedFrame, SharedSnapshot};

/// What a shard is told.
#[derive(Debug)]
pub enum Message {
    /// To the home: number and merge these.
    Publish {
        /// Where to.
        room: RoomId,
        /// In order.
        events: Vec<Event>,
        /// What reading them took.
        parsed: Duration,
        /// Who waits for the outcome.
        origin: Origin,
    },
    /// To the home: these were refused on its behalf before they were decoded.
    /// They are part of the demand all the same.
    Shunned {
        /// Where they were to go.
        room: RoomId,
        /// What they were.
        priorities: Vec<Priority>,
    },
    /// To the home: this shard has viewers waiting to join; send a snapshot now
    /// and every frame from here on.
    Subscribe {
        /// Which room.
        room: RoomId,
        /// Who asks.
        shard: ShardId,
        /// Its formats, a bit each.
        formats: u8,
        /// Where they left off.
        resume: Option<Position>,
    },
    /// To the home: how many viewers a shard has. None ends the subscription.
    Presence {
        /// Which room.
        room: RoomId,
        /// Whose.
        shard: ShardId,
        /// How many.
        viewers: u32,
        /// Their formats, a bit each.
        formats: u8,
        /// Who came and went.
        moves: Moves,
    },
    /// To a subscribed shard: for those who wait to join from one position.
    Enter(Arc<Entrance>),
    /// To a shard: its subscription is refused.
    SubscribeRefused {
        /// Which room.
        room: RoomId,
        /// Machine-readable.
        code: &'static str,
    },
    /// To a subscribed shard: for all its viewers of the room.
    Frame(Arc<SharedFrame>),
    /// To the home: one shard has sent the last frame to all its viewers.
    FrameOut {
        /// Which room.
        room: RoomId,
    },
    /// To a viewer's shard: bytes for it alone.
    Direct {
        /// Who.
        viewer: ViewerKey,
        /// WebSocket header included.
        bytes: Bytes,
    },
    /// To the home: a viewer wants important events again.
    Pull {
        /// Which room.
        room: RoomId,
        /// First wanted.
        from: ImportantNo,
        /// Last wanted.
        to: ImportantNo,
        /// Who asks.
        viewer: Asker,
    },
    /// To the home: what a viewer received.
    Reconcile(Reconcile),
    /// To the home: where does the room stand, for a slow viewer?
    Locate {
        /// Who asks.
        viewer: Asker,
        /// What.
        ask: Ask,
    },
    /// To a slow viewer's shard: there.
    Located(Box<Located>),
    /// To the home: where does the room stand? Nobody there: `None`.
    ReadRoom {
        /// Which room.
        room: RoomId,
        /// Who asks.
        reply: oneshot::Sender<Option<Arc<SharedSnapshot>>>,
    },
    /// To the home: the log has decided on a batch.
    Logged(Logged),
    /// To the home: what the log had.
    LogRead(Box<LogRead>),
    /// To the home: what came after a number? Nobody there: `None`.
    ReadEvents {
        /// Which room.
        room: RoomId,
        /// From where.
        after: After,
        /// How many at most.
        limit: usize,
        /// Who asks.
        reply: oneshot::Sender<Option<Events>>,
    },
    /// An operator decides otherwise.
    Override(Override, oneshot::Sender<Result<(), &'static str>>),
    /// What stands in front of the rooms, for an operator.
    ReadAdmission(oneshot::Sender<Box<AdmissionView>>),
    /// To the home: an event that is followed was refused on its way there, for
    /// this reason.
    TracedRefusal(Arc<Mark>, &'static str),
    /// What was noted of events that are followed, for an operator.
    ReadTraces(Query, oneshot::Sender<Vec<View>>),
    /// Count yourself.
    Stats(oneshot::Sender<ShardStats>),
    /// First step of a drain: take no new viewers, flush every room. Answered
    /// when all shards have sent the last frames of the rooms at home here.
    Flush(oneshot::Sender<()>),
    /// Second step, once every shard is through with the first: send everyone
    /// away. Answered when the last connection is closed.
    Leave(oneshot::Sender<()>),
}

/// How those who come from one position enter a room.
#[derive(Debug)]
pub struct Entrance {
    /// Where the room stands.
    pub snapshot: Arc<SharedSnapshot>,
    /// Whom it is for: those who left off here, or come anew.
    pub resume: Option<Position>,
    /// What they missed, after the snapshot.
    pub replay: Option<Arc<SharedFrame>>,
}

impl Entrance {
    /// Missed events it brings.
    #[must_use]
    pub fn events(&self) -> usize {
        self.replay.as_ref().map_or(0, |replay| replay.frame().events.len())
    }
}

/// What an operator can decide instead of the server.
#[derive(Debug, Clone)]
pub enum Override {
    /// Admit up to this level and no further, or as computed again.
    Pin(Option<AdmissionLevel>),
    /// Refuse a kind in a room until this time; a past time ends it.
    Silence {
        /// Which room.
        room: RoomId,
        /// Which kind.
        kind: Arc<str>,
        /// How long.
        until: Time,
    },
    /// Let new joins wait, or in again.
    HoldJoins(bool),
}

/// Where a shard's intake stands.
#[derive(Debug, Clone)]
pub struct AdmissionView {
    /// Level in force.
    pub level: AdmissionLevel,
    /// An operator's.
    pub pinned: bool,
    /// What is given up.
    pub rung: Rung,
    /// An operator holds joins.
    pub joins_held: bool,
    /// Joins waiting.
    pub joins_waiting: usize,
    /// Events waiting.
    pub waiting: usize,
    /// Mean queueing time of the last window.
    pub queueing: Duration,
    /// Work that arrived in it, as a multiple of the capacity.
    pub load: f64,
    /// Silenced kinds, and until when.
    pub silenced: Vec<(RoomId, Arc<str>, Time)>,
}

/// Who waits for a publish's outcome.
#[derive(Debug)]
pub enum Origin {
    /// A request.
    Request(oneshot::Sender<Answered>),
    /// A viewer.
    Viewer(Asker),
    /// Nobody.
    Nobody,
}

/// What became of a request's events.
#[derive(Debug, Clone)]
pub struct Answered {
    /// In order.
    pub outcomes: Vec<Outcome>,
    /// What the room's home admits at present.
    pub advice: Advice,
}

/// A viewer on some shard.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// Where it is.
    pub shard: ShardId,
    /// Which one.
    pub viewer: ViewerKey,
    /// What it reads.
    pub format: Format,
}

/// Where a reader stands.
#[derive(Debug, Clone, Copy)]
pub enum After {
    /// Wants sequenced events.
    Seq(Seq),
    /// Wants important events.
    Important(ImportantNo),
}

/// Answer to [`Message::ReadEvents`].
#[derive(Debug)]
pub struct Events {
    /// Numbering.
    pub epoch: Epoch,
    /// The room's last number.
    pub seq: Seq,
    /// The room's last important number.
    pub important: ImportantNo,
    /// In order.
    pub events: Vec<Arc<Numbered>>,
    /// Nothing between the asked number and the first event was forgotten.
    pub complete: bool,
    /// There are more than the limit.
    pub more: bool,
}

/// Who is a room's home?
pub trait Placement: Send + Sync {
    /// The shard that numbers the room.
    fn home_of(&self, room: &RoomId) -> ShardId;
}

/// Carries messages between shards, in order for each pair.
pub trait Path: Send + Sync {
    /// Never blocks. A message to a shard that has ended is lost.
    fn send(&self, to: ShardId, message: Message);
}

/// The shards of this process.
#[derive(Debug)]
pub struct LocalShards {
    mailboxes: Vec<Mailbox>,
    hasher: foldhash::fast::FixedState,
    level_key: LevelKey,
    level_ttl: Duration,
}

#[derive(Debug)]
struct Mailbox {
    sender: mpsc::UnboundedSender<Message>,
    /// Events from outside not yet numbered. Shared, but only counted.
    queued: Arc<AtomicUsize>,
    limit: usize,
    /// The home's [`Standing`], packed.
    standing: AtomicU64,
}

/// How the home of some rooms stands, as every shard can see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// What it admits.
    pub level: AdmissionLevel,
    /// Events wait there: what the level does not admit will not get in by luck.
    pub pressed: bool,
    /// Work that arrived lately, as a multiple of its capacity.
    pub load: f64,
}

impl Standing {
    /// Open, at rest.
    pub const OPEN: Standing = Standing { level: AdmissionLevel::OPEN, pressed: false, load: 0.0 };

    fn pack(self) -> u64 {
        let load = (self.load * 100.0).clamp(0.0, f64::from(u16::MAX)) as u64;
        u64::from(self.level.to_bits()) | load << 32 | u64::from(self.pressed) << 48
    }

    fn unpack(bits: u64) -> Self {
        Self {
            level: AdmissionLevel::from_bits(bits as u32),
            pressed: bits >> 48 & 1 == 1,
            load: (bits >> 32 & 0xffff) as f64 / 100.0,
        }
    }
}

/// The receiving end of a shard's mailbox.
#[derive(Debug)]
pub struct Inbox {
    /// In order of sending.
    pub receiver: mpsc::UnboundedReceiver<Message>,
    queued: Arc<AtomicUsize>,
}

impl Inbox {
    /// Call when events of a publish leave the mailbox.
    pub fn taken(&self, events: usize) {
        self.queued.fetch_sub(events, Ordering::Relaxed);
    }
}

/// The home's mailbox holds as many events as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxFull;

impl LocalShards {
    /// Mailboxes for `count` shards that take at most `limit` events each from
    /// outside, and their receiving ends. `level_key` gives user levels, and
    /// callers may hold an admission level for `level_ttl`.
    #[must_use]
    pub fn new(
        count: u16,
        limit: usize,
        level_key: LevelKey,
        level_ttl: Duration,
    ) -> (Arc<Self>, Vec<Inbox>) {
        let (mailboxes, inboxes) = (0..count)
            .map(|_| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let queued = Arc::new(AtomicUsize::new(0));
                let standing = AtomicU64::new(Standing::OPEN.pack());
                let mailbox = Mailbox { sender, queued: Arc::clone(&queued), limit, standing };
                (mailbox, Inbox { receiver, queued })
            })
            .unzip();
        // Every start places rooms alike; nothing hostile is gained by knowing
        // which shard that is, for a room's name is the publisher's to choose.
        let hasher = foldhash::fast::FixedState::with_seed(0x7469_6465);
        (Arc::new(Self { mailboxes, hasher, level_key, level_ttl }), inboxes)
    }

    /// Hands events to their room's home, or refuses them all. `parsed`: what
    /// reading them took.
    ///
    /// # Errors
    /// [`MailboxFull`]; the events are gone, which their publisher learns.
    pub fn publish(
        &self,
        room: RoomId,
        events: Vec<Event>,
        parsed: Duration,
        origin: Origin,
    ) -> Result<(), MailboxFull> {
        let home = self.home_of(&room);
        let mailbox = &self.mailboxes[usize::from(home.0)];
        let before = mailbox.queued.fetch_add(events.len(), Ordering::Relaxed);
        if before + events.len() > mailbox.limit {
            mailbox.queued.fetch_sub(events.len(), Ordering::Relaxed);
            return Err(MailboxFull);
        }
        self.send(home, Message::Publish { room, events, parsed, origin });
        Ok(())
    }

    /// Tells an event's home that it was refused on its way there.
    pub fn trace_refusal(&self, mark: Arc<Mark>, why: &'static str) {
        let home = self.home_of(&mark.room);
        self.send(home, Message::TracedRefusal(mark, why));
    }

    /// What the home of a room admits at present. Its answer to a publish is
    /// more exact: that knows how much the room uses.
    #[must_use]
    pub fn advice(&self, room: &RoomId) -> Advice {
        Advice { level: self.standing(room).level, ttl: self.level_ttl }
    }

    /// How the home of a room stands.
    #[must_use]
    pub fn standing(&self, room: &RoomId) -> Standing {
        let home = usize::from(self.home_of(room).0);
        Standing::unpack(self.mailboxes[home].standing.load(Ordering::Relaxed))
    }

    /// The tightest level of all shards, for answers that concern no room.
    #[must_use]
    pub fn tightest_advice(&self) -> Advice {
        let standings =
            self.mailboxes.iter().map(|mailbox| mailbox.standing.load(Ordering::Relaxed));
        let level = standings.map(|bits| Standing::unpack(bits).level).min();
        Advice { level: level.unwrap_or_default(), ttl: self.level_ttl }
    }

    /// A shard tells how it stands.
    pub fn set_standing(&self, shard: ShardId, standing: Standing) {
        let mailbox = &self.mailboxes[usize::from(shard.0)];
        mailbox.standing.store(standing.pack(), Ordering::Relaxed);
    }

    /// A user's hash for counting different ones.
    #[must_use]
    pub fn visitor(&self, user: &str) -> u64 {
        self.level_key.visitor(user)
    }

    /// What priorities rest on.
    #[must_use]
    pub fn hour(&self, now: Time) -> HourKey {
        self.level_key.hour(now)
    }

    /// Shards there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Events waiting in front of a shard.
    #[must_use]
    pub fn queued(&self, shard: usize) -> usize {
        self.mailboxes[shard].queued.load(Ordering::Relaxed)
    }
}

impl Placement for LocalShards {
    fn home_of(&self, room: &RoomId) -> ShardId {
        let hash = self.hasher.hash_one(room.as_str());
        // The high bits: foldhash mixes best there.
        ShardId(((u128::from(hash) * self.mailboxes.len() as u128) >> 64) as u16)
    }
}

impl Path for LocalShards {
    fn send(&self, to: ShardId, message: Message) {
        // Fails only for a shard that has ended, in the last moments of a drain.
        let _ = self.mailboxes[usize::from(to.0)].sender.send(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::Payload;
    use crate::engine::ids::Tier;
    use crate::engine::kind::{Ack, Kind, Lane, Merge};

    const KEY: LevelKey = LevelKey::from_seed(1);

    fn event() -> Event {
        let kind = Kind {
            name: "chat".into(),
            lane: Lane::Ordered,
            merge: Merge::Append,
            tier: Tier(3),
            ttl: None,
            max_payload_bytes: 100,
            ack: Ack::Logged,
            viewer_publish: true,
            idle_reset: None,
        };
        Event {
            id: "1".into(),
            kind: Arc::new(kind),
            user: "u".into(),
            payload: Payload { bytes: Bytes::new(), json: false },
            key: None,
            amount: None,
            ttl: None,
            received: Time::default(),
            mark: None,
        }
    }

    #[test]
    fn rooms_spread_over_all_shards() {
        let (shards, _inboxes) = LocalShards::new(4, 10, KEY, Duration::ZERO);
        let mut counts = [0; 4];
        for i in 0..4_000 {
            let room = RoomId::new(&format!("room-{i}")).expect("valid");
            counts[usize::from(shards.home_of(&room).0)] += 1;
        }
        assert!(counts.iter().all(|n| (800..1_200).contains(n)), "{counts:?}");
    }

    #[test]
    fn a_standing_survives_its_packing() {
        let level = AdmissionLevel::inside(3 * 128 + 5, 0.5);
        let standing = Standing { level, pressed: true, load: 3.25 };
        assert_eq!(Standing::unpack(standing.pack()), standing);
        assert_eq!(Standing::unpack(Standing::OPEN.pack()), Standing::OPEN);
        let beyond = Standing { load: 1e9, ..standing };
        assert!(Standing::unpack(beyond.pack()).load > 600.0);
    }

    #[test]
    fn a_full_mailbox_refuses_and_an_emptied_one_accepts() {
        let (shards, inboxes) = LocalShards::new(1, 3, KEY, Duration::ZERO);
        let room = RoomId::new("r").expect("valid");
        let events = |n: usize| -> Vec<Event> { (0..n).map(|_| event()).collect() };
        let publish = |n| shards.publish(room.clone(), events(n), Duration::ZERO, Origin::Nobody);
        assert_eq!(publish(2), Ok(()));
        assert_eq!(publish(2), Err(MailboxFull));
        assert_eq!(shards.queued(0), 2);
        inboxes[0].taken(2);
        assert_eq!(publish(3), Ok(()));
    }
}

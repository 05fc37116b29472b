//! What one seed's world is like: limits of the rooms, and how often what goes
//! wrong.

use std::sync::Arc;
use std::time::Duration;

use tidegate::engine::confirm;
use tidegate::engine::ids::Tier;
use tidegate::engine::kind::{Ack, Kind, Lane, Merge, MergeBy};
use tidegate::engine::settings::RoomSettings;

use super::rng::Rng;

/// Everything that differs from seed to seed but chance itself.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) settings: Arc<RoomSettings>,
    pub(crate) confirm: confirm::Settings,
    /// Missed events that somebody who comes back is sent at most.
    pub(crate) resume_events: usize,
    pub(crate) acks_per_second: u32,
    /// Events that the log keeps of a room.
    pub(crate) retained: usize,
    pub(crate) viewers: usize,
    /// Mean microseconds between events of a room.
    pub(crate) pace: u64,
    /// Mean microseconds between two ends of the server; 0: it never ends.
    pub(crate) restart_every: u64,
    pub(crate) orderly_percent: u64,
    /// Of a thousand syncs of the log.
    pub(crate) sync_fails: u64,
    pub(crate) sync_stalls: u64,
    /// Mean microseconds between two cuts of one viewer's connection.
    pub(crate) cut_every: u64,
    /// Viewers that have important events on a stream of their own.
    pub(crate) apart_percent: u64,
    /// Viewers whose acknowledgements are not to be believed.
    pub(crate) liar_percent: u64,
    /// Of a thousand answers to publishers.
    pub(crate) answers_lost: u64,
    /// Thousands of numbers at once, so that reservations are used up.
    pub(crate) floods: bool,
}

impl Scenario {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let history_important = *rng.pick(&[0, 3, 20, 200]);
        let settings = RoomSettings {
            flush_interval: Duration::from_millis(*rng.pick(&[20, 100, 500])),
            flush_events: rng.between(5, 60) as usize,
            flush_bytes: 20_000,
            small_room_viewers: *rng.pick(&[0, 3, 100]),
            frame_events: *rng.pick(&[4, 30, 400]),
            frame_bytes: 100_000,
            reserved_percent: 25,
            reserved_tier: 1,
            buffer_events: *rng.pick(&[12, 40, 500]),
            buffer_bytes: 200_000,
            history_events: *rng.pick(&[0, 10, 60, 500]),
            history_bytes: 100_000,
            history_important,
            history_important_bytes: *rng.pick(&[1_500, 100_000]),
            dedupe_sequenced: 10_000,
            dedupe_sampled: 500,
            max_keys: 64,
            state_bytes: 1 << 18,
            durable: true,
            log_patience: Duration::from_millis(*rng.pick(&[30, 200, 500])),
            online_interval: Duration::from_millis(*rng.pick(&[0, 300])),
        };
        let confirm = confirm::Settings {
            patience: Duration::from_millis(*rng.pick(&[200, 1_000])),
            carries: rng.below(4) as u8,
            frames: *rng.pick(&[2, 16, 256]),
        };
        Self {
            settings: Arc::new(settings),
            confirm,
            resume_events: *rng.pick(&[0, 2, 10, 100]),
            acks_per_second: *rng.pick(&[1, 20, 1_000]),
            retained: history_important.max(*rng.pick(&[5, 40, 10_000])),
            viewers: rng.between(2, 8) as usize,
            pace: *rng.pick(&[8_000, 25_000, 80_000]),
            restart_every: *rng.pick(&[0, 1_500_000, 4_000_000]),
            orderly_percent: *rng.pick(&[0, 40]),
            sync_fails: *rng.pick(&[0, 5, 40]),
            sync_stalls: *rng.pick(&[0, 10, 60]),
            cut_every: *rng.pick(&[400_000, 1_500_000, 6_000_000]),
            apart_percent: *rng.pick(&[0, 50]),
            liar_percent: *rng.pick(&[0, 30]),
            answers_lost: *rng.pick(&[0, 30]),
            floods: rng.percent(15),
        }
    }
}

/// Kinds of all lanes and rules; those of the important lane come first.
pub(crate) fn kinds() -> Vec<Arc<Kind>> {
    use Lane::{Important, Ordered, Sampled};
    use Merge::{Append, Latest, Sample, Sum};
    let ttl = |ms, kind| Kind { ttl: Some(Duration::from_millis(ms)), ..kind };
    let all = [
        kind("red_packet", Important, Append, 0),
        kind("stream", Important, Latest(MergeBy::Key), 0),
        kind("donation", Important, Sum(MergeBy::Key), 0),
        Kind { ack: Ack::Received, ..kind("hint", Important, Append, 1) },
        kind("chat", Ordered, Append, 2),
        ttl(400, kind("notice", Ordered, Append, 1)),
        kind("gift", Ordered, Sum(MergeBy::UserKey), 1),
        kind("card", Ordered, Latest(MergeBy::Key), 1),
        kind("quiz", Ordered, Sample(2), 3),
        kind("like", Sampled, Sum(MergeBy::Key), 4),
        kind("count", Sampled, Latest(MergeBy::Key), 3),
        kind("enter", Sampled, Sample(3), 5),
    ];
    all.into_iter().map(Arc::new).collect()
}

/// How many of [`kinds`] are important.
pub(crate) const IMPORTANT_KINDS: u64 = 4;

fn kind(name: &str, lane: Lane, merge: Merge, tier: u8) -> Kind {
    Kind {
        name: name.into(),
        lane,
        merge,
        tier: Tier(tier),
        ttl: None,
        max_payload_bytes: 300,
        ack: Ack::Logged,
        viewer_publish: false,
        idle_reset: None,
    }
}

//! Small builders for the engine's unit tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::event::{Event, Payload};
use super::ids::Tier;
use super::kind::{Ack, Kind, Lane, Merge, MergeBy};
use super::settings::RoomSettings;
use super::time::Time;

/// When tests begin.
pub(super) const START: Time = Time::from_millis(1_700_000_000_000);

/// Roomy limits, so that each test tightens only the one it is about.
pub(super) fn settings() -> RoomSettings {
    RoomSettings {
        flush_interval: Duration::from_millis(100),
        flush_events: 1_000,
        flush_bytes: 1 << 20,
        small_room_viewers: 0,
        frame_events: 1_000,
        frame_bytes: 1 << 20,
        reserved_percent: 0,
        reserved_tier: 0,
        buffer_events: 1_000,
        buffer_bytes: 1 << 20,
        history_events: 1_000,
        history_bytes: 1 << 20,
        history_important: 100,
        history_important_bytes: 1 << 20,
        dedupe_sequenced: 1_000,
        dedupe_sampled: 1_000,
        max_keys: 100,
        state_bytes: 1 << 20,
        durable: false,
        log_patience: Duration::from_millis(500),
        online_interval: Duration::from_secs(1),
    }
}

/// An event in the making.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    kind: Kind,
    id: String,
    user: String,
    key: Option<String>,
    amount: Option<i64>,
    payload: String,
    ttl: Option<Duration>,
    received: Time,
}

pub(super) fn build(name: &str, lane: Lane, merge: Merge, tier: u8, id: &str) -> Build {
    let kind = Kind {
        name: name.into(),
        lane,
        merge,
        tier: Tier(tier),
        ttl: None,
        max_payload_bytes: 1 << 20,
        ack: Ack::Logged,
        viewer_publish: false,
        idle_reset: None,
    };
    Build {
        kind,
        id: id.to_owned(),
        user: "u".to_owned(),
        key: None,
        amount: None,
        payload: "\"p\"".to_owned(),
        ttl: None,
        received: START,
    }
}

pub(crate) fn chat(id: &str) -> Build {
    build("chat", Lane::Ordered, Merge::Append, 2, id)
}

pub(crate) fn red_packet(id: &str) -> Build {
    build("red_packet", Lane::Important, Merge::Append, 0, id)
}

pub(super) fn like(id: &str) -> Build {
    build("like", Lane::Sampled, Merge::Sum(MergeBy::Key), 4, id)
}

pub(super) fn combo(id: &str) -> Build {
    build("gift", Lane::Ordered, Merge::Sum(MergeBy::UserKey), 1, id)
}

pub(super) fn card(id: &str) -> Build {
    build("card", Lane::Ordered, Merge::Latest(MergeBy::Key), 1, id)
}

pub(super) fn entrance(id: &str, n: usize) -> Build {
    build("enter", Lane::Sampled, Merge::Sample(n), 5, id)
}

impl Build {
    pub(super) fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    pub(super) fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    pub(super) fn amount(mut self, amount: i64) -> Self {
        self.amount = Some(amount);
        self
    }

    pub(super) fn payload(mut self, payload: &str) -> Self {
        payload.clone_into(&mut self.payload);
        self
    }

    pub(super) fn ttl_ms(mut self, ms: u64) -> Self {
        self.ttl = Some(Duration::from_millis(ms));
        self
    }

    pub(super) fn at(mut self, received: Time) -> Self {
        self.received = received;
        self
    }

    pub(super) fn kind(mut self, change: impl FnOnce(&mut Kind)) -> Self {
        change(&mut self.kind);
        self
    }

    pub(crate) fn event(self) -> Event {
        Event {
            id: self.id.into(),
            kind: Arc::new(self.kind),
            user: self.user.into(),
            payload: Payload { bytes: Bytes::from(self.payload), json: true },
            key: self.key.map(Into::into),
            amount: self.amount,
            ttl: self.ttl,
            received: self.received,
            mark: None,
        }
    }
}

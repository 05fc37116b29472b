//! Kinds: the configured rules by which events travel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::ids::Tier;

/// Which promise an event gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Never merged away, flushed at once; numbered by `seq` and `important`.
    Important,
    /// Sequenced and buffered; may be shed with a notice.
    Ordered,
    /// May be merged or dropped freely; has no number.
    Sampled,
}

impl Lane {
    /// All lanes, in the order of their index.
    pub const ALL: [Lane; 3] = [Lane::Important, Lane::Ordered, Lane::Sampled];

    /// Index into per-lane tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Lane::Important => "important",
            Lane::Ordered => "ordered",
            Lane::Sampled => "sampled",
        }
    }
}

/// What makes two events of one kind mergeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MergeBy {
    /// The event's `key` (absent: the empty key).
    Key,
    /// User and `key` together: the gift combo of one user.
    UserKey,
}

/// How pending events of one kind become fewer before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Merge {
    /// Every event travels by itself.
    Append,
    /// Amounts are added up; the frame carries sum and delta.
    Sum(MergeBy),
    /// The newest per key travels; the rest were overtaken.
    Latest(MergeBy),
    /// The best `n` of a flush by tier and user level travel; the rest are counted.
    Sample(usize),
}

/// When the publisher of an important event hears that it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ack {
    /// When it is on disk: what was accepted survives the server's death.
    #[default]
    Logged,
    /// At once. If it then cannot be logged it is dropped, and counted.
    Received,
}

/// One configured kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Name as publishers write it.
    pub name: Arc<str>,
    /// Promise.
    pub lane: Lane,
    /// Merge rule. On the important lane it shapes only state and totals: every
    /// important event travels by itself.
    pub merge: Merge,
    /// Business priority, 0 highest.
    pub tier: Tier,
    /// Not worth sending after this long; `None`: for ever.
    pub ttl: Option<Duration>,
    /// Largest payload in bytes.
    pub max_payload_bytes: usize,
    /// When its publisher is answered; matters on the important lane only.
    pub ack: Ack,
    /// Whether viewers may publish it themselves.
    pub viewer_publish: bool,
    /// `Sum` by user and key: a combo with no event for this long is over and
    /// its total forgotten. `None`: totals last as long as the room.
    pub idle_reset: Option<Duration>,
}

/// All configured kinds, and what an unknown name gets.
#[derive(Debug, Clone)]
pub struct Kinds {
    by_name: HashMap<Arc<str>, Arc<Kind>>,
    unknown: Kind,
}

impl Kinds {
    /// From the configured kinds; `unknown` is the pattern for any other name.
    #[must_use]
    pub fn new(kinds: impl IntoIterator<Item = Kind>, unknown: Kind) -> Self {
        let by_name =
            kinds.into_iter().map(|kind| (Arc::clone(&kind.name), Arc::new(kind))).collect();
        Self { by_name, unknown }
    }

    /// The rules for `name`: configured, or the unknown pattern under that name.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Arc<Kind> {
        self.by_name.get(name).map_or_else(
            || Arc::new(Kind { name: name.into(), ..self.unknown.clone() }),
            Arc::clone,
        )
    }

    /// The tier of `name`, without more ado.
    #[must_use]
    pub fn tier(&self, name: &str) -> Tier {
        self.by_name.get(name).map_or(self.unknown.tier, |kind| kind.tier)
    }

    /// Whether `name` is configured. Metrics name only configured kinds, so
    /// that a publisher cannot grow their number.
    #[must_use]
    pub fn is_configured(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tier of every name that is not configured.
    #[must_use]
    pub const fn unknown_tier(&self) -> Tier {
        self.unknown.tier
    }

    /// Every configured kind, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_name.values()
    }
}

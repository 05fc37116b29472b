//! Where an event will stand when it arrives.
//!
//! The server says once which tier each kind has and, as a key that lasts for
//! the hour, how it ranks users (`GET /v1/admission`). From then on the publisher
//! finds the same priority as the server, without asking. Without that table (an
//! older server, or a token that may not have it) nothing has a priority, and
//! nothing is shed here.
//!
//! The table is asked for again when its key ends, when a kind is not in it, after
//! a request that failed (the server may be another one by now, with another
//! key), and every minute: that bounds what a wrong clock on this side, or a
//! change of the server's configuration, can do.

use std::sync::Arc;
use std::time::Duration;

use super::places::Tiers;
use crate::engine::ids::Tier;
use crate::engine::level::HourKey;
use crate::engine::priority::Priority;
use crate::engine::time::Time;

/// Age at which a table is asked for again.
const REFRESH: Duration = Duration::from_secs(60);
/// Age at which one that could not be renewed is used no longer.
const STALE: Duration = Duration::from_secs(180);
/// Shortest time between two requests for the table.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while kinds are missing from it, which asking does not mend.
const PAUSE_UNKNOWN: Duration = Duration::from_secs(10);

/// What the server says about priorities.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Tiers by kind.
    pub(super) tiers: Arc<Tiers>,
    /// What user levels rest on.
    pub(super) key: HourKey,
}

/// The table, and when to ask for it.
#[derive(Debug)]
pub(super) struct Priorities {
    table: Option<Table>,
    received: Time,
    ask_at: Time,
    asked: Time,
}

impl Priorities {
    /// Without a table; it is wanted at once.
    pub(super) fn new(now: Time) -> Self {
        Self { table: None, received: now, ask_at: now, asked: now - PAUSE_UNKNOWN }
    }

    /// When to ask for the table next.
    pub(super) fn ask_at(&self) -> Time {
        self.ask_at
    }

    /// It is being asked for.
    pub(super) fn asking(&mut self, now: Time) {
        self.asked = now;
        self.ask_at = now + REFRESH;
    }

    /// The server answered.
    pub(super) fn received(&mut self, table: Table, now: Time) {
        let ends = table.key.ends();
        // A key that has ended by this clock has not by the server's.
        let key = if ends <= now { now + REFRESH } else { ends };
        self.ask_at = key.min(now + REFRESH);
        self.received = now;
        self.table = Some(table);
    }

    /// The server has none for us; `for_now`: it may have one soon.
    pub(super) fn missing(&mut self, for_now: bool, now: Time) {
        self.ask_at = now + if for_now { PAUSE } else { REFRESH };
    }

    /// A request failed: who answers next may be another server.
    pub(super) fn doubt(&mut self) {
        self.ask_at = self.ask_at.min(self.asked + PAUSE);
    }

    /// The kind's tier; the lowest while there is no table.
    pub(super) fn tier(&mut self, kind: &str) -> Tier {
        let Some(table) = &self.table else { return Tier::LOWEST };
        table.tiers.known(kind).unwrap_or_else(|| {
            self.ask_at = self.ask_at.min(self.asked + PAUSE_UNKNOWN);
            table.tiers.unknown
        })
    }

    /// Where the server will put the event, if that is known.
    pub(super) fn of(&mut self, kind: &str, user: &str, id: &str, now: Time) -> Option<Priority> {
        let tier = self.tier(kind);
        let table = self.table.as_ref()?;
        let ends = table.key.ends();
        let ended = ends > self.received && ends <= now;
        if ended || now.since(self.received) >= STALE {
            return None;
        }
        Some(table.key.priority(tier, user, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::level::LevelKey;

    const NOW: Time = Time::from_millis(1_700_000_000_000);

    fn table(now: Time) -> Table {
        let key = LevelKey::from_seed(7).hour(now);
        let kinds = [("chat".to_owned(), Tier(3))].into();
        Table { tiers: Arc::new(Tiers { kinds, unknown: Tier(63) }), key }
    }

    fn tier(priorities: &mut Priorities, kind: &str, now: Time) -> Option<Tier> {
        priorities.of(kind, "u", "1", now).map(Priority::tier)
    }

    #[test]
    fn nothing_has_a_priority_before_there_is_a_table() {
        let mut priorities = Priorities::new(NOW);
        assert_eq!((priorities.ask_at(), tier(&mut priorities, "chat", NOW)), (NOW, None));
        priorities.asking(NOW);
        priorities.missing(false, NOW);
        assert_eq!(priorities.ask_at(), NOW + REFRESH);
        priorities.missing(true, NOW);
        assert_eq!(priorities.ask_at(), NOW + PAUSE);
        priorities.received(table(NOW), NOW);
        assert_eq!(tier(&mut priorities, "chat", NOW), Some(Tier(3)));
    }

    #[test]
    fn an_unknown_kind_has_the_lowest_tier_and_asks_for_news_in_moderation() {
        let mut priorities = Priorities::new(NOW);
        priorities.asking(NOW);
        priorities.received(table(NOW), NOW);
        assert_eq!(tier(&mut priorities, "new", NOW), Some(Tier(63)));
        assert_eq!(priorities.ask_at(), NOW + PAUSE_UNKNOWN);
    }

    #[test]
    fn a_key_is_used_to_its_end_and_an_old_table_not_for_ever() {
        let mut priorities = Priorities::new(NOW);
        let ends = table(NOW).key.ends();
        let before = ends - Duration::from_secs(5);
        priorities.received(table(NOW), before);
        assert_eq!(priorities.ask_at(), ends);
        assert!(tier(&mut priorities, "chat", before).is_some());
        assert_eq!(tier(&mut priorities, "chat", ends), None);
        // A clock that is ahead: the key seems to have ended before it came.
        priorities.received(table(NOW), ends);
        assert_eq!(priorities.ask_at(), ends + REFRESH);
        assert!(tier(&mut priorities, "chat", ends + REFRESH).is_some());
        assert_eq!(tier(&mut priorities, "chat", ends + STALE), None);
    }

    #[test]
    fn after_a_failure_the_table_is_asked_for_soon_but_not_at_once() {
        let mut priorities = Priorities::new(NOW);
        priorities.asking(NOW);
        priorities.received(table(NOW), NOW);
        priorities.doubt();
        assert_eq!(priorities.ask_at(), NOW + PAUSE);
    }
}

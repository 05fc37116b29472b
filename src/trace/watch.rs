//! Which events are followed: a share of all ids, what operators ask for, and
//! what publishers follow themselves.
//!
//! The share is taken by a hash of room and id, so that every machine and every
//! repetition of an event decide alike. It is no secret: whoever chooses ids may
//! choose to be followed, which costs no more than the bounds allow.

use std::hash::Hasher as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use siphasher::sip128::{Hasher128 as _, SipHasher13 as SipHasher128};

use super::Parent;
use crate::engine::draft::{MAX_ID_BYTES, MAX_KIND_BYTES};
use crate::engine::ids::{RoomId, ShardId};
use crate::engine::mark::{Mark, Way};
use crate::engine::time::Time;

/// What is followed, and how much of it.
#[derive(Debug, Clone)]
pub struct WatchSettings {
    /// One in so many ids; 0: none.
    pub sample_one_in: u32,
    /// Events whose publisher follows them.
    pub follow_parents: bool,
    /// Rules at once.
    pub most_rules: usize,
}

/// What a rule is about: an id, a room, or an id in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In this room only.
    pub room: Option<RoomId>,
    /// This event only, whether or not it was seen yet.
    pub id: Option<Arc<str>>,
}

impl Target {
    fn covers(&self, room: &RoomId, id: &str) -> bool {
        self.room.as_ref().is_none_or(|wanted| wanted == room)
            && self.id.as_ref().is_none_or(|wanted| **wanted == *id)
    }
}

/// What an operator wants followed.
#[derive(Debug)]
pub struct Rule {
    /// What.
    pub target: Target,
    /// Until then.
    pub until: Time,
    /// Whose it is.
    pub by: Arc<str>,
    left: AtomicU32,
}

impl Rule {
    /// Events that it may still mark.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }

    fn spend(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// As many rules hold as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRules;

/// See the module's documentation.
#[derive(Debug)]
pub struct Watch {
    settings: WatchSettings,
    /// Whether anything may be followed. Written only when rules change.
    active: AtomicBool,
    rules: RwLock<Arc<[Arc<Rule>]>>,
    /// Rules that were one too many.
    pub rules_refused: AtomicU64,
    /// Events that a rule would have marked, had it not been spent.
    pub unmarked: AtomicU64,
}

/// How a request came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// By which way.
    pub way: Way,
    /// On which shard.
    pub shard: ShardId,
    /// When.
    pub received: Time,
}

impl Watch {
    /// No rules yet.
    #[must_use]
    pub fn new(settings: WatchSettings) -> Self {
        let watch = Self {
            settings,
            active: AtomicBool::new(false),
            rules: RwLock::new(Arc::new([])),
            rules_refused: AtomicU64::new(0),
            unmarked: AtomicU64::new(0),
        };
        watch.set_active(false);
        watch
    }

    /// Sets a rule, in place of an earlier one for the same; one whose end has
    /// passed ends that. It marks at most `events` events.
    ///
    /// # Errors
    /// [`TooManyRules`]; nothing has changed.
    pub fn set(
        &self,
        target: Target,
        until: Time,
        events: u32,
        by: &str,
        now: Time,
    ) -> Result<(), TooManyRules> {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let others = rules.iter().filter(|rule| rule.until > now && rule.target != target);
        let mut kept: Vec<Arc<Rule>> = others.cloned().collect();
        if until > now {
            if kept.len() >= self.settings.most_rules {
                self.rules_refused.fetch_add(1, Ordering::Relaxed);
                return Err(TooManyRules);
            }
            let left = AtomicU32::new(events);
            kept.push(Arc::new(Rule { target, until, by: by.into(), left }));
        }
        self.set_active(!kept.is_empty());
        *rules = kept.into();
        Ok(())
    }

    /// The rules that hold.
    #[must_use]
    pub fn rules(&self, now: Time) -> Vec<Arc<Rule>> {
        self.read().iter().filter(|rule| rule.until > now).cloned().collect()
    }

    /// Asked once for each request. `None`: nothing of it is followed.
    #[must_use]
    pub fn begin(
        self: &Arc<Self>,
        room: &RoomId,
        arrival: Arrival,
        parent: Option<Parent>,
    ) -> Option<Marker> {
        if !self.active.load(Ordering::Relaxed) {
            return None;
        }
        let rules = self.read();
        if rules.iter().any(|rule| rule.until <= arrival.received) {
            self.forget_ended(arrival.received);
        }
        let followed = self.settings.follow_parents && parent.is_some_and(|p| p.sampled);
        let concerns = |rule: &Arc<Rule>| rule.target.room.as_ref().is_none_or(|r| r == room);
        let any = followed || self.settings.sample_one_in > 0 || rules.iter().any(concerns);
        let watch = Arc::clone(self);
        any.then(|| Marker { watch, rules, followed, room: room.clone(), arrival, parent })
    }

    fn read(&self) -> Arc<[Arc<Rule>]> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget_ended(&self, now: Time) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let kept: Vec<_> = rules.iter().filter(|rule| rule.until > now).cloned().collect();
        self.set_active(!kept.is_empty());
        *rules = kept.into();
    }

    fn set_active(&self, rules: bool) {
        let active = rules || self.settings.sample_one_in > 0 || self.settings.follow_parents;
        self.active.store(active, Ordering::Relaxed);
    }

    fn samples(&self, key: u128) -> bool {
        match self.settings.sample_one_in {
            0 => false,
            one_in => (key as u64).is_multiple_of(u64::from(one_in)),
        }
    }
}

/// Marks the events of one request.
#[derive(Debug)]
pub struct Marker {
    watch: Arc<Watch>,
    rules: Arc<[Arc<Rule>]>,
    /// The publisher follows it.
    followed: bool,
    room: RoomId,
    arrival: Arrival,
    parent: Option<Parent>,
}

impl Marker {
    /// The mark of an event, if it is followed. An id or kind beyond its limit
    /// is not.
    #[must_use]
    pub fn mark(&self, id: &str, kind: &str) -> Option<Arc<Mark>> {
        if id.is_empty() || id.len() > MAX_ID_BYTES || kind.len() > MAX_KIND_BYTES {
            return None;
        }
        let key = key(&self.room, id);
        if !(self.followed || self.watch.samples(key) || self.is_wanted(id)) {
            return None;
        }
        let Arrival { way, shard, received } = self.arrival;
        Some(Arc::new(Mark {
            key,
            trace: self.parent.map_or(key, |parent| parent.trace),
            span: span(key, &[&received.as_micros().to_le_bytes()]),
            parent: self.parent.map(|parent| parent.span),
            room: self.room.clone(),
            id: id.into(),
            kind: kind.into(),
            way,
            shard,
            received,
        }))
    }

    fn is_wanted(&self, id: &str) -> bool {
        let mut spent = false;
        for rule in self.rules.iter() {
            if rule.until > self.arrival.received && rule.target.covers(&self.room, id) {
                if rule.spend() {
                    return true;
                }
                spent = true;
            }
        }
        if spent {
            self.watch.unmarked.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// Names an event everywhere. The keys of this hash and the next are fixed, so
/// that all machines agree.
fn key(room: &RoomId, id: &str) -> u128 {
    let mut hasher = SipHasher128::new_with_keys(0x7469_6465, 0x6761_7465);
    hasher.write(room.as_str().as_bytes());
    // No room's name holds it.
    hasher.write(&[0]);
    hasher.write(id.as_bytes());
    // Zero is no trace id.
    u128::from(hasher.finish128()).max(1)
}

/// The id of a span of an event.
pub(super) fn span(key: u128, parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher128::new_with_keys(0x7469_6465, 0x7370_616e);
    hasher.write(&key.to_le_bytes());
    for part in parts {
        hasher.write(part);
    }
    hasher.finish128().h1.max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Time = Time::from_millis(1_800_000_000_000);

    fn room(name: &str) -> RoomId {
        RoomId::new(name).expect("a name")
    }

    fn watch(sample_one_in: u32, follow_parents: bool) -> Arc<Watch> {
        Arc::new(Watch::new(WatchSettings { sample_one_in, follow_parents, most_rules: 2 }))
    }

    fn begin(watch: &Arc<Watch>, name: &str, ms: u64, parent: Option<Parent>) -> Option<Marker> {
        let received = START + Duration::from_millis(ms);
        let arrival = Arrival { way: Way::Http, shard: ShardId(0), received };
        watch.begin(&room(name), arrival, parent)
    }

    fn id(id: &str) -> Target {
        Target { room: None, id: Some(id.into()) }
    }

    fn in_room(name: &str) -> Target {
        Target { room: Some(room(name)), id: None }
    }

    fn for_a_second(watch: &Watch, target: Target, events: u32) -> Result<(), TooManyRules> {
        watch.set(target, START + Duration::from_secs(1), events, "olga", START)
    }

    #[test]
    fn nothing_is_followed_until_somebody_asks_and_nothing_after() {
        let watch = watch(0, false);
        assert!(begin(&watch, "r", 0, None).is_none());
        for_a_second(&watch, id("a"), 9).expect("set");
        let marker = begin(&watch, "r", 0, None).expect("a rule");
        let mark = marker.mark("a", "chat").expect("followed");
        assert_eq!((mark.trace, mark.parent, &*mark.id), (mark.key, None, "a"));
        assert!(marker.mark("b", "chat").is_none());
        assert!(
            begin(&watch, "r", 1_000, None).expect("not forgotten yet").mark("a", "x").is_none()
        );
        assert!(begin(&watch, "r", 1_001, None).is_none(), "forgotten");
    }

    #[test]
    fn a_rule_for_a_room_follows_all_of_it_and_nothing_else() {
        let watch = watch(0, false);
        for_a_second(&watch, in_room("r"), 9).expect("set");
        assert!(begin(&watch, "other", 0, None).is_none());
        assert!(begin(&watch, "r", 0, None).expect("a rule").mark("any", "chat").is_some());
        watch.set(in_room("r"), START, 9, "olga", START).expect("ended");
        assert!(begin(&watch, "r", 0, None).is_none());
    }

    #[test]
    fn rules_and_what_they_mark_are_bounded_and_counted() {
        let watch = watch(0, false);
        for_a_second(&watch, in_room("r"), 2).expect("set");
        for_a_second(&watch, id("x"), 9).expect("set");
        assert_eq!(for_a_second(&watch, id("y"), 9), Err(TooManyRules));
        assert_eq!(watch.rules_refused.load(Ordering::Relaxed), 1);
        for_a_second(&watch, id("x"), 5).expect("in place of the first");
        let marker = begin(&watch, "r", 0, None).expect("rules");
        let marked = (0..10).filter(|i| marker.mark(&format!("e{i}"), "chat").is_some()).count();
        assert_eq!((marked, watch.unmarked.load(Ordering::Relaxed)), (2, 8));
        assert!(marker.mark("x", "chat").is_some(), "another rule has some left");
        assert!(marker.mark(&"x".repeat(MAX_ID_BYTES + 1), "chat").is_none());
    }

    #[test]
    fn a_sample_is_a_share_of_the_ids_and_always_the_same() {
        let watch = watch(10, false);
        let marker = begin(&watch, "r", 0, None).expect("sampling");
        let sampled = |marker: &Marker| -> Vec<u32> {
            (0..10_000).filter(|i| marker.mark(&format!("e{i}"), "chat").is_some()).collect()
        };
        let first = sampled(&marker);
        assert!((900..1_100).contains(&first.len()), "{}", first.len());
        let elsewhere = self::watch(10, false);
        assert_eq!(sampled(&begin(&elsewhere, "r", 7, None).expect("sampling")), first);
    }

    #[test]
    fn a_publishers_trace_is_joined_and_followed_when_wanted() {
        let parent = Parent { trace: 7, span: 9, sampled: true };
        let watch = watch(0, true);
        assert!(begin(&watch, "r", 0, None).is_none());
        assert!(begin(&watch, "r", 0, Some(Parent { sampled: false, ..parent })).is_none());
        let marker = begin(&watch, "r", 0, Some(parent)).expect("the publisher's");
        let mark = marker.mark("a", "chat").expect("followed");
        assert_eq!((mark.trace, mark.parent), (7, Some(9)));
        assert!(begin(&self::watch(0, false), "r", 0, Some(parent)).is_none());
    }

    #[test]
    fn every_arrival_has_a_span_of_its_own() {
        let watch = watch(1, false);
        let mark = |ms| begin(&watch, "r", ms, None).expect("all").mark("a", "x").expect("all");
        assert_eq!(mark(0).key, mark(1).key);
        assert_ne!(mark(0).span, mark(1).span);
    }
}

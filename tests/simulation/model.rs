//! A room the naive way: a list of what waits, sorted and searched whenever
//! something must be known. It shares types and [`LevelKey::user_level`] with
//! the engine, and no mechanism.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidegate::engine::event::{DroppedKind, Event, Frame, Numbered, Snapshot, Total};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use tidegate::engine::kind::{Kind, Lane, Merge, MergeBy};
use tidegate::engine::level::LevelKey;
use tidegate::engine::room::{Outcome, Refusal, Replay};
use tidegate::engine::settings::RoomSettings;
use tidegate::engine::time::Time;
use tidegate::engine::visitors::Users;

/// Kind, user, key.
type Name = (Arc<str>, Option<Arc<str>>, Arc<str>);
/// Tier, user level, order of acceptance.
type Rank = (u8, u8, u64);

#[derive(Debug, Clone)]
struct Waits {
    rank: Rank,
    event: Arc<Numbered>,
    overtaken: u64,
    oldest: Time,
}

#[derive(Debug, Clone)]
struct Sum {
    kind: Arc<Kind>,
    sum: i64,
    delta: i64,
    pending: bool,
    known: bool,
    last: Time,
}

/// The model of one room.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) settings: RoomSettings,
    id: RoomId,
    epoch: Epoch,
    key: LevelKey,
    seq: u64,
    important: u64,
    flushed: (u64, u64),
    orders: u64,
    online: (u32, u32),
    told_apart: bool,
    sequenced_ids: VecDeque<(Arc<str>, Option<Seq>)>,
    sampled_ids: VecDeque<(Arc<str>, Option<Seq>)>,
    sums: BTreeMap<Name, Sum>,
    touched: Vec<Name>,
    state: BTreeMap<Name, Arc<Numbered>>,
    waits: Vec<Waits>,
    absorbed: (u64, Option<Time>),
    drops: BTreeMap<Arc<str>, DroppedKind>,
    /// First acceptance since the last frame.
    pub(crate) open_since: Option<Time>,
    history: Vec<Arc<Numbered>>,
    /// What had been sent when it last slept: talk up to there is forgotten.
    slept_at: u64,
}

impl Model {
    pub(crate) fn new(id: RoomId, epoch: Epoch, key: LevelKey, settings: RoomSettings) -> Self {
        Self {
            settings,
            id,
            epoch,
            key,
            seq: 0,
            important: 0,
            flushed: (0, 0),
            orders: 0,
            online: (0, 0),
            told_apart: false,
            sequenced_ids: VecDeque::new(),
            sampled_ids: VecDeque::new(),
            sums: BTreeMap::new(),
            touched: Vec::new(),
            state: BTreeMap::new(),
            waits: Vec::new(),
            absorbed: (0, None),
            drops: BTreeMap::new(),
            open_since: None,
            history: Vec::new(),
            slept_at: 0,
        }
    }

    pub(crate) fn set_online(&mut self, viewers: u32) {
        self.online.0 = viewers;
    }

    /// It slept, and is awake again.
    pub(crate) fn sleep(&mut self) {
        self.sampled_ids.clear();
        self.slept_at = self.flushed.0;
        // What it told of viewers it told to those who are gone.
        (self.online, self.told_apart) = ((0, 0), false);
    }

    pub(crate) fn online_differs(&self) -> bool {
        self.told_apart || self.online.0 != self.online.1
    }

    pub(crate) fn publish(&mut self, event: Event, now: Time) -> Outcome {
        let seen = self.sequenced_ids.iter().chain(&self.sampled_ids);
        if let Some((_, seq)) = seen.into_iter().find(|(id, _)| *id == event.id) {
            return Outcome::Duplicate { seq: *seq };
        }
        self.forget_expired(now);
        if let Err(refusal) = self.check(&event) {
            return Outcome::Rejected(refusal);
        }
        if event.expires().is_some_and(|expires| expires <= now) {
            return Outcome::Rejected(Refusal::Expired);
        }
        if let Err(refusal) = self.check_buffer(&event).and_then(|()| self.check_keys(&event)) {
            return Outcome::Rejected(refusal);
        }
        Outcome::Accepted { seq: self.accept(event, now) }
    }

    /// Whether a frame is due at once.
    pub(crate) fn at_once(&self) -> bool {
        let load = self.waits.len() + self.touched.len();
        self.waits.iter().any(|w| lane(w) == Lane::Important)
            || self.online.0 < self.settings.small_room_viewers
            || load >= self.settings.flush_events
            || bytes(&self.waits) >= self.settings.flush_bytes
    }

    pub(crate) fn flush(&mut self, now: Time) -> Frame {
        self.forget_expired(now);
        let waits = std::mem::take(&mut self.waits);
        let (expired, live) = waits.into_iter().partition(|w: &Waits| {
            lane(w) != Lane::Important && w.event.event.expires().is_some_and(|at| at <= now)
        });
        let (live, over) = self.budget(live);
        [expired, over].concat().iter().for_each(|w: &Waits| self.count_drop(w));
        for w in &live {
            self.settle(&w.event);
        }
        let represents = live.iter().map(|w| 1 + w.overtaken).sum::<u64>() + self.absorbed.0;
        let oldest = live.iter().map(|w| w.oldest).chain(self.absorbed.1).min().unwrap_or(now);
        let first_seq = Seq(self.flushed.0 + 1);
        self.flushed = (self.seq, self.important);
        (self.absorbed, self.open_since) = ((0, None), None);
        let online = self.online_differs().then_some(self.online.0);
        (self.online.1, self.told_apart) = (self.online.0, false);
        Frame {
            room: self.id.clone(),
            epoch: self.epoch,
            first_seq,
            last_seq: Seq(self.seq),
            important: ImportantNo(self.important),
            time: now,
            oldest,
            events: live.into_iter().map(|w| w.event).collect(),
            totals: self.flush_totals(),
            dropped: std::mem::take(&mut self.drops).into_values().collect(),
            online,
            ack: None,
            represents,
        }
    }

    pub(crate) fn snapshot(&mut self, now: Time) -> Snapshot {
        self.forget_expired(now);
        self.told_apart |= self.online.0 != self.online.1;
        let live = |e: &&Arc<Numbered>| e.event.expires().is_none_or(|at| at > now);
        let mut state: Vec<_> = self.state.values().filter(live).cloned().collect();
        state.sort_by_key(|e| {
            let key = e.event.key.clone().unwrap_or_default();
            (e.event.kind.name.clone(), key, e.event.user.clone())
        });
        let known = self.sums.iter().filter(|(_, sum)| sum.known);
        let totals = known.map(|(name, sum)| total(name, sum, sum.sum - sum.delta, 0)).collect();
        Snapshot {
            room: self.id.clone(),
            epoch: self.epoch,
            seq: Seq(self.flushed.0),
            important: ImportantNo(self.flushed.1),
            online: self.online.0,
            // Nobody is announced here by name.
            users: Users { count: 0, exact: true },
            state,
            totals,
        }
    }

    /// What a reader gets who has seen everything up to `after`.
    pub(crate) fn replay_after_seq(&self, after: u64, limit: usize) -> Replay {
        let number = |e: &Numbered| e.seq.map(|seq| seq.0);
        let room_for = (self.settings.history_events, self.settings.history_bytes);
        let mut replay = self.replay(number, room_for, self.slept_at, after, limit);
        replay.complete &= after >= self.slept_at;
        replay
    }

    /// The same for important events alone.
    pub(crate) fn replay_after_important(&self, after: u64, limit: usize) -> Replay {
        let number = |e: &Numbered| e.important.map(|important| important.0);
        let s = &self.settings;
        self.replay(number, (s.history_important, s.history_important_bytes), 0, after, limit)
    }

    /// The newest of all that would fit alone, as many as fit together.
    fn replay(
        &self,
        number: impl Fn(&Numbered) -> Option<u64>,
        (events, bytes): (usize, usize),
        forgotten: u64,
        after: u64,
        limit: usize,
    ) -> Replay {
        let (mut held, mut weight) = (VecDeque::new(), 0);
        let all = || self.history.iter().filter(|e| number(e) > Some(forgotten));
        for event in all().rev().filter(|e| e.event.weight() <= bytes) {
            weight += event.event.weight();
            if held.len() == events || weight > bytes {
                break;
            }
            held.push_front(event);
        }
        let is_after = |e: &Arc<Numbered>| number(e) > Some(after);
        held.retain(|e| is_after(e));
        Replay {
            complete: held.len() == all().filter(|e| is_after(e)).count(),
            more: held.len() > limit,
            events: held.into_iter().take(limit).cloned().collect(),
        }
    }

    fn check(&self, event: &Event) -> Result<(), Refusal> {
        let max = event.kind.max_payload_bytes;
        if event.payload.bytes.len() > max { Err(Refusal::PayloadTooLarge(max)) } else { Ok(()) }
    }

    fn check_buffer(&self, event: &Event) -> Result<(), Refusal> {
        let important = || self.waits.iter().filter(|w| lane(w) == Lane::Important);
        let weight: usize = important().map(|w| w.event.event.weight()).sum();
        let full = important().count() + 1 > self.settings.buffer_events
            || weight + event.weight() > self.settings.buffer_bytes;
        if event.kind.lane == Lane::Important && full { Err(Refusal::BufferFull) } else { Ok(()) }
    }

    fn check_keys(&self, event: &Event) -> Result<(), Refusal> {
        let same_kind = |name: &Name| name.0 == event.kind.name;
        match event.kind.merge {
            Merge::Append | Merge::Sample(_) => Ok(()),
            Merge::Sum(by) => {
                let name = name(event, by);
                let amount = i128::from(event.amount.unwrap_or(1));
                let (sum, delta) = self.sums.get(&name).map_or((0, 0), |s| (s.sum, s.delta));
                let limit = 1i128 << 53;
                if [sum, delta].iter().any(|&n| (i128::from(n) + amount).abs() >= limit) {
                    return Err(Refusal::AmountOverflow);
                }
                let full =
                    self.sums.keys().filter(|n| same_kind(n)).count() >= self.settings.max_keys;
                let known = self.sums.contains_key(&name);
                if full && !known { Err(Refusal::TooManyKeys) } else { Ok(()) }
            }
            Merge::Latest(by) => {
                let mut names: Vec<Name> =
                    self.state.keys().filter(|n| same_kind(n)).cloned().collect();
                names.extend(self.waiting_names().filter(same_kind));
                names.sort();
                names.dedup();
                let known = names.contains(&name(event, by));
                let full = names.len() >= self.settings.max_keys;
                if full && !known { Err(Refusal::TooManyKeys) } else { Ok(()) }
            }
        }
    }

    fn accept(&mut self, event: Event, now: Time) -> Option<Seq> {
        self.open_since.get_or_insert(now);
        let lane = event.kind.lane;
        let mut important = None;
        let mut seq = None;
        if lane != Lane::Sampled {
            self.seq += 1;
            seq = Some(Seq(self.seq));
        }
        if lane == Lane::Important {
            self.important += 1;
            important = Some(ImportantNo(self.important));
        }
        let (ids, limit) = if lane == Lane::Sampled {
            (&mut self.sampled_ids, self.settings.dedupe_sampled)
        } else {
            (&mut self.sequenced_ids, self.settings.dedupe_sequenced)
        };
        ids.push_back((Arc::clone(&event.id), seq));
        if ids.len() > limit {
            ids.pop_front();
        }
        if let Merge::Sum(by) = event.kind.merge {
            self.add(&event, by, now);
        }
        if matches!(event.kind.merge, Merge::Sum(_)) && lane != Lane::Important {
            let oldest = self.absorbed.1.map_or(event.received, |at| at.min(event.received));
            self.absorbed = (self.absorbed.0 + 1, Some(oldest));
        } else {
            self.wait(Arc::new(Numbered { event, seq, important }), now);
        }
        seq
    }

    fn add(&mut self, event: &Event, by: MergeBy, now: Time) {
        let name = name(event, by);
        let amount = event.amount.unwrap_or(1);
        let sum = self.sums.entry(name.clone()).or_insert_with(|| Sum {
            kind: Arc::clone(&event.kind),
            sum: 0,
            delta: 0,
            pending: false,
            known: false,
            last: now,
        });
        (sum.sum, sum.delta, sum.last) = (sum.sum + amount, sum.delta + amount, now);
        if !sum.pending {
            sum.pending = true;
            self.touched.push(name);
        }
    }

    fn wait(&mut self, event: Arc<Numbered>, now: Time) {
        let level = self.key.user_level(&event.event.user, now);
        let rank = (event.event.kind.tier.0, level, self.orders);
        self.orders += 1;
        let mut new =
            Waits { rank, oldest: event.event.received, event: Arc::clone(&event), overtaken: 0 };
        let kind = &event.event.kind;
        if let (Merge::Latest(by), true) = (kind.merge, kind.lane != Lane::Important) {
            let mine = name(&event.event, by);
            let older = self.waits.iter().position(|w| {
                lane(w) != Lane::Important
                    && w.event.event.kind.merge == kind.merge
                    && name(&w.event.event, by) == mine
            });
            if let Some(older) = older.map(|at| self.waits.remove(at)) {
                new.overtaken = older.overtaken + 1;
                new.oldest = new.oldest.min(older.oldest);
            }
        }
        self.waits.push(new);
        if let Merge::Sample(n) = kind.merge {
            let same = |w: &Waits| w.event.event.kind.name == kind.name;
            while self.waits.iter().filter(|w| same(w)).count() > n {
                self.drop_worst(same);
            }
        }
        while self.waits.len() > self.settings.buffer_events
            || bytes(&self.waits) > self.settings.buffer_bytes
        {
            self.drop_worst(|_| true);
        }
    }

    fn drop_worst(&mut self, among: impl Fn(&Waits) -> bool) {
        let droppable = |w: &&Waits| among(w) && lane(w) != Lane::Important;
        let worst = self.waits.iter().filter(droppable).map(|w| w.rank).max();
        let worst = worst.expect("important events were refused before it came to this");
        let at = self.waits.iter().position(|w| w.rank == worst).expect("just seen");
        let worst = self.waits.remove(at);
        self.count_drop(&worst);
    }

    fn count_drop(&mut self, w: &Waits) {
        let kind = &w.event.event.kind;
        let entry = self.drops.entry(Arc::clone(&kind.name));
        entry.or_insert(DroppedKind { kind: Arc::clone(kind), count: 0 }).count += 1 + w.overtaken;
    }

    /// Takes the best, one after the other, until one does not fit.
    fn budget(&self, live: Vec<Waits>) -> (Vec<Waits>, Vec<Waits>) {
        let s = &self.settings;
        let free = 100 - usize::from(s.reserved_percent);
        let limits = [
            (s.frame_events, s.frame_bytes),
            (s.frame_events * free / 100, s.frame_bytes * free / 100),
        ];
        let class = |w: &Waits| usize::from(w.rank.0 > s.reserved_tier);
        let mut ranked: Vec<Waits> = live.iter().filter(|w| is_budgeted(w)).cloned().collect();
        ranked.sort_by_key(|w| w.rank);
        ranked.retain(|w| w.event.event.weight() <= limits[class(w)].1);
        let mut taken: Vec<Waits> = Vec::new();
        for w in ranked {
            taken.push(w.clone());
            let others: Vec<Waits> = taken.iter().filter(|w| class(w) == 1).cloned().collect();
            let over =
                |all: &[Waits], limit: (usize, usize)| all.len() > limit.0 || bytes(all) > limit.1;
            if over(&taken, limits[0]) || over(&others, limits[1]) {
                taken.pop();
                break;
            }
        }
        live.into_iter()
            .partition(|w| !is_budgeted(w) || taken.iter().any(|taken| taken.rank == w.rank))
    }

    fn settle(&mut self, event: &Arc<Numbered>) {
        if event.seq.is_some() {
            self.history.push(Arc::clone(event));
        }
        if let Merge::Latest(by) = event.event.kind.merge {
            let name = name(&event.event, by);
            if event.event.payload.is_null() {
                self.state.remove(&name);
            } else {
                self.state.insert(name, Arc::clone(event));
            }
        }
    }

    fn flush_totals(&mut self) -> Vec<Total> {
        let mut totals = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let sum = self.sums.get_mut(&name).expect("pending totals are not forgotten");
            totals.push(total(&name, sum, sum.sum, sum.delta));
            (sum.delta, sum.pending, sum.known) = (0, false, true);
        }
        totals
    }

    /// Combos that are over, and state that is; not while something waits for them.
    fn forget_expired(&mut self, now: Time) {
        self.sums.retain(|_, sum| {
            sum.pending || sum.kind.idle_reset.is_none_or(|idle| sum.last + idle > now)
        });
        let is_over = |e: &Numbered| e.event.expires().is_some_and(|at| at <= now);
        if self.state.values().any(|state| is_over(state)) {
            let waiting: Vec<Name> = self.waiting_names().collect();
            self.state.retain(|name, state| waiting.contains(name) || !is_over(state));
        }
    }

    fn waiting_names(&self) -> impl Iterator<Item = Name> {
        self.waits.iter().filter_map(|w| match w.event.event.kind.merge {
            Merge::Latest(by) => Some(name(&w.event.event, by)),
            _ => None,
        })
    }
}

fn name(event: &Event, by: MergeBy) -> Name {
    let user = (by == MergeBy::UserKey).then(|| Arc::clone(&event.user));
    (Arc::clone(&event.kind.name), user, event.key.clone().unwrap_or_default())
}

fn total(name: &Name, of: &Sum, sum: i64, delta: i64) -> Total {
    let kind = Arc::clone(&of.kind);
    Total { kind, user: name.1.clone(), key: Arc::clone(&name.2), sum, delta }
}

fn lane(w: &Waits) -> Lane {
    w.event.event.kind.lane
}

fn bytes(waits: &[Waits]) -> usize {
    waits.iter().map(|w| w.event.event.weight()).sum()
}

fn is_budgeted(w: &Waits) -> bool {
    let kind = &w.event.event.kind;
    match kind.merge {
        Merge::Append => kind.lane != Lane::Important,
        Merge::Sample(_) => kind.lane == Lane::Ordered,
        Merge::Sum(_) | Merge::Latest(_) => false,
    }
}

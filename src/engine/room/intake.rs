//! Taking an event: what can refuse comes first and changes nothing, what
//! changes state comes after and cannot refuse.

use std::sync::Arc;

use super::super::event::{Event, Numbered};
use super::super::ids::{ImportantNo, Seq};
use super::super::kind::{Kind, Lane, Merge};
use super::super::level::Rank;
use super::super::mark::Fate;
use super::super::merge::{Admitted, Verdict};
use super::super::outcome::Refusal;
use super::super::pending::Waiting;
use super::super::stats::DropReason;
use super::super::time::Time;
use super::{Open, Room};

/// Numbers of one event.
type Given = (Option<Seq>, Option<ImportantNo>);

impl Room {
    /// Everything that can refuse an event.
    pub(super) fn admit(&mut self, event: &Event, now: Time) -> Result<Admitted, Refusal> {
        self.check(event, now)?;
        self.merges.admit(event, self.pending.next_order(), now, &self.settings)
    }

    /// What can refuse it beside the merge rules.
    pub(super) fn check(&self, event: &Event, now: Time) -> Result<(), Refusal> {
        let kind = &event.kind;
        if event.payload.bytes.len() > kind.max_payload_bytes {
            return Err(Refusal::PayloadTooLarge(kind.max_payload_bytes));
        }
        if event.expires().is_some_and(|expires| expires <= now) {
            return Err(Refusal::Expired);
        }
        if kind.lane == Lane::Important
            && !self.pending.fits_important(self.staged.load(), event.weight(), &self.settings)
        {
            return Err(Refusal::BufferFull);
        }
        Ok(())
    }

    /// Numbers an admitted event, remembers its id and finds it its place.
    pub(super) fn accept(
        &mut self,
        event: Event,
        id: u128,
        admitted: Admitted,
        now: Time,
    ) -> Option<Seq> {
        let lane = event.kind.lane;
        let given = self.number(lane);
        let window =
            if lane == Lane::Sampled { &mut self.sampled_ids } else { &mut self.sequenced_ids };
        window.remember(id, given.0);
        self.stats.accepted[lane.index()] += 1;
        self.open.since.get_or_insert(now);
        match admitted {
            Admitted::Absorbed => {
                self.note_fate(&event, Fate::Summed);
                self.open.absorb(lane, event.received, now);
            }
            Admitted::Keep => self.keep(event, given, None, now),
            Admitted::Overtakes(order) => {
                let older = self.pending.take(order);
                self.keep(event, given, older, now);
            }
        }
        given.0
    }

    fn number(&mut self, lane: Lane) -> Given {
        if lane == Lane::Sampled {
            return (None, None);
        }
        self.given.seq.0 += 1;
        if lane == Lane::Ordered {
            return (Some(self.given.seq), None);
        }
        self.given.important.0 += 1;
        self.committed = self.given.important;
        (Some(self.given.seq), Some(self.given.important))
    }

    /// Puts an event into the buffer, with those it has overtaken, and makes
    /// the worst give way if that is too much, the event itself included.
    fn keep(&mut self, event: Event, given: Given, older: Option<Waiting>, now: Time) {
        let rank = Rank {
            tier: event.kind.tier,
            level: self.level_key.user_level(&event.user, now),
            order: self.pending.take_order(),
        };
        let weight = event.weight();
        let (mut overtaken, mut oldest) = ([0; 3], event.received);
        if let Some(older) = older {
            self.note_fate(&older.event.event, Fate::Overtaken);
            overtaken = older.overtaken;
            overtaken[older.event.event.kind.lane.index()] += 1;
            oldest = oldest.min(older.oldest);
        }
        if event.kind.lane != Lane::Important {
            if !self.is_sampled_in(&event, rank) {
                self.note_fate(&event, Fate::Dropped(DropReason::SampledOut));
                self.shed(&event.kind, overtaken, DropReason::SampledOut);
                return;
            }
            // The common fate in an overload, decided before anything is allocated.
            if self.pending.would_drop(rank, weight, &self.settings) {
                self.merges.dropped(&event, rank);
                self.note_fate(&event, Fate::Dropped(DropReason::BufferFull));
                self.shed(&event.kind, overtaken, DropReason::BufferFull);
                return;
            }
        }
        let (seq, important) = given;
        let event = Arc::new(Numbered { event, seq, important });
        self.pending.push(Waiting { event, rank, weight, overtaken, oldest });
        self.shed_excess();
    }

    /// The worst give way while the buffer holds more than it may.
    pub(super) fn shed_excess(&mut self) {
        while let Some(excess) = self.pending.take_excess(&self.settings) {
            self.drop_kept(&excess, DropReason::BufferFull);
        }
    }

    /// Asks the sample of the event's kind, if it has one, and drops whom the
    /// event displaces there.
    fn is_sampled_in(&mut self, event: &Event, rank: Rank) -> bool {
        let Merge::Sample(n) = event.kind.merge else { return true };
        let n = n.div_ceil(self.strain.sample_divisor.max(1) as usize);
        match self.merges.sample(event, n, rank) {
            Verdict::In => true,
            Verdict::Instead(order) => {
                if let Some(out) = self.pending.take(order) {
                    self.note_fate(&out.event.event, Fate::Dropped(DropReason::SampledOut));
                    self.shed(&out.event.event.kind, out.overtaken, DropReason::SampledOut);
                }
                true
            }
            Verdict::Out => false,
        }
    }

    /// Drops an event that has left the buffer.
    pub(super) fn drop_kept(&mut self, waiting: &Waiting, reason: DropReason) {
        let event = &waiting.event.event;
        self.merges.dropped(event, waiting.rank);
        self.note_fate(event, Fate::Dropped(reason));
        self.shed(&event.kind, waiting.overtaken, reason);
    }

    /// Counts an event that reaches nobody, and those whose place it had taken.
    pub(super) fn shed(&mut self, kind: &Arc<Kind>, overtaken: [u64; 3], reason: DropReason) {
        let lanes = &mut self.stats.dropped[reason.index()];
        lanes[kind.lane.index()] += 1;
        for (lane, overtaken) in lanes.iter_mut().zip(overtaken) {
            *lane += overtaken;
        }
        self.drops.add(kind, 1 + overtaken.iter().sum::<u64>());
    }
}

impl Open {
    fn absorb(&mut self, lane: Lane, received: Time, now: Time) {
        self.absorbed[lane.index()] += 1;
        self.absorbed_since.get_or_insert(now);
        let oldest = self.absorbed_oldest.get_or_insert(received);
        *oldest = received.min(*oldest);
    }
}

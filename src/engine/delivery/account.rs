//! What one viewer lost of one room and has not been told, and what it must be
//! given before it is whole again.

use super::super::drops::Drops;
use super::super::event::{DroppedKind, Frame};
use super::super::ids::{ImportantNo, RoomId, Seq};
use super::super::kind::{Lane, Merge};
use super::super::time::Time;
use super::stats::DeliveryStats;
use super::{Cut, Rung};

/// What a viewer needs of a room that its frames no longer bring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// The newest totals.
    Totals,
    /// The whole state: only that also tells which values are no more.
    State,
    /// The whole state, and before it all important events from this number on.
    Rebase(Option<ImportantNo>),
}

/// What became of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    /// The cut it had.
    pub(super) from: Cut,
    /// The cut it was brought to; `None`: it is gone.
    pub(super) to: Option<Cut>,
    /// Nothing of it will be sent.
    pub(super) vanishes: bool,
    /// Why.
    pub(super) rung: Rung,
}

#[derive(Debug)]
pub(super) struct Account {
    pub(super) room: RoomId,
    /// Numbers of which content was lost, both ends included, not yet told.
    lost: Option<(Seq, Seq)>,
    dropped: Drops,
    pub(super) need: Need,
    /// Values of sampled kinds were not sent. They may be dropped freely, so that
    /// nothing is done about it before the viewer gets everything again.
    pub(super) stale: bool,
    /// The number of the question that is on its way.
    pub(super) asked: Option<u32>,
    /// When it was last given totals or state.
    pub(super) told: Option<Time>,
}

impl Account {
    fn new(room: RoomId) -> Self {
        Self {
            room,
            lost: None,
            dropped: Drops::default(),
            need: Need::Nothing,
            stale: false,
            asked: None,
            told: None,
        }
    }

    /// What a gap notice has to say: numbers, and counts. Sampled content alone
    /// may go without a word.
    pub(super) fn gap(&self) -> Option<(Seq, Seq, &[DroppedKind])> {
        self.lost.map(|(first, last)| (first, last, self.dropped.list()))
    }

    /// Nothing is untold, and nothing needed.
    pub(super) fn is_settled(&self) -> bool {
        self.need == Need::Nothing && !self.stale && self.lost.is_none()
    }

    pub(super) fn gap_told(&mut self) {
        self.lost = None;
        self.dropped = Drops::default();
    }

    pub(super) fn needs(&mut self, need: Need) {
        self.need = self.need.max(need);
    }

    /// The viewer goes on from a state to come; what is owed stays owed.
    pub(super) fn needs_rebase(&mut self, important: Option<ImportantNo>) {
        self.need = match self.need {
            Need::Rebase(Some(owed)) => {
                Need::Rebase(Some(important.map_or(owed, |no| no.min(owed))))
            }
            _ => Need::Rebase(important),
        };
    }

    /// The viewer goes on behind `seq`: what was lost is lost up to there.
    pub(super) fn skipped_to(&mut self, seq: Seq) {
        if let Some((_, last)) = &mut self.lost {
            *last = seq.max(*last);
        }
    }
}

/// The accounts of one viewer; few, so a list.
#[derive(Debug, Default)]
pub(super) struct Accounts(pub(super) Vec<Account>);

impl Accounts {
    pub(super) fn find(&mut self, room: &RoomId) -> Option<&mut Account> {
        self.0.iter_mut().find(|account| account.room == *room)
    }

    pub(super) fn of(&mut self, room: &RoomId) -> &mut Account {
        let index = match self.0.iter().position(|account| account.room == *room) {
            Some(index) => index,
            None => {
                self.0.push(Account::new(room.clone()));
                self.0.len() - 1
            }
        };
        &mut self.0[index]
    }

    /// Whether frames of a room are dropped until the viewer has its state.
    pub(super) fn is_rebasing(&self, room: &RoomId) -> bool {
        let needs = |account: &Account| matches!(account.need, Need::Rebase(_));
        self.0.iter().any(|account| account.room == *room && needs(account))
    }

    pub(super) fn any_rebasing(&self) -> bool {
        self.0.iter().any(|account| matches!(account.need, Need::Rebase(_)))
    }

    /// The viewer gets everything again: from now on what it has must be right.
    pub(super) fn freshen(&mut self) {
        for account in self.0.iter_mut().filter(|account| account.stale) {
            account.needs(Need::State);
        }
    }

    /// Books what a viewer loses of a frame. Returns whether there is something
    /// new to tell it.
    pub(super) fn lose(&mut self, frame: &Frame, loss: Loss, stats: &mut DeliveryStats) -> bool {
        let kept = |lane| loss.to.is_some_and(|cut| cut.keeps(lane));
        let events = frame.events.iter().filter(|e| {
            let lane = e.event.kind.lane;
            loss.from.keeps(lane) && !kept(lane)
        });
        let (mut ordered, mut owed, mut stale, mut need) = (false, None, false, Need::Nothing);
        for numbered in events {
            let kind = &numbered.event.kind;
            if let Some(important) = numbered.important {
                stats.owed += 1;
                owed = Some(owed.map_or(important, |first: ImportantNo| first.min(important)));
                continue;
            }
            stats.events_dropped[loss.rung.index()][kind.lane.index()] += 1;
            ordered |= kind.lane == Lane::Ordered;
            if matches!(kind.merge, Merge::Latest(_)) {
                stale = true;
                if kind.lane == Lane::Ordered {
                    need = Need::State;
                }
            }
            self.of(&frame.room).dropped.add(kind, 1);
        }
        if loss.from.keeps_totals() && !loss.to.is_some_and(Cut::keeps_totals) {
            for total in &frame.totals {
                stats.totals_dropped[loss.rung.index()][total.kind.lane.index()] += 1;
            }
            if !frame.totals.is_empty() || frame.online.is_some() {
                need = need.max(Need::Totals);
            }
        }
        let numbered = frame.first_seq <= frame.last_seq && (ordered || loss.vanishes);
        if !numbered && !stale && need == Need::Nothing && loss.to.is_some() {
            return false;
        }
        let account = self.of(&frame.room);
        account.stale |= stale;
        account.needs(need);
        if loss.to.is_none() {
            account.needs_rebase(owed);
        }
        if numbered {
            let first = account.lost.map_or(frame.first_seq, |(first, _)| first);
            let last = account.lost.map_or(frame.last_seq, |(_, last)| last);
            account.lost = Some((first.min(frame.first_seq), last.max(frame.last_seq)));
        }
        numbered
    }
}

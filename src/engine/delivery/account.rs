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

/// A loss that has not been told.
#[derive(Debug, Default)]
struct Gap {
    /// Numbers of which content was lost, both ends included.
    lost: Option<(Seq, Seq)>,
    dropped: Drops,
}

impl Gap {
    fn loses(&mut self, first: Seq, last: Seq) {
        let (from, to) = self.lost.unwrap_or((first, last));
        self.lost = Some((from.min(first), to.max(last)));
    }

    fn absorb(&mut self, other: &Gap) {
        if let Some((first, last)) = other.lost {
            self.loses(first, last);
        }
        for entry in other.dropped.list() {
            self.dropped.add(&entry.kind, entry.count);
        }
    }
}

#[derive(Debug)]
pub(super) struct Account {
    pub(super) room: RoomId,
    /// What is being lost.
    open: Gap,
    /// What was lost before a state that has not begun.
    closed: Vec<Gap>,
    /// The last number of that state, until it begins.
    whole: Option<Seq>,
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
            open: Gap::default(),
            closed: Vec::new(),
            whole: None,
            need: Need::Nothing,
            stale: false,
            asked: None,
            told: None,
        }
    }

    /// What gap notices have to say: numbers, and counts. Sampled content alone
    /// may go without a word.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (Seq, Seq, &[DroppedKind])> {
        let gaps = self.closed.iter().chain([&self.open]);
        gaps.filter_map(|gap| gap.lost.map(|(first, last)| (first, last, gap.dropped.list())))
    }

    /// Nothing is untold, and nothing needed.
    pub(super) fn is_settled(&self) -> bool {
        self.need == Need::Nothing && !self.stale && self.gaps().next().is_none()
    }

    /// The gap that begins with this number is told.
    pub(super) fn told_from(&mut self, from: Seq) {
        let begins = |gap: &Gap| gap.lost.is_some_and(|(first, _)| first == from);
        if begins(&self.open) {
            self.open = Gap::default();
        } else {
            self.closed.retain(|gap| !begins(gap));
        }
    }

    /// The viewer is given the state after `seq`: what was lost before is told
    /// before it, what will be lost, behind.
    pub(super) fn close(&mut self, seq: Seq, now: Time) {
        (self.need, self.stale, self.told) = (Need::Nothing, false, Some(now));
        self.whole = Some(seq);
        if self.open.lost.is_some() {
            self.closed.push(std::mem::take(&mut self.open));
        }
    }

    /// That state was taken away again, or is on the wire: nothing more can be
    /// told before it.
    pub(super) fn reopen(&mut self) {
        self.whole = None;
        for gap in self.closed.drain(..) {
            self.open.absorb(&gap);
        }
    }

    /// Where a loss of a frame up to `last` is booked: a frame may be cut while
    /// it waits before the state.
    fn gap_of(&mut self, last: Seq) -> &mut Gap {
        if self.whole.is_none_or(|whole| last > whole) {
            return &mut self.open;
        }
        if self.closed.is_empty() {
            self.closed.push(Gap::default());
        }
        let newest = self.closed.len() - 1;
        &mut self.closed[newest]
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
                // Nearly all viewers are in one room, and a stall is shared by many.
                self.0.reserve_exact(1);
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
            self.of(&frame.room).gap_of(frame.last_seq).dropped.add(kind, 1);
        }
        if loss.from.keeps(Lane::Ordered) && !kept(Lane::Ordered) {
            // What the room itself left out stood in what is withheld.
            for shed in &frame.dropped {
                ordered |= shed.kind.lane == Lane::Ordered;
                self.of(&frame.room).gap_of(frame.last_seq).dropped.add(&shed.kind, shed.count);
            }
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
            account.gap_of(frame.last_seq).loses(frame.first_seq, frame.last_seq);
        }
        numbered
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::ids::Epoch;
    use super::super::super::testing::{START, chat};
    use super::*;

    fn room() -> RoomId {
        RoomId::new("r").expect("a valid name")
    }

    /// A frame of nothing but its numbers.
    fn numbers(first: u64, last: u64) -> Frame {
        Frame {
            room: room(),
            epoch: Epoch(1),
            first_seq: Seq(first),
            last_seq: Seq(last),
            important: ImportantNo(0),
            time: START,
            oldest: START,
            events: Vec::new(),
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ack: None,
            represents: 0,
        }
    }

    fn lose(accounts: &mut Accounts, first: u64, last: u64) {
        let rung = Rung::ImportantOnly;
        let loss = Loss { from: Cut::Full, to: Some(Cut::ImportantOnly), vanishes: true, rung };
        assert!(accounts.lose(&numbers(first, last), loss, &mut DeliveryStats::default()));
    }

    fn gaps(accounts: &mut Accounts) -> Vec<(u64, u64)> {
        accounts.of(&room()).gaps().map(|(first, last, _)| (first.0, last.0)).collect()
    }

    #[test]
    fn what_is_lost_before_a_state_and_behind_it_is_told_apart() {
        let mut accounts = Accounts::default();
        lose(&mut accounts, 1, 3);
        accounts.of(&room()).close(Seq(6), START);
        // The frames 4 to 6 still waited before the state, and are cut now.
        lose(&mut accounts, 4, 6);
        lose(&mut accounts, 7, 8);
        assert_eq!(gaps(&mut accounts), [(1, 6), (7, 8)]);
        accounts.of(&room()).told_from(Seq(1));
        assert_eq!(gaps(&mut accounts), [(7, 8)]);
    }

    #[test]
    fn what_the_room_left_out_of_a_frame_is_told_with_it_and_once() {
        let mut accounts = Accounts::default();
        let all = 5;
        let shed = DroppedKind { kind: chat("c").event().kind, count: all };
        let frame = Frame { dropped: vec![shed], ..numbers(1, 6) };
        let cuts = [Cut::Full, Cut::NoSampled, Cut::ImportantOnly];
        let steps = [(cuts[0], Some(cuts[1])), (cuts[1], Some(cuts[2])), (cuts[2], None)];
        for (step, (from, to)) in steps.into_iter().enumerate() {
            let loss = Loss { from, to, vanishes: to.is_none(), rung: Rung::ImportantOnly };
            accounts.lose(&frame, loss, &mut DeliveryStats::default());
            let told: u64 =
                accounts.of(&room()).gaps().flat_map(|(_, _, d)| d).map(|d| d.count).sum();
            assert_eq!(told, [0, all, all][step]);
        }
    }

    #[test]
    fn a_state_that_is_taken_away_leaves_one_gap() {
        let mut accounts = Accounts::default();
        lose(&mut accounts, 1, 3);
        accounts.of(&room()).close(Seq(3), START);
        lose(&mut accounts, 4, 5);
        accounts.of(&room()).reopen();
        assert_eq!(gaps(&mut accounts), [(1, 5)]);
    }

    #[test]
    fn what_is_owed_begins_with_the_first_that_was_dropped() {
        let mut account = Account::new(room());
        account.needs(Need::Totals);
        account.needs_rebase(None);
        account.needs_rebase(Some(ImportantNo(7)));
        account.needs_rebase(Some(ImportantNo(9)));
        account.needs_rebase(None);
        account.needs(Need::State);
        assert_eq!(account.need, Need::Rebase(Some(ImportantNo(7))));
    }
}

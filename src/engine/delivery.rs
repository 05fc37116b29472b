//! What one viewer gets when its socket takes no more: less and less, by worth,
//! and told what it lost; and everything again once it keeps up.
//!
//! A [`Delivery`] exists only for a viewer that is behind or was lately. It
//! holds frames by reference ([`backlog`]), takes the viewer up and down the
//! rungs of a [`ladder`], keeps an [`account`] per room of what was lost and is
//! still needed, and says what to ask of the rooms' homes. docs/slow-viewers.md
//! tells the whole from the viewer's side.
//!
//! What holds on every rung:
//! - What the socket took by part is finished as it began.
//! - Important events come all, in order, without a hole. In front of a rebase
//!   they may come twice; their number tells.
//! - A number whose ordered content was dropped is told by a gap notice, before
//!   anything behind it.
//! - Totals, and values of ordered kinds, that were not sent are made up for by
//!   newer ones as soon as nothing else waits; values of sampled kinds when the
//!   viewer gets everything again.
//!
//! Contract for whoever drives it. A frame: [`frame`](Delivery::frame). Any
//! other message: [`fixed`](Delivery::fixed). Before each write
//! [`prepare`](Delivery::prepare), then [`chunks`](Delivery::chunks) and
//! [`advance`](Delivery::advance), until the socket refuses
//! ([`refused`](Delivery::refused)) or all is out ([`drained`](Delivery::drained)).
//! While [`is_open`](Delivery::is_open), whatever is queued must be written at
//! once: nobody will say that the socket is writable. After every such round
//! [`poll_ask`](Delivery::poll_ask) until it has no more questions; the answers
//! come back through [`wanted`](Delivery::wanted) and
//! [`retotalled`](Delivery::retotalled), [`refreshed`](Delivery::refreshed) or
//! [`rebased`](Delivery::rebased), each at a
//! moment when every frame that the answer covers has been handed in and none
//! beyond it. At [`deadline`](Delivery::deadline): [`tick`](Delivery::tick) and
//! [`verdict`](Delivery::verdict). Once [`is_over`](Delivery::is_over) it may be
//! thrown away.

mod account;
mod backlog;
pub mod ladder;
pub mod owed;
pub mod stats;

use bytes::Bytes;

use self::account::{Account, Accounts, Loss, Need};
use self::backlog::{Backlog, Passed, State, Taken};
pub use self::ladder::{Bounds, LadderSettings, Rung};
use self::ladder::{Ladder, Load};
use self::owed::Owed;
use self::stats::DeliveryStats;
use super::event::{self, DroppedKind};
use super::ids::{ImportantNo, RoomId, Seq};
use super::kind::Lane;
use super::time::Time;

/// How much of a frame a slow viewer still gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cut {
    /// All of it.
    Full,
    /// Without sampled events.
    NoSampled,
    /// Without totals too: they follow once, when all else is sent.
    TotalsOnly,
    /// Only important events.
    ImportantOnly,
}

impl Cut {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Whether events of a lane are left.
    #[must_use]
    pub const fn keeps(self, lane: Lane) -> bool {
        match self {
            Cut::Full => true,
            Cut::NoSampled | Cut::TotalsOnly => !matches!(lane, Lane::Sampled),
            Cut::ImportantOnly => matches!(lane, Lane::Important),
        }
    }

    /// What is withheld, as `withheld` of a frame says it.
    #[must_use]
    pub const fn withheld(self) -> u32 {
        self as u32
    }

    /// Whether totals are left.
    #[must_use]
    pub const fn keeps_totals(self) -> bool {
        matches!(self, Cut::Full | Cut::NoSampled)
    }
}

/// A frame as a viewer gets it: bytes for every cut, encoded once for all viewers
/// by whoever implements this.
pub trait Frame: Clone {
    /// What it carries.
    fn content(&self) -> &event::Frame;
    /// The bytes of a cut; empty when nothing is left of the frame.
    fn bytes(&self, cut: Cut) -> Bytes;
}

/// Writes what only this viewer is told.
pub trait Voice {
    /// It lost content of the numbers `first..=last`, and these counts.
    fn gap(&self, room: &RoomId, first: Seq, last: Seq, dropped: &[DroppedKind]) -> Bytes;
    /// Important events that it was owed are no longer remembered.
    fn gone(&self, room: &RoomId) -> Bytes;
}

/// A question for a room's home: where does it stand?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which room.
    pub room: RoomId,
    /// Comes back with the answer.
    pub serial: u32,
    /// The important events to bring along, from this number on.
    pub from: Option<ImportantNo>,
}

/// What an answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing any more.
    Nothing,
    /// The newest totals ([`owed::totals`]).
    Totals,
    /// The whole state.
    State,
    /// The state to go on from, after the important events from here on.
    Rebase(Option<ImportantNo>),
}

/// What to do with a viewer that makes no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Wait.
    Patience,
    /// Close it, with a code that makes it reconnect.
    GiveUp,
}

/// See the module's documentation.
pub struct Delivery<F> {
    backlog: Backlog<F>,
    ladder: Ladder,
    accounts: Accounts,
    /// Questions asked.
    serial: u32,
    /// When the socket last took bytes, or all was dropped.
    progress: Time,
    /// The socket would take more.
    open: bool,
    /// All was dropped, and the socket has not taken what was left.
    skipping: bool,
    /// Accounts have something that the queued notices do not say.
    untold: bool,
    /// Say it even if nothing else is sent.
    tell: bool,
}

impl<F: Frame> Delivery<F> {
    /// For a viewer whose socket has just refused something.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            backlog: Backlog::new(),
            ladder: Ladder::default(),
            accounts: Accounts::default(),
            serial: 0,
            progress: now,
            open: false,
            skipping: false,
            untold: false,
            tell: false,
        }
    }

    /// A message for this viewer alone, or the rest of one. Nothing takes it
    /// away; see [`fixed_bytes`](Self::fixed_bytes).
    pub fn fixed(&mut self, bytes: Bytes, begun: bool) {
        self.backlog.push_fixed(bytes, begun);
    }

    /// The rest of a frame whose first bytes the socket took.
    pub fn begun(&mut self, frame: F, rest: Bytes, now: Time) {
        self.backlog.push_begun(frame, rest, now);
    }

    /// The next frame of one of the viewer's rooms.
    pub fn frame(
        &mut self,
        frame: F,
        settings: &LadderSettings,
        stats: &mut DeliveryStats,
        now: Time,
    ) {
        if self.skipping || self.accounts.is_rebasing(&frame.content().room) {
            return self.drop_whole(&frame, Cut::Full, stats);
        }
        let rung = self.ladder.rung();
        let cut = rung.cut();
        let bytes = frame.bytes(cut);
        let loss = Loss { from: Cut::Full, to: Some(cut), vanishes: bytes.is_empty(), rung };
        self.untold |= self.accounts.lose(frame.content(), loss, stats);
        if !bytes.is_empty() {
            self.backlog.push_frame(frame, cut, bytes, now);
        }
        while self.ladder.is_beyond(self.backlog.load(), settings, now) {
            self.climb(stats, now);
        }
        // What an open socket takes in the next moment does not wait.
        if !self.open {
            self.judge(settings, now);
        }
    }

    /// Puts notices of what was lost in front of what is written next. Not before
    /// something is written: one notice then covers the whole stall.
    pub fn prepare(&mut self, voice: &impl Voice) {
        if !self.untold || !(self.tell || self.backlog.has_unbegun()) {
            return;
        }
        self.backlog.remove_notices();
        // A room that is skipped is not told of in pieces, but before its state.
        let told = self.accounts.0.iter().filter(|a| !matches!(a.need, Need::Rebase(_)));
        for account in told {
            for (first, last, dropped) in account.gaps() {
                let notice = voice.gap(&account.room, first, last, dropped);
                self.backlog.push_notice(account.room.clone(), first, notice);
            }
        }
        (self.untold, self.tell) = (false, false);
    }

    /// What to write next, oldest first, for one vectored write.
    pub fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.backlog.chunks()
    }

    /// `written` bytes of [`chunks`](Self::chunks) are on the wire. Hands every
    /// frame that was finished by that to `finished`.
    pub fn advance(
        &mut self,
        written: usize,
        settings: &LadderSettings,
        stats: &mut DeliveryStats,
        now: Time,
        mut finished: impl FnMut(&F, Cut),
    ) {
        let accounts = &mut self.accounts;
        self.backlog.advance(written, |passed| match passed {
            Passed::Frame(frame, cut) => finished(frame, cut),
            Passed::Notice(room, first) => {
                stats.gaps += 1;
                if let Some(account) = accounts.find(room) {
                    account.told_from(first);
                }
            }
            Passed::Whole(room) => {
                if let Some(account) = accounts.find(room) {
                    account.reopen();
                }
            }
            Passed::Other => {}
        });
        if written > 0 {
            self.progress = now;
        }
        self.judge(settings, now);
    }

    /// The socket took no more: it will be said to be writable again.
    pub fn refused(&mut self) {
        self.open = false;
    }

    /// The socket took everything and would take more.
    pub fn drained(&mut self, stats: &mut DeliveryStats, now: Time) {
        debug_assert!(self.backlog.is_empty());
        self.open = true;
        self.skipping = false;
        self.end_rebase(stats, now);
    }

    /// Whether the socket would take more.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The next question to ask, once all is sent.
    pub fn poll_ask(&mut self, settings: &LadderSettings, now: Time) -> Option<Ask> {
        if !self.is_idle() {
            return None;
        }
        let due = |account: &&mut Account| {
            refresh_at(account, settings).is_some_and(|at| at.is_none_or(|at| at <= now))
        };
        let account = self.accounts.0.iter_mut().find(due)?;
        self.serial = self.serial.wrapping_add(1);
        account.asked = Some(self.serial);
        let from = if let Need::Rebase(owed) = account.need { owed } else { None };
        Some(Ask { room: account.room.clone(), serial: self.serial, from })
    }

    /// What the answer to a question is good for. `from` is the question's.
    pub fn wanted(&mut self, room: &RoomId, serial: u32, from: Option<ImportantNo>) -> Wanted {
        let Some(account) = self.accounts.find(room) else { return Wanted::Nothing };
        if account.asked != Some(serial) {
            return Wanted::Nothing;
        }
        account.asked = None;
        match account.need {
            Need::Nothing => Wanted::Nothing,
            Need::Totals => Wanted::Totals,
            Need::State => Wanted::State,
            // An important event was dropped while the question was on its way.
            Need::Rebase(owed) if owed != from => Wanted::Nothing,
            Need::Rebase(owed) => Wanted::Rebase(owed),
        }
    }

    /// The newest totals of a room, for an answer that is [`Wanted::Totals`].
    pub fn retotalled(
        &mut self,
        room: &RoomId,
        totals: Bytes,
        stats: &mut DeliveryStats,
        now: Time,
    ) {
        stats.refreshed += 1;
        let account = self.accounts.of(room);
        (account.need, account.told) = (Need::Nothing, Some(now));
        self.backlog.push_state(room, State::Totals, totals);
    }

    /// The state of a room, which is that after `seq`, for an answer that is
    /// [`Wanted::State`].
    pub fn refreshed(
        &mut self,
        room: &RoomId,
        (seq, joined): (Seq, Bytes),
        stats: &mut DeliveryStats,
        now: Time,
    ) {
        stats.refreshed += 1;
        self.push_whole(room, seq, joined, now);
    }

    /// A piece of what a room owes the viewer, and, with the last piece, the
    /// state to go on from: for an answer that is [`Wanted::Rebase`]. `frame`
    /// brings the events of `owed`; `joined` is the state, which is that after
    /// `seq`.
    #[allow(clippy::too_many_arguments, reason = "the parts of one answer")]
    pub fn rebased(
        &mut self,
        room: &RoomId,
        owed: &Owed,
        frame: Option<F>,
        (seq, joined): (Seq, Bytes),
        voice: &impl Voice,
        stats: &mut DeliveryStats,
        now: Time,
    ) {
        stats.repaid += owed.events.len() as u64;
        stats.unpaid += owed.gone;
        if owed.gone > 0 {
            self.backlog.push_fixed(voice.gone(room), false);
        }
        if let Some(frame) = frame {
            let bytes = frame.bytes(Cut::Full);
            self.backlog.push_frame(frame, Cut::Full, bytes, now);
        }
        if owed.rest.is_some() {
            self.accounts.of(room).need = Need::Rebase(owed.rest);
            return;
        }
        stats.rebased += 1;
        self.push_whole(room, seq, joined, now);
        self.end_rebase(stats, now);
    }

    /// The viewer has left a room.
    pub fn forget(&mut self, room: &RoomId, stats: &mut DeliveryStats, now: Time) {
        self.accounts.0.retain(|account| account.room != *room);
        self.backlog.forget(room);
        self.end_rebase(stats, now);
    }

    /// Takes the viewer down a rung if it has kept up, and drops all that waits
    /// if it takes nothing.
    pub fn tick(&mut self, settings: &LadderSettings, stats: &mut DeliveryStats, now: Time) {
        self.judge(settings, now);
        let due = self.ladder.due_down(self.is_idle(), self.progress, settings);
        if due.is_some_and(|due| due <= now) {
            let rung = self.ladder.descend(now);
            stats.descended[rung.index()] += 1;
            self.tell = self.untold;
            if rung == Rung::Full {
                self.accounts.freshen();
            }
        }
        let stuck = self.waits() && now.since(self.progress) >= settings.last().age;
        while stuck && self.ladder.rung() != Rung::Rebase {
            self.climb(stats, now);
        }
    }

    /// Whether to go on with the viewer.
    #[must_use]
    pub fn verdict(&self, settings: &LadderSettings, now: Time) -> Verdict {
        let stuck = self.ladder.rung() == Rung::Rebase
            && self.waits()
            && now.since(self.progress) >= settings.drain;
        if stuck { Verdict::GiveUp } else { Verdict::Patience }
    }

    /// When to call [`tick`](Self::tick), [`verdict`](Self::verdict) and
    /// [`poll_ask`](Self::poll_ask), if nothing happens before.
    #[must_use]
    pub fn deadline(&self, settings: &LadderSettings) -> Option<Time> {
        let rebasing = self.ladder.rung() == Rung::Rebase;
        let patience = if rebasing { settings.drain } else { settings.last().age };
        let stuck = self.waits().then(|| self.progress + patience);
        let down = self.ladder.due_down(self.is_idle(), self.progress, settings);
        let refresh = self.accounts.0.iter().filter(|_| self.is_idle());
        let refresh = refresh.filter_map(|account| refresh_at(account, settings)?);
        stuck.into_iter().chain(down).chain(refresh).min()
    }

    /// Where the viewer stands.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.ladder.rung()
    }

    /// Everything is sent and the viewer gets everything again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let settled = |a: &Account| a.is_settled();
        self.is_idle() && self.rung() == Rung::Full && self.accounts.0.iter().all(settled)
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Queued frames and messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.backlog.len()
    }

    /// Queued bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.backlog.bytes()
    }

    /// Queued bytes that nothing takes away. Whoever queues them must bound them.
    #[must_use]
    pub fn fixed_bytes(&self) -> usize {
        self.backlog.fixed_bytes()
    }

    /// What waits and could be cut.
    #[must_use]
    pub fn load(&self) -> Load {
        self.backlog.load()
    }

    /// Nothing waits, and the socket would take it.
    fn is_idle(&self) -> bool {
        self.open && self.backlog.is_empty()
    }

    /// Something is to happen before the viewer can go on.
    fn waits(&self) -> bool {
        !self.is_idle() || self.accounts.any_rebasing()
    }

    fn judge(&mut self, settings: &LadderSettings, now: Time) {
        self.ladder.judge(self.backlog.len(), self.backlog.bytes(), settings, now);
    }

    fn push_whole(&mut self, room: &RoomId, seq: Seq, joined: Bytes, now: Time) {
        self.accounts.of(room).close(seq, now);
        self.untold = true;
        self.backlog.push_state(room, State::Whole(seq), joined);
    }

    fn climb(&mut self, stats: &mut DeliveryStats, now: Time) {
        let rung = self.ladder.climb();
        stats.climbed[rung.index()] += 1;
        if rung == Rung::Rebase {
            return self.drop_all(stats, now);
        }
        let Self { backlog, accounts, untold, .. } = self;
        let to = rung.cut();
        backlog.thin(to, |frame, from, vanishes| {
            let loss = Loss { from, to: Some(to), vanishes, rung };
            *untold |= accounts.lose(frame.content(), loss, stats);
        });
    }

    fn drop_all(&mut self, stats: &mut DeliveryStats, now: Time) {
        for account in &mut self.accounts.0 {
            account.asked = None;
            account.reopen();
        }
        for taken in self.backlog.take_all() {
            match taken {
                Taken::Frame(frame, cut) => self.drop_whole(&frame, cut, stats),
                Taken::State(room, State::Totals) => self.accounts.of(&room).needs(Need::Totals),
                Taken::State(room, State::Whole(_)) => self.accounts.of(&room).needs_rebase(None),
            }
        }
        // Notices that had not begun went too.
        self.untold = true;
        self.skipping = !self.is_idle();
        self.progress = now;
    }

    fn drop_whole(&mut self, frame: &F, from: Cut, stats: &mut DeliveryStats) {
        let loss = Loss { from, to: None, vanishes: true, rung: Rung::Rebase };
        self.untold |= self.accounts.lose(frame.content(), loss, stats);
    }

    fn end_rebase(&mut self, stats: &mut DeliveryStats, now: Time) {
        if self.rung() == Rung::Rebase && !self.skipping && !self.accounts.any_rebasing() {
            let rung = self.ladder.descend(now);
            stats.descended[rung.index()] += 1;
        }
    }
}

/// When to ask for a room: `None` if nothing is needed, `Some(None)` if at once.
fn refresh_at(account: &Account, settings: &LadderSettings) -> Option<Option<Time>> {
    if account.asked.is_some() {
        return None;
    }
    match account.need {
        Need::Nothing => None,
        Need::Rebase(_) => Some(None),
        Need::Totals | Need::State => Some(account.told.map(|told| told + settings.recover)),
    }
}

impl<F> std::fmt::Debug for Delivery<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("ladder", &self.ladder).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

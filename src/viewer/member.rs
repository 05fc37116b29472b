//! A room of a connection: how far its join is, and what messages make of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::connection::Join;
use super::happening::{End, Event, Gap, GapReason, Happening, Snapshot, Why, Withheld};
use super::outcome::{Failure, JoinError};
use super::room::{Draw, Entry, Header, Joined, Model, Position, Say, Shown, Source, Tally};
use super::token::{Asked, Token};
use super::totals::Newest;
use crate::engine::time::Time;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;

/// Where a join is asked for again that was refused for now without a time.
const REJOIN: Duration = Duration::from_secs(1);

/// What the holder of a room can see of it at any time.
#[derive(Debug, Clone, Default)]
pub(super) struct View(Arc<Mutex<(Option<Position>, Tally)>>);

impl View {
    pub(super) fn read(&self) -> (Option<Position>, Tally) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, model: &Model<Event>) {
        let mut view = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *view = (model.position(), *model.tally());
    }
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Not before this.
    Out(Time),
    /// A token is asked for.
    Asking,
    /// With this token it can be joined.
    Ready(String),
    /// `join` was sent.
    Joining,
    Joined,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    token: Token,
    phase: Phase,
    /// The server found the token too old, and another one was asked for.
    renewed: bool,
    model: Model<Event>,
    newest: Newest,
    withheld: Withheld,
    happen: mpsc::Sender<Happening>,
    /// Until it is in for the first time.
    reply: Option<oneshot::Sender<Result<(), JoinError>>>,
    view: View,
    /// What is to be told, in order.
    told: Vec<Happening>,
}

impl Member {
    pub(super) fn new(join: Join) -> Self {
        let Join { name, token, happen, reply, view } = join;
        Self {
            name,
            token,
            phase: Phase::Out(Time::default()),
            renewed: false,
            model: Model::default(),
            newest: Newest::default(),
            withheld: Withheld::default(),
            happen,
            reply: Some(reply),
            view,
            told: Vec::new(),
        }
    }

    /// Nobody holds the room any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.happen.is_closed()
    }

    pub(super) fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    /// Whether `join` was sent and not answered.
    pub(super) fn is_joining(&self) -> bool {
        self.phase == Phase::Joining
    }

    /// Whether its token is still to come.
    pub(super) fn is_asking(&self) -> bool {
        self.phase == Phase::Asking
    }

    /// Asks for a token, if it is time to.
    pub(super) fn ask(&mut self, now: Time) -> Option<Asked> {
        let Phase::Out(due) = self.phase else { return None };
        if now < due {
            return None;
        }
        self.phase = Phase::Asking;
        Some(self.token.ask())
    }

    /// A token has come, or none will.
    pub(super) fn got(&mut self, token: Result<String, String>) -> Result<(), End> {
        if self.phase == Phase::Asking {
            self.phase = Phase::Ready(token.map_err(End::NoToken)?);
        }
        Ok(())
    }

    /// The message that joins, if there is a token for it.
    pub(super) fn join(&mut self) -> Option<Out> {
        let Phase::Ready(token) = &mut self.phase else { return None };
        let token = std::mem::take(token);
        self.phase = Phase::Joining;
        let resume =
            |at: Position| v1::Resume { epoch: at.epoch, seq: at.seq, important: at.important };
        let resume = self.model.position().map(resume);
        Some(Out::Join(v1::Join { room: self.name.clone(), token, resume, acks: true }))
    }

    /// Another connection; `join` was sent on it if there was a token.
    pub(super) fn connected(&mut self, slot: u16, split: bool) {
        self.model.connected(slot, split);
    }

    /// The connection is gone, or could not be made.
    pub(super) fn disconnected(&mut self, why: &str, again_in: Duration) {
        self.withheld = Withheld::default();
        // A token that was asked for and not used is as good later.
        if matches!(self.phase, Phase::Joining | Phase::Joined) {
            self.phase = Phase::Out(Time::default());
        }
        self.model.left();
        if self.reply.is_none() {
            self.told.push(Happening::Disconnected { why: why.to_owned(), again_in });
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self, end: End) {
        match self.reply.take() {
            None => self.told.push(Happening::Ended(end)),
            Some(reply) => {
                let error = match end {
                    End::Refused(failure) => JoinError::Refused(failure),
                    End::Dismissed { code, reason } => JoinError::Dismissed { code, reason },
                    End::NoToken(why) => JoinError::NoToken(why),
                };
                // Who gave up does not want to know.
                let _ = reply.send(Err(error));
            }
        }
    }

    pub(super) fn joined(&mut self, joined: v1::Joined, now: Time, draw: Draw<'_>) {
        let told = &mut self.told;
        let header = Joined::from(&joined);
        let mut early = Vec::new();
        let mut show = |shown| early.push(happening(shown));
        let entry = self.model.joined(&header, now, draw, &mut show);
        (self.phase, self.renewed) = (Phase::Joined, false);
        self.newest.reset();
        if let Entry::Behind(Some((first_seq, last_seq))) = entry {
            let (dropped, why) = (Default::default(), GapReason::Away);
            told.push(Happening::Gap(Gap { first_seq, last_seq, dropped, why }));
        }
        let v1::Joined { epoch, seq, important, online, state, totals, .. } = joined;
        told.push(Happening::Joined(Snapshot {
            why: Why::from(entry),
            position: Position { epoch, seq, important },
            online,
            users: joined.users,
            users_exact: joined.users_exact,
            state: state.into_iter().map(Event::from).collect(),
            totals: totals.into_iter().map(Into::into).collect(),
        }));
        told.append(&mut early);
        if let Some(reply) = self.reply.take() {
            // Who gave up has dropped the other end of the queue too.
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn frame(&mut self, source: Source, frame: v1::Frame, now: Time, draw: Draw<'_>) {
        let header = Header::from(&frame);
        let withheld = Withheld::of(&frame).filter(|_| source == Source::Control);
        let told = &mut self.told;
        if let Some(withheld) = withheld
            && self.model.is_joined()
            && withheld != std::mem::replace(&mut self.withheld, withheld)
        {
            told.push(Happening::Withheld(withheld));
        }
        let mut show = |shown| told.push(happening(shown));
        let events = frame.events.into_iter().map(Event::incoming);
        self.model.frame(&header, source, events, now, draw, &mut show);
        if !self.model.is_joined() {
            return;
        }
        let mut totals = frame.totals;
        self.newest.totals(&mut totals, frame.time_ms);
        if !totals.is_empty() {
            told.push(Happening::Totals(totals.into_iter().map(Into::into).collect()));
        }
        if !frame.dropped.is_empty() {
            told.push(Happening::Dropped(frame.dropped.into_iter().collect()));
        }
        if let Some(online) = frame.online
            && self.newest.online(frame.time_ms)
        {
            told.push(Happening::Online(online));
        }
    }

    pub(super) fn gap(&mut self, gap: v1::Gap) {
        let v1::Gap { first_seq, last_seq, dropped, .. } = gap;
        self.model.gap(first_seq, last_seq);
        let (dropped, why) = (dropped.into_iter().collect(), GapReason::Slow);
        self.told.push(Happening::Gap(Gap { first_seq, last_seq, dropped, why }));
    }

    pub(super) fn missed(&mut self, missed: &v1::MissedNotice, now: Time, draw: Draw<'_>) {
        self.model.missed(missed.to, missed.within_ms, now, draw);
        self.told.push(Happening::Missed { from: missed.from, to: missed.to });
    }

    /// A request about it failed; an error if that is for good.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        temporary: bool,
        now: Time,
        draw: Draw<'_>,
    ) -> Result<(), End> {
        if self.phase != Phase::Joining {
            self.model.failed(&failure.code, failure.retry_after, now);
            self.tell(Happening::Failed(failure));
            return Ok(());
        }
        let wait = failure.retry_after.or(temporary.then_some(REJOIN));
        if let Some(wait) = wait {
            // Never before the time; many are told the same, so they are spread
            // over as long again.
            let more = draw(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
            self.phase = Phase::Out(now + wait + Duration::from_micros(more));
            self.tell(Happening::Failed(failure));
            return Ok(());
        }
        if failure.code == "token_expired" && self.token.renews() && !self.renewed {
            self.renewed = true;
            self.phase = Phase::Out(now);
            return Ok(());
        }
        Err(End::Refused(failure))
    }

    /// Tells who is in.
    pub(super) fn tell(&mut self, happening: Happening) {
        if self.reply.is_none() {
            self.told.push(happening);
        }
    }

    /// What it says now.
    pub(super) fn say(&mut self, now: Time, draw: Draw<'_>) -> Option<Out> {
        if !self.is_joined() {
            return None;
        }
        let say = self.model.say(now, draw)?;
        Some(self.message(say))
    }

    /// What it says before it leaves.
    pub(super) fn farewell(&self) -> Option<Out> {
        self.model.farewell().map(|say| self.message(say))
    }

    fn message(&self, say: Say) -> Out {
        let room = self.name.clone();
        match say {
            Say::Ack(important) => Out::Ack(v1::Ack { room, important }),
            Say::Pull(from, to) => Out::Pull(v1::Pull { room, from, to }),
            Say::Digest { from, to, digest } => {
                let (count, xor) = (digest.count, digest.xor);
                Out::Digest(v1::Digest { room, from, to, count, xor })
            }
        }
    }

    /// What is to be told, and to whom.
    pub(super) fn told(&mut self) -> (mpsc::Sender<Happening>, Vec<Happening>) {
        self.view.write(&self.model);
        (self.happen.clone(), std::mem::take(&mut self.told))
    }

    pub(super) fn tally(&self) -> &Tally {
        self.model.tally()
    }

    /// When there is something to do without a message.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Out(due) => Some(due),
            Phase::Joined => self.model.next_deadline(),
            _ => None,
        }
    }
}

fn happening(shown: Shown<Event>) -> Happening {
    match shown {
        Shown::Event(event) => Happening::Event(event),
        Shown::Skipped { first_seq, last_seq } => {
            let (dropped, why) = (Default::default(), GapReason::Unannounced);
            Happening::Gap(Gap { first_seq, last_seq, dropped, why })
        }
        Shown::Lost { from, to } => Happening::Lost { from, to },
    }
}

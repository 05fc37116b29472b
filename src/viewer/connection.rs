//! The viewer's task: connects, hands messages to rooms, says what they say, and
//! begins anew when the connection ends.
//!
//! One task drives everything; attempts to connect and questions for tokens are
//! futures it polls, so that whatever ends the task ends all of them. Its loop does
//! first what is due ([`Task::step`]), then writes, then waits for the next thing.
//! While a room's happenings are not fetched it does not read.

mod inbound;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};

use super::backoff::Backoff;
use super::choice::{Choice, Plan};
use super::dial::{Attempt, Dials};
use super::happening::{End, Happening};
use super::link::{Closed, DialError, Dialed, Link, Received};
use super::member::{Member, View};
use super::outcome::{JoinError, PublishError, Published};
use super::publishes::Publishes;
use super::stats::Shared;
use super::target::Target;
use super::token::Token;
use super::{Options, Status, Transport};
use crate::clock::Clock;
use crate::engine::time::Time;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;

/// For tokens, before connecting without those that are late.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// What a server may take to read what is written.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// What a server may be late with a ping before it counts as gone. QUIC has its
/// own way to find out.
const SILENCE_GRACE: Duration = Duration::from_secs(15);
/// For the last words.
const GOODBYE: Duration = Duration::from_millis(500);
/// Something to wait for, however long.
const IDLE: Duration = Duration::from_secs(60);

/// A room to join.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) name: String,
    pub(super) token: Token,
    pub(super) happen: mpsc::Sender<Happening>,
    pub(super) reply: oneshot::Sender<Result<(), JoinError>>,
    pub(super) view: View,
}

/// What the viewer's holders want.
#[derive(Debug)]
pub(super) enum Command {
    Join(Box<Join>),
    Leave(String, oneshot::Sender<()>),
    Publish(v1::Publish, oneshot::Sender<Result<Published, PublishError>>),
    Rebind(oneshot::Sender<std::io::Result<()>>),
    /// A room was dropped.
    Look,
    Close(oneshot::Sender<()>),
}

type Dialing = Pin<Box<dyn Future<Output = Attempt> + Send>>;
type Asking = Pin<Box<dyn Future<Output = (String, Result<String, String>)> + Send>>;

/// Where the connection is.
enum Phase {
    Idle,
    /// Until then.
    Waiting(Time),
    /// Tokens are asked for, until then.
    Preparing(Time),
    /// With the joins of these rooms.
    Dialing(Dialing, Vec<String>),
    Live(Box<Live>),
}

struct Live {
    link: Link,
    slot: u16,
    since: Time,
    ping_interval: Duration,
    /// A peer that was silent until then is gone.
    heard_by: Time,
}

/// What the task waited for.
enum Turn {
    Command(Option<Command>),
    Token(String, Result<String, String>),
    Dialed(Box<Attempt>),
    Received(Box<Received>),
    /// A room has a place for what it is told, or it is time for something.
    Woken,
}

/// See the module's documentation.
pub(super) struct Task {
    clock: Clock,
    dials: Dials,
    target: Target,
    choice: Choice,
    backoff: Backoff,
    status: watch::Sender<Status>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    members: BTreeMap<String, Member>,
    publishes: Publishes,
    tokens: FuturesUnordered<Asking>,
    /// What is told to rooms that have no place for it yet.
    outbox: VecDeque<(mpsc::Sender<Happening>, Happening)>,
    stalled: bool,
    sends: Vec<Out>,
    /// To be answered when all is written.
    left: Vec<oneshot::Sender<()>>,
    phase: Phase,
    /// The server is leaving: when to come back, and where to.
    goaway: Option<(Duration, Option<Target>)>,
    /// The last thing that failed without being about a room.
    complaint: Option<String>,
}

fn draw(end: u64) -> u64 {
    if end == 0 { 0 } else { rand::random_range(0..end) }
}

impl Task {
    pub(super) fn new(
        options: &Options,
        (target, dials): (Target, Dials),
        clock: Clock,
        (status, shared): (watch::Sender<Status>, Arc<Shared>),
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            clock,
            dials,
            target,
            choice: Choice::new(options.transport),
            backoff: Backoff::default(),
            status,
            shared,
            commands,
            members: BTreeMap::new(),
            publishes: Publishes::new(options.publishes, options.publish_timeout),
            tokens: FuturesUnordered::new(),
            outbox: VecDeque::new(),
            stalled: false,
            sends: Vec::new(),
            left: Vec::new(),
            phase: Phase::Idle,
            goaway: None,
            complaint: None,
        }
    }

    /// Works until the viewer is closed.
    pub(super) async fn run(mut self) {
        loop {
            let now = self.clock.now();
            self.step(now);
            if let Err(closed) = self.flush().await {
                self.lost(closed, self.clock.now());
                continue;
            }
            match self.turn(self.next_deadline(now)).await {
                Turn::Command(Some(Command::Close(done))) => {
                    self.close().await;
                    // Who does not wait for it does not want to know.
                    let _ = done.send(());
                    return;
                }
                Turn::Command(None) => return,
                Turn::Command(Some(command)) => self.command(command),
                Turn::Token(room, token) => self.got(&room, token),
                Turn::Dialed(attempt) => self.dialed(*attempt, self.clock.now()),
                Turn::Received(received) => self.received(*received),
                Turn::Woken => {}
            }
        }
    }

    /// Waits for the next thing.
    async fn turn(&mut self, wake: Time) -> Turn {
        let (dialing, link) = match &mut self.phase {
            Phase::Dialing(dialing, _) => (Some(dialing), None),
            // Who does not fetch what was told is told no more.
            Phase::Live(live) if self.outbox.is_empty() => (None, Some(&mut live.link)),
            _ => (None, None),
        };
        let full = self.outbox.front().map(|(room, _)| room.clone());
        let wake = self.clock.instant(wake);
        tokio::select! {
            command = self.commands.recv() => Turn::Command(command),
            Some((room, token)) = self.tokens.next(), if !self.tokens.is_empty() => {
                Turn::Token(room, token)
            }
            attempt = dialed(dialing) => Turn::Dialed(Box::new(attempt)),
            received = received(link) => Turn::Received(Box::new(received)),
            () = has_place(full) => Turn::Woken,
            () = sleep_until(wake.into()) => Turn::Woken,
        }
    }

    /// Does what is due.
    fn step(&mut self, now: Time) {
        self.deliver();
        let abandoned = self.members.values().filter(|member| member.is_abandoned());
        let abandoned: Vec<String> = abandoned.map(|member| member.name.clone()).collect();
        abandoned.iter().for_each(|room| self.leave(room));
        self.publishes.expire(now);
        if self.members.is_empty() && !matches!(self.phase, Phase::Live(_) | Phase::Idle) {
            self.phase = Phase::Idle;
            self.tell_status(Status::Idle);
        }
        match &mut self.phase {
            Phase::Idle if self.members.is_empty() => return,
            Phase::Idle => self.prepare(now),
            Phase::Waiting(until) if *until <= now => self.prepare(now),
            Phase::Waiting(_) | Phase::Dialing(..) => {}
            Phase::Preparing(until) => {
                let late = *until <= now;
                self.ask(now);
                if late || !self.members.values().any(Member::is_asking) {
                    self.dial(now);
                }
            }
            Phase::Live(live) => {
                if live.heard_by <= now && self.may_be_silent() {
                    return self.lost(Closed::broken("the server is silent"), now);
                }
                self.ask(now);
                self.speak(now);
            }
        }
        self.collect();
        self.deliver();
    }

    fn prepare(&mut self, now: Time) {
        self.phase = Phase::Preparing(now + TOKEN_TIMEOUT);
        self.tell_status(Status::Connecting);
        self.ask(now);
    }

    /// Asks for the tokens of rooms that are to be joined now.
    fn ask(&mut self, now: Time) {
        for member in self.members.values_mut() {
            if let Some(asked) = member.ask(now) {
                let room = member.name.clone();
                self.tokens.push(Box::pin(async move { (room, asked.await) }));
            }
        }
    }

    fn got(&mut self, room: &str, token: Result<String, String>) {
        if let Some(member) = self.members.get_mut(room)
            && let Err(end) = member.got(token)
        {
            self.end(room, end);
        }
    }

    /// Begins an attempt, with the joins as its first words.
    fn dial(&mut self, now: Time) {
        let (mut joins, mut rooms) = (Vec::new(), Vec::new());
        for member in self.members.values_mut() {
            if let Some(join) = member.join() {
                joins.push(v1::ClientMessage { message: Some(join) });
                rooms.push(member.name.clone());
            }
        }
        if joins.is_empty() {
            // No token yet, or none of the rooms may be asked for yet.
            self.phase = Phase::Preparing(now + TOKEN_TIMEOUT);
            return;
        }
        let plan: Plan = self.choice.plan(now);
        let dialing = self.dials.clone().dial(self.target.clone(), plan, joins);
        self.phase = Phase::Dialing(Box::pin(dialing), rooms);
    }

    fn dialed(&mut self, attempt: Attempt, now: Time) {
        let Dialed { link, welcome } = match attempt.outcome {
            Ok(dialed) => dialed,
            Err(error) => {
                self.shared.count(|stats| stats.failed += 1);
                self.choice.failed();
                return match error {
                    DialError::Failed(closed) => self.ended(&closed, now),
                    DialError::Refused { code, why } => self.dismissed(code, &why),
                };
            }
        };
        let transport = link.transport();
        self.shared.count(|stats| match transport {
            Transport::WebSocket => stats.websocket += 1,
            Transport::Quic => stats.quic += 1,
        });
        self.backoff.connected(now);
        self.choice.won(transport, attempt.raced, now);
        self.tell_status(Status::Connected { transport, address: link.address() });
        let slot = u16::try_from(welcome.ack_slot).unwrap_or(u16::MAX);
        for member in self.members.values_mut() {
            member.connected(slot, link.is_split());
        }
        if let Phase::Dialing(_, rooms) = &mut self.phase {
            // What was left meanwhile.
            rooms.retain(|room| !self.members.get(room).is_some_and(Member::is_joining));
            let leave = |room| Out::Leave(v1::Leave { room });
            self.sends.extend(rooms.drain(..).map(leave));
        }
        let ping_interval = Duration::from_millis(welcome.ping_interval_ms);
        let heard_by = now + ping_interval + SILENCE_GRACE;
        self.phase =
            Phase::Live(Box::new(Live { link, slot, since: now, ping_interval, heard_by }));
    }

    /// Puts together what rooms say now.
    fn speak(&mut self, now: Time) {
        for member in self.members.values_mut() {
            self.sends.extend(member.join());
            if !member.is_joined() {
                continue;
            }
            self.sends.extend(std::iter::from_fn(|| member.say(now, &mut draw)));
            let (unsent, again) = self.publishes.unsent(&member.name);
            self.sends.extend(unsent);
            if again > 0 {
                self.shared.count(|stats| stats.resent += again);
            }
        }
    }

    /// Writes what is to be said.
    async fn flush(&mut self) -> Result<(), Closed> {
        if let Phase::Live(live) = &mut self.phase {
            for message in std::mem::take(&mut self.sends) {
                let sent = timeout(SEND_TIMEOUT, live.link.send(message)).await;
                sent.unwrap_or_else(|_| Err(Closed::broken("sending took too long")))?;
            }
        }
        for left in self.left.drain(..) {
            // Who does not wait for it does not want to know.
            let _ = left.send(());
        }
        Ok(())
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join(join) if self.members.contains_key(&join.name) => {
                let _ = join.reply.send(Err(JoinError::AlreadyJoined));
            }
            Command::Join(join) => {
                let mut member = Member::new(*join);
                if let Phase::Live(live) = &self.phase {
                    member.connected(live.slot, live.link.is_split());
                }
                self.members.insert(member.name.clone(), member);
            }
            Command::Leave(room, done) => {
                self.leave(&room);
                self.left.push(done);
            }
            Command::Publish(event, reply) if self.members.contains_key(&event.room) => {
                if self.publishes.take(event, reply, self.clock.now()) {
                    self.shared.count(|stats| stats.published += 1);
                }
            }
            Command::Publish(_, reply) => {
                let _ = reply.send(Err(PublishError::Closed));
            }
            Command::Rebind(done) => {
                let _ = done.send(self.dials.quic.rebind());
            }
            Command::Look | Command::Close(_) => {}
        }
    }

    fn leave(&mut self, room: &str) {
        let Some(member) = self.members.remove(room) else { return };
        self.publishes.forget(room);
        if member.is_joined() {
            self.sends.extend(member.farewell());
        }
        if matches!(self.phase, Phase::Live(_)) {
            self.sends.push(Out::Leave(v1::Leave { room: room.to_owned() }));
        }
        self.shared.count(|stats| stats.rooms.absorb(member.tally()));
    }

    /// A room is over for this viewer.
    fn end(&mut self, room: &str, end: End) {
        let Some(mut member) = self.members.remove(room) else { return };
        member.end(end);
        self.publishes.forget(room);
        self.shared.count(|stats| stats.rooms.absorb(member.tally()));
        let (happen, told) = member.told();
        self.outbox.extend(told.into_iter().map(|what| (happen.clone(), what)));
    }

    /// The connection is over.
    fn lost(&mut self, closed: Closed, now: Time) {
        if let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Idle) {
            let (held, told) = (now.since(live.since), closed.code.is_some());
            self.choice.lost(live.link.transport(), told, held, now);
            if !self.members.is_empty() {
                self.shared.count(|stats| stats.lost += 1);
            }
        }
        self.ended(&closed, now);
    }

    /// There is no connection: waits, or gives up.
    fn ended(&mut self, closed: &Closed, now: Time) {
        self.sends.clear();
        self.publishes.lost();
        let mut why = closed.why.clone();
        if let Some(complaint) = self.complaint.take() {
            why = format!("{why} ({complaint})");
        }
        if let Some(code) = closed.dismissed() {
            return self.dismissed(code, &why);
        }
        let told = self.goaway.take();
        let jittered = self.backoff.lost(now, rand::random());
        let wait = match told {
            Some((after, to)) => {
                self.target = to.unwrap_or_else(|| self.target.clone());
                after
            }
            None => jittered,
        };
        for member in self.members.values_mut() {
            member.disconnected(&why, wait);
        }
        self.phase = Phase::Waiting(now + wait);
        let untrusted = closed.untrusted;
        self.tell_status(Status::Waiting { why, again_in: wait, untrusted });
        self.collect();
    }

    /// The server does not want this viewer again.
    fn dismissed(&mut self, code: u16, why: &str) {
        self.phase = Phase::Idle;
        let rooms: Vec<String> = self.members.keys().cloned().collect();
        for room in rooms {
            self.end(&room, End::Dismissed { code, reason: why.to_owned() });
        }
        self.tell_status(Status::Idle);
    }

    fn tell_status(&self, status: Status) {
        // Nobody has to listen.
        self.status.send_replace(status);
    }

    /// Puts what rooms are told in line.
    fn collect(&mut self) {
        for member in self.members.values_mut() {
            let (happen, told) = member.told();
            self.outbox.extend(told.into_iter().map(|what| (happen.clone(), what)));
        }
    }

    /// Hands over what there is a place for.
    fn deliver(&mut self) {
        while let Some((happen, what)) = self.outbox.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(what)) = happen.try_send(what) {
                if !std::mem::replace(&mut self.stalled, true) {
                    self.shared.count(|stats| stats.stalls += 1);
                }
                return self.outbox.push_front((happen, what));
            }
        }
        // A server that was not read from has not been silent.
        if std::mem::take(&mut self.stalled)
            && let Phase::Live(live) = &mut self.phase
        {
            live.heard_by = self.clock.now() + live.ping_interval + SILENCE_GRACE;
        }
    }

    async fn close(&mut self) {
        for member in self.members.values() {
            self.sends.extend(member.farewell());
            self.shared.count(|stats| stats.rooms.absorb(member.tally()));
        }
        let goodbye = async {
            // Nobody waits for what comes of it.
            let _ = self.flush().await;
            if let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Idle) {
                live.link.close().await;
            }
            self.dials.quic.drained().await;
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    /// Whether silence means something: QUIC has its own way to find out, and who is
    /// not read from is not heard.
    fn may_be_silent(&self) -> bool {
        let Phase::Live(live) = &self.phase else { return false };
        live.link.transport() == Transport::WebSocket && self.outbox.is_empty()
    }

    /// When there is something to do that nothing from outside starts.
    fn next_deadline(&self, now: Time) -> Time {
        let own = match &self.phase {
            Phase::Idle | Phase::Dialing(..) => None,
            Phase::Waiting(until) | Phase::Preparing(until) => Some(*until),
            Phase::Live(live) => Some(live.heard_by).filter(|_| self.may_be_silent()),
        };
        let rooms = self.members.values().filter_map(Member::next_deadline);
        let rooms = rooms.filter(|_| matches!(self.phase, Phase::Live(_) | Phase::Preparing(_)));
        let all = rooms.chain(own).chain(self.publishes.next_deadline());
        all.fold(now + IDLE, Time::min)
    }
}

async fn dialed(dialing: Option<&mut Dialing>) -> Attempt {
    match dialing {
        Some(dialing) => dialing.await,
        None => std::future::pending().await,
    }
}

async fn received(link: Option<&mut Link>) -> Received {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn has_place(room: Option<mpsc::Sender<Happening>>) {
    match room {
        // One that is gone needs no place.
        Some(room) => drop(room.reserve().await),
        None => std::future::pending().await,
    }
}

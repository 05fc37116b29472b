//! The thread of a [`Crowd`](super::Crowd): one readiness loop and one heap of
//! times for all viewers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tidegate::engine::time::Time;
use tidegate::viewer::room::{Model, Say, Shown, Source};

use super::place::Place;
use super::{Behaviour, HORIZONS_US, Order, Outcome, Plan, Seen, Shared, WAKER};
use crate::connect::{Ports, open};
use crate::hist::{self, Recorded};
use crate::sys;
use crate::token::Signer;
use crate::told::{Event, Mark, Told};
use crate::viewer::Phase;
use crate::wsclient::{self, Parsed, Upgrade};

/// The one read buffer.
const READ_BUFFER: usize = 256 * 1024;
/// A connection that has not joined after this is given up and made anew.
const JOIN_LIMIT_US: u64 = 15_000_000;
/// Between looks at who is behind.
const LOOK_US: u64 = 20_000;

struct Member {
    stream: Option<TcpStream>,
    phase: Phase,
    behaviour: Behaviour,
    room: usize,
    token: String,
    partial: Vec<u8>,
    model: Model<Mark>,
    base: Option<u64>,
    shown: Vec<u32>,
    /// When its connection began, or, where it has none, is to begin.
    since: u64,
    /// When to ask again for a join that was refused for now.
    rejoin: Option<u64>,
    /// Reconnects since it last joined.
    attempts: u32,
    /// Its entry in the heap.
    wake: u64,
    /// Was cut off, and has not caught up.
    returning: bool,
}

pub(super) struct Ring {
    plan: Plan,
    poll: Poll,
    inbox: Receiver<Order>,
    shared: Arc<Shared>,
    members: Vec<Member>,
    places: Vec<Place>,
    times: BinaryHeap<Reverse<(u64, u32)>>,
    ports: Ports,
    random: SmallRng,
    upgrade: Vec<u8>,
    buffer: Vec<u8>,
    target: Option<Vec<u64>>,
    looked: u64,
    comebacks: Histogram<u64>,
    outcome: Outcome,
    finished: bool,
}

impl Ring {
    pub(super) fn new(
        plan: Plan,
        poll: Poll,
        inbox: Receiver<Order>,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let mut ring = Ring {
            poll,
            inbox,
            shared,
            members: Vec::new(),
            places: Vec::new(),
            times: BinaryHeap::new(),
            ports: Ports::new(plan.source),
            random: SmallRng::seed_from_u64(plan.seed),
            upgrade: wsclient::upgrade_request(&plan.addr.to_string(), false),
            buffer: vec![0; READ_BUFFER],
            target: None,
            looked: 0,
            comebacks: hist::new(),
            outcome: Outcome { reached: vec![[0; 3]; plan.rooms.len()], ..Outcome::default() },
            finished: false,
            plan,
        };
        ring.populate()?;
        Ok(ring)
    }

    fn populate(&mut self) -> Result<()> {
        let signer = Signer::new(&self.plan.secret);
        let now = sys::mono_us();
        for (room, (name, viewers)) in self.plan.rooms.iter().enumerate() {
            self.places.push(Place::default());
            for _ in 0..*viewers {
                let index = self.members.len();
                let begin = now + index as u64 * 1_000_000 / self.plan.connect_rate.max(1);
                self.members.push(Member {
                    stream: None,
                    phase: Phase::Closed,
                    behaviour: self.plan.behaviours[index],
                    room,
                    token: signer.viewer(&format!("crowd-{index}"), name)?,
                    partial: Vec::new(),
                    model: Model::default(),
                    base: None,
                    shown: Vec::new(),
                    since: begin,
                    rejoin: None,
                    attempts: 0,
                    wake: u64::MAX,
                    returning: false,
                });
            }
        }
        (0..self.members.len()).for_each(|index| self.arm(index));
        Ok(())
    }

    pub(super) fn run(mut self) -> Result<Outcome> {
        if self.plan.nice != 0 {
            rustix::process::nice(self.plan.nice).context("nice")?;
        }
        let mut events = Events::with_capacity(1024);
        while !self.finished {
            let now = sys::mono_us();
            let next = self.times.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            let wait = next.saturating_sub(now).min(LOOK_US);
            match self.poll.poll(&mut events, Some(Duration::from_micros(wait))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                if event.token() != WAKER {
                    self.ready(event.token().0);
                }
            }
            self.orders();
            self.fire();
            self.look();
        }
        Ok(self.close())
    }

    fn close(mut self) -> Outcome {
        self.outcome.comebacks = Recorded::of(&self.comebacks);
        for member in self.members {
            self.outcome.tally.absorb(member.model.tally());
            self.outcome.viewers.push(Seen {
                room: member.room,
                base: member.base,
                shown: member.shown,
            });
        }
        self.outcome
    }

    fn orders(&mut self) {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Finish => self.finished = true,
                Order::Target(numbers) => (self.target, self.looked) = (Some(numbers), 0),
                Order::Cut { within_us } => self.cut(within_us),
            }
        }
    }

    fn cut(&mut self, within_us: u64) {
        let now = sys::mono_us();
        for index in 0..self.members.len() {
            if self.members[index].stream.is_some() {
                self.leave(index, "cut off by loadtest");
            }
            let delay = self.random.random_range(0..within_us.max(1));
            let member = &mut self.members[index];
            (member.since, member.returning) = (now + delay, true);
            self.arm(index);
        }
        let all = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        self.shared.returning.store(all, Ordering::Release);
    }

    /// Tells the other side how far all are.
    fn look(&mut self) {
        let now = sys::mono_us();
        if now - self.looked < LOOK_US {
            return;
        }
        self.looked = now;
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let used = used.tv_sec.unsigned_abs() * 1_000_000_000 + used.tv_nsec.unsigned_abs();
        self.shared.processor_ns.store(used, Ordering::Relaxed);
        let Some(target) = &self.target else { return };
        let behind = self.members.iter().filter(|member| {
            let important = member.model.position().map_or(0, |at| at.important);
            member.behaviour != Behaviour::Deaf && important < target[member.room]
        });
        let behind = u32::try_from(behind.count()).unwrap_or(u32::MAX);
        self.shared.behind.store(behind, Ordering::Relaxed);
    }

    /// Sees to it that a viewer is looked at when it has something to do.
    fn arm(&mut self, index: usize) {
        let member = &mut self.members[index];
        let next = match member.phase {
            Phase::Closed => Some(member.since),
            Phase::Live => member.model.next_deadline().map(Time::as_micros),
            _ => Some(member.rejoin.unwrap_or(member.since + JOIN_LIMIT_US)),
        };
        if let Some(next) = next
            && next < member.wake
        {
            member.wake = next;
            self.times.push(Reverse((next, u32::try_from(index).unwrap_or(u32::MAX))));
        }
    }

    fn fire(&mut self) {
        let now = sys::mono_us();
        while let Some(&Reverse((at, index))) = self.times.peek()
            && at <= now
        {
            self.times.pop();
            let index = index as usize;
            if self.members[index].wake != at {
                continue;
            }
            self.members[index].wake = u64::MAX;
            if let Err(reason) = self.act(index, now) {
                self.lost(index, &reason);
            }
            self.arm(index);
        }
    }

    /// A viewer's time has come, perhaps.
    fn act(&mut self, index: usize, now: u64) -> Result<(), String> {
        let member = &mut self.members[index];
        match member.phase {
            Phase::Closed if member.since <= now => self.connect(index),
            Phase::Live => self.speak(index, now),
            Phase::Joining if member.rejoin.is_some_and(|at| at <= now) => {
                member.rejoin = None;
                self.ask_to_join(index)
            }
            Phase::Closed => Ok(()),
            _ if member.since + JOIN_LIMIT_US <= now => {
                Err(format!("no answer while {:?}", member.phase))
            }
            _ => Ok(()),
        }
    }

    fn connect(&mut self, index: usize) -> Result<(), String> {
        let opened = open(self.plan.addr, None, &mut self.ports);
        let mut stream = opened.map_err(|error| format!("connect: {error:#}"))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, Token(index), interest);
        registered.map_err(|error| format!("connect: {error}"))?;
        let member = &mut self.members[index];
        // What was left of a message when it went away is void.
        (member.stream, member.partial) = (Some(stream), Vec::new());
        (member.phase, member.since) = (Phase::Connecting, sys::mono_us());
        Ok(())
    }

    /// Its connection is over; it comes back after a while.
    fn lost(&mut self, index: usize, reason: &str) {
        self.leave(index, reason);
        let member = &mut self.members[index];
        let longest = self.plan.backoff_us << member.attempts.min(16);
        member.attempts += 1;
        let wait = self.random.random_range(0..longest.clamp(1, self.plan.max_backoff_us));
        member.since = sys::mono_us() + wait;
        self.arm(index);
    }

    fn leave(&mut self, index: usize, reason: &str) {
        let member = &mut self.members[index];
        member.stream = None;
        member.partial = Vec::new();
        member.rejoin = None;
        if std::mem::replace(&mut member.phase, Phase::Closed) == Phase::Live {
            self.shared.live.fetch_sub(1, Ordering::Relaxed);
        }
        match self.outcome.closed.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.outcome.closed.insert(reason.to_owned(), 1)),
        }
    }

    fn ready(&mut self, index: usize) {
        let Some(member) = self.members.get(index) else { return };
        let outcome = match member.phase {
            Phase::Closed => Ok(()),
            Phase::Connecting => self.connected(index),
            Phase::Live if member.behaviour == Behaviour::Deaf => Ok(()),
            _ => self.receive(index),
        };
        if let Err(reason) = outcome {
            self.lost(index, &reason);
        }
        self.arm(index);
    }

    fn connected(&mut self, index: usize) -> Result<(), String> {
        let member = &mut self.members[index];
        let Some(stream) = &mut member.stream else { return Ok(()) };
        if let Ok(Some(error)) | Err(error) = stream.take_error() {
            return Err(format!("connect: {error}"));
        }
        match stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            Err(error) => return Err(format!("connect: {error}")),
        }
        member.phase = Phase::Upgrading;
        let upgrade = std::mem::take(&mut self.upgrade);
        let written = self.write(index, &upgrade);
        self.upgrade = upgrade;
        written
    }

    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<(), String> {
        let Some(stream) = &mut self.members[index].stream else { return Ok(()) };
        match stream.write(bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err("short write".into()),
            Err(error) => Err(format!("write: {error}")),
        }
    }

    fn send(&mut self, index: usize, message: &serde_json::Value) -> Result<(), String> {
        let text = message.to_string();
        self.write(index, &wsclient::client_frame(wsclient::TEXT, text.as_bytes()))
    }

    fn ask_to_join(&mut self, index: usize) -> Result<(), String> {
        let member = &self.members[index];
        let room = &self.plan.rooms[member.room].0;
        let mut join = json!({"room": room, "token": member.token, "acks": true});
        if let Some(at) = member.model.position() {
            let from = json!({"epoch": at.epoch, "seq": at.seq, "important": at.important});
            join["resume"] = from;
        }
        self.send(index, &json!({ "join": join }))
    }

    /// Says what its model has to say.
    fn speak(&mut self, index: usize, now: u64) -> Result<(), String> {
        loop {
            let random = &mut self.random;
            let mut draw = |end: u64| if end == 0 { 0 } else { random.random_range(0..end) };
            let said = self.members[index].model.say(Time::from_micros(now), &mut draw);
            let Some(say) = said else { return Ok(()) };
            self.say(index, say)?;
        }
    }

    fn say(&mut self, index: usize, say: Say) -> Result<(), String> {
        let member = &self.members[index];
        let room = &self.plan.rooms[member.room].0;
        let silent = member.behaviour != Behaviour::Acknowledges;
        let message = match say {
            Say::Ack(_) | Say::Digest { .. } if silent => return Ok(()),
            Say::Ack(important) => json!({"ack": {"room": room, "important": important}}),
            Say::Pull(from, to) => json!({"pull": {"room": room, "from": from, "to": to}}),
            Say::Digest { from, to, digest } => {
                let (count, xor) = (digest.count, digest.xor);
                let digest = json!({"room": room, "from": from, "to": to, "count": count,
                    "xor": xor});
                json!({ "digest": digest })
            }
        };
        self.send(index, &message)
    }

    /// Reads until the socket is empty.
    fn receive(&mut self, index: usize) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.receive_into(index, &mut buffer);
        self.buffer = buffer;
        outcome
    }

    fn receive_into(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), String> {
        loop {
            let Some(stream) = &mut self.members[index].stream else { return Ok(()) };
            let read = match stream.read(buffer) {
                Ok(0) => return Err("closed without a close frame".into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("read: {error}")),
            };
            let mut partial = std::mem::take(&mut self.members[index].partial);
            let rest = if partial.is_empty() {
                let used = self.consume(index, &buffer[..read])?;
                buffer[used..read].to_vec()
            } else {
                partial.extend_from_slice(&buffer[..read]);
                let used = self.consume(index, &partial)?;
                partial.drain(..used);
                partial
            };
            // Not done after a short read: the end of the connection may stand
            // behind the data, and it is not signalled a second time.
            self.members[index].partial = rest;
        }
    }

    /// Handles what is whole in `bytes`; returns how much that was.
    fn consume(&mut self, index: usize, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        if self.members[index].phase == Phase::Upgrading {
            match wsclient::parse_upgrade(bytes) {
                Upgrade::Partial => return Ok(0),
                Upgrade::Refused(reason) => return Err(reason),
                Upgrade::Agreed { length, .. } => {
                    used = length;
                    self.members[index].phase = Phase::Joining;
                }
            }
        }
        loop {
            match wsclient::parse(&bytes[used..]) {
                Parsed::Partial => return Ok(used),
                Parsed::Bad(reason) => return Err(format!("bad frame: {reason}")),
                Parsed::Frame(frame, length) => {
                    used += length;
                    match frame.opcode {
                        wsclient::TEXT if frame.fin => self.message(index, frame.payload)?,
                        wsclient::PING => {
                            let pong = wsclient::client_frame(wsclient::PONG, frame.payload);
                            self.write(index, &pong)?;
                        }
                        wsclient::CLOSE => return Err(close_reason(frame.payload)),
                        _ => {}
                    }
                }
            }
        }
    }

    fn message(&mut self, index: usize, text: &[u8]) -> Result<(), String> {
        let place = &mut self.places[self.members[index].room];
        let told = place.read(text, &mut self.outcome.conflicts)?;
        let now = sys::mono_us();
        let time = Time::from_micros(now);
        let random = &mut self.random;
        let mut draw = |end: u64| if end == 0 { 0 } else { random.random_range(0..end) };
        let member = &mut self.members[index];
        match &*told {
            Told::Welcome { ack_slot } => {
                member.model.connected(*ack_slot, false);
                return self.ask_to_join(index);
            }
            Told::Joined(joined) => {
                if member.base.is_none() {
                    member.base = Some(joined.important);
                } else {
                    self.outcome.reconnected += 1;
                    self.shared.reconnected.fetch_add(1, Ordering::Relaxed);
                }
                member.model.joined(joined, time, &mut draw, &mut |_| {});
                (member.phase, member.attempts) = (Phase::Live, 0);
                self.shared.live.fetch_add(1, Ordering::Relaxed);
                self.caught_up(index, now);
            }
            Told::Frame(frame) => {
                self.outcome.frames += 1;
                let (seen, room) = (&mut member.shown, member.room);
                let acknowledges = member.behaviour == Behaviour::Acknowledges;
                let outcome = &mut self.outcome;
                let mut show = |shown| {
                    let Shown::Event(Mark { n, sent_us, important: true }) = shown else { return };
                    seen.push(u32::try_from(n).unwrap_or(u32::MAX));
                    let age = now.saturating_sub(sent_us);
                    for (count, horizon) in outcome.reached[room].iter_mut().zip(HORIZONS_US) {
                        *count += u64::from(acknowledges && age <= horizon);
                    }
                };
                let events = frame.events.iter().map(Event::incoming);
                let header = &frame.header;
                let control = Source::Control;
                member.model.frame(header, control, events, time, &mut draw, &mut show);
                self.caught_up(index, now);
            }
            Told::Gap { first_seq, last_seq } => {
                self.outcome.gaps += 1;
                member.model.gap(*first_seq, *last_seq);
            }
            Told::Missed { to, within_ms, .. } => {
                self.outcome.missed += 1;
                member.model.missed(*to, *within_ms, time, &mut draw);
            }
            Told::Ping {} => return self.send(index, &json!({"pong": {}})),
            Told::Goaway { reconnect_after_ms } => {
                self.leave(index, "asked to go away");
                self.members[index].since = now + reconnect_after_ms * 1_000;
            }
            Told::Error { code, retry_after_ms } => {
                *self.outcome.errors.entry(code.clone()).or_default() += 1;
                match retry_after_ms {
                    Some(after) if member.phase == Phase::Joining => {
                        member.rejoin = Some(now + after * 1_000);
                    }
                    None if member.phase == Phase::Joining => {
                        return Err(format!("refused: {code}"));
                    }
                    after => {
                        let after = after.map(Duration::from_millis);
                        member.model.failed(code, after, time);
                    }
                }
            }
        }
        self.speak(index, now)
    }

    fn caught_up(&mut self, index: usize, now: u64) {
        let member = &mut self.members[index];
        if member.returning && member.phase == Phase::Live && member.model.caught_up() {
            member.returning = false;
            self.comebacks.saturating_record(now.saturating_sub(member.since));
            self.shared.returned_us.store(now, Ordering::Relaxed);
            self.shared.returning.fetch_sub(1, Ordering::Release);
        }
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [a, b, text @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            format!("close {code} {}", String::from_utf8_lossy(text))
        }
        _ => "close without a code".into(),
    }
}

//! A worker process: one thread, one readiness loop, many thousand viewers.

mod patience;
mod quic;

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use rustls::ClientConfig;

use self::patience::Patience;
use crate::book::{Answer, Book};
use crate::connect::{self, Connecting, Ports};
use crate::protocol::{Command, Mode, Plan, Report};
use crate::quic::driver::Driver;
use crate::stream::Stream;
use crate::transport::Transport;
use crate::viewer::{Phase, UNCHECKED, Viewer};
use crate::wsclient::{self, Parsed, Upgrade};
use crate::{realtime, sys, token, trust};

/// Nice value while connections are begun. No real-time priority: the kernel keeps
/// those to 95 % of a processor in all, and would have those whose latency is measured
/// wait for 50 ms.
const RUSH: i32 = -20;
/// They are there to be written to: of what they receive, once they are in, only
/// messages of so many bytes at most are looked at.
const RUSH_IGNORES: usize = 512;
/// The one read buffer.
const READ_BUFFER: usize = 256 * 1024;

const STDIN: Token = Token(usize::MAX);
/// UDP sockets, after the viewers'.
const FIRST_UDP: usize = 1 << 32;

/// Runs until the parent says to quit or is gone.
pub(crate) fn run() -> Result<()> {
    sys::die_with_parent()?;
    sys::raise_descriptor_limit();
    let outcome = Worker::new().and_then(|mut worker| worker.run());
    if let Err(error) = &outcome {
        // The parent may be gone already.
        let _ = report(&Report::Fatal(format!("{error:#}")));
    }
    outcome
}

fn report(report: &Report) -> Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    std::io::stdout().lock().write_all(&line).context("reporting to the parent")
}

/// How a viewer's connection is opened: see [`connect::Open`].
fn opener<'a>(
    quic: &'a mut Option<Box<Driver>>,
    tls: Option<&'a Arc<ClientConfig>>,
    addr: SocketAddr,
    registry: &'a Registry,
) -> impl FnMut(&mut Viewer, usize, &mut Ports) -> Result<Option<Stream>> + 'a {
    move |viewer, index, ports| match quic {
        Some(quic) => quic.connect(index).map(|()| None),
        None => connect::tcp(viewer, Token(index), addr, tls, ports, registry).map(Some),
    }
}

struct Worker {
    poll: Poll,
    /// The connections of QUIC viewers, if that is what they are.
    quic: Option<Box<Driver>>,
    /// For WebSocket over TLS.
    tls: Option<Arc<ClientConfig>>,
    input: Vec<u8>,
    buffer: Vec<u8>,
    plan: Option<Box<Plan>>,
    book: Book,
    viewers: Vec<Viewer>,
    /// Join messages of viewers that have not joined, in order.
    joins: Vec<Vec<u8>>,
    upgrade: Vec<u8>,
    pong: Vec<u8>,
    connecting: Option<Connecting>,
    patience: Patience,
    slow_stopped: bool,
    quit: bool,
}

impl Worker {
    fn new() -> Result<Self> {
        let poll = Poll::new()?;
        let stdin = rustix::stdio::stdin();
        rustix::io::ioctl_fionbio(stdin, true).context("making stdin non-blocking")?;
        let fd = rustix::stdio::raw_stdin();
        poll.registry().register(&mut SourceFd(&fd), STDIN, Interest::READABLE)?;
        Ok(Self {
            poll,
            quic: None,
            tls: None,
            input: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            plan: None,
            book: Book::new(0, 0, false),
            viewers: Vec::new(),
            joins: Vec::new(),
            upgrade: Vec::new(),
            pong: wsclient::client_frame(wsclient::TEXT, br#"{"pong":{}}"#),
            connecting: None,
            patience: Patience::default(),
            slow_stopped: false,
            quit: false,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.quit {
            let timeout = if self.connecting.is_some() { 1 } else { 1_000 };
            let timeout = Duration::from_millis(timeout);
            let timeout = self.quic.as_ref().map_or(timeout, |quic| quic.patience(timeout));
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match (event.token(), &mut self.quic) {
                    (STDIN, _) => self.commands()?,
                    (Token(token), Some(quic)) => quic.ready(token),
                    (Token(token), None) => self.ready(token)?,
                }
            }
            self.turn_quic()?;
            for (room, n) in self.book.newly_done() {
                report(&Report::Done { room, n })?;
            }
            self.come_back(sys::mono_us())?;
            self.connect_more()?;
        }
        self.close_quic()
    }

    fn commands(&mut self) -> Result<()> {
        let mut chunk = [0; 65_536];
        loop {
            match rustix::io::read(rustix::stdio::stdin(), &mut chunk) {
                Ok(0) => {
                    self.quit = true;
                    break;
                }
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("reading from the parent"),
            }
        }
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.command(serde_json::from_slice(&line).context("command from the parent")?)?;
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Prepare(plan) => {
                self.prepare(plan)?;
                report(&Report::Prepared)
            }
            Command::Connect => {
                let plan = self.plan.as_ref().context("connect before prepare")?;
                if plan.rush {
                    sys::set_nice(RUSH);
                }
                self.connecting = Some(Connecting::new(plan.source));
                Ok(())
            }
            Command::Window => {
                self.book.open_window(sys::mono_us());
                if let Some(quic) = &mut self.quic {
                    quic.open_window();
                }
                report(&Report::WindowOpen)
            }
            Command::Collect { recordings } => {
                let mut stats = self.book.stats(&self.viewers, recordings);
                stats.returns = self.patience.counts;
                stats.datagrams = self.datagrams();
                report(&Report::Stats(Box::new(stats)))
            }
            Command::SlowRead(reads) => self.slow_read(reads),
            Command::Quit => {
                self.quit = true;
                Ok(())
            }
        }
    }

    fn prepare(&mut self, plan: Box<Plan>) -> Result<()> {
        if plan.priority > 0 {
            realtime::run_first(plan.priority);
        }
        if plan.nice != 0 {
            rustix::process::nice(plan.nice).context("nice")?;
        }
        let groups = plan.shares.iter().map(|share| usize::from(share.group) + 1).max();
        self.book = Book::new(groups.unwrap_or(0), plan.rooms.len(), plan.digest);
        self.upgrade = wsclient::upgrade_request(&plan.addr.to_string(), plan.compress);
        let transport = plan.wire.transport;
        if transport == Transport::Wss {
            self.tls = Some(Arc::new(trust::config(&[b"http/1.1"])?));
        }
        let signer = token::Signer::new(&plan.secret);
        let mut number = 0_u32;
        for share in &plan.shares {
            for _ in 0..share.count {
                let record = number < plan.recorders;
                // A slow viewer is checked too: what it loses must be announced.
                let check = record
                    || (plan.check_every != 0 && number.is_multiple_of(plan.check_every))
                    || (share.slow && plan.check_every != 0);
                let check = match (check, transport) {
                    (false, _) => UNCHECKED,
                    (true, transport) if transport.is_quic() => self.book.add_lane_check(),
                    (true, _) => self.book.add_check(record),
                };
                self.viewers.push(Viewer::new(share.room, share.group, share.slow, check));
                if plan.mode == Mode::Viewer {
                    let room = plan
                        .rooms
                        .get(usize::from(share.room))
                        .ok_or_else(|| anyhow!("no such room in the plan"))?;
                    let token = signer.viewer(&format!("{}{number}", plan.user), room)?;
                    self.joins.push(join_message(transport, room, token));
                }
                number += 1;
            }
        }
        if transport.is_quic() {
            let registry = self.poll.registry();
            let driver = Driver::open(&plan, self.viewers.len(), FIRST_UDP, registry)?;
            self.quic = Some(Box::new(driver));
        }
        self.plan = Some(plan);
        Ok(())
    }

    fn slow_read(&mut self, reads: bool) -> Result<()> {
        self.slow_stopped = !reads;
        for index in 0..self.viewers.len() {
            if !reads || !self.viewers[index].slow {
                continue;
            }
            match &mut self.quic {
                Some(quic) => quic.read_again(index),
                None => self.ready(index)?,
            }
        }
        Ok(())
    }

    fn connect_more(&mut self) -> Result<()> {
        let (Some(connecting), Some(plan)) = (&mut self.connecting, &self.plan) else {
            return Ok(());
        };
        let (quic, tls, registry) = (&mut self.quic, self.tls.as_ref(), self.poll.registry());
        let mut open = opener(quic, tls, plan.addr, registry);
        let Some(news) = connecting.more(plan, &mut self.viewers, &mut open) else {
            return Ok(());
        };
        if matches!(news, Report::Settled { .. }) {
            self.connecting = None;
            self.joins = Vec::new();
        }
        report(&news)
    }

    /// A socket has something to say.
    fn ready(&mut self, index: usize) -> Result<()> {
        let Some(viewer) = self.viewers.get_mut(index) else { return Ok(()) };
        match viewer.phase {
            Phase::Closed => Ok(()),
            Phase::Connecting => self.connected(index),
            Phase::Live if viewer.slow && self.slow_stopped => Ok(()),
            _ => self.receive(index),
        }
    }

    fn connected(&mut self, index: usize) -> Result<()> {
        let viewer = &mut self.viewers[index];
        let Some(stream) = &mut viewer.stream else { return Ok(()) };
        let failed = match (stream.take_error(), stream.peer_addr()) {
            (Ok(Some(error)) | Err(error), _) => Some(error),
            (_, Ok(_)) => None,
            (_, Err(error)) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            (_, Err(error)) => Some(error),
        };
        if let Some(error) = failed {
            self.gone(index, format!("connect: {error}"));
            return Ok(());
        }
        let bare = self.plan.as_ref().is_some_and(|plan| plan.mode == Mode::Bare);
        if bare {
            self.live(index);
            return self.receive(index);
        }
        viewer.phase = Phase::Upgrading;
        match stream.write(&self.upgrade) {
            Ok(n) if n == self.upgrade.len() => {}
            Ok(_) => self.gone(index, "handshake: short write".into()),
            Err(error) => self.gone(index, format!("handshake: {error}")),
        }
        Ok(())
    }

    fn live(&mut self, index: usize) {
        self.patience.joined(&mut self.viewers[index]);
        self.book.joined(&mut self.viewers[index], sys::mono_us());
        if let Some(connecting) = &mut self.connecting {
            connecting.joined();
        }
    }

    /// A connection failed before it was live, or ended after.
    fn gone(&mut self, index: usize, reason: String) {
        if self.returns(index) {
            return;
        }
        let viewer = &mut self.viewers[index];
        viewer.stream = None;
        match std::mem::replace(&mut viewer.phase, Phase::Closed) {
            Phase::Closed => {}
            Phase::Live => self.book.left(viewer, reason),
            _ => {
                if let Some(connecting) = &mut self.connecting {
                    connecting.failed(reason);
                }
            }
        }
    }

    /// Reads until the socket is empty.
    fn receive(&mut self, index: usize) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.receive_into(index, &mut buffer);
        self.buffer = buffer;
        if let Some(reason) = outcome? {
            self.gone(index, reason);
        }
        Ok(())
    }

    fn receive_into(&mut self, index: usize, buffer: &mut [u8]) -> Result<Option<String>> {
        loop {
            let viewer = &mut self.viewers[index];
            let Some(stream) = &mut viewer.stream else { return Ok(None) };
            let mut kept = 0;
            if !viewer.partial.is_empty() {
                let partial = std::mem::take(&mut viewer.partial);
                if partial.len() >= buffer.len() / 2 {
                    // A frame larger than the shared buffer: collected aside.
                    return self.receive_large(index, partial);
                }
                kept = partial.len();
                buffer[..kept].copy_from_slice(&partial);
            }
            let read = match stream.read(&mut buffer[kept..]) {
                Ok(0) => return Ok(Some("closed without a close frame".into())),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.keep(index, &buffer[..kept]);
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    self.keep(index, &buffer[..kept]);
                    continue;
                }
                Err(error) => return Ok(Some(format!("read: {error}"))),
            };
            self.book.read(viewer, read);
            let filled = kept + read;
            let full = filled == buffer.len();
            let used = match self.consume(index, &buffer[..filled])? {
                Ok(used) => used,
                Err(reason) => return Ok(Some(reason)),
            };
            self.keep(index, &buffer[used..filled]);
            // A short read has emptied the socket (epoll(7)).
            if !full {
                return Ok(None);
            }
        }
    }

    fn receive_large(&mut self, index: usize, mut partial: Vec<u8>) -> Result<Option<String>> {
        loop {
            let viewer = &mut self.viewers[index];
            let Some(stream) = &mut viewer.stream else { return Ok(None) };
            let start = partial.len();
            partial.resize(start + READ_BUFFER, 0);
            let read = match stream.read(&mut partial[start..]) {
                Ok(0) => return Ok(Some("closed without a close frame".into())),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    partial.truncate(start);
                    viewer.partial = partial;
                    return Ok(None);
                }
                Err(error) => return Ok(Some(format!("read: {error}"))),
            };
            self.book.read(viewer, read);
            partial.truncate(start + read);
            let used = match self.consume(index, &partial)? {
                Ok(used) => used,
                Err(reason) => return Ok(Some(reason)),
            };
            partial.drain(..used);
            if partial.is_empty() {
                return self.receive_again(index);
            }
        }
    }

    /// After a large frame: back to the shared buffer on the next readiness, for
    /// which the socket is read to its end here.
    fn receive_again(&mut self, index: usize) -> Result<Option<String>> {
        let mut buffer = vec![0; READ_BUFFER];
        self.receive_into(index, &mut buffer)
    }

    fn keep(&mut self, index: usize, rest: &[u8]) {
        if !rest.is_empty() {
            self.viewers[index].partial = rest.to_vec();
        }
    }

    /// Handles what is whole in `bytes`: how much was used, or why to hang up.
    fn consume(&mut self, index: usize, bytes: &[u8]) -> Result<Result<usize, String>> {
        let mut used = 0;
        if self.viewers[index].phase == Phase::Upgrading {
            match wsclient::parse_upgrade(bytes) {
                Upgrade::Partial => return Ok(Ok(0)),
                Upgrade::Refused(reason) => return Ok(Err(reason)),
                Upgrade::Agreed { length, compressed } => {
                    used = length;
                    self.viewers[index].compressed = compressed;
                    self.viewers[index].phase = Phase::Joining;
                    if let Err(reason) = self.ask_to_join(index) {
                        return Ok(Err(reason));
                    }
                }
            }
        }
        let now = sys::mono_us();
        loop {
            match wsclient::parse(&bytes[used..]) {
                Parsed::Partial => return Ok(Ok(used)),
                Parsed::Bad(reason) => return Ok(Err(format!("bad frame: {reason}"))),
                Parsed::Frame(frame, length) => {
                    used += length;
                    if let Err(reason) = self.frame(index, frame, now) {
                        return Ok(Err(reason));
                    }
                }
            }
        }
    }

    fn frame(&mut self, index: usize, frame: wsclient::Frame<'_>, now: u64) -> Result<(), String> {
        match frame.opcode {
            wsclient::TEXT if frame.fin => {}
            wsclient::PING => {
                let pong = wsclient::client_frame(wsclient::PONG, frame.payload);
                return self.write(index, &pong);
            }
            wsclient::PONG => return Ok(()),
            wsclient::CLOSE => return Err(close_reason(frame.payload)),
            opcode => return Err(format!("frame with opcode {opcode}, fin {}", frame.fin)),
        }
        let viewer = &mut self.viewers[index];
        if frame.rsv1 && !viewer.compressed {
            return Err("compressed without agreement".into());
        }
        let rush = self.plan.as_ref().is_some_and(|plan| plan.rush);
        if rush && viewer.phase == Phase::Live && frame.payload.len() > RUSH_IGNORES {
            return Ok(());
        }
        match self.book.message(viewer, frame.payload, frame.rsv1, now) {
            Answer::None => Ok(()),
            Answer::Joined => {
                self.live(index);
                Ok(())
            }
            Answer::Pong => {
                let pong = std::mem::take(&mut self.pong);
                let written = self.write(index, &pong);
                self.pong = pong;
                written
            }
            Answer::Later(wait) => self.refused_for_now(index, wait, now),
            Answer::Refused(reason) if viewer.phase == Phase::Live => {
                self.book.fail(reason);
                Ok(())
            }
            Answer::Refused(reason) => Err(reason),
        }
    }

    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<(), String> {
        if let Some(quic) = &mut self.quic {
            return quic.say(index, bytes);
        }
        let Some(stream) = &mut self.viewers[index].stream else { return Ok(()) };
        match stream.write(bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err("short write".into()),
            Err(error) => Err(format!("write: {error}")),
        }
    }
}

/// What a viewer says first, as its transport wants it.
fn join_message(transport: Transport, room: &str, token: String) -> Vec<u8> {
    if transport.is_quic() {
        return quic::join(room, token);
    }
    let join = serde_json::json!({"join": {"room": room, "token": token}}).to_string();
    wsclient::client_frame(wsclient::TEXT, join.as_bytes())
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

//! Publishers that pay no attention to levels: some keep-alive connections, each
//! with one request outstanding, driven by one thread.
//!
//! With no rate they are closed loops, by which capacity is found: a connection
//! sends its next batch when it has the answer to the last. With a rate they are
//! as near to an open loop as a bounded number of connections gets: batches fall
//! due by the clock whatever the server does, and one that finds no connection
//! free within [`PATIENCE_US`] is offered but never sent, and counted so.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde::Deserialize;

use super::mix::{MIX, Traffic};
use super::tally::Tally;
use crate::sys;
use crate::token::Signer;

/// A batch that could not be sent for so long is given up.
const PATIENCE_US: u64 = 100_000;
/// Applications that the connections are shared between.
const APPLICATIONS: usize = 8;

/// What to send.
#[derive(Debug, Clone)]
pub(super) struct FloodPlan {
    pub(super) addr: SocketAddr,
    pub(super) secret: String,
    pub(super) room: String,
    /// Names the run in ids.
    pub(super) run: u64,
    /// Tells this source from others of the run.
    pub(super) source: u32,
    pub(super) users: u32,
    /// Events of one request.
    pub(super) batch: usize,
    pub(super) connections: usize,
    /// Events per second; `None`: as fast as answers come.
    pub(super) rate: Option<f64>,
}

/// A flood under way; ends with this value.
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tally>>>,
}

impl Flood {
    /// Begins at once.
    pub(super) fn start(plan: FloodPlan) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            sys::run_later();
            Pump::new(plan)?.run(&told)
        });
        Flood { stop, thread: Some(thread) }
    }

    /// Whether it ended by itself, which only an error makes it do.
    pub(super) fn ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends it; what is still unanswered is not waited for.
    pub(super) fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(tally)) => tally,
            Some(Err(_)) => Err(anyhow!("a flooding thread panicked")),
            None => Err(anyhow!("a flood ends once")),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Connection {
    stream: Option<TcpStream>,
    head: String,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Kinds of the outstanding batch, by index into [`MIX`].
    parts: Vec<u8>,
    sent: u64,
    open: bool,
}

struct Pump {
    plan: FloodPlan,
    poll: Poll,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    traffic: Traffic,
    body: Vec<u8>,
    tally: Tally,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    results: Vec<Outcome<'a>>,
    #[serde(borrow)]
    error: Option<Refused<'a>>,
}

#[derive(Deserialize)]
struct Outcome<'a> {
    status: &'a str,
    code: Option<&'a str>,
}

#[derive(Deserialize)]
struct Refused<'a> {
    code: &'a str,
}

impl Pump {
    fn new(plan: FloodPlan) -> Result<Self> {
        let poll = Poll::new()?;
        let signer = Signer::new(&plan.secret);
        let mut connections = Vec::new();
        for index in 0..plan.connections {
            let name = format!("flood-{}-{}", plan.source, index % APPLICATIONS);
            let head = format!(
                "POST /v1/rooms/{}/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nContent-Length: ",
                plan.room,
                plan.addr,
                signer.application(&name)?
            );
            connections.push(Connection {
                stream: None,
                head,
                out: Vec::new(),
                written: 0,
                input: Vec::new(),
                parts: Vec::new(),
                sent: 0,
                open: false,
            });
        }
        let idle = (0..connections.len()).collect();
        let traffic = Traffic::new(plan.run, plan.source, plan.users);
        let tally = Tally::default();
        Ok(Self { plan, poll, connections, idle, traffic, body: Vec::new(), tally })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Tally> {
        let mut events = Events::with_capacity(1_024);
        let started = sys::mono_us();
        let step = self.plan.rate.map(|rate| self.plan.batch as f64 / rate * 1e6);
        let mut due = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let now = sys::mono_us();
            match step {
                None => {
                    while let Some(index) = self.idle.pop_front() {
                        self.send(index)?;
                    }
                }
                Some(step) => {
                    let by_now = ((now - started) as f64 / step) as u64;
                    let given_up = PATIENCE_US as f64 / step;
                    while due < by_now {
                        if let Some(index) = self.idle.pop_front() {
                            self.send(index)?;
                        } else if by_now - due > given_up as u64 {
                            self.tally.offered += self.plan.batch as u64;
                            self.tally.unsent += self.plan.batch as u64;
                        } else {
                            break;
                        }
                        due += 1;
                    }
                }
            }
            match self.poll.poll(&mut events, Some(Duration::from_millis(1))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                self.ready(event.token().0)?;
            }
        }
        self.tally.seconds = (sys::mono_us() - started) as f64 / 1e6;
        Ok(self.tally)
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        self.body.clear();
        self.body.extend_from_slice(b"{\"events\":[");
        connection.parts.clear();
        for _ in 0..self.plan.batch {
            let draw = self.traffic.draw();
            connection.parts.push(u8::try_from(draw.part).unwrap_or(0));
            self.traffic.write(&mut self.body, draw);
            self.tally.offered_by[draw.part] += 1;
        }
        self.body.extend_from_slice(b"]}");
        self.tally.offered += self.plan.batch as u64;
        self.tally.sent += self.plan.batch as u64;
        self.tally.requests += 1;
        connection.out.clear();
        connection.out.extend_from_slice(connection.head.as_bytes());
        write!(connection.out, "{}\r\n\r\n", self.body.len())?;
        connection.out.extend_from_slice(&self.body);
        connection.written = 0;
        connection.input.clear();
        connection.sent = sys::mono_us();
        connection.open = true;
        if connection.stream.is_none() {
            let mut stream = TcpStream::connect(self.plan.addr).context("connecting a flood")?;
            // Refused only on a socket that failed already, which `write` tells.
            let _ = stream.set_nodelay(true);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            connection.stream = Some(stream);
        }
        self.push(index)
    }

    /// Writes on. What does not go now goes when the socket is ready again.
    fn push(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return Ok(()) };
        while connection.written < connection.out.len() {
            match stream.write(&connection.out[connection.written..]) {
                Ok(n) => connection.written += n,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.broken(index, &format!("write: {}", error.kind())),
            }
        }
        Ok(())
    }

    fn ready(&mut self, index: usize) -> Result<()> {
        self.push(index)?;
        loop {
            let connection = &mut self.connections[index];
            let Some(stream) = &mut connection.stream else { return Ok(()) };
            let mut chunk = [0; 16_384];
            match stream.read(&mut chunk) {
                Ok(0) => return self.broken(index, "closed"),
                Ok(n) => connection.input.extend_from_slice(&chunk[..n]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.broken(index, &format!("read: {}", error.kind())),
            }
        }
        let connection = &mut self.connections[index];
        // Readiness is told in advance of nothing, too.
        if !connection.open && connection.input.is_empty() {
            return Ok(());
        }
        let mut input = std::mem::take(&mut connection.input);
        let Some((status, body)) = whole(&input)? else {
            connection.input = input;
            return Ok(());
        };
        if !connection.open {
            bail!("an answer that nobody asked for");
        }
        connection.open = false;
        self.tally.answer(sys::mono_us() - connection.sent);
        let answer: Answer<'_> =
            serde_json::from_slice(body).with_context(|| format!("answer {status}"))?;
        if let Some(error) = answer.error {
            self.tally.refuse(error.code, connection.parts.len() as u64);
        } else {
            for (outcome, part) in answer.results.iter().zip(&connection.parts) {
                if outcome.status == "accepted" {
                    self.tally.accepted += 1;
                    self.tally.accepted_by[usize::from(*part)] += 1;
                } else {
                    self.tally.refuse(outcome.code.unwrap_or("none"), 1);
                }
            }
        }
        input.clear();
        connection.input = input;
        self.idle.push_back(index);
        Ok(())
    }

    /// The connection is gone, and with it what it had under way.
    fn broken(&mut self, index: usize, why: &str) -> Result<()> {
        let connection = &mut self.connections[index];
        connection.stream = None;
        if std::mem::take(&mut connection.open) {
            self.tally.refuse(&format!("connection {why}"), connection.parts.len() as u64);
            self.idle.push_back(index);
        }
        Ok(())
    }
}

/// Status and body of an answer, once all of it is there.
fn whole(input: &[u8]) -> Result<Option<(u16, &[u8])>> {
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end]).context("answer's head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let length = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    let (Some(status), Some(length)) = (status, length) else {
        bail!("answer without status or length");
    };
    Ok(input.get(end + 4..end + 4 + length).map(|body| (status, body)))
}

/// Accepted events of the mix by name, for reports.
pub(super) fn by_kind(counts: &[u64; MIX.len()]) -> BTreeMap<&'static str, u64> {
    MIX.iter().zip(counts).map(|(part, count)| (part.kind, *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_whole_when_its_last_byte_is_there() {
        let answer = b"HTTP/1.1 429 Busy\r\nContent-Length: 4\r\n\r\nabcd";
        for cut in 0..answer.len() {
            assert_eq!(whole(&answer[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(whole(answer).unwrap(), Some((429, &b"abcd"[..])));
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// A server that answers every request after `wait`, half of it refused.
    fn serve(wait: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut chunk = [0; 65_536];
                    while stream.read(&mut chunk).is_ok_and(|n| n > 0) {
                        std::thread::sleep(wait);
                        let body = "{\"results\":[{\"id\":\"a\",\"status\":\"accepted\"},\
                                    {\"id\":\"b\",\"status\":\"rejected\",\"code\":\"overloaded\"}]}";
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        addr
    }

    #[test]
    fn what_finds_no_connection_is_offered_but_not_sent() {
        let plan = FloodPlan {
            addr: serve(Duration::from_millis(100)),
            secret: "0123456789abcdef0123456789abcdef".into(),
            room: "r".into(),
            run: 1,
            source: 1,
            users: 10,
            batch: 2,
            connections: 2,
            rate: Some(1_000.0),
        };
        let flood = Flood::start(plan);
        std::thread::sleep(Duration::from_millis(800));
        assert!(!flood.ended());
        let tally = flood.stop().unwrap();
        assert_eq!(tally.offered, tally.sent + tally.unsent);
        assert!(tally.unsent > tally.sent, "{tally:?}");
        assert!(tally.accepted > 0 && tally.refused["overloaded"] == tally.accepted, "{tally:?}");
    }
}

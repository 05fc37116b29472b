//! Publishers that do not give up: each important event has an id of its own and
//! is sent again with it until it is answered, also across the server's death.
//! What was answered is kept, to be compared with what is in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Deserialize;

use crate::hist::{self, Recorded};
use crate::http::Client;
use crate::server::Server;
use crate::sys;
use crate::viewer::marked_payload;

/// Wait before an event without an answer is sent again.
const AGAIN_MS: u64 = 20;
/// Longest wait before a refused one is.
const LONGEST_MS: u64 = 1_000;

/// What to send.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Rooms with the kind of their important events, served in turn.
    pub(crate) rooms: Vec<(String, &'static str)>,
    /// Important events per second, all rooms together.
    pub(crate) important: f64,
    /// Talk per second, all rooms together: sent once, lost if unanswered.
    pub(crate) talk: f64,
    /// Publishers, each with one connection and its own rooms.
    pub(crate) publishers: usize,
    /// Bytes of a payload.
    pub(crate) bytes: usize,
    /// Of the waits.
    pub(crate) seed: u64,
}

/// An event that was answered `accepted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Which of the room's important events.
    pub(crate) n: u32,
    /// The number answered.
    pub(crate) seq: u64,
}

/// What the publishers were told.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Per room, in the order of the answers.
    pub(crate) accepted: Vec<Vec<Accepted>>,
    /// Refused for good, by code.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Refused for a while and sent again, by code.
    pub(crate) postponed: BTreeMap<String, u64>,
    /// Important events sent again because no answer came.
    pub(crate) unanswered: u64,
    /// Talk that was accepted.
    pub(crate) talk: u64,
    /// From sending to the answer, of important events answered at once.
    pub(crate) answers: Recorded,
}

impl Outcome {
    /// Important events accepted.
    pub(crate) fn count(&self) -> u64 {
        self.accepted.iter().map(|room| room.len() as u64).sum()
    }

    fn absorb(&mut self, other: Outcome) {
        for (mine, theirs) in self.accepted.iter_mut().zip(other.accepted) {
            mine.extend(theirs);
        }
        for (code, count) in other.refused {
            *self.refused.entry(code).or_default() += count;
        }
        for (code, count) in other.postponed {
            *self.postponed.entry(code).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.talk += other.talk;
        self.answers.absorb(&other.answers);
    }
}

/// Running publishers.
pub(crate) struct Upstream {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcome>>,
    rooms: usize,
}

impl Upstream {
    /// They begin.
    pub(crate) fn start(server: &Server, plan: &Plan) -> Result<Upstream> {
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        let publishers = plan.publishers.clamp(1, plan.rooms.len());
        for index in 0..publishers {
            let publisher = Publisher {
                client: server.publisher()?,
                rooms: (index..plan.rooms.len()).step_by(publishers).collect(),
                plan: plan.clone(),
                next: vec![0; plan.rooms.len()],
                random: SmallRng::seed_from_u64(plan.seed ^ (index as u64) << 32),
                stop: Arc::clone(&stop),
                count: Arc::clone(&accepted),
                answers: hist::new(),
                outcome: Outcome {
                    accepted: vec![Vec::new(); plan.rooms.len()],
                    ..Outcome::default()
                },
            };
            let share = 1.0 / publishers as f64;
            let name = format!("publisher-{index}");
            let thread = std::thread::Builder::new().name(name);
            threads.push(thread.spawn(move || publisher.run(share))?);
        }
        Ok(Upstream { stop, accepted, threads, rooms: plan.rooms.len() })
    }

    /// Important events accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// No further events; returns when all that were begun are answered.
    pub(crate) fn finish(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let accepted = vec![Vec::new(); self.rooms];
        let mut outcome = Outcome { accepted, ..Outcome::default() };
        for thread in self.threads {
            outcome.absorb(thread.join().map_err(|_| anyhow!("a publisher panicked"))?);
        }
        Ok(outcome)
    }
}

struct Publisher {
    client: Client,
    rooms: Vec<usize>,
    plan: Plan,
    /// Counter of each room's next event.
    next: Vec<u32>,
    random: SmallRng,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    answers: hdrhistogram::Histogram<u64>,
    outcome: Outcome,
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<EventResult>,
}

#[derive(Deserialize)]
struct EventResult {
    status: String,
    seq: Option<u64>,
    #[serde(default)]
    code: String,
    retry_after_ms: Option<u64>,
}

/// What became of one attempt.
enum Attempt {
    Accepted(u64),
    /// To be tried again after so many milliseconds.
    Later(u64, String),
    Refused(String),
    /// Nobody knows.
    Unanswered,
}

impl Publisher {
    fn run(mut self, share: f64) -> Outcome {
        let (important, talk) = (self.plan.important * share, self.plan.talk * share);
        let began = sys::mono_us();
        let due = |count: u64, rate: f64| {
            if rate <= 0.0 { u64::MAX } else { began + (count as f64 / rate * 1e6) as u64 }
        };
        let (mut sent, mut talked) = (0_u64, 0_u64);
        while !self.stop.load(Ordering::Relaxed) {
            let (next, next_talk) = (due(sent, important), due(talked, talk));
            let wait = next.min(next_talk).saturating_sub(sys::mono_us());
            if wait > 0 {
                std::thread::sleep(Duration::from_micros(wait.min(50_000)));
                continue;
            }
            if next <= next_talk {
                let room = self.rooms[sent as usize % self.rooms.len()];
                sent += 1;
                self.important(room);
            } else {
                let room = self.rooms[talked as usize % self.rooms.len()];
                self.talk(room, talked);
                talked += 1;
            }
        }
        self.outcome.answers = Recorded::of(&self.answers);
        self.outcome
    }

    /// Sends an important event until it is answered for good.
    fn important(&mut self, room: usize) {
        let n = self.next[room];
        self.next[room] += 1;
        let (name, kind) = &self.plan.rooms[room];
        let (name, kind) = (name.clone(), *kind);
        let sent = sys::mono_us();
        let payload = self.payload(room, u64::from(n), sent);
        let event = format!(
            r#"{{"events":[{{"id":"{name}-{n}","kind":"{kind}","user":"loadtest","key":"k","payload":{payload}}}]}}"#
        );
        let mut again = false;
        loop {
            let wait = match self.attempt(&name, &event) {
                Attempt::Accepted(seq) => {
                    if !again {
                        self.answers.saturating_record(sys::mono_us() - sent);
                    }
                    self.outcome.accepted[room].push(Accepted { n, seq });
                    self.count.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Attempt::Refused(code) => {
                    *self.outcome.refused.entry(code).or_default() += 1;
                    return;
                }
                Attempt::Later(ms, code) => {
                    *self.outcome.postponed.entry(code).or_default() += 1;
                    ms.min(LONGEST_MS)
                }
                Attempt::Unanswered => {
                    self.outcome.unanswered += 1;
                    AGAIN_MS
                }
            };
            again = true;
            let jitter = self.random.random_range(0..AGAIN_MS);
            std::thread::sleep(Duration::from_millis(wait + jitter));
        }
    }

    fn talk(&mut self, room: usize, number: u64) {
        let name = self.plan.rooms[room].0.clone();
        let payload = self.payload(room, number, sys::mono_us());
        let event = format!(
            r#"{{"events":[{{"id":"{name}-talk-{number}","kind":"chat","user":"loadtest","payload":{payload}}}]}}"#
        );
        if let Attempt::Accepted(_) = self.attempt(&name, &event) {
            self.outcome.talk += 1;
        }
    }

    fn payload(&self, room: usize, n: u64, sent: u64) -> String {
        marked_payload(u16::try_from(room).unwrap_or(u16::MAX), n, sent, self.plan.bytes)
    }

    fn attempt(&mut self, room: &str, body: &str) -> Attempt {
        let path = format!("/v1/rooms/{room}/events");
        let (status, body) = match self.client.post(&path, body.as_bytes()) {
            Ok(answer) => answer,
            Err(_) => return Attempt::Unanswered,
        };
        // The server is leaving, or does not take part yet.
        if status == 503 || status == 429 {
            return Attempt::Later(AGAIN_MS, format!("http {status}"));
        }
        if status != 200 {
            return Attempt::Refused(format!("http {status}"));
        }
        let answer = serde_json::from_slice(&body).map(|Answer { results }| results);
        match answer.ok().and_then(|mut results| results.pop()) {
            Some(EventResult { status, seq: Some(seq), .. }) if status == "accepted" => {
                Attempt::Accepted(seq)
            }
            Some(EventResult { retry_after_ms: Some(ms), code, .. }) => Attempt::Later(ms, code),
            Some(EventResult { code, .. }) => Attempt::Refused(code),
            None => Attempt::Refused("unreadable answer".into()),
        }
    }
}

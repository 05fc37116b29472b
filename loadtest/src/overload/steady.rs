//! The steady light traffic beside the load: important events into the hot room,
//! and chat with some important events into each small room. Every event is
//! marked, so that viewers count each, and each room has a thread of its own that
//! waits for every answer: an event's number is its place among those sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::hist;
use crate::http::Client;
use crate::publish::publish;
use crate::server::Server;
use crate::token::Signer;
use crate::viewer::marked_payload;
use crate::{realtime, sys};

/// Real-time priority of the senders, as of the small rooms' viewers.
pub(super) const FIRST: u8 = 2;

const PAUSED: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// Of the events in small rooms one in so many is important.
const IMPORTANT_EVERY: u64 = 3;
/// Bytes of a payload.
const PAYLOAD: usize = 120;

/// What became of a room's steady events since the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    /// Accepted: important ones, others.
    pub(super) accepted: [u64; 2],
    /// Refused or unanswered by code: important ones, others.
    pub(super) refused: [BTreeMap<String, u64>; 2],
    /// Answer times in microseconds.
    pub(super) answers: crate::hist::Recorded,
}

impl Account {
    fn refuse(&mut self, important: bool, code: &str) {
        *self.refused[usize::from(!important)].entry(code.to_owned()).or_default() += 1;
    }

    /// Adds another room's.
    pub(super) fn absorb(&mut self, other: &Account) {
        for lane in 0..2 {
            self.accepted[lane] += other.accepted[lane];
            for (code, count) in &other.refused[lane] {
                *self.refused[lane].entry(code.clone()).or_default() += count;
            }
        }
        self.answers.absorb(&other.answers);
    }
}

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    account: Mutex<Account>,
    /// Held while a request is under way.
    busy: Mutex<()>,
}

/// All steady senders; they end with this value.
pub(super) struct Steady {
    rooms: Vec<Arc<Shared>>,
    threads: Vec<JoinHandle<()>>,
    /// They run before all others on their processors.
    pub(super) first: bool,
}

impl Steady {
    /// Paused senders: room 0 is the hot one, with only important events.
    pub(super) fn start(
        server: &Server,
        rooms: &[String],
        hot_rate: f64,
        small_rate: f64,
    ) -> Result<Steady> {
        let first = std::thread::spawn(|| realtime::run_first(FIRST)).join().unwrap_or(false);
        let mut steady = Steady { rooms: Vec::new(), threads: Vec::new(), first };
        let run = sys::mono_us();
        for (index, room) in rooms.iter().enumerate() {
            let shared = Arc::new(Shared::default());
            let token = Signer::new(&server.secret).application("steady")?;
            let sender = Sender {
                client: Client::new(server.addr, Some(token)),
                shared: Arc::clone(&shared),
                room: room.clone(),
                index: u16::try_from(index)?,
                run,
                step_us: (1e6 / if index == 0 { hot_rate } else { small_rate }) as u64,
                hot: index == 0,
            };
            steady.rooms.push(shared);
            steady.threads.push(std::thread::spawn(move || sender.run()));
        }
        Ok(steady)
    }

    /// They send.
    pub(super) fn resume(&self) {
        for room in &self.rooms {
            room.state.store(RUNNING, Ordering::SeqCst);
        }
    }

    /// They stop, and have all their answers.
    pub(super) fn pause(&self) {
        for room in &self.rooms {
            room.state.store(PAUSED, Ordering::SeqCst);
        }
        for room in &self.rooms {
            drop(room.busy.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// What happened since the last call, by room.
    pub(super) fn take(&self) -> Vec<Account> {
        let take = |room: &Arc<Shared>| {
            std::mem::take(&mut *room.account.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.rooms.iter().map(take).collect()
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        for room in &self.rooms {
            room.state.store(ENDED, Ordering::SeqCst);
        }
        for thread in self.threads.drain(..) {
            // A sender that panicked has told so.
            let _ = thread.join();
        }
    }
}

struct Sender {
    client: Client,
    shared: Arc<Shared>,
    room: String,
    index: u16,
    run: u64,
    step_us: u64,
    hot: bool,
}

impl Sender {
    fn run(mut self) {
        realtime::run_first(FIRST);
        let mut number = 0_u64;
        let mut next = None;
        loop {
            match self.shared.state.load(Ordering::SeqCst) {
                ENDED => return,
                PAUSED => {
                    next = None;
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                _ => {}
            }
            let now = sys::mono_us();
            // Rooms are spread over the interval, so that they do not send at once.
            let phase = self.step_us * u64::from(self.index % 21) / 21;
            let due = *next.get_or_insert(now + phase);
            if now < due {
                std::thread::sleep(Duration::from_micros((due - now).min(5_000)));
                continue;
            }
            next = Some(due + self.step_us);
            self.send(number, due);
            number += 1;
        }
    }

    fn send(&mut self, number: u64, due: u64) {
        let shared = Arc::clone(&self.shared);
        let _busy = shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.state.load(Ordering::SeqCst) != RUNNING {
            return;
        }
        let important = self.hot || number.is_multiple_of(IMPORTANT_EVERY);
        let event = format!(
            "{{\"id\":\"{:x}-{}-{number}\",\"kind\":\"{}\",\"user\":\"s{}\",\"payload\":{}}}",
            self.run,
            self.index,
            if important { "red_packet" } else { "chat" },
            number % 1_000,
            marked_payload(self.index, number, due, PAYLOAD)
        );
        let begun = sys::mono_us();
        let answer = publish(&mut self.client, &self.room, &[event]);
        let took = sys::mono_us() - begun;
        let mut account = shared.account.lock().unwrap_or_else(PoisonError::into_inner);
        let mut one = hist::new();
        one.saturating_record(took);
        account.answers.absorb(&hist::Recorded::of(&one));
        match answer {
            Ok(answer) if answer.results[0].accepted() => {
                account.accepted[usize::from(!important)] += 1;
            }
            Ok(answer) => {
                let code = answer.results[0].code.clone().unwrap_or_default();
                account.refuse(important, &code);
            }
            // A whole request that was refused, or none at all: the reason tells.
            Err(error) => account.refuse(important, &format!("{error:#}")),
        }
    }
}

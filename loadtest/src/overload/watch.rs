//! What the server says of itself while it is loaded: level and rung of every
//! shard every 100 ms, by the operators' port (`GET /admission`, which costs a
//! shard one message; a scrape of `/metrics` copies every counter), and memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::Client;
use crate::server::Server;
use crate::sys;

const EVERY: Duration = Duration::from_millis(100);

/// One look.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// Monotonic clock.
    pub(super) at_us: u64,
    /// Shards, as they answered.
    pub(super) shards: Vec<Shard>,
    /// Whether one of them did not answer.
    pub(super) silent: bool,
    /// Resident KiB.
    pub(super) rss_kib: u64,
    /// Nanoseconds of processor time so far.
    pub(super) cpu_ns: u64,
    /// Nanoseconds that the server's processors have been idle so far.
    pub(super) idle_ns: u64,
}

/// A shard at that moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Shard {
    /// Admission level.
    pub(super) level: Level,
    /// Rung of the ladder.
    pub(super) rung: String,
    /// Mean queueing time.
    pub(super) queueing_ms: f64,
    /// Work that arrived as a multiple of capacity.
    pub(super) load: f64,
    /// Joins in line.
    pub(super) joins_waiting: u64,
    /// Events in the admission queue.
    pub(super) waiting_events: u64,
}

/// An admission level as the operators' port shows it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Level {
    /// Last tier admitted.
    pub(super) business: u8,
    /// Last user level of it.
    pub(super) user: u8,
    /// Share of that.
    pub(super) share: f64,
}

impl Level {
    /// Whether everything is admitted.
    pub(super) fn is_open(self) -> bool {
        self.business >= 63 && self.user >= 127 && self.share >= 1.0
    }
}

impl Sample {
    /// Level open and nothing given up, on every shard.
    pub(super) fn normal(&self) -> bool {
        let calm = |shard: &Shard| shard.level.is_open() && shard.rung == "normal";
        !self.silent && !self.shards.is_empty() && self.shards.iter().all(calm)
    }
}

#[derive(Deserialize)]
struct View {
    shards: Vec<Option<Shard>>,
}

/// Looks until it is dropped.
pub(super) struct Watch {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look.
    pub(super) fn start(server: &Server, cpus: Vec<usize>) -> Watch {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (Arc::clone(&samples), Arc::clone(&stop));
        let (admin, pid) = (server.admin(), server.pid());
        let thread = std::thread::spawn(move || {
            let Some(admin) = admin else { return };
            let mut client = Client::new(admin, None);
            while !stopped.load(Ordering::Relaxed) {
                let view = client.get("/admission").ok();
                let view = view.and_then(|(_, body)| serde_json::from_slice::<View>(&body).ok());
                let silent =
                    view.as_ref().is_none_or(|view| view.shards.iter().any(Option::is_none));
                let sample = Sample {
                    at_us: sys::mono_us(),
                    shards: view
                        .map_or_else(Vec::new, |v| v.shards.into_iter().flatten().collect()),
                    silent,
                    rss_kib: pid.and_then(sys::rss_kib).unwrap_or(0),
                    cpu_ns: pid.and_then(sys::cpu_ns).unwrap_or(0),
                    idle_ns: sys::idle_ns(&cpus).unwrap_or(0),
                };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                std::thread::sleep(EVERY);
            }
        });
        Watch { samples, stop, thread: Some(thread) }
    }

    /// What was seen between two moments of the monotonic clock.
    pub(super) fn between(&self, from_us: u64, to_us: u64) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |sample: &&Sample| (from_us..to_us).contains(&sample.at_us);
        samples.iter().filter(inside).cloned().collect()
    }

    /// The newest.
    pub(super) fn last(&self) -> Option<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A watch that panicked has told so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(level: (u8, u8, f64), rung: &str) -> Sample {
        let (business, user, share) = level;
        let shard = Shard {
            level: Level { business, user, share },
            rung: rung.into(),
            queueing_ms: 0.0,
            load: 0.0,
            joins_waiting: 0,
            waiting_events: 0,
        };
        Sample { at_us: 0, shards: vec![shard], silent: false, rss_kib: 0, cpu_ns: 0, idle_ns: 0 }
    }

    #[test]
    fn normal_is_an_open_level_and_no_rung_on_every_shard() {
        assert!(sample((63, 127, 1.0), "normal").normal());
        assert!(!sample((63, 127, 0.5), "normal").normal());
        assert!(!sample((3, 40, 1.0), "normal").normal());
        assert!(!sample((63, 127, 1.0), "stretch").normal());
        assert!(!Sample { silent: true, ..sample((63, 127, 1.0), "normal") }.normal());
    }
}

//! Publishers that use the library: they learn the level from every answer and
//! drop below it before they send. What they are given is offered, whatever
//! they do with it.
//!
//! Each is an application with a token and connections of its own; some share a
//! thread and its runtime. Events are given to them by the clock, however they
//! fare: an open loop. Where this machine cannot make events as fast as asked,
//! fewer are offered, and that figure is what is reported.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tidegate::client::{Content, NewEvent, Outcome, Protocol, Publisher, PublisherSettings};
use tidegate::engine::ids::RoomId;

use super::mix::Traffic;
use super::tally::Tally;
use crate::token::Signer;

/// The outcome of one event in so many is waited for, to know how long it took.
const TIMED_EVERY: u64 = 50;
/// Events made between two turns of the publishers.
const TURN: u64 = 64;
/// Further behind than this the schedule is moved: an open loop offers by the
/// clock, it does not make up for what it could not make.
const BEHIND: Duration = Duration::from_millis(100);

/// What to offer.
#[derive(Debug, Clone)]
pub(super) struct PolitePlan {
    pub(super) url: String,
    pub(super) secret: String,
    pub(super) room: String,
    pub(super) run: u64,
    /// First source number; each thread has one.
    pub(super) source: u32,
    pub(super) users: u32,
    /// Events of one request at most.
    pub(super) batch: usize,
    pub(super) publishers: usize,
    pub(super) threads: usize,
    /// Events per second, all together.
    pub(super) rate: f64,
    pub(super) protocol: Protocol,
}

/// Publishers at work; they end with this value.
pub(super) struct Polite {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Tally>>>,
}

impl Polite {
    /// Begins at once.
    pub(super) fn start(plan: &PolitePlan) -> Result<Polite> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for index in 0..plan.threads.max(1) {
            let (plan, stop) = (plan.clone(), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                crate::sys::run_later();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(offer(&plan, index, &stop))
            }));
        }
        Ok(Polite { stop, threads })
    }

    /// Whether one of them ended by itself, which only an error makes it do.
    pub(super) fn ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; what is still unanswered is not waited for.
    pub(super) fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads.drain(..) {
            let tally = thread.join().map_err(|_| anyhow!("a publishing thread panicked"))??;
            sum.absorb(&tally);
        }
        Ok(sum)
    }
}

impl Drop for Polite {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn offer(plan: &PolitePlan, index: usize, stop: &AtomicBool) -> Result<Tally> {
    let room = RoomId::new(&plan.room).context("the room's name")?;
    let signer = Signer::new(&plan.secret);
    let share = plan.threads.max(1);
    let mut publishers = Vec::new();
    for number in (index..plan.publishers.max(share)).step_by(share) {
        let token = signer.application(&format!("polite-{}-{number}", plan.source))?;
        let settings = PublisherSettings {
            protocol: plan.protocol,
            batch_events: plan.batch,
            ..PublisherSettings::new(&plan.url, token)
        };
        publishers.push(Publisher::start(settings)?);
    }
    let mut traffic = Traffic::new(plan.run, plan.source + index as u32, plan.users);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let rate = plan.rate / share as f64;
    let begun = Instant::now();
    let (mut clock, mut made, mut all) = (Instant::now(), 0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = (clock.elapsed().as_secs_f64() * rate) as u64;
        if (due - made) as f64 > BEHIND.as_secs_f64() * rate {
            (clock, made) = (Instant::now(), 0);
            continue;
        }
        for _ in 0..TURN.min(due - made) {
            let draw = traffic.draw();
            let event = NewEvent {
                user: Traffic::user(draw),
                payload: Content::from_json_text(Traffic::payload(draw))?,
                key: Traffic::sum(draw).map(|(key, _)| key.to_owned()),
                amount: Traffic::sum(draw).map(|(_, amount)| amount),
                ..NewEvent::new(traffic.id(draw), super::mix::MIX[draw.part].kind)
            };
            tally.lock().unwrap_or_else(PoisonError::into_inner).offered_by[draw.part] += 1;
            let publisher = &publishers[(all % publishers.len() as u64) as usize];
            // A full queue counts in the publisher's own figures.
            if let Ok(receipt) = publisher.publish(&room, event)
                && all.is_multiple_of(TIMED_EVERY)
            {
                let (tally, given) = (Arc::clone(&tally), Instant::now());
                tokio::spawn(async move {
                    if let Outcome::Accepted { .. } = receipt.await {
                        let micros = given.elapsed().as_micros() as u64;
                        tally.lock().unwrap_or_else(PoisonError::into_inner).answer(micros);
                    }
                });
            }
            made += 1;
            all += 1;
        }
        if made < due {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tally.seconds = begun.elapsed().as_secs_f64();
    for publisher in publishers {
        add(&mut tally, &publisher.stats());
    }
    Ok(tally)
}

fn add(tally: &mut Tally, stats: &tidegate::client::PublisherStats) {
    tally.offered += stats.taken + stats.queue_full;
    tally.sent += stats.caller.sent + stats.caller.probes + stats.caller.retries;
    tally.shed += stats.shed_locally;
    tally.queue_full += stats.queue_full;
    tally.requests += stats.requests;
    tally.accepted += stats.accepted;
    for (code, count) in &stats.rejected {
        tally.refuse(code, *count);
    }
    for (code, count) in [("expired", stats.expired), ("no answer", stats.failed)] {
        if count > 0 {
            tally.refuse(code, count);
        }
    }
}

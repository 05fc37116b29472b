//! The measured window: something sends events on a schedule, a fleet of
//! viewers receives them, and what both cost is taken before and after. The
//! server and the bare floor go through the same window, so they compare.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::fleet::Fleet;
use crate::hist::{self, Recorded, Summary};
use crate::protocol::{BIN_US, Stats};
use crate::run::{Deadline, Progress};
use crate::sys;

/// How long the last events may take to arrive before they count as lost.
const TAIL_US: u64 = 10_000_000;
/// Distance between samples of the server's processor time and memory.
const SAMPLE_US: u64 = 500_000;

/// What sends events.
pub(crate) trait Source {
    /// Sends event `n` of `room`, meant for `intended`; whether it was accepted.
    fn send(&mut self, room: u16, n: u64, intended: u64) -> Result<bool>;
    /// The process whose cost is measured.
    fn pid(&self) -> Option<u32>;
}

/// When events are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many per second in each room, rooms evenly apart.
    Rate(f64),
    /// The next as soon as fewer than so many are under way in the room.
    Saturate(u64),
}

/// A window to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Rooms.
    pub(crate) rooms: u16,
    /// Counter of the first event in every room.
    pub(crate) first: u64,
    /// When.
    pub(crate) pace: Pace,
    /// For how long events are sent.
    pub(crate) seconds: f64,
}

/// Samples over time.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Series {
    /// (seconds, deliveries per second).
    pub(crate) deliveries: Vec<(f64, f64)>,
    /// (seconds, processors busy in the server).
    pub(crate) cpu: Vec<(f64, f64)>,
    /// (seconds, resident MiB of the server).
    pub(crate) memory: Vec<(f64, f64)>,
}

/// What a window brought, before it is put in relation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// Events sent and accepted, all rooms together.
    pub(crate) events: u64,
    /// Events refused.
    pub(crate) refused: u64,
    /// Counter of the next event in every room.
    pub(crate) next: u64,
    /// From the first event to the last delivery (or the end of the schedule).
    pub(crate) seconds: f64,
    /// Nanoseconds of the measured process.
    pub(crate) cpu_ns: u64,
    /// Nanoseconds of the workers.
    pub(crate) client_cpu_ns: u64,
    /// How late events were sent, in microseconds.
    pub(crate) late: Recorded,
    /// What the workers counted.
    pub(crate) stats: Stats,
    /// Over time.
    pub(crate) series: Series,
}

impl Window {
    /// Publisher's lateness.
    pub(crate) fn lateness(&self) -> Summary {
        self.late.summary()
    }
}

/// Runs one window.
pub(crate) fn window(
    fleet: &mut Fleet,
    source: &mut dyn Source,
    schedule: Schedule,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<Window> {
    fleet.open_window(deadline)?;
    let mut run = Running {
        schedule,
        start: sys::mono_us() + 20_000,
        sampler: Sampler::new(source.pid()),
        late: hist::new(),
        window: Window::default(),
    };
    let cpu = source.pid().and_then(sys::cpu_ns).unwrap_or(0);
    let client_cpu = fleet.cpu_ns();
    let next = match schedule.pace {
        Pace::Rate(rate) => run.paced(fleet, source, rate, deadline, progress)?,
        Pace::Saturate(open) => run.saturated(fleet, source, open, deadline, progress)?,
    };
    run.tail(fleet, next, deadline, progress)?;
    let end = sys::mono_us();
    let mut window = run.window;
    window.next = next;
    window.seconds = (end - run.start) as f64 / 1e6;
    window.cpu_ns = source.pid().and_then(sys::cpu_ns).unwrap_or(0).saturating_sub(cpu);
    window.client_cpu_ns = fleet.cpu_ns().saturating_sub(client_cpu);
    window.late = Recorded::of(&run.late);
    window.stats = fleet.collect(false, deadline)?;
    window.series = run.sampler.series;
    let per_second = 1e6 / BIN_US as f64;
    window.series.deliveries = window
        .stats
        .bins
        .iter()
        .enumerate()
        .map(|(bin, &count)| (bin as f64 / per_second, count as f64 * per_second))
        .collect();
    Ok(window)
}

struct Running {
    schedule: Schedule,
    start: u64,
    sampler: Sampler,
    late: hdrhistogram::Histogram<u64>,
    window: Window,
}

impl Running {
    fn send(&mut self, source: &mut dyn Source, room: u16, n: u64, intended: u64) -> Result<()> {
        self.late.saturating_record(sys::mono_us().saturating_sub(intended));
        if source.send(room, n, intended)? {
            self.window.events += 1;
        } else {
            self.window.refused += 1;
        }
        Ok(())
    }

    fn paced(
        &mut self,
        fleet: &mut Fleet,
        source: &mut dyn Source,
        rate: f64,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<u64> {
        let rooms = u64::from(self.schedule.rooms);
        let per_room = (self.schedule.seconds * rate).round().max(1.0) as u64;
        let step = 1e6 / (rate * rooms as f64);
        for index in 0..per_room * rooms {
            let intended = self.start + (index as f64 * step) as u64;
            self.wait_until(fleet, intended, deadline)?;
            let room = u16::try_from(index % rooms)?;
            self.send(source, room, self.schedule.first + index / rooms, intended)?;
            progress.tell(&format!("{} of {} events", index + 1, per_room * rooms));
        }
        let end = self.start + (per_room as f64 * rooms as f64 * step) as u64;
        self.wait_until(fleet, end, deadline)?;
        Ok(self.schedule.first + per_room)
    }

    fn saturated(
        &mut self,
        fleet: &mut Fleet,
        source: &mut dyn Source,
        open: u64,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<u64> {
        self.start = sys::mono_us();
        let end = self.start + (self.schedule.seconds * 1e6) as u64;
        let mut next = self.schedule.first;
        while sys::mono_us() < end {
            deadline.check("saturating")?;
            // All rooms move together, so that one counter names their events.
            let slowest = (0..self.schedule.rooms).map(|room| fleet.done(room)).min().unwrap_or(0);
            if next < slowest.max(self.schedule.first) + open {
                for room in 0..self.schedule.rooms {
                    self.send(source, room, next, sys::mono_us())?;
                }
                next += 1;
                fleet.pump(0)?;
            } else {
                fleet.pump(sys::mono_us() + 20_000)?;
            }
            self.sampler.sample(self.start);
            progress.tell(&format!("{} events", next - self.schedule.first));
        }
        Ok(next)
    }

    /// Waits until everything has arrived, or can be called lost.
    fn tail(
        &mut self,
        fleet: &mut Fleet,
        next: u64,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<()> {
        let limit = sys::mono_us() + TAIL_US;
        while (0..self.schedule.rooms).any(|room| fleet.done(room) < next) {
            deadline.check("waiting for the last events")?;
            let now = sys::mono_us();
            if now > limit {
                break;
            }
            fleet.pump(now + 5_000)?;
            self.sampler.sample(self.start);
            progress.tell("waiting for the last events");
        }
        Ok(())
    }

    fn wait_until(&mut self, fleet: &mut Fleet, until: u64, deadline: Deadline) -> Result<()> {
        loop {
            let now = sys::mono_us();
            self.sampler.sample(self.start);
            if now >= until {
                return fleet.pump(0);
            }
            deadline.check("pacing")?;
            // The last stretch by sleep: a report that comes then can wait, the
            // event cannot.
            if until - now > 2_000 {
                fleet.pump(until - 1_000)?;
            } else {
                std::thread::sleep(Duration::from_micros(until - now));
            }
        }
    }
}

/// Takes samples of a process now and then.
pub(crate) struct Sampler {
    pid: Option<u32>,
    last: Option<(u64, u64)>,
    /// What it took.
    pub(crate) series: Series,
}

impl Sampler {
    /// Of this process.
    pub(crate) fn new(pid: Option<u32>) -> Self {
        Self { pid, last: None, series: Series::default() }
    }

    /// A sample, if it is time for one.
    pub(crate) fn sample(&mut self, start: u64) {
        let Some(pid) = self.pid else { return };
        let now = sys::mono_us();
        if self.last.is_some_and(|(then, _)| now - then < SAMPLE_US) {
            return;
        }
        let Some(cpu) = sys::cpu_ns(pid) else { return };
        let at = now.saturating_sub(start) as f64 / 1e6;
        if let Some((then, before)) = self.last {
            let busy = cpu.saturating_sub(before) as f64 / ((now - then) as f64 * 1e3);
            self.series.cpu.push((at, busy));
        }
        if let Some(kib) = sys::rss_kib(pid) {
            self.series.memory.push((at, kib as f64 / 1024.0));
        }
        self.last = Some((now, cpu));
    }
}

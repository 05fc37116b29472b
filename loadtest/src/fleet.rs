//! The parent's side of the workers.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::protocol::{Command, Plan, Report, Share, Stats};
use crate::run::{Deadline, Progress};
use crate::sys;

/// Sockets per worker: below the usual limit of 20,000 descriptors.
const VIEWERS_PER_WORKER: u32 = 17_000;

/// For a worker to hang up on everybody before it is killed: a server that is not
/// told waits for QUIC viewers who say nothing any more.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// Every fleet connects from addresses of its own.
static FLEETS: AtomicU8 = AtomicU8::new(0);

/// Some worker processes that act as one.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    reports: Receiver<(usize, Report)>,
    sender: Sender<(usize, Report)>,
    /// Per (worker, room): the last event that all its viewers have.
    done: HashMap<(usize, u16), u64>,
    /// Which rooms a worker has reading viewers in.
    rooms: Vec<Vec<u16>>,
}

struct Worker {
    child: Child,
    stdin: ChildStdin,
}

/// How joining went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joined {
    /// Viewers that joined.
    pub(crate) joined: u32,
    /// Failures by reason.
    pub(crate) failed: BTreeMap<String, u32>,
    /// From the word to connect until the last one settled.
    pub(crate) seconds: f64,
    /// Until the last connection had been begun; 0: none was.
    pub(crate) opened_seconds: f64,
}

impl Joined {
    /// A worker has begun its last connection, if `opened_us` is not 0.
    fn opened(&mut self, opened_us: u64, started_us: u64) {
        let seconds = opened_us.saturating_sub(started_us) as f64 / 1e6;
        self.opened_seconds = self.opened_seconds.max(seconds);
    }
}

/// How many workers hold so many viewers, who take so many descriptors;
/// `wanted`: the user's choice, 0 for none.
pub(crate) fn workers_for(viewers: u32, descriptors: u32, wanted: u32, processors: usize) -> u32 {
    let needed = descriptors.div_ceil(VIEWERS_PER_WORKER).max(1);
    let useful = u32::try_from(processors.max(1)).unwrap_or(1).min(viewers.div_ceil(500).max(1));
    if wanted > 0 { wanted.max(needed) } else { needed.max(useful) }
}

/// Deals shares out to workers, as evenly as it goes.
pub(crate) fn deal(shares: &[Share], workers: u32) -> Vec<Vec<Share>> {
    let mut dealt = vec![Vec::new(); workers as usize];
    let mut turn = 0;
    for share in shares {
        let mut left = share.count;
        for remaining in (1..=workers).rev() {
            let count = left.div_ceil(remaining);
            if count > 0 {
                dealt[turn].push(Share { count, ..share.clone() });
            }
            left -= count;
            turn = (turn + 1) % workers as usize;
        }
        // The next small share goes to another worker.
        turn = (turn + 1) % workers as usize;
    }
    dealt
}

impl Fleet {
    /// Starts workers for a plan whose shares are dealt out to them.
    pub(crate) fn start(plan: &Plan, workers: u32, deadline: Deadline) -> Result<Fleet> {
        let (sender, reports) = channel();
        let mut fleet =
            Fleet { workers: Vec::new(), reports, sender, done: HashMap::new(), rooms: Vec::new() };
        let pid = u8::try_from(std::process::id() % 200).unwrap_or(0);
        let number = FLEETS.fetch_add(1, Ordering::Relaxed);
        for (index, shares) in deal(&plan.shares, workers).into_iter().enumerate() {
            let mut rooms: Vec<u16> =
                shares.iter().filter(|share| !share.slow).map(|share| share.room).collect();
            rooms.sort_unstable();
            rooms.dedup();
            fleet.rooms.push(rooms);
            let low = number.wrapping_mul(16).wrapping_add(u8::try_from(index)?);
            let mut plan = Plan { shares, source: [16 + pid, low], ..plan.clone() };
            plan.user = format!("{}{index}-", plan.user);
            plan.connect_rate = plan.connect_rate.div_ceil(workers);
            plan.in_progress = plan.in_progress.div_ceil(workers).max(1);
            fleet.spawn(index)?;
            fleet.send(index, &Command::Prepare(Box::new(plan)))?;
        }
        fleet.await_all(deadline, "preparing viewers", |report| {
            matches!(report, Report::Prepared)
        })?;
        Ok(fleet)
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let own = std::env::current_exe()?;
        let mut child = Process::new(own)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a worker")?;
        let stdin = child.stdin.take().context("worker without a pipe")?;
        let stdout = child.stdout.take().context("worker without a pipe")?;
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let report = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Report::Fatal(format!("report: {error}")));
                if sender.send((index, report)).is_err() {
                    return;
                }
            }
            // Harmless where the worker was told to end.
            let _ = sender.send((index, Report::Fatal("the worker ended".into())));
        });
        self.workers.push(Worker { child, stdin });
        Ok(())
    }

    fn send(&mut self, index: usize, command: &Command) -> Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.workers[index].stdin.write_all(&line).context("telling a worker")
    }

    fn send_all(&mut self, command: &Command) -> Result<()> {
        (0..self.workers.len()).try_for_each(|index| self.send(index, command))
    }

    /// Takes reports for up to `wait`, or until there is one.
    fn take(&mut self, wait: Duration) -> Result<Option<(usize, Report)>> {
        match self.reports.recv_timeout(wait) {
            Ok((index, Report::Fatal(error))) => bail!("worker {index}: {error}"),
            Ok((index, Report::Done { room, n })) => {
                self.done.insert((index, room), n);
                Ok(Some((index, Report::Done { room, n })))
            }
            Ok(other) => Ok(Some(other)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("all workers are gone"),
        }
    }

    fn await_all(
        &mut self,
        deadline: Deadline,
        what: &str,
        mut wanted: impl FnMut(&Report) -> bool,
    ) -> Result<Vec<Report>> {
        let mut answers = Vec::new();
        while answers.len() < self.workers.len() {
            deadline.check(what)?;
            if let Some((_, report)) = self.take(Duration::from_millis(200))?
                && wanted(&report)
            {
                answers.push(report);
            }
        }
        Ok(answers)
    }

    /// Tells all to connect.
    pub(crate) fn begin_connect(&mut self) -> Result<()> {
        self.send_all(&Command::Connect)
    }

    /// Waits until all have joined or failed; `idle` is called in between.
    pub(crate) fn finish_connect(
        &mut self,
        started_us: u64,
        deadline: Deadline,
        progress: &mut Progress,
        mut idle: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Joined> {
        let mut seen = vec![(0, 0); self.workers.len()];
        let mut settled = 0;
        let mut outcome = Joined::default();
        while settled < self.workers.len() {
            deadline.check("joining")?;
            let report = self.take(Duration::from_millis(2))?;
            match report {
                Some((index, Report::Progress { joined, failed, opened_us })) => {
                    seen[index] = (joined, failed);
                    outcome.opened(opened_us, started_us);
                }
                Some((index, Report::Settled { joined, failed, at_us, opened_us })) => {
                    settled += 1;
                    outcome.opened(opened_us, started_us);
                    seen[index] = (joined, failed.values().sum());
                    outcome.joined += joined;
                    for (reason, count) in failed {
                        *outcome.failed.entry(reason).or_default() += count;
                    }
                    let seconds = at_us.saturating_sub(started_us) as f64 / 1e6;
                    outcome.seconds = outcome.seconds.max(seconds);
                }
                _ => {}
            }
            let joined: u32 = seen.iter().map(|one| one.0).sum();
            let failed: u32 = seen.iter().map(|one| one.1).sum();
            progress.tell(&format!("{joined} viewers joined, {failed} failed"));
            if !idle(joined)? {
                break;
            }
        }
        Ok(outcome)
    }

    /// Connects everything.
    pub(crate) fn connect(
        &mut self,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<Joined> {
        let started = sys::mono_us();
        self.begin_connect()?;
        self.finish_connect(started, deadline, progress, |_| Ok(true))
    }

    /// Counters to zero.
    pub(crate) fn open_window(&mut self, deadline: Deadline) -> Result<()> {
        self.send_all(&Command::Window)?;
        self.await_all(deadline, "opening a window", |report| {
            matches!(report, Report::WindowOpen)
        })?;
        Ok(())
    }

    /// What all counted since.
    pub(crate) fn collect(&mut self, recordings: bool, deadline: Deadline) -> Result<Stats> {
        self.send_all(&Command::Collect { recordings })?;
        let is_stats = |report: &Report| matches!(report, Report::Stats(_));
        let mut sum = Stats::default();
        for report in self.await_all(deadline, "collecting counters", is_stats)? {
            if let Report::Stats(stats) = report {
                sum.absorb(*stats);
            }
        }
        Ok(sum)
    }

    /// Slow viewers stop reading, or read again.
    pub(crate) fn slow_read(&mut self, reads: bool) -> Result<()> {
        self.send_all(&Command::SlowRead(reads))
    }

    /// Takes what reports have come, waiting for the first until `until_us`.
    pub(crate) fn pump(&mut self, until_us: u64) -> Result<()> {
        let now = sys::mono_us();
        let wait = Duration::from_micros(until_us.saturating_sub(now));
        if self.take(wait)?.is_some() {
            while self.take(Duration::ZERO)?.is_some() {}
        }
        Ok(())
    }

    /// Takes reports for so long.
    pub(crate) fn pump_for(&mut self, us: u64) -> Result<()> {
        let until = sys::mono_us() + us;
        while sys::mono_us() < until {
            self.pump(until)?;
        }
        Ok(())
    }

    /// How many events of a room all its viewers have: the count, not the last number.
    pub(crate) fn done(&self, room: u16) -> u64 {
        let workers = self.rooms.iter().enumerate().filter(|(_, rooms)| rooms.contains(&room));
        workers
            .map(|(index, _)| self.done.get(&(index, room)).map_or(0, |n| n + 1))
            .min()
            .unwrap_or(0)
    }

    /// Resident KiB of all workers.
    pub(crate) fn memory_kib(&self) -> u64 {
        self.workers.iter().filter_map(|worker| sys::exact_rss_kib(worker.child.id())).sum()
    }

    /// Processor time that the workers used, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.workers.iter().filter_map(|worker| sys::cpu_ns(worker.child.id())).sum()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Workers that are gone already need not be told.
        let _ = self.send_all(&Command::Quit);
        let told = Instant::now();
        for worker in &mut self.workers {
            while matches!(worker.child.try_wait(), Ok(None)) && told.elapsed() < QUIT_LIMIT {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(room: u16, count: u32) -> Share {
        Share { room, group: 0, count, slow: false }
    }

    #[test]
    fn shares_are_dealt_evenly_and_wholly() {
        for (counts, workers) in [(vec![10, 1, 7], 3), (vec![1; 50], 4), (vec![100_000], 6)] {
            let shares: Vec<Share> =
                counts.iter().enumerate().map(|(room, &n)| share(room as u16, n)).collect();
            let dealt = deal(&shares, workers);
            let sums: Vec<u32> =
                dealt.iter().map(|hand| hand.iter().map(|share| share.count).sum()).collect();
            assert_eq!(sums.iter().sum::<u32>(), counts.iter().sum::<u32>());
            let spread = sums.iter().max().unwrap() - sums.iter().min().unwrap();
            assert!(spread <= 3, "{sums:?}");
        }
    }

    #[test]
    fn no_worker_gets_more_sockets_than_it_may_open() {
        assert_eq!(workers_for(15_000, 15_000, 0, 1), 1);
        assert_eq!(workers_for(100_000, 100_000, 0, 1), 6);
        assert_eq!(workers_for(100_000, 100_000, 2, 1), 6);
        assert_eq!(workers_for(100_000, 64, 0, 1), 1);
        assert_eq!(workers_for(1_000, 1_000, 3, 1), 3);
        assert_eq!(workers_for(10, 10, 0, 8), 1);
    }
}

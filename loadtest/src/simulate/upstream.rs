//! One machine of the upstream A: which server a call goes to, and whether it
//! is sent at all.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tidegate::engine::admission::AdmissionSettings;
use tidegate::engine::caller::{Caller, CallerSettings, Verdict};
use tidegate::engine::priority::{AdmissionLevel, Priority};

use super::controller::{Kind, engine_time};
use super::scenario::{Balance, SERVERS, Scenario};

/// How a machine decides what to send.
#[derive(Debug)]
enum Manners {
    /// Sends everything, resends every refused call.
    Eager,
    /// Sends everything once: a refusal of the oracle's is final.
    Once,
    /// DAGOR: keeps back what lies beyond the level last heard of.
    Levels([AdmissionLevel; SERVERS]),
    /// Ours: levels with a time to live, probes, and a retry budget.
    Callers(Vec<Caller>),
}

/// One machine's view of M.
#[derive(Debug)]
pub(super) struct Upstream {
    manners: Manners,
    /// Calls on their way, by server.
    outstanding: [u32; SERVERS],
    balance: Balance,
    collaborate: bool,
    ttl: Duration,
}

impl Upstream {
    /// That knows nothing of M yet.
    pub(super) fn new(kind: Kind, scenario: &Scenario) -> Self {
        let manners = match kind {
            Kind::Oracle => Manners::Once,
            Kind::Dagor => Manners::Levels([AdmissionLevel::OPEN; SERVERS]),
            Kind::Tidegate => {
                let caller = Caller::new(CallerSettings::default(), engine_time(0));
                Manners::Callers(vec![caller; SERVERS])
            }
            _ => Manners::Eager,
        };
        Self {
            manners,
            outstanding: [0; SERVERS],
            balance: scenario.balance,
            collaborate: scenario.collaborate,
            ttl: AdmissionSettings::default().level_ttl,
        }
    }

    /// An answer of `server` carried this level.
    pub(super) fn learn(&mut self, server: usize, level: AdmissionLevel, now: u64) {
        if !self.collaborate {
            return;
        }
        match &mut self.manners {
            Manners::Levels(levels) => levels[server] = level,
            Manners::Callers(callers) => callers[server].learn(level, self.ttl, engine_time(now)),
            Manners::Eager | Manners::Once => {}
        }
    }

    /// Whether levels travel at all.
    pub(super) fn learns(&self) -> bool {
        self.collaborate && matches!(self.manners, Manners::Levels(_) | Manners::Callers(_))
    }

    /// A call has been sent.
    pub(super) fn sent(&mut self, server: usize) {
        self.outstanding[server] += 1;
    }

    /// And answered.
    pub(super) fn answered(&mut self, server: usize, served: bool, now: u64) {
        self.outstanding[server] -= 1;
        if let Manners::Callers(callers) = &mut self.manners
            && served
        {
            callers[server].accepted(1, engine_time(now));
        }
    }

    /// Where a first attempt at a call goes, of a task whose call before was served by
    /// `last`, if it has begun; `None`: it is kept back. Among the servers whose level
    /// admits the call, the balance decides.
    pub(super) fn first(
        &mut self,
        priority: Priority,
        last: Option<usize>,
        now: u64,
        rng: &mut SmallRng,
    ) -> Option<usize> {
        let begun = last.is_some();
        let faithful = last.filter(|_| matches!(self.manners, Manners::Callers(_)));
        let admitting =
            self.pick(faithful, rng, |up, server| up.admits(server, priority, begun, now));
        match &self.manners {
            Manners::Eager | Manners::Once | Manners::Levels(_) => admitting,
            Manners::Callers(_) => {
                let server = admitting.or_else(|| self.pick(faithful, rng, |_, _| true))?;
                let Manners::Callers(callers) = &mut self.manners else { return None };
                let (caller, at) = (&mut callers[server], engine_time(now));
                let verdict = if begun {
                    caller.proceed(priority, at, rng.random())
                } else {
                    caller.send(priority, at, rng.random())
                };
                (verdict != Verdict::Shed).then_some(server)
            }
        }
    }

    /// Where a call goes that `refused_by` refused; `None`: nowhere.
    pub(super) fn again(
        &mut self,
        refused_by: usize,
        priority: Priority,
        begun: bool,
        now: u64,
        rng: &mut SmallRng,
    ) -> Option<usize> {
        if matches!(self.manners, Manners::Once) {
            return None;
        }
        let server = self.pick(None, rng, |up, server| {
            server != refused_by && up.admits(server, priority, begun, now)
        })?;
        if let Manners::Callers(callers) = &mut self.manners {
            let (caller, at) = (&mut callers[server], engine_time(now));
            let may =
                if begun { caller.proceed_again(priority, at) } else { caller.retry(priority, at) };
            return may.then_some(server);
        }
        Some(server)
    }

    /// Where a call goes whose user cares for no level.
    pub(super) fn regardless(&self, rng: &mut SmallRng) -> Option<usize> {
        self.pick(None, rng, |_, _| true)
    }

    fn admits(&self, server: usize, priority: Priority, begun: bool, now: u64) -> bool {
        match &self.manners {
            Manners::Eager | Manners::Once => true,
            Manners::Levels(levels) => levels[server].admits(priority),
            Manners::Callers(callers) if begun => {
                callers[server].standing(engine_time(now)).admits(priority)
            }
            Manners::Callers(callers) => callers[server].level(engine_time(now)).admits(priority),
        }
    }

    /// One of the servers that `may`, by the balance, `last` before others like it.
    fn pick(
        &self,
        last: Option<usize>,
        rng: &mut SmallRng,
        may: impl Fn(&Self, usize) -> bool,
    ) -> Option<usize> {
        let (mut best, mut equals) = (None, 0_u32);
        for server in (0..SERVERS).filter(|&server| may(self, server)) {
            // Twice the calls, so that the last is before those that it equals.
            let credit = i64::from(last == Some(server));
            let weight = match self.balance {
                Balance::Least => i64::from(2 * self.outstanding[server]) - credit,
                Balance::Random => 0,
            };
            match best {
                Some((_, least)) if weight > least => continue,
                Some((_, least)) if weight == least => equals += 1,
                _ => equals = 1,
            }
            // Each of n equals with the same chance, without counting them first.
            if equals == 1 || rng.random_range(0..equals) == 0 {
                best = Some((server, weight));
            }
        }
        best.map(|(server, _)| server)
    }
}

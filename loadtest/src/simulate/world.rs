//! The discrete-event simulation: a heap of events in virtual time, three
//! servers, three upstream machines, and the tasks between them.
//!
//! A server is busy with a call or with answering those it refused. What a
//! refusal costs is work done before the next call begins, so it lengthens the
//! queueing time of what waits. A call whose task has failed stays where it is:
//! M does not know, and unless its law drops such calls it serves them in vain.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tidegate::engine::priority::{AdmissionLevel, Priority};

use super::controller::{Call, Controller, Insight, Kind};
use super::optimum;
use super::scenario::{
    DEADLINE, MS, NETWORK, RESENDS, RESTARTS, SECOND, SERVERS, SERVICE, Scenario, UPSTREAMS,
};
use super::tally::{Tally, Traits};
use super::traffic::{self, Traffic, Wish};
use super::upstream::Upstream;

/// Earliest next tick: a law whose deadline has passed is not asked for ever.
const LEAST_TICK: u64 = MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A task comes.
    Task,
    /// A call reaches a server.
    Call { task: u32, index: u8, server: u8 },
    /// A server is done with what it does.
    Done { server: u8 },
    /// The answer reaches the upstream.
    Answer { task: u32, index: u8, server: u8, served: bool },
    /// A level takes hold in an upstream machine.
    Level { upstream: u8, server: u8, level: AdmissionLevel },
    /// A law asked to be called.
    Tick { server: u8 },
    /// The deadline of a task whose user will start again.
    Deadline { task: u32 },
}

/// What an upstream machine is doing for a user.
#[derive(Debug, Clone, Copy)]
struct Task {
    traits: Traits,
    priority: Priority,
    room: u64,
    deadline: u64,
    upstream: u8,
    /// The call it is at.
    index: u8,
    /// Which server served the call before.
    last: Option<u8>,
    /// Copies of that call on their way.
    copies: u8,
    resends: u8,
    restarts: u8,
    open: bool,
}

struct Server {
    law: Box<dyn Controller>,
    busy: bool,
    /// The call being served, and since when.
    serving: Option<(Call, u64)>,
    /// Work that refusals have cost and that is not done yet.
    debt: f64,
}

struct World<'a> {
    scenario: &'a Scenario,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    servers: Vec<Server>,
    upstreams: Vec<Upstream>,
    /// What the oracle is told.
    insight: Rc<Insight>,
    tasks: Vec<Task>,
    traffic: Traffic,
    rng: SmallRng,
    /// What a refusal costs, in microseconds of a healthy server.
    refusal: f64,
    refused: Vec<Call>,
    tally: Tally,
}

/// Runs `scenario` under one law. The same seed gives the same result.
pub(super) fn run(scenario: &Scenario, kind: Kind, seed: u64) -> Tally {
    let mut rng = SmallRng::seed_from_u64(seed);
    let insight = Kind::insight(scenario);
    let servers = (0..SERVERS).map(|_| Server {
        law: kind.build(&insight, rng.random()),
        busy: false,
        serving: None,
        debt: 0.0,
    });
    let servers = servers.collect();
    let traffic = Traffic::new(&mut rng);
    let mut world = World {
        scenario,
        now: 0,
        events: BinaryHeap::new(),
        scheduled: 0,
        servers,
        upstreams: (0..UPSTREAMS).map(|_| Upstream::new(kind, scenario)).collect(),
        insight,
        tasks: Vec::new(),
        traffic,
        rng,
        // The oracle's upstream knows what it knows: nothing is sent to be refused.
        refusal: match kind {
            Kind::Oracle => optimum::cost(scenario) * SERVICE as f64,
            _ => scenario.refusal_cost * SERVICE as f64,
        },
        refused: Vec::new(),
        tally: Tally::new(scenario.from, scenario.until),
    };
    let first = world.traffic.next(scenario, 0, &mut world.rng);
    world.schedule(first, Event::Task);
    for server in 0..SERVERS {
        world.servers[server].law.rest(0);
        world.tick_later(server);
    }
    // What arrives last has its deadline to succeed in, under the same load.
    let end = scenario.until + u64::from(RESTARTS + 1) * DEADLINE + SECOND / 10;
    while let Some(Reverse((at, _, event))) = world.events.pop()
        && at <= end
    {
        world.now = at;
        world.handle(event);
    }
    world.tally
}

impl World<'_> {
    fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at, self.scheduled, event)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Task => {
                let next = self.traffic.next(self.scenario, self.now, &mut self.rng);
                self.schedule(next, Event::Task);
                self.insight.observe(self.traffic.rate(self.scenario));
                let wish = self.traffic.draw(self.scenario, self.now, &mut self.rng);
                self.begin(wish);
            }
            Event::Call { task, index, server } => self.arrive(task, index, usize::from(server)),
            Event::Done { server } => self.done(usize::from(server)),
            Event::Answer { task, index, server, served } => {
                self.answer(task, index, usize::from(server), served);
            }
            Event::Level { upstream, server, level } => {
                self.upstreams[usize::from(upstream)].learn(usize::from(server), level, self.now);
            }
            Event::Tick { server } => {
                let server = usize::from(server);
                self.servers[server].law.tick(self.now);
                self.tick_later(server);
            }
            Event::Deadline { task } => self.fail(task),
        }
    }

    fn tick_later(&mut self, server: usize) {
        if let Some(due) = self.servers[server].law.deadline() {
            let at = due.max(self.now + LEAST_TICK);
            self.schedule(at, Event::Tick { server: server as u8 });
        }
    }

    fn begin(&mut self, wish: Wish) {
        let traits = Traits {
            arrived: self.now,
            calls: wish.calls,
            tier: wish.tier,
            aggressive: wish.aggressive,
        };
        self.tally.arrived(traits);
        let upstream = self.rng.random_range(0..UPSTREAMS) as u8;
        self.start(Task {
            traits,
            priority: wish.priority,
            room: wish.room,
            deadline: self.now + DEADLINE,
            upstream,
            index: 0,
            last: None,
            copies: 0,
            resends: RESENDS,
            restarts: RESTARTS,
            open: true,
        });
    }

    fn start(&mut self, task: Task) {
        let number = self.tasks.len() as u32;
        self.tasks.push(task);
        if task.traits.aggressive {
            self.schedule(task.deadline, Event::Deadline { task: number });
        }
        self.call(number);
    }

    /// Makes the call that the task is at.
    fn call(&mut self, number: u32) {
        let task = &mut self.tasks[number as usize];
        task.resends = RESENDS;
        let upstream = &mut self.upstreams[usize::from(task.upstream)];
        let server = if task.traits.aggressive {
            upstream.regardless(&mut self.rng)
        } else {
            upstream.first(task.priority, task.last.map(usize::from), self.now, &mut self.rng)
        };
        match server {
            Some(server) => self.send(number, server),
            None => {
                self.tally.kept_back(self.now);
                self.fail(number);
            }
        }
    }

    fn send(&mut self, number: u32, server: usize) {
        let task = &mut self.tasks[number as usize];
        task.copies += 1;
        let index = task.index;
        self.upstreams[usize::from(task.upstream)].sent(server);
        let call = Event::Call { task: number, index, server: server as u8 };
        self.schedule(self.now + NETWORK, call);
    }

    fn arrive(&mut self, number: u32, index: u8, server: usize) {
        let task = &self.tasks[number as usize];
        let call = Call {
            task: number,
            index,
            remaining: task.traits.calls - index,
            priority: task.priority,
            room: task.room,
            arrived: self.now,
            deadline: task.deadline,
        };
        self.servers[server].law.offer(call, self.now, &mut self.refused);
        self.refuse(server);
        if !self.servers[server].busy {
            self.next(server);
        }
    }

    /// Answers those that were refused.
    fn refuse(&mut self, server: usize) {
        let mut refused = std::mem::take(&mut self.refused);
        for call in refused.drain(..) {
            self.tally.refused(self.now);
            let speed = self.scenario.speed.at(self.now).0;
            self.servers[server].debt += self.refusal / speed;
            self.reply(call, server, false, NETWORK);
        }
        self.refused = refused;
    }

    fn reply(&mut self, call: Call, server: usize, served: bool, after: u64) {
        let answer =
            Event::Answer { task: call.task, index: call.index, server: server as u8, served };
        self.schedule(self.now + after, answer);
        let upstream = self.tasks[call.task as usize].upstream;
        if self.upstreams[usize::from(upstream)].learns()
            && let Some(level) = self.servers[server].law.level()
        {
            let at = self.now + after - NETWORK + self.scenario.propagation;
            self.schedule(at, Event::Level { upstream, server: server as u8, level });
        }
    }

    /// The server is free: what it does next.
    fn next(&mut self, server: usize) {
        let (speed, _) = self.scenario.speed.at(self.now);
        loop {
            let state = &mut self.servers[server];
            if state.debt >= 1.0 {
                let work = state.debt.floor();
                state.debt -= work;
                state.busy = true;
                state.law.other_work(self.now);
                let done = Event::Done { server: server as u8 };
                return self.schedule(self.now + work as u64, done);
            }
            let taken = state.law.take(self.now, &mut self.refused);
            self.refuse(server);
            let state = &mut self.servers[server];
            if let Some(call) = taken {
                let failed =
                    self.now + NETWORK > call.deadline || !self.tasks[call.task as usize].open;
                self.tally.begun(self.now, self.now - call.arrived, failed);
                let service = traffic::service_time(self.scenario.service, &mut self.rng) / speed;
                state.busy = true;
                state.serving = Some((call, self.now));
                let done = Event::Done { server: server as u8 };
                return self.schedule(self.now + service.round() as u64, done);
            }
            if state.debt < 1.0 {
                state.busy = false;
                return state.law.rest(self.now);
            }
        }
    }

    fn done(&mut self, server: usize) {
        if let Some((call, since)) = self.servers[server].serving.take() {
            self.servers[server].law.served(&call, self.now - since, self.now);
            self.reply(call, server, true, NETWORK + self.scenario.downstream);
        }
        self.next(server);
    }

    fn answer(&mut self, number: u32, index: u8, server: usize, served: bool) {
        let task = &mut self.tasks[number as usize];
        self.upstreams[usize::from(task.upstream)].answered(server, served, self.now);
        if !task.open || task.index != index {
            return;
        }
        task.copies -= 1;
        if self.now > task.deadline {
            return self.fail(number);
        }
        if !served {
            return self.refused_call(number, server);
        }
        task.index += 1;
        task.last = Some(server as u8);
        task.copies = 0;
        if task.index < task.traits.calls {
            return self.call(number);
        }
        task.open = false;
        let traits = task.traits;
        self.tally.won(traits, self.now);
    }

    fn refused_call(&mut self, number: u32, server: usize) {
        let task = &mut self.tasks[number as usize];
        if task.traits.aggressive {
            // All resends at once, one to each server.
            for offset in 0..std::mem::take(&mut task.resends) {
                self.tally.resent(self.now);
                self.send(number, (server + 1 + usize::from(offset)) % SERVERS);
            }
        } else if task.resends > 0 {
            task.resends -= 1;
            let upstream = &mut self.upstreams[usize::from(task.upstream)];
            let (priority, begun) = (task.priority, task.index > 0);
            if let Some(other) = upstream.again(server, priority, begun, self.now, &mut self.rng) {
                self.tally.resent(self.now);
                self.send(number, other);
            }
        }
        if self.tasks[number as usize].copies == 0 {
            self.fail(number);
        }
    }

    /// The task has failed; an aggressive user starts it again.
    fn fail(&mut self, number: u32) {
        let task = &mut self.tasks[number as usize];
        if !std::mem::replace(&mut task.open, false) {
            return;
        }
        if task.traits.aggressive && task.restarts > 0 {
            let again = Task {
                deadline: self.now + DEADLINE,
                index: 0,
                last: None,
                copies: 0,
                resends: RESENDS,
                restarts: task.restarts - 1,
                open: true,
                ..*task
            };
            self.start(again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::optimum;
    use crate::simulate::scenario::{Balance, CAPACITY, Service};

    /// Random arrivals dealt out at random are random at each server.
    #[test]
    fn waiting_times_are_those_of_the_pollaczek_khinchine_formula() {
        let load = 0.7;
        for (service, variance) in
            [(Service::Exponential, 1.0), (Service::Fixed, 0.0), (Service::Erlang2, 0.5)]
        {
            let steady = Scenario::steady(1, load, 5, 300);
            let scenario = Scenario { service, balance: Balance::Random, ..steady };
            let tally = run(&scenario, Kind::None, 7);
            let theory = load / (1.0 - load) * (1.0 + variance) / 2.0 * SERVICE as f64;
            let ratio = tally.mean_queueing() / theory;
            assert!((0.95..1.05).contains(&ratio), "{service:?}: {ratio}");
        }
    }

    #[test]
    fn the_oracle_reaches_the_optimum_with_free_refusals_and_with_costly_ones() {
        for collaborate in [true, false] {
            let steady = Scenario::steady(2, 5.0, 3, 20);
            let scenario = Scenario { refusal_cost: 0.05, collaborate, ..steady };
            let tally = run(&scenario, Kind::Oracle, 1);
            let best =
                optimum::goodput(5.0 * CAPACITY / 2.0, 2.0, CAPACITY, optimum::cost(&scenario));
            let ratio = tally.steady_goodput() / best;
            assert!((0.97..1.03).contains(&ratio), "{collaborate}: {ratio}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run_and_another_one_another() {
        let scenario = Scenario { aggressive: 0.2, ..Scenario::steady(2, 3.0, 1, 3).mixed() };
        for law in Kind::ALL {
            let first = run(&scenario, law, 11);
            assert_eq!(first, run(&scenario, law, 11), "{law:?}");
            assert_ne!(first, run(&scenario, law, 12), "{law:?}");
        }
    }

    #[test]
    fn whoever_has_capacity_to_spare_loses_nothing() {
        for law in Kind::ALL {
            let tally = run(&Scenario::steady(3, 0.3, 1, 10), law, 3);
            let all = tally.all();
            assert_eq!(all.won, all.arrived, "{law:?}");
            assert_eq!(tally.refusals() + tally.kept_back_calls(), 0, "{law:?}");
        }
    }

    #[test]
    fn what_refusals_cost_is_missing_from_what_gets_done() {
        let scenario = |refusal_cost| Scenario { refusal_cost, ..Scenario::steady(1, 5.0, 5, 10) };
        let free = run(&scenario(0.0), Kind::Codel, 5);
        let costly = run(&scenario(0.05), Kind::Codel, 5);
        // Per second, in calls: what was begun, and the work of those refused.
        let done = |tally: &Tally| tally.begun_calls() as f64 / 10.0;
        let spent = done(&costly) + 0.05 * costly.refusals() as f64 / 10.0;
        assert!((spent / done(&free) - 1.0).abs() < 0.03, "{spent} {}", done(&free));
        assert!(done(&costly) < 0.7 * done(&free), "{}", done(&costly));
    }

    #[test]
    fn without_control_all_work_is_in_vain_soon() {
        let tally = run(&Scenario::steady(1, 2.0, 5, 5), Kind::None, 1);
        assert_eq!(tally.wasted_calls(), tally.begun_calls());
        assert_eq!(tally.all().won, 0);
    }

    #[test]
    fn a_slow_downstream_holds_no_server() {
        let tally = run(&Scenario::slow_downstream(), Kind::None, 1);
        assert_eq!(tally.all().won, tally.all().arrived);
        assert!(tally.queueing(0.5) < 5 * MS, "{}", tally.queueing(0.5));
    }

    #[test]
    fn half_the_speed_is_half_the_capacity() {
        let scenario = Scenario::loss(1, 0.8);
        let tally = run(&scenario, Kind::Facebook, 1);
        let (healthy, slow) =
            (tally.goodput(0, 5 * SECOND), tally.goodput(8 * SECOND, 15 * SECOND));
        assert!((healthy / 600.0 - 1.0).abs() < 0.1, "{healthy}");
        assert!((300.0..380.0).contains(&slow), "{slow}");
    }
}

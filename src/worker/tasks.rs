//! The turn of the thread's tasks: requests, handshakes, and those that let
//! connections in.
//!
//! The runtime gives its tasks turns of 61 and then the worker another round,
//! however many tasks wait and however long the round is. While 15,000 viewers came
//! under ten times the capacity rounds took 13 ms, tasks 1.5 ms of each, and a request
//! waited for 77 ms before anybody looked at it (measured). So a turn of tasks ends
//! when all that waited at its begin have been run, or after [`TURN`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{spawn_local, yield_now};

use super::AbortOnDrop;
use crate::clock::Clock;

/// How long tasks are run at most before the worker's next round.
pub const TURN: Duration = Duration::from_millis(4);

/// See the module's documentation.
pub struct Tasks {
    clock: Clock,
    turn: Duration,
    last: Rc<Last>,
    _ended_with_it: AbortOnDrop,
}

/// A task that does nothing: tasks run in the order in which they were woken, so when
/// it has run, so have all that waited when it was called.
#[derive(Default)]
struct Last {
    called: Notify,
    ran: Cell<bool>,
}

impl Tasks {
    /// On the current local task set, until this value is dropped; a turn takes about
    /// `turn` at most.
    #[must_use]
    pub fn new(clock: Clock, turn: Duration) -> Self {
        let last = Rc::new(Last::default());
        let shared = Rc::clone(&last);
        let task = spawn_local(async move {
            loop {
                shared.called.notified().await;
                shared.ran.set(true);
            }
        });
        Self { clock, turn, last, _ended_with_it: AbortOnDrop(task.abort_handle()) }
    }

    /// Tasks run.
    pub async fn turn(&self) {
        let begun = self.clock.now();
        self.last.ran.set(false);
        self.last.called.notify_one();
        loop {
            yield_now().await;
            if self.last.ran.get() || self.clock.now().since(begun) >= self.turn {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;
    use tokio::task::LocalSet;

    use super::*;

    /// Tasks that add themselves up whenever they run, for ever.
    fn spawn_counting(tasks: usize, spends: Duration, clock: Clock) -> Rc<Cell<usize>> {
        let runs = Rc::new(Cell::new(0));
        for _ in 0..tasks {
            let runs = Rc::clone(&runs);
            spawn_local(async move {
                loop {
                    runs.set(runs.get() + 1);
                    let begun = clock.now();
                    while clock.now().since(begun) < spends {}
                    yield_now().await;
                }
            });
        }
        runs
    }

    fn locally(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn all_that_wait_are_run_in_one_turn_and_then_the_worker() {
        locally(async {
            let clock = Clock::start();
            let tasks = Tasks::new(clock, Duration::from_secs(3_600));
            // Its own task begins.
            tasks.turn().await;
            let runs = spawn_counting(500, Duration::ZERO, clock);
            for _ in 0..4 {
                let before = runs.get();
                tasks.turn().await;
                // The runtime's own turns are not interrupted: some are in their next.
                let ran = runs.get() - before;
                assert!((400..=650).contains(&ran), "{ran} runs of 500");
            }
        });
    }

    #[test]
    fn a_turn_ends_after_its_time() {
        locally(async {
            let clock = Clock::start();
            let tasks = Tasks::new(clock, TURN);
            let runs = spawn_counting(500, TURN / 20, clock);
            tasks.turn().await;
            assert!((1..200).contains(&runs.get()), "{} runs", runs.get());
        });
    }
}

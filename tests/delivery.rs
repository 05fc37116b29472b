//! Delivery under virtual time: rooms that go by way of a log, publishers that
//! repeat themselves, a server that dies, and viewers whose connections are
//! slow, break and come back, all from one seed.
//!
//! The engine is the real one: `Room`, `Confirmations` and `Budget`, called as
//! the shards call them. The log, the disk and the network around it are models.
//! Viewers run a `client` written from the protocol alone, and a `judge` keeps
//! books of everything from outside. docs/delivery-simulation.md says what is
//! promised, and how each promise is checked.
//!
//! A failure names its seed; `TIDEGATE_SEED=n cargo test --test delivery` runs
//! that one alone, and `TIDEGATE_SEEDS=10000 cargo test --release --test
//! delivery` the long form.

#[path = "delivery/arrival.rs"]
mod arrival;
#[path = "delivery/client.rs"]
mod client;
#[path = "delivery/judge.rs"]
mod judge;
#[path = "delivery/log.rs"]
mod log;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "delivery/scenario.rs"]
mod scenario;
#[path = "delivery/seen.rs"]
mod seen;
#[path = "delivery/server.rs"]
mod server;
#[path = "delivery/viewer.rs"]
mod viewer;
#[path = "delivery/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use seen::Seen;

/// Seeds of the short form.
const SHORT: u64 = 200;
/// And those beyond them that once found something.
const TELLING: [u64; 2] = [388, 511];

#[test]
fn every_lane_keeps_its_promise_through_faults() {
    let mut seen = Seen::default();
    for seed in seeds() {
        seen.absorb(&named(seed, world::run));
    }
    println!("{seen:#?}");
    if std::env::var_os("TIDEGATE_SEED").is_none() {
        seen.assert_everything_happened();
    }
}

#[test]
fn the_arrival_rate_told_is_the_truth_within_its_bounds() {
    let (mut all, mut within, mut sampled, mut missed_some) = (0, 0, 0, 0);
    for seed in seeds() {
        let of_one = named(seed, arrival::run);
        all += of_one.all;
        within += of_one.within;
        sampled += of_one.sampled;
        missed_some += of_one.missed_some;
    }
    println!("{within} of {all} within two deviations; {sampled} sampled, {missed_some} missed");
    if std::env::var_os("TIDEGATE_SEED").is_none() {
        assert!(sampled > all / 4 && missed_some > all / 4);
        // Two standard deviations hold 95 %.
        assert!(within * 100 >= all * 95, "{within} of {all}");
    }
}

#[test]
fn a_seed_replays_itself() {
    assert_eq!(world::run(42), world::run(42));
}

/// Runs one seed, and names it if that fails.
fn named<T>(seed: u64, run: impl FnOnce(u64) -> T) -> T {
    catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
        eprintln!("to replay: TIDEGATE_SEED={seed} cargo test --test delivery");
        resume_unwind(panic)
    })
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    match (number("TIDEGATE_SEED"), number("TIDEGATE_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(seeds)) => (1..=seeds).collect(),
        (None, None) => (1..=SHORT).chain(TELLING).collect(),
    }
}

//! Many rooms under virtual time: bursts, slow fan-outs, joins and leaves,
//! repetitions and expiry, all from one seed.
//!
//! Two judges watch. The `model` is a room written the naive way, lists and
//! sorting throughout, and must make the very same frames, answers, snapshots
//! and replays. The `ledger` knows nothing of how a room works and keeps the
//! books from outside: what was accepted must come out, once, in order, with
//! sums that balance. A mistake shared by room and model would still have to get
//! past the ledger.
//!
//! The `script` drives one room and its model by short lists of steps that
//! proptest can shrink: what it finds is small enough to read.
//!
//! `slow` is about viewers whose sockets take less than their rooms send; their
//! `client` reads the bytes and judges what it was told.
//!
//! A failure of a run names its seed; `TIDEGATE_SEED=n cargo test --test simulation` runs
//! that one alone, and `TIDEGATE_SEEDS=n` so many fresh ones.

#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/script.rs"]
mod script;
#[path = "simulation/slow.rs"]
mod slow;
#[path = "simulation/slow_seen.rs"]
mod slow_seen;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds that every run repeats.
const FIXED: std::ops::Range<u64> = 1..6;
/// Seeds that no run repeats, unless told how many.
const FRESH: u64 = 2;

#[test]
fn rooms_keep_their_promises_under_any_load() {
    let mut seen = world::Seen::default();
    over_seeds(world::run, |of_one| seen.absorb(of_one));
    println!("{seen:#?}");
    if std::env::var_os("TIDEGATE_SEED").is_none() {
        seen.assert_everything_happened();
    }
}

#[test]
fn slow_viewers_get_what_they_are_promised() {
    let mut seen = slow::Seen::default();
    over_seeds(slow::run, |of_one| seen.absorb(of_one));
    println!("{seen:#?}");
    if std::env::var_os("TIDEGATE_SEED").is_none() {
        seen.assert_everything_happened();
    }
}

#[test]
fn a_seed_replays_itself() {
    assert_eq!(world::run(42), world::run(42));
    assert_eq!(slow::run(42), slow::run(42));
}

/// Every run names its seed if it fails.
fn over_seeds<S>(run: fn(u64) -> S, mut absorb: impl FnMut(&S)) {
    for seed in seeds() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(of_one) => absorb(&of_one),
            Err(panic) => {
                eprintln!("to replay: TIDEGATE_SEED={seed} cargo test --test simulation");
                resume_unwind(panic);
            }
        }
    }
}

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("TIDEGATE_SEED") {
        return vec![seed.parse().expect("TIDEGATE_SEED is a number")];
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let first = now.as_nanos() as u64 >> 10;
    let fresh = std::env::var("TIDEGATE_SEEDS")
        .map_or(FRESH, |seeds| seeds.parse().expect("TIDEGATE_SEEDS is a number"));
    println!("fresh seeds: {first} to {}", first + fresh - 1);
    FIXED.chain(first..first + fresh).collect()
}

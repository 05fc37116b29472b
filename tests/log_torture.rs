//! The log under everything that may happen to it: cuts, flipped bits, missing
//! files, failing and full disks, kills and power cuts. Each time it is opened
//! again and compared with what was acknowledged.
//!
//! `TIDEGATE_SEED=n cargo test --test log_torture` runs one seed alone.

#[path = "log_torture/basics.rs"]
mod basics;
#[path = "log_torture/damage.rs"]
mod damage;
#[path = "log_torture/disk.rs"]
mod disk;
#[path = "log_torture/faults.rs"]
mod faults;
#[path = "log_torture/kit.rs"]
mod kit;
#[path = "simulation/rng.rs"]
mod rng;

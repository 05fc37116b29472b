//! When a refused caller should come back.

use std::time::Duration;

/// When a caller should come back that was refused at `load` times the
/// capacity: a second for each capacity too much, 10 s at most, drawn with full
/// jitter (Brooker, *Exponential Backoff and Jitter*, 2015) from `draw`.
#[must_use]
pub fn retry_after(load: f64, draw: u64) -> Duration {
    const LEAST: f64 = 50.0;
    let excess = (load - 1.0).clamp(0.1, 10.0);
    let share = (draw >> 11) as f64 / (1u64 << 53) as f64;
    Duration::from_millis((LEAST + share * (excess * 1_000.0 - LEAST)) as u64)
}

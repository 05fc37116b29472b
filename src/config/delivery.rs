//! `[delivery]`, and what the engine makes of it. What the rungs are is in
//! docs/slow-viewers.md.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::Check;
use super::{Config, section};
use crate::engine::delivery::{Bounds, LadderSettings};

const MIB: usize = 1 << 20;
const HOUR_MS: u64 = 3_600_000;

section! {
/// `[delivery]`: what happens to a viewer that reads more slowly than its rooms
/// write. Each rung has three bounds on what waits for the viewer and is not on
/// the wire by part; passing any of them leads there. Frames are shared by all who
/// wait for them: the bounds limit how far a viewer is behind, not memory.
pub struct Delivery {
    /// Frames that may wait before sampled events are left out. Default 64.
    pub no_sampled_frames: usize = 64,
    /// Bytes of them. At least `rooms.frame_bytes`, and also what is sent at once
    /// of important events that a viewer is owed. Default 160 KiB.
    pub no_sampled_bytes: usize = 163_840,
    /// Milliseconds that the oldest may have waited when another comes. Default
    /// 2 s.
    pub no_sampled_ms: u64 = 2_000,
    /// Frames that may wait before totals are left out, to follow when nothing
    /// waits. Default 128.
    pub totals_only_frames: usize = 128,
    /// Bytes of them. Default 192 KiB.
    pub totals_only_bytes: usize = 196_608,
    /// Milliseconds that the oldest may have waited when another comes. Default
    /// 5 s.
    pub totals_only_ms: u64 = 5_000,
    /// Frames that may wait before ordered events are left out, with a gap notice.
    /// Default 192.
    pub important_only_frames: usize = 192,
    /// Bytes of them. Default 256 KiB.
    pub important_only_bytes: usize = 262_144,
    /// Milliseconds that the oldest may have waited when another comes. Default
    /// 10 s.
    pub important_only_ms: u64 = 10_000,
    /// Frames that may wait before all are dropped and the viewer goes on from the
    /// present state. Default 256.
    pub rebase_frames: usize = 256,
    /// Bytes of them. Default 512 KiB.
    pub rebase_bytes: usize = 524_288,
    /// Milliseconds that the oldest may have waited when another comes, or without
    /// a byte taken. Default 20 s.
    pub rebase_ms: u64 = 20_000,
    /// Milliseconds that a viewer must keep up for each rung back, and between two
    /// tellings of the totals. Default 2 s.
    pub recover_ms: u64 = 2_000,
    /// Percent of the first bounds that may wait for a viewer that keeps up.
    /// Default 25.
    pub recover_percent: u8 = 25,
    /// Milliseconds without a byte taken after a rebase, after which a viewer is
    /// closed. Default 30 s.
    pub drain_timeout_ms: u64 = 30_000,
    /// Microseconds that the fan-out of one room may run before others get their
    /// turn; half of it while events come in, a quarter while requests wait to be
    /// read. Default 2 ms: the delay that a giant room may add to small ones.
    pub slice_us: u64 = 2_000,
}
}

impl Delivery {
    /// Name, frames, bytes and milliseconds of each rung.
    fn rungs(&self) -> [(&'static str, usize, usize, u64); 4] {
        let Self { no_sampled_frames, no_sampled_bytes, no_sampled_ms, .. } = *self;
        let Self { totals_only_frames, totals_only_bytes, totals_only_ms, .. } = *self;
        let Self { important_only_frames, important_only_bytes, important_only_ms, .. } = *self;
        let Self { rebase_frames, rebase_bytes, rebase_ms, .. } = *self;
        [
            ("no_sampled", no_sampled_frames, no_sampled_bytes, no_sampled_ms),
            ("totals_only", totals_only_frames, totals_only_bytes, totals_only_ms),
            ("important_only", important_only_frames, important_only_bytes, important_only_ms),
            ("rebase", rebase_frames, rebase_bytes, rebase_ms),
        ]
    }
}

impl Config {
    /// The ladder for slow viewers as the engine takes it.
    #[must_use]
    pub fn ladder_settings(&self) -> LadderSettings {
        let bounds = self.delivery.rungs().map(|(_, frames, bytes, ms)| Bounds {
            frames,
            bytes,
            age: Duration::from_millis(ms),
        });
        LadderSettings {
            bounds,
            recover: Duration::from_millis(self.delivery.recover_ms),
            recover_percent: self.delivery.recover_percent,
            drain: Duration::from_millis(self.delivery.drain_timeout_ms),
        }
    }
}

pub(super) fn check(config: &Config, check: &mut Check) {
    let delivery = &config.delivery;
    let rungs = delivery.rungs();
    for (name, frames, bytes, ms) in rungs {
        check.range(&format!("delivery.{name}_frames"), frames, 1..=1_000_000);
        check.range(&format!("delivery.{name}_bytes"), bytes, 1_024..=1_024 * MIB);
        check.range(&format!("delivery.{name}_ms"), ms, 10..=HOUR_MS);
    }
    for [(low, frames, bytes, ms), (high, most_frames, most_bytes, most_ms)] in
        [[rungs[0], rungs[1]], [rungs[1], rungs[2]], [rungs[2], rungs[3]]]
    {
        let pairs = [
            ("frames", frames, most_frames),
            ("bytes", bytes, most_bytes),
            ("ms", ms as usize, most_ms as usize),
        ];
        for (unit, value, most) in pairs {
            let path = format!("delivery.{low}_{unit}");
            check.at_most(&path, value, &format!("delivery.{high}_{unit}"), most);
        }
    }
    check.range("delivery.recover_ms", delivery.recover_ms, 10..=HOUR_MS);
    check.range("delivery.recover_percent", delivery.recover_percent, 0..=100);
    check.range("delivery.drain_timeout_ms", delivery.drain_timeout_ms, 10..=HOUR_MS);
    check.range("delivery.slice_us", delivery.slice_us, 50..=1_000_000);
    let (frame, first) = (config.rooms.frame_bytes, delivery.no_sampled_bytes);
    check.at_most("rooms.frame_bytes", frame, "delivery.no_sampled_bytes", first);
}

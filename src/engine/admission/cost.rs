//! What a request costs, learned from what requests took.
//!
//! Two things cost time: taking an event in (parsing it, numbering and merging
//! it), and sending what it makes its room send. The second is viewers times
//! what one write takes, and a write takes a fixed part and a part per byte.
//! Both are followed by exponentially weighted means; the two parts of a write
//! by normalised least mean squares (Widrow and Hoff), which splits every
//! measured slice between them in proportion to what each contributed.

use std::time::Duration;

/// Weight of a new measurement.
const WEIGHT: f64 = 0.05;
/// No measurement moves a part beyond this, in microseconds: a thread that was
/// not running must not look like work.
const MOST: f64 = 1_000.0;
/// An event is charged at most this for what it makes its room send, in
/// microseconds. What a large room sends is cut into slices and does not stand
/// in the way of other events, and one red packet must not look like a full queue.
const MOST_PER_FLUSH: f64 = 10_000.0;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct CostModel {
    /// Microseconds to take an event in.
    per_event: f64,
    /// Microseconds of one write.
    per_write: f64,
    /// Microseconds of one KiB written.
    per_kib: f64,
}

impl Default for CostModel {
    /// Of the right order, until measured: see BENCHMARKS for a write.
    fn default() -> Self {
        Self { per_event: 2.0, per_write: 5.0, per_kib: 0.2 }
    }
}

impl CostModel {
    /// Microseconds of an event whose parsing took `parsed` and that makes its
    /// room send `bytes` to `viewers` at once (0: it waits for company).
    #[must_use]
    pub fn event(&self, parsed: Duration, viewers: u32, bytes: usize) -> f64 {
        let parsed = (parsed.as_nanos() as f64 / 1_000.0).min(MOST);
        let write = self.per_write + self.per_kib * bytes as f64 / 1_024.0;
        let sends = (f64::from(viewers) * write).min(MOST_PER_FLUSH);
        (parsed + self.per_event + sends).max(0.01)
    }

    /// Numbering and merging `events` took `time`.
    pub fn processed(&mut self, events: usize, time: Duration) {
        if events == 0 {
            return;
        }
        let each = (time.as_nanos() as f64 / 1_000.0 / events as f64).clamp(0.01, MOST);
        // Many events are many measurements.
        let weight = 1.0 - (1.0 - WEIGHT).powi(events.min(100) as i32);
        self.per_event += (each - self.per_event) * weight;
    }

    /// Sending took `time` for `writes` of `bytes` together.
    pub fn sent(&mut self, writes: u64, bytes: u64, time: Duration) {
        if writes == 0 {
            return;
        }
        let kib = bytes as f64 / 1_024.0 / writes as f64;
        let took = (time.as_nanos() as f64 / 1_000.0 / writes as f64).min(MOST);
        let error = took - self.per_write - self.per_kib * kib;
        let step = WEIGHT * error / (1.0 + kib * kib);
        self.per_write = (self.per_write + step).clamp(0.1, MOST);
        self.per_kib = (self.per_kib + step * kib).clamp(0.0, MOST);
    }

    /// Microseconds to take an event in, and of one write of `bytes`.
    #[must_use]
    pub fn parts(&self, bytes: usize) -> (f64, f64) {
        (self.per_event, self.per_write + self.per_kib * bytes as f64 / 1_024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: f64) -> Duration {
        Duration::from_nanos((micros * 1_000.0) as u64)
    }

    #[test]
    fn it_learns_both_parts_of_a_write() {
        let mut model = CostModel::default();
        for i in 0..4_000u64 {
            let bytes = [100, 2_000, 16_000, 64_000][(i % 4) as usize];
            let each = 7.0 + 0.5 * bytes as f64 / 1_024.0;
            model.sent(100, bytes * 100, micros(each * 100.0));
        }
        for bytes in [0, 512, 32_768] {
            let (_, write) = model.parts(bytes);
            let truth = 7.0 + 0.5 * bytes as f64 / 1_024.0;
            assert!((write - truth).abs() < 0.3, "{bytes}: {write} for {truth}");
        }
    }

    #[test]
    fn an_event_costs_what_it_makes_the_room_send_up_to_a_limit() {
        let mut model = CostModel::default();
        model.processed(1_000, micros(3_000.0));
        let alone = model.event(micros(1.0), 0, 500);
        assert!((alone - 4.0).abs() < 0.1, "{alone}");
        let in_a_room = model.event(micros(1.0), 100, 0);
        assert!((in_a_room - alone - 500.0).abs() < 1.0, "{in_a_room}");
        assert!(model.event(micros(1.0), 200_000, 500) < MOST_PER_FLUSH + 10.0);
    }

    #[test]
    fn nonsense_measurements_stay_within_bounds() {
        let mut model = CostModel::default();
        for _ in 0..1_000 {
            model.sent(1, 0, Duration::from_secs(3_600));
            model.sent(0, 10, Duration::ZERO);
            model.processed(1, Duration::from_secs(3_600));
            model.processed(0, Duration::ZERO);
        }
        let cost = model.event(Duration::MAX, u32::MAX, usize::MAX);
        assert!(cost.is_finite() && cost <= 2.0 * MOST + MOST_PER_FLUSH);
        assert!(model.event(Duration::ZERO, 0, 0) > 0.0);
    }
}

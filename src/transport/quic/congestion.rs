//! Congestion control that tells losses of a bad line from those of a full one.
//!
//! Cubic takes every lost packet for a sign of congestion. On a line that loses one
//! packet in twenty whatever is sent, its window stays at two or three packets, and an
//! important event waits until talk that is on its way is acknowledged: half a round
//! trip more for one in ten, measured. A line that is full shows it in another way:
//! packets queue, and round trips take longer than the shortest one. From both follows
//! how much of the window stands in queues, and a loss while that is less than
//! [`QUEUED`] packets is not answered. The test is that of TCP Veno (Fu and Liew, 2003),
//! which answers such a loss with a smaller step. None is enough here: what a room says
//! bounds what is sent, and a line that is full without a queue is told by how much it
//! loses ([`BEARABLE`]).
//!
//! BBR does as much for a bad line (measured: the same times, the same talk carried),
//! with more state per connection, and `quinn-proto` calls its own experimental.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, Cubic, CubicConfig};

/// Packets in queues below which a loss is the line's own; Veno's β.
const QUEUED: u64 = 3;

/// One packet in so many may be lost without an answer. BBRv2 bears 2 %, BBR 15 and
/// more; a bad radio line loses 5.
const BEARABLE: u64 = 8;

/// So many packets lost close together are borne.
const PATIENCE: u64 = 4;

/// Makes [`Discerning`].
#[derive(Debug, Default)]
pub struct Config(Arc<CubicConfig>);

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mtu = u64::from(current_mtu);
        Box::new(Discerning {
            cubic: Cubic::new(Arc::clone(&self.0), now, current_mtu),
            mtu,
            judge: Judge::default(),
        })
    }
}

/// What is to be done about losses.
#[derive(Debug, Clone, Default)]
struct Judge {
    /// Bytes of the window that stand in queues, by the last acknowledgement.
    queued: u64,
    /// Rises with bytes lost, falls with bytes that came, so that it grows where more
    /// than one in [`BEARABLE`] is lost.
    sum: u64,
}

impl Judge {
    /// Bytes came, of which an acknowledgement took this long to come back, and once
    /// no longer than `shortest`.
    fn came(&mut self, bytes: u64, window: u64, present: Duration, shortest: Duration) {
        let (present, shortest) = (present.as_micros() as u64, shortest.as_micros() as u64);
        let longer = present.saturating_sub(shortest);
        self.queued = window.saturating_mul(longer) / present.max(1);
        self.sum = self.sum.saturating_sub(bytes);
    }

    /// Bytes did not come. Returns whether the line is full.
    fn lost(&mut self, bytes: u64, mtu: u64) -> bool {
        let most = 2 * PATIENCE * BEARABLE * mtu;
        self.sum = self.sum.saturating_add(bytes.saturating_mul(BEARABLE)).min(most);
        self.queued >= QUEUED * mtu || self.sum > most / 2
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
struct Discerning {
    cubic: Cubic,
    mtu: u64,
    judge: Judge,
}

impl Controller for Discerning {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.judge.came(bytes, self.cubic.window(), rtt.get(), rtt.min());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        let full = self.judge.lost(lost_bytes, self.mtu);
        // A mark (ECN) says so itself, and comes without a loss.
        if full || is_persistent_congestion || lost_bytes == 0 {
            self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const MTU: u64 = 1_200;
    const WINDOW: u64 = 20 * MTU;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Of how many losses in 100 one is answered, where so many of 100 packets are lost
    /// and a round trip takes so many milliseconds, 200 at least.
    fn answered(percent: u32, present: u64, seed: u64) -> u32 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut judge = Judge::default();
        let (mut lost, mut full) = (0, 0);
        for _ in 0..20_000 {
            if random.random_ratio(percent, 100) {
                lost += 1;
                full += u32::from(judge.lost(MTU, MTU));
            } else {
                judge.came(MTU, WINDOW, millis(present), millis(200));
            }
        }
        100 * full / lost
    }

    #[test]
    fn losses_of_a_line_without_queues_are_borne_up_to_a_bound() {
        for seed in 0..10 {
            assert!(answered(5, 200, seed) <= 5, "seed {seed}");
            assert!(answered(5, 220, seed) <= 5, "seed {seed}");
            assert!(answered(25, 200, seed) >= 90, "seed {seed}");
        }
    }

    #[test]
    fn losses_of_a_line_with_queues_are_answered() {
        for seed in 0..10 {
            assert!(answered(1, 300, seed) >= 99, "seed {seed}");
        }
    }

    #[test]
    fn a_few_losses_at_once_are_borne_and_many_are_not() {
        let mut judge = Judge::default();
        judge.came(MTU, WINDOW, millis(200), millis(200));
        let borne = (0..20).take_while(|_| !judge.lost(MTU, MTU)).count() as u64;
        assert_eq!(borne, PATIENCE);
    }
}

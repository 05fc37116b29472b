//! What the worker calls: turns of the shard's QUIC connections, and what they
//! say becomes calls of the shard.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use super::peer::Heard;
use super::socket::Readiness;
use super::steer::Stray;
use crate::clock::Clock;
use crate::engine::time::Time;
use crate::shard::Shard;
use crate::shard::carrier_stats::CarrierStats;
use crate::shard::outlet::{Carrier, Datagram, Link};
use crate::transport::websocket::decode::Inbound;
use crate::transport::websocket::reader::Listener;
use crate::wire::close::CloseReason;

/// Strays taken over before the shard's other work has its turn.
const STRAYS_TURN: usize = 256;

/// The shard's end of the endpoint: both belong to one thread, and neither calls
/// the other while it is being called.
struct Shared(Rc<RefCell<Endpoint>>);

impl Carrier for Shared {
    fn write(&mut self, link: Link, bytes: &Bytes) -> io::Result<usize> {
        self.0.borrow_mut().write(link, bytes)
    }

    fn write_important(&mut self, link: Link, message: &Bytes) -> io::Result<()> {
        self.0.borrow_mut().write_important(link, message)
    }

    fn datagram(&mut self, link: Link, message: &Bytes) -> Datagram {
        self.0.borrow_mut().datagram(link, message)
    }

    fn close(&mut self, link: Link, code: u16, reason: &'static str) {
        self.0.borrow_mut().close(link, code, reason);
    }

    fn release(&mut self, link: Link) {
        self.0.borrow_mut().release(link);
    }

    fn expect(&self, link: Link) {
        self.0.borrow().expect(link);
    }

    fn flush(&mut self) {
        Carrier::flush(&mut *self.0.borrow_mut());
    }

    fn stats(&self) -> CarrierStats {
        self.0.borrow().stats()
    }
}

/// See the module's documentation.
pub struct Driver {
    endpoint: Rc<RefCell<Endpoint>>,
    readiness: Readiness,
    strays: mpsc::Receiver<Stray>,
    clock: Clock,
}

impl Driver {
    /// Of one shard, which carries its viewers from now on. `strays`: what other
    /// shards hand over to this one.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        readiness: Readiness,
        strays: mpsc::Receiver<Stray>,
        clock: Clock,
        shard: &mut Shard,
    ) -> Self {
        let endpoint = Rc::new(RefCell::new(endpoint));
        shard.viewers.attach_carrier(Box::new(Shared(Rc::clone(&endpoint))));
        Self { endpoint, readiness, strays, clock }
    }

    /// Reads what has come and deals with it. Returns whether there may be more.
    ///
    /// # Errors
    /// The socket's.
    pub fn turn(
        &mut self,
        shard: &mut Shard,
        listener: &mut dyn Listener,
        now: Time,
    ) -> io::Result<bool> {
        let instant = self.clock.instant(now);
        let mut more;
        {
            let mut endpoint = self.endpoint.borrow_mut();
            more = endpoint.receive(instant)?;
            for taken in 0.. {
                let Ok(stray) = self.strays.try_recv() else { break };
                endpoint.take_over(stray, instant);
                if taken == STRAYS_TURN {
                    more = true;
                    break;
                }
            }
            more |= endpoint.admit(instant);
            endpoint.expire(instant);
            endpoint.flush(instant);
        }
        while let Some((link, heard)) = self.next_heard() {
            self.tell(shard, listener, link, heard);
            // What ends in one step is gone from its rooms before the next.
            shard.settle(now);
        }
        self.endpoint.borrow_mut().flush(instant);
        Ok(more || self.has_news())
    }

    fn next_heard(&self) -> Option<(Link, Heard)> {
        self.endpoint.borrow_mut().heard()
    }

    fn tell(&self, shard: &mut Shard, listener: &mut dyn Listener, link: Link, heard: Heard) {
        if matches!(heard, Heard::Opened) {
            let key = shard.open_carried(link);
            self.endpoint.borrow_mut().opened(link, key);
            return listener.opened(shard, key);
        }
        let viewer = self.endpoint.borrow().viewer(link);
        let Some(key) = viewer else {
            if let Heard::Broke(reason) = heard {
                let code = reason.code().unwrap_or_default();
                self.endpoint.borrow_mut().close(link, code, reason.name());
            }
            return;
        };
        match heard {
            Heard::Message(message) if shard.viewers.is_open(key) => {
                listener.message(shard, key, Inbound::Binary(&message));
            }
            Heard::Writable => shard.writable(key),
            Heard::Broke(reason) => shard.close(key, reason),
            Heard::Left => shard.close(key, CloseReason::Peer),
            Heard::Gone => shard.hung_up(key),
            Heard::Message(_) | Heard::Opened => {}
        }
    }

    /// Whether a connection has something to say.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.endpoint.borrow().has_heard()
    }

    /// Nobody new is let in.
    pub fn drain(&self) {
        self.endpoint.borrow_mut().drain();
    }

    /// Sends what is left, before the end.
    pub fn finish(&self) {
        let now = self.clock.instant(self.clock.now());
        self.endpoint.borrow_mut().flush(now);
    }

    /// When [`turn`](Self::turn) wants to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<std::time::Instant> {
        self.endpoint.borrow().next_deadline()
    }

    /// Resolves when [`turn`](Self::turn) may have something to do.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn ready(&mut self) -> io::Result<()> {
        let blocked = self.endpoint.borrow().is_blocked();
        tokio::select! {
            biased;
            Some(stray) = self.strays.recv() => {
                let now = self.clock.instant(self.clock.now());
                self.endpoint.borrow_mut().take_over(stray, now);
                Ok(())
            }
            ready = self.readiness.ready(blocked) => ready,
        }
    }
}

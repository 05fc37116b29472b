//! From the listening socket to the first task of a connection.
//!
//! Connections come in when they like, often all at once, and each brings a request
//! that takes a hundred times as long to answer as the connection to accept. So
//! they are accepted at once and wait here, in the order in which they came: the
//! kernel's queue holds few of them ([`BACKLOG`](crate::server)), and whoever finds
//! that full tries again after 1, 3, 7, 15 seconds (RFC 6298). A few at a time are
//! let in, so that whatever else the thread has to do goes on.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{spawn_local, yield_now};
use tracing::warn;

use super::accept::{Edge, Outcome, serve};
use super::give_way::{Place, Unheard, to_who_waits};
use crate::engine::time::Time;

/// Connections let in before the thread's other tasks get their turn. Each brings a
/// handshake, and what waits behind them waits for all of these: with 16, 8, 4 and 2 a
/// storm of 15,000 joins under ten times the capacity was in after 13.7, 12.8, 13.0 and
/// 14.7 s, and small rooms' 99th percentile was 19, 14, 11 and 9 ms (measured, means of
/// one or two runs).
const TURN: usize = 4;
/// Connections accepted in that time at most: 10 us each.
const ACCEPTS: usize = 128;
/// Pause after the kernel had no descriptor for a new connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Starts to accept, on the current local task set.
pub fn open(edge: &Rc<Edge>, listener: TcpListener) {
    let shared = Rc::clone(edge);
    let both = async move {
        tokio::join!(let_in(&shared, listener), to_who_waits(&shared));
    };
    *edge.accepting.borrow_mut() = Some(spawn_local(both).abort_handle());
}

async fn let_in(edge: &Rc<Edge>, listener: TcpListener) {
    let mut doorway = Doorway { edge, listener, line: VecDeque::new() };
    let mut unheard = Unheard::default();
    loop {
        doorway.accept().await;
        for _ in 0..TURN.min(doorway.line.len()) {
            // What cannot be served waits: here, and when the line is full in the
            // kernel's queue.
            let Some(permit) = unheard.place(edge).await else { return };
            let Some((stream, peer)) = doorway.next() else { break };
            let outcome = Outcome::new(Place::new(permit, &edge.stats));
            let serving = serve(Rc::clone(edge), stream, peer.ip(), Rc::clone(&outcome));
            let task = spawn_local(serving);
            unheard.push(edge.clock.now(), &outcome, task.abort_handle());
        }
        yield_now().await;
    }
}

/// Connections that were accepted and not yet let in.
struct Doorway<'a> {
    edge: &'a Edge,
    listener: TcpListener,
    line: VecDeque<(Time, TcpStream, SocketAddr)>,
}

impl Doorway<'_> {
    /// Takes what the kernel has, and waits for something if nobody is in line.
    async fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if self.line.len() >= self.edge.max_waiting {
                return;
            }
            let accepted = match self.line.is_empty() {
                true => Some(self.listener.accept().await),
                false => self.listener.accept().now_or_never(),
            };
            match accepted {
                None => return,
                Some(Ok((stream, peer))) => self.arrived(stream, peer),
                Some(Err(error)) => {
                    warn!(%error, "no new connection");
                    if self.line.is_empty() {
                        tokio::time::sleep(PAUSE).await;
                    }
                    return;
                }
            }
        }
    }

    fn arrived(&mut self, stream: TcpStream, peer: SocketAddr) {
        let edge = self.edge;
        edge.stats.accepted.fetch_add(1, Ordering::Relaxed);
        if edge.viewers.get() + edge.others.get() + self.line.len() >= edge.max_connections {
            edge.stats.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.line.push_back((edge.clock.now(), stream, peer));
        self.tell();
    }

    /// Whose turn it is, unless it has waited for too long to still be there.
    fn next(&mut self) -> Option<(TcpStream, SocketAddr)> {
        let now = self.edge.clock.now();
        while let Some((since, stream, peer)) = self.line.pop_front() {
            if now.since(since) < self.edge.handshake_timeout {
                self.tell();
                return Some((stream, peer));
            }
            self.edge.stats.handshake("timeout");
        }
        self.tell();
        None
    }

    fn tell(&self) {
        self.edge.stats.at_the_door.store(self.line.len() as u64, Ordering::Relaxed);
    }
}

//! The connections against a server of the same protocol code, under virtual
//! time: datagrams go through a link with delay and loss drawn from a seed, and
//! nothing waits for a clock or a socket.

mod server;
mod sockets;

use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::server::Server;
use super::clients::{Clients, Outbox};
use super::{Lane, Reply, Watcher, config};
use crate::transport::{Transport, Wire};

const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 7400);
const DELAY: Duration = Duration::from_millis(50);

/// A datagram under way; the earliest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    due: std::cmp::Reverse<(Instant, u64)>,
    to_server: bool,
    socket: u32,
    bytes: Vec<u8>,
}

/// What the viewers saw.
#[derive(Default)]
struct Seen {
    joined: Vec<bool>,
    messages: Vec<Vec<(Lane, Vec<u8>)>>,
    closed: Vec<(usize, String)>,
    deaf: bool,
    datagrams: u64,
}

impl Seen {
    fn of(viewers: usize) -> Seen {
        Seen {
            joined: vec![false; viewers],
            messages: vec![Vec::new(); viewers],
            ..Seen::default()
        }
    }
}

impl Watcher for Seen {
    fn connected(&mut self, viewer: usize) -> Vec<u8> {
        format!("join {viewer}").into_bytes()
    }

    fn received(&mut self, _viewer: usize, _bytes: usize) {
        self.datagrams += 1;
    }

    fn message(&mut self, viewer: usize, lane: Lane, message: &[u8]) -> Reply {
        match message {
            b"joined" => self.joined[viewer] = true,
            b"ping" => return Reply::Say(b"pong".to_vec()),
            b"leave" => return Reply::HangUp,
            other => self.messages[viewer].push((lane, other.to_vec())),
        }
        Reply::Nothing
    }

    fn is_deaf(&self, _viewer: usize) -> bool {
        self.deaf
    }

    fn closed(&mut self, viewer: usize, reason: String) {
        self.closed.push((viewer, reason));
    }
}

/// Both ends and what lies between.
struct World {
    now: Instant,
    clients: Clients,
    server: Server,
    seen: Seen,
    flying: BinaryHeap<Flying>,
    loss: f64,
    rng: SmallRng,
    count: u64,
}

/// Puts what one end sends onto the link.
struct Link<'a> {
    flying: &'a mut BinaryHeap<Flying>,
    rng: &'a mut SmallRng,
    count: &'a mut u64,
    due: Instant,
    loss: f64,
    to_server: bool,
}

impl Outbox for Link<'_> {
    fn push(&mut self, socket: u32, datagram: &[u8]) {
        *self.count += 1;
        if self.rng.random_bool(self.loss) {
            return;
        }
        let due = std::cmp::Reverse((self.due, *self.count));
        let bytes = datagram.to_vec();
        self.flying.push(Flying { due, to_server: self.to_server, socket, bytes });
    }
}

impl World {
    fn new(viewers: usize, sockets: u32, loss: f64, seed: u64) -> World {
        let wire = Wire { transport: Transport::Quic, sockets, ..Wire::default() };
        let config = config::client(wire).unwrap();
        let now = Instant::now();
        let clients = Clients::new(config, SERVER, viewers, sockets, Some([9; 32]));
        let seen = Seen::of(viewers);
        let (flying, rng) = (BinaryHeap::new(), SmallRng::seed_from_u64(seed));
        World { now, clients, server: Server::new(), seen, flying, loss, rng, count: 0 }
    }

    fn connect_all(&mut self, sockets: u32) {
        for viewer in 0..self.seen.joined.len() {
            self.clients.connect(self.now, viewer, viewer as u32 % sockets).unwrap();
        }
    }

    /// Both ends do what there is to do now.
    fn settle(&mut self) {
        let World { now, clients, server, seen, flying, rng, count, loss } = self;
        let due = *now + DELAY;
        let mut link = Link { flying, rng, count, due, loss: *loss, to_server: true };
        while clients.is_waiting() {
            clients.drive(*now, seen, &mut link);
        }
        link.to_server = false;
        server.drive(*now, &mut link);
    }

    /// Runs until nothing is under way and no timer is due before `until`.
    fn run_until(&mut self, until: Instant) {
        self.settle();
        loop {
            let flying = self.flying.peek().map(|first| first.due.0.0);
            let timers = [flying, self.clients.next_timeout(), self.server.next_timeout()];
            let Some(next) = timers.into_iter().flatten().min().filter(|&next| next <= until)
            else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            while let Some(first) = self.flying.peek()
                && first.due.0.0 <= self.now
            {
                let Some(one) = self.flying.pop() else { break };
                let data = BytesMut::from(&one.bytes[..]);
                if one.to_server {
                    self.server.datagram(self.now, one.socket, data);
                } else {
                    let seen = &mut self.seen;
                    self.clients.datagram(self.now, one.socket, SERVER, None, data, seen);
                }
            }
            self.clients.expire(self.now);
            self.server.expire(self.now);
            self.settle();
        }
    }

    fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + Duration::from_secs(seconds));
    }
}

#[test]
fn many_on_few_sockets_join_and_miss_nothing_in_spite_of_loss() {
    let mut world = World::new(60, 3, 0.1, 7);
    world.connect_all(3);
    // Four probes in a row are lost for one of these viewers now and then: 15 s.
    for _ in 0..40 {
        if world.seen.joined.iter().all(|&joined| joined) {
            break;
        }
        world.run_for(1);
    }
    assert!(world.seen.joined.iter().all(|&joined| joined), "{:?}", world.seen.closed);
    for n in 0..20_u8 {
        world.server.important(&[b'i', n]);
        world.server.control(&[n; 3_000]);
        world.run_for(1);
    }
    world.run_for(10);
    for messages in &world.seen.messages {
        let on = |wanted: Lane| -> Vec<&[u8]> {
            messages.iter().filter(|(lane, _)| *lane == wanted).map(|(_, m)| &m[..]).collect()
        };
        let important: Vec<Vec<u8>> = (0..20).map(|n| vec![b'i', n]).collect();
        let control: Vec<Vec<u8>> = (0..20).map(|n| vec![n; 3_000]).collect();
        assert_eq!(on(Lane::Important), important);
        assert_eq!(on(Lane::Control), control);
    }
    assert!(world.clients.lost_packets() > 0 || world.server.lost_packets() > 0);
}

#[test]
fn an_answer_is_heard_and_datagrams_come() {
    let mut world = World::new(4, 1, 0.0, 1);
    world.connect_all(1);
    world.run_for(2);
    world.server.control(b"ping");
    world.server.datagrams(b"d");
    world.run_for(2);
    assert_eq!(world.server.heard("pong"), 4);
    for messages in &world.seen.messages {
        assert_eq!(messages, &[(Lane::Datagram, b"d".to_vec())]);
    }
}

#[test]
fn a_retry_is_followed() {
    let mut world = World::new(10, 2, 0.0, 3);
    world.server.retries = true;
    world.connect_all(2);
    world.run_for(3);
    assert!(world.seen.joined.iter().all(|&joined| joined));
    assert_eq!(world.server.retried, 10);
}

#[test]
fn who_idles_sends_nothing() {
    let mut world = World::new(10, 2, 0.0, 4);
    world.connect_all(2);
    world.run_for(5);
    let before = world.count;
    world.run_for(20);
    assert_eq!(world.count, before);
}

#[test]
fn a_deaf_viewer_stops_the_server_at_the_window_and_loses_nothing() {
    let mut world = World::new(1, 1, 0.0, 5);
    world.connect_all(1);
    world.run_for(2);
    world.seen.deaf = true;
    let window = Wire::default().window as usize;
    let whole = 3 * window;
    world.server.control(&vec![b'x'; whole]);
    world.run_for(5);
    assert!(world.server.waiting() >= whole - window, "{} wait", world.server.waiting());
    assert!(world.seen.messages[0].is_empty());
    world.seen.deaf = false;
    world.clients.read_again(0);
    world.run_for(10);
    assert_eq!(world.seen.messages[0].len(), 1);
    assert_eq!(world.seen.messages[0][0].1.len(), whole);
}

#[test]
fn the_servers_close_code_is_told_and_the_connection_forgotten() {
    let mut world = World::new(3, 2, 0.0, 6);
    world.connect_all(2);
    world.run_for(2);
    world.server.close_all(world.now, 3008, b"slow");
    world.run_for(30);
    let mut reasons = world.seen.closed.clone();
    reasons.sort();
    assert_eq!(reasons, (0..3).map(|v| (v, "close 3008 slow".to_owned())).collect::<Vec<_>>());
    assert!((0..3).all(|viewer| !world.clients.holds(viewer)));
    // The place can be taken again.
    world.connect_all(2);
    world.run_for(2);
    assert!((0..3).all(|viewer| world.clients.holds(viewer)));
}

#[test]
fn a_client_that_hangs_up_says_so() {
    let mut world = World::new(2, 1, 0.0, 8);
    world.connect_all(1);
    world.run_for(2);
    world.clients.close_all(world.now);
    world.run_for(10);
    assert_eq!(world.server.closed, 2);
    world.connect_all(1);
    world.run_for(2);
    world.server.control(b"leave");
    world.run_for(10);
    assert_eq!(world.server.closed, 4);
}

#[test]
fn a_length_beyond_all_bounds_ends_the_connection() {
    let mut world = World::new(1, 1, 0.0, 9);
    world.connect_all(1);
    world.run_for(2);
    world.server.raw(&[0xc0, 0, 0, 1, 0, 0, 0, 0]);
    world.run_for(5);
    assert_eq!(world.seen.closed.len(), 1, "{:?}", world.seen.closed);
    assert_eq!(world.server.closed, 1);
}

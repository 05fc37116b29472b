//! The driver over real UDP sockets, against the tests' server on a thread.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mio::{Events, Poll};

use super::server::Server;
use super::{Lane, Seen};
use crate::protocol::{Mode, Plan};
use crate::quic::clients::Outbox;
use crate::quic::driver::Driver;
use crate::transport::{Transport, Wire};

const VIEWERS: usize = 200;
/// Of the addresses that viewers come from; nobody else's in the tests.
const NET: [u8; 2] = [9, 9];
/// Long enough on any machine.
const LIMIT: Duration = Duration::from_secs(60);

struct Wires<'a>(&'a UdpSocket);

impl Outbox for Wires<'_> {
    fn push(&mut self, socket: u32, datagram: &[u8]) {
        let to = SocketAddr::from(([127, NET[0], NET[1], 1], 20_000 + socket as u16));
        // What is lost is sent again.
        let _ = self.0.send_to(datagram, to);
    }
}

/// Serves until told to stop; everybody who has joined is sent `hello` once, of
/// more bytes than a packet holds.
fn serve(socket: UdpSocket, stop: &AtomicBool) {
    let mut server = Server::new();
    let mut buffer = [0; 65_536];
    let mut greeted = false;
    while !stop.load(Ordering::Relaxed) {
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let number = u32::from(from.port()) - 20_000;
            server.datagram(Instant::now(), number, BytesMut::from(&buffer[..length]));
        }
        server.expire(Instant::now());
        if !greeted && server.joined() == VIEWERS {
            greeted = true;
            server.control(&[7; 5_000]);
        }
        server.drive(Instant::now(), &mut Wires(&socket));
    }
}

#[test]
fn viewers_on_shared_sockets_join_and_receive() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let plan = Plan {
        addr: socket.local_addr().unwrap(),
        mode: Mode::Viewer,
        wire: Wire { transport: Transport::Quic, sockets: 3, ..Wire::default() },
        source: NET,
        rooms: Vec::new(),
        shares: Vec::new(),
        check_every: 0,
        recorders: 0,
        digest: false,
        compress: false,
        connect_rate: 0,
        in_progress: 0,
        secret: String::new(),
        user: String::new(),
        nice: 0,
        priority: 0,
        patient: false,
        rush: false,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let server = std::thread::spawn(move || serve(socket, &told));
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(64);
    let mut seen = Seen::of(VIEWERS);
    let mut driver = Driver::open(&plan, VIEWERS, 100, poll.registry()).unwrap();
    for viewer in 0..VIEWERS {
        driver.connect(viewer).unwrap();
    }
    let begun = Instant::now();
    while seen.messages.iter().any(Vec::is_empty) {
        assert!(begun.elapsed() < LIMIT, "{:?}", seen.closed);
        poll.poll(&mut events, Some(driver.patience(Duration::from_millis(100)))).unwrap();
        for event in &events {
            driver.ready(event.token().0);
        }
        driver.turn(&mut seen).unwrap();
    }
    for messages in &seen.messages {
        assert_eq!(messages, &[(Lane::Control, vec![7; 5_000])]);
    }
    let traffic = driver.traffic();
    assert!(traffic.sent > traffic.sends && seen.datagrams > 0, "{traffic:?}");
    driver.close_all(&mut seen).unwrap();
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

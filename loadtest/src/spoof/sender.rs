//! The sending process of `spoof`. What a client's first packet looks like it
//! leaves to the protocol code; the client is forgotten when it is sent.

use std::collections::HashMap;
use std::io::{BufRead as _, IoSliceMut, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quinn_proto::{Endpoint, EndpointConfig, EndpointEvent};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use crate::quic::config;
use crate::transport::{Transport, Wire};
use crate::{namespace, sys, trust};

/// Addresses that are sent from: every one of them is the sender's.
pub(super) const FORGED: &str = "10.203.0.0/16";
/// Ports that are sent from, in turn.
const PORTS: u16 = 8;
const FIRST_PORT: u16 = 30_000;
/// Room for what comes while the sender sends.
const RECEIVE_BYTES: usize = 64 << 20;
const SLOT_BYTES: usize = 65_536;

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The server.
    pub(super) target: SocketAddr,
    /// First packets.
    pub(super) initials: u32,
    /// Per second.
    pub(super) rate: u32,
    /// How long to listen after the last one.
    pub(super) after_seconds: u64,
}

/// What came of it. Bytes are those of UDP's payload, which the limit is about.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) sent: u32,
    pub(super) sent_bytes: u64,
    /// From the first packet to the last.
    pub(super) seconds: f64,
    pub(super) answers: u64,
    pub(super) answered_bytes: u64,
    /// The most that one address and port was sent, in relation to what came
    /// from it.
    pub(super) most_times: f64,
    /// Answers that the kernel dropped before they could be counted.
    pub(super) dropped: u64,
}

/// The process.
pub(crate) fn run() -> Result<()> {
    sys::die_with_parent()?;
    namespace::unshare()?;
    println!("apart");
    let mut lines = std::io::stdin().lock().lines();
    let addresses = lines.next().context("the parent is gone")??;
    let (own, server) = addresses.split_once(' ').context("two addresses")?;
    namespace::ip(&format!("address add {own} dev far"))?;
    namespace::ip("link set far up")?;
    namespace::ip(&format!("route add default via {server}"))?;
    // Local all of it: any may be sent from, and all answers are heard.
    namespace::ip(&format!("route add local {FORGED} dev lo"))?;
    println!("connected");
    let order = lines.next().context("the parent is gone")??;
    let told = Sender::new(serde_json::from_str(&order)?)?.flood()?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&told)?)?;
    Ok(())
}

struct Sender {
    order: Order,
    endpoint: Endpoint,
    config: quinn_proto::ClientConfig,
    sockets: Vec<(UdpSocket, UdpSocketState)>,
    /// Bytes from and to each address and port.
    accounts: HashMap<(IpAddr, u16), (u64, u64)>,
    told: Told,
    buffer: Vec<u8>,
}

impl Sender {
    fn new(order: Order) -> Result<Sender> {
        let wire = Wire { transport: Transport::Quic, ..Wire::default() };
        let endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let mut sockets = Vec::new();
        for port in FIRST_PORT..FIRST_PORT + PORTS {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)?;
            let state = UdpSocketState::new((&socket).into())?;
            sockets.push((socket, state));
        }
        Ok(Sender {
            order,
            endpoint,
            config: config::client(wire)?,
            sockets,
            accounts: HashMap::new(),
            told: Told::default(),
            buffer: vec![0; SLOT_BYTES * BATCH_SIZE],
        })
    }

    fn flood(mut self) -> Result<Told> {
        let dropped = sys::udp_drops();
        let start = Instant::now();
        let step = Duration::from_secs(1) / self.order.rate.max(1);
        for number in 0..self.order.initials {
            let due = start + step * number;
            while let Some(wait) = due.checked_duration_since(Instant::now()) {
                self.listen()?;
                std::thread::sleep(wait.min(Duration::from_millis(1)));
            }
            self.send(number)?;
            if number.is_multiple_of(64) {
                self.listen()?;
            }
        }
        self.told.seconds = start.elapsed().as_secs_f64();
        let end = Instant::now() + Duration::from_secs(self.order.after_seconds);
        while Instant::now() < end {
            self.listen()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.told.dropped = sys::udp_drops().saturating_sub(dropped);
        let times = self.accounts.values().map(|&(from, to)| to as f64 / from.max(1) as f64);
        self.told.most_times = times.fold(0.0, f64::max);
        Ok(self.told)
    }

    /// The datagrams that a client begins with, from an address of its own.
    fn send(&mut self, number: u32) -> Result<()> {
        let now = Instant::now();
        let (handle, mut connection) = self.endpoint.connect(
            now,
            self.config.clone(),
            self.order.target,
            trust::SERVER_NAME,
        )?;
        let (address, port) = forged(number);
        let (socket, state) = &self.sockets[usize::from(port - FIRST_PORT)];
        let mut contents = Vec::with_capacity(2048);
        while connection.poll_transmit(now, 1, &mut contents).is_some() {
            let transmit = Transmit {
                destination: self.order.target,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: Some(address),
            };
            // What the kernel does not take was not sent.
            if state.try_send(socket.into(), &transmit).is_ok() {
                let account = self.accounts.entry((address, port)).or_default();
                account.0 += contents.len() as u64;
                self.told.sent_bytes += contents.len() as u64;
            }
            contents.clear();
        }
        self.told.sent += 1;
        self.endpoint.handle_event(handle, EndpointEvent::drained());
        Ok(())
    }

    /// Counts what has come.
    fn listen(&mut self) -> Result<()> {
        for (index, (socket, state)) in self.sockets.iter().enumerate() {
            let port = FIRST_PORT + u16::try_from(index)?;
            loop {
                let mut metas = [RecvMeta::default(); BATCH_SIZE];
                let mut slots: Vec<IoSliceMut<'_>> =
                    self.buffer.chunks_exact_mut(SLOT_BYTES).map(IoSliceMut::new).collect();
                let count = match state.recv(socket.into(), &mut slots, &mut metas) {
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("receiving answers"),
                };
                for meta in &metas[..count] {
                    let to = meta.dst_ip.context("an answer without its address")?;
                    self.told.answers += meta.len.div_ceil(meta.stride.max(1)) as u64;
                    self.told.answered_bytes += meta.len as u64;
                    self.accounts.entry((to, port)).or_default().1 += meta.len as u64;
                }
            }
        }
        Ok(())
    }
}

/// The n-th address and port.
fn forged(number: u32) -> (IpAddr, u16) {
    // Spread over the network, and none of its two ends.
    let host = number / u32::from(PORTS) * 7919 % 65_534 + 1;
    let [_, _, high, low] = host.to_be_bytes();
    let port = FIRST_PORT + u16::try_from(number % u32::from(PORTS)).unwrap_or(0);
    (IpAddr::V4(Ipv4Addr::new(10, 203, high, low)), port)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_are_different_and_in_the_network() {
        let seen: HashSet<_> = (0..200_000).map(forged).collect();
        assert_eq!(seen.len(), 200_000);
        assert!(seen.iter().all(|(address, _)| address.to_string().starts_with("10.203.")));
    }
}

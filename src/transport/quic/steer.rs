//! Which shard a datagram is for, whatever address it comes from.
//!
//! The first byte of every connection id that a shard gives out is its number,
//! modulo the number of shards, and otherwise random. A client's first packets
//! carry an id of its own choice: their first byte decides which shard the
//! connection begins on, and a repetition of them comes to the same one.
//!
//! The kernel does the steering: a classic BPF program on the group of sockets
//! that share the port (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) reads that byte.
//! Where it cannot be attached, and while the group is being set up, shards hand
//! datagrams to one another.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, EcnCodepoint};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use tokio::sync::mpsc;

/// Bytes of a connection id: enough that nobody guesses one of a million live
/// ones, and the least that clients' first ids have, too (RFC 9000, section 7.2).
pub const ID_BYTES: usize = 8;

/// Most shards that a byte can tell apart.
pub const MOST_SHARDS: u16 = 256;

/// Datagrams that may wait to be taken over by a shard; more are lost, as on any
/// network.
const HANDED_OVER: usize = 1024;

/// A datagram that came to the wrong shard.
#[derive(Debug)]
pub struct Stray {
    /// From whom.
    pub remote: SocketAddr,
    /// Which of our addresses it came to, if that is known.
    pub local: Option<IpAddr>,
    /// Its congestion mark.
    pub ecn: Option<EcnCodepoint>,
    /// All of it.
    pub bytes: BytesMut,
}

/// Hands strays to the shard that they are for.
#[derive(Debug, Clone)]
pub struct Handover {
    shards: Vec<mpsc::Sender<Stray>>,
}

impl Handover {
    /// Between so many shards, with the receiving end of each.
    #[must_use]
    pub fn new(shards: u16) -> (Self, Vec<mpsc::Receiver<Stray>>) {
        let (shards, ends) = (0..shards).map(|_| mpsc::channel(HANDED_OVER)).unzip();
        (Self { shards }, ends)
    }

    /// To another shard. Lost if it has too many already.
    pub fn send(&self, shard: u16, stray: Stray) -> bool {
        self.shards.get(usize::from(shard)).is_some_and(|to| to.try_send(stray).is_ok())
    }

    /// Shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards.len() as u16
    }
}

/// The shard that a datagram is for: by the first byte of the connection id that
/// its first packet is addressed to. `None`: it is too short to have one.
#[must_use]
pub fn shard_of(datagram: &[u8], shards: u16) -> Option<u16> {
    let long_header = datagram.first()? & 0x80 != 0;
    let at = if long_header { 6 } else { 1 };
    datagram.get(at).map(|byte| u16::from(*byte) % shards)
}

/// Makes connection ids that name their shard.
pub struct Ids {
    shard: u16,
    shards: u16,
    random: StdRng,
}

impl Ids {
    /// For one of so many shards. Nobody can guess them: the system seeds it.
    #[must_use]
    pub fn new(shard: u16, shards: u16) -> Self {
        debug_assert!(shard < shards && shards <= MOST_SHARDS);
        Self { shard, shards, random: rand::make_rng() }
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.random.fill_bytes(&mut id);
        // As many of the byte's values as name this shard, each as likely.
        let choices = (255 - self.shard) / self.shards + 1;
        id[0] = (self.random.random_range(0..choices) * self.shards + self.shard) as u8;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Has the kernel give every datagram to the socket of its shard. The sockets
/// of the port must have been bound in the order of their shards; one call
/// serves all of them.
///
/// # Errors
/// When the kernel has no such filter, or forbids it.
pub fn attach(socket: &UdpSocket, shards: u16) -> io::Result<()> {
    // Offsets count from the UDP payload. What does not exist (a datagram that is
    // too short) ends the program, and the first socket gets it.
    let load_first = statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0);
    let is_long = libc::sock_filter { jf: 2, ..statement(libc::BPF_JMP | libc::BPF_JSET, 0x80) };
    let mut program = [
        load_first,
        is_long,
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 6),
        statement(libc::BPF_JMP | libc::BPF_JA, 1),
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 1),
        statement(libc::BPF_ALU | libc::BPF_MOD, u32::from(shards)),
        statement(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option takes a `sock_fprog` of this size, which points to `len`
    // instructions that live until after the call; the kernel copies them. The
    // descriptor is open as long as the borrow.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_shard_in_packets_of_both_sorts() {
        for shards in [1, 2, 3, 7, 255, 256] {
            for shard in [0, shards / 2, shards - 1] {
                let mut ids = Ids::new(shard, shards);
                for _ in 0..100 {
                    let id = ids.generate_cid();
                    let short = [&[0x40], &id[..], &[1, 2, 3]].concat();
                    assert_eq!(shard_of(&short, shards), Some(shard));
                    let long = [&[0xc0, 0, 0, 0, 1, ID_BYTES as u8], &id[..], &[0]].concat();
                    assert_eq!(shard_of(&long, shards), Some(shard));
                }
            }
        }
        assert_eq!(shard_of(&[0xc0, 0, 0], 2), None);
        assert_eq!(shard_of(&[], 2), None);
    }

    #[test]
    fn a_shard_is_handed_no_more_than_it_takes() {
        let (handover, mut ends) = Handover::new(2);
        let stray = || Stray {
            remote: ([127, 0, 0, 1], 9).into(),
            local: None,
            ecn: None,
            bytes: BytesMut::new(),
        };
        let taken = (0..=HANDED_OVER).filter(|_| handover.send(1, stray())).count();
        assert_eq!(taken, HANDED_OVER);
        assert!(ends[1].try_recv().is_ok() && handover.send(1, stray()), "there is room again");
        assert!(!handover.send(2, stray()), "there is no such shard");
    }

    #[test]
    fn ids_differ_and_use_the_whole_byte() {
        let mut ids = Ids::new(1, 2);
        let made: Vec<ConnectionId> = (0..2_000).map(|_| ids.generate_cid()).collect();
        let distinct: std::collections::HashSet<&[u8]> = made.iter().map(|id| &id[..]).collect();
        assert_eq!(distinct.len(), made.len());
        let firsts: std::collections::HashSet<u8> = made.iter().map(|id| id[0]).collect();
        assert_eq!(firsts.len(), 128);
    }

    #[test]
    fn the_kernel_gives_each_socket_its_own() {
        const SHARDS: u16 = 3;
        let first = super::super::socket::bind(([127, 0, 0, 1], 0).into(), true).expect("a port");
        let address = first.local_addr().expect("an address");
        let mut sockets = vec![first];
        for _ in 1..SHARDS {
            sockets.push(super::super::socket::bind(address, true).expect("the same port"));
        }
        attach(&sockets[0], SHARDS).expect("a filter");
        for socket in &sockets {
            socket.set_nonblocking(false).expect("a setting");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a setting");
        }
        // From many addresses, so that it is not their hash.
        for round in 0..20_u8 {
            let sender = UdpSocket::bind("127.0.0.1:0").expect("a port");
            for (index, socket) in sockets.iter().enumerate() {
                let id = Ids::new(index as u16, SHARDS).generate_cid();
                let packet = match round % 2 {
                    0 => [&[0x40], &id[..], &[round]].concat(),
                    _ => [&[0xc0, 0, 0, 0, 1, ID_BYTES as u8], &id[..], &[round]].concat(),
                };
                sender.send_to(&packet, address).expect("loopback takes it");
                let mut got = [0; 64];
                let (length, from) = socket.recv_from(&mut got).expect("it comes here");
                assert_eq!((&got[..length], from), (&packet[..], sender.local_addr().expect("it")));
            }
        }
    }
}

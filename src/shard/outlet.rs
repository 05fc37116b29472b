//! Where a viewer's bytes go: to a socket of its own, or to whatever carries
//! many viewers at once over one socket.
//!
//! A plain socket is the common case, and the fan-out loop writes to it without
//! asking here. Everyone else's members are marked
//! [`INDIRECT`](super::room::INDIRECT) and come by way of
//! [`Connections::give`].

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::carrier_stats::CarrierStats;
use super::connection::{Connections, ViewerKey};
use super::room::{BACKLOGGED, INDIRECT};
use super::secure::{Sealed, Secured};
use super::stats::ShardStats;
use crate::engine::delivery::Cut;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::shared::SharedFrame;

/// Buffers one vectored write hands over; Linux takes up to 1,024, and 64 fill
/// a socket's send buffer many times over.
const MAX_CHUNKS: usize = 64;

/// A viewer, as its [`Carrier`] knows it.
pub type Link = u32;

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// It goes out next.
    Taken,
    /// It goes out next, instead of older ones that had not gone out.
    Displaced,
    /// The viewer takes none, or none of this size.
    Unfit,
}

/// Carries viewers that have no socket of their own, lane by lane. It belongs to
/// the shard's thread, and nothing leaves it before [`flush`](Self::flush).
pub trait Carrier {
    /// Bytes for a viewer's stream of everything in order. Returns how many were
    /// taken.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none at present: whoever drives the shard calls
    /// [`Shard::writable`](super::Shard::writable) once it does again. Anything
    /// else: the viewer is gone.
    fn write(&mut self, link: Link, bytes: &Bytes) -> io::Result<usize>;

    /// A whole message for a viewer's stream of what is important.
    ///
    /// # Errors
    /// When more of these wait than may.
    fn write_important(&mut self, link: Link, message: &Bytes) -> io::Result<()>;

    /// A whole message that may be lost.
    fn datagram(&mut self, link: Link, message: &Bytes) -> Datagram;

    /// Ends the connection once everything before is out.
    fn close(&mut self, link: Link, code: u16, reason: &'static str);

    /// The viewer's row is free: whatever is left of the connection is nobody's.
    fn release(&mut self, link: Link);

    /// Something for this viewer comes soon.
    fn expect(&self, link: Link);

    /// Sends what was given since the last call.
    fn flush(&mut self);

    /// What it has done.
    fn stats(&self) -> CarrierStats;
}

/// What brings a viewer's bytes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket in clear.
    WebSocket,
    /// WebSocket over TLS.
    WebSocketTls,
    /// Raw QUIC.
    Quic,
    /// WebTransport over HTTP/3.
    WebTransport,
}

impl Transport {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All, in the order of their index.
    pub const ALL: [Transport; Self::COUNT] =
        [Transport::WebSocket, Transport::WebSocketTls, Transport::Quic, Transport::WebTransport];

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Transport::WebSocket => "websocket",
            Transport::WebSocketTls => "websocket_tls",
            Transport::Quic => "quic",
            Transport::WebTransport => "webtransport",
        }
    }
}

/// Where one viewer's bytes go.
pub(super) enum Outlet<'a> {
    /// To its own socket.
    Socket(&'a TcpStream),
    /// To its own socket, over TLS.
    Sealed(Sealed<'a>),
    /// By way of a carrier.
    Carried(&'a mut dyn Carrier, Link),
}

impl Outlet<'_> {
    /// Writes some of `bytes`.
    pub(super) fn write(&mut self, bytes: &Bytes) -> io::Result<usize> {
        match self {
            Outlet::Socket(stream) => stream.write(bytes),
            Outlet::Sealed(sealed) => sealed.write(bytes),
            Outlet::Carried(carrier, link) => carrier.write(*link, bytes),
        }
    }

    /// Writes some of what waits, as much in one go as it can.
    pub(super) fn write_chunks<'b>(
        &mut self,
        mut chunks: impl Iterator<Item = &'b Bytes>,
    ) -> io::Result<usize> {
        match self {
            Outlet::Socket(stream) => {
                let chunks: SmallVec<[IoSlice<'_>; MAX_CHUNKS]> =
                    chunks.take(MAX_CHUNKS).map(|chunk| IoSlice::new(chunk)).collect();
                stream.write_vectored(&chunks)
            }
            Outlet::Sealed(sealed) => sealed.write_chunks(chunks),
            Outlet::Carried(carrier, link) => match chunks.next() {
                Some(chunk) => carrier.write(*link, chunk),
                None => Ok(0),
            },
        }
    }

    /// Nothing more will be written. Whether or not this works, the linger timer
    /// ends the connection.
    pub(super) fn finish(&mut self, reason: CloseReason) {
        match self {
            Outlet::Socket(stream) => {
                let _ = stream.shutdown(Shutdown::Write);
            }
            Outlet::Sealed(sealed) => sealed.finish(),
            Outlet::Carried(carrier, link) => {
                let code = reason.code().unwrap_or_default();
                carrier.close(*link, code, reason.name());
            }
        }
    }
}

/// A link in four bytes, absent or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct NonMaxLink(NonZeroU32);

impl NonMaxLink {
    pub(super) fn new(link: Link) -> Option<Self> {
        NonZeroU32::new(!link).map(Self)
    }

    pub(super) fn get(self) -> Link {
        !self.0.get()
    }
}

/// The way out of a viewer, from the parts of [`Connections`] that it takes.
pub(super) fn outlet<'a>(
    streams: &'a [Option<TcpStream>],
    secured: &'a mut Secured,
    links: &[Option<NonMaxLink>],
    carrier: &'a mut Option<Box<dyn Carrier>>,
    index: u32,
) -> Option<Outlet<'a>> {
    if let Some(stream) = streams.get(index as usize)? {
        return Some(match secured.outlet(index, stream) {
            Some(sealed) => Outlet::Sealed(sealed),
            None => Outlet::Socket(stream),
        });
    }
    let link = (*links.get(index as usize)?)?;
    carrier.as_deref_mut().map(|carrier| Outlet::Carried(carrier, link.get()))
}

impl Connections {
    /// Takes over a viewer that the carrier brings.
    pub fn open_carried(&mut self, link: Link, burst: u32, now: Time) -> ViewerKey {
        let key = self.row_for(Format::Stream, burst, now);
        self.links[key.index as usize] = NonMaxLink::new(link);
        self.carried += 1;
        key
    }

    /// How a viewer's carrier knows it.
    #[must_use]
    pub(super) fn link(&self, index: u32) -> Option<Link> {
        self.links.get(index as usize)?.map(NonMaxLink::get)
    }

    /// Where a viewer's bytes go.
    pub(super) fn outlet(&mut self, index: u32) -> Option<Outlet<'_>> {
        let Self { streams, secured, links, carrier, .. } = self;
        outlet(streams, secured, links, carrier, index)
    }

    /// What a room must know of a viewer.
    #[must_use]
    pub fn marks(&self, index: u32) -> u8 {
        let backlogged = if self.has_backlog(index) { BACKLOGGED } else { 0 };
        let indirect = self.link(index).is_some() || self.is_secure(index);
        let indirect = if indirect { INDIRECT } else { 0 };
        backlogged | indirect
    }

    /// Viewers may be carried from now on. Call before any is.
    pub fn attach_carrier(&mut self, carrier: Box<dyn Carrier>) {
        self.carrier = Some(carrier);
    }

    /// Viewers by [`Transport`], closing ones included.
    #[must_use]
    pub fn by_transport(&self) -> [u64; Transport::COUNT] {
        let carried = self.links.iter().flatten().count() as u64;
        let sockets = self.streams.iter().flatten().count() as u64;
        let secured = (0..self.streams.len() as u32).filter(|i| self.is_secure(*i)).count() as u64;
        let web = self.carrier_stats().web_viewers.min(carried);
        [sockets - secured.min(sockets), secured, carried - web, web]
    }

    /// What the carrier has done.
    #[must_use]
    pub fn carrier_stats(&self) -> CarrierStats {
        self.carrier.as_ref().map_or_else(CarrierStats::default, |carrier| carrier.stats())
    }

    /// Something comes soon for a viewer, which may be carried.
    pub(super) fn expect(&self, index: u32) {
        if let (Some(link), Some(carrier)) = (self.link(index), &self.carrier) {
            carrier.expect(link);
        }
    }

    /// Sends what carried viewers were given.
    pub fn flush_carried(&mut self) {
        if let Some(carrier) = &mut self.carrier {
            carrier.flush();
        }
    }

    /// A room's frame for a member whose bytes do not go straight to a socket.
    /// Returns whether all of it is on its way.
    pub(super) fn give(
        &mut self,
        index: u32,
        frame: &Arc<SharedFrame>,
        stats: &mut ShardStats,
        now: Time,
    ) -> io::Result<bool> {
        if self.link(index).is_none() {
            let format = self.row(index).format;
            return self.offer(index, frame, format, stats, now);
        }
        match self.lanes(index, frame, stats)? {
            Some(rest) => self.offer(index, &rest, Format::Stream, stats, now),
            None => Ok(true),
        }
    }

    /// Gives a carried viewer what does not go in order with the rest of its
    /// room. Returns the rest: all of the frame, for a viewer with a socket.
    pub(super) fn lanes(
        &mut self,
        index: u32,
        frame: &Arc<SharedFrame>,
        stats: &mut ShardStats,
    ) -> io::Result<Option<Arc<SharedFrame>>> {
        let Some(link) = self.link(index) else { return Ok(Some(Arc::clone(frame))) };
        let Some(carrier) = &mut self.carrier else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let split = frame.split();
        if let Some(important) = &split.important {
            carrier.write_important(link, important.bytes(Format::Stream, Cut::Full))?;
            stats.deliveries += important.deliveries(Cut::Full);
        }
        let Some(sampled) = &split.sampled else { return Ok(split.ordered.clone()) };
        match carrier.datagram(link, sampled.bytes(Format::Stream, Cut::Full)) {
            Datagram::Taken => {}
            Datagram::Displaced => stats.displaced_datagrams += 1,
            Datagram::Unfit => return Ok(split.rest.clone()),
        }
        stats.deliveries += sampled.deliveries(Cut::Full);
        Ok(split.ordered.clone())
    }

    fn offer(
        &mut self,
        index: u32,
        frame: &Arc<SharedFrame>,
        format: Format,
        stats: &mut ShardStats,
        now: Time,
    ) -> io::Result<bool> {
        let bytes = frame.bytes(format, Cut::Full);
        let Some(mut outlet) = self.outlet(index) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let written = match outlet.write(bytes) {
            Ok(written) => written,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                self.queue_rest_of_room(index, frame, stats, now);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        stats.socket_writes += 1;
        stats.socket_bytes += written as u64;
        if written < bytes.len() {
            self.queue_rest(index, frame, written, now);
            return Ok(false);
        }
        stats.deliveries += frame.deliveries(Cut::Full);
        Ok(true)
    }
}

//! Counters of what happens before a shard is involved. One set per shard
//! thread, so that the atomics are shared with nobody but a scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Routes, as metrics name them.
pub const ROUTES: [&str; 9] =
    ["events_post", "events_get", "room", "admission", "openapi", "demo", "ws", "grpc", "other"];

/// HTTP status classes, as metrics name them.
pub const STATUSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Outcomes of a WebSocket handshake, as metrics name them.
pub const HANDSHAKES: [&str; 10] = [
    "accepted",
    "bad_tls",
    "tls_off",
    "tls_required",
    "bad_handshake",
    "foreign_origin",
    "no_subprotocol",
    "timeout",
    "aborted",
    "gave_way",
];

/// Versions of TLS, as metrics name them.
pub const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Whether a TLS session was new or resumed, as metrics name it.
pub const TLS_SESSIONS: [&str; 2] = ["new", "resumed"];

/// Why a TLS handshake failed, as metrics name it: no TLS that could be
/// understood; no version, cipher or protocol in common; the client refused (the
/// certificate, mostly); the connection ended or was ended before.
pub const TLS_FAILURES: [&str; 4] = ["malformed", "incompatible", "alert", "unfinished"];

/// Why an event was refused before it reached a room.
pub const REFUSALS: [&str; 11] = [
    "bad_id",
    "bad_kind",
    "bad_user",
    "bad_key",
    "bad_amount",
    "forbidden_kind",
    "bad_payload",
    "bad_event",
    "busy",
    "client_limited",
    "application_limited",
];

/// What requests of gRPC streams were answered with, as metrics name it.
pub const GRPC_RESULTS: [&str; 8] = [
    "answered",
    "bad_room",
    "forbidden_room",
    "too_many_events",
    "request_timeout",
    "message_timeout",
    "busy",
    "draining",
];

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct EdgeStats {
    /// How long a task of the shard's thread waits for its turn, in
    /// microseconds: the last measurement.
    pub lag_micros: AtomicU64,
    /// Sockets taken from the listener.
    pub accepted: AtomicU64,
    /// Sockets turned away at the connection limit.
    pub turned_away: AtomicU64,
    /// Connections that were accepted and not yet let in.
    pub at_the_door: AtomicU64,
    /// Connections whose first request has not come.
    pub handshaking: AtomicU64,
    /// HTTP connections that are no viewers.
    pub http_held: AtomicU64,
    /// Those that wait to be one.
    pub http_waiting: AtomicU64,
    /// Idle HTTP connections that were ended for others that waited for a place.
    pub gave_way: AtomicU64,
    /// HTTP connections without a place for which none became free.
    pub placeless: AtomicU64,
    /// By [`HANDSHAKES`].
    pub handshakes: [AtomicU64; HANDSHAKES.len()],
    /// TLS handshakes, by [`TLS_VERSIONS`] and [`TLS_SESSIONS`].
    pub tls_handshakes: [[AtomicU64; TLS_SESSIONS.len()]; TLS_VERSIONS.len()],
    /// By [`TLS_FAILURES`].
    pub tls_failures: [AtomicU64; TLS_FAILURES.len()],
    /// By [`ROUTES`] and [`STATUSES`].
    pub requests: [[AtomicU64; STATUSES.len()]; ROUTES.len()],
    /// By [`REFUSALS`].
    pub refused: [AtomicU64; REFUSALS.len()],
    /// Requests that wait for their turn to be read.
    pub waiting: AtomicU64,
    /// How long requests waited, in microseconds.
    pub waited_micros: AtomicU64,
    /// Requests that were read.
    pub read: AtomicU64,
    /// gRPC streams that are open.
    pub grpc_streams: AtomicU64,
    /// By [`GRPC_RESULTS`].
    pub grpc_requests: [AtomicU64; GRPC_RESULTS.len()],
}

impl EdgeStats {
    /// How long whoever is served now has waited for its turn.
    #[must_use]
    pub fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_micros.load(Ordering::Relaxed))
    }

    /// Counts a request that waited so long before it was read.
    pub fn request_waited(&self, waited: Duration) {
        self.waited_micros.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
        self.read.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answered request.
    pub fn request(&self, route: &str, status: u16) {
        let route = position(&ROUTES, route);
        let class = usize::from(status / 100).clamp(2, 5) - 2;
        self.requests[route][class].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a handshake.
    pub fn handshake(&self, outcome: &str) {
        self.handshakes[position(&HANDSHAKES, outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a TLS handshake that failed.
    pub fn tls_failed(&self, reason: &str) {
        self.tls_failures[position(&TLS_FAILURES, reason)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answered request of a gRPC stream.
    pub fn grpc_request(&self, result: &str) {
        self.grpc_requests[position(&GRPC_RESULTS, result)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refused event.
    pub fn refuse(&self, code: &str) {
        self.refused[position(&REFUSALS, code)].fetch_add(1, Ordering::Relaxed);
    }
}

fn position(names: &[&str], name: &str) -> usize {
    let found = names.iter().position(|known| *known == name);
    debug_assert!(found.is_some(), "{name} has no counter");
    found.unwrap_or(names.len() - 1)
}

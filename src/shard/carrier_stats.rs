//! What carriers of viewers count.

/// What became of requests over HTTP/3, as metrics name it: a WebTransport
/// session, a page from elsewhere, or nothing that is served.
pub const SESSIONS: [&str; 3] = ["accepted", "foreign_origin", "bad_handshake"];

/// What became of copies of important events, for viewers whose path loses packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Sent.
    pub sent: u64,
    /// Not, for the viewer had its share.
    pub budget: u64,
    /// Not, for it does not fit into a datagram.
    pub too_large: u64,
    /// Not, for the viewer takes no datagrams.
    pub unsupported: u64,
    /// Not, for what was sent before still waits.
    pub congested: u64,
}

impl CopyStats {
    /// Adds another's.
    fn absorb(&mut self, other: &CopyStats) {
        self.sent += other.sent;
        self.budget += other.budget;
        self.too_large += other.too_large;
        self.unsupported += other.unsupported;
        self.congested += other.congested;
    }

    /// With their names in metrics.
    #[must_use]
    pub fn by_result(&self) -> [(&'static str, u64); 5] {
        [
            ("sent", self.sent),
            ("budget", self.budget),
            ("too_large", self.too_large),
            ("unsupported", self.unsupported),
            ("congested", self.congested),
        ]
    }
}

/// What a carrier has done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Connections there are, handshakes included.
    pub connections: u64,
    /// Handshakes in progress.
    pub handshakes: u64,
    /// Viewers over WebTransport.
    pub web_viewers: u64,
    /// Handshakes that were completed.
    pub accepted: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// Connections refused, for there were too many.
    pub refused: u64,
    /// Handshakes that were told to prove their address first.
    pub retries: u64,
    /// Datagrams of the network that came.
    pub datagrams_received: u64,
    /// Bytes of them.
    pub bytes_received: u64,
    /// Datagrams of the network that were sent.
    pub datagrams_sent: u64,
    /// Bytes of them.
    pub bytes_sent: u64,
    /// Datagrams that came to the wrong shard and were handed over.
    pub handed_over: u64,
    /// Times that the kernel took no more datagrams.
    pub blocked: u64,
    /// Messages in datagrams from viewers, which mean nothing.
    pub ignored: u64,
    /// Datagrams for another shard that had too many to take over.
    pub strays_lost: u64,
    /// Answers without a connection that the kernel had no room for.
    pub answers_lost: u64,
    /// Copies of important events.
    pub copies: CopyStats,
    /// Requests over HTTP/3, by [`SESSIONS`].
    pub sessions: [u64; SESSIONS.len()],
}

impl CarrierStats {
    /// Adds another's.
    pub fn absorb(&mut self, other: &CarrierStats) {
        self.connections += other.connections;
        self.handshakes += other.handshakes;
        self.web_viewers += other.web_viewers;
        self.accepted += other.accepted;
        self.failed += other.failed;
        self.refused += other.refused;
        self.retries += other.retries;
        self.datagrams_received += other.datagrams_received;
        self.bytes_received += other.bytes_received;
        self.datagrams_sent += other.datagrams_sent;
        self.bytes_sent += other.bytes_sent;
        self.handed_over += other.handed_over;
        self.blocked += other.blocked;
        self.ignored += other.ignored;
        self.strays_lost += other.strays_lost;
        self.answers_lost += other.answers_lost;
        self.copies.absorb(&other.copies);
        for (sum, more) in self.sessions.iter_mut().zip(other.sessions) {
            *sum += more;
        }
    }

    /// Counts a request over HTTP/3.
    pub fn session(&mut self, result: &str) {
        let at = SESSIONS.iter().position(|known| *known == result);
        debug_assert!(at.is_some(), "{result} has no counter");
        self.sessions[at.unwrap_or(SESSIONS.len() - 1)] += 1;
    }
}

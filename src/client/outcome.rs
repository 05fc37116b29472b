//! What became of an event, as its publisher is told.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// The end of an event's way. Exactly one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The room has it, now or from an earlier attempt.
    Accepted {
        /// Its number; none on the sampled lane.
        seq: Option<u64>,
    },
    /// The server refused it, and trying again was not worth it or not allowed.
    Rejected(Refusal),
    /// It was not sent: the server would have refused it for its admission level.
    ShedLocally {
        /// When it may be worth trying again, with jitter.
        retry_after: Duration,
    },
    /// Its time to live ended before it could be sent.
    Expired,
    /// It was not sent: the publisher's queue was full, and what came or waited
    /// was more important. The same id may be published again.
    Displaced,
    /// There was no answer to use. Whether the room has it is unknown; the same
    /// id may be sent again.
    Failed(Failure),
    /// The publisher was closed or dropped before there was an answer. Whether
    /// the room has it is unknown.
    Abandoned,
}

/// Why the server refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: String,
    /// For people.
    pub reason: String,
    /// When to try again, if that may help.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

/// Why a request has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// Nobody listens at the address.
    #[error("no connection: {0}")]
    Connect(String),
    /// The server's certificate is not believed; see
    /// [`PublisherSettings::trust`](super::PublisherSettings).
    #[error("the server's certificate is not believed: {0}")]
    Untrusted(String),
    /// The answer did not come in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke off.
    #[error("the request failed: {0}")]
    Broken(String),
    /// The answer is not one of Tidegate's.
    #[error("status {status}, and not as Tidegate answers")]
    Malformed {
        /// HTTP status.
        status: u16,
    },
}

impl Failure {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn temporary(&self) -> bool {
        match self {
            Failure::Connect(_) | Failure::Timeout | Failure::Broken(_) => true,
            // It takes people to change that.
            Failure::Untrusted(_) => false,
            // An answer that was cut or spoilt on its way, or somebody between us
            // and the server who says that it is not there.
            Failure::Malformed { status } => matches!(status, 200 | 408 | 429 | 500..=599),
        }
    }
}

/// Why an event is not taken up at all. Nothing of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PublishError {
    /// As many events or bytes are held as may be
    /// ([`PublisherSettings`](super::PublisherSettings)), and nothing less
    /// important waits.
    #[error("the publisher's queue is full")]
    QueueFull,
    /// The publisher's task is gone.
    #[error("the publisher is closed")]
    Closed,
}

//! How requests of a viewer end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;

/// An event that a viewer says. The server checks its limits and refuses with a
/// code what breaks them; who says it is in the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// Unique within the room: an id that was taken before is delivered once,
    /// however often it is sent. Absent: random.
    pub id: Option<String>,
    /// Name of the kind, as the server's configuration has it.
    pub kind: String,
    /// What it says. Bytes that are JSON reach other viewers as JSON.
    pub payload: Bytes,
    /// What `sum` and `latest` kinds merge by.
    pub key: Option<String>,
    /// What a `sum` adds.
    pub amount: Option<i64>,
}

impl NewEvent {
    /// An event with a payload of bytes.
    #[must_use]
    pub fn new(kind: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { kind: kind.into(), payload: payload.into(), ..Self::default() }
    }

    /// An event with `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be JSON, such as a map whose keys are no strings.
    pub fn json<T: Serialize>(
        kind: impl Into<String>,
        value: &T,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::new(kind, serde_json::to_vec(value)?))
    }
}

/// Why the server refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: String,
    /// For people.
    pub reason: String,
    /// When to try again, if that may help.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

/// Why a viewer cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address is no `ws`, `wss`, `http` or `https` URL.
    #[error("not a ws://, wss://, http:// or https:// URL: {0}")]
    Url(String),
    /// There is no tokio runtime here to run its task.
    #[error("a viewer needs a tokio runtime")]
    NoRuntime,
    /// TLS could not be set up.
    #[error("TLS does not start: {0}")]
    Tls(String),
}

/// Why a viewer is not in a room.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// This viewer is in the room already.
    #[error("this viewer is in the room already")]
    AlreadyJoined,
    /// The server refused for good.
    #[error("{0}")]
    Refused(Failure),
    /// The server closed the connection and said not to come back.
    #[error("the server closed: {code} {reason}")]
    Dismissed {
        /// 3500 to 3999, or the status of a refused upgrade.
        code: u16,
        /// Why, for people.
        reason: String,
    },
    /// There was no token to join with.
    #[error("no token: {0}")]
    NoToken(String),
    /// The viewer was closed or dropped.
    #[error("the viewer is closed")]
    Closed,
}

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The server refused it.
    #[error("{0}")]
    Rejected(Failure),
    /// As many events wait for an answer as may; see
    /// [`Options::publishes`](super::Options::publishes).
    #[error("too many events wait for an answer")]
    Full,
    /// An event with this id waits for its answer.
    #[error("an event with this id waits for its answer")]
    SameId,
    /// There was no answer in time; see
    /// [`Options::publish_timeout`](super::Options::publish_timeout). Whether the
    /// room has it is unknown; the same id may be published again.
    #[error("no answer in time")]
    NoAnswer,
    /// The room was left, or the viewer is closed. Whether the room has it is
    /// unknown.
    #[error("this viewer is not in the room any more")]
    Closed,
}

/// An event that the room has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its number; none on the sampled lane.
    pub seq: Option<u64>,
}

//! A deadline for messages that were begun.
//!
//! A stream may be silent between messages for as long as it likes. But who
//! begins one and does not finish it holds a place and what has come of it. So a
//! message must be whole within the time that a body over HTTP has
//! (`ingress.request_timeout_ms`), counted from its first byte: more bytes do not
//! move the deadline, or one byte at a time would hold it off for ever.
//!
//! Time in which nobody reads is not the caller's: [`Restart`] gives it the whole
//! time again. A stream is resumed as often as answers are taken, and no more
//! than `ingress.grpc_in_flight` of those are to come while a message is unfinished.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Buf as _, Bytes};
use hyper::body::Frame;
use tokio::time::{Sleep, sleep};
use tonic::Status;

/// Bytes before each message: a flag and the length (gRPC over HTTP/2,
/// "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// A request's body whose messages have a deadline.
pub(super) struct Deadline {
    body: Body,
    framing: Framing,
    patience: Duration,
    /// Runs while a message is unfinished.
    timer: Option<Pin<Box<Sleep>>>,
    restart: Arc<AtomicBool>,
}

/// Gives an unfinished message the whole time again.
#[derive(Debug, Clone)]
pub(super) struct Restart(Arc<AtomicBool>);

impl Restart {
    /// The stream is read again, after it was not for a while.
    pub(super) fn resumed(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Deadline {
    pub(super) fn new(body: Body, patience: Duration) -> (Self, Restart) {
        let restart = Arc::new(AtomicBool::new(false));
        let framing = Framing::default();
        let deadline = Self { body, framing, patience, timer: None, restart: Arc::clone(&restart) };
        (deadline, Restart(restart))
    }

    /// What came of the stream.
    fn advance(&mut self, bytes: &[u8]) {
        let began = self.framing.advance(bytes);
        if !self.framing.is_open() {
            self.timer = None;
        } else if began {
            self.timer = Some(Box::pin(sleep(self.patience)));
        }
    }
}

impl HttpBody for Deadline {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let resumed = self.restart.swap(false, Ordering::Relaxed);
        if resumed && self.timer.is_some() {
            self.timer = Some(Box::pin(sleep(self.patience)));
        }
        // What has come counts, even if it was late to be looked at.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                self.advance(data);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        let reason = "message_timeout: a message that was begun did not arrive in time";
        Poll::Ready(Some(Err(Status::deadline_exceeded(reason))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The connection, or the caller's own end of the stream.
fn broken(error: axum::Error) -> Status {
    Status::from_error(error.into_inner())
}

/// Where in a message a stream stands.
#[derive(Debug, Default)]
struct Framing {
    /// Of the prefix, while it is not whole.
    prefix: [u8; PREFIX],
    have: usize,
    /// Bytes that its message still lacks.
    left: u64,
}

impl Framing {
    /// A message was begun and is not finished.
    fn is_open(&self) -> bool {
        self.have > 0 || self.left > 0
    }

    /// Goes on by these bytes; returns whether the message that is open after them
    /// began in them.
    fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut began = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let some = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                bytes.advance(some);
                self.left -= some as u64;
                continue;
            }
            began |= self.have == 0;
            let some = (PREFIX - self.have).min(bytes.len());
            self.prefix[self.have..self.have + some].copy_from_slice(&bytes[..some]);
            bytes.advance(some);
            self.have += some;
            if self.have == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length).into();
                self.have = 0;
            }
        }
        began && self.is_open()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Messages of these lengths, one after the other.
    fn framed(lengths: &[u32]) -> Vec<u8> {
        let message = |length: &u32| {
            let mut bytes = vec![0];
            bytes.extend(length.to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, *length as usize));
            bytes
        };
        lengths.iter().flat_map(message).collect()
    }

    #[test]
    fn a_message_is_open_from_its_first_byte_to_its_last() {
        let bytes = framed(&[3, 0]);
        let mut framing = Framing::default();
        let mut open = Vec::new();
        for byte in &bytes {
            framing.advance(&[*byte]);
            open.push(framing.is_open());
        }
        let wanted = [true, true, true, true, true, true, true, false, true, true, true, true];
        assert_eq!(open[..12], wanted);
        assert!(!open[12], "an empty message ends with its prefix");
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_stream_make_no_difference(
            lengths in prop::collection::vec(0..40u32, 1..20),
            cuts in prop::collection::vec(1..30usize, 1..200),
        ) {
            let bytes = framed(&lengths);
            let mut starts = vec![0];
            for length in &lengths {
                starts.push(starts[starts.len() - 1] + PREFIX + *length as usize);
            }
            let (mut framing, mut at) = (Framing::default(), 0);
            for cut in cuts.into_iter().chain(std::iter::repeat(7)) {
                let end = (at + cut).min(bytes.len());
                let began = framing.advance(&bytes[at..end]);
                prop_assert_eq!(framing.is_open(), !starts.contains(&end));
                let start = starts.iter().rev().find(|start| **start <= end).copied();
                let inside = framing.is_open() && start.is_some_and(|start| start >= at);
                prop_assert_eq!(began, inside);
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
        }
    }
}

//! What a viewer confirms: up to which number it has everything, and a digest of
//! what that was.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Asked, Draw, Say, spread};
use crate::engine::digest::{Digest, MAX_RANGE};
use crate::engine::time::Time;

#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Asked to acknowledge when everything up to here is there, and when.
    ack: Option<(u64, Time)>,
    /// Asked for a digest from here on, and when.
    digest: Option<(u64, Time)>,
    /// Hashes of what was shown, without a hole; the last one is of `last`.
    pub(super) hashes: VecDeque<u32>,
    last: u64,
}

impl Receipts {
    /// What was asked on another connection is void.
    pub(super) fn void(&mut self) {
        (self.ack, self.digest) = (None, None);
    }

    /// What was shown is of no use for a digest of what follows.
    pub(super) fn forget(&mut self) {
        self.hashes.clear();
    }

    /// An important event was shown.
    pub(super) fn shown(&mut self, number: u64, hash: u32) {
        if number != self.last + 1 {
            self.hashes.clear();
        }
        self.last = number;
        self.hashes.push_back(hash);
        if self.hashes.len() as u64 > MAX_RANGE {
            self.hashes.pop_front();
        }
    }

    /// A frame that this viewer is to acknowledge, with events up to `upto`.
    pub(super) fn asked(&mut self, asked: Asked, upto: u64, now: Time, draw: Draw<'_>) {
        let at = now + spread(draw, Duration::from_millis(asked.within_ms.into()));
        // The earlier of two moments stands, for both.
        let at = self.ack.map_or(at, |(_, before)| before.min(at));
        self.ack = Some((upto, at));
        if let Some(from) = asked.digest_from {
            let from = self.digest.map_or(from, |(before, _)| before.min(from));
            self.digest = Some((from, at));
        }
    }

    /// To be said as soon as everything up to `upto` is there.
    pub(super) fn acknowledge(&mut self, upto: u64, now: Time) {
        self.ack = Some((upto, now));
    }

    /// With a hole an acknowledgement waits until that is filled; the server
    /// sends again or tells to pull meanwhile.
    pub(super) fn next_deadline(&self, important: u64) -> Option<Time> {
        let ack = self.ack.filter(|(upto, _)| *upto <= important);
        [ack, self.digest].into_iter().flatten().map(|(_, at)| at).min()
    }

    /// What is to be said now.
    pub(super) fn due(&mut self, important: u64, now: Time) -> Option<Say> {
        if let Some((upto, at)) = self.ack
            && upto <= important
            && at <= now
        {
            self.ack = None;
            return Some(Say::Ack(important));
        }
        let (from, _) = self.digest.take_if(|(_, at)| *at <= now)?;
        self.digest(from, important)
    }

    /// What was shown from `from` on, but not before it came in.
    pub(super) fn digest(&self, from: u64, important: u64) -> Option<Say> {
        if self.hashes.is_empty() || self.last != important {
            return None;
        }
        let first = important + 1 - self.hashes.len() as u64;
        let from = from.max(first);
        if from > important {
            return None;
        }
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        let hashes = self.hashes.iter().skip(skip);
        let digest = hashes.fold(Digest::default(), |digest, hash| Digest {
            count: digest.count + 1,
            xor: digest.xor ^ hash,
        });
        Some(Say::Digest { from, to: important, digest })
    }
}

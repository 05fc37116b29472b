//! An event as somebody wrote it, before it is one: checked here once, however
//! it came in.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::event::{Event, Payload};
use super::kind::Kinds;
use super::time::Time;

/// Longest event id, in bytes. Ids are remembered as hashes, so this bounds
/// what frames carry, not memory.
pub const MAX_ID_BYTES: usize = 128;
/// Longest kind name, in bytes.
pub const MAX_KIND_BYTES: usize = 64;
/// Longest merge key, in bytes.
pub const MAX_KEY_BYTES: usize = 128;
/// Longest user name, in bytes.
pub const MAX_USER_BYTES: usize = 128;
/// Amounts are below this in magnitude: the integers that a double holds.
pub const MAX_AMOUNT: i64 = (1 << 53) - 1;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// Publisher's idempotency key.
    pub id: &'a str,
    /// Kind name.
    pub kind: &'a str,
    /// Who caused it.
    pub user: &'a str,
    /// Content.
    pub payload: Payload,
    /// Merge key.
    pub key: Option<&'a str>,
    /// What a `sum` adds.
    pub amount: Option<i64>,
    /// Time to live in milliseconds.
    pub ttl_ms: Option<u64>,
}

/// Why a draft is no event. The text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DraftError {
    /// `id` is missing or too long.
    #[error("an id has 1 to {MAX_ID_BYTES} bytes")]
    BadId,
    /// `kind` is missing or too long.
    #[error("a kind has 1 to {MAX_KIND_BYTES} bytes")]
    BadKind,
    /// `user` is too long.
    #[error("a user has at most {MAX_USER_BYTES} bytes")]
    BadUser,
    /// `key` is too long.
    #[error("a key has at most {MAX_KEY_BYTES} bytes")]
    BadKey,
    /// `amount` is out of range.
    #[error("an amount is below 2^53 in magnitude")]
    BadAmount,
    /// The kind is not open to viewers.
    #[error("viewers may not publish this kind")]
    ForbiddenKind,
}

impl DraftError {
    /// Codes in the order of [`DraftError::index`].
    pub const CODES: [&'static str; 6] =
        ["bad_id", "bad_kind", "bad_user", "bad_key", "bad_amount", "forbidden_kind"];

    /// Index into per-error tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Code on the wire and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        Self::CODES[self.index()]
    }
}

impl Draft<'_> {
    /// The event, if it keeps every limit that does not depend on its room.
    ///
    /// # Errors
    /// The first [`DraftError`].
    pub fn check(self, kinds: &Kinds, any_kind: bool, now: Time) -> Result<Event, DraftError> {
        if self.id.is_empty() || self.id.len() > MAX_ID_BYTES {
            return Err(DraftError::BadId);
        }
        if self.kind.is_empty() || self.kind.len() > MAX_KIND_BYTES {
            return Err(DraftError::BadKind);
        }
        if self.user.len() > MAX_USER_BYTES {
            return Err(DraftError::BadUser);
        }
        if self.key.is_some_and(|key| key.len() > MAX_KEY_BYTES) {
            return Err(DraftError::BadKey);
        }
        if self.amount.is_some_and(|amount| amount.unsigned_abs() > MAX_AMOUNT.unsigned_abs()) {
            return Err(DraftError::BadAmount);
        }
        let kind = kinds.resolve(self.kind);
        if !any_kind && !kind.viewer_publish {
            return Err(DraftError::ForbiddenKind);
        }
        Ok(Event {
            id: self.id.into(),
            kind,
            user: self.user.into(),
            payload: self.payload,
            key: self.key.map(Arc::from),
            amount: self.amount,
            ttl: self.ttl_ms.map(Duration::from_millis),
            received: now,
            mark: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::Tier;
    use crate::engine::kind::{Ack, Kind, Lane, Merge};

    fn kinds() -> Kinds {
        let chat = Kind {
            name: "chat".into(),
            lane: Lane::Ordered,
            merge: Merge::Append,
            tier: Tier(3),
            ttl: None,
            max_payload_bytes: 100,
            ack: Ack::Logged,
            viewer_publish: true,
            idle_reset: None,
        };
        let unknown = Kind { name: "".into(), viewer_publish: false, ..chat.clone() };
        Kinds::new([chat], unknown)
    }

    fn draft() -> Draft<'static> {
        Draft {
            id: "1",
            kind: "chat",
            user: "u",
            payload: Payload { bytes: "null".into(), json: true },
            key: None,
            amount: None,
            ttl_ms: None,
        }
    }

    #[test]
    fn every_limit_has_its_code() {
        let long = "x".repeat(129);
        let cases = [
            (Draft { id: "", ..draft() }, DraftError::BadId),
            (Draft { id: &long, ..draft() }, DraftError::BadId),
            (Draft { kind: "", ..draft() }, DraftError::BadKind),
            (Draft { kind: &long, ..draft() }, DraftError::BadKind),
            (Draft { user: &long, ..draft() }, DraftError::BadUser),
            (Draft { key: Some(&long), ..draft() }, DraftError::BadKey),
            (Draft { amount: Some(1 << 53), ..draft() }, DraftError::BadAmount),
            (Draft { amount: Some(i64::MIN), ..draft() }, DraftError::BadAmount),
            (Draft { kind: "coupon", ..draft() }, DraftError::ForbiddenKind),
        ];
        for (draft, error) in cases {
            assert_eq!(draft.check(&kinds(), false, Time::default()), Err(error));
        }
        assert!(draft().check(&kinds(), false, Time::default()).is_ok());
    }
}

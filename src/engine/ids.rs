//! Identifiers and numbers that must not be mixed up.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest room name, in bytes.
pub const MAX_ROOM_ID_BYTES: usize = 128;

/// Name of a live room: 1 to [`MAX_ROOM_ID_BYTES`] bytes of `A-Z a-z 0-9 . _ : ~ -`.
///
/// The alphabet is RFC 3986's unreserved characters and the colon, so a name
/// stands in a URL path and in a log line without escaping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(Arc<str>);

/// Why a room name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RoomIdError {
    /// Empty, or longer than [`MAX_ROOM_ID_BYTES`].
    #[error("a room name has 1 to {MAX_ROOM_ID_BYTES} bytes")]
    Length,
    /// Holds a character outside the alphabet.
    #[error("a room name holds only letters, digits and . _ : ~ -")]
    Character,
}

impl RoomId {
    /// Checks length and alphabet.
    ///
    /// # Errors
    /// [`RoomIdError`] says which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, RoomIdError> {
        if name.is_empty() || name.len() > MAX_ROOM_ID_BYTES {
            return Err(RoomIdError::Length);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:~-".contains(&b);
        if !name.bytes().all(allowed) {
            return Err(RoomIdError::Character);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Position of a sequenced event (`ordered` or `important`) in its room, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// Position of an important event among the room's important events, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ImportantNo(pub u64);

/// Names one unbroken numbering of a room. Below 2^53, so that JSON readers
/// that hold numbers as doubles keep it exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(pub u64);

/// Index of a shard, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Business priority of a kind: 0 is the most important, [`Tier::LOWEST`] the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier(pub u8);

impl Tier {
    /// What an unknown kind gets.
    pub const LOWEST: Tier = Tier(63);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_names_outside_the_alphabet_or_length_are_refused() {
        assert!(RoomId::new("live:42.a_b~c-D").is_ok());
        assert!(RoomId::new(&"r".repeat(128)).is_ok());
        assert_eq!(RoomId::new(""), Err(RoomIdError::Length));
        assert_eq!(RoomId::new(&"r".repeat(129)), Err(RoomIdError::Length));
        for bad in ["a/b", "a b", "a*", "é", "a\n"] {
            assert_eq!(RoomId::new(bad), Err(RoomIdError::Character), "{bad:?}");
        }
    }
}

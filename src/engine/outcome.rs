//! What became of a published event, as its publisher is told.

use thiserror::Error;

use super::ids::Seq;

/// The room's answer to one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Taken. What the room sheds later it counts and announces.
    Accepted {
        /// Its number; none on the sampled lane.
        seq: Option<Seq>,
    },
    /// An event with this id was taken before, and is delivered once.
    Duplicate {
        /// The number the first one got.
        seq: Option<Seq>,
    },
    /// Not taken and not remembered: the same id may be tried again.
    Rejected(Refusal),
}

/// Why a room does not take an event. The text is meant for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Important events alone fill the buffer behind a frame that is still going out.
    #[error("the room's buffer is full of important events")]
    BufferFull,
    /// The kind has as many keys as it may have, or keyed state as many bytes.
    #[error("too many keys: the room keeps no further total or state")]
    TooManyKeys,
    /// The sum, or what one frame adds to it, would reach 2^53 in magnitude.
    #[error("the amount takes the sum beyond 2^53")]
    AmountOverflow,
    /// Larger than the kind allows.
    #[error("the payload is larger than the {0} bytes its kind allows")]
    PayloadTooLarge(usize),
    /// Its time to live was over on arrival.
    #[error("the event had expired when it arrived")]
    Expired,
    /// The room is not open, and its home has as many open as it may have.
    #[error("the server has as many rooms open as it may have")]
    TooManyRooms,
}

impl Refusal {
    /// How many refusals there are.
    pub const COUNT: usize = 6;

    /// Codes in the order of [`Refusal::index`].
    pub const CODES: [&'static str; Self::COUNT] = [
        "buffer_full",
        "too_many_keys",
        "amount_overflow",
        "payload_too_large",
        "expired",
        "too_many_rooms",
    ];

    /// Index into per-refusal tables.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Refusal::BufferFull => 0,
            Refusal::TooManyKeys => 1,
            Refusal::AmountOverflow => 2,
            Refusal::PayloadTooLarge(_) => 3,
            Refusal::Expired => 4,
            Refusal::TooManyRooms => 5,
        }
    }

    /// Code on the wire and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        Self::CODES[self.index()]
    }

    /// Whether the same event may be taken a little later.
    #[must_use]
    pub const fn temporary(self) -> bool {
        matches!(self, Refusal::BufferFull | Refusal::TooManyKeys | Refusal::TooManyRooms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exhausted_room_is_worth_a_retry() {
        assert!(Refusal::BufferFull.temporary() && Refusal::TooManyKeys.temporary());
        for refusal in [Refusal::AmountOverflow, Refusal::PayloadTooLarge(7), Refusal::Expired] {
            assert!(!refusal.temporary(), "{}", refusal.code());
        }
        assert_eq!(Refusal::PayloadTooLarge(7).code(), "payload_too_large");
        assert!(Refusal::PayloadTooLarge(7).to_string().contains("7 bytes"));
    }
}

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
    /// More arrives than the server can do, and what got in mattered more.
    #[error("the server is overloaded and takes what matters more")]
    Overloaded {
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// An operator has silenced the kind in this room.
    #[error("an operator has silenced this kind in the room")]
    Silenced {
        /// When that ends, in milliseconds.
        retry_after_ms: u32,
    },
    /// The room sends more than its fixed limit.
    #[error("the room has used up its rate of events")]
    RoomLimited {
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// The log cannot take it, and what is not on disk is not accepted.
    #[error("the log cannot take the event at present")]
    LogUnavailable,
    /// The user sends more than the fixed limit.
    #[error("the user has used up its rate of events")]
    UserLimited {
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
}

/// When the log may work again, in milliseconds.
pub const LOG_RETRY_MS: u32 = 1_000;

/// When an event may find room that was refused for lack of it, in milliseconds.
pub const RETRY_AFTER_MS: u32 = 500;

impl Refusal {
    /// How many refusals there are.
    pub const COUNT: usize = 11;

    /// Codes in the order of [`Refusal::index`].
    pub const CODES: [&'static str; Self::COUNT] = [
        "buffer_full",
        "too_many_keys",
        "amount_overflow",
        "payload_too_large",
        "expired",
        "too_many_rooms",
        "overloaded",
        "silenced",
        "room_limited",
        "user_limited",
        "log_unavailable",
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
            Refusal::Overloaded { .. } => 6,
            Refusal::Silenced { .. } => 7,
            Refusal::RoomLimited { .. } => 8,
            Refusal::UserLimited { .. } => 9,
            Refusal::LogUnavailable => 10,
        }
    }

    /// Code on the wire and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        Self::CODES[self.index()]
    }

    /// After how many milliseconds the same event may be taken; `None`: never.
    #[must_use]
    pub const fn retry_after_ms(self) -> Option<u32> {
        match self {
            Refusal::BufferFull | Refusal::TooManyKeys | Refusal::TooManyRooms => {
                Some(RETRY_AFTER_MS)
            }
            Refusal::LogUnavailable => Some(LOG_RETRY_MS),
            Refusal::Overloaded { retry_after_ms }
            | Refusal::Silenced { retry_after_ms }
            | Refusal::RoomLimited { retry_after_ms }
            | Refusal::UserLimited { retry_after_ms } => Some(retry_after_ms),
            Refusal::AmountOverflow | Refusal::PayloadTooLarge(_) | Refusal::Expired => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_is_worth_a_retry() {
        assert_eq!(Refusal::BufferFull.retry_after_ms(), Some(RETRY_AFTER_MS));
        assert_eq!(Refusal::Overloaded { retry_after_ms: 7 }.retry_after_ms(), Some(7));
        for refusal in [Refusal::AmountOverflow, Refusal::PayloadTooLarge(7), Refusal::Expired] {
            assert_eq!(refusal.retry_after_ms(), None, "{}", refusal.code());
        }
        assert_eq!(Refusal::PayloadTooLarge(7).code(), "payload_too_large");
        assert!(Refusal::PayloadTooLarge(7).to_string().contains("7 bytes"));
    }
}

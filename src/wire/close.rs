//! Close codes, in Centrifugo's manner: 3000 to 3499 a client should reconnect,
//! 3500 to 3999 it should not, 1000 to 1015 are the WebSocket protocol's own
//! (RFC 6455, section 7.4.1).

/// Why the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The server is draining; `goaway` said when to come back.
    Drain,
    /// A ping was not answered in time.
    PongTimeout,
    /// The viewer did not read what was sent, and thinning did not help.
    Slow,
    /// Nothing was joined in time.
    JoinTimeout,
    /// A message was begun and not finished in time.
    MessageTimeout,
    /// A message was not one of the protocol's.
    BadMessage,
    /// More messages per second than the limit, in spite of refusals.
    TooManyMessages,
    /// The WebSocket protocol was broken (RFC 6455: 1002).
    ProtocolError,
    /// Text where the subprotocol wants binary, or the reverse (1003).
    WrongDataType,
    /// Text that is not UTF-8, or data that does not inflate (1007).
    InvalidData,
    /// A message above the size limit (1009).
    MessageTooLarge,
    /// The peer closed (its code is echoed).
    Peer,
    /// The connection broke.
    Broken,
}

impl CloseReason {
    /// All, for metrics.
    pub const ALL: [CloseReason; 13] = [
        CloseReason::Drain,
        CloseReason::PongTimeout,
        CloseReason::Slow,
        CloseReason::JoinTimeout,
        CloseReason::MessageTimeout,
        CloseReason::BadMessage,
        CloseReason::TooManyMessages,
        CloseReason::ProtocolError,
        CloseReason::WrongDataType,
        CloseReason::InvalidData,
        CloseReason::MessageTooLarge,
        CloseReason::Peer,
        CloseReason::Broken,
    ];

    /// The code in the close frame; `None` where no frame is sent.
    #[must_use]
    pub const fn code(self) -> Option<u16> {
        Some(match self {
            CloseReason::Drain => 3000,
            CloseReason::PongTimeout => 3001,
            CloseReason::JoinTimeout => 3002,
            CloseReason::MessageTimeout => 3003,
            CloseReason::Slow => 3008,
            CloseReason::BadMessage => 3500,
            CloseReason::TooManyMessages => 3501,
            CloseReason::ProtocolError => 1002,
            CloseReason::WrongDataType => 1003,
            CloseReason::InvalidData => 1007,
            CloseReason::MessageTooLarge => 1009,
            CloseReason::Peer => 1000,
            CloseReason::Broken => return None,
        })
    }

    /// Name in metrics, and the reason text of the close frame.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Drain => "drain",
            CloseReason::PongTimeout => "pong_timeout",
            CloseReason::JoinTimeout => "join_timeout",
            CloseReason::MessageTimeout => "message_timeout",
            CloseReason::Slow => "slow",
            CloseReason::BadMessage => "bad_message",
            CloseReason::TooManyMessages => "too_many_messages",
            CloseReason::ProtocolError => "protocol_error",
            CloseReason::WrongDataType => "wrong_data_type",
            CloseReason::InvalidData => "invalid_data",
            CloseReason::MessageTooLarge => "message_too_large",
            CloseReason::Peer => "peer",
            CloseReason::Broken => "broken",
        }
    }
}

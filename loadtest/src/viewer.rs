//! One viewer's state, and the mark by which it knows our events.
//!
//! A measuring client must cost little more than its `read(2)`: a frame is not
//! parsed but searched for our marker `"lt":[room,n,t]` in the events' payloads,
//! where `n` counts the room's events and `t` is the intended send time. From
//! `n` alone follow loss and repetition, from `t` the latency. A sample of the
//! viewers parses everything beside that (`check`).

use std::collections::BTreeMap;

use crate::stream::Stream;

/// What precedes the three numbers of our marker.
pub(crate) const MARKER: &str = "\"lt\":[";
/// No check attached to a viewer.
pub(crate) const UNCHECKED: u32 = u32::MAX;

/// Where a viewer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for the connection.
    Connecting,
    /// Waiting for the answer to the handshake.
    Upgrading,
    /// Waiting for `joined`.
    Joining,
    /// Receiving.
    Live,
    /// Gone.
    Closed,
}

/// One viewer: about a hundred bytes.
#[derive(Debug)]
pub(crate) struct Viewer {
    /// Its socket while it is open; QUIC viewers have none.
    pub(crate) stream: Option<Stream>,
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// With a small receive buffer, and not reading while told so.
    pub(crate) slow: bool,
    /// Negotiated permessage-deflate.
    pub(crate) compressed: bool,
    /// Counted with this group.
    pub(crate) group: u8,
    /// Index of its room.
    pub(crate) room: u16,
    /// Its check, or [`UNCHECKED`].
    pub(crate) check: u32,
    /// Start of a frame that has not come whole; owns no memory otherwise.
    pub(crate) partial: Vec<u8>,
    /// Counter of the next event; before it is live, when the connection began.
    pub(crate) next: u64,
    /// Copies that came before what they wait for: intended send times by counter.
    pub(crate) ahead: BTreeMap<u64, u64>,
    /// Running digest of its frames.
    pub(crate) digest: u64,
    /// Frames in the digest; event 0 opens it, event 1 closes it.
    pub(crate) digest_frames: u32,
    /// Between the two.
    pub(crate) digesting: bool,
    /// Due to ask again for its join.
    pub(crate) returning: bool,
    /// Refused or cut off while joining, at least once.
    pub(crate) refused: bool,
}

impl Viewer {
    /// Not yet connected.
    pub(crate) fn new(room: u16, group: u8, slow: bool, check: u32) -> Self {
        Self {
            stream: None,
            phase: Phase::Closed,
            slow,
            compressed: false,
            group,
            room,
            check,
            partial: Vec::new(),
            next: 0,
            ahead: BTreeMap::new(),
            digest: 0,
            digest_frames: 0,
            digesting: false,
            returning: false,
            refused: false,
        }
    }
}

/// The three numbers after the marker.
pub(crate) fn numbers(mut bytes: &[u8]) -> Option<[u64; 3]> {
    let mut out = [0_u64; 3];
    for (index, slot) in out.iter_mut().enumerate() {
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 19 {
            return None;
        }
        for byte in &bytes[..digits] {
            *slot = *slot * 10 + u64::from(byte - b'0');
        }
        let end = if index == 2 { b']' } else { b',' };
        if bytes.get(digits) != Some(&end) {
            return None;
        }
        bytes = &bytes[digits + 1..];
    }
    Some(out)
}

/// The event payload that carries our marker, `bytes` long if that is possible.
pub(crate) fn marked_payload(room: u16, n: u64, intended: u64, bytes: usize) -> String {
    let head = format!("{{{MARKER}{room},{n},{intended}],\"x\":\"");
    let mut payload = String::with_capacity(bytes.max(head.len() + 2));
    payload.push_str(&head);
    // Neither constant nor random: compresses about as chat does.
    const TEXT: &str = "The quick brown fox jumps over 13 lazy dogs; what a show tonight! ";
    payload.extend(TEXT.chars().cycle().take(bytes.saturating_sub(head.len() + 2)));
    payload.push_str("\"}");
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_and_garbage_is_not() {
        assert_eq!(numbers(b"3,17,123456]"), Some([3, 17, 123_456]));
        for bad in [&b"3,17]"[..], b"3,,5]", b"a,1,2]", b"1,2,3", b"1,2,99999999999999999999]"] {
            assert_eq!(numbers(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn payloads_have_the_length_asked_for_and_are_json() {
        let payload = marked_payload(2, 5, 1_234_567, 300);
        assert_eq!(payload.len(), 300);
        let value: serde_json::Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(value["lt"], serde_json::json!([2, 5, 1_234_567]));
        assert!(serde_json::from_str::<serde_json::Value>(&marked_payload(0, 0, 1, 0)).is_ok());
    }
}

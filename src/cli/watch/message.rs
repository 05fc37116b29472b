//! What a server says, as far as this client wants to know it. Whatever is
//! unknown or missing is tolerated, so that an old client reads a new server.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A message; exactly one field is there, or none that we know.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Incoming {
    pub(super) welcome: Option<Welcome>,
    pub(super) joined: Option<Joined>,
    pub(super) frame: Option<Frame>,
    pub(super) gap: Option<Gap>,
    pub(super) missed: Option<Missed>,
    pub(super) error: Option<Failure>,
    pub(super) goaway: Option<Goaway>,
    pub(super) ping: Option<Value>,
    /// The text was not JSON of the right shape.
    #[serde(skip)]
    pub(super) unreadable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Welcome {
    pub(super) session: String,
    pub(super) ping_interval_ms: Option<u64>,
    pub(super) ack_slot: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Joined {
    pub(super) room: String,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) important: u64,
    pub(super) online: u64,
    pub(super) recovered: bool,
    pub(super) missed: Option<Missed>,
    pub(super) rebased: bool,
    pub(super) state: Vec<Event>,
    pub(super) totals: Vec<Total>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Frame {
    pub(super) epoch: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) important: u64,
    pub(super) time_ms: u64,
    pub(super) events: Vec<Event>,
    pub(super) totals: Vec<Total>,
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) online: Option<u64>,
    pub(super) ack: Option<Asked>,
}

/// How important events are to be acknowledged.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) one_in: u32,
    pub(super) within_ms: u64,
    pub(super) digest_from: Option<u64>,
}

/// Important events that are to be pulled.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Missed {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) within_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) user: String,
    pub(super) seq: Option<u64>,
    pub(super) important: Option<u64>,
    pub(super) payload: Value,
    pub(super) encoding: Option<String>,
    pub(super) key: Option<String>,
    pub(super) amount: Option<i64>,
    pub(super) time_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Total {
    pub(super) kind: String,
    pub(super) user: Option<String>,
    pub(super) key: String,
    pub(super) sum: i64,
    pub(super) delta: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Gap {
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) dropped: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub(super) code: String,
    pub(super) reason: String,
    pub(super) temporary: bool,
    pub(super) retry_after_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Goaway {
    pub(super) reconnect_after_ms: u64,
}

/// Reads one message.
pub(super) fn parse(text: &str) -> Incoming {
    serde_json::from_str(text).unwrap_or(Incoming { unreadable: true, ..Incoming::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_tolerated() {
        let text = r#"{"frame":{"room":"r","epoch":1,"first_seq":2,"last_seq":2,"new":[{}],
            "events":[{"id":"a","kind":"chat","payload":{"x":1},"shiny":true}]}}"#;
        let frame = parse(text).frame.unwrap();
        assert_eq!((frame.first_seq, frame.events[0].kind.as_str()), (2, "chat"));
        let unknown = parse(r#"{"confetti":{}}"#);
        assert!(!unknown.unreadable && unknown.frame.is_none());
        assert!(parse("not json").unreadable);
        assert!(parse(r#"{"frame":{"epoch":"one"}}"#).unreadable);
        assert!(parse(r#"{"ping":{}}"#).ping.is_some());
    }
}

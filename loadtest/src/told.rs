//! What a server tells the viewers of a [`Crowd`](crate::crowd::Crowd), as far as
//! these want to know it, in the terms of the viewer library's model of a room.
//! The same message goes to many of them, so it is read once for all.

use serde::Deserialize;
use tidegate::engine::digest;
use tidegate::engine::ids::ImportantNo;
use tidegate::viewer::room::{Asked, Header, Incoming, Joined};

/// Messages from the server; one that is not here is not for a room.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// First on a connection.
    Welcome {
        /// Draws samples of acknowledgements.
        ack_slot: u16,
    },
    /// In the room.
    #[serde(deserialize_with = "joined")]
    Joined(Joined),
    /// What the room says.
    #[serde(deserialize_with = "frame")]
    Frame(Frame),
    /// What only this viewer lost.
    Gap {
        /// First number it lost content of.
        first_seq: u64,
        /// Last one.
        last_seq: u64,
    },
    /// To be pulled.
    Missed {
        /// Last.
        to: u64,
        /// At a random moment within this.
        within_ms: u32,
    },
    /// A request failed.
    Error {
        /// Machine-readable.
        code: String,
        /// When to try again.
        retry_after_ms: Option<u64>,
    },
    /// The server is leaving.
    Goaway {
        /// Wait this long before reconnecting.
        reconnect_after_ms: u64,
    },
    /// Are you there?
    Ping {},
}

/// `frame`.
#[derive(Debug)]
pub(crate) struct Frame {
    /// What it says beside its content.
    pub(crate) header: Header,
    /// What it carries.
    pub(crate) events: Vec<Event>,
}

/// One event of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    seq: Option<u64>,
    important: Option<u64>,
    hash: u32,
    mark: Mark,
}

/// What our payloads carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Which of the publisher's events of its sort it is.
    pub(crate) n: u64,
    /// When it was sent.
    pub(crate) sent_us: u64,
    /// Whether it is an important one.
    pub(crate) important: bool,
}

impl Event {
    /// Its number, its important number, and which of the publisher's events of
    /// its sort it is.
    pub(crate) fn numbers(&self) -> (Option<u64>, Option<u64>, u64) {
        (self.seq, self.important, self.mark.n)
    }

    /// As the model takes it.
    pub(crate) fn incoming(&self) -> Incoming<Mark> {
        let Event { seq, important, hash, mark } = *self;
        Incoming { seq, important, hash, event: mark }
    }
}

fn joined<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Joined, D::Error> {
    #[derive(Deserialize)]
    struct Written {
        epoch: u64,
        seq: u64,
        important: u64,
        #[serde(default)]
        recovered: bool,
        #[serde(default)]
        rebased: bool,
        missed: Option<Range>,
    }
    #[derive(Deserialize)]
    struct Range {
        from: u64,
        to: u64,
    }
    let Written { epoch, seq, important, recovered, rebased, missed } = Written::deserialize(from)?;
    let missed = missed.is_some_and(|missed| missed.from <= missed.to);
    Ok(Joined { epoch, seq, important, recovered, rebased, missed })
}

fn frame<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Frame, D::Error> {
    #[derive(Deserialize)]
    struct Written {
        epoch: u64,
        first_seq: u64,
        last_seq: u64,
        important: u64,
        events: Vec<WrittenEvent>,
        ack: Option<WrittenAck>,
    }
    #[derive(Deserialize)]
    struct WrittenEvent {
        id: String,
        seq: Option<u64>,
        important: Option<u64>,
        payload: Payload,
    }
    #[derive(Deserialize)]
    struct Payload {
        lt: [u64; 3],
    }
    #[derive(Deserialize)]
    struct WrittenAck {
        one_in: u32,
        within_ms: u32,
        digest_from: Option<u64>,
    }
    let written = Written::deserialize(from)?;
    let ack = written.ack.map(|WrittenAck { one_in, within_ms, digest_from }| Asked {
        one_in,
        within_ms,
        digest_from,
    });
    let Written { epoch, first_seq, last_seq, important, .. } = written;
    let event = |event: WrittenEvent| {
        let WrittenEvent { id, seq, important, payload: Payload { lt: [_, n, sent_us] } } = event;
        let hash = important.map_or(0, |number| digest::hash(ImportantNo(number), &id));
        let mark = Mark { n, sent_us, important: important.is_some() };
        Event { seq, important, hash, mark }
    };
    Ok(Frame {
        header: Header { epoch, first_seq, last_seq, important, ack },
        events: written.events.into_iter().map(event).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let text = r#"{"frame":{"room":"r","epoch":7,"first_seq":5,"last_seq":5,"important":3,
            "time_ms":1,"events":[{"id":"a","kind":"red_packet","user":"u","seq":5,"important":3,
            "payload":{"lt":[0,9,8],"x":""},"time_ms":1}],"totals":[],"online":3,
            "ack":{"one_in":1,"within_ms":0}}}"#;
        let Told::Frame(frame) = serde_json::from_str(text).unwrap() else { panic!() };
        assert_eq!((frame.header.first_seq, frame.header.ack.unwrap().one_in), (5, 1));
        let incoming = frame.events[0].incoming();
        assert_eq!(incoming.event, Mark { n: 9, sent_us: 8, important: true });
        assert_eq!(incoming.hash, digest::hash(ImportantNo(3), "a"));
        let text = r#"{"joined":{"room":"r","epoch":7,"seq":5,"important":3,"online":1,
            "missed":{"from":2,"to":3},"state":[],"totals":[]}}"#;
        let Told::Joined(joined) = serde_json::from_str(text).unwrap() else { panic!() };
        let expected = Joined { epoch: 7, seq: 5, important: 3, missed: true, ..Joined::default() };
        assert_eq!(joined, expected);
        for text in
            [r#"{"welcome":{"session":"s","ping_interval_ms":1,"ack_slot":9}}"#, r#"{"ping":{}}"#]
        {
            serde_json::from_str::<Told>(text).unwrap();
        }
    }
}

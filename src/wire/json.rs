//! The JSON subprotocol: every message is an object with exactly one field, its
//! name. Payloads that are JSON go through verbatim, others as base64 beside
//! `"encoding":"base64"`.
//!
//! Written by hand into one buffer rather than through serializer types: the
//! shapes are few, and a payload is copied as it came instead of being parsed
//! again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::{ClientEvent, ClientMessage, Gap, Recovery, ServerMessage};
use crate::engine::delivery::Cut;
use crate::engine::digest::Digest;
use crate::engine::event::{DroppedKind, Frame, Numbered, Payload, Snapshot, Total};
use crate::engine::ids::{Epoch, ImportantNo, Seq};
use crate::engine::priority::Advice;
use crate::engine::room::Position;

/// Writes JSON fields in sequence, minding the commas.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        string(self.out, name);
        self.out.push(b':');
        self.out
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        string(self.name(name), value);
        self
    }

    fn number(&mut self, name: &str, value: impl itoa::Integer) -> &mut Self {
        number(self.name(name), value);
        self
    }

    fn boolean(&mut self, name: &str, value: bool) -> &mut Self {
        self.name(name).extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    fn admission(&mut self, advice: Option<Advice>) {
        if let Some(advice) = advice {
            admission(self.name("admission"), advice);
        }
    }

    fn end(&mut self) {
        self.out.push(b'}');
    }
}

/// What is admitted, as every answer carries it.
pub fn admission(out: &mut Vec<u8>, advice: Advice) {
    let mut object = Object::new(out);
    object.number("business", advice.level.business()).number("user", advice.level.user());
    if let Some(share) = advice.share_per_mille() {
        let share = format!("{}.{:03}", share / 1_000, share % 1_000);
        object.name("share").extend_from_slice(share.as_bytes());
    }
    object.number("ttl_ms", advice.ttl.as_millis() as u64);
    object.end();
}

fn string(out: &mut Vec<u8>, value: &str) {
    // Writing text into a Vec cannot fail.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}

fn number(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

fn payload(object: &mut Object<'_>, payload: &Payload) {
    if payload.json {
        object.name("payload").extend_from_slice(&payload.bytes);
    } else if payload.bytes.is_empty() {
        object.name("payload").extend_from_slice(b"null");
    } else {
        object.text("payload", &STANDARD.encode(&payload.bytes)).text("encoding", "base64");
    }
}

/// One event, as frames, snapshots and history carry it.
pub fn event(out: &mut Vec<u8>, numbered: &Numbered) {
    let event = &numbered.event;
    let mut object = Object::new(out);
    object.text("id", &event.id).text("kind", &event.kind.name).text("user", &event.user);
    if let Some(seq) = numbered.seq {
        object.number("seq", seq.0);
    }
    if let Some(important) = numbered.important {
        object.number("important", important.0);
    }
    payload(&mut object, &event.payload);
    if let Some(key) = &event.key {
        object.text("key", key);
    }
    if let Some(amount) = event.amount {
        object.number("amount", amount);
    }
    object.number("time_ms", event.received.as_millis()).end();
}

fn total(out: &mut Vec<u8>, total: &Total, with_delta: bool) {
    let mut object = Object::new(out);
    object.text("kind", &total.kind.name).text("key", &total.key);
    if let Some(user) = &total.user {
        object.text("user", user);
    }
    object.number("sum", total.sum);
    if with_delta {
        object.number("delta", total.delta);
    }
    object.end();
}

fn dropped(out: &mut Vec<u8>, dropped: &[DroppedKind]) {
    let mut object = Object::new(out);
    for entry in dropped {
        object.number(&entry.kind.name, entry.count);
    }
    object.end();
}

/// A whole `frame` message, of which `cut` has been taken already.
pub fn frame(out: &mut Vec<u8>, frame: &Frame, cut: Cut) {
    let mut outer = Object::new(out);
    let mut object = Object::new(outer.name("frame"));
    object
        .text("room", frame.room.as_str())
        .number("epoch", frame.epoch.0)
        .number("first_seq", frame.first_seq.0)
        .number("last_seq", frame.last_seq.0)
        .number("important", frame.important.0)
        .number("time_ms", frame.time.as_millis());
    list(object.name("events"), &frame.events, |out, e| event(out, e));
    list(object.name("totals"), &frame.totals, |out, t| total(out, t, true));
    if !frame.dropped.is_empty() {
        dropped(object.name("dropped"), &frame.dropped);
    }
    if let Some(online) = frame.online {
        object.number("online", online);
    }
    if let Some(ack) = frame.ack {
        let mut asked = Object::new(object.name("ack"));
        asked.number("one_in", ack.one_in).number("within_ms", ack.within_ms);
        if let Some(from) = ack.digest_from {
            asked.number("digest_from", from.0);
        }
        asked.end();
    }
    if cut != Cut::Full {
        object.number("withheld", cut.withheld());
    }
    object.end();
    outer.end();
}

/// A whole `joined` message.
pub fn joined(out: &mut Vec<u8>, snapshot: &Snapshot, recovery: Recovery) {
    let mut outer = Object::new(out);
    let mut object = Object::new(outer.name("joined"));
    snapshot_fields(&mut object, snapshot);
    object.boolean("recovered", recovery.recovered);
    if recovery.rebased {
        object.boolean("rebased", true);
    }
    if let Some((from, to)) = recovery.missed {
        Object::new(object.name("missed")).number("from", from.0).number("to", to.0).end();
    }
    object.end();
    outer.end();
}

/// A room as `GET /v1/rooms/{room}` shows it.
pub fn room(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let mut object = Object::new(out);
    snapshot_fields(&mut object, snapshot);
    object.end();
}

fn snapshot_fields(object: &mut Object<'_>, snapshot: &Snapshot) {
    object
        .text("room", snapshot.room.as_str())
        .number("epoch", snapshot.epoch.0)
        .number("seq", snapshot.seq.0)
        .number("important", snapshot.important.0)
        .number("online", snapshot.online)
        .number("users", snapshot.users.count)
        .boolean("users_exact", snapshot.users.exact);
    list(object.name("state"), &snapshot.state, |out, e| event(out, e));
    list(object.name("totals"), &snapshot.totals, |out, t| total(out, t, false));
}

/// A message to one viewer.
pub fn server_message(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    let mut outer = Object::new(out);
    match message {
        ServerMessage::Welcome { session, ping_interval_ms, ack_slot } => {
            Object::new(outer.name("welcome"))
                .text("session", session)
                .number("ping_interval_ms", *ping_interval_ms)
                .number("ack_slot", *ack_slot)
                .end();
        }
        ServerMessage::Gap(Gap { room, first_seq, last_seq, dropped: counts }) => {
            let mut object = Object::new(outer.name("gap"));
            object
                .text("room", room)
                .number("first_seq", first_seq.0)
                .number("last_seq", last_seq.0);
            dropped(object.name("dropped"), counts);
            object.end();
        }
        ServerMessage::Accepted { id, seq, admission } => {
            let mut object = Object::new(outer.name("accepted"));
            object.text("id", id);
            if let Some(seq) = seq {
                object.number("seq", seq.0);
            }
            object.admission(*admission);
            object.end();
        }
        ServerMessage::Rejected { id, code, reason, retry_after_ms, admission } => {
            let mut object = Object::new(outer.name("rejected"));
            object.text("id", id).text("code", code).text("reason", reason);
            if let Some(after) = retry_after_ms {
                object.number("retry_after_ms", *after);
            }
            object.admission(*admission);
            object.end();
        }
        ServerMessage::Error { code, reason, temporary, room, retry_after_ms } => {
            let mut object = Object::new(outer.name("error"));
            object.text("code", code).text("reason", reason).boolean("temporary", *temporary);
            if let Some(room) = room {
                object.text("room", room);
            }
            if let Some(after) = retry_after_ms {
                object.number("retry_after_ms", *after);
            }
            object.end();
        }
        ServerMessage::Goaway { reconnect_after_ms } => Object::new(outer.name("goaway"))
            .number("reconnect_after_ms", *reconnect_after_ms)
            .end(),
        ServerMessage::Ping => Object::new(outer.name("ping")).end(),
        ServerMessage::Missed { room, from, to, within_ms } => {
            Object::new(outer.name("missed"))
                .text("room", room)
                .number("from", from.0)
                .number("to", to.0)
                .number("within_ms", *within_ms)
                .end();
        }
        ServerMessage::Left { room } => Object::new(outer.name("left")).text("room", room).end(),
    }
    outer.end();
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClientJson<'a> {
    Join {
        room: String,
        token: String,
        resume: Option<ResumeJson>,
        #[serde(default)]
        acks: bool,
    },
    Leave {
        room: String,
    },
    #[serde(borrow)]
    Publish(EventJson<'a>),
    Ack {
        room: String,
        important: u64,
    },
    Pull {
        room: String,
        from: u64,
        to: u64,
    },
    Digest {
        room: String,
        from: u64,
        to: u64,
        count: u32,
        xor: u32,
    },
    Pong {},
}

#[derive(Deserialize)]
struct ResumeJson {
    epoch: u64,
    seq: u64,
    important: u64,
}

#[derive(Deserialize)]
struct EventJson<'a> {
    room: String,
    id: String,
    kind: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    encoding: Option<String>,
    key: Option<String>,
    amount: Option<i64>,
}

/// Reads a viewer's message.
///
/// # Errors
/// Why it is none, for people.
pub fn client_message(text: &[u8]) -> Result<ClientMessage, String> {
    let message: ClientJson<'_> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    Ok(match message {
        ClientJson::Join { room, token, resume, acks } => {
            let resume = resume.map(|r| Position {
                epoch: Epoch(r.epoch),
                seq: Seq(r.seq),
                important: ImportantNo(r.important),
            });
            ClientMessage::Join { room, token, resume, acks }
        }
        ClientJson::Leave { room } => ClientMessage::Leave { room },
        ClientJson::Publish(event) => ClientMessage::Publish(ClientEvent {
            payload: read_payload(event.payload, event.encoding.as_deref())?,
            room: event.room,
            id: event.id,
            kind: event.kind,
            key: event.key,
            amount: event.amount,
        }),
        ClientJson::Ack { room, important } => {
            ClientMessage::Ack { room, important: ImportantNo(important) }
        }
        ClientJson::Pull { room, from, to } => {
            ClientMessage::Pull { room, from: ImportantNo(from), to: ImportantNo(to) }
        }
        ClientJson::Digest { room, from, to, count, xor } => ClientMessage::Digest {
            room,
            from: ImportantNo(from),
            to: ImportantNo(to),
            digest: Digest { count, xor },
        },
        ClientJson::Pong {} => ClientMessage::Pong,
    })
}

/// The payload of a JSON event: the value as written, or what its base64 says.
///
/// # Errors
/// An unknown encoding, or a value that is not base64 text, for people.
pub fn read_payload(raw: Option<&RawValue>, encoding: Option<&str>) -> Result<Payload, String> {
    let raw = raw.map_or("null", RawValue::get);
    match encoding {
        None => Ok(Payload { bytes: Bytes::copy_from_slice(raw.as_bytes()), json: true }),
        Some("base64") => {
            let text: String =
                serde_json::from_str(raw).map_err(|_| "a base64 payload is a string".to_owned())?;
            let bytes = STANDARD.decode(text).map_err(|e| format!("payload: {e}"))?;
            Ok(super::message::payload_of_bytes(bytes.into()))
        }
        Some(other) => Err(format!("unknown payload encoding {other:?}; known: \"base64\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_exactly_one_known_field() {
        assert_eq!(client_message(br#"{"pong":{}}"#), Ok(ClientMessage::Pong));
        for bad in [
            &b"{}"[..],
            br#"{"pong":{},"pong2":{}}"#,
            br#"{"shout":{}}"#,
            b"[]",
            b"nonsense",
            br#"{"join":{"room":"r"}}"#,
        ] {
            assert!(client_message(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_json_payload_is_kept_as_written_and_base64_is_decoded() {
        let text = br#"{"publish":{"room":"r","id":"1","kind":"chat","payload":{"a": 1.50}}}"#;
        let Ok(ClientMessage::Publish(event)) = client_message(text) else { panic!() };
        assert_eq!(&event.payload.bytes[..], br#"{"a": 1.50}"#);
        let text = br#"{"publish":{"room":"r","id":"1","kind":"chat","payload":"/w==","encoding":"base64"}}"#;
        let Ok(ClientMessage::Publish(event)) = client_message(text) else { panic!() };
        assert_eq!((&event.payload.bytes[..], event.payload.json), (&[0xff][..], false));
    }

    #[test]
    fn messages_are_objects_named_by_their_field() {
        let mut out = Vec::new();
        let message = ServerMessage::Error {
            code: "x",
            reason: "a \"quoted\"\nreason",
            temporary: true,
            room: None,
            retry_after_ms: None,
        };
        server_message(&mut out, &message);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("valid JSON");
        assert_eq!(value["error"]["reason"], "a \"quoted\"\nreason");
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(1));
    }
}

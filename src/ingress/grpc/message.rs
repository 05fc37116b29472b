//! A request read in three steps, each no deeper than needed: the envelope (room
//! and number of events), each event's head, and its body.
//!
//! A field that holds a message and one that holds bytes look the same on the
//! wire, so [`Sealed`] reads as bytes what the schema declares as a message. One
//! thing is lost by it: protobuf merges a message field that is written twice,
//! which no encoder does; here the last one counts.

use bytes::{Buf, Bytes};
use prost::Message as _;

use crate::engine::draft::Draft;
use crate::engine::event::Payload;
use crate::engine::priority::Advice;
use crate::ingress::answer::ApiError;
use crate::ingress::intake::Verdict;
use crate::wire::message::payload_of_bytes;
use crate::wire::proto::{admission, v1};

/// Wire types of the protobuf encoding.
const VARINT: usize = 0;
const FIXED64: usize = 1;
const LENGTH: usize = 2;
const FIXED32: usize = 5;

/// A `PublishRequest` whose events are not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) request: u64,
    pub(super) room: String,
    /// At most as many as a request may have.
    pub(super) events: Vec<Bytes>,
    /// There were more.
    pub(super) too_many: bool,
}

impl Envelope {
    /// `None`: this is no such message. Read by hand, since a derived decoder
    /// would make a list of half a million empty events from a message of 1 MiB
    /// before anybody could count them.
    pub(super) fn read(message: &Bytes, max_events: usize) -> Option<Self> {
        let mut rest = message.clone();
        let mut envelope =
            Self { request: 0, room: String::new(), events: Vec::new(), too_many: false };
        while rest.has_remaining() {
            let key = varint(&mut rest)?;
            let wire = (key & 7) as usize;
            match (key >> 3, wire) {
                (0, _) => return None,
                (1, VARINT) => envelope.request = varint(&mut rest)?,
                (2, LENGTH) => {
                    let room = block(&mut rest)?;
                    envelope.room = std::str::from_utf8(&room).ok()?.to_owned();
                }
                (3, LENGTH) => {
                    let event = block(&mut rest)?;
                    if envelope.events.len() < max_events {
                        envelope.events.push(event);
                    } else {
                        envelope.too_many = true;
                    }
                }
                (1..=3, _) => return None,
                // A field of a later version of the schema.
                (_, VARINT) => {
                    varint(&mut rest)?;
                }
                (_, LENGTH) => {
                    block(&mut rest)?;
                }
                (_, FIXED64) => skip(&mut rest, 8)?,
                (_, FIXED32) => skip(&mut rest, 4)?,
                _ => return None,
            }
        }
        Some(envelope)
    }
}

fn varint(bytes: &mut Bytes) -> Option<u64> {
    prost::decode_length_delimiter(bytes).ok().map(|value| value as u64)
}

fn block(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    (length <= bytes.remaining()).then(|| bytes.split_to(length))
}

fn skip(bytes: &mut Bytes, length: usize) -> Option<()> {
    (length <= bytes.remaining()).then(|| bytes.advance(length))
}

/// A `PublishEvent` whose body is not decoded.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sealed {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) kind: String,
    #[prost(string, tag = "3")]
    pub(super) user: String,
    #[prost(uint64, optional, tag = "4")]
    pub(super) ttl_ms: Option<u64>,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) body: Bytes,
}

/// A decoded body.
#[derive(Debug)]
pub(super) struct Content {
    payload: Payload,
    key: Option<String>,
    amount: Option<i64>,
}

impl Sealed {
    /// Everything but the body.
    pub(super) fn read(bytes: Bytes) -> Result<Self, prost::DecodeError> {
        Self::decode(bytes)
    }

    /// The body; an error says what is wrong with it.
    pub(super) fn open(&self) -> Result<Content, String> {
        let body = v1::PublishBody::decode(self.body.clone()).map_err(|e| e.to_string())?;
        let encoding = v1::PayloadEncoding::try_from(body.encoding)
            .map_err(|_| format!("unknown payload encoding {}", body.encoding))?;
        // A slice of the message would keep all of it in memory for as long as
        // this one event is remembered.
        let bytes = Bytes::copy_from_slice(&body.payload);
        let payload = match encoding {
            v1::PayloadEncoding::Unspecified => payload_of_bytes(bytes),
            v1::PayloadEncoding::Binary => Payload { bytes, json: false },
            v1::PayloadEncoding::Json => match payload_of_bytes(bytes) {
                payload if payload.json => payload,
                _ => return Err("the payload is not one JSON value".to_owned()),
            },
        };
        Ok(Content { payload, key: body.key, amount: body.amount })
    }
}

impl Content {
    /// The event as it is to be checked.
    pub(super) fn draft<'a>(&'a self, sealed: &'a Sealed) -> Draft<'a> {
        Draft {
            id: &sealed.id,
            kind: &sealed.kind,
            user: &sealed.user,
            payload: self.payload.clone(),
            key: self.key.as_deref(),
            amount: self.amount,
            ttl_ms: sealed.ttl_ms,
        }
    }
}

/// The answer to a request: one result per id.
pub(super) fn answer(
    request: u64,
    ids: Vec<String>,
    verdicts: Vec<Verdict>,
    advice: Advice,
) -> v1::PublishResponse {
    let results = ids.into_iter().zip(verdicts).map(|(id, verdict)| result(id, verdict)).collect();
    v1::PublishResponse { request, results, admission: Some(admission(advice)), error: None }
}

fn result(id: String, verdict: Verdict) -> v1::PublishResult {
    let result = v1::PublishResult { id, ..Default::default() };
    match verdict {
        Verdict::Accepted { seq } => v1::PublishResult {
            status: v1::PublishStatus::Accepted.into(),
            seq: seq.map(|seq| seq.0),
            ..result
        },
        Verdict::Rejected { code, reason, retry_after_ms } => v1::PublishResult {
            status: v1::PublishStatus::Rejected.into(),
            code: code.to_owned(),
            reason: reason.into_owned(),
            retry_after_ms,
            ..result
        },
    }
}

/// The answer to a request that was not taken; 0: about the whole stream.
pub(super) fn refusal(request: u64, error: &ApiError, advice: Advice) -> v1::PublishResponse {
    let error = v1::PublishError {
        code: error.code.to_owned(),
        reason: error.reason.clone(),
        temporary: error.temporary,
    };
    let admission = Some(admission(advice));
    v1::PublishResponse { request, results: Vec::new(), admission, error: Some(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::PublishRequest {
        let event = v1::PublishEvent {
            id: "1".into(),
            kind: "gift".into(),
            user: "ana".into(),
            ttl_ms: Some(0),
            body: Some(v1::PublishBody {
                payload: r#"{"n":1}"#.into(),
                encoding: v1::PayloadEncoding::Json.into(),
                key: Some("rose".into()),
                amount: Some(-3),
            }),
        };
        let bare = v1::PublishEvent { id: "2".into(), ..Default::default() };
        v1::PublishRequest { request: u64::MAX, room: "räume".into(), events: vec![event, bare] }
    }

    fn read(message: &v1::PublishRequest) -> Envelope {
        Envelope::read(&message.encode_to_vec().into(), 100).expect("a request")
    }

    #[test]
    fn what_is_read_in_steps_is_what_was_sent() {
        let envelope = read(&request());
        assert_eq!((envelope.request, envelope.room.as_str()), (u64::MAX, "räume"));
        assert!(!envelope.too_many);
        let [first, second] = [0, 1].map(|i| Sealed::read(envelope.events[i].clone()).unwrap());
        assert_eq!((&*first.id, &*first.kind, &*first.user), ("1", "gift", "ana"));
        let content = first.open().expect("a body");
        let draft = content.draft(&first);
        assert_eq!((draft.key, draft.amount, draft.ttl_ms), (Some("rose"), Some(-3), Some(0)));
        assert!(draft.payload.json && draft.payload.bytes == r#"{"n":1}"#);
        let content = second.open().expect("no body is an empty one");
        assert!(content.payload.is_null() && content.key.is_none() && content.amount.is_none());
    }

    #[test]
    fn payloads_are_json_only_if_they_are() {
        let open = |payload: &'static [u8], encoding: v1::PayloadEncoding| {
            let body = v1::PublishBody {
                payload: payload.into(),
                encoding: encoding.into(),
                ..Default::default()
            };
            Sealed { body: body.encode_to_vec().into(), ..Default::default() }.open()
        };
        let json = |payload, encoding| open(payload, encoding).map(|content| content.payload.json);
        use v1::PayloadEncoding::{Binary, Json, Unspecified};
        assert_eq!(json(b"[1]", Unspecified), Ok(true));
        assert_eq!(json(b"[1", Unspecified), Ok(false));
        assert_eq!(json(b"[1]", Binary), Ok(false));
        assert_eq!(json(b"[1]", Json), Ok(true));
        assert!(json(b"1,\"injected\":2", Json).is_err());
        let unknown = v1::PublishBody { encoding: 9, ..Default::default() };
        let sealed = Sealed { body: unknown.encode_to_vec().into(), ..Default::default() };
        assert!(sealed.open().is_err_and(|reason| reason.contains('9')));
        assert!(Sealed { body: Bytes::from_static(b"\xff"), ..Default::default() }.open().is_err());
    }

    #[test]
    fn a_payload_does_not_keep_its_request_in_memory() {
        let message = Bytes::from(request().encode_to_vec());
        let envelope = Envelope::read(&message, 100).expect("a request");
        let content = Sealed::read(envelope.events[0].clone()).unwrap().open().expect("a body");
        let within = message.as_ptr_range();
        assert!(!within.contains(&content.payload.bytes.as_ptr()));
    }

    #[test]
    fn more_events_than_allowed_are_noticed_and_not_kept() {
        let mut message = request();
        message.events = vec![v1::PublishEvent::default(); 500_000];
        let envelope = Envelope::read(&message.encode_to_vec().into(), 1_000).expect("a request");
        assert!(envelope.too_many);
        assert_eq!(envelope.events.len(), 1_000);
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let mut bytes = request().encode_to_vec();
        // Fields 15 (varint), 16 (length), 17 (64 bits), 18 (32 bits).
        bytes.extend(b"\x78\x01\x82\x01\x02ab\x89\x0112345678\x95\x011234");
        assert_eq!(Envelope::read(&bytes.into(), 100), Some(read(&request())));
    }

    #[test]
    fn garbage_is_no_request_however_it_is_cut() {
        let bytes = Bytes::from(request().encode_to_vec());
        let whole: Vec<usize> = (0..bytes.len())
            .filter(|n| Envelope::read(&bytes.slice(..*n), 100).is_some())
            .collect();
        // Only between two fields.
        assert_eq!(whole.len(), 4, "{whole:?}");
        for garbage in [
            &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            b"\x00\x00",
            b"\x0a\x01a",
            b"\x12\x02\xff\xfe",
            b"\x1b\x1c",
            b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(Envelope::read(&Bytes::from_static(garbage), 100), None, "{garbage:?}");
        }
    }
}

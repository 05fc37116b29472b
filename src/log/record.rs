//! What records hold. Numbers are LEB128 varints, texts carry their length.
//!
//! Every record of a room states its numbering in full, so one that comes after
//! a damaged stretch confirms that nothing in there went further, and says by
//! what it follows whether events are missing before it.

use std::str;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::event::{Event, Numbered, Payload};
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use crate::engine::kind::Kind;
use crate::engine::time::Time;

/// How names of kinds become kinds.
pub type KindOf = Arc<dyn Fn(&str) -> Arc<Kind> + Send + Sync>;

const SEGMENTS: u8 = 1;
const NUMBERING: u8 = 2;
const EVENT: u8 = 3;
const REMOVED: u8 = 4;

const HAS_KEY: u8 = 1;
const HAS_AMOUNT: u8 = 2;
const HAS_TTL: u8 = 4;
const IS_JSON: u8 = 8;

/// A record's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// First in a segment: all others that count, and where each ends.
    Segments(Vec<(u32, u64)>),
    /// Where a room stands.
    Numbering(RoomId, Stand),
    /// An event.
    Event(Stored),
    /// Segments that hold nothing that is kept and are about to be removed.
    Removed(Vec<u32>),
}

/// Where a room stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    /// Its numbering.
    pub(super) epoch: Epoch,
    /// Highest sequence number that may be in use.
    pub(super) used: Seq,
    /// Its oldest retained important number; `last + 1` when there is none.
    pub(super) first: ImportantNo,
    /// Its last important number.
    pub(super) last: ImportantNo,
    /// When it was last heard of.
    pub(super) last_used: Time,
}

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Whose.
    pub(super) room: RoomId,
    /// Of which numbering.
    pub(super) epoch: Epoch,
    /// Highest sequence number that may be in use, this event's included.
    pub(super) used: Seq,
    /// The important number logged before this one.
    pub(super) previous: ImportantNo,
    /// Its own.
    pub(super) important: ImportantNo,
    /// Its own.
    pub(super) seq: Seq,
    /// The event.
    pub(super) event: Event,
}

impl Stored {
    /// As rooms hold it.
    pub(super) fn numbered(self) -> Arc<Numbered> {
        let Self { event, seq, important, .. } = self;
        Arc::new(Numbered { event, seq: Some(seq), important: Some(important) })
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Signed as unsigned, small magnitudes small.
fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Writes the list of segments.
pub(super) fn put_segments(out: &mut Vec<u8>, segments: &[(u32, u64)]) {
    out.push(SEGMENTS);
    put(out, segments.len() as u64);
    for &(segment, end) in segments {
        put(out, segment.into());
        put(out, end);
    }
}

/// Writes the list of removed segments.
pub(super) fn put_removed(out: &mut Vec<u8>, segments: &[u32]) {
    out.push(REMOVED);
    put(out, segments.len() as u64);
    for &segment in segments {
        put(out, segment.into());
    }
}

/// Writes where a room stands.
pub(super) fn put_numbering(out: &mut Vec<u8>, room: &RoomId, stand: &Stand) {
    out.push(NUMBERING);
    put_bytes(out, room.as_str().as_bytes());
    put(out, stand.epoch.0);
    put(out, stand.used.0);
    put(out, stand.first.0);
    put(out, stand.last.0);
    put(out, stand.last_used.as_micros());
}

/// An event's numbers as they are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) epoch: Epoch,
    pub(super) used: Seq,
    pub(super) previous: ImportantNo,
    pub(super) important: ImportantNo,
    pub(super) seq: Seq,
}

/// Writes an event.
pub(super) fn put_event(out: &mut Vec<u8>, room: &RoomId, numbers: &Numbers, event: &Event) {
    out.push(EVENT);
    put_bytes(out, room.as_str().as_bytes());
    put(out, numbers.epoch.0);
    put(out, numbers.used.0);
    put(out, numbers.previous.0);
    put(out, numbers.important.0);
    put(out, numbers.seq.0);
    put(out, event.received.as_micros());
    put_bytes(out, event.kind.name.as_bytes());
    put_bytes(out, event.id.as_bytes());
    put_bytes(out, event.user.as_bytes());
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        flag(event.key.is_some(), HAS_KEY)
            | flag(event.amount.is_some(), HAS_AMOUNT)
            | flag(event.ttl.is_some(), HAS_TTL)
            | flag(event.payload.json, IS_JSON),
    );
    if let Some(key) = &event.key {
        put_bytes(out, key.as_bytes());
    }
    if let Some(amount) = event.amount {
        put(out, zigzag(amount));
    }
    if let Some(ttl) = event.ttl {
        put(out, u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
    }
    put_bytes(out, &event.payload.bytes);
}

/// Bytes that a record of this event occupies at most, head included.
pub(super) fn event_bound(room: &RoomId, event: &Event) -> usize {
    // Fourteen varints of ten bytes, the flags, the type, the last byte and the head.
    const REST: usize = 14 * 10 + 3 + super::format::HEAD;
    REST + room.as_str().len()
        + event.kind.name.len()
        + event.id.len()
        + event.user.len()
        + event.key.as_ref().map_or(0, |key| key.len())
        + event.payload.bytes.len()
}

/// Bytes that a numbering's record occupies at most, head included.
pub(super) fn numbering_bound(room: &RoomId) -> usize {
    7 * 10 + 2 + super::format::HEAD + room.as_str().len()
}

/// Reads a body field by field; nothing where it ends too soon.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    fn segment(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        // An item has a byte at least: a wrong count cannot reserve much.
        let mut items = Vec::with_capacity(usize::try_from(count).ok()?.min(self.0.len()));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    fn room(&mut self) -> Option<RoomId> {
        RoomId::new(self.text()?).ok()
    }

    fn time(&mut self) -> Option<Time> {
        self.number().map(Time::from_micros)
    }
}

impl Record {
    /// From a record's body. Nothing when it is not of this format: its check
    /// was good, so some other program wrote it.
    pub(super) fn decode(body: &[u8], kinds: &dyn Fn(&str) -> Arc<Kind>) -> Option<Self> {
        let mut fields = Fields(body);
        let record = match fields.byte()? {
            SEGMENTS => {
                Self::Segments(fields.list(|fields| Some((fields.segment()?, fields.number()?)))?)
            }
            NUMBERING => Self::Numbering(
                fields.room()?,
                Stand {
                    epoch: Epoch(fields.number()?),
                    used: Seq(fields.number()?),
                    first: ImportantNo(fields.number()?),
                    last: ImportantNo(fields.number()?),
                    last_used: fields.time()?,
                },
            ),
            EVENT => Self::Event(decode_event(&mut fields, kinds)?),
            REMOVED => Self::Removed(fields.list(Fields::segment)?),
            _ => return None,
        };
        fields.0.is_empty().then_some(record)
    }

    /// Like [`Record::decode`], for a list of segments only.
    pub(super) fn decode_list(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body.strip_prefix(&[SEGMENTS])?);
        let listed = fields.list(|fields| Some((fields.segment()?, fields.number()?)))?;
        fields.0.is_empty().then_some(Self::Segments(listed))
    }
}

fn decode_event(fields: &mut Fields<'_>, kinds: &dyn Fn(&str) -> Arc<Kind>) -> Option<Stored> {
    let room = fields.room()?;
    let epoch = Epoch(fields.number()?);
    let used = Seq(fields.number()?);
    let previous = ImportantNo(fields.number()?);
    let important = ImportantNo(fields.number()?);
    let seq = Seq(fields.number()?);
    let received = fields.time()?;
    let kind = kinds(fields.text()?);
    let id = fields.text()?.into();
    let user = fields.text()?.into();
    let flags = fields.byte()?;
    let key = if flags & HAS_KEY != 0 { Some(fields.text()?.into()) } else { None };
    let amount = if flags & HAS_AMOUNT != 0 { Some(unzigzag(fields.number()?)) } else { None };
    let ttl =
        if flags & HAS_TTL != 0 { Some(Duration::from_nanos(fields.number()?)) } else { None };
    let bytes = Bytes::copy_from_slice(fields.bytes()?);
    let payload = Payload { bytes, json: flags & IS_JSON != 0 };
    let event = Event { id, kind, user, payload, key, amount, ttl, received, mark: None };
    (previous < important).then_some(Stored { room, epoch, used, previous, important, seq, event })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::HEAD;
    use super::*;
    use crate::engine::ids::Tier;
    use crate::engine::kind::{Lane, Merge};

    fn kind(name: &str) -> Arc<Kind> {
        Arc::new(Kind {
            name: name.into(),
            lane: Lane::Important,
            merge: Merge::Append,
            tier: Tier(0),
            ttl: None,
            max_payload_bytes: 1 << 20,
            ack: crate::engine::kind::Ack::Logged,
            viewer_publish: false,
            idle_reset: None,
        })
    }

    fn event() -> impl Strategy<Value = Event> {
        let texts = ("[a-z]{1,9}", "\\PC{1,20}", "\\PC{0,20}", proptest::option::of("\\PC{0,20}"));
        let payload = (proptest::collection::vec(any::<u8>(), 0..200), any::<bool>());
        let numbers =
            (proptest::option::of(any::<i64>()), proptest::option::of(any::<u64>()), any::<u64>());
        (texts, payload, numbers).prop_map(|(texts, (bytes, json), (amount, ttl, received))| {
            Event {
                id: texts.1.into(),
                kind: kind(&texts.0),
                user: texts.2.into(),
                payload: Payload { bytes: bytes.into(), json },
                key: texts.3.map(Into::into),
                amount,
                ttl: ttl.map(Duration::from_nanos),
                received: Time::from_micros(received),
                mark: None,
            }
        })
    }

    proptest! {
        #[test]
        fn events_come_back_as_they_were_within_their_bound(
            event in event(),
            epoch: u64, used: u64, previous in 0..u64::MAX, seq: u64,
        ) {
            let room = RoomId::new("live:1").unwrap();
            let numbers = Numbers {
                epoch: Epoch(epoch),
                used: Seq(used),
                previous: ImportantNo(previous),
                important: ImportantNo(previous + 1),
                seq: Seq(seq),
            };
            let mut body = Vec::new();
            put_event(&mut body, &room, &numbers, &event);
            prop_assert!(body.len() + HEAD <= event_bound(&room, &event));
            let Numbers { epoch, used, previous, important, seq } = numbers;
            let stored = Stored { room, epoch, used, previous, important, seq, event };
            prop_assert_eq!(Record::decode(&body, &kind), Some(Record::Event(stored)));
            for len in 0..body.len() {
                prop_assert_eq!(Record::decode(&body[..len], &kind), None);
            }
        }

        #[test]
        fn numberings_and_lists_come_back_as_they_were(
            epoch: u64, used: u64, first: u64, last: u64, time: u64,
            segments: Vec<(u32, u64)>, removed: Vec<u32>,
        ) {
            let room = RoomId::new(&"r".repeat(128)).unwrap();
            let stand = Stand {
                epoch: Epoch(epoch),
                used: Seq(used),
                first: ImportantNo(first),
                last: ImportantNo(last),
                last_used: Time::from_micros(time),
            };
            let mut body = Vec::new();
            put_numbering(&mut body, &room, &stand);
            prop_assert!(body.len() + HEAD <= numbering_bound(&room));
            prop_assert_eq!(Record::decode(&body, &kind), Some(Record::Numbering(room, stand)));
            body.clear();
            put_segments(&mut body, &segments);
            prop_assert_eq!(Record::decode(&body, &kind), Some(Record::Segments(segments)));
            body.clear();
            put_removed(&mut body, &removed);
            prop_assert_eq!(Record::decode(&body, &kind), Some(Record::Removed(removed)));
        }

        #[test]
        fn any_bytes_are_a_record_or_not_but_never_a_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Some(Record::Event(stored)) = Record::decode(&body, &kind) {
                prop_assert!(stored.previous < stored.important);
            }
        }
    }
}

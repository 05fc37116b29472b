//! An event as an upstream service hands it over.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

/// Bytes that an event takes beside its texts: bookkeeping here, field names on
/// the wire.
const OVERHEAD: usize = 256;

/// What an event says.
#[derive(Debug, Clone)]
pub enum Content {
    /// One JSON value; readers get it as it is written here.
    Json(Box<RawValue>),
    /// Anything; JSON readers get it as base64.
    Bytes(Bytes),
}

impl Content {
    /// `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be JSON, such as a map whose keys are no strings.
    pub fn json<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self::Json)
    }

    /// Text that is JSON already.
    ///
    /// # Errors
    /// If it is not.
    pub fn from_json_text(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self::Json)
    }

    fn len(&self) -> usize {
        match self {
            Content::Json(json) => json.get().len(),
            Content::Bytes(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }
}

impl Default for Content {
    /// JSON `null`.
    fn default() -> Self {
        Self::Json(RawValue::NULL.to_owned())
    }
}

/// An event to publish. The server checks its limits (1 to 128 bytes of `id`, 64
/// of `kind`, 128 of `user` and `key`; the payload by its kind) and refuses with a
/// code what breaks them.
#[derive(Debug, Clone, Default)]
pub struct NewEvent {
    /// Unique within the room: an id that was taken before is delivered once,
    /// however often it is sent. Choose it before the first attempt.
    pub id: String,
    /// Name of the kind, as the server's configuration has it.
    pub kind: String,
    /// Who caused it. The user's level decides with the kind's tier what is shed
    /// first, so leave it empty only for what is nobody's.
    pub user: String,
    /// What it says. Default JSON `null`.
    pub payload: Content,
    /// What `sum` and `latest` kinds merge by.
    pub key: Option<String>,
    /// What a `sum` adds.
    pub amount: Option<i64>,
    /// How long it is worth sending, counted from the call of `publish`. Absent:
    /// as long as its kind says.
    pub ttl: Option<Duration>,
}

impl NewEvent {
    /// With an id and a kind, and nothing else.
    #[must_use]
    pub fn new(id: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { id: id.into(), kind: kind.into(), ..Self::default() }
    }

    /// What is left of its time to live at this age, in milliseconds. What is left
    /// of a last one is still worth sending.
    pub(super) fn ttl_left_ms(&self, age: Duration) -> Option<u64> {
        let left = self.ttl?.saturating_sub(age).as_millis();
        Some(u64::try_from(left).unwrap_or(u64::MAX).max(1))
    }

    /// What it counts for in the bounds of queue and batch.
    pub(super) fn bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, String::len);
        OVERHEAD + self.id.len() + self.kind.len() + self.user.len() + key + self.payload.len()
    }
}

#[derive(Serialize)]
struct Fields<'a> {
    id: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    payload: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
}

/// Writes the event as a JSON object. `age` is how long it has waited here, which
/// is taken from its time to live.
///
/// # Errors
/// None that these fields can cause; it is that of the JSON writer.
pub(super) fn write_json(
    out: &mut Vec<u8>,
    event: &NewEvent,
    age: Duration,
) -> Result<(), serde_json::Error> {
    let encoded;
    let (payload, encoding) = match &event.payload {
        Content::Json(json) => (&**json, None),
        Content::Bytes(bytes) => {
            encoded = serde_json::value::to_raw_value(&STANDARD.encode(bytes))?;
            (&*encoded, Some("base64"))
        }
    };
    let fields = Fields {
        id: &event.id,
        kind: &event.kind,
        user: &event.user,
        payload,
        encoding,
        key: event.key.as_deref(),
        amount: event.amount,
        ttl_ms: event.ttl_left_ms(age),
    };
    serde_json::to_writer(out, &fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &NewEvent, age_ms: u64) -> String {
        let mut out = Vec::new();
        write_json(&mut out, event, Duration::from_millis(age_ms)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_goes_through_as_written_and_bytes_as_base64() {
        let mut event = NewEvent::new("1", "chat");
        assert_eq!(written(&event, 0), r#"{"id":"1","kind":"chat","payload":null}"#);
        event.payload = Content::from_json_text(r#"{"a": 1.50}"#.to_owned()).unwrap();
        event.user = "mara \"m\"".to_owned();
        assert_eq!(
            written(&event, 0),
            r#"{"id":"1","kind":"chat","user":"mara \"m\"","payload":{"a": 1.50}}"#
        );
        event.payload = Content::Bytes(Bytes::from_static(&[0xff]));
        assert!(written(&event, 0).ends_with(r#""payload":"/w==","encoding":"base64"}"#));
        assert!(Content::from_json_text("{} {}".to_owned()).is_err());
    }

    #[test]
    fn the_time_spent_waiting_is_taken_from_the_time_to_live() {
        let ttl = Some(Duration::from_millis(100));
        let event = NewEvent { ttl, amount: Some(-3), ..NewEvent::new("1", "like") };
        assert!(written(&event, 30).ends_with(r#""amount":-3,"ttl_ms":70}"#));
        assert!(written(&event, 500).ends_with(r#""ttl_ms":1}"#), "not expired by rounding");
    }

    #[test]
    fn the_estimate_covers_what_is_written() {
        let event = NewEvent {
            user: "u".repeat(128),
            key: Some("k".repeat(128)),
            amount: Some(i64::MIN),
            ttl: Some(Duration::MAX),
            payload: Content::Bytes(vec![7; 1_000].into()),
            ..NewEvent::new("i".repeat(128), "chat")
        };
        assert!(event.bytes() >= written(&event, 0).len());
    }
}

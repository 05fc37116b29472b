//! How requests reach a server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::NewEvent;
use super::grpc::Grpc;
use super::http::Http;
use super::outcome::{Failure, Refusal};
use super::places::Tiers;
use super::priorities::Table;
use crate::engine::ids::{RoomId, Tier};
use crate::engine::level::HourKey;
use crate::engine::priority::AdmissionLevel;
use crate::engine::time::Time;

/// How long a level holds that says nothing about it.
const DEFAULT_TTL: Duration = Duration::from_secs(1);

/// A way to a server. Clones share its connections.
#[derive(Debug, Clone)]
pub(super) enum Transport {
    /// `POST /v1/rooms/{room}/events`.
    Http(Http),
    /// `tidegate.v1.Publisher/Publish`; the table by HTTP, at the same address.
    Grpc(Http, Grpc),
}

/// The server's answer to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Per event, in order; or why the batch was refused whole.
    pub(super) results: Result<Vec<EventResult>, Whole>,
    /// The level of the room's home, and for how long it holds.
    pub(super) level: Option<(AdmissionLevel, Duration)>,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EventResult {
    Accepted { seq: Option<u64> },
    Rejected(Refusal),
}

/// A batch that was refused whole; none of its events was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) refusal: Refusal,
    /// The same events may be taken later.
    pub(super) temporary: bool,
    /// Fewer of them at once may be taken now.
    pub(super) too_large: bool,
}

impl Transport {
    /// Asks for the table of priorities. `Ok(None)`: the server has none for us.
    pub(super) async fn table(&self) -> Result<Option<Table>, Failure> {
        match self {
            Transport::Http(http) | Transport::Grpc(http, _) => http.table().await,
        }
    }

    /// Publishes events of one room, each with the time that it has waited here.
    pub(super) async fn publish(
        &self,
        room: &RoomId,
        events: impl Iterator<Item = (&NewEvent, Duration)>,
    ) -> Result<Answer, Failure> {
        match self {
            Transport::Http(http) => http.publish(room, events).await,
            Transport::Grpc(_, grpc) => grpc.publish(room, events).await,
        }
    }
}

/// The admission level as answers carry it. What is missing or out of range is
/// taken as the nearest that makes sense: an odd level must not spoil an answer.
pub(super) fn read_level(raw: &RawValue) -> Option<(AdmissionLevel, Duration)> {
    #[derive(Deserialize)]
    struct Body {
        business: i64,
        user: i64,
        share: Option<f64>,
        ttl_ms: Option<u64>,
    }
    let body: Body = serde_json::from_str(raw.get()).ok()?;
    let byte = |value: i64| value.clamp(0, 255) as u8;
    let level = AdmissionLevel::from_wire(byte(body.business), byte(body.user), body.share);
    Some((level, body.ttl_ms.map_or(DEFAULT_TTL, Duration::from_millis)))
}

/// The answer to `GET /v1/admission`.
pub(super) fn read_table(body: &[u8]) -> Option<Table> {
    #[derive(Deserialize)]
    struct Body {
        kinds: HashMap<String, u8>,
        unknown_kind: u8,
        user_levels: Key,
    }
    #[derive(Deserialize)]
    struct Key {
        key: String,
        valid_until_ms: u64,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let digits = body.user_levels.key;
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let bits = u128::from_str_radix(&digits, 16).ok()?;
    let ends = Time::from_micros(body.user_levels.valid_until_ms.saturating_mul(1_000));
    let tier = |tier: u8| Tier(tier.min(Tier::LOWEST.0));
    let kinds = body.kinds.into_iter().map(|(kind, number)| (kind, tier(number))).collect();
    let tiers = Arc::new(Tiers { kinds, unknown: tier(body.unknown_kind) });
    Some(Table { tiers, key: HourKey::from_bits(bits, ends) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(json: &str) -> Option<(AdmissionLevel, u64)> {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        read_level(&raw).map(|(level, ttl)| (level, ttl.as_millis() as u64))
    }

    #[test]
    fn a_level_is_read_and_an_odd_one_does_no_harm() {
        let half = AdmissionLevel::from_wire(3, 40, Some(0.5));
        let whole = r#"{"business":3,"user":40,"share":0.5,"ttl_ms":700,"new":[]}"#;
        assert_eq!(level(whole), Some((half, 700)));
        let open = (AdmissionLevel::OPEN, 1_000);
        assert_eq!(level(r#"{"business":63,"user":127}"#), Some(open));
        assert_eq!(level(r#"{"business":900,"user":900,"share":7.5}"#), Some(open));
        let shut = (AdmissionLevel::SHUT, 0);
        assert_eq!(level(r#"{"business":-1,"user":-9,"share":-1,"ttl_ms":0}"#), Some(shut));
        for bad in ["{}", "null", "7", r#"{"business":"3","user":1}"#] {
            assert_eq!(level(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_table_is_read_whole_or_not_at_all() {
        let good = r#"{"admission":{"business":63,"user":127},"kinds":{"chat":3,"odd":200},
            "unknown_kind":63,"user_levels":{"key":"000000000000000000000000000000ff",
            "valid_until_ms":1700000000000}}"#;
        let table = read_table(good.as_bytes()).unwrap();
        assert_eq!((table.tiers.kinds["chat"], table.tiers.kinds["odd"]), (Tier(3), Tier(63)));
        assert_eq!(table.key.to_bits(), 255);
        assert_eq!(table.key.ends(), Time::from_millis(1_700_000_000_000));
        for (from, to) in [("ff\"", "f\""), ("ff\"", "fg\""), ("\"00", "\"+0"), ("kinds", "x")] {
            assert!(read_table(good.replacen(from, to, 1).as_bytes()).is_none(), "{from} {to}");
        }
    }
}

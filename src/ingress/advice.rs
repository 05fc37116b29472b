//! `GET /v1/admission`: what an upstream needs to shed before it sends. The
//! level, the tier of every kind, and the key by which this hour's user levels
//! are found; whoever may publish may know it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::answer::{Admission, ApiError, json};
use super::intake::{Api, bearer, may_publish};

#[derive(Serialize)]
struct Advised<'a> {
    admission: Admission,
    kinds: BTreeMap<&'a str, u8>,
    unknown_kind: u8,
    user_levels: UserLevels,
}

#[derive(Serialize)]
struct UserLevels {
    key: String,
    valid_until_ms: u64,
}

/// See the module's documentation.
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    may_publish(&bearer(&api, &headers)?)?;
    let hour = api.shards.hour(api.clock.now());
    let body = Advised {
        admission: api.shards.tightest_advice().into(),
        kinds: api.kinds.iter().map(|kind| (kind.name.as_ref(), kind.tier.0)).collect(),
        unknown_kind: api.kinds.unknown_tier().0,
        user_levels: UserLevels {
            key: format!("{:032x}", hour.to_bits()),
            valid_until_ms: hour.ends().as_millis(),
        },
    };
    Ok(json(StatusCode::OK, serde_json::to_vec(&body).unwrap_or_default()))
}

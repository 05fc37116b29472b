//! Overload control as operators see it, and what they can decide instead.
//!
//! Reading needs no token, like the rest of this port; deciding takes an
//! operator's, and every decision is logged with the name it carries. A
//! decision is the process's own: it ends with it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::{ANSWER_WITHIN, Observer};
use crate::auth::Role;
use crate::engine::ids::{RoomId, ShardId};
use crate::engine::level::LOWEST_USER_LEVEL;
use crate::engine::priority::AdmissionLevel;
use crate::ingress::answer::{ApiError, json};
use crate::ingress::intake::bearer_of;
use crate::shard::peers::{AdmissionView, Message, Override, Path as _};

/// A kind is silenced for this long at most.
const MOST_SECONDS: u64 = 86_400;

#[derive(Serialize)]
struct Shards {
    shards: Vec<Option<ShardView>>,
}

#[derive(Serialize)]
struct ShardView {
    level: Level,
    pinned: bool,
    rung: &'static str,
    joins_held: bool,
    joins_waiting: usize,
    waiting_events: usize,
    queueing_ms: f64,
    load: f64,
    silenced: Vec<Silenced>,
}

#[derive(Serialize)]
struct Level {
    business: u8,
    user: u8,
    share: f64,
}

#[derive(Serialize)]
struct Silenced {
    room: String,
    kind: String,
    until_ms: u64,
}

impl From<AdmissionView> for ShardView {
    fn from(view: AdmissionView) -> Self {
        let AdmissionView { level, pinned, rung, joins_held, joins_waiting, .. } = view;
        let silenced = view.silenced.into_iter().map(|(room, kind, until)| Silenced {
            room: room.to_string(),
            kind: kind.to_string(),
            until_ms: until.as_millis(),
        });
        Self {
            level: Level { business: level.business(), user: level.user(), share: level.share() },
            pinned,
            rung: rung.name(),
            joins_held,
            joins_waiting,
            waiting_events: view.waiting,
            queueing_ms: view.queueing.as_secs_f64() * 1_000.0,
            load: view.load,
            silenced: silenced.collect(),
        }
    }
}

/// Where every shard stands; `null` for one that does not answer.
pub(super) async fn show(State(observer): State<Arc<Observer>>) -> Response<Body> {
    let answers = (0..observer.shards.count()).map(|index| {
        let (reply, answer) = oneshot::channel();
        observer.shards.send(ShardId(index as u16), Message::ReadAdmission(reply));
        timeout(ANSWER_WITHIN, answer)
    });
    let answers = join_all(answers).await.into_iter();
    let shards = answers.map(|answer| Some((*answer.ok()?.ok()?).into())).collect();
    let body = serde_json::to_vec(&Shards { shards }).unwrap_or_default();
    json(StatusCode::OK, body)
}

/// `{"business": 3, "user": 64}`: admit up to there. `{}`: as computed again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    business: Option<u8>,
    user: Option<u8>,
}

/// Pins the level of every shard, or gives it back.
pub(super) async fn pin(
    State(observer): State<Arc<Observer>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (operator, Pin { business, user }) = decision(&observer, request).await?;
    let level = match (business, user) {
        (None, None) => None,
        (Some(business), user) if business < 64 && user.unwrap_or(0) <= LOWEST_USER_LEVEL => {
            Some(AdmissionLevel::from_wire(business, user.unwrap_or(LOWEST_USER_LEVEL), None))
        }
        _ => return Err(bad("business is 0 to 63, and user, which needs it, 0 to 127")),
    };
    tell_all(&observer, &Override::Pin(level)).await?;
    info!(
        target: "tidegate::audit",
        operator, decision = "pin", business = business.map(u64::from), user = user.map(u64::from),
        "admission level {}", if level.is_some() { "pinned" } else { "given back" }
    );
    Ok(done())
}

/// `{"room": "r", "kind": "chat", "seconds": 600}`; 0 ends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Silence {
    room: String,
    kind: String,
    seconds: u64,
}

/// Refuses a kind in a room for a while.
pub(super) async fn silence(
    State(observer): State<Arc<Observer>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (operator, Silence { room, kind, seconds }) = decision(&observer, request).await?;
    let id = RoomId::new(&room).map_err(|error| bad(&error.to_string()))?;
    if seconds > MOST_SECONDS {
        return Err(bad("a kind is silenced for a day at most"));
    }
    if !observer.kinds.is_configured(&kind) {
        return Err(bad("no kind of that name is configured"));
    }
    let until = observer.clock.now() + Duration::from_secs(seconds);
    tell_all(&observer, &Override::Silence { room: id, kind: kind.as_str().into(), until }).await?;
    info!(target: "tidegate::audit", operator, decision = "silence", room, kind, seconds, "kind silenced");
    Ok(done())
}

/// `{"hold": true}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joins {
    hold: bool,
}

/// Lets new joins wait, or in again.
pub(super) async fn joins(
    State(observer): State<Arc<Observer>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (operator, Joins { hold }) = decision(&observer, request).await?;
    tell_all(&observer, &Override::HoldJoins(hold)).await?;
    info!(target: "tidegate::audit", operator, decision = "joins", hold, "joins held or let in");
    Ok(done())
}

/// Who decides, and what.
pub(super) async fn decision<T: serde::de::DeserializeOwned>(
    observer: &Observer,
    request: Request,
) -> Result<(String, T), ApiError> {
    let operator = operator(observer, request.headers())?;
    let Json(body) =
        Json::<T>::from_request(request, &()).await.map_err(|error: JsonRejection| {
            ApiError::new(error.status(), "malformed_body", error.body_text())
        })?;
    Ok((operator, body))
}

fn operator(observer: &Observer, headers: &HeaderMap) -> Result<String, ApiError> {
    let grant = bearer_of(&observer.auth, observer.clock.now(), headers)?;
    if grant.role != Role::Operator {
        let reason = "this takes a token with role operator";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_role", reason));
    }
    Ok(grant.user.to_string())
}

async fn tell_all(observer: &Observer, what: &Override) -> Result<(), ApiError> {
    let answers = (0..observer.shards.count()).map(|index| {
        let (reply, answer) = oneshot::channel();
        observer.shards.send(ShardId(index as u16), Message::Override(what.clone(), reply));
        timeout(ANSWER_WITHIN, answer)
    });
    for answer in join_all(answers).await {
        match answer {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(reason))) => return Err(bad(reason)),
            Ok(Err(_)) | Err(_) => {
                let reason = "a shard did not answer; others may have followed: repeat it";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Err(ApiError::temporary(status, "silent_shard", reason));
            }
        }
    }
    Ok(())
}

pub(super) fn bad(reason: &str) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_decision", reason)
}

pub(super) fn done() -> Response<Body> {
    json(StatusCode::OK, b"{\"done\":true}".to_vec())
}

//! The HTTP interface: publishing, and reading rooms. `docs/openapi.json`
//! describes it and is served with it.
//!
//! A body is refused whole when it is too large, not JSON, or not of the right
//! shape; past that every event gets its own result.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::answer::{Admission, ApiError, json};
use super::stats::EdgeStats;
use crate::auth::{Authenticator, Grant, Role};
use crate::clock::Clock;
use crate::engine::draft::Draft;
use crate::engine::event::Event;
use crate::engine::ids::{ImportantNo, RoomId, Seq};
use crate::engine::kind::Kinds;
use crate::engine::outcome::{Outcome, RETRY_AFTER_MS};
use crate::shard::peers::{After, LocalShards, Message, Origin, Path as _, Placement as _};
use crate::wire::json as wire_json;

/// The document that describes this interface.
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Bytes of an oversized body that are read and thrown away.
const DISCARD_BYTES: usize = 8 << 20;
/// Time that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// What a request handler needs.
pub struct Api {
    /// The rooms' homes.
    pub shards: Arc<LocalShards>,
    /// Who may do what.
    pub auth: Arc<Authenticator>,
    /// Kinds of events.
    pub kinds: Arc<Kinds>,
    /// What time it is.
    pub clock: Clock,
    /// Counters.
    pub stats: Arc<EdgeStats>,
    /// Largest body in bytes.
    pub max_body: usize,
    /// Events in one request.
    pub max_events: usize,
    /// Events in one answer.
    pub max_history: usize,
    /// A request must be read and answered within this.
    pub timeout: Duration,
}

type Shared = Arc<Api>;

/// All routes of the interface but the WebSocket upgrade.
pub fn router(api: Shared) -> Router {
    Router::new()
        .route("/v1/rooms/{room}", get(read_room))
        .route("/v1/rooms/{room}/events", get(read_events).post(publish))
        .route("/v1/openapi.json", get(openapi))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(api)
}

/// The metric label of a path.
#[must_use]
pub fn route_name(method: &Method, path: &str) -> &'static str {
    match path {
        "/v1/ws" => "ws",
        "/v1/openapi.json" => "openapi",
        "/" => "demo",
        _ if path == "/demo" || path.starts_with("/demo/") => "demo",
        _ => match path.strip_prefix("/v1/rooms/") {
            Some(rest) if rest.ends_with("/events") && method == Method::POST => "events_post",
            Some(rest) if rest.ends_with("/events") => "events_get",
            Some(rest) if !rest.contains('/') => "room",
            _ => "other",
        },
    }
}

async fn openapi() -> Response<Body> {
    json(StatusCode::OK, OPENAPI.into())
}

async fn method_not_allowed() -> ApiError {
    let reason = "this path does not know that method";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", reason)
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

#[derive(Deserialize)]
struct PublishBody<'a> {
    #[serde(borrow)]
    events: Vec<PublishEvent<'a>>,
}

#[derive(Deserialize)]
struct PublishEvent<'a> {
    id: String,
    kind: String,
    #[serde(default)]
    user: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    encoding: Option<String>,
    key: Option<String>,
    amount: Option<i64>,
    ttl_ms: Option<u64>,
}

#[derive(Serialize)]
struct PublishAnswer<'a> {
    results: Vec<ResultBody<'a>>,
    admission: Admission,
}

#[derive(Serialize)]
struct ResultBody<'a> {
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl<'a> ResultBody<'a> {
    fn accepted(id: &'a str, seq: Option<Seq>) -> Self {
        let seq = seq.map(|seq| seq.0);
        Self { id, status: "accepted", seq, code: None, reason: None, retry_after_ms: None }
    }

    fn rejected(id: &'a str, code: &'static str, reason: String, retry: Option<u64>) -> Self {
        let (code, reason) = (Some(code), Some(reason));
        Self { id, status: "rejected", seq: None, code, reason, retry_after_ms: retry }
    }

    fn of(id: &'a str, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted { seq } | Outcome::Duplicate { seq } => Self::accepted(id, seq),
            Outcome::Rejected(refusal) => {
                let retry = refusal.retry_after_ms().map(u64::from);
                Self::rejected(id, refusal.code(), refusal.to_string(), retry)
            }
        }
    }
}

async fn publish(
    State(api): State<Shared>,
    Path(room): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let grant = authorize(&api, request.headers(), &room)?;
    if grant.0.role == Role::Viewer {
        let reason = "publishing by HTTP takes a token with role publisher or operator";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_role", reason));
    }
    require_json(request.headers())?;
    let body = read_body(&api, request).await?;
    let parsed: PublishBody<'_> = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", error.to_string())
    })?;
    if parsed.events.len() > api.max_events {
        let reason = format!("at most {} events in one request", api.max_events);
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_events", reason));
    }
    let (events, mut results) = check_events(&api, &parsed.events);
    let outcomes = hand_over(&api, grant.1, events).await?;
    let mut outcomes = outcomes.into_iter();
    let results = parsed.events.iter().zip(results.iter_mut()).map(|(event, result)| {
        // Those that were no events have their result; the others are answered
        // in order.
        result.take().unwrap_or_else(|| match outcomes.next() {
            Some(Ok(outcome)) => ResultBody::of(&event.id, outcome),
            Some(Err(())) | None => {
                api.stats.refuse("busy");
                let reason = "the server has more events waiting than it takes".to_owned();
                ResultBody::rejected(&event.id, "busy", reason, Some(RETRY_AFTER_MS.into()))
            }
        })
    });
    let answer = PublishAnswer { results: results.collect(), admission: Admission::OPEN };
    Ok(json(StatusCode::OK, serde_json::to_vec(&answer).unwrap_or_default()))
}

/// The events that are some, and the results of those that are not.
fn check_events<'a>(
    api: &Api,
    bodies: &'a [PublishEvent<'a>],
) -> (Vec<Event>, Vec<Option<ResultBody<'a>>>) {
    let now = api.clock.now();
    let mut events = Vec::with_capacity(bodies.len());
    let results = bodies.iter().map(|body| {
        let payload = match wire_json::read_payload(body.payload, body.encoding.as_deref()) {
            Ok(payload) => payload,
            Err(reason) => {
                api.stats.refuse("bad_payload");
                return Some(ResultBody::rejected(&body.id, "bad_payload", reason, None));
            }
        };
        let draft = Draft {
            id: &body.id,
            kind: &body.kind,
            user: &body.user,
            payload,
            key: body.key.as_deref(),
            amount: body.amount,
            ttl_ms: body.ttl_ms,
        };
        match draft.check(&api.kinds, true, now) {
            Ok(event) => {
                events.push(event);
                None
            }
            Err(refused) => {
                api.stats.refuse(refused.code());
                let reason = refused.to_string();
                Some(ResultBody::rejected(&body.id, refused.code(), reason, None))
            }
        }
    });
    let results = results.collect();
    (events, results)
}

/// Sends events to the room's home and waits for what becomes of them.
async fn hand_over(
    api: &Api,
    room: RoomId,
    events: Vec<Event>,
) -> Result<Vec<Result<Outcome, ()>>, ApiError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let count = events.len();
    let (reply, answer) = oneshot::channel();
    if api.shards.publish(room, events, Origin::Request(reply)).is_err() {
        return Ok(vec![Err(()); count]);
    }
    let outcomes = wait(api, answer).await?;
    Ok(outcomes.into_iter().map(Ok).collect())
}

async fn wait<T>(api: &Api, answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match timeout(api.timeout, answer).await {
        Ok(Ok(value)) => Ok(value),
        // A shard that ends drops what it still holds.
        Ok(Err(_)) => {
            let reason = "the server is leaving; whether the request took effect is unknown";
            Err(ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, "draining", reason))
        }
        Err(_) => {
            let reason = "the room did not answer in time; repeat with the same ids";
            Err(ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, "request_timeout", reason))
        }
    }
}

#[derive(Deserialize)]
struct Range {
    important_after: Option<u64>,
    seq_after: Option<u64>,
    limit: Option<usize>,
}

async fn read_events(
    State(api): State<Shared>,
    Path(room): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (_, id) = authorize(&api, request.headers(), &room)?;
    let range = Query::<Range>::try_from_uri(request.uri())
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "bad_query", error.body_text()))?
        .0;
    let after = match (range.important_after, range.seq_after) {
        (Some(number), None) => After::Important(ImportantNo(number)),
        (None, Some(number)) => After::Seq(Seq(number)),
        _ => {
            let reason = "give either important_after or seq_after";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_query", reason));
        }
    };
    let limit = range.limit.unwrap_or(api.max_history).clamp(1, api.max_history);
    let (reply, answer) = oneshot::channel();
    let message = Message::ReadEvents { room: id.clone(), after, limit, reply };
    api.shards.send(api.shards.home_of(&id), message);
    let events = wait(&api, answer).await?.ok_or_else(unknown_room)?;
    let mut body = format!(
        "{{\"room\":\"{id}\",\"epoch\":{},\"seq\":{},\"important\":{},\"complete\":{},\"more\":{},\"events\":[",
        events.epoch.0, events.seq.0, events.important.0, events.complete, events.more
    )
    .into_bytes();
    for (i, event) in events.events.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        wire_json::event(&mut body, event);
    }
    body.extend_from_slice(b"]}");
    Ok(json(StatusCode::OK, body))
}

async fn read_room(
    State(api): State<Shared>,
    Path(room): Path<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let (_, id) = authorize(&api, &headers, &room)?;
    let (reply, answer) = oneshot::channel();
    api.shards.send(api.shards.home_of(&id), Message::ReadRoom { room: id, reply });
    let snapshot = wait(&api, answer).await?.ok_or_else(unknown_room)?;
    let mut body = Vec::new();
    wire_json::room(&mut body, snapshot.snapshot());
    Ok(json(StatusCode::OK, body))
}

fn unknown_room() -> ApiError {
    let reason = "nobody has joined or published to this room yet";
    ApiError::new(StatusCode::NOT_FOUND, "unknown_room", reason)
}

fn authorize(api: &Api, headers: &HeaderMap, room: &str) -> Result<(Grant, RoomId), ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(token) = token else {
        let reason = "send `Authorization: Bearer <token>`";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "missing_token", reason));
    };
    let grant = api.auth.verify(token, api.clock.now())?;
    let id = RoomId::new(room)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "bad_room", error.to_string()))?;
    if !grant.allows_room(&id) {
        let reason = "the token does not grant this room";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_room", reason));
    }
    Ok((grant, id))
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let reason = "send `Content-Type: application/json`";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", reason))
}

async fn read_body(api: &Api, request: Request) -> Result<Bytes, ApiError> {
    let too_large = || {
        let reason = format!("a body has at most {} bytes", api.max_body);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", reason)
    };
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if bytes.len() + data.len() > api.max_body {
                discard(&mut body).await;
                return Ok(false);
            }
            bytes.extend_from_slice(&data);
        }
        Ok::<bool, axum::Error>(true)
    };
    match timeout(api.timeout, read).await {
        Ok(Ok(true)) => Ok(bytes.freeze()),
        Ok(Ok(false)) => Err(too_large()),
        Ok(Err(error)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", error.to_string()))
        }
        Err(_) => {
            let reason = "the body did not arrive in time";
            Err(ApiError::temporary(StatusCode::REQUEST_TIMEOUT, "request_timeout", reason))
        }
    }
}

/// Reads on for a while without keeping anything: a caller that is still
/// sending when the connection closes sees a reset instead of the answer.
async fn discard(body: &mut Body) {
    let mut left = DISCARD_BYTES;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Whoever takes longer has had its chance to hear.
    let _ = timeout(DISCARD_TIME, read).await;
}

/// Headers every answer carries: a browser must not guess types, nor frame the
/// page, nor load anything from elsewhere into it.
#[must_use]
pub fn secure(mut response: Response<Body>) -> Response<Body> {
    const CSP: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; \
                       frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = response.headers_mut();
    let fixed = [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", CSP),
    ];
    for (name, value) in fixed {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// An error as an HTTP response.
#[must_use]
pub fn error_response(error: ApiError) -> Response<Body> {
    error.into_response()
}

//! The HTTP interface: publishing, and reading rooms. `docs/openapi.json`
//! describes it and is served with it.
//!
//! A body is refused whole when it is too large, not JSON, or not of the right
//! shape; past that every event gets its own result.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use bytes::BytesMut;

use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::advice;
use super::answer::{Admission, ApiError, json};
use super::intake::{
    Api, Batch, Head, Verdict, bearer, may_publish, room_of, too_many_events, turn, wait,
};
use crate::auth::Grant;
use crate::engine::draft::Draft;
use crate::engine::event::Payload;
use crate::engine::ids::{ImportantNo, RoomId, Seq};
use crate::engine::mark::Way;
use crate::shard::peers::{After, Message, Path as _, Placement as _};
use crate::trace::Parent;
use crate::wire::json as wire_json;

/// The document that describes this interface.
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Bytes of an oversized body that are read and thrown away.
const DISCARD_BYTES: usize = 8 << 20;
/// Time that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

type Shared = Arc<Api>;

/// All routes of the interface but the WebSocket upgrade.
pub fn router(api: Shared) -> Router {
    Router::new()
        .route("/v1/rooms/{room}", get(read_room))
        .route("/v1/rooms/{room}/events", get(read_events).post(publish))
        .route("/v1/admission", get(advice::read))
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
        super::grpc::PUBLISH => "grpc",
        "/v1/openapi.json" => "openapi",
        "/v1/admission" => "admission",
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

impl PublishEvent<'_> {
    fn draft(&self, payload: Payload) -> Draft<'_> {
        Draft {
            id: &self.id,
            kind: &self.kind,
            user: &self.user,
            payload,
            key: self.key.as_deref(),
            amount: self.amount,
            ttl_ms: self.ttl_ms,
        }
    }
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
    reason: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl<'a> ResultBody<'a> {
    fn of(id: &'a str, verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted { seq } => {
                let seq = seq.map(|seq| seq.0);
                Self { id, status: "accepted", seq, code: None, reason: None, retry_after_ms: None }
            }
            Verdict::Rejected { code, reason, retry_after_ms } => {
                let (code, reason) = (Some(code), Some(reason));
                Self { id, status: "rejected", seq: None, code, reason, retry_after_ms }
            }
        }
    }
}

async fn publish(
    State(api): State<Shared>,
    Path(room): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let published = take(&api, &room, request).await;
    // An upstream that is refused must not take it for an open door.
    published.map_err(|error| error.beside(api.shards.tightest_advice()))
}

async fn take(api: &Api, room: &str, request: Request) -> Result<Response<Body>, ApiError> {
    let (grant, room) = authorize(api, request.headers(), room)?;
    may_publish(&grant)?;
    require_json(request.headers())?;
    let parent = request.headers().get("traceparent");
    let parent = parent.and_then(|value| Parent::parse(value.to_str().ok()?));
    let told = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    let (turn, waited) = turn(api, &grant, &room, told).await?;
    let body = read_body(api, request).await?;
    let begun = api.clock.now();
    let parsed: PublishBody<'_> = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", error.to_string())
    })?;
    if parsed.events.len() > api.max_events {
        return Err(too_many_events(api));
    }
    let batch = Batch::new(api, &grant, room, parsed.events.len(), (waited, begun));
    let mut batch = batch.from(Way::Http, parent);
    for event in &parsed.events {
        let head = Head { id: &event.id, kind: &event.kind, user: &event.user };
        if !batch.opens(&head) {
            continue;
        }
        match wire_json::read_payload(event.payload, event.encoding.as_deref()) {
            Ok(payload) => batch.push(event.draft(payload)),
            Err(reason) => batch.reject("bad_payload", reason),
        }
    }
    let pending = batch.hand_over();
    turn.read(body.len(), api.clock.now().since(begun));
    let (verdicts, admission) = pending.verdicts(api).await?;
    let results = parsed.events.iter().zip(verdicts);
    let results = results.map(|(event, verdict)| ResultBody::of(&event.id, verdict)).collect();
    let answer = PublishAnswer { results, admission: admission.into() };
    Ok(json(StatusCode::OK, serde_json::to_vec(&answer).unwrap_or_default()))
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
    let events = wait(api.timeout, answer).await.map_err(|error| unread(&api, error))?;
    let events = events.ok_or_else(unknown_room)?;
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

/// A read that the log did not take is not answered, just as one at the end of the
/// server is not.
fn unread(api: &Api, error: ApiError) -> ApiError {
    if error.code == "draining" && *api.ready.borrow() {
        let reason = "more is read from the log than it brings at once";
        return ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, "busy", reason);
    }
    error
}

async fn read_room(
    State(api): State<Shared>,
    Path(room): Path<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let (_, id) = authorize(&api, &headers, &room)?;
    let (reply, answer) = oneshot::channel();
    api.shards.send(api.shards.home_of(&id), Message::ReadRoom { room: id, reply });
    let snapshot = wait(api.timeout, answer).await?.ok_or_else(unknown_room)?;
    let mut body = Vec::new();
    wire_json::room(&mut body, snapshot.snapshot());
    Ok(json(StatusCode::OK, body))
}

fn unknown_room() -> ApiError {
    let reason = "nobody has joined or published to this room yet";
    ApiError::new(StatusCode::NOT_FOUND, "unknown_room", reason)
}

fn authorize(api: &Api, headers: &HeaderMap, room: &str) -> Result<(Grant, RoomId), ApiError> {
    let grant = bearer(api, headers)?;
    let id = room_of(&grant, room)?;
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

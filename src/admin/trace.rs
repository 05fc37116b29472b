//! Single events on their way, as operators see them, and which are followed.
//!
//! Reading needs no token, like the rest of this port; it shows ids and rooms
//! and nothing of what events say. Setting a rule takes an operator's, and is
//! logged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query as UrlQuery, Request, State};
use axum::http::{Response, StatusCode};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::overload::{bad, decision, done};
use super::{ANSWER_WITHIN, Observer};
use crate::engine::draft::MAX_ID_BYTES;
use crate::engine::ids::{RoomId, ShardId};
use crate::ingress::answer::{ApiError, json};
use crate::shard::peers::{Message, Path as _};
use crate::trace::{Detail, Noted, Query, Rule, Target, View};

/// A rule holds for this long at most.
const MOST_SECONDS: u64 = 3_600;
/// Traces of one answer, unless fewer are asked for.
const DEFAULT_LIMIT: usize = 20;
/// Traces of one answer at most.
const MOST_TRACES: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    id: Option<String>,
    room: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Answer {
    traces: Vec<TraceView>,
    rules: Vec<RuleView>,
    silent_shards: Vec<usize>,
}

#[derive(Serialize)]
struct TraceView {
    room: String,
    id: String,
    kind: String,
    trace_id: String,
    span_id: String,
    way: &'static str,
    received_us: u64,
    #[serde(skip_serializing_if = "is_zero")]
    steps_cut: u32,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct StepView {
    step: &'static str,
    at_us: u64,
    since_us: u64,
    shard: u16,
    #[serde(flatten)]
    details: Map<String, Value>,
    #[serde(skip)]
    order: u8,
}

#[derive(Serialize)]
struct RuleView {
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    until_ms: u64,
    events_left: u32,
    by: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl RuleView {
    fn of(rule: &Rule) -> Self {
        let Target { room, id } = &rule.target;
        Self {
            room: room.as_ref().map(ToString::to_string),
            id: id.as_deref().map(str::to_owned),
            until_ms: rule.until.as_millis(),
            events_left: rule.left(),
            by: rule.by.to_string(),
        }
    }
}

impl StepView {
    fn of(noted: Noted, shard: ShardId) -> Self {
        let detail = |detail| match detail {
            Detail::Count(count) => Value::from(count),
            Detail::Word(word) => Value::from(word),
        };
        let details = noted.details.into_iter();
        Self {
            step: noted.step.name(),
            at_us: noted.at.as_micros(),
            since_us: noted.since.as_micros(),
            shard: shard.0,
            details: details.map(|(name, value)| (name.to_owned(), detail(value))).collect(),
            order: noted.step as u8,
        }
    }
}

/// Steps of the wanted events, over all shards.
pub(super) async fn show(
    State(observer): State<Arc<Observer>>,
    query: Result<UrlQuery<Wanted>, QueryRejection>,
) -> Result<Response<Body>, ApiError> {
    let UrlQuery(Wanted { id, room, limit }) = query
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "bad_query", error.body_text()))?;
    let room = room.as_deref().map(RoomId::new).transpose();
    let room = room
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "bad_query", error.to_string()))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST_TRACES);
    let query = Query { room, id, limit };
    let answers = (0..observer.shards.count()).map(|index| {
        let (reply, answer) = oneshot::channel();
        let message = Message::ReadTraces(query.clone(), reply);
        observer.shards.send(ShardId(index as u16), message);
        timeout(ANSWER_WITHIN, answer)
    });
    let answers = join_all(answers).await;
    let (mut views, mut silent_shards) = (Vec::new(), Vec::new());
    for (index, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(Ok(more)) => views.extend(more),
            Ok(Err(_)) | Err(_) => silent_shards.push(index),
        }
    }
    let rules = observer.tracing.watch.rules(observer.clock.now());
    let rules = rules.iter().map(|rule| RuleView::of(rule)).collect();
    let answer = Answer { traces: put_together(views, limit), rules, silent_shards };
    Ok(json(StatusCode::OK, serde_json::to_vec(&answer).unwrap_or_default()))
}

/// One trace per event, the last received first, its steps in order of time.
fn put_together(views: Vec<View>, limit: usize) -> Vec<TraceView> {
    let mut traces: HashMap<u128, TraceView> = HashMap::new();
    for View { mark, shard, steps, cut } in views {
        let trace = traces.entry(mark.key).or_insert_with(|| TraceView {
            room: mark.room.to_string(),
            id: mark.id.to_string(),
            kind: mark.kind.to_string(),
            trace_id: format!("{:032x}", mark.trace),
            span_id: format!("{:016x}", mark.span),
            way: mark.way.name(),
            received_us: mark.received.as_micros(),
            steps_cut: 0,
            steps: Vec::new(),
        });
        trace.steps_cut += cut;
        trace.steps.extend(steps.into_iter().map(|noted| StepView::of(noted, shard)));
    }
    let mut traces: Vec<TraceView> = traces.into_values().collect();
    traces.sort_by(|a, b| b.received_us.cmp(&a.received_us).then_with(|| a.id.cmp(&b.id)));
    traces.truncate(limit);
    for trace in &mut traces {
        trace.steps.sort_by_key(|step| (step.at_us, step.order, step.shard));
    }
    traces
}

/// `{"id": "e1", "seconds": 600}`, `{"room": "r", "seconds": 60, "events": 100}`,
/// or an id in a room; 0 seconds end it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Follow {
    id: Option<String>,
    room: Option<String>,
    seconds: u64,
    events: Option<u32>,
}

/// Follows an event or a room for a while.
pub(super) async fn set(
    State(observer): State<Arc<Observer>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (operator, Follow { id, room, seconds, events }) = decision(&observer, request).await?;
    let target = Target {
        room: match &room {
            Some(name) => Some(RoomId::new(name).map_err(|error| bad(&error.to_string()))?),
            None => None,
        },
        id: id.as_deref().map(Into::into),
    };
    if target.room.is_none() && target.id.is_none() {
        return Err(bad("give an id, a room, or both"));
    }
    if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MAX_ID_BYTES) {
        return Err(bad("no event has such an id"));
    }
    if seconds > MOST_SECONDS {
        return Err(bad("an event or room is followed for an hour at most"));
    }
    let most = observer.tracing.rule_events;
    let events = events.unwrap_or(most);
    if !(1..=most).contains(&events) {
        return Err(bad(&format!("a rule follows 1 to {most} events")));
    }
    let now = observer.clock.now();
    let until = now + Duration::from_secs(seconds);
    let set = observer.tracing.watch.set(target, until, events, &operator, now);
    set.map_err(|_| bad("as many rules hold as may; end one, or wait"))?;
    info!(
        target: "tidegate::audit",
        operator, decision = "trace", id, room, seconds, events, "events followed"
    );
    Ok(done())
}

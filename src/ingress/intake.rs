//! What every way in has in common, once a request is decoded: fixed limits of
//! the caller, the admission gate, the checks of each event, the way to the
//! room's home and back.
//!
//! A [`Batch`] takes one request's events in order. [`Batch::opens`] is asked
//! before an event's content is decoded, so that what is refused costs no more
//! than reading who wants what.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::answer::ApiError;
use super::stats::EdgeStats;
use super::turns::{Turn, Turns};
use crate::auth::{Authenticator, Grant, Role};
use crate::clock::Clock;
use crate::engine::admission::retry_after;
use crate::engine::draft::Draft;
use crate::engine::event::Event;
use crate::engine::ids::{RoomId, Seq, ShardId};
use crate::engine::kind::Kinds;
use crate::engine::level::HourKey;
use crate::engine::mark::{Mark, Way};
use crate::engine::outcome::{Outcome, RETRY_AFTER_MS};
use crate::engine::priority::{AdmissionLevel, Advice, Priority};
use crate::engine::time::Time;
use crate::limits::{CallerLimits, Limited};
use crate::shard::peers::{
    Answered, LocalShards, Message, Origin, Path as _, Placement as _, Standing,
};
use crate::trace::{Arrival, Marker, Parent, Watch};

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
    /// Fixed limits of callers.
    pub limits: Arc<CallerLimits>,
    /// What homes last said of their rooms.
    pub advice: RoomAdvice,
    /// Which events are followed.
    pub watch: Arc<Watch>,
    /// The shard whose thread this is.
    pub shard: ShardId,
    /// Largest body in bytes, and largest message of a stream.
    pub max_body: usize,
    /// Events in one request.
    pub max_events: usize,
    /// Events in one answer.
    pub max_history: usize,
    /// Requests in work on one stream.
    pub in_flight: usize,
    /// A request must be read and answered within this.
    pub timeout: Duration,
    /// Whose request is read next.
    pub turns: Turns,
    /// Whether the server is ready for traffic, as `/readyz` says.
    pub ready: watch::Receiver<bool>,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Taken, now or before.
    Accepted {
        /// Its number; none on the sampled lane.
        seq: Option<Seq>,
    },
    /// Not taken.
    Rejected {
        /// Machine-readable.
        code: &'static str,
        /// For people.
        reason: Cow<'static, str>,
        /// When the same may be tried again; `None`: never.
        retry_after_ms: Option<u64>,
    },
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted { seq } | Outcome::Duplicate { seq } => Self::Accepted { seq },
            Outcome::Rejected(refusal) => Self::Rejected {
                code: refusal.code(),
                reason: refusal.to_string().into(),
                retry_after_ms: refusal.retry_after_ms().map(u64::from),
            },
        }
    }
}

impl Verdict {
    fn temporary(code: &'static str, reason: &'static str, retry_after: Duration) -> Self {
        // Rounded up: who comes back a moment early is refused again.
        let retry_after_ms = Some(retry_after.as_micros().div_ceil(1_000) as u64);
        Self::Rejected { code, reason: reason.into(), retry_after_ms }
    }
}

/// What the request's bearer token allows.
///
/// # Errors
/// There is none, or it is not good.
pub fn bearer(api: &Api, headers: &HeaderMap) -> Result<Grant, ApiError> {
    bearer_of(&api.auth, api.clock.now(), headers)
}

/// The same on another port.
///
/// # Errors
/// There is none, or it is not good.
pub fn bearer_of(auth: &Authenticator, now: Time, headers: &HeaderMap) -> Result<Grant, ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(token) = token else {
        let reason = "send `Authorization: Bearer <token>`";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "missing_token", reason));
    };
    Ok(auth.verify(token, now)?)
}

/// Whose connection a request comes on: an application's, by its token, or else
/// nobody's in particular, which is what viewers and strangers are together.
#[must_use]
pub fn application(api: Option<&Api>, headers: &HeaderMap) -> Arc<str> {
    let grant = api.and_then(|api| bearer(api, headers).ok());
    let grant = grant.filter(|grant| may_publish(grant).is_ok());
    grant.map_or_else(|| "".into(), |grant| grant.user)
}

/// Whoever has this token may publish from outside a room.
///
/// # Errors
/// It is a viewer's.
pub fn may_publish(grant: &Grant) -> Result<(), ApiError> {
    if grant.role == Role::Viewer {
        let reason = "publishing takes a token with role publisher or operator";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_role", reason));
    }
    Ok(())
}

/// The room of this name, if the token grants it.
///
/// # Errors
/// It is no room's name, or not granted.
pub fn room_of(grant: &Grant, name: &str) -> Result<RoomId, ApiError> {
    let id = RoomId::new(name)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "bad_room", error.to_string()))?;
    if !grant.allows_room(&id) {
        let reason = "the token does not grant this room";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_room", reason));
    }
    Ok(id)
}

/// More events than one request may have.
#[must_use]
pub fn too_many_events(api: &Api) -> ApiError {
    let reason = format!("at most {} events in one request", api.max_events);
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_events", reason)
}

/// Waits until a request of `bytes` or more is to be read, and says for how long.
///
/// # Errors
/// It would have to wait longer than a request may take.
pub async fn turn<'a>(
    api: &'a Api,
    grant: &Grant,
    room: &RoomId,
    bytes: usize,
) -> Result<(Turn<'a>, Duration), ApiError> {
    let asked = api.clock.now();
    let wait = api.turns.wait(&grant.user, room, bytes.min(api.max_body));
    let Ok(turn) = timeout(api.timeout, wait).await else {
        let reason = "more was sent to this room than was read in time; nothing was taken";
        return Err(ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, "busy", reason));
    };
    let waited = api.clock.now().since(asked);
    api.stats.request_waited(waited);
    Ok((turn, waited))
}

/// What can be read of an event before its content is decoded.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Publisher's idempotency key.
    pub id: &'a str,
    /// Kind name.
    pub kind: &'a str,
    /// Who caused it.
    pub user: &'a str,
}

/// Rooms whose advice is kept. When all places are taken they are given up.
const MOST_ADVISED: usize = 4_096;
/// What a home said of a room holds for refusing on its behalf this long.
const ADVICE_AGE: Duration = Duration::from_millis(250);

/// What homes last said of their rooms. Only they know how much of its share a
/// room uses.
#[derive(Debug, Default)]
pub struct RoomAdvice(Mutex<HashMap<RoomId, (AdmissionLevel, Time)>>);

impl RoomAdvice {
    pub(super) fn keep(&self, room: &RoomId, advice: Advice, now: Time) {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if advice.level.is_open() {
            rooms.remove(room);
            return;
        }
        if rooms.len() >= MOST_ADVISED {
            rooms.clear();
        }
        rooms.insert(room.clone(), (advice.level, now));
    }

    fn of(&self, room: &RoomId, now: Time) -> AdmissionLevel {
        let rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = rooms.get(room).filter(|(_, said)| now.since(*said) <= ADVICE_AGE);
        fresh.map_or(AdmissionLevel::OPEN, |(level, _)| *level)
    }
}

/// How a room's home stood when a request came. The home judges for itself;
/// what it would surely refuse is spared the way there.
struct Gate {
    standing: Standing,
    level: AdmissionLevel,
    advice: Advice,
    hour: HourKey,
    /// What was refused: the home counts it as demand.
    shunned: Vec<Priority>,
}

impl Gate {
    fn of(api: &Api, room: &RoomId, now: Time) -> Self {
        let (standing, advice) = (api.shards.standing(room), api.shards.advice(room));
        let level = if standing.pressed { api.advice.of(room, now) } else { AdmissionLevel::OPEN };
        Self { standing, level, advice, hour: api.shards.hour(now), shunned: Vec::new() }
    }

    /// When to come back, if the event does not pass.
    fn refuses(&mut self, api: &Api, head: &Head<'_>) -> Option<Duration> {
        if self.level.is_open() {
            return None;
        }
        let tier = api.kinds.tier(head.kind);
        let priority = self.hour.priority(tier, head.user, head.id);
        if self.level.admits(priority) {
            return None;
        }
        self.shunned.push(priority);
        Some(retry_after(self.standing.load, rand::random()))
    }
}

/// One request's events on their way to their room. For each event in order:
/// [`Batch::opens`], and if it does, [`Batch::push`] or [`Batch::reject`].
pub struct Batch<'a> {
    api: &'a Api,
    room: RoomId,
    /// When its reading began.
    begun: Time,
    /// When it arrived, as far as can be told.
    now: Time,
    gate: Gate,
    /// The events after the first so many are over a limit.
    limited: Option<Limited>,
    /// Absent: nothing of this request is followed.
    marker: Option<Marker>,
    /// Of the event that was opened last.
    mark: Option<Arc<Mark>>,
    events: Vec<Event>,
    verdicts: Vec<Option<Verdict>>,
}

impl<'a> Batch<'a> {
    /// A request of `count` events that waited so long for its
    /// [turn](super::turns), and whose reading began at `begun`. They are counted
    /// against the limits of the caller here and now.
    #[must_use]
    pub fn new(
        api: &'a Api,
        grant: &Grant,
        room: RoomId,
        count: usize,
        (waited, begun): (Duration, Time),
    ) -> Self {
        let now = api.clock.now();
        let events = u32::try_from(count).unwrap_or(u32::MAX);
        let limited = api.limits.take(Some(&grant.user), grant.client_type(), events, now).err();
        Self {
            gate: Gate::of(api, &room, now),
            api,
            room,
            begun,
            // It lay in its socket for as long as a task waits at present.
            now: now - api.stats.lag() - waited,
            limited,
            marker: None,
            mark: None,
            events: Vec::with_capacity(count),
            verdicts: Vec::with_capacity(count),
        }
    }

    /// Says how the request came in and what it belongs to, for those who
    /// follow events. Call before the first event.
    #[must_use]
    pub fn from(mut self, way: Way, parent: Option<Parent>) -> Self {
        let arrival = Arrival { way, shard: self.api.shard, received: self.now };
        self.marker = self.api.watch.begin(&self.room, arrival, parent);
        self
    }

    /// Whether the next event is to be decoded. If not, its verdict is found.
    pub fn opens(&mut self, head: &Head<'_>) -> bool {
        let place = self.verdicts.len();
        if let Some(marker) = &self.marker {
            self.mark = marker.mark(head.id, head.kind);
        }
        if let Some(limited) = self.limited.filter(|l| place >= l.granted as usize) {
            let (code, reason) = (limited.by.code(), limited.by.reason());
            self.api.stats.refuse(code);
            self.trace_refusal(code);
            self.verdicts.push(Some(Verdict::temporary(code, reason, limited.retry_after)));
            return false;
        }
        if let Some(retry_after) = self.gate.refuses(self.api, head) {
            self.trace_refusal("overloaded");
            let reason = "the server is overloaded and takes what matters more";
            self.verdicts.push(Some(Verdict::temporary("overloaded", reason, retry_after)));
            return false;
        }
        true
    }

    /// The next event.
    pub fn push(&mut self, draft: Draft<'_>) {
        match draft.check(&self.api.kinds, true, self.now) {
            Ok(mut event) => {
                event.mark = self.mark.take();
                self.events.push(event);
                self.verdicts.push(None);
            }
            Err(refused) => self.reject(refused.code(), refused.to_string()),
        }
    }

    /// The next event is none, for ever.
    pub fn reject(&mut self, code: &'static str, reason: impl Into<Cow<'static, str>>) {
        self.api.stats.refuse(code);
        self.trace_refusal(code);
        let reason = reason.into();
        self.verdicts.push(Some(Verdict::Rejected { code, reason, retry_after_ms: None }));
    }

    /// The event that was opened last goes no further.
    fn trace_refusal(&mut self, code: &'static str) {
        if let Some(mark) = self.mark.take() {
            self.api.shards.trace_refusal(mark, code);
        }
    }

    /// Sends the events to the room's home.
    #[must_use]
    pub fn hand_over(mut self) -> Pending {
        let admission = self.gate.advice;
        let (reply, answer) = oneshot::channel();
        let parsed = self.api.clock.now().since(self.begun);
        if !self.gate.shunned.is_empty() {
            let message =
                Message::Shunned { room: self.room.clone(), priorities: self.gate.shunned };
            self.api.shards.send(self.api.shards.home_of(&self.room), message);
        }
        let marks: Vec<Arc<Mark>> = match &self.marker {
            Some(_) => self.events.iter().filter_map(|event| event.mark.clone()).collect(),
            None => Vec::new(),
        };
        let answer = if self.events.is_empty() {
            None
        } else if self
            .api
            .shards
            .publish(self.room.clone(), self.events, parsed, Origin::Request(reply))
            .is_ok()
        {
            Some(answer)
        } else {
            for mark in marks {
                self.api.shards.trace_refusal(mark, "busy");
            }
            for verdict in self.verdicts.iter_mut().filter(|verdict| verdict.is_none()) {
                self.api.stats.refuse("busy");
                let reason = "the server has more events waiting than it takes";
                let retry_after = Duration::from_millis(RETRY_AFTER_MS.into());
                *verdict = Some(Verdict::temporary("busy", reason, retry_after));
            }
            None
        };
        Pending { room: self.room, verdicts: self.verdicts, answer, admission }
    }
}

/// A request whose events are with the room's home.
#[derive(Debug)]
pub struct Pending {
    room: RoomId,
    verdicts: Vec<Option<Verdict>>,
    answer: Option<oneshot::Receiver<Answered>>,
    /// The level to tell the caller.
    pub admission: Advice,
}

impl Pending {
    /// What became of each event, in the order of the request, and what the
    /// home admits.
    ///
    /// # Errors
    /// The home did not answer in time, or ends.
    pub async fn verdicts(mut self, api: &Api) -> Result<(Vec<Verdict>, Advice), ApiError> {
        let outcomes = match self.answer {
            Some(answer) => {
                let answered = wait(api.timeout, answer).await?;
                self.admission = answered.advice;
                api.advice.keep(&self.room, self.admission, api.clock.now());
                answered.outcomes
            }
            None => Vec::new(),
        };
        let mut outcomes = outcomes.into_iter();
        let verdicts = self.verdicts.into_iter();
        // Those that were no events have their verdict; the others are answered
        // in order.
        let verdicts = verdicts
            .filter_map(|verdict| verdict.or_else(|| outcomes.next().map(Into::into)))
            .collect();
        Ok((verdicts, self.admission))
    }
}

/// Waits for a shard's answer.
///
/// # Errors
/// There was none within `limit`, or there will be none.
pub async fn wait<T>(limit: Duration, answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match timeout(limit, answer).await {
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

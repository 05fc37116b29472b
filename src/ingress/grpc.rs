//! gRPC: `tidegate.v1.Publisher/Publish`, one stream of requests and one of
//! answers. `proto/tidegate/v1/publisher.proto` is the interface, docs/grpc.md
//! tells how it behaves. Beside it `grpc.health.v1.Health` (`health`).
//!
//! A stream is a state machine that the response body drives: it takes a message
//! only while fewer than `ingress.grpc_in_flight` wait for their room, and it is
//! polled only while the caller takes answers. So a caller that does not read
//! its answers, or sends faster than its rooms take, fills its HTTP/2 window and
//! stops there; nothing of it queues here.
//!
//! Events of one stream reach a room in the order in which they were sent, since
//! a message has its [turn](super::turns) and is handed over whole before the
//! next is taken.

mod codec;
mod deadline;
mod health;
mod message;

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::{Ready, ready};
use futures_util::stream::{FuturesUnordered, Stream, StreamExt as _, unfold};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::watch;
use tonic::codec::Streaming;
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Status};

use self::codec::Answering;
use self::deadline::{Deadline, Restart};
use self::message::{Envelope, Sealed, answer, refusal};
use super::answer::ApiError;
use super::intake::{
    Api, Batch, Head, Pending, bearer, may_publish, room_of, too_many_events, turn,
};
use crate::auth::Grant;
use crate::engine::mark::Way;
use crate::wire::proto::v1;

/// Path of the method.
pub const PUBLISH: &str = "/tidegate.v1.Publisher/Publish";

/// Whether a request is a gRPC call, to be answered with a gRPC status.
#[must_use]
pub fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// Serves one call. `leaving` turns when the server drains; `place` is held
/// until the stream ends.
///
/// # Errors
/// What the call is refused with; [`refuse`] makes a response of it.
pub async fn serve(
    api: Arc<Api>,
    leaving: watch::Receiver<bool>,
    request: Request<Body>,
    place: impl Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    if health::is_asked(path) {
        let state = health::State { ready: api.ready.clone(), leaving };
        return Ok(health::serve(state, request, place).await);
    }
    if path != PUBLISH {
        let reason = "there is tidegate.v1.Publisher/Publish, and grpc.health.v1.Health";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_method", reason));
    }
    let grant = bearer(&api, request.headers())?;
    may_publish(&grant)?;
    if *leaving.borrow() {
        return Err(draining());
    }
    let open = Open::new(&api, place);
    let max_message = api.max_body;
    let (head, body) = request.into_parts();
    let (body, restart) = Deadline::new(body, api.timeout);
    let request = Request::from_parts(head, body);
    let call = Call(Some(Begun { api, grant, leaving, restart, open }));
    let codec = Answering::<v1::PublishResponse>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(max_message);
    Ok(grpc.streaming(call, request).await.map(Body::new))
}

/// A refused call, as gRPC has it: status 200, and the reason in `grpc-status`.
#[must_use]
pub fn refuse(error: &ApiError) -> Response<Body> {
    status(error).into_http()
}

fn status(error: &ApiError) -> Status {
    let code = match error.status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Unavailable,
    };
    Status::new(code, format!("{}: {}", error.code, error.reason))
}

fn draining() -> ApiError {
    let reason = "the server is leaving; try another";
    ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, "draining", reason)
}

/// Counts a stream for as long as it lives, and keeps its place.
struct Open {
    api: Arc<Api>,
    _place: Box<dyn Send>,
}

impl Open {
    fn new(api: &Arc<Api>, place: impl Send + 'static) -> Self {
        api.stats.grpc_streams.fetch_add(1, Ordering::Relaxed);
        Self { api: Arc::clone(api), _place: Box::new(place) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.api.stats.grpc_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call whose caller is known.
struct Begun {
    api: Arc<Api>,
    grant: Grant,
    leaving: watch::Receiver<bool>,
    restart: Restart,
    open: Open,
}

/// What tonic calls, once.
struct Call(Option<Begun>);

type Answers = Pin<Box<dyn Stream<Item = Result<v1::PublishResponse, Status>> + Send>>;

impl StreamingService<Bytes> for Call {
    type Response = v1::PublishResponse;
    type ResponseStream = Answers;
    type Future = Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        ready(match self.0.take() {
            Some(begun) => {
                let talk = Talk {
                    api: begun.api,
                    grant: Arc::new(begun.grant),
                    leaving: begun.leaving,
                    restart: begun.restart,
                    messages: request.into_inner(),
                    asked: None,
                    work: FuturesUnordered::new(),
                    numbers: HashSet::new(),
                    end: None,
                    _open: begun.open,
                };
                let answers = unfold(talk, |mut talk| async move {
                    let answer = talk.next().await?;
                    Some((answer, talk))
                });
                Ok(tonic::Response::new(Box::pin(answers) as Answers))
            }
            None => Err(Status::internal("called twice")),
        })
    }
}

type Answer = Pin<Box<dyn Future<Output = v1::PublishResponse> + Send>>;

/// A request's ids, and its events on their way.
type Taken = Result<(Vec<String>, Pending), ApiError>;

/// A request that waits for its turn, or is about to be read.
struct Asked {
    number: u64,
    taken: Pin<Box<dyn Future<Output = Taken> + Send>>,
}

/// Why no further message is taken.
enum End {
    /// The caller has sent all it wants.
    Done,
    /// The stream is of no more use.
    Broken(Status),
    /// The server drains: an answer about the whole stream is due first.
    Leaving,
}

/// One stream. Call [`Talk::next`] for each answer until it gives none.
struct Talk {
    api: Arc<Api>,
    grant: Arc<Grant>,
    leaving: watch::Receiver<bool>,
    restart: Restart,
    messages: Streaming<Bytes>,
    /// While there is one, no further message is taken.
    asked: Option<Asked>,
    /// Requests whose events are with their rooms.
    work: FuturesUnordered<Answer>,
    /// Their numbers: an answer must say whose it is.
    numbers: HashSet<u64>,
    end: Option<End>,
    _open: Open,
}

impl Talk {
    async fn next(&mut self) -> Option<Result<v1::PublishResponse, Status>> {
        // Nothing was read while the last answer was not taken.
        self.restart.resumed();
        loop {
            let full = self.asked.is_some() || self.work.len() >= self.api.in_flight;
            let reads = self.end.is_none() && !full;
            tokio::select! {
                biased;
                Some(answer) = self.work.next(), if !self.work.is_empty() => {
                    self.numbers.remove(&answer.request);
                    return Some(Ok(answer));
                }
                Ok(()) = self.leaving.changed(), if self.end.is_none() => {
                    self.end = Some(End::Leaving);
                }
                (number, taken) = read(&mut self.asked), if self.asked.is_some() => {
                    self.asked = None;
                    // Nor was anything read while it waited.
                    self.restart.resumed();
                    self.answer(number, taken);
                }
                message = self.messages.message(), if reads => {
                    self.take(message);
                    // One message at a time: a stream that always has another
                    // must not hold up the shard.
                    tokio::task::yield_now().await;
                }
                else => break,
            }
        }
        // Everything taken is answered.
        match self.end.take()? {
            End::Done => None,
            End::Broken(status) => Some(Err(status)),
            End::Leaving => {
                let error = draining();
                self.end = Some(End::Broken(status(&error)));
                self.count("draining");
                Some(Ok(refusal(0, &error, self.api.shards.tightest_advice())))
            }
        }
    }

    fn take(&mut self, message: Result<Option<Bytes>, Status>) {
        let bytes = match message {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return self.end = Some(End::Done),
            Err(status) => {
                if status.code() == Code::DeadlineExceeded {
                    self.count("message_timeout");
                }
                return self.end = Some(End::Broken(readable(status)));
            }
        };
        if self.grant.expired(self.api.clock.now()) {
            let status = Status::unauthenticated("token_expired: the token has expired");
            return self.end = Some(End::Broken(status));
        }
        let Some(envelope) = Envelope::read(&bytes, self.api.max_events) else {
            let status = Status::invalid_argument("malformed_message: not a PublishRequest");
            return self.end = Some(End::Broken(status));
        };
        let number = envelope.request;
        if number == 0 || !self.numbers.insert(number) {
            let reason = "bad_request_number: a request has a number of its own from 1";
            return self.end = Some(End::Broken(Status::invalid_argument(reason)));
        }
        let (api, grant) = (Arc::clone(&self.api), Arc::clone(&self.grant));
        let taken = async move { begin(&api, &grant, envelope, bytes.len()).await };
        self.asked = Some(Asked { number, taken: Box::pin(taken) });
    }

    /// Answers a request when its room has.
    fn answer(&mut self, number: u64, taken: Taken) {
        let api = Arc::clone(&self.api);
        self.work.push(Box::pin(async move {
            let done = match taken {
                Ok((ids, pending)) => {
                    let verdicts = pending.verdicts(&api).await;
                    verdicts.map(|(verdicts, admission)| answer(number, ids, verdicts, admission))
                }
                Err(error) => Err(error),
            };
            api.stats.grpc_request(done.as_ref().map_or_else(|error| error.code, |_| "answered"));
            done.unwrap_or_else(|error| refusal(number, &error, api.shards.tightest_advice()))
        }));
    }

    fn count(&self, result: &str) {
        self.api.stats.grpc_request(result);
    }
}

/// The request that has asked for its turn.
async fn read(asked: &mut Option<Asked>) -> (u64, Taken) {
    match asked {
        Some(asked) => (asked.number, asked.taken.as_mut().await),
        None => std::future::pending().await,
    }
}

/// tonic has its own code for a message over the limit; gRPC's other
/// implementations agree on this one.
fn readable(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        return Status::resource_exhausted(format!("message_too_large: {}", status.message()));
    }
    status
}

/// Sends a request's events to their room when its turn comes; returns their ids
/// beside. It came in so many bytes.
async fn begin(api: &Api, grant: &Grant, envelope: Envelope, bytes: usize) -> Taken {
    if envelope.too_many {
        return Err(too_many_events(api));
    }
    let room = room_of(grant, &envelope.room)?;
    let (turn, waited) = turn(api, grant, &room, bytes).await?;
    let begun = api.clock.now();
    // A stream lives for hours: its `traceparent` would make one trace of all.
    let batch = Batch::new(api, grant, room, envelope.events.len(), (waited, begun));
    let mut batch = batch.from(Way::Grpc, None);
    let mut ids = Vec::with_capacity(envelope.events.len());
    for event in envelope.events {
        let sealed = match Sealed::read(event) {
            Ok(sealed) => sealed,
            Err(error) => {
                batch.reject("bad_event", error.to_string());
                ids.push(String::new());
                continue;
            }
        };
        let head = Head { id: &sealed.id, kind: &sealed.kind, user: &sealed.user };
        if batch.opens(&head) {
            match sealed.open() {
                Ok(content) => batch.push(content.draft(&sealed)),
                Err(reason) => batch.reject("bad_payload", reason),
            }
        }
        ids.push(sealed.id);
    }
    let pending = batch.hand_over();
    turn.read(bytes, api.clock.now().since(begun));
    Ok((ids, pending))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;

    use super::*;
    use crate::auth::{Authenticator, Claims, Role};
    use crate::clock::Clock;
    use crate::config::{Auth, Config, KeyConfig, Secret};
    use crate::engine::ids::{RoomId, ShardId};
    use crate::engine::level::LevelKey;
    use crate::engine::priority::{AdmissionLevel, Advice};
    use crate::ingress::intake::{RoomAdvice, Verdict};
    use crate::ingress::stats::EdgeStats;
    use crate::ingress::turns::Turns;
    use crate::limits::CallerLimits;
    use crate::shard::peers::{Inbox, LocalShards, Message, Standing};
    use crate::trace::{Watch, WatchSettings};

    fn api() -> (Api, Vec<Inbox>) {
        let second = Duration::from_secs(1);
        let (shards, inboxes) = LocalShards::new(1, 100, LevelKey::from_seed(1), second);
        let secret = Some(Secret::new("0123456789abcdef0123456789abcdef"));
        let key = KeyConfig { id: "test".into(), secret, ..KeyConfig::default() };
        let auth = Auth { keys: vec![key], ..Auth::default() };
        let config = Config::default();
        let api = Api {
            shards,
            auth: Arc::new(Authenticator::new(&auth, None).expect("a key")),
            kinds: Arc::new(config.kinds()),
            clock: Clock::start(),
            stats: Arc::new(EdgeStats::default()),
            limits: Arc::new(CallerLimits::new(&config.limit_settings(1))),
            advice: RoomAdvice::default(),
            watch: Arc::new(Watch::new(WatchSettings {
                sample_one_in: 0,
                follow_parents: false,
                most_rules: 0,
            })),
            shard: ShardId(0),
            max_body: 1_000,
            max_events: 100,
            max_history: 100,
            in_flight: 64,
            timeout: second,
            turns: Turns::new(second),
            ready: watch::channel(true).1,
        };
        (api, inboxes)
    }

    fn publisher(api: &Api) -> Grant {
        let now = api.clock.now();
        let claims =
            Claims { user: "im".into(), role: Role::Operator, rooms: vec![], client: None };
        let token = api.auth.mint(&claims, Duration::from_secs(9), now).expect("minted");
        api.auth.verify(&token, now).expect("good")
    }

    /// A request for a gift and a chat whose bodies are garbage.
    fn two_events() -> Envelope {
        let events = ["gift", "chat"].map(|kind| {
            let body = Bytes::from_static(b"\xff\xff");
            let sealed = Sealed { id: kind.into(), kind: kind.into(), body, ..Default::default() };
            sealed.encode_to_vec().into()
        });
        Envelope { request: 1, room: "r".into(), events: events.into(), too_many: false }
    }

    /// What becomes of it.
    fn garbage(api: &Api) -> Vec<Verdict> {
        let grant = publisher(api);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let verdicts = async {
            let (ids, pending) = begin(api, &grant, two_events(), 100).await.expect("taken");
            assert_eq!(ids, ["gift", "chat"]);
            pending.verdicts(api).await
        };
        runtime.expect("a runtime").block_on(verdicts).expect("no event was handed over").0
    }

    #[tokio::test]
    async fn a_request_is_not_read_before_its_turn() {
        let (api, _inboxes) = api();
        let room = RoomId::new("r").expect("a name");
        let long = api.turns.wait("somebody else", &room, 1 << 30).await;
        let grant = publisher(&api);
        let mut begun = Box::pin(begin(&api, &grant, two_events(), 100));
        assert!(futures_util::poll!(begun.as_mut()).is_pending());
        assert_eq!(api.stats.refused.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>(), 0);
        assert_eq!(api.turns.turn(), 0);
        assert!(begun.await.is_ok());
        long.read(1, Duration::from_nanos(1));
    }

    #[tokio::test]
    async fn a_request_whose_turn_does_not_come_in_time_is_answered_busy() {
        let (mut api, _inboxes) = api();
        api.timeout = Duration::from_millis(10);
        let room = RoomId::new("r").expect("a name");
        let long = api.turns.wait("somebody else", &room, 1 << 30).await;
        // No worker gives turns here.
        let error = begin(&api, &publisher(&api), two_events(), 100).await.expect_err("no turn");
        assert_eq!((error.status, error.code), (StatusCode::SERVICE_UNAVAILABLE, "busy"));
        assert!(error.temporary, "it may come back");
        long.read(1, Duration::from_nanos(1));
    }

    fn codes(verdicts: &[Verdict]) -> Vec<&str> {
        let code = |verdict: &'_ Verdict| match *verdict {
            Verdict::Accepted { .. } => "accepted",
            Verdict::Rejected { code, .. } => code,
        };
        verdicts.iter().map(code).collect()
    }

    #[test]
    fn what_a_pressed_home_does_not_admit_is_refused_unread_and_counted_there() {
        let (api, mut inboxes) = api();
        assert_eq!(codes(&garbage(&api)), ["bad_payload", "bad_payload"]);
        assert!(inboxes[0].receiver.try_recv().is_err(), "nothing to tell the home");
        let level = AdmissionLevel::from_wire(1, 127, None);
        let pressed = Standing { level, pressed: true, load: 2.0 };
        api.shards.set_standing(ShardId(0), pressed);
        let unknown = garbage(&api);
        assert_eq!(codes(&unknown), ["bad_payload"; 2], "nobody knows how much the room uses");
        let room = RoomId::new("r").expect("a name");
        let advice = Advice { level, ttl: Duration::from_secs(1) };
        api.advice.keep(&room, advice, api.clock.now());
        let verdicts = garbage(&api);
        assert_eq!(codes(&verdicts), ["bad_payload", "overloaded"], "tier 1 is admitted, 3 is not");
        assert!(matches!(verdicts[1], Verdict::Rejected { retry_after_ms: Some(_), .. }));
        let told = inboxes[0].receiver.try_recv();
        assert!(
            matches!(told, Ok(Message::Shunned { ref priorities, .. }) if priorities.len() == 1)
        );
        // With nothing waiting there the home judges for itself.
        api.shards.set_standing(ShardId(0), Standing { pressed: false, ..pressed });
        assert_eq!(codes(&garbage(&api)), ["bad_payload", "bad_payload"]);
    }
}

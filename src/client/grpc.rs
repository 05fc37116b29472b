//! The gRPC interface, from the publisher's side: one stream for all batches.
//!
//! The stream is opened by the first batch that needs one and again after it has
//! ended, with the token of that moment; a new token gets a new stream, and what
//! is under way on the old one is still answered there. Answers come in any order
//! and find their batch by number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, header};
use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::event::{Content, NewEvent};
use super::http::Authorization;
use super::outcome::{Failure, Refusal};
use super::transport::{Answer, EventResult, Whole};
use super::{Owned, StartError};
use crate::connector::{Connector, innermost};
use crate::engine::ids::RoomId;
use crate::engine::priority::AdmissionLevel;
use crate::trust::{self, Trust};
use crate::wire::proto::v1;

const PUBLISH: &str = "/tidegate.v1.Publisher/Publish";
/// Batches that wait for the stream's window; more wait for a place here.
const OUTGOING: usize = 8;
/// How often a connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// A server's gRPC interface. Clones share the stream.
#[derive(Debug, Clone)]
pub(super) struct Grpc {
    channel: Channel,
    authorization: Authorization,
    timeout: Duration,
    stream: Arc<AsyncMutex<Option<Arc<Stream>>>>,
}

/// An open stream, and the task that reads it.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<v1::PublishRequest>,
    authorization: HeaderValue,
    numbers: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
    _reader: Owned,
}

/// Batches without an answer; and how the stream ended, once it has.
#[derive(Debug, Default)]
struct Waiting {
    batches: HashMap<u64, oneshot::Sender<v1::PublishResponse>>,
    end: Option<End>,
}

/// What batches without an answer hear.
type End = Result<Whole, Failure>;

impl Grpc {
    /// A server at `url`; connects when there is something to send.
    pub(super) fn new(
        url: Uri,
        trust: &Trust,
        authorization: Authorization,
        timeout: Duration,
    ) -> Result<Self, StartError> {
        let connector = Connector::new(&url, trust, b"h2", timeout);
        let connector = connector.map_err(|error| StartError::Tls(error.to_string()))?;
        let endpoint = Endpoint::from(url).http2_keep_alive_interval(PING_INTERVAL);
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(Self { channel, authorization, timeout, stream: Arc::new(AsyncMutex::new(None)) })
    }

    /// See [`Transport::publish`](super::transport::Transport::publish).
    pub(super) async fn publish(
        &self,
        room: &RoomId,
        events: impl Iterator<Item = (&NewEvent, Duration)>,
    ) -> Result<Answer, Failure> {
        let events: Vec<_> = events.map(|(event, age)| message(event, age)).collect();
        let count = events.len();
        let exchange = async {
            let stream = match self.stream().await {
                Ok(stream) => stream,
                Err(end) => return end.map(whole),
            };
            let answer = stream.exchange(room, events).await;
            answer.map_or_else(|end| end.map(whole), |answer| read(answer, count))
        };
        timeout(self.timeout, exchange).await.unwrap_or(Err(Failure::Timeout))
    }

    /// The stream, opened if there is none to use.
    async fn stream(&self) -> Result<Arc<Stream>, End> {
        let authorization = self.authorization.get();
        let mut current = self.stream.lock().await;
        if let Some(stream) = &*current
            && stream.authorization == authorization
            && stream.lock().end.is_none()
        {
            return Ok(Arc::clone(stream));
        }
        let stream = Arc::new(Stream::open(self.channel.clone(), authorization).await?);
        *current = Some(Arc::clone(&stream));
        Ok(stream)
    }
}

impl Stream {
    async fn open(channel: Channel, authorization: HeaderValue) -> Result<Self, End> {
        let (requests, receiver) = mpsc::channel(OUTGOING);
        let outgoing = unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
            Some((receiver.recv().await?, receiver))
        });
        let mut request = tonic::Request::new(outgoing);
        let headers = request.metadata_mut().as_mut();
        headers.insert(header::AUTHORIZATION, authorization.clone());
        let mut grpc = tonic::client::Grpc::new(channel);
        let lost = |error: tonic::transport::Error| Err(unreachable(&error));
        grpc.ready().await.map_err(lost)?;
        let path = PathAndQuery::from_static(PUBLISH);
        let opened = grpc.streaming(request, path, PublishCodec).await;
        let answers = opened.map_err(|status| end(&status, true))?.into_inner();
        let waiting = Arc::new(Mutex::default());
        let reader = tokio::spawn(read_all(answers, Arc::clone(&waiting)));
        let numbers = AtomicU64::new(1);
        Ok(Self { requests, authorization, numbers, waiting, _reader: Owned(reader) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(
        &self,
        room: &RoomId,
        events: Vec<v1::PublishEvent>,
    ) -> Result<v1::PublishResponse, End> {
        let request = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        // Whatever ends this future, the reader must not keep its place.
        let place = Place { stream: self, request };
        {
            let mut waiting = self.lock();
            if let Some(end) = &waiting.end {
                return Err(end.clone());
            }
            waiting.batches.insert(request, reply);
        }
        let message = v1::PublishRequest { request, room: room.as_str().to_owned(), events };
        // A stream that has ended tells so through `answer`.
        let _ = self.requests.send(message).await;
        let answer = answer.await;
        drop(place);
        answer.map_err(|_| {
            let broken = || Err(Failure::Broken("the stream ended".to_owned()));
            self.lock().end.clone().unwrap_or_else(broken)
        })
    }
}

/// A batch's place among those that wait.
struct Place<'a> {
    stream: &'a Stream,
    request: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.stream.lock().batches.remove(&self.request);
    }
}

/// Gives answers to those who wait, until the stream ends.
async fn read_all(mut answers: Streaming<v1::PublishResponse>, waiting: Arc<Mutex<Waiting>>) {
    let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) if answer.request == 0 => {
                // The last one: the server says why nothing else comes.
                let error = answer.error.unwrap_or_default();
                break Ok(refused(error.code, error.reason, error.temporary));
            }
            Ok(Some(answer)) => {
                if let Some(reply) = lock().batches.remove(&answer.request) {
                    // Who gave up waiting does not want it.
                    let _ = reply.send(answer);
                }
            }
            Ok(None) => break Err(Failure::Broken("the server ended the stream".to_owned())),
            Err(status) => break end(&status, false),
        }
    };
    let mut waiting = lock();
    waiting.end = Some(end);
    waiting.batches.clear();
}

fn refused(code: String, reason: String, temporary: bool) -> Whole {
    let too_large = matches!(code.as_str(), "too_many_events" | "message_too_large");
    Whole { refusal: Refusal { code, reason, retry_after: None }, temporary, too_large }
}

fn whole(whole: Whole) -> Answer {
    Answer { results: Err(whole), level: None }
}

/// What a status means. Tidegate's messages begin with a code and a colon.
fn end(status: &Status, opening: bool) -> End {
    let text = status.message();
    let known = text.split_once(": ").filter(|(code, _)| {
        !code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    });
    let temporary = status.code() == Code::Unavailable;
    match (known, status.code()) {
        (
            Some((code, reason)),
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Unavailable,
        ) => Ok(refused(code.to_owned(), reason.to_owned(), temporary)),
        // Whoever answers there does not know the method.
        (None, Code::Unimplemented) => Err(Failure::Malformed { status: 404 }),
        _ if opening && temporary => Err(unreachable(status)),
        _ => Err(Failure::Broken(text.to_owned())),
    }
}

/// Why there is no connection. The outer errors do not say.
fn unreachable(error: &(dyn std::error::Error + 'static)) -> Failure {
    match trust::is_distrust(error) {
        true => Failure::Untrusted(innermost(error)),
        false => Failure::Connect(innermost(error)),
    }
}

fn message(event: &NewEvent, age: Duration) -> v1::PublishEvent {
    let (payload, encoding) = match &event.payload {
        Content::Json(json) => {
            (Bytes::copy_from_slice(json.get().as_bytes()), v1::PayloadEncoding::Json)
        }
        Content::Bytes(bytes) => (bytes.clone(), v1::PayloadEncoding::Binary),
    };
    v1::PublishEvent {
        id: event.id.clone(),
        kind: event.kind.clone(),
        user: event.user.clone(),
        ttl_ms: event.ttl_left_ms(age),
        body: Some(v1::PublishBody {
            payload,
            encoding: encoding.into(),
            key: event.key.clone(),
            amount: event.amount,
        }),
    }
}

fn read(answer: v1::PublishResponse, count: usize) -> Result<Answer, Failure> {
    let level = answer.admission.map(|admission| {
        let byte = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        let (business, user) = (byte(admission.business), byte(admission.user));
        let level = AdmissionLevel::from_wire(business, user, admission.share);
        (level, Duration::from_millis(admission.ttl_ms))
    });
    if let Some(error) = answer.error {
        let whole = refused(error.code, error.reason, error.temporary);
        return Ok(Answer { results: Err(whole), level });
    }
    if answer.results.len() != count {
        return Err(Failure::Malformed { status: 200 });
    }
    let results = answer.results.into_iter().map(|result| match result.status() {
        v1::PublishStatus::Accepted => EventResult::Accepted { seq: result.seq },
        _ => EventResult::Rejected(Refusal {
            code: result.code,
            reason: result.reason,
            retry_after: result.retry_after_ms.map(Duration::from_millis),
        }),
    });
    Ok(Answer { results: Ok(results.collect()), level })
}

/// [`v1::PublishRequest`] out, [`v1::PublishResponse`] in.
#[derive(Debug, Clone, Copy)]
struct PublishCodec;

impl Codec for PublishCodec {
    type Encode = v1::PublishRequest;
    type Decode = v1::PublishResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for PublishCodec {
    type Item = v1::PublishRequest;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for PublishCodec {
    type Item = v1::PublishResponse;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = v1::PublishResponse::decode(bytes);
        answer.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_to_come_again() {
        let expired = end(&Status::unauthenticated("token_expired: it has expired"), false);
        let Ok(whole) = expired else { panic!("{expired:?}") };
        assert!(!whole.temporary && whole.refusal.code == "token_expired");
        assert_eq!(whole.refusal.reason, "it has expired");
        let draining = end(&Status::unavailable("draining: try another"), false);
        assert!(draining.is_ok_and(|whole| whole.temporary));
        let large = end(&Status::resource_exhausted("message_too_large: n"), false);
        assert!(large.is_ok_and(|whole| whole.too_large && !whole.temporary));
        let nobody = end(&Status::unavailable("tcp connect error: refused"), true);
        assert!(matches!(nobody, Err(Failure::Connect(_))));
        let other = end(&Status::unimplemented(""), true);
        assert!(matches!(other, Err(failure) if !failure.temporary()));
        assert!(matches!(end(&Status::internal("h2"), false), Err(Failure::Broken(_))));
    }

    #[test]
    fn odd_answers_do_no_harm() {
        let answer = v1::PublishResponse { request: 1, ..v1::PublishResponse::default() };
        assert_eq!(read(answer.clone(), 1), Err(Failure::Malformed { status: 200 }));
        let admission =
            v1::Admission { business: 900, user: 900, share: Some(f64::NAN), ttl_ms: 0 };
        let odd = v1::PublishResponse { admission: Some(admission), ..answer };
        let read = read(odd, 0).unwrap();
        assert!(read.level.is_some_and(|(level, ttl)| level.business() <= 63 && ttl.is_zero()));
    }
}

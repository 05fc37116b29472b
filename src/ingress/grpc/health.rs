//! `grpc.health.v1.Health`: what load balancers of gRPC ask a server.
//!
//! It says of the whole server ("") and of `tidegate.v1.Publisher` what `/readyz`
//! says on the operators' port, as it was when that was last looked at. It asks for
//! no token, for probes have none, and nothing is computed for it: whoever asks
//! often learns nothing newer and costs nobody but this connection anything.
//!
//! The protocol: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::pin::Pin;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::{Ready, ready};
use futures_util::stream::{Stream, unfold};
use http::{Request, Response};
use prost::Message;
use tokio::sync::watch;
use tonic::Status;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};

use super::codec::Answering;

/// Paths of the service's methods begin so.
const SERVICE: &str = "/grpc.health.v1.Health/";
/// What is asked about, beside "" for everything.
const PUBLISHER: &str = "tidegate.v1.Publisher";
/// Bytes of a request. The longest name that means anything has 21.
const MAX_REQUEST: usize = 1_024;

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Health {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// What is known of the server.
#[derive(Clone)]
pub(super) struct State {
    /// Whether it is ready for traffic.
    pub(super) ready: watch::Receiver<bool>,
    /// Turns when it drains.
    pub(super) leaving: watch::Receiver<bool>,
}

impl State {
    fn now(&self) -> ServingStatus {
        match *self.ready.borrow() && !*self.leaving.borrow() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }
}

/// Whether a path is one of this service's.
pub(super) fn is_asked(path: &str) -> bool {
    matches!(path.strip_prefix(SERVICE), Some("Check" | "Watch"))
}

/// Answers a call. `place` is held until the answer, or the stream of answers,
/// ends.
pub(super) async fn serve(
    state: State,
    request: Request<Body>,
    place: impl Send + 'static,
) -> Response<Body> {
    let watches = request.uri().path().ends_with("/Watch");
    let mut grpc = Grpc::new(Answering::<Health>::default()).max_decoding_message_size(MAX_REQUEST);
    match watches {
        true => {
            let watch = Watch { state, place: Some(Box::new(place)) };
            grpc.server_streaming(watch, request).await.map(Body::new)
        }
        false => grpc.unary(Check(state), request).await.map(Body::new),
    }
}

/// Whether the service asked about is one of ours.
fn known(request: tonic::Request<Bytes>) -> Result<bool, Status> {
    let question = Question::decode(request.into_inner());
    let malformed = |_| Status::invalid_argument("malformed_message: not a HealthCheckRequest");
    let question = question.map_err(malformed)?;
    Ok(question.service.is_empty() || question.service == PUBLISHER)
}

fn health(serving: ServingStatus) -> Health {
    Health { status: serving.into() }
}

/// How it is now.
struct Check(State);

impl UnaryService<Bytes> for Check {
    type Response = Health;
    type Future = Ready<Result<tonic::Response<Health>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        ready(known(request).and_then(|known| match known {
            true => Ok(tonic::Response::new(health(self.0.now()))),
            false => Err(Status::not_found("unknown_service: there is no such service here")),
        }))
    }
}

/// How it is now, and whenever that changes. A server that leaves says so and ends
/// the stream: its drain waits for streams.
struct Watch {
    state: State,
    place: Option<Box<dyn Send>>,
}

type Changes = Pin<Box<dyn Stream<Item = Result<Health, Status>> + Send>>;

impl ServerStreamingService<Bytes> for Watch {
    type Response = Health;
    type ResponseStream = Changes;
    type Future = Ready<Result<tonic::Response<Changes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let told = Told { state: self.state.clone(), last: None, _place: self.place.take() };
        ready(known(request).map(|known| {
            let changes: Changes = Box::pin(unfold(told, move |mut told| async move {
                let next = told.next(known).await?;
                Some((Ok(health(next)), told))
            }));
            tonic::Response::new(changes)
        }))
    }
}

/// One who watches, and what it was told last.
struct Told {
    state: State,
    last: Option<ServingStatus>,
    _place: Option<Box<dyn Send>>,
}

impl Told {
    async fn next(&mut self, known: bool) -> Option<ServingStatus> {
        loop {
            let now = if known { self.state.now() } else { ServingStatus::ServiceUnknown };
            if self.last != Some(now) {
                self.last = Some(now);
                return Some(now);
            }
            if *self.state.leaving.borrow_and_update() {
                return None;
            }
            tokio::select! {
                changed = self.state.ready.changed() => changed.ok()?,
                changed = self.state.leaving.changed() => changed.ok()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn told() -> (watch::Sender<bool>, watch::Sender<bool>, Told) {
        let (ready, leaving) = (watch::Sender::new(false), watch::Sender::new(false));
        let state = State { ready: ready.subscribe(), leaving: leaving.subscribe() };
        (ready, leaving, Told { state, last: None, _place: None })
    }

    #[test]
    fn each_change_is_told_once_and_a_drain_is_the_last() {
        let (ready, leaving, mut told) = told();
        let mut next = || told.next(true).now_or_never();
        assert_eq!(next(), Some(Some(ServingStatus::NotServing)), "at once");
        assert_eq!(next(), None);
        ready.send_replace(true);
        assert_eq!((next(), next()), (Some(Some(ServingStatus::Serving)), None));
        // There and back again while nobody looked.
        ready.send_replace(false);
        ready.send_replace(true);
        assert_eq!(next(), None);
        leaving.send_replace(true);
        assert_eq!((next(), next()), (Some(Some(ServingStatus::NotServing)), Some(None)));
    }

    #[test]
    fn who_watches_what_is_not_there_is_told_so_and_may_wait() {
        let (ready, leaving, mut told) = told();
        let mut next = || told.next(false).now_or_never();
        assert_eq!((next(), next()), (Some(Some(ServingStatus::ServiceUnknown)), None));
        ready.send_replace(true);
        assert_eq!(next(), None);
        leaving.send_replace(true);
        assert_eq!(next(), Some(None));
    }

    #[test]
    fn only_the_two_methods_are_there() {
        assert!(is_asked("/grpc.health.v1.Health/Check"));
        assert!(is_asked("/grpc.health.v1.Health/Watch"));
        for path in ["/grpc.health.v1.Health/List", "/grpc.health.v1.Health", "/Check"] {
            assert!(!is_asked(path), "{path}");
        }
    }
}

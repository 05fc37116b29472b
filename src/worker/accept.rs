//! From a new connection to a viewer: serves HTTP, and hands upgraded sockets to
//! the shard.
//!
//! Until its first request is read, a connection holds one of a bounded number
//! of places and has a deadline, so that silence, a byte a second or a storm of
//! connects cannot exhaust the server. From then on, unless it is a viewer, it
//! holds one of [`Places`]; where it has to wait for one, nothing more of it is
//! read. Who gives way when all are taken, [`give_way`](super::give_way) says.
//!
//! HTTP/1.1 and HTTP/2 share the port, over TLS and in clear ([`entrance`](super::entrance) tells
//! them apart), and all of these rules. On HTTP/2 the connection and each open
//! gRPC stream take a place of an HTTP connection.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tower::ServiceExt as _;
use tracing::debug;

use super::entrance::{Begun, Entrance};
use super::give_way::{Kept, Place};
use super::preface::Prefixed;
use super::stream::Stream;
use crate::clock::Clock;
use crate::engine::time::Time;
use crate::ingress::answer::ApiError;
use crate::ingress::grpc;
use crate::ingress::http::{error_response, route_name, secure};
use crate::ingress::intake::{Api, application};
use crate::ingress::places::{Place as Held, Places};
use crate::ingress::stats::EdgeStats;
use crate::tls::channel::Channel;
use crate::transport::websocket::handshake::{self, Policy};
use crate::wire::Format;

/// Idle time after which a kept-alive HTTP connection is closed, and the time a
/// later request's head may take.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Unread bytes that one HTTP/2 stream, and one connection with all its streams,
/// may have under way: what a caller can send before anything is taken from it.
/// Four streams at full rate share a connection's window; over a path of 20 ms it
/// still carries 50 MB/s.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Largest HTTP/2 frame taken, the smallest that may be asked for (RFC 9113,
/// section 6.5.2): a large one only delays others on its connection.
const FRAME_BYTES: u32 = 16 * 1024;
/// Bytes of answers that hyper holds per HTTP/2 stream before it stops asking
/// for more.
const SEND_BUFFER: usize = 64 * 1024;
/// A silent HTTP/2 peer is asked this often whether it is there, and has as long
/// again to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Streams that a peer opens and resets before anybody has looked at them, and
/// resets that its errors provoke, before the connection is closed: CVE-2023-44487
/// and RUSTSEC-2024-0003. The first are the defaults of h2, the second a tenth of
/// hyper's: nobody who means well makes a hundred errors.
const RESET_STREAMS: usize = 20;
const ERROR_RESETS: usize = 100;
/// Longest that streams have at the end of a drain to hear of it.
const GOODBYE: Duration = Duration::from_secs(1);
/// Pause between two looks whether they have.
const GOODBYE_PAUSE: Duration = Duration::from_millis(10);
const TOO_MANY: &str = "too many HTTP connections of this application, or in all";

/// A socket whose upgrade is complete.
pub struct Arrival {
    /// Non-blocking, known to no runtime.
    pub stream: StdStream,
    /// What was agreed.
    pub format: Format,
    /// Bytes that came behind the request.
    pub leftover: Bytes,
    /// The TLS connection on it, if there is one.
    pub channel: Option<Box<Channel>>,
}

/// What the connections of one shard share.
pub struct Edge {
    /// Rules of the handshake.
    pub policy: Policy,
    /// TLS, and who may be without.
    pub entrance: Entrance,
    /// Path of the upgrade.
    pub upgrade_path: &'static str,
    /// Everything but the upgrade and gRPC.
    pub router: Router,
    /// What gRPC needs; absent: it is not served.
    pub api: Option<Arc<Api>>,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Counters.
    pub stats: Arc<EdgeStats>,
    /// The first request must be read within this.
    pub handshake_timeout: Duration,
    /// Largest request head, in bytes.
    pub max_header: usize,
    /// Connections in all.
    pub max_connections: usize,
    /// Where upgraded sockets go.
    pub arrivals: mpsc::UnboundedSender<Arrival>,
    /// Set in a drain: publishers are sent away.
    pub draining: Arc<AtomicBool>,
    /// The same for those who wait for it: streams.
    pub leaving: watch::Sender<bool>,
    /// HTTP/2 connections.
    pub http2: Cell<usize>,
    /// Viewers of the shard with a socket of their own, kept by its worker.
    pub viewers: Cell<usize>,
    /// Connections that are not viewers yet, or never will be.
    pub others: Cell<usize>,
    /// Places for connections whose first request has not come.
    pub handshakes: Arc<Semaphore>,
    /// Accepted connections that may wait for one of them.
    pub max_waiting: usize,
    /// Places for HTTP connections that are no viewers: publishers and readers.
    pub places: Arc<Places>,
    /// For how long a connection waits for one of them at most; at least half of it.
    pub patience: Duration,
    /// Who holds one.
    pub kept: Kept,
    /// The accept loop.
    pub accepting: RefCell<Option<AbortHandle>>,
    /// What time it is.
    pub clock: Clock,
}

impl Edge {
    /// Closes the listening socket, and tells streams to end.
    pub fn stop_accepting(&self) {
        self.leaving.send_replace(true);
        if let Some(task) = self.accepting.borrow_mut().take() {
            task.abort();
        }
    }
}

/// Waits until every HTTP/2 connection has said goodbye, but not for ever.
pub async fn finish(edge: &Edge) {
    let all = async {
        while edge.http2.get() > 0 {
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
    };
    if tokio::time::timeout(GOODBYE, all).await.is_err() {
        debug!(connections = edge.http2.get(), "HTTP/2 connections are cut");
    }
}

/// Counts a connection that is no viewer, for as long as it lives.
struct Counted(Rc<Edge>);

impl Counted {
    fn new(edge: &Rc<Edge>) -> Self {
        edge.others.set(edge.others.get() + 1);
        Self(Rc::clone(edge))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.others.set(self.0.others.get() - 1);
    }
}

/// Counts an HTTP/2 connection, for as long as it lives.
struct Http2(Rc<Edge>);

impl Http2 {
    fn new(edge: &Rc<Edge>) -> Self {
        edge.http2.set(edge.http2.get() + 1);
        Self(Rc::clone(edge))
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.0.http2.set(self.0.http2.get() - 1);
    }
}

/// What a connection's requests leave behind for the connection.
#[derive(Default)]
pub(super) struct Outcome {
    agreed: Cell<Option<Format>>,
    /// It came in clear, and may not.
    must_use_tls: Cell<bool>,
    /// Given up with the first request.
    place: RefCell<Option<Place>>,
    /// Held from the first request on, unless it was an upgrade.
    held: RefCell<Option<Held>>,
    /// HTTP/2: requests so far, and one more owner for each that is open.
    requests: Cell<u64>,
    open: Arc<()>,
    heard: Notify,
    /// When the last request was answered.
    answered: Cell<Time>,
    /// And the kernel does not take all of it.
    blocked: RefCell<Rc<Cell<bool>>>,
    /// The connection is to end, since somebody waits for its place.
    pub(super) give_way: Notify,
}

impl Outcome {
    /// Of a connection that holds this place until its first request is there.
    pub(super) fn new(place: Place) -> Rc<Self> {
        Rc::new(Self { place: RefCell::new(Some(place)), ..Self::default() })
    }

    /// Whether the first request has not come.
    pub(super) fn is_unheard(&self) -> bool {
        self.place.borrow().is_some()
    }

    /// The place that it holds, and since when it has been idle, if it is.
    pub(super) fn idle(&self) -> Option<(Time, std::cell::Ref<'_, Held>)> {
        let held = std::cell::Ref::filter_map(self.held.borrow(), Option::as_ref).ok()?;
        let idle = Arc::strong_count(&self.open) == 1 && !self.blocked.borrow().get();
        idle.then(|| (self.answered.get(), held))
    }
}

pub(super) async fn serve(edge: Rc<Edge>, stream: TcpStream, peer: IpAddr, outcome: Rc<Outcome>) {
    let _counted = Counted::new(&edge);
    let mut deadline = std::pin::pin!(tokio::time::sleep(edge.handshake_timeout));
    let begun = tokio::select! {
        biased;
        begun = edge.entrance.begin(stream, peer) => begun,
        () = &mut deadline => return edge.stats.handshake("timeout"),
    };
    match begun {
        Ok(Some(Begun { http2, must_use_tls, io })) => {
            outcome.must_use_tls.set(must_use_tls);
            *outcome.blocked.borrow_mut() = io.blocked();
            match http2 {
                true => serve_http2(&edge, io, &outcome, deadline).await,
                false => serve_http1(&edge, io, &outcome, deadline).await,
            }
        }
        // It was counted.
        Ok(None) => return,
        Err(error) => debug!(%error, "connection ended"),
    }
    if outcome.place.borrow_mut().take().is_some() {
        // It ended before a whole request was there.
        edge.stats.handshake("aborted");
    }
}

/// The rest of the time until the first request must be there.
type Deadline<'a> = std::pin::Pin<&'a mut tokio::time::Sleep>;

async fn serve_http1(edge: &Rc<Edge>, io: Prefixed, outcome: &Rc<Outcome>, deadline: Deadline<'_>) {
    let service = {
        let (edge, outcome) = (Rc::clone(edge), Rc::clone(outcome));
        service_fn(move |request| answer(Rc::clone(&edge), Rc::clone(&outcome), request))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_header_size(edge.max_header)
        .max_buf_size(edge.max_header.max(8_192) + 8_192)
        .serve_connection(TokioIo::new(io), service)
        .without_shutdown();
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        biased;
        finished = &mut connection => Some(finished),
        () = outcome.heard.notified() => None,
        () = deadline => return timed_out(edge, outcome),
    };
    let finished = match finished {
        Some(finished) => finished,
        None => tokio::select! {
            biased;
            finished = &mut connection => finished,
            // It was idle: there is nobody to be answered.
            () = outcome.give_way.notified() => return,
        },
    };
    match (finished, outcome.agreed.get()) {
        (Ok(parts), Some(format)) => {
            let (unread, stream) = parts.io.into_inner().into_parts();
            let (stream, channel, undelivered) = match stream {
                Stream::Clear(stream) => (stream, None, Bytes::new()),
                Stream::Tls(stream) => {
                    let (stream, channel, plain) = stream.into_parts();
                    (stream, Some(Box::new(channel)), plain)
                }
            };
            let leftover = match unread.is_empty() && undelivered.is_empty() {
                true => parts.read_buf,
                false => [parts.read_buf, unread, undelivered].concat().into(),
            };
            match stream.into_std() {
                Ok(stream) => {
                    edge.stats.handshake("accepted");
                    // The worker has ended: so does the connection.
                    let _ = edge.arrivals.send(Arrival { stream, format, leftover, channel });
                }
                Err(error) => debug!(%error, "socket lost in the upgrade"),
            }
        }
        (Ok(mut parts), None) => {
            // Nothing to be done about a peer that is gone.
            let _ = tokio::io::AsyncWriteExt::shutdown(parts.io.inner_mut()).await;
        }
        (Err(error), _) => debug!(%error, "connection ended"),
    }
}

fn timed_out(edge: &Edge, outcome: &Outcome) {
    outcome.place.borrow_mut().take();
    edge.stats.handshake("timeout");
}

/// Runs hyper's tasks, one per HTTP/2 stream, beside the connection's own. They
/// end with their stream, and with the thread's task set.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

async fn serve_http2(edge: &Rc<Edge>, io: Prefixed, outcome: &Rc<Outcome>, deadline: Deadline<'_>) {
    let _http2 = Http2::new(edge);
    let service = {
        let (edge, outcome) = (Rc::clone(edge), Rc::clone(outcome));
        service_fn(move |request| answer(Rc::clone(&edge), Rc::clone(&outcome), request))
    };
    let connection = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(edge.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(edge.max_header as u32)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        biased;
        finished = &mut connection => Some(finished),
        () = outcome.heard.notified() => None,
        () = deadline => return timed_out(edge, outcome),
    };
    let mut leaving = edge.leaving.subscribe();
    let (mut requests, mut told) = (0, false);
    let finished = match finished {
        Some(finished) => finished,
        None => loop {
            tokio::select! {
                biased;
                finished = &mut connection => break finished,
                Ok(_) = leaving.wait_for(|leaving| *leaving), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = outcome.give_way.notified() => connection.as_mut().graceful_shutdown(),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    let idle = Arc::strong_count(&outcome.open) == 1;
                    let before = std::mem::replace(&mut requests, outcome.requests.get());
                    if idle && before == requests {
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        },
    };
    if let Err(error) = finished {
        debug!(%error, "connection ended");
    }
}

async fn answer(
    edge: Rc<Edge>,
    outcome: Rc<Outcome>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if outcome.place.borrow_mut().take().is_some() {
        outcome.heard.notify_one();
    }
    outcome.requests.set(outcome.requests.get() + 1);
    let _open = Open { edge: &edge, outcome: &outcome, _one: Arc::clone(&outcome.open) };
    let route = route_name(request.method(), request.uri().path());
    let http2 = request.version() == Version::HTTP_2;
    let is_call = http2 && grpc::is_call(request.headers());
    let (response, status) = if outcome.must_use_tls.get() {
        tls_required(&edge, is_call)
    } else if is_call {
        call(&edge, &outcome, request).await
    } else {
        let response = if request.uri().path() == edge.upgrade_path {
            upgrade(&edge, &outcome, &request)
        } else {
            secure(respond(&edge, &outcome, request).await)
        };
        let status = response.status();
        (response, status)
    };
    edge.stats.request(route, status.as_u16());
    Ok(response)
}

/// A request that is being answered.
struct Open<'a> {
    edge: &'a Edge,
    outcome: &'a Outcome,
    _one: Arc<()>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.outcome.answered.set(self.edge.clock.now());
    }
}

/// The answer to whoever came in clear and may not: whatever it sent has been read
/// by others already, so that it should hear of it.
fn tls_required(edge: &Edge, is_call: bool) -> (Response<Body>, StatusCode) {
    edge.stats.handshake("tls_required");
    let reason = "this server is reached over TLS only: https, wss";
    let error = ApiError::new(StatusCode::FORBIDDEN, "tls_required", reason);
    if is_call {
        return (grpc::refuse(&error), error.status);
    }
    let status = error.status;
    (closing(secure(error_response(error))), status)
}

/// A gRPC call, and what its status would be over HTTP.
async fn call(
    edge: &Edge,
    outcome: &Rc<Outcome>,
    request: Request<Incoming>,
) -> (Response<Body>, StatusCode) {
    let application = application(edge.api.as_deref(), request.headers());
    let has_place = take_place(edge, outcome, &application).await;
    let place = match has_place.then(|| edge.places.try_take(&application)) {
        Some(Ok(place)) => place,
        _ => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let error = ApiError::temporary(status, "busy", TOO_MANY);
            return (grpc::refuse(&error), status);
        }
    };
    let Some(api) = edge.api.clone() else {
        let error = ApiError::new(StatusCode::NOT_FOUND, "unknown_method", "no gRPC here");
        return (grpc::refuse(&error), error.status);
    };
    let leaving = edge.leaving.subscribe();
    let kept = (place, Arc::clone(&outcome.open));
    match grpc::serve(api, leaving, request.map(Body::new), kept).await {
        Ok(response) => (response, StatusCode::OK),
        Err(error) => (grpc::refuse(&error), error.status),
    }
}

/// Whether the connection has its place among HTTP connections: since earlier, now,
/// or when it has waited for it.
async fn take_place(edge: &Edge, outcome: &Rc<Outcome>, application: &str) -> bool {
    if outcome.held.borrow().is_some() {
        return true;
    }
    // Those who came at once are not to give up at once.
    let patience = edge.patience.mul_f64(rand::random_range(0.5..1.0));
    let Ok(place) = edge.places.take(application, patience).await else {
        edge.stats.placeless.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    edge.kept.add(outcome);
    *outcome.held.borrow_mut() = Some(place);
    true
}

fn upgrade(edge: &Edge, outcome: &Outcome, request: &Request<Incoming>) -> Response<Body> {
    match handshake::accept(request, &edge.policy, Body::empty) {
        // Over HTTP/2 a WebSocket would be one of many streams of its
        // connection (RFC 8441), which is not offered.
        Ok(_) if request.version() == Version::HTTP_2 => not_over_http2(edge),
        Ok((response, format)) => {
            outcome.agreed.set(Some(format));
            response
        }
        Err(refused) => {
            edge.stats.handshake(refused.code());
            let error = ApiError::new(refused.status(), refused.code(), refused.to_string());
            secure(error_response(error))
        }
    }
}

fn not_over_http2(edge: &Edge) -> Response<Body> {
    edge.stats.handshake("bad_handshake");
    let reason = "a WebSocket is opened over HTTP/1.1";
    secure(error_response(ApiError::new(StatusCode::BAD_REQUEST, "bad_handshake", reason)))
}

async fn respond(edge: &Edge, outcome: &Rc<Outcome>, request: Request<Incoming>) -> Response<Body> {
    if outcome.held.borrow().is_none() {
        let application = application(edge.api.as_deref(), request.headers());
        if !take_place(edge, outcome, &application).await {
            return unavailable(edge, "busy", TOO_MANY);
        }
    }
    if edge.draining.load(Ordering::Relaxed) && request.method() == Method::POST {
        return unavailable(edge, "draining", "the server is leaving; try another");
    }
    match edge.router.clone().oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn unavailable(edge: &Edge, code: &'static str, reason: &str) -> Response<Body> {
    let error = ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, code, reason);
    let advice = edge.api.as_ref().map_or(error.advice, |api| api.shards.tightest_advice());
    closing(error_response(error.beside(advice)))
}

fn closing(mut response: Response<Body>) -> Response<Body> {
    let close = axum::http::HeaderValue::from_static("close");
    response.headers_mut().insert(axum::http::header::CONNECTION, close);
    response
}

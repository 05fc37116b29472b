//! From the listening socket to a viewer: accepts, serves HTTP, and hands
//! upgraded sockets to the shard.
//!
//! Until its first request is read, a connection holds one of a bounded number
//! of places and has a deadline, so that silence, a byte a second or a storm of
//! connects cannot exhaust the server. When all places are taken, the oldest
//! that has had [`GRACE`] gives way: a storm of honest clients, who need
//! milliseconds, waits its turn, and a thousand silent connections shut nobody
//! out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::TcpStream as StdStream;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::engine::time::Time;
use crate::ingress::answer::ApiError;
use crate::ingress::http::{error_response, route_name, secure};
use crate::ingress::stats::EdgeStats;
use crate::transport::websocket::handshake::{self, Policy};
use crate::wire::Format;

/// Idle time after which a kept-alive HTTP connection is closed, and the time a
/// later request's head may take.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A connection that has held its place for less does not give way.
pub const GRACE: Duration = Duration::from_secs(1);
/// Pause before the next look at who might give way.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(50);
/// Pause after the kernel had no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket whose upgrade is complete.
#[derive(Debug)]
pub struct Arrival {
    /// Non-blocking, known to no runtime.
    pub stream: StdStream,
    /// What was agreed.
    pub format: Format,
    /// Bytes that came behind the request.
    pub leftover: Bytes,
}

/// What the connections of one shard share.
pub struct Edge {
    /// Rules of the handshake.
    pub policy: Policy,
    /// Path of the upgrade.
    pub upgrade_path: &'static str,
    /// Everything but the upgrade.
    pub router: Router,
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
    /// Viewers of the shard, kept by its worker.
    pub viewers: Cell<usize>,
    /// Connections that are not viewers yet, or never will be.
    pub others: Cell<usize>,
    /// Places for connections whose first request has not come.
    pub handshakes: Arc<Semaphore>,
    /// Places for HTTP connections that are no viewers: publishers and readers.
    pub requests: Arc<Semaphore>,
    /// The accept loop.
    pub accepting: RefCell<Option<AbortHandle>>,
    /// What time it is.
    pub clock: Clock,
}

impl Edge {
    /// Closes the listening socket.
    pub fn stop_accepting(&self) {
        if let Some(task) = self.accepting.borrow_mut().take() {
            task.abort();
        }
    }
}

/// Starts the accept loop on the current local task set.
pub fn start(edge: &Rc<Edge>, listener: TcpListener) {
    let task = tokio::task::spawn_local(accept_loop(Rc::clone(edge), listener));
    *edge.accepting.borrow_mut() = Some(task.abort_handle());
}

async fn accept_loop(edge: Rc<Edge>, listener: TcpListener) {
    let mut unheard = Unheard::default();
    loop {
        // Taken before the accept: what cannot be served waits in the kernel's
        // queue, which is bounded and costs nothing here.
        let Some(permit) = unheard.place(&edge).await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no new connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        edge.stats.accepted.fetch_add(1, Ordering::Relaxed);
        if edge.viewers.get() + edge.others.get() >= edge.max_connections {
            edge.stats.turned_away.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let outcome = Rc::new(Outcome::default());
        *outcome.place.borrow_mut() = Some(Place::new(permit, &edge.stats));
        let task = tokio::task::spawn_local(serve(Rc::clone(&edge), stream, Rc::clone(&outcome)));
        unheard.push(edge.clock.now(), &outcome, task.abort_handle());
    }
}

/// Connections whose first request has not come, oldest first, and some that
/// are past that.
#[derive(Default)]
struct Unheard(VecDeque<(Time, Weak<Outcome>, AbortHandle)>);

impl Unheard {
    fn push(&mut self, now: Time, outcome: &Rc<Outcome>, task: AbortHandle) {
        self.0.push_back((now, Rc::downgrade(outcome), task));
        while self.0.front().is_some_and(|(_, outcome, _)| !holds_place(outcome)) {
            self.0.pop_front();
        }
    }

    /// A place, when one is free or freed; `None` when the edge is closed.
    async fn place(&mut self, edge: &Edge) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(permit) = Arc::clone(&edge.handshakes).try_acquire_owned() {
                return Some(permit);
            }
            self.give_way(edge);
            let free = Arc::clone(&edge.handshakes).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(GIVE_WAY_PAUSE, free).await {
                return permit.ok();
            }
        }
    }

    /// Ends the oldest connection that is still silent, if it has had its time.
    fn give_way(&mut self, edge: &Edge) {
        self.0.retain(|(_, outcome, _)| holds_place(outcome));
        let now = edge.clock.now();
        if self.0.front().is_some_and(|(since, ..)| now.since(*since) >= GRACE)
            && let Some((_, _, task)) = self.0.pop_front()
        {
            task.abort();
            edge.stats.handshake("gave_way");
        }
    }
}

fn holds_place(outcome: &Weak<Outcome>) -> bool {
    outcome.upgrade().is_some_and(|outcome| outcome.place.borrow().is_some())
}

/// One of the places of connections whose first request has not come.
struct Place {
    stats: Arc<EdgeStats>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, stats: &Arc<EdgeStats>) -> Self {
        stats.handshaking.fetch_add(1, Ordering::Relaxed);
        Self { stats: Arc::clone(stats), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stats.handshaking.fetch_sub(1, Ordering::Relaxed);
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

/// What a connection's requests leave behind for the connection.
#[derive(Default)]
struct Outcome {
    agreed: Cell<Option<Format>>,
    /// Given up with the first request.
    place: RefCell<Option<Place>>,
    /// Held from the first request on, unless it was an upgrade.
    request: RefCell<Option<OwnedSemaphorePermit>>,
    heard: tokio::sync::Notify,
}

async fn serve(edge: Rc<Edge>, stream: TcpStream, outcome: Rc<Outcome>) {
    let _counted = Counted::new(&edge);
    let service = {
        let (edge, outcome) = (Rc::clone(&edge), Rc::clone(&outcome));
        service_fn(move |request| answer(Rc::clone(&edge), Rc::clone(&outcome), request))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_header_size(edge.max_header)
        .max_buf_size(edge.max_header.max(8_192) + 8_192)
        .serve_connection(TokioIo::new(stream), service)
        .without_shutdown();
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        biased;
        finished = &mut connection => Some(finished),
        () = outcome.heard.notified() => None,
        () = tokio::time::sleep(edge.handshake_timeout) => {
            return edge.stats.handshake("timeout");
        }
    };
    let finished = match finished {
        Some(finished) => finished,
        None => connection.await,
    };
    if outcome.place.borrow_mut().take().is_some() {
        // It ended before a whole request was there.
        edge.stats.handshake("aborted");
    }
    match (finished, outcome.agreed.get()) {
        (Ok(parts), Some(format)) => match parts.io.into_inner().into_std() {
            Ok(stream) => {
                edge.stats.handshake("accepted");
                let arrival = Arrival { stream, format, leftover: parts.read_buf };
                // The worker has ended: so does the connection.
                let _ = edge.arrivals.send(arrival);
            }
            Err(error) => debug!(%error, "socket lost in the upgrade"),
        },
        (Ok(mut parts), None) => {
            // Nothing to be done about a peer that is gone.
            let _ = tokio::io::AsyncWriteExt::shutdown(parts.io.inner_mut()).await;
        }
        (Err(error), _) => debug!(%error, "connection ended"),
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
    let route = route_name(request.method(), request.uri().path());
    let response = if request.uri().path() == edge.upgrade_path {
        upgrade(&edge, &outcome, &request)
    } else {
        secure(respond(&edge, &outcome, request).await)
    };
    edge.stats.request(route, response.status().as_u16());
    Ok(response)
}

fn upgrade(edge: &Edge, outcome: &Outcome, request: &Request<Incoming>) -> Response<Body> {
    match handshake::accept(request, &edge.policy, Body::empty) {
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

async fn respond(edge: &Edge, outcome: &Outcome, request: Request<Incoming>) -> Response<Body> {
    if outcome.request.borrow().is_none() {
        match Arc::clone(&edge.requests).try_acquire_owned() {
            Ok(place) => *outcome.request.borrow_mut() = Some(place),
            Err(_) => return unavailable("busy", "too many HTTP connections"),
        }
    }
    if edge.draining.load(Ordering::Relaxed) && request.method() == Method::POST {
        return unavailable("draining", "the server is leaving; try another");
    }
    match edge.router.clone().oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn unavailable(code: &'static str, reason: &str) -> Response<Body> {
    let mut response =
        error_response(ApiError::temporary(StatusCode::SERVICE_UNAVAILABLE, code, reason));
    let close = axum::http::HeaderValue::from_static("close");
    response.headers_mut().insert(axum::http::header::CONNECTION, close);
    response
}

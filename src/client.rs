//! A publisher for upstream services: sends what a server will take, as early and
//! as rarely as it will take it.
//!
//! ```no_run
//! # async fn f(url: &str, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::client::{Content, NewEvent, Outcome, Publisher, PublisherSettings};
//! use tidegate::engine::ids::RoomId;
//!
//! let publisher = Publisher::start(PublisherSettings::new(url, token))?;
//! let room = RoomId::new("live:42")?;
//! let mut event = NewEvent::new("01J8ZQ5N", "chat");
//! event.user = "mara".to_owned();
//! event.payload = Content::json(&"hello")?;
//! match publisher.publish(&room, event)?.await {
//!     Outcome::Accepted { seq } => println!("accepted as {seq:?}"),
//!     Outcome::ShedLocally { retry_after } => println!("not now; in {retry_after:?} perhaps"),
//!     other => println!("{other:?}"),
//! }
//! println!("{:?}", publisher.close().await);
//! # Ok(())
//! # }
//! ```
//!
//! The walk of an event: [`Publisher::publish`] takes it if the bounds of the
//! queue allow, or something less important waits there and can give way
//! (`places`), and gives back a [`Receipt`]. The publisher's one task puts it in
//! its room's line (`queue`). When the line is due, each of its events is judged:
//! has it expired; what is its priority (`priorities`); which level holds in the
//! room (`levels`); does that leave it to be sent, to be sent as a probe, or to be
//! dropped ([`engine::caller`](crate::engine::caller)). What remains is sent as
//! one request (`transport`), and the answer's level is learned whatever the
//! answer is. What was refused for now, or had no answer, is sent again with the
//! same id after a while, if it is still worth it and the retry budget has room
//! for it; the server delivers an id once, however often it comes.
//!
//! An event sent again comes after what was accepted meanwhile; otherwise events
//! of one room and tier keep their order.
//!
//! The law for [`PublisherStats`], at any time: **taken = accepted + rejected +
//! shed + expired + displaced + failed + abandoned + held**.
//!
//! One publisher speaks to one server address, since a level belongs to a server.
//! It owns its task: [`Publisher::close`] ends it when everything is answered or
//! the time for it is over, dropping the publisher ends it at once.

mod event;
mod grpc;
mod http;
mod later;
mod levels;
mod outcome;
mod places;
mod priorities;
mod queue;
mod stats;
mod transport;
mod worker;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::Uri;
use ::http::header::HeaderValue;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use event::{Content, NewEvent};
pub use outcome::{Failure, Outcome, PublishError, Refusal};
pub use stats::PublisherStats;

use self::grpc::Grpc;
use self::http::{Authorization, Http};
use self::places::Bounds;
use self::stats::Shared;
use self::transport::Transport;
use self::worker::{Held, Worker};
use crate::clock::Clock;
use crate::engine::caller::CallerSettings;
use crate::engine::ids::{RoomId, Tier};
pub use crate::trust::{Hashes, Trust};

/// Where to publish, and within which bounds. Counts and sizes of zero count as
/// one.
#[derive(Clone)]
pub struct PublisherSettings {
    /// The server: `https://host:port`, or `http://` where connections go in clear.
    /// It is connected to directly: proxies that the environment names are not
    /// asked.
    pub url: String,
    /// Whose certificates are believed. Default: those that this machine's roots
    /// vouch for.
    pub trust: Trust,
    /// A token with the role `publisher` or `operator`.
    pub token: String,
    /// Which of the server's interfaces to use. Default HTTP.
    pub protocol: Protocol,
    /// Probes, retry budget.
    pub caller: CallerSettings,
    /// Events held at most, from `publish` to their outcome. A sixteenth more may
    /// be, for a moment, of those for which others give way. Default 10,000.
    pub queue_events: usize,
    /// Bytes they take at most, with 256 for each event beside its texts; those of
    /// a sixteenth of the events, just mentioned, come on top. Default 16 MiB.
    pub queue_bytes: usize,
    /// Events of one request. Default 100; a server takes 1,000 by default.
    pub batch_events: usize,
    /// Bytes of one request, roughly. Default 256 KiB; a server takes 1 MiB by
    /// default.
    pub batch_bytes: usize,
    /// How long an event may wait for others to go with. Events of tier 0 never
    /// do. Default 2 ms.
    pub linger: Duration,
    /// Requests under way at most, one for each room. It is also what a server
    /// that has fallen silent has to bear. Default 8.
    pub in_flight: usize,
    /// How often an event is sent again at most. Default 3 (*Site Reliability
    /// Engineering*, chapter 21).
    pub max_resends: u32,
    /// Longest wait before an event is sent again; with a server that asks for
    /// more, it is given up. Default 10 s.
    pub max_retry_wait: Duration,
    /// Longest time for one request. Default 12 s: a little more than a server
    /// takes to say that it did not make it.
    pub request_timeout: Duration,
    /// How long `close` waits for outcomes. Default 5 s.
    pub close_timeout: Duration,
    /// Rooms whose levels are remembered. Default 4,096, about 100 bytes each.
    pub max_levels: usize,
}

/// The server's interface; outcomes are the same by both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// One request for each batch, on connections that are kept.
    Http,
    /// One gRPC stream for all batches.
    Grpc,
}

impl PublisherSettings {
    /// The defaults for a server and a token.
    #[must_use]
    pub fn new(url: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            trust: Trust::System,
            token: token.into(),
            protocol: Protocol::Http,
            caller: CallerSettings::default(),
            queue_events: 10_000,
            queue_bytes: 16 << 20,
            batch_events: 100,
            batch_bytes: 256 << 10,
            linger: Duration::from_millis(2),
            in_flight: 8,
            max_resends: 3,
            max_retry_wait: Duration::from_secs(10),
            request_timeout: Duration::from_secs(12),
            close_timeout: Duration::from_secs(5),
            max_levels: 4_096,
        }
    }
}

impl fmt::Debug for PublisherSettings {
    /// Keeps the token out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherSettings").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a publisher cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address is no `http://` or `https://` URL.
    #[error("not an http:// or https:// URL: {0}")]
    Url(String),
    /// The token holds characters that no header may.
    #[error("the token cannot stand in a header")]
    Token,
    /// There is no tokio runtime here to run its task.
    #[error("a publisher needs a tokio runtime")]
    NoRuntime,
    /// TLS could not be set up.
    #[error("TLS does not start: {0}")]
    Tls(String),
}

/// See the module's documentation. To publish from several tasks, share it by
/// reference or in an `Arc`.
#[derive(Debug)]
pub struct Publisher {
    inbox: mpsc::Sender<Held>,
    bounds: Arc<Bounds>,
    clock: Clock,
    shared: Arc<Shared>,
    authorization: Authorization,
    worker: Owned,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Publisher {
    /// Starts the publisher's task on the current tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]. Whether the server is there is not known yet.
    pub fn start(settings: PublisherSettings) -> Result<Self, StartError> {
        let handle = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let url: Uri = settings.url.parse().map_err(|_| StartError::Url(settings.url.clone()))?;
        if !matches!(url.scheme_str(), Some("http" | "https"))
            || url.host().is_none_or(str::is_empty)
        {
            return Err(StartError::Url(settings.url));
        }
        let authorization = Authorization::new(bearer(&settings.token)?);
        let timeout = settings.request_timeout;
        let trust = &settings.trust;
        let http = Http::new(&url, trust, authorization.clone(), timeout)?;
        let transport = match settings.protocol {
            Protocol::Http => Transport::Http(http),
            Protocol::Grpc => {
                let grpc = Grpc::new(url, trust, authorization.clone(), timeout)?;
                Transport::Grpc(http, grpc)
            }
        };
        let bounds = Arc::new(Bounds::new(settings.queue_events, settings.queue_bytes));
        let (inbox, arrivals) = mpsc::channel(Bounds::most(settings.queue_events));
        let clock = Clock::start();
        let shared = Arc::new(Shared::default());
        let counted = (Arc::clone(&shared), Arc::clone(&bounds));
        let worker = Worker::new(settings, clock, transport, counted, arrivals);
        Ok(Self {
            inbox,
            bounds,
            clock,
            shared,
            authorization,
            worker: Owned(handle.spawn(worker.run())),
        })
    }

    /// Takes an event up. The receipt tells what became of it; who does not care
    /// may drop it.
    ///
    /// # Errors
    /// [`PublishError`]; the event is not taken, and nothing waits here for room
    /// to become free. An event that is taken because something less important
    /// waits may itself be [`Outcome::Displaced`], if that was sent meanwhile.
    pub fn publish(&self, room: &RoomId, event: NewEvent) -> Result<Receipt, PublishError> {
        let bytes = event.bytes();
        let Some(places) = self.bounds.take(&event.kind, bytes) else {
            self.shared.count(|stats| stats.queue_full += 1);
            return Err(PublishError::QueueFull);
        };
        // One that took another's place to be does not give way before it is in.
        let waits = (!places.beyond).then(|| {
            let tier = self.bounds.tier(&event.kind).unwrap_or(Tier::LOWEST);
            self.bounds.wait(tier)
        });
        let (reply, outcome) = oneshot::channel();
        let held = Held {
            room: room.clone(),
            event,
            bytes,
            arrived: self.clock.now(),
            order: 0,
            attempts: 0,
            last: None,
            reply,
            places,
            waits,
        };
        // Counted first: its outcome may be there before this thread goes on.
        self.shared.count(|stats| stats.taken += 1);
        if self.inbox.try_send(held).is_err() {
            self.shared.count(|stats| stats.taken -= 1);
            return Err(PublishError::Closed);
        }
        Ok(Receipt(outcome))
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> PublisherStats {
        self.shared.read()
    }

    /// Sends this token from now on, before the old one expires.
    ///
    /// # Errors
    /// [`StartError::Token`]; the old one stays.
    pub fn set_token(&self, token: &str) -> Result<(), StartError> {
        self.authorization.set(bearer(token)?);
        Ok(())
    }

    /// Sends what waits, and ends when every event has its outcome or after
    /// `close_timeout`. What is not answered by then is [`Outcome::Abandoned`].
    pub async fn close(self) -> PublisherStats {
        let Self { inbox, shared, mut worker, .. } = self;
        drop(inbox);
        // A task that panicked has told so, and its receipts know.
        let _ = (&mut worker.0).await;
        shared.read()
    }
}

fn bearer(token: &str) -> Result<HeaderValue, StartError> {
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.map_err(|_| StartError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A future of what becomes of an event. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "an event may be refused"]
pub struct Receipt(oneshot::Receiver<Outcome>);

impl Future for Receipt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| outcome.unwrap_or(Outcome::Abandoned))
    }
}

//! A viewer for apps and tools: joins rooms over the transport that works, shows
//! what happens in them, and comes back where it left off.
//!
//! ```no_run
//! # async fn f(url: &str, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::viewer::{Happening, NewEvent, Options, Viewer};
//!
//! let viewer = Viewer::connect(Options::new(url))?;
//! let mut room = viewer.join("live:42", token).await?;
//! let said = room.publish(NewEvent::json("chat", &"hello")?);
//! while let Some(happening) = room.next().await {
//!     match happening {
//!         Happening::Event(event) => println!("{} {:?}", event.kind, event.payload),
//!         Happening::Gap(gap) => println!("missed talk: {gap:?}"),
//!         _ => {}
//!     }
//! }
//! println!("{:?}", said.await);
//! # Ok(())
//! # }
//! ```
//!
//! One viewer is one connection to one server, with any number of rooms. Its task
//! (`connection`) asks for tokens, chooses a transport (`choice`), connects
//! (`dial`, `websocket`, `quic`), and hands every message to its room
//! (`member`), whose model ([`room`]) decides what is shown and what is said in
//! return. When the connection ends it waits (`backoff`, or as the server said)
//! and goes on where it was left. docs/viewing.md has the promises.
//!
//! **Who reads slowly.** Each room has a queue of [`Options::happenings`]. When
//! one is full the viewer reads no more from its connection, for none of its
//! rooms; acknowledgements, publishing and keep-alive go on. Nothing is dropped
//! here: the server sees that nothing is taken and treats the viewer as a slow
//! one (docs/slow-viewers.md): it thins out, tells what it left out, and keeps
//! what is important. Who does not read at all is closed in the end, and comes
//! back.
//!
//! A viewer owns its task: [`Viewer::close`] says goodbye, dropping it ends it at
//! once. Dropping a [`Room`] leaves it.

mod backoff;
mod choice;
mod connection;
mod dial;
mod happening;
mod link;
mod member;
mod outcome;
mod publishes;
mod quic;
pub mod room;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod token;
mod totals;
mod websocket;

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use happening::{End, Event, Gap, GapReason, Happening, Snapshot, Total, Why, Withheld};
pub use outcome::{Failure, JoinError, NewEvent, PublishError, Published, StartError};
pub use stats::ViewerStats;
pub use token::Token;

use self::connection::{Command, Join, Task};
use self::dial::Dials;
use self::member::View;
use self::room::{Position, Tally};
use self::stats::Shared;
use self::target::Target;
use crate::clock::Clock;
pub use crate::trust::{Hashes, Trust};
use crate::wire::proto::v1;

/// Requests that wait for the viewer's task.
const COMMANDS: usize = 64;

/// What carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One TCP connection: passes everywhere.
    WebSocket,
    /// One UDP flow: important events wait behind nothing else, and a change of
    /// address goes unnoticed.
    Quic,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::WebSocket => "websocket",
            Transport::Quic => "quic",
        })
    }
}

/// Neither `websocket` nor `quic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: websocket, quic")]
pub struct UnknownTransport;

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(name: &str) -> Result<Self, UnknownTransport> {
        match name {
            "websocket" => Ok(Transport::WebSocket),
            "quic" => Ok(Transport::Quic),
            _ => Err(UnknownTransport),
        }
    }
}

/// Where to go, and within which bounds. Counts of zero count as one.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server: `wss://host:port` or `https://`, `ws://` or `http://` where
    /// WebSocket goes in clear. QUIC goes to the same port. Without a path:
    /// `/v1/ws`.
    pub url: String,
    /// What to use; `None`, the default: QUIC with a head start of 300 ms, then
    /// WebSocket beside it.
    pub transport: Option<Transport>,
    /// Which servers are believed. Default: those with a certificate that this
    /// machine's roots vouch for.
    pub trust: Trust,
    /// Happenings that wait to be fetched, of each room. Default 1,024.
    pub happenings: usize,
    /// Events that wait for the server's answer, of all rooms. Default 256.
    pub publishes: usize,
    /// How long an event may wait for its answer. Default 30 s.
    pub publish_timeout: Duration,
}

impl Options {
    /// The defaults for a server.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            transport: None,
            trust: Trust::System,
            happenings: 1_024,
            publishes: 256,
            publish_timeout: Duration::from_secs(30),
        }
    }
}

/// Where a viewer's connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// There is no room to be in.
    Idle,
    /// An attempt is under way.
    Connecting,
    /// It stands.
    Connected {
        /// What carries it.
        transport: Transport,
        /// The server's.
        address: SocketAddr,
    },
    /// It is not there, and will be tried again.
    Waiting {
        /// Why, for people.
        why: String,
        /// When the next attempt begins, counted from this change.
        again_in: Duration,
        /// The server's certificate is not believed ([`Trust`]). Unless it gets
        /// another, the next attempt will end in the same way.
        untrusted: bool,
    },
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Viewer {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    happenings: usize,
    _task: Owned,
}

impl Viewer {
    /// Starts the viewer's task on the current tokio runtime. It connects when
    /// there is a room to join.
    ///
    /// # Errors
    /// [`StartError`]. Whether the server is there is not known yet.
    pub fn connect(options: Options) -> Result<Self, StartError> {
        let handle = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let target = Target::parse(&options.url)?;
        let dials = Dials::new(&options.trust)?;
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (told, status) = watch::channel(Status::Idle);
        let shared = Arc::new(Shared::default());
        let happenings = options.happenings.max(1);
        let counts = Arc::clone(&shared);
        let task = Task::new(&options, (target, dials), Clock::start(), (told, counts), inbox);
        let task = Owned(handle.spawn(task.run()));
        Ok(Self { commands, status, shared, happenings, _task: task })
    }

    /// Joins a room, and waits until it is in, however long that takes and however
    /// often it has to connect; [`Viewer::status`] tells how that goes. Dropping
    /// the future gives it up.
    ///
    /// # Errors
    /// [`JoinError`]; the room is not joined then.
    pub async fn join(&self, room: &str, token: impl Into<Token>) -> Result<Room, JoinError> {
        let (happen, happenings) = mpsc::channel(self.happenings);
        let (reply, joined) = oneshot::channel();
        let view = View::default();
        let (name, token) = (room.to_owned(), token.into());
        let join = Join { name, token, happen, reply, view: view.clone() };
        let sent = self.commands.send(Command::Join(Box::new(join))).await;
        sent.map_err(|_| JoinError::Closed)?;
        joined.await.map_err(|_| JoinError::Closed)??;
        Ok(Room { name: room.to_owned(), happenings, commands: self.commands.clone(), view })
    }

    /// What carries the connection that stands, if one does.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        match *self.status.borrow() {
            Status::Connected { transport, .. } => Some(transport),
            _ => None,
        }
    }

    /// Where the connection is, and every change of that.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Moves QUIC to a new UDP socket, as after a change of network that the system
    /// tells of. The connection goes on; over WebSocket this does nothing.
    ///
    /// # Errors
    /// If there is no socket to be had; the old one stays.
    pub async fn rebind(&self) -> std::io::Result<()> {
        let gone = || std::io::Error::other("the viewer is closed");
        let (reply, done) = oneshot::channel();
        self.commands.send(Command::Rebind(reply)).await.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> ViewerStats {
        self.shared.read()
    }

    /// Says goodbye, which takes half a second at most, and ends.
    pub async fn close(self) -> ViewerStats {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            // A task that is gone has nothing to say.
            let _ = done.await;
        }
        self.shared.read()
    }
}

/// A room that a viewer is in. Fetch its happenings with [`Room::next`], or as a
/// [`Stream`]; the first is [`Happening::Joined`].
#[derive(Debug)]
pub struct Room {
    name: String,
    happenings: mpsc::Receiver<Happening>,
    commands: mpsc::Sender<Command>,
    view: View,
}

impl Room {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happens next; `None` when nothing more will. May be dropped before it
    /// is there.
    pub async fn next(&mut self) -> Option<Happening> {
        self.happenings.recv().await
    }

    /// Says something in the room. It goes out at once, or when the room is joined
    /// again; what had no answer before a connection ended is sent again with the
    /// same id. The future borrows nothing, so happenings can be fetched meanwhile;
    /// dropping it changes nothing once it was polled.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(
        &self,
        event: NewEvent,
    ) -> impl Future<Output = Result<Published, PublishError>> + Send + use<> {
        let commands = self.commands.clone();
        let NewEvent { id, kind, payload, key, amount } = event;
        let id = id.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let room = self.name.clone();
        let event = v1::Publish { room, id, kind, payload, key, amount };
        async move {
            let (reply, answer) = oneshot::channel();
            let sent = commands.send(Command::Publish(event, reply)).await;
            sent.map_err(|_| PublishError::Closed)?;
            answer.await.map_err(|_| PublishError::Closed)?
        }
    }

    /// Where the viewer stands; `None` before it came in.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.view.read().0
    }

    /// What went by in this room.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.view.read().1
    }

    /// Leaves it.
    pub async fn leave(self) {
        let (reply, done) = oneshot::channel();
        let leave = Command::Leave(self.name.clone(), reply);
        if self.commands.send(leave).await.is_ok() {
            // A task that is gone is in no room.
            let _ = done.await;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.happenings.close();
        // If there is no place for it, the task is awake and will look.
        let _ = self.commands.try_send(Command::Look);
    }
}

impl Stream for Room {
    type Item = Happening;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Happening>> {
        self.happenings.poll_recv(cx)
    }
}

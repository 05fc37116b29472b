//! `tidegate watch`: a room in the terminal, and a client as one should be
//! written: it answers pings, acknowledges and pulls important events, says where
//! it left off, obeys `goaway` and the close codes, and comes back with full
//! jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), so that many
//! of it do not come back at once.

mod message;
mod room;
mod view;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use self::room::{Later, Room, Step};
use self::view::View;
use super::terminal::{self, Paint};
use super::token::TokenSource;
use super::{room, runtime};
use crate::auth::{Claims, Role};
use crate::clock::Clock;
use crate::engine::ids::RoomId;
use crate::engine::time::Time;

/// Longest first wait; it doubles with every failure in a row.
const BACKOFF_START: Duration = Duration::from_millis(500);
/// Longest wait at all.
const BACKOFF_LIMIT: Duration = Duration::from_secs(20);
/// For connecting, upgrading and joining.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a server may be late with a ping before it counts as gone.
const SILENCE_GRACE: Duration = Duration::from_secs(15);
/// Until `welcome` tells the real one.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Largest message taken, in bytes: above the largest frame that can be
/// configured usefully.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The room.
    #[arg(value_parser = room)]
    room: RoomId,
    /// The server.
    #[arg(long, default_value = "ws://127.0.0.1:7400")]
    url: String,
    /// Who watches, in tokens made here.
    #[arg(long, default_value = "tidegate-watch")]
    user: String,
    /// Print messages as they come, one per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    token: TokenSource,
}

/// Watches until interrupted, or until the server says not to come back.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut watch = Watch::new(arguments, Box::new(io::stdout()))?;
    runtime()?.block_on(async {
        tokio::select! {
            ended = watch.run() => ended,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                watch.leave().await;
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why a connection is over.
enum End {
    /// Come back, after this long if the server said so.
    Again { after: Option<Duration>, why: String },
    /// Do not come back.
    Stop(String),
    /// Nobody reads what we print.
    OutputClosed,
}

struct Watch {
    arguments: Arguments,
    url: String,
    port: u16,
    clock: Clock,
    view: View,
    room: Room,
    socket: Option<Socket>,
    out: Box<dyn io::Write>,
}

impl Watch {
    fn new(arguments: Arguments, out: Box<dyn io::Write>) -> anyhow::Result<Self> {
        let (url, port) = endpoint(&arguments.url)?;
        let room = Room::new(arguments.room.as_str());
        let view = View::new(Paint { on: terminal::colours() });
        Ok(Self { arguments, url, port, clock: Clock::start(), view, room, socket: None, out })
    }

    async fn run(&mut self) -> anyhow::Result<ExitCode> {
        let mut failures = 0;
        loop {
            let end = match self.connect().await? {
                Ok(()) => self.listen().await,
                Err(end) => end,
            };
            self.socket = None;
            if std::mem::take(&mut self.room.joined) {
                failures = 0;
            }
            match end {
                End::OutputClosed => return Ok(ExitCode::SUCCESS),
                End::Stop(why) => bail!("{why}"),
                End::Again { after, why } => {
                    let wait = after.unwrap_or_else(|| jitter(failures, rand::random()));
                    failures += 1;
                    let why = terminal::clean(&why, 300);
                    eprintln!("{why}; again in {:.1} s", wait.as_secs_f64());
                    sleep(wait).await;
                }
            }
        }
    }

    /// Connects and asks to join. The outer error is one that trying again does
    /// not mend.
    async fn connect(&mut self) -> anyhow::Result<Result<(), End>> {
        let claims = Claims {
            user: self.arguments.user.clone(),
            role: Role::Viewer,
            rooms: vec![self.arguments.room.to_string()],
            client: None,
        };
        let token = self.arguments.token.token(&claims, self.port)?;
        let mut request = self.url.as_str().into_client_request().context("--url")?;
        let protocol = HeaderValue::from_static("tidegate.v1.json");
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connected =
            timeout(CONNECT_TIMEOUT, connect_async_with_config(request, Some(config), true)).await;
        let socket = match connected {
            Err(_) => return Ok(Err(again("connecting took too long"))),
            Ok(Err(WsError::Http(response))) if response.status().is_client_error() => {
                let body = response.body().as_deref().map(String::from_utf8_lossy);
                let body = terminal::clean(&body.unwrap_or_default(), 300);
                return Ok(Err(End::Stop(format!("refused: {} {body}", response.status()))));
            }
            Ok(Err(error)) => return Ok(Err(again(&format!("cannot connect: {error}")))),
            Ok(Ok((socket, _))) => socket,
        };
        self.socket = Some(socket);
        let join = self.room.join(&token);
        Ok(self.send(join).await)
    }

    /// Reads until the connection is over.
    async fn listen(&mut self) -> End {
        let mut ping_interval = PING_INTERVAL;
        let mut heard_by = self.clock.now() + ping_interval + SILENCE_GRACE;
        let mut goaway = None;
        let mut later: Vec<(Time, Later)> = Vec::new();
        loop {
            let Some(socket) = &mut self.socket else { return again("not connected") };
            let next_due = later.iter().map(|(at, _)| *at).min();
            let clock = self.clock;
            let heard = tokio::select! {
                heard = timeout_at(clock.instant(heard_by).into(), socket.next()) => heard,
                () = sleep_until(clock.instant(next_due.unwrap_or(heard_by)).into()),
                    if next_due.is_some() =>
                {
                    if let Err(end) = self.catch_up(&mut later).await {
                        return end;
                    }
                    continue;
                }
            };
            let text = match heard {
                Err(_) => return again("the server is silent"),
                Ok(None) => return ended(None, goaway),
                Ok(Some(Err(error))) => return broken(&error, goaway),
                Ok(Some(Ok(Message::Close(frame)))) => return ended(frame.as_ref(), goaway),
                Ok(Some(Ok(Message::Text(text)))) => text,
                Ok(Some(Ok(_))) => {
                    heard_by = self.clock.now() + ping_interval + SILENCE_GRACE;
                    continue;
                }
            };
            heard_by = self.clock.now() + ping_interval + SILENCE_GRACE;
            let incoming = message::parse(text.as_str());
            if !self.print(text.as_str(), &incoming) {
                return End::OutputClosed;
            }
            for step in self.room.receive(&incoming) {
                match step {
                    Step::Send(message) => {
                        if let Err(end) = self.send(message).await {
                            return end;
                        }
                    }
                    Step::Later(within, what) => {
                        if !later.iter().any(|(_, known)| *known == what) {
                            let wait = within.mul_f64(rand::random());
                            later.push((self.clock.now() + wait, what));
                        }
                    }
                    Step::PingInterval(interval) => ping_interval = interval,
                    Step::Goaway(after) => goaway = Some(after),
                    Step::Again(after, why) => {
                        let why = terminal::clean(&why, 500);
                        return End::Again { after: Some(after), why };
                    }
                    Step::Stop(why) => return End::Stop(terminal::clean(&why, 500)),
                }
            }
        }
    }

    /// Does what was put off and is due now.
    async fn catch_up(&mut self, later: &mut Vec<(Time, Later)>) -> Result<(), End> {
        let now = self.clock.now();
        let due: Vec<_> = later.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, what) in due {
            if let Some(message) = self.room.due(what) {
                self.send(message).await?;
            }
        }
        Ok(())
    }

    /// Shows a message; false if nobody reads any more.
    fn print(&mut self, text: &str, incoming: &message::Incoming) -> bool {
        let lines = if self.arguments.json {
            vec![terminal::escape_json(text)]
        } else {
            self.view.show(incoming, &self.room, self.clock.now())
        };
        let out = &mut self.out;
        lines.iter().all(|line| writeln!(out, "{line}").is_ok()) && out.flush().is_ok()
    }

    async fn send(&mut self, message: String) -> Result<(), End> {
        let Some(socket) = &mut self.socket else { return Err(again("not connected")) };
        let sent = timeout(CONNECT_TIMEOUT, socket.send(Message::text(message))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&error, None)),
            Err(_) => Err(again("sending took too long")),
        }
    }

    /// Says goodbye, without waiting long for it.
    async fn leave(&mut self) {
        if let Some(digest) = self.room.farewell() {
            // Nobody waits for what comes of it.
            drop(self.send(digest).await);
        }
        if let Some(mut socket) = self.socket.take() {
            // Whether or not it is heard, we are leaving.
            drop(timeout(Duration::from_millis(500), socket.close(None)).await);
        }
    }
}

fn again(why: &str) -> End {
    End::Again { after: None, why: why.to_owned() }
}

fn broken(error: &WsError, goaway: Option<Duration>) -> End {
    End::Again { after: goaway, why: format!("the connection broke: {error}") }
}

/// What a close code means: 3500 to 3999 not to come back.
fn ended(frame: Option<&CloseFrame>, goaway: Option<Duration>) -> End {
    let Some(frame) = frame else {
        return End::Again { after: goaway, why: "the server is gone".to_owned() };
    };
    let code = u16::from(frame.code);
    let why = format!("closed by the server: {code} {}", terminal::clean(&frame.reason, 200));
    if (3_500..4_000).contains(&code) { End::Stop(why) } else { End::Again { after: goaway, why } }
}

/// Full jitter: anything from nothing to a limit that doubles.
fn jitter(failures: u32, random: f64) -> Duration {
    let limit = BACKOFF_START.saturating_mul(1 << failures.min(16)).min(BACKOFF_LIMIT);
    limit.mul_f64(random)
}

/// The address of the interface, and the port at which the server listens.
fn endpoint(url: &str) -> anyhow::Result<(String, u16)> {
    let uri: http::Uri = url.parse().context("--url is not a URL")?;
    if uri.scheme_str() != Some("ws") {
        bail!("--url: only ws:// (this command speaks no TLS; put the edge's own address)");
    }
    let port = uri.port_u16().unwrap_or(80);
    let url = match uri.path() {
        "/" => format!("{}/v1/ws", url.trim_end_matches('/')),
        _ => url.to_owned(),
    };
    Ok((url, port))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::Parser;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_hdr_async;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Peer = WebSocketStream<TcpStream>;

    async fn accept(listener: &TcpListener) -> Peer {
        let (stream, _) = listener.accept().await.unwrap();
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let agree = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/v1/ws");
            let protocol = request.headers()[SEC_WEBSOCKET_PROTOCOL].clone();
            assert_eq!(protocol, "tidegate.v1.json");
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            Ok(response)
        };
        accept_hdr_async(stream, agree).await.unwrap()
    }

    async fn heard(peer: &mut Peer) -> Value {
        let message = peer.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    async fn say(peer: &mut Peer, message: Value) {
        peer.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn close_with(mut peer: Peer, code: u16) {
        peer.close(Some(CloseFrame { code: code.into(), reason: "test".into() })).await.unwrap();
    }

    /// A server that drains after a frame, and when the client is back sends it
    /// away for good.
    async fn server(listener: TcpListener) {
        let mut peer = accept(&listener).await;
        let join = heard(&mut peer).await;
        assert_eq!(join["join"], json!({"room": "r", "token": "t", "acks": true}));
        say(&mut peer, json!({"welcome": {"session": "s", "ping_interval_ms": 1_000}})).await;
        say(&mut peer, json!({"joined": {"room": "r", "epoch": 7, "seq": 1, "important": 0}}))
            .await;
        let event = json!({"kind": "chat", "payload": "hello", "seq": 2, "important": 1});
        let frame = json!({"epoch": 7, "first_seq": 2, "last_seq": 2, "important": 1,
            "events": [event], "ack": {"one_in": 1, "within_ms": 20}});
        say(&mut peer, json!({"frame": frame})).await;
        assert_eq!(heard(&mut peer).await["ack"]["important"], 1);
        say(&mut peer, json!({"ping": {}})).await;
        assert_eq!(heard(&mut peer).await, json!({"pong": {}}));
        say(&mut peer, json!({"goaway": {"reconnect_after_ms": 10}})).await;
        close_with(peer, 3_000).await;

        let mut peer = accept(&listener).await;
        let resume = &heard(&mut peer).await["join"]["resume"];
        assert_eq!(*resume, json!({"epoch": 7, "seq": 2, "important": 1}));
        close_with(peer, 3_500).await;
    }

    #[tokio::test]
    async fn a_drained_client_comes_back_where_it_left_off_and_a_dismissed_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let cli = Cli::parse_from(["watch", "r", "--url", &url, "--token", "t"]);
        let output = Output::default();
        let mut watch = Watch::new(cli.arguments, Box::new(output.clone())).unwrap();
        let client = timeout(Duration::from_secs(20), watch.run());
        let (ended, ()) = tokio::join!(client, server(listener));
        assert!(ended.unwrap().unwrap_err().to_string().contains("3500"));
        let printed = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        assert!(printed.contains("chat         hello  (#2, !1"), "{printed}");
    }

    fn close(code: u16) -> End {
        let frame = CloseFrame { code: code.into(), reason: "why".into() };
        ended(Some(&frame), Some(Duration::from_secs(3)))
    }

    #[test]
    fn close_codes_say_whether_to_come_back() {
        for code in [1_000, 1_006, 3_000, 3_008, 3_499] {
            let End::Again { after, .. } = close(code) else { panic!("{code}") };
            assert_eq!(after, Some(Duration::from_secs(3)), "the server's wish is obeyed");
        }
        for code in [3_500, 3_999] {
            assert!(matches!(close(code), End::Stop(_)), "{code}");
        }
    }

    #[test]
    fn waits_grow_to_a_limit_and_are_spread_over_all_of_it() {
        assert_eq!(jitter(0, 0.5), Duration::from_millis(250));
        assert_eq!(jitter(3, 1.0), Duration::from_secs(4));
        assert_eq!(jitter(4_000_000, 1.0), BACKOFF_LIMIT);
        assert_eq!(jitter(9, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_address_may_be_short() {
        let short = endpoint("ws://127.0.0.1:7400").unwrap();
        assert_eq!(short, ("ws://127.0.0.1:7400/v1/ws".to_owned(), 7_400));
        assert_eq!(endpoint("ws://a/").unwrap(), ("ws://a/v1/ws".to_owned(), 80));
        assert_eq!(endpoint("ws://a:1/x").unwrap().0, "ws://a:1/x");
        assert!(endpoint("wss://a").is_err() && endpoint("a b").is_err());
    }
}

//! `tidegate watch`: a room in the terminal, on the viewer library.

mod json;
mod view;

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::sync::watch;

use self::view::View;
use super::terminal::{self, Paint};
use super::token::TokenSource;
use super::trust::{self, Believed, TrustSource};
use super::{room, runtime};
use crate::auth::{Claims, Role};
use crate::clock::Clock;
use crate::engine::ids::RoomId;
use crate::viewer::{End, Happening, JoinError, Options, Status, Token, Transport, Viewer};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The room.
    #[arg(value_parser = room)]
    room: RoomId,
    /// The server: ws://, wss://, http:// or https://. QUIC goes to the same port.
    #[arg(long, default_value = "ws://127.0.0.1:7400")]
    url: String,
    /// auto, websocket or quic. auto: QUIC with a head start, then WebSocket.
    #[arg(long, default_value = "auto", value_parser = transport)]
    transport: Choice,
    /// Who watches, in tokens made here.
    #[arg(long, default_value = "tidegate-watch")]
    user: String,
    /// Print what happens as JSON, one object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: TrustSource,
    #[command(flatten)]
    token: TokenSource,
}

/// What was chosen; a type of its own, since an `Option` means an absent argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice(Option<Transport>);

fn transport(name: &str) -> Result<Choice, String> {
    match name {
        "auto" => Ok(Choice(None)),
        name => name.parse().map(|one| Choice(Some(one))).map_err(|e| format!("auto; {e}")),
    }
}

/// Watches until interrupted, or until the server says not to come back.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut screen = Screen::new(arguments.json, Box::new(io::stdout()));
        let believed = arguments.trust.believed(&arguments.url).await?;
        let viewer = connect(&arguments, &believed)?;
        let ended = tokio::select! {
            ended = watch_room(&viewer, &arguments, &mut screen) => ended,
            never = renew(&viewer, &believed) => match never {},
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map(|()| ExitCode::SUCCESS).map_err(Into::into)
            }
        };
        viewer.close().await;
        ended
    })
}

fn connect(arguments: &Arguments, believed: &Believed) -> anyhow::Result<Viewer> {
    let (transport, trust) = (arguments.transport.0, believed.trust.clone());
    let options = Options { transport, trust, ..Options::new(&arguments.url) };
    Viewer::connect(options).context("--url")
}

/// A server for development that was started again has another certificate.
async fn renew(viewer: &Viewer, believed: &Believed) -> Infallible {
    let mut status = viewer.status();
    while status.wait_for(|status| matches!(status, Status::Waiting { .. })).await.is_ok() {
        believed.renew().await;
        if status.changed().await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// A token for every join: a server that was started again has a new development
/// key.
fn token(arguments: &Arguments) -> anyhow::Result<Token> {
    let uri: http::Uri = arguments.url.parse().context("--url is not a URL")?;
    let safe = matches!(uri.scheme_str(), Some("wss" | "https"));
    let port = uri.port_u16().unwrap_or(if safe { 443 } else { 80 });
    let claims = Claims {
        user: arguments.user.clone(),
        role: Role::Viewer,
        rooms: vec![arguments.room.to_string()],
        client: None,
    };
    let source = arguments.token.clone();
    Ok(Token::provider(move || {
        let token = source.token(&claims, port).map_err(|error| format!("{error:#}"));
        std::future::ready(token)
    }))
}

async fn watch_room(
    viewer: &Viewer,
    arguments: &Arguments,
    screen: &mut Screen,
) -> anyhow::Result<ExitCode> {
    let mut status = viewer.status();
    let joining = viewer.join(arguments.room.as_str(), token(arguments)?);
    tokio::pin!(joining);
    let mut room = loop {
        tokio::select! {
            joined = &mut joining => break joined.map_err(|error| refused(&error))?,
            changed = status.changed() => changed.map(|()| screen.status(&mut status))?,
        };
    };
    loop {
        let shown = tokio::select! {
            biased;
            changed = status.changed() => changed.map(|()| screen.status(&mut status))?,
            happening = room.next() => match happening {
                Some(Happening::Ended(end)) => return Err(anyhow!("{}", ended(&end))),
                Some(happening) => screen.happening(&happening),
                None => return Ok(ExitCode::SUCCESS),
            },
        };
        if !shown {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn refused(error: &JoinError) -> anyhow::Error {
    anyhow!("{}", terminal::clean(&error.to_string(), 500))
}

fn ended(end: &End) -> String {
    let why = match end {
        End::Refused(failure) => failure.to_string(),
        End::Dismissed { reason, .. } => reason.clone(),
        End::NoToken(why) => why.clone(),
    };
    terminal::clean(&why, 500)
}

/// Where everything is shown.
struct Screen {
    json: bool,
    view: View,
    clock: Clock,
    /// It was told once what to do about a certificate.
    hinted: bool,
    out: Box<dyn io::Write>,
}

impl Screen {
    fn new(json: bool, out: Box<dyn io::Write>) -> Self {
        let view = View::new(Paint { on: !json && terminal::colours() });
        Self { json, view, clock: Clock::start(), hinted: false, out }
    }

    /// Shows where the connection is; false if nobody reads any more.
    fn status(&mut self, status: &mut watch::Receiver<Status>) -> bool {
        let status = status.borrow_and_update().clone();
        if let Status::Waiting { why, again_in, untrusted } = &status {
            let why = terminal::clean(why, 300);
            eprintln!("{why}; again in {:.1} s", again_in.as_secs_f64());
            if *untrusted && !std::mem::replace(&mut self.hinted, true) {
                eprintln!("{}", trust::HINT);
            }
        }
        let lines = match self.json {
            true => json::status(&status).into_iter().collect(),
            false => self.view.status(&status),
        };
        self.print(lines)
    }

    /// Shows what happened; false if nobody reads any more.
    fn happening(&mut self, happening: &Happening) -> bool {
        let lines = match self.json {
            true => json::happening(happening).into_iter().collect(),
            false => self.view.show(happening, self.clock.now()),
        };
        self.print(lines)
    }

    fn print(&mut self, lines: Vec<String>) -> bool {
        let out = &mut self.out;
        lines.iter().all(|line| writeln!(out, "{line}").is_ok()) && out.flush().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(more: &[&str]) -> Result<Arguments, clap::Error> {
        let all = ["watch", "r", "--token", "t"].iter().chain(more);
        Cli::try_parse_from(all).map(|cli| cli.arguments)
    }

    #[test]
    fn transports_are_chosen_by_name() {
        assert_eq!(arguments(&[]).unwrap().transport, Choice(None));
        for transport in [Transport::WebSocket, Transport::Quic] {
            let chosen = arguments(&["--transport", &transport.to_string()]).unwrap();
            assert_eq!(chosen.transport, Choice(Some(transport)));
        }
        let error = arguments(&["--transport", "pigeon"]).unwrap_err().to_string();
        assert!(error.contains("auto; allowed: websocket, quic"), "{error}");
    }

    async fn start(arguments: &Arguments) -> anyhow::Result<Viewer> {
        connect(arguments, &arguments.trust.believed(&arguments.url).await?)
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_told_and_one_without_a_server_is_tried_again() {
        assert!(start(&arguments(&["--url", "ftp://a"]).unwrap()).await.is_err());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("ws://127.0.0.1:{port}");
        let arguments = arguments(&["--url", &url, "--transport", "websocket"]).unwrap();
        let viewer = start(&arguments).await.unwrap();
        let mut status = viewer.status();
        let mut screen = Screen::new(false, Box::new(io::sink()));
        let waiting = status.wait_for(|status| matches!(status, Status::Waiting { .. }));
        tokio::select! {
            ended = watch_room(&viewer, &arguments, &mut screen) => panic!("{ended:?}"),
            status = waiting => assert!(status.is_ok()),
        }
    }

    #[test]
    fn why_it_ended_is_told_without_commands_to_the_terminal() {
        let nasty = "\u{1b}[2J".to_owned();
        for end in
            [End::NoToken(nasty.clone()), End::Dismissed { code: 3_500, reason: nasty.clone() }]
        {
            assert_eq!(ended(&end), "\u{fffd}[2J");
        }
        let error = JoinError::NoToken(nasty);
        assert!(!refused(&error).to_string().contains('\u{1b}'));
    }
}

//! `tidegate publish`.

use std::io::{self, BufRead as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::StatusCode;

use super::token::TokenSource;
use super::trust::{self, TrustSource};
use super::{room, runtime, terminal};
use crate::auth::{Claims, Role};
use crate::client::{Content, Failure, NewEvent, Outcome, Protocol, Publisher, PublisherSettings};
use crate::engine::ids::RoomId;
use crate::trust::Trust;

/// Longer than the server takes for any answer by default.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The room.
    #[arg(value_parser = room)]
    room: RoomId,
    /// The kind, as configured.
    kind: String,
    /// The content: JSON if it is that, otherwise a string. `-`: one event per
    /// line of standard input.
    #[arg(allow_hyphen_values = true)]
    payload: String,
    /// The server: http:// or https://.
    #[arg(long, default_value = "http://127.0.0.1:7400")]
    url: String,
    /// http or grpc, both at the same address.
    #[arg(long, default_value = "http", value_parser = protocol)]
    protocol: Protocol,
    /// Merge key.
    #[arg(long)]
    key: Option<String>,
    /// What a `sum` adds.
    #[arg(long, allow_hyphen_values = true)]
    amount: Option<i64>,
    /// Idempotency key; of several lines: the start of theirs. Absent: random.
    #[arg(long)]
    id: Option<String>,
    /// Whom the event is from.
    #[arg(long, default_value = "")]
    user: String,
    /// Milliseconds after which it is not worth sending.
    #[arg(long)]
    ttl_ms: Option<u64>,
    #[command(flatten)]
    trust: TrustSource,
    #[command(flatten)]
    token: TokenSource,
}

fn protocol(name: &str) -> Result<Protocol, String> {
    match name {
        "http" => Ok(Protocol::Http),
        "grpc" => Ok(Protocol::Grpc),
        _ => Err("allowed: http, grpc".to_owned()),
    }
}

/// Publishes; fails if anything was refused.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let publisher = runtime.block_on(start(arguments))?;
    let mut refused = false;
    let mut publish = |payload: &str, id: &str| -> anyhow::Result<()> {
        let event = event(arguments, payload, id)?;
        let outcome = runtime.block_on(publisher.publish(&arguments.room, event)?);
        let (line, accepted) = describe(id, &outcome, &arguments.url)?;
        println!("{line}");
        refused |= !accepted;
        Ok(())
    };
    let random = format!("cli-{:016x}", rand::random::<u64>());
    let id = arguments.id.as_deref().unwrap_or(&random);
    if arguments.payload == "-" {
        for (index, line) in io::stdin().lock().lines().enumerate() {
            publish(&line?, &format!("{id}-{}", index + 1))?;
        }
    } else {
        publish(&arguments.payload, id)?;
    }
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn start(arguments: &Arguments) -> anyhow::Result<Publisher> {
    let base: http::Uri = arguments.url.parse().context("--url is not a URL")?;
    let (port, trust) = match base.scheme_str() {
        Some("https") => (443, arguments.trust.believed(&arguments.url).await?.trust),
        // Nobody's certificate is asked for.
        _ => (80, Trust::System),
    };
    let claims = Claims {
        user: "tidegate-publish".to_owned(),
        role: Role::Publisher,
        rooms: vec![arguments.room.to_string()],
        client: None,
    };
    let token = arguments.token.token(&claims, base.port_u16().unwrap_or(port))?;
    let settings = PublisherSettings {
        protocol: arguments.protocol,
        trust,
        request_timeout: TIMEOUT,
        // One event at a time: there is nothing to wait for.
        linger: Duration::ZERO,
        ..PublisherSettings::new(&arguments.url, token)
    };
    Publisher::start(settings).context("--url")
}

fn event(arguments: &Arguments, text: &str, id: &str) -> anyhow::Result<NewEvent> {
    Ok(NewEvent {
        user: arguments.user.clone(),
        payload: payload(text)?,
        key: arguments.key.clone(),
        amount: arguments.amount,
        ttl: arguments.ttl_ms.map(Duration::from_millis),
        ..NewEvent::new(id, &arguments.kind)
    })
}

/// JSON if it parses, otherwise the text as a JSON string.
fn payload(text: &str) -> Result<Content, serde_json::Error> {
    Content::from_json_text(text.to_owned()).or_else(|_| Content::json(&text))
}

/// The outcome as a line, and whether the event was accepted.
fn describe(id: &str, outcome: &Outcome, url: &str) -> anyhow::Result<(String, bool)> {
    let refused = |code: &str, reason: &str, retry_after: Option<Duration>| {
        let again = match retry_after {
            Some(wait) => format!(" (try again after {} ms)", wait.as_millis()),
            None => String::new(),
        };
        let (code, reason) = (terminal::clean(code, 100), terminal::clean(reason, 500));
        Ok((format!("rejected {id}: {code}: {reason}{again}"), false))
    };
    match outcome {
        Outcome::Accepted { seq } => {
            let seq = seq.map_or("no number".to_owned(), |seq| format!("seq {seq}"));
            Ok((format!("accepted {id}: {seq}"), true))
        }
        Outcome::Rejected(refusal) => refused(&refusal.code, &refusal.reason, refusal.retry_after),
        Outcome::ShedLocally { retry_after } => {
            let reason = "not sent: the server does not admit it now";
            refused("shed", reason, Some(*retry_after))
        }
        Outcome::Expired => refused("expired", "its time to live ended before it was sent", None),
        Outcome::Displaced => refused("displaced", "more important events took its place", None),
        Outcome::Abandoned => bail!("the publisher ended without an answer"),
        Outcome::Failed(Failure::Connect(_)) => bail!("no server answers at {url}"),
        Outcome::Failed(failure @ Failure::Untrusted(_)) => {
            bail!("{}\n{}", terminal::clean(&failure.to_string(), 500), trust::HINT)
        }
        Outcome::Failed(Failure::Malformed { status }) => {
            let status = StatusCode::from_u16(*status).unwrap_or_default();
            bail!("{url} answered {status}, not as Tidegate does")
        }
        Outcome::Failed(failure) => bail!("{failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refusal;

    fn line(outcome: Outcome) -> String {
        describe("i", &outcome, "http://edge").map_or_else(|e| e.to_string(), |(line, _)| line)
    }

    fn refusal(code: &str, reason: &str, millis: Option<u64>) -> Outcome {
        let retry_after = millis.map(Duration::from_millis);
        Outcome::Rejected(Refusal { code: code.into(), reason: reason.into(), retry_after })
    }

    #[test]
    fn outcomes_are_told_apart() {
        assert_eq!(line(Outcome::Accepted { seq: Some(5) }), "accepted i: seq 5");
        assert_eq!(line(Outcome::Accepted { seq: None }), "accepted i: no number");
        let busy = refusal("busy", "full", Some(9));
        assert_eq!(line(busy.clone()), "rejected i: busy: full (try again after 9 ms)");
        let nasty = refusal("token_expired", "the\u{1b}[2J token", None);
        assert_eq!(line(nasty), "rejected i: token_expired: the\u{fffd}[2J token");
        let shed = Outcome::ShedLocally { retry_after: Duration::from_millis(7) };
        assert!(line(shed).ends_with("(try again after 7 ms)"));
        assert!(matches!(describe("i", &busy, ""), Ok((_, false))));
        assert!(matches!(describe("i", &Outcome::Expired, ""), Ok((_, false))));
    }

    #[test]
    fn a_server_that_is_not_there_is_told_from_one_that_is_another() {
        let nobody = Outcome::Failed(Failure::Connect("refused".into()));
        assert_eq!(line(nobody), "no server answers at http://edge");
        let other = Outcome::Failed(Failure::Malformed { status: 404 });
        assert_eq!(line(other), "http://edge answered 404 Not Found, not as Tidegate does");
        assert_eq!(line(Outcome::Failed(Failure::Timeout)), "no answer in time");
        let stranger = line(Outcome::Failed(Failure::Untrusted("UnknownIssuer".into())));
        assert!(stranger.contains("UnknownIssuer\n") && stranger.contains("--ca"), "{stranger}");
    }

    #[test]
    fn a_payload_is_json_where_it_can_be() {
        let cases = [
            ("{\"a\": 1.50}", "{\"a\": 1.50}"),
            (" 7 ", "7"),
            ("hello", "\"hello\""),
            ("", "\"\""),
        ];
        for (text, json) in cases {
            let Ok(Content::Json(got)) = payload(text) else { panic!("{text}") };
            assert_eq!(got.get(), json);
        }
    }
}

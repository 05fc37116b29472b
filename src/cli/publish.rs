//! `tidegate publish`.

use std::io::{self, BufRead as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::token::TokenSource;
use super::{room, runtime, terminal};
use crate::auth::{Claims, Role};
use crate::engine::ids::RoomId;

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
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:7400")]
    url: String,
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
    token: TokenSource,
}

#[derive(Serialize)]
struct Body<'a> {
    events: [Event<'a>; 1],
}

#[derive(Serialize)]
struct Event<'a> {
    id: &'a str,
    kind: &'a str,
    user: &'a str,
    payload: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
}

/// What the server says; what we do not know of it is ignored.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    results: Vec<EventResult>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct EventResult {
    status: String,
    seq: Option<u64>,
    #[serde(flatten)]
    refusal: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
    retry_after_ms: Option<u64>,
}

/// Publishes; fails if anything was refused.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let target = Target::new(arguments)?;
    let runtime = runtime()?;
    let mut refused = false;
    let mut publish = |payload: &str, id: &str| -> anyhow::Result<()> {
        let accepted = runtime.block_on(target.publish(arguments, payload, id))?;
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

/// Where events go.
struct Target {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Target {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let base: http::Uri = arguments.url.parse().context("--url is not a URL")?;
        if base.scheme_str() != Some("http") {
            bail!("--url: only http:// (this command speaks no TLS; put the edge's own address)");
        }
        let claims = Claims {
            user: "tidegate-publish".to_owned(),
            role: Role::Publisher,
            rooms: vec![arguments.room.to_string()],
            client: None,
        };
        let token = arguments.token.token(&claims, base.port_u16().unwrap_or(80))?;
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let base = arguments.url.trim_end_matches('/');
        Ok(Self { client, url: format!("{base}/v1/rooms/{}/events", arguments.room), token })
    }

    /// Publishes one event and prints the result; false if it was refused.
    async fn publish(&self, arguments: &Arguments, text: &str, id: &str) -> anyhow::Result<bool> {
        let event = Event {
            id,
            kind: &arguments.kind,
            user: &arguments.user,
            payload: payload(text),
            key: arguments.key.as_deref(),
            amount: arguments.amount,
            ttl_ms: arguments.ttl_ms,
        };
        let request = self.client.post(&self.url).bearer_auth(&self.token);
        let response = request.json(&Body { events: [event] }).send().await;
        let response = response.map_err(|error| match error.is_connect() {
            true => anyhow!("no server answers at {}", arguments.url),
            false => anyhow!(error).context("the request failed"),
        })?;
        let status = response.status();
        let body = response.bytes().await.context("the answer broke off")?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| anyhow!("{} answered {status}, not as Tidegate does", arguments.url))?;
        let (line, accepted) = describe(id, &answer);
        println!("{line}");
        Ok(accepted)
    }
}

/// JSON if it parses, otherwise the text as a JSON string.
fn payload(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The result as a line, and whether the event was accepted.
fn describe(id: &str, answer: &Answer) -> (String, bool) {
    let refusal = match (answer.results.first(), &answer.error) {
        (Some(result), _) if result.status == "accepted" => {
            let seq = result.seq.map_or("no number".to_owned(), |seq| format!("seq {seq}"));
            return (format!("accepted {id}: {seq}"), true);
        }
        (Some(result), _) => &result.refusal,
        (None, Some(error)) => error,
        (None, None) => return (format!("rejected {id}: the answer holds no result"), false),
    };
    let again = match refusal.retry_after_ms {
        Some(millis) => format!(" (try again after {millis} ms)"),
        None => String::new(),
    };
    let (code, reason) =
        (terminal::clean(&refusal.code, 100), terminal::clean(&refusal.reason, 500));
    (format!("rejected {id}: {code}: {reason}{again}"), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(answer: &str) -> (String, bool) {
        describe("i", &serde_json::from_str(answer).unwrap())
    }

    #[test]
    fn results_and_refusals_are_told_apart() {
        let accepted = r#"{"results":[{"id":"i","status":"accepted","seq":5,"new":1}],"x":{}}"#;
        assert_eq!(line(accepted), ("accepted i: seq 5".into(), true));
        let sampled = r#"{"results":[{"id":"i","status":"accepted"}]}"#;
        assert_eq!(line(sampled), ("accepted i: no number".into(), true));
        let busy = r#"{"results":[{"id":"i","status":"rejected","code":"busy","reason":"full",
            "retry_after_ms":9}]}"#;
        assert_eq!(line(busy), ("rejected i: busy: full (try again after 9 ms)".into(), false));
        let whole = r#"{"error":{"code":"token_expired","reason":"the\u001b[2J token"}}"#;
        assert_eq!(line(whole).0, "rejected i: token_expired: the\u{fffd}[2J token");
        assert!(!line("{}").1);
    }

    #[test]
    fn a_payload_is_json_where_it_can_be() {
        assert_eq!(payload("{\"a\":1}"), serde_json::json!({"a": 1}));
        assert_eq!(payload("7"), serde_json::json!(7));
        assert_eq!(payload("hello"), serde_json::json!("hello"));
        assert_eq!(payload(""), serde_json::json!(""));
    }
}

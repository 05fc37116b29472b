//! `tidegate admission`: overload control, seen and overruled.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::token::TokenSource;
use super::{duration, room, runtime, terminal};
use crate::auth::{Claims, Role};
use crate::engine::ids::RoomId;

/// Longer than the server takes for any answer.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
// Options may stand behind the decision, where one adds them.
#[command(mut_args(|argument| argument.global(true)))]
pub(super) struct Arguments {
    #[command(subcommand)]
    decision: Decision,
    /// The operators' port.
    #[arg(long, default_value = "http://127.0.0.1:7401")]
    url: String,
    /// The server's other port, by which its development key is found.
    #[arg(long, default_value_t = 7400)]
    edge_port: u16,
    #[command(flatten)]
    token: TokenSource,
}

#[derive(Debug, Clone, Subcommand)]
enum Decision {
    /// Show level, rung, queueing and load of every shard.
    Show,
    /// Admit up to a tier, and a user level of it, and no further.
    Pin {
        /// Last tier admitted, 0 to 63.
        business: u8,
        /// Last user level of it, 0 to 127; all by default.
        user: Option<u8>,
    },
    /// Give a pinned level back.
    Unpin,
    /// Refuse a kind in a room for a while.
    Silence {
        /// The room.
        #[arg(value_parser = room)]
        room: RoomId,
        /// The kind.
        kind: String,
        /// How long, a day at most.
        #[arg(long = "for", default_value = "10m", value_parser = duration::parse)]
        length: Duration,
    },
    /// Take the kind again.
    Unsilence {
        /// The room.
        #[arg(value_parser = room)]
        room: RoomId,
        /// The kind.
        kind: String,
    },
    /// Let new joins wait, and refuse those that have waited too long.
    HoldJoins,
    /// Let them in again.
    ReleaseJoins,
}

impl Decision {
    /// Where it is told, and how.
    fn request(&self) -> Option<(&'static str, Value)> {
        Some(match self {
            Decision::Show => return None,
            Decision::Pin { business, user: None } => ("pin", json!({"business": business})),
            Decision::Pin { business, user } => {
                ("pin", json!({"business": business, "user": user}))
            }
            Decision::Unpin => ("pin", json!({})),
            Decision::Silence { room, kind, length } => {
                let seconds = length.as_secs();
                ("silence", json!({"room": room.as_str(), "kind": kind, "seconds": seconds}))
            }
            Decision::Unsilence { room, kind } => {
                ("silence", json!({"room": room.as_str(), "kind": kind, "seconds": 0}))
            }
            Decision::HoldJoins => ("joins", json!({"hold": true})),
            Decision::ReleaseJoins => ("joins", json!({"hold": false})),
        })
    }
}

/// Shows, or decides and then shows.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let base = arguments.url.trim_end_matches('/');
    let runtime = runtime()?;
    let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    if let Some((path, body)) = arguments.decision.request() {
        let claims = Claims {
            user: "tidegate-admission".to_owned(),
            role: Role::Operator,
            rooms: vec!["*".to_owned()],
            client: None,
        };
        let token = arguments.token.token(&claims, arguments.edge_port)?;
        let request = client.post(format!("{base}/admission/{path}")).bearer_auth(token);
        let answer = runtime.block_on(async {
            let answer = request.json(&body).send().await?;
            anyhow::Ok((answer.status(), answer.text().await?))
        });
        let (status, text) = answer.with_context(|| format!("no answer from {base}"))?;
        if !status.is_success() {
            let error: Value = serde_json::from_str(&text).unwrap_or_default();
            let said =
                |field: &str| terminal::clean(error["error"][field].as_str().unwrap_or("?"), 300);
            bail!("refused ({status}): {}: {}", said("code"), said("reason"));
        }
    }
    let state: Value = runtime
        .block_on(async { client.get(format!("{base}/admission")).send().await?.json().await })
        .with_context(|| format!("no answer from {base}"))?;
    for line in describe(&state) {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(state: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, shard) in state["shards"].as_array().into_iter().flatten().enumerate() {
        if shard.is_null() {
            lines.push(format!("shard {index}: does not answer"));
            continue;
        }
        let level = &shard["level"];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let text = |value: &Value| terminal::clean(value.as_str().unwrap_or("?"), 130);
        lines.push(format!(
            "shard {index}: {}, level {}/{} ({:.0} %){}, load {:.2}, queueing {:.1} ms, \
             {} events and {} joins waiting{}",
            text(&shard["rung"]),
            number(&level["business"]),
            number(&level["user"]),
            number(&level["share"]) * 100.0,
            if shard["pinned"] == true { " pinned" } else { "" },
            number(&shard["load"]),
            number(&shard["queueing_ms"]),
            number(&shard["waiting_events"]),
            number(&shard["joins_waiting"]),
            if shard["joins_held"] == true { ", joins held by an operator" } else { "" },
        ));
    }
    // Every shard knows of all that is silenced.
    for silenced in state["shards"][0]["silenced"].as_array().into_iter().flatten() {
        let text = |field: &str| terminal::clean(silenced[field].as_str().unwrap_or("?"), 130);
        lines.push(format!("silenced: {} in {}", text("kind"), text("room")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_a_line_whatever_it_says() {
        let shard = json!({
            "level": {"business": 3, "user": 64, "share": 0.5}, "pinned": true, "rung": "refuse",
            "joins_held": false, "joins_waiting": 7, "waiting_events": 9, "queueing_ms": 21.25,
            "load": 2.5, "silenced": [{"room": "r", "kind": "li\u{1b}ke", "until_ms": 1}],
        });
        let lines = describe(&json!({"shards": [shard, null, {}]}));
        let first = "shard 0: refuse, level 3/64 (50 %) pinned, load 2.50, queueing 21.2 ms, \
                     9 events and 7 joins waiting";
        assert_eq!(lines[0], first);
        assert_eq!(lines[1], "shard 1: does not answer");
        assert!(lines[2].starts_with("shard 2: ?, level NaN"));
        assert_eq!(lines[3], "silenced: li\u{fffd}ke in r");
        assert!(describe(&json!("odd")).is_empty());
    }
}

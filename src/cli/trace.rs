//! `tidegate trace`: the way of single events, step by step.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::token::TokenSource;
use super::{duration, room, runtime, terminal};
use crate::auth::{Claims, Role};
use crate::engine::ids::RoomId;

/// Longer than the server takes for any answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks, when following.
const POLL: Duration = Duration::from_millis(500);
/// Steps that are remembered as printed.
const MOST_PRINTED: usize = 100_000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The publisher's id of the event. Absent: the newest that are known.
    id: Option<String>,
    /// Of this room only.
    #[arg(long, value_parser = room)]
    room: Option<RoomId>,
    /// Have the event or room followed from now on, as an operator.
    #[arg(long)]
    watch: bool,
    /// How long, an hour at most.
    #[arg(long = "for", default_value = "10m", value_parser = duration::parse, requires = "watch")]
    length: Duration,
    /// Stay, and print steps as they are taken.
    #[arg(long)]
    follow: bool,
    /// Events shown.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print the server's answer as it is.
    #[arg(long, conflicts_with = "follow")]
    json: bool,
    /// The operators' port.
    #[arg(long, default_value = "http://127.0.0.1:7401")]
    url: String,
    /// The server's other port, by which its development key is found.
    #[arg(long, default_value_t = 7400)]
    edge_port: u16,
    #[command(flatten)]
    token: TokenSource,
}

/// Shows, and before that sets a rule if asked to.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    runtime()?.block_on(async {
        if arguments.watch {
            watch(arguments, &client).await?;
        }
        let answer = ask(arguments, &client).await?;
        if arguments.json {
            println!("{}", terminal::escape_json(&answer.to_string()));
            return Ok(ExitCode::SUCCESS);
        }
        for line in describe(&answer) {
            println!("{line}");
        }
        if arguments.follow {
            return follow(arguments, &client, &answer).await;
        }
        let found = answer["traces"].as_array().is_some_and(|traces| !traces.is_empty());
        if !found && !arguments.watch {
            eprintln!("nothing was noted of it; --watch has it followed from now on");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn watch(arguments: &Arguments, client: &reqwest::Client) -> anyhow::Result<()> {
    if arguments.id.is_none() && arguments.room.is_none() {
        bail!("--watch takes an id, --room, or both");
    }
    let claims = Claims {
        user: "tidegate-trace".to_owned(),
        role: Role::Operator,
        rooms: vec!["*".to_owned()],
        client: None,
    };
    let token = arguments.token.token(&claims, arguments.edge_port)?;
    let mut rule = json!({"seconds": arguments.length.as_secs()});
    if let Some(id) = &arguments.id {
        rule["id"] = json!(id);
    }
    if let Some(room) = &arguments.room {
        rule["room"] = json!(room.as_str());
    }
    let base = arguments.url.trim_end_matches('/');
    let request = client.post(format!("{base}/trace")).bearer_auth(token).json(&rule);
    let answer = request.send().await.with_context(|| format!("no answer from {base}"))?;
    checked(answer).await?;
    Ok(())
}

async fn ask(arguments: &Arguments, client: &reqwest::Client) -> anyhow::Result<Value> {
    let base = arguments.url.trim_end_matches('/');
    let mut url = reqwest::Url::parse(&format!("{base}/trace")).context("--url")?;
    url.query_pairs_mut().append_pair("limit", &arguments.limit.to_string());
    if let Some(id) = &arguments.id {
        url.query_pairs_mut().append_pair("id", id);
    }
    if let Some(room) = &arguments.room {
        url.query_pairs_mut().append_pair("room", room.as_str());
    }
    let answer = client.get(url).send().await.with_context(|| format!("no answer from {base}"))?;
    checked(answer).await
}

async fn checked(answer: reqwest::Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let text = answer.text().await?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if !status.is_success() {
        let said =
            |field: &str| terminal::clean(value["error"][field].as_str().unwrap_or("?"), 300);
        bail!("refused ({status}): {}: {}", said("code"), said("reason"));
    }
    Ok(value)
}

async fn follow(
    arguments: &Arguments,
    client: &reqwest::Client,
    shown: &Value,
) -> anyhow::Result<ExitCode> {
    let mut printed: HashSet<String> = steps(shown).map(|(_, line)| line).collect();
    loop {
        tokio::time::sleep(POLL).await;
        let answer = ask(arguments, client).await?;
        if printed.len() > MOST_PRINTED {
            printed = steps(&answer).map(|(_, line)| line).collect();
        }
        let mut new: Vec<(u64, String)> =
            steps(&answer).filter(|(_, line)| !printed.contains(line)).collect();
        new.sort();
        for (_, line) in new {
            println!("{line}");
            printed.insert(line);
        }
    }
}

/// Every step by itself, with the time at which it was taken.
fn steps(answer: &Value) -> impl Iterator<Item = (u64, String)> {
    answer["traces"].as_array().into_iter().flatten().flat_map(|trace| {
        let name = format!("{} {}", text(&trace["room"]), text(&trace["id"]));
        let steps = trace["steps"].as_array().into_iter().flatten();
        steps.map(move |step| {
            let at = step["at_us"].as_u64().unwrap_or(0);
            (at, format!("{} {name} {}", clock(at), line(trace, step)))
        })
    })
}

fn describe(answer: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for trace in answer["traces"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{} {} ({}) at {} by {}, trace {}",
            text(&trace["room"]),
            text(&trace["id"]),
            text(&trace["kind"]),
            clock(trace["received_us"].as_u64().unwrap_or(0)),
            text(&trace["way"]),
            text(&trace["trace_id"]),
        ));
        let steps = trace["steps"].as_array().into_iter().flatten();
        lines.extend(steps.map(|step| format!("  {}", line(trace, step))));
        if let Some(cut) = trace["steps_cut"].as_u64() {
            lines.push(format!("  and {cut} steps that were not kept"));
        }
    }
    for rule in answer["rules"].as_array().into_iter().flatten() {
        let id = rule["id"].as_str().map(|id| format!(" event {}", terminal::clean(id, 130)));
        let room =
            rule["room"].as_str().map(|room| format!(" room {}", terminal::clean(room, 130)));
        lines.push(format!(
            "followed:{}{} until {}, {} events more, by {}",
            id.unwrap_or_default(),
            room.unwrap_or_default(),
            clock(rule["until_ms"].as_u64().unwrap_or(0) * 1_000),
            rule["events_left"].as_u64().unwrap_or(0),
            text(&rule["by"]),
        ));
    }
    for shard in answer["silent_shards"].as_array().into_iter().flatten() {
        lines.push(format!("shard {}: does not answer", shard.as_u64().unwrap_or(0)));
    }
    lines
}

/// After how long, how long it took, what, where, and what is known of it.
fn line(trace: &Value, step: &Value) -> String {
    let micros = |value: &Value| value.as_u64().unwrap_or(0);
    let after = micros(&step["at_us"]).saturating_sub(micros(&trace["received_us"]));
    let took = micros(&step["at_us"]).saturating_sub(micros(&step["since_us"]));
    let mut line = format!(
        "{:>12.3} ms  {:<9} {:>10.3} ms  shard {}",
        after as f64 / 1e3,
        text(&step["step"]),
        took as f64 / 1e3,
        micros(&step["shard"]),
    );
    for (name, value) in step.as_object().into_iter().flatten() {
        if matches!(name.as_str(), "step" | "at_us" | "since_us" | "shard") {
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line += &format!("  {}={}", terminal::clean(name, 40), terminal::clean(&value, 130));
    }
    line
}

fn text(value: &Value) -> String {
    terminal::clean(value.as_str().unwrap_or("?"), 130)
}

/// Time of day, UTC, to the microsecond.
fn clock(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Value {
        json!({
            "traces": [{
                "room": "r", "id": "e\u{1b}1", "kind": "gift", "way": "http",
                "trace_id": "00ff", "received_us": 1_800_000_000_000_000_u64, "steps_cut": 3,
                "steps": [
                    {"step": "received", "at_us": 1_800_000_000_000_000_u64,
                     "since_us": 1_800_000_000_000_000_u64, "shard": 1, "way": "http"},
                    {"step": "numbered", "at_us": 1_800_000_000_001_500_u64,
                     "since_us": 1_800_000_000_001_000_u64, "shard": 0, "seq": 7},
                ],
            }],
            "rules": [{"room": "r", "until_ms": 1_800_000_060_000_u64, "events_left": 9, "by": "olga"}],
            "silent_shards": [2],
        })
    }

    #[test]
    fn a_trace_is_a_timeline() {
        let lines = describe(&answer());
        assert_eq!(lines[0], "r e\u{fffd}1 (gift) at 08:00:00.000000Z by http, trace 00ff");
        assert_eq!(lines[1], "         0.000 ms  received       0.000 ms  shard 1  way=http");
        assert_eq!(lines[2], "         1.500 ms  numbered       0.500 ms  shard 0  seq=7");
        assert_eq!(lines[3], "  and 3 steps that were not kept");
        assert_eq!(lines[4], "followed: room r until 08:01:00.000000Z, 9 events more, by olga");
        assert_eq!(lines[5], "shard 2: does not answer");
        assert!(describe(&json!("odd")).is_empty());
    }

    #[test]
    fn steps_stand_by_themselves_when_followed() {
        let answer = answer();
        let lines: Vec<_> = steps(&answer).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].1.starts_with("08:00:00.001500Z r e\u{fffd}1 "), "{lines:?}");
    }
}

//! A recorded room through the publisher API, to viewers that check that what
//! arrives equals what was accepted, and what merging saved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::fleet::{self, Fleet, Joined};
use crate::hist::Recorded;
use crate::http::Client;
use crate::ledger::{Balance, Ledger, Rules};
use crate::protocol::{Mode, Plan, Share, Stats};
use crate::publish::{Answer, EventResult};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Metrics, Server, ServerOptions};
use crate::trace::{self, TraceEvent};
use crate::viewer::marked_payload;
use crate::{sys, wsclient};

/// Viewers of every worker that record all they see.
const RECORDERS: u32 = 2;
/// One of so many viewers reads and checks everything.
const CHECK_EVERY: u32 = 50;
/// Events are collected for so long before they are posted together.
const TICK_US: u64 = 10_000;
/// Before the replay, so that no frame about people coming in is under way.
const SETTLE_US: u64 = 2_000_000;
/// How long the last events may take to arrive.
const TAIL_US: u64 = 20_000_000;

/// What to replay.
#[derive(Args, Debug, Clone)]
pub(crate) struct ReplayOptions {
    /// Trace: JSON lines, plain or gzip.
    file: PathBuf,
    /// Times as fast as recorded; `max`: as fast as accepted.
    #[arg(long, default_value = "1")]
    speed: String,
    /// Viewers of the room.
    #[arg(long, default_value_t = 500)]
    viewers: u32,
    /// Only these seconds of the trace, as START..END.
    #[arg(long)]
    window: Option<String>,
    /// Events per request at most.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Rule of a kind, where the server's configuration differs from its
    /// defaults, as NAME=LANE:MERGE[:user_key]; may be repeated.
    #[arg(long = "kind", value_name = "RULE")]
    kinds: Vec<String>,
    /// An important kind with `append`: for the marks before and after the trace.
    #[arg(long, default_value = "red_packet")]
    mark_kind: String,
    /// Viewers offer permessage-deflate.
    #[arg(long)]
    compress: bool,
    /// Worker processes; 0: as many as needed.
    #[arg(long, default_value_t = 0)]
    workers: u32,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct ReplayResult {
    viewers: u32,
    events: u64,
    accepted: u64,
    rejected: BTreeMap<String, u64>,
    not_sent: u64,
    spread: bool,
    seconds: f64,
    recorders: u64,
    balance: Balance,
    /// Streams of the other viewers that differ from each other.
    distinct_streams: u64,
    same_as_first: u64,
    stream_errors: u64,
    gaps: u64,
    frames: u64,
    writes: u64,
    writes_counted: bool,
    bytes: u64,
    naive_writes: u64,
    naive_bytes: u64,
    writes_saved: f64,
    bytes_saved: f64,
    restarts: u64,
    server_cpu_us: f64,
    age_ms: BTreeMap<u64, u64>,
}

/// The command.
pub(crate) fn command(options: &ReplayOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let mut rules = Rules::default();
    for rule in &options.kinds {
        rules.set(rule).map_err(anyhow::Error::msg)?;
    }
    let speed = match options.speed.as_str() {
        "max" => f64::INFINITY,
        text => text.trim_end_matches('x').parse().context("--speed")?,
    };
    if speed.is_nan() || speed <= 0.0 {
        bail!("--speed must be above 0");
    }
    let window = options.window.as_deref().map(parse_window).transpose()?;
    let trace = trace::read(&options.file, window)?;
    let mut server = Server::start(&options.server, options.viewers, deadline)?;
    let mut replay = Replay {
        options,
        speed,
        room: format!("lt-replay-{:x}", sys::mono_us()),
        client: server.publisher()?,
        ledger: Ledger::new(rules),
        naive: Naive::default(),
        result: ReplayResult {
            viewers: options.viewers,
            events: trace.events.len() as u64,
            spread: trace.spread,
            ..ReplayResult::default()
        },
        late: crate::hist::new(),
    };
    let workers = fleet::workers_for(options.viewers, options.workers, client_cpus.len());
    let outcome = replay.run(&server, &trace.events, workers, deadline, &mut progress);
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    outcome?;
    progress.end();
    replay.output()
}

fn parse_window(text: &str) -> Result<(f64, f64)> {
    let (from, to) = text.split_once("..").context("--window START..END")?;
    let window: (f64, f64) = (from.parse()?, to.parse()?);
    if window.0 >= window.1 {
        bail!("--window START..END");
    }
    Ok(window)
}

struct Replay<'a> {
    options: &'a ReplayOptions,
    speed: f64,
    room: String,
    client: Client,
    ledger: Ledger,
    naive: Naive,
    result: ReplayResult,
    late: hdrhistogram::Histogram<u64>,
}

/// One message per event per viewer: what merging is compared to.
#[derive(Default)]
struct Naive {
    frames: u64,
    bytes: u64,
}

impl Replay<'_> {
    fn run(
        &mut self,
        server: &Server,
        events: &[(u64, TraceEvent)],
        workers: u32,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<()> {
        progress.stage("replay: joining");
        let mut fleet = Fleet::start(&self.plan(server), workers, deadline)?;
        let joined: Joined = fleet.connect(deadline, progress)?;
        if joined.joined != self.options.viewers {
            bail!("{} of {} viewers: {:?}", joined.joined, self.options.viewers, joined.failed);
        }
        fleet.pump_for(SETTLE_US)?;
        let before = server.metrics();
        fleet.open_window(deadline)?;
        let cpu = server.pid().and_then(sys::cpu_ns).unwrap_or(0);
        let start = sys::mono_us();
        self.mark(0)?;
        progress.stage("replay");
        self.play(&mut fleet, events, deadline, progress)?;
        self.mark(1)?;
        let patience = sys::mono_us() + TAIL_US;
        while fleet.done(0) < 2 && sys::mono_us() < patience {
            progress.tell("waiting for the last events");
            fleet.pump(sys::mono_us() + 20_000)?;
        }
        self.result.seconds = (sys::mono_us() - start) as f64 / 1e6;
        let cpu = server.pid().and_then(sys::cpu_ns).unwrap_or(0).saturating_sub(cpu);
        self.result.server_cpu_us = cpu as f64 / 1e3;
        // The deadline ends the sending, not the check of what was sent.
        let stats = fleet.collect(true, deadline.extended())?;
        self.judge(&stats, &before, &server.metrics());
        Ok(())
    }

    fn plan(&self, server: &Server) -> Plan {
        Plan {
            addr: server.addr,
            mode: Mode::Viewer,
            source: [0, 0],
            rooms: vec![self.room.clone()],
            shares: vec![Share { room: 0, group: 0, count: self.options.viewers, slow: false }],
            check_every: CHECK_EVERY,
            recorders: RECORDERS,
            digest: true,
            compress: self.options.compress,
            connect_rate: 0,
            in_progress: 512,
            secret: server.secret.clone(),
            user: "viewer-".into(),
            nice: 0,
        }
    }

    /// An event of our own: 0 before the trace, 1 after it.
    fn mark(&mut self, n: u64) -> Result<()> {
        let payload = RawValue::from_string(marked_payload(0, n, sys::mono_us(), 0))?;
        let event = TraceEvent {
            t_ms: 0,
            kind: self.options.mark_kind.clone(),
            user: None,
            payload: Some(payload),
            key: None,
            amount: None,
        };
        let accepted = self.ledger.len();
        self.post(&[(format!("mark-{n}"), &event)])?;
        if self.ledger.len() == accepted {
            bail!("the server refuses our mark: {:?}", self.result.rejected);
        }
        Ok(())
    }

    fn play(
        &mut self,
        fleet: &mut Fleet,
        events: &[(u64, TraceEvent)],
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<()> {
        let start = sys::mono_us();
        let due = |us: u64| start + (us as f64 / self.speed) as u64;
        let due: Vec<u64> = events.iter().map(|(us, _)| due(*us)).collect();
        let mut next = 0;
        while next < events.len() {
            if deadline.left().is_zero() {
                self.result.not_sent = (events.len() - next) as u64;
                return Ok(());
            }
            let now = sys::mono_us();
            let ready = due[next..].iter().take_while(|due| **due <= now).count();
            if ready == 0 {
                let until = due[next].max(now + TICK_US);
                fleet.pump(until.min(now + 100_000))?;
                continue;
            }
            let count = ready.min(self.options.batch);
            let batch: Vec<(String, &TraceEvent)> = (next..next + count)
                .map(|index| (format!("e{index}"), &events[index].1))
                .collect();
            if self.speed.is_finite() {
                self.late.saturating_record(now - due[next]);
            }
            self.post(&batch)?;
            next += count;
            fleet.pump(0)?;
            progress.tell(&format!("{next} of {} events", events.len()));
        }
        Ok(())
    }

    fn post(&mut self, batch: &[(String, &TraceEvent)]) -> Result<()> {
        let bodies: Vec<String> = batch.iter().map(|(id, event)| body(id, event)).collect();
        let text = format!("{{\"events\":[{}]}}", bodies.join(","));
        let path = format!("/v1/rooms/{}/events", self.room);
        let (status, answer) = self.client.post(&path, text.as_bytes())?;
        let results = match status {
            200 => serde_json::from_slice::<Answer>(&answer).context("answer")?.results,
            // Refused whole: none of it was taken.
            429 | 503 => batch
                .iter()
                .map(|(id, _)| EventResult {
                    id: id.clone(),
                    status: "rejected".into(),
                    seq: None,
                    code: Some(format!("http_{status}")),
                })
                .collect(),
            _ => bail!("publishing: {status} {}", String::from_utf8_lossy(&answer)),
        };
        if results.len() != batch.len() {
            bail!("{} results for {} events", results.len(), batch.len());
        }
        for ((id, event), result) in batch.iter().zip(results) {
            if result.id != *id {
                bail!("result for {} where {id} was due", result.id);
            }
            if result.accepted() {
                self.ledger.accept(id, event, result.seq);
                self.naive.add(&self.room, id, event, result.seq);
            } else {
                let code = result.code.unwrap_or_else(|| "without a code".into());
                *self.result.rejected.entry(code).or_default() += 1;
            }
        }
        Ok(())
    }

    fn judge(&mut self, stats: &Stats, before: &Metrics, after: &Metrics) {
        let result = &mut self.result;
        let group = stats.groups.first().cloned().unwrap_or_default();
        result.accepted = self.ledger.len() as u64;
        result.recorders = stats.recordings.len() as u64;
        for (index, recording) in stats.recordings.iter().enumerate() {
            let mut balance = self.ledger.balance(recording);
            if index == 0 {
                result.restarts = recording.restarts;
                result.age_ms.clone_from(&recording.age_ms);
                result.balance = balance;
            } else {
                result.balance.error_count += balance.error_count;
                result.balance.errors.append(&mut balance.errors);
            }
        }
        if stats.recordings.is_empty() {
            result.balance.fail("no viewer recorded anything".into());
        }
        if group.viewers != u64::from(result.viewers) {
            result.balance.fail(format!("{} viewers are left: {:?}", group.viewers, stats.closed));
        }
        result.distinct_streams = stats.digests.len() as u64;
        result.same_as_first =
            stats.digests.iter().map(|(_, _, viewers)| *viewers).max().unwrap_or(0);
        result.stream_errors = stats.error_count;
        result.balance.errors.extend(stats.errors.iter().cloned());
        result.gaps = group.gaps;
        result.frames = group.frames;
        let writes = after.growth(before, "tidegate_socket_writes_total");
        result.writes_counted = writes.is_some();
        result.writes = writes.map_or(group.frames, |writes| writes as u64);
        result.bytes = group.bytes;
        let viewers = u64::from(result.viewers);
        result.naive_writes = self.naive.frames * viewers;
        result.naive_bytes = self.naive.bytes * viewers;
        result.writes_saved = result.naive_writes as f64 / result.writes.max(1) as f64;
        result.bytes_saved = result.naive_bytes as f64 / result.bytes.max(1) as f64;
    }

    fn output(self) -> Result<()> {
        let result = &self.result;
        let mut output = Output::new("replay");
        let speed = if self.speed.is_finite() {
            format!("{} times as recorded", self.speed)
        } else {
            "as fast as accepted".into()
        };
        let spread =
            if result.spread { "; stamps of 1 s, events spread over their second" } else { "" };
        let mut events = Section::new("replay")
            .line("trace", format!("{}, {speed}{spread}", self.options.file.display()))
            .line(
                "events",
                format!(
                    "{} in {:.1} s; {} accepted with 2 marks of ours",
                    result.events, result.seconds, result.accepted
                ),
            );
        for (code, count) in &result.rejected {
            events = events.line("rejected", format!("{count}: {code}"));
        }
        if result.not_sent > 0 {
            events =
                events.line("NOT SENT", format!("{}: --max-seconds was over", result.not_sent));
        }
        events = events.line("publisher", format!("late by {}", Recorded::of(&self.late).summary()));
        output.print(events);
        output.print(balance_section(result));
        output.print(check_section(result));
        output.print(saved_section(result));
        let ok = result.balance.error_count + result.stream_errors == 0
            && result.same_as_first == u64::from(result.viewers);
        output.figure("accepted", result.accepted as f64);
        output.figure("errors", (result.balance.error_count + result.stream_errors) as f64);
        output.figure("balanced", f64::from(u8::from(ok)));
        output.figure("writes_saved", result.writes_saved);
        output.figure("bytes_saved", result.bytes_saved);
        output.figure("server_cpu_us_per_write", result.server_cpu_us / result.writes.max(1) as f64);
        output.attach("result", result)?;
        output.finish(&self.options.run)?;
        if !ok {
            bail!("the replay does not balance");
        }
        Ok(())
    }
}

fn balance_section(result: &ReplayResult) -> Section {
    let mut section = Section::new("accepted = delivered + merged + dropped (+ gaps of the viewer)");
    let mut sum = crate::ledger::KindBalance::default();
    for (kind, line) in &result.balance.kinds {
        sum.accepted += line.accepted;
        sum.delivered += line.delivered;
        sum.merged += line.merged;
        sum.dropped += line.dropped;
        sum.gap += line.gap;
        section = section.line(kind, balance_line(line));
    }
    section.line("all", balance_line(&sum))
}

fn balance_line(line: &crate::ledger::KindBalance) -> String {
    format!(
        "{:>7} = {:>7} + {:>7} + {:>7} (+ {})",
        line.accepted, line.delivered, line.merged, line.dropped, line.gap
    )
}

fn check_section(result: &ReplayResult) -> Section {
    let mut section = Section::new("check")
        .line(
            "recorders",
            format!(
                "{} viewers compared in full, {} sums to the unit ({} combos began anew)",
                result.recorders, result.balance.sums, result.restarts
            ),
        )
        .line(
            "all viewers",
            format!(
                "{} of {} received the same stream, byte for byte; {} distinct",
                result.same_as_first, result.viewers, result.distinct_streams
            ),
        )
        .line(
            "errors",
            format!(
                "{} in the balance, {} in streams, {} gap notices",
                result.balance.error_count, result.stream_errors, result.gaps
            ),
        )
        .line("age", format!("from acceptance to arrival: {}", ages(&result.age_ms)));
    for error in &result.balance.errors {
        section = section.line("ERROR", error.clone());
    }
    section
}

fn ages(age_ms: &BTreeMap<u64, u64>) -> String {
    let mut histogram = crate::hist::new();
    for (ms, count) in age_ms {
        histogram.saturating_record_n(ms * 1_000, *count);
    }
    Recorded::of(&histogram).summary().to_string()
}

fn saved_section(result: &ReplayResult) -> Section {
    let source = if result.writes_counted { "counted by the server" } else { "frames received" };
    Section::new("against one message per event per viewer")
        .line(
            "socket writes",
            format!(
                "{} ({source}) instead of {}: {:.1} times fewer",
                result.writes, result.naive_writes, result.writes_saved
            ),
        )
        .line(
            "bytes",
            format!(
                "{} instead of {}: {:.1} times fewer",
                result.bytes, result.naive_bytes, result.bytes_saved
            ),
        )
        .line(
            "processor",
            format!("{:.1} µs per socket write", result.server_cpu_us / result.writes.max(1) as f64),
        )
}

impl Naive {
    /// The frame with this one event, in the shape of the JSON subprotocol.
    fn add(&mut self, room: &str, id: &str, event: &TraceEvent, seq: Option<u64>) {
        let numbers = seq.map_or_else(String::new, |seq| format!("\"seq\":{seq},"));
        let seq = seq.unwrap_or_default();
        let user = event.user.as_deref().unwrap_or_default();
        let mut text = format!(
            "{{\"frame\":{{\"room\":\"{room}\",\"epoch\":1234567890123,\"first_seq\":{seq},\
             \"last_seq\":{seq},\"important\":1,\"time_ms\":1234567890123,\"events\":[{{\
             \"id\":\"{id}\",\"kind\":\"{}\",\"user\":\"{user}\",{numbers}\"payload\":{},\
             \"time_ms\":1234567890123}}],\"totals\":[]}}}}",
            event.kind,
            event.payload.as_ref().map_or("null", |payload| payload.get())
        )
        .len();
        text += event.key.as_ref().map_or(0, |key| key.len() + ",\"key\":\"\"".len());
        text += event.amount.map_or(0, |n| n.to_string().len() + ",\"amount\":".len());
        self.frames += 1;
        self.bytes += (text + wsclient::server_header_bytes(text)) as u64;
    }
}

/// An event as the publisher API takes it.
fn body(id: &str, event: &TraceEvent) -> String {
    let text = |name: &str, value: &Option<String>| {
        value.as_ref().map_or_else(String::new, |value| {
            format!(",\"{name}\":{}", serde_json::Value::from(value.as_str()))
        })
    };
    format!(
        "{{\"id\":\"{id}\",\"kind\":{}{}{}{},\"payload\":{}}}",
        serde_json::Value::from(event.kind.as_str()),
        text("user", &event.user),
        text("key", &event.key),
        event.amount.map_or_else(String::new, |amount| format!(",\"amount\":{amount}")),
        event.payload.as_ref().map_or("null", |payload| payload.get())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_and_keep_the_payload_as_written() {
        let line = r#"{"t_ms":0,"kind":"gift","user":"a\"b","payload":{"x": 1.0},"key":"k","amount":2}"#;
        let event: TraceEvent = serde_json::from_str(line).unwrap();
        let body = body("e1", &event);
        assert!(body.contains(r#""payload":{"x": 1.0}"#));
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["user"], "a\"b");
        assert_eq!((&value["amount"], &value["key"]), (&2.into(), &"k".into()));
    }

    #[test]
    fn windows_are_read() {
        assert_eq!(parse_window("10..20.5").unwrap(), (10.0, 20.5));
        assert!(parse_window("20..10").is_err() && parse_window("x").is_err());
    }
}

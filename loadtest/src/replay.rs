//! A recorded room through the publisher API, to viewers that check that what
//! arrives equals what was accepted, and what merging saved.

mod result;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::value::RawValue;

use self::result::{Naive, ReplayResult, age_curve, balance_section, check_section, saved_section};
use crate::drive::Sampler;
use crate::fleet::{self, Fleet, Joined};
use crate::hist::Recorded;
use crate::http::Client;
use crate::ledger::{Ledger, Rules};
use crate::protocol::{Mode, Plan, Share, Stats};
use crate::publish::{Answer, EventResult};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Metrics, Server, ServerOptions};
use crate::sys;
use crate::trace::{self, TraceEvent};
use crate::transport::Wire;
use crate::viewer::marked_payload;

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
        sampler: Sampler::new(server.pid()),
    };
    let workers =
        fleet::workers_for(options.viewers, options.viewers, options.workers, client_cpus.len());
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
    sampler: Sampler,
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
            wire: Wire::default(),
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
            priority: 0,
            patient: false,
            rush: false,
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
            self.sampler.sample(start);
            let ready = due[next..].iter().take_while(|due| **due <= now).count();
            if ready == 0 {
                let until = due[next].max(now + TICK_US);
                fleet.pump(until.min(now + 100_000))?;
                continue;
            }
            let count = ready.min(self.options.batch);
            let batch: Vec<(String, &TraceEvent)> =
                (next..next + count).map(|index| (format!("e{index}"), &events[index].1)).collect();
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
        events =
            events.line("publisher", format!("late by {}", Recorded::of(&self.late).summary()));
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
        output
            .figure("server_cpu_us_per_write", result.server_cpu_us / result.writes.max(1) as f64);
        output.plots("replay", &self.sampler.series, &age_curve(&result.age_ms));
        output.attach("result", result)?;
        output.finish(&self.options.run)?;
        if !ok {
            bail!("the replay does not balance");
        }
        Ok(())
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
        let line =
            r#"{"t_ms":0,"kind":"gift","user":"a\"b","payload":{"x": 1.0},"key":"k","amount":2}"#;
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

//! A storm of QUIC handshakes, without and with address validation by Retry
//! (RFC 9000, section 8.1), and what it costs the server and the viewers who
//! are there; on demand beside the same storm over WebSocket.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::hist::median;
use crate::joins::{self, JoinsOptions, JoinsResult};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress};
use crate::sys;
use crate::transport::Transport;

/// Handshakes under way at which nobody is asked to prove an address.
const NEVER: &str = "quic.retry_above=1000000";
/// At which everybody is.
const ALWAYS: &str = "quic.retry_above=0";

/// What to measure.
#[derive(Args, Debug, Clone)]
#[command(mut_arg("viewers", |viewers| viewers.default_value("10000")))]
pub(crate) struct HandshakesOptions {
    /// Rounds of each kind; medians count.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// The same storm over these, too.
    #[arg(long, value_enum, value_delimiter = ',')]
    beside: Vec<Transport>,
    #[command(flatten)]
    storm: JoinsOptions,
}

/// A figure of a storm.
type Figure = fn(&JoinsResult) -> f64;

/// One round.
#[derive(Debug, Serialize)]
struct Round {
    name: &'static str,
    result: JoinsResult,
}

/// The command.
pub(crate) fn command(options: &HandshakesOptions) -> Result<()> {
    let deadline = Deadline::arm(options.storm.run.max_seconds);
    let mut progress = Progress::new(options.storm.run.quiet);
    let (_, client_cpus) = options.storm.server.processors()?;
    sys::pin(&client_cpus)?;
    let mut kinds: Vec<(&'static str, Transport, Option<&str>)> =
        options.beside.iter().map(|&transport| (transport.name(), transport, None)).collect();
    kinds.push(("quic", Transport::Quic, Some(NEVER)));
    kinds.push(("quic_retry", Transport::Quic, Some(ALWAYS)));
    let mut rounds = Vec::new();
    for _ in 0..options.repeat.max(1) {
        for &(name, transport, setting) in &kinds {
            let mut storm = options.storm.clone();
            storm.transport = transport;
            if let Some(setting) = setting {
                storm.server = storm.server.with(setting);
            }
            progress.stage(&format!("handshakes, {name}"));
            let result = joins::round(&storm, deadline, &mut progress)?;
            rounds.push(Round { name, result });
        }
    }
    progress.end();
    output(options, &rounds)
}

fn output(options: &HandshakesOptions, rounds: &[Round]) -> Result<()> {
    let mut output = Output::new("handshakes");
    for round in rounds {
        output.print(joins::section(&round.result, &format!("storm, {}", round.name)));
        joins::print_rooms(&mut output, &round.result);
    }
    let mut names: Vec<&'static str> = Vec::new();
    for round in rounds {
        if !names.contains(&round.name) {
            names.push(round.name);
        }
    }
    let figures: [(&str, Figure); 7] = [
        ("joined", |result| f64::from(result.joined)),
        ("per_second", |result| result.joins_per_second),
        ("server_cpu_us_each", |result| result.server_cpu_us_per_join),
        ("joined_p50_ms", |result| result.join_latency.p50_ms),
        ("joined_p99_ms", |result| result.join_latency.p99_ms),
        ("room_p99_before_ms", |result| result.room_before.latency.p99_ms),
        ("room_p99_during_ms", |result| result.room_during.latency.p99_ms),
    ];
    for name in names {
        let mine = || rounds.iter().filter(|round| round.name == name).map(|round| &round.result);
        let mut section = Section::new(&format!("{name}, median of rounds"));
        for (figure, of) in figures {
            let value = median(&mine().map(of).collect::<Vec<_>>());
            section = section.line(figure, format!("{value:.2}"));
            output.figure(&format!("{name}_{figure}"), value);
        }
        let lost: u64 =
            mine().map(|result| result.room_before.lost + result.room_during.lost).sum();
        output.figure(&format!("{name}_room_lost"), lost as f64);
        section = section.line("room, lost", lost.to_string());
        // What the server counted tells whether Retry was used at all.
        let mut counted: BTreeMap<&str, f64> = BTreeMap::new();
        for (metric, grown) in mine().flat_map(|result| &result.counted) {
            *counted.entry(metric).or_default() += grown;
        }
        for (metric, grown) in counted.iter().filter(|(metric, _)| metric.contains("retr")) {
            section = section.line("counted", format!("{metric} {grown}"));
        }
        output.print(section);
    }
    output.attach("rounds", rounds)?;
    output.finish(&options.storm.run)
}

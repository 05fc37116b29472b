//! Rounds in relation to one another: medians by transport, and their ratios.

use super::result::FanoutResult;
use crate::hist::median;
use crate::report::{Output, Section};
use crate::transport::Transport;

/// A figure of a round.
type Figure = fn(&FanoutResult) -> f64;

/// Figures of which the median counts.
const MEDIANS: [(&str, Figure); 10] = [
    ("cpu_us_per_delivery", |round| round.window.cpu_us_per_delivery),
    ("cpu_us_per_write", |round| round.window.cpu_us_per_write),
    ("deliveries_per_second", |round| round.window.deliveries_per_second),
    ("writes_per_second", |round| round.window.writes_per_second),
    ("p50_ms", |round| round.window.latency.p50_ms),
    ("p99_ms", |round| round.window.latency.p99_ms),
    ("p999_ms", |round| round.window.latency.p999_ms),
    ("max_ms", |round| round.window.latency.max_ms),
    ("bytes_per_viewer", |round| round.memory.map_or(f64::NAN, |memory| memory.bytes_per_viewer)),
    ("client_bytes_per_viewer", |round| round.client_bytes_per_viewer),
];

/// Figures that are added up.
const SUMS: [(&str, Figure); 3] = [
    ("lost", |round| round.window.lost as f64),
    ("duplicated", |round| round.window.duplicated as f64),
    ("errors", |round| round.window.errors as f64),
];

/// What is set against each other.
const COMPARED: [&str; 4] = ["cpu_us_per_delivery", "p50_ms", "p99_ms", "bytes_per_viewer"];

/// All figures of one transport's rounds, by name.
pub(super) fn figures(rounds: &[FanoutResult], transport: Transport) -> Vec<(&'static str, f64)> {
    let of = |figure: Figure| -> Vec<f64> {
        let mine = rounds.iter().filter(|round| round.transport == transport);
        mine.map(figure).filter(|value| !value.is_nan()).collect()
    };
    let medians = MEDIANS.iter().map(|&(name, figure)| (name, median(&of(figure))));
    let sums = SUMS.iter().map(|&(name, figure)| (name, of(figure).iter().sum()));
    medians.chain(sums).collect()
}

/// Medians of each transport, and the ratios of each round's neighbours: what
/// drifts from minute to minute drifts for both.
pub(super) fn against_each_other(
    output: &mut Output,
    rounds: &[FanoutResult],
    transports: &[Transport],
) {
    for &transport in transports {
        let figures = figures(rounds, transport);
        let mut section = Section::new(&format!("{}, median of rounds", transport.name()));
        for (name, value) in figures {
            output.figure(&format!("{}_{name}", transport.name()), value);
            section = section.line(name, format!("{value:.2}"));
        }
        output.print(section);
    }
    for (index, &upper) in transports.iter().enumerate() {
        for &lower in &transports[..index] {
            let title = format!("{} in relation to {}", upper.name(), lower.name());
            let mut section = Section::new(&format!("{title} (median of the rounds' ratios)"));
            for (name, figure) in MEDIANS.iter().filter(|(name, _)| COMPARED.contains(name)) {
                let ratios = ratios(rounds, transports.len(), upper, lower, *figure);
                let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
                let middle = median(&ratios);
                section = section.line(name, format!("{middle:.2} times ({})", each.join(", ")));
                let figure = format!("{}_over_{}_{name}", upper.name(), lower.name());
                output.figure(&figure, middle);
            }
            output.print(section);
        }
    }
}

fn ratios(
    rounds: &[FanoutResult],
    per_round: usize,
    upper: Transport,
    lower: Transport,
    figure: Figure,
) -> Vec<f64> {
    let value = |round: &[FanoutResult], transport: Transport| {
        round.iter().find(|one| one.transport == transport).map(figure)
    };
    let ratios = rounds.chunks(per_round).filter_map(|round| {
        let (upper, lower) = (value(round, upper)?, value(round, lower)?);
        Some(upper / lower)
    });
    ratios.filter(|ratio| ratio.is_finite()).collect()
}

//! A page complete in itself: sections as tables, windows as SVG plots.

use std::fmt::Write as _;

use crate::report::{Plots, Section};
use crate::sys::Machine;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 26.0;
const TOP: f64 = 8.0;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1020px;margin:2em auto;\
padding:0 1em;color:#1b2530;background:#fbfbf9}h1{font-size:1.5em;margin-bottom:.2em}\
h2{font-size:1.1em;margin:1.6em 0 .4em}code{font-size:.85em;word-break:break-all}\
table{border-collapse:collapse;width:100%}td{padding:.2em .8em .2em 0;vertical-align:top;\
border-bottom:1px solid #e4e4dd}td:first-child{white-space:nowrap;color:#5b6670;width:9em}\
.plots{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0}figcaption{color:#5b6670;\
font-size:.85em}svg{background:#fff;border:1px solid #e4e4dd}svg text{font:11px system-ui;\
fill:#5b6670}.grid{stroke:#eceae4}.line{fill:none;stroke:#0b6e79;stroke-width:1.6}\
@media(prefers-color-scheme:dark){body,svg{background:#14181c;color:#dde3e8}\
td,svg{border-color:#2b3238}.grid{stroke:#262d33}.line{stroke:#4cc3cf}}";

/// The whole page.
pub(crate) fn page(
    command_line: &str,
    machine: &Machine,
    sections: &[Section],
    plots: &[Plots],
) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Tidegate loadtest</title><style>{STYLE}</style><h1>Tidegate loadtest</h1>\
         <p><code>{}</code></p><p>{}, {} processors, {} MiB, Linux {}, load average {}</p>",
        escape(command_line),
        escape(&machine.cpu),
        machine.processors,
        machine.memory_mib,
        escape(&machine.kernel),
        escape(&machine.load_average)
    );
    for section in sections {
        let (title, lines) = section.parts();
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "<h2>{}</h2><table>", escape(title));
        for (name, text) in lines {
            let _ = write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(text));
        }
        out.push_str("</table>");
    }
    for one in plots {
        let _ = write!(out, "<h2>{}</h2><div class=\"plots\">", escape(&one.title));
        out.push_str(&curve(&one.curve));
        out.push_str(&plot("deliveries per second", "s", &one.series.deliveries));
        out.push_str(&plot("server: processors busy", "s", &one.series.cpu));
        out.push_str(&plot("server: resident MiB", "s", &one.series.memory));
        out.push_str("</div>");
    }
    out
}

/// Latency against percentile, the axis stretched towards 100 %.
fn curve(points: &[(f64, f64)]) -> String {
    let stretched: Vec<(f64, f64)> = points
        .iter()
        .filter(|(quantile, _)| *quantile < 1.0)
        .map(|&(quantile, ms)| (-(1.0 - quantile).log10(), ms))
        .collect();
    let ticks =
        [(0.0, "0"), (1.0, "90 %"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99"), (5.0, "99.999")]
            .map(|(at, label)| (at, label.to_owned()));
    draw("latency in ms by percentile", &stretched, &ticks)
}

fn plot(title: &str, unit: &str, points: &[(f64, f64)]) -> String {
    let last = points.last().map_or(0.0, |point| point.0);
    let step = nice(last / 5.0);
    let ticks: Vec<(f64, String)> = (0..=6)
        .map(|index| f64::from(index) * step)
        .filter(|at| *at <= last)
        .map(|at| (at, format!("{} {unit}", number(at))))
        .collect();
    draw(title, points, &ticks)
}

fn draw(title: &str, points: &[(f64, f64)], x_ticks: &[(f64, String)]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let x_max = points.iter().map(|point| point.0).fold(1e-9, f64::max);
    let y_step = nice(points.iter().map(|point| point.1).fold(1e-9, f64::max) / 4.0);
    let y_max =
        (points.iter().map(|point| point.1).fold(0.0, f64::max) / y_step).ceil().max(1.0) * y_step;
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - 10.0);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<figure><figcaption>{}</figcaption><svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">",
        escape(title)
    );
    let mut level = 0.0;
    while level <= y_max * 1.001 {
        let (at, label) = (y(level), number(level));
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            at + 4.0
        );
        level += y_step;
    }
    for (value, label) in x_ticks.iter().filter(|(value, _)| *value <= x_max) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(*value),
            HEIGHT - 8.0,
            escape(label)
        );
    }
    let path: Vec<String> =
        points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect();
    let _ = write!(out, "<polyline class=\"line\" points=\"{}\"/></svg></figure>", path.join(" "));
    out
}

/// 1, 2 or 5 times a power of ten, at least `value`.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= value).unwrap_or(10.0);
    factor * power
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::Series;

    #[test]
    fn a_page_loads_nothing_and_injects_nothing() {
        let section = Section::new("<script>").line("a", "b & c");
        let series = Series { deliveries: vec![(0.0, 1.0), (1.0, 2.0)], ..Series::default() };
        let plots = Plots { title: "w".into(), series, curve: vec![(0.0, 1.0), (0.99, 3.0)] };
        let page = page("loadtest --x '<'", &Machine::default(), &[section], &[plots]);
        assert!(!page.contains("<script") && !page.contains("http"));
        assert!(page.contains("b &amp; c"));
        assert_eq!(page.matches("<polyline").count(), 2);
    }

    #[test]
    fn steps_are_round() {
        for (value, step) in [(0.3, 0.5), (1.0, 1.0), (17.0, 20.0), (99.0, 100.0)] {
            assert!((nice(value) - step).abs() < 1e-9, "{value}");
        }
    }
}

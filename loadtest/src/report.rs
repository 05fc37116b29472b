//! What a run says: text for people, JSON for machines, a page with plots.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::drive::Series;
use crate::html;
use crate::run::RunOptions;
use crate::sys;

/// A titled list of lines.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Section {
    title: String,
    lines: Vec<(String, String)>,
}

impl Section {
    /// With no lines yet.
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), lines: Vec::new() }
    }

    /// One more line.
    pub(crate) fn line(mut self, name: &str, text: impl Into<String>) -> Self {
        self.lines.push((name.to_owned(), text.into()));
        self
    }

    /// For a terminal.
    fn text(&self) -> String {
        let mut out = format!("\n{}\n", self.title);
        for (name, text) in &self.lines {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {name:<14} {text}");
        }
        out
    }
}

/// The plots of one measured window.
#[derive(Debug, Clone)]
pub(crate) struct Plots {
    /// What was measured.
    pub(crate) title: String,
    /// Over time.
    pub(crate) series: Series,
    /// Percentile curve: (quantile, ms).
    pub(crate) curve: Vec<(f64, f64)>,
}

/// A run's results.
pub(crate) struct Output {
    command: &'static str,
    machine: sys::Machine,
    sections: Vec<Section>,
    figures: Map<String, Value>,
    attachments: Map<String, Value>,
    plots: Vec<Plots>,
}

impl Output {
    /// Of a command.
    pub(crate) fn new(command: &'static str) -> Self {
        Self {
            command,
            machine: sys::machine(),
            sections: Vec::new(),
            figures: Map::new(),
            attachments: Map::new(),
            plots: Vec::new(),
        }
    }

    /// Prints a section, and keeps it for the page.
    pub(crate) fn print(&mut self, section: Section) {
        print!("{}", section.text());
        self.sections.push(section);
    }

    /// One headline figure, for `compare`.
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), json!(value));
    }

    /// Everything else, for machines.
    pub(crate) fn attach(&mut self, name: &str, value: impl Serialize) -> Result<()> {
        self.attachments.insert(name.to_owned(), serde_json::to_value(value)?);
        Ok(())
    }

    /// Plots for the page.
    pub(crate) fn plots(&mut self, title: &str, series: &Series, curve: &[(f64, f64)]) {
        let number = self.plots.iter().filter(|plots| plots.title.starts_with(title)).count() + 1;
        self.plots.push(Plots {
            title: format!("{title} {number}"),
            series: series.clone(),
            curve: curve.to_vec(),
        });
    }

    /// Writes the files that were asked for.
    pub(crate) fn finish(self, options: &RunOptions) -> Result<()> {
        let machine = &self.machine;
        println!(
            "\nmachine: {}, {} processors, {} MiB, Linux {}, load {}",
            machine.cpu,
            machine.processors,
            machine.memory_mib,
            machine.kernel,
            machine.load_average
        );
        let command_line: Vec<String> = std::env::args().collect();
        if let Some(path) = &options.json {
            let document = json!({
                "tool": "tidegate loadtest",
                "version": env!("CARGO_PKG_VERSION"),
                "command": self.command,
                "command_line": command_line,
                "finished_at": sys::wall_secs(),
                "machine": self.machine,
                "figures": self.figures,
                "results": self.attachments,
            });
            fs::write(path, serde_json::to_vec_pretty(&document)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &options.html {
            let page = html::page(&command_line.join(" "), machine, &self.sections, &self.plots);
            fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

impl Section {
    /// Title and lines, for the page.
    pub(crate) fn parts(&self) -> (&str, &[(String, String)]) {
        (&self.title, &self.lines)
    }
}

/// Prints the ratios of two runs' headline figures.
pub(crate) fn compare(first: &std::path::Path, second: &std::path::Path) -> Result<()> {
    let figures = |path: &std::path::Path| -> Result<(String, Map<String, Value>)> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let document: Value = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a result file", path.display()))?;
        let figures = document["figures"].as_object().cloned().unwrap_or_default();
        Ok((document["command"].as_str().unwrap_or_default().to_owned(), figures))
    };
    let ((one_command, one), (two_command, two)) = (figures(first)?, figures(second)?);
    if one_command != two_command {
        println!("note: {one_command} against {two_command}");
    }
    println!("{:<26} {:>14} {:>14} {:>8}", "", "A", "B", "B/A");
    for (name, a) in &one {
        let (Some(a), Some(b)) = (a.as_f64(), two.get(name).and_then(Value::as_f64)) else {
            continue;
        };
        let ratio = if a == 0.0 { "-".to_owned() } else { format!("{:.3}", b / a) };
        println!("{name:<26} {a:>14.3} {b:>14.3} {ratio:>8}");
    }
    Ok(())
}

//! What every command shares: an end in time, a progress line, an output.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

/// How long the guard waits for the orderly end before it ends the process.
const GUARD: Duration = Duration::from_secs(20);

/// Where results go, and how long a run may take.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunOptions {
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots, complete in one file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// The whole run ends by itself after so many seconds.
    #[arg(long, default_value_t = 300)]
    pub(crate) max_seconds: u64,
    /// No progress line.
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// When the run must be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// `seconds` from now; arms a guard that ends the process, and with it every
    /// child, if the run does not end by itself.
    pub(crate) fn arm(seconds: u64) -> Self {
        let limit = Duration::from_secs(seconds);
        // The load average is of interest before we make a load.
        crate::sys::machine();
        std::thread::spawn(move || {
            std::thread::sleep(limit + GUARD);
            let _ = writeln!(std::io::stderr(), "\nthe run did not end in time: ended");
            std::process::exit(3);
        });
        Self(Instant::now() + limit)
    }

    /// A little longer, for what must follow the end in time; the guard still holds.
    pub(crate) fn extended(self) -> Self {
        Self(self.0.max(Instant::now()) + GUARD / 2)
    }

    /// This one, or so many seconds from now if that is earlier.
    pub(crate) fn within(self, seconds: u64) -> Self {
        Self(self.0.min(Instant::now() + Duration::from_secs(seconds)))
    }

    /// An error if time is over.
    pub(crate) fn check(self, doing: &str) -> Result<()> {
        if self.left().is_zero() {
            bail!("--max-seconds is over while {doing}");
        }
        Ok(())
    }

    /// Time left.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// One line on stderr that says how far the run is.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    label: String,
    told: Option<Instant>,
    width: usize,
}

impl Progress {
    /// On stderr, unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { quiet, terminal, label: String::new(), told: None, width: 0 }
    }

    /// What is going on from now on.
    pub(crate) fn stage(&mut self, label: &str) {
        label.clone_into(&mut self.label);
        self.told = None;
        self.tell("");
    }

    /// News; shown now and then.
    pub(crate) fn tell(&mut self, news: &str) {
        let pause = if self.terminal { 200 } else { 5_000 };
        let shown_lately =
            self.told.is_some_and(|told| told.elapsed() < Duration::from_millis(pause));
        if self.quiet || shown_lately {
            return;
        }
        self.told = Some(Instant::now());
        let line =
            if news.is_empty() { self.label.clone() } else { format!("{}: {news}", self.label) };
        let mut stderr = std::io::stderr().lock();
        // Progress that cannot be shown is not worth failing for.
        let _ = if self.terminal {
            let width = self.width;
            write!(stderr, "\r{line:width$}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{line}")
        };
        self.width = line.chars().count();
    }

    /// Ends the line.
    pub(crate) fn end(&mut self) {
        if !self.quiet && self.terminal && self.width > 0 {
            let width = self.width;
            let _ = write!(std::io::stderr(), "\r{:width$}\r", "");
            self.width = 0;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

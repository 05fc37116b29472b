//! Overload control in virtual time: the experiment of the DAGOR paper (SoCC
//! 2018, section 5), with several laws side by side and the engine's own code
//! among them. docs/overload-simulation.md defines every figure.
//!
//! [`scenario`] says what happens, [`traffic`] and [`world`] make it happen,
//! [`controller`] and [`upstream`] hold what is compared, [`tally`] counts,
//! [`optimum`] is what it is held against, [`table`] and [`marks`] report.

mod controller;
mod marks;
mod optimum;
mod plot;
mod pool;
mod scenario;
mod table;
mod tally;
mod traffic;
mod upstream;
mod world;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use controller::Kind;
use scenario::{Arrivals, Balance, MS, Scenario, Service};

/// What to simulate.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Simulation")]
pub(crate) struct Options {
    /// Hold our law to its marks, or the first of --laws, instead of comparing.
    #[arg(long)]
    marks: bool,
    /// With --marks: show every point, not only those that fail.
    #[arg(long)]
    points: bool,
    /// Laws to compare; all by default.
    #[arg(long, value_delimiter = ',')]
    laws: Vec<Kind>,
    /// Steady loads, relative to capacity.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.9,1,1.5,2,3,5,10")]
    loads: Vec<f64>,
    /// Runs per point, each with its own seed; 3 for the table, 30 for the marks.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds before the measured window of a steady load. DAGOR as published
    /// takes 36 to come down from ten times its capacity.
    #[arg(long, default_value_t = 40)]
    warm_seconds: u64,
    /// Seconds of the measured window of a steady load, 20 by default; against a
    /// real server of every phase, 60 by default.
    #[arg(long)]
    pub(crate) seconds: Option<u64>,
    /// Distribution of service times.
    #[arg(long, value_enum, default_value_t = Service::Exponential)]
    service: Service,
    /// Arrivals of tasks.
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    arrivals: Arrivals,
    /// How an upstream machine picks a server.
    #[arg(long, value_enum, default_value_t = Balance::Least)]
    balance: Balance,
    /// Milliseconds until a level takes hold upstream.
    #[arg(long, default_value_t = 1)]
    propagation_ms: u64,
    /// What a refusal costs, in percent of a mean service.
    #[arg(long, default_value_t = 0.0)]
    refusal_percent: f64,
    /// The upstream pays no attention to levels.
    #[arg(long)]
    no_collaboration: bool,
    /// Rooms that the users are in.
    #[arg(long, default_value_t = 1)]
    rooms: u32,
    /// Share of users who resend at once, ignore levels and start again.
    #[arg(long, default_value_t = 0.0)]
    aggressive: f64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

impl Options {
    fn laws(&self) -> &[Kind] {
        if self.laws.is_empty() { &Kind::ALL } else { &self.laws }
    }

    /// The measured window of a steady load.
    fn window_seconds(&self) -> u64 {
        self.seconds.unwrap_or(20)
    }

    /// The law that the marks are taken of.
    fn judged(&self) -> Kind {
        self.laws.first().copied().unwrap_or(Kind::Tidegate)
    }

    /// What the command line says of everything that is simulated.
    fn shape(&self, scenario: Scenario) -> Scenario {
        Scenario {
            service: self.service,
            arrivals: self.arrivals,
            balance: self.balance,
            propagation: self.propagation_ms * MS,
            refusal_cost: self.refusal_percent / 100.0,
            collaborate: !self.no_collaboration,
            rooms: self.rooms,
            aggressive: self.aggressive,
            ..scenario
        }
    }

    fn check(&self) -> Result<()> {
        if self.loads.iter().any(|load| !(*load > 0.0 && *load <= 100.0)) {
            bail!("--loads: above 0 and at most 100 times the capacity");
        }
        if !(0.0..=100.0).contains(&self.refusal_percent) {
            bail!("--refusal-percent: 0 to 100");
        }
        if !(0.0..=1.0).contains(&self.aggressive) {
            bail!("--aggressive: 0 to 1");
        }
        if self.rooms == 0 || self.seeds == Some(0) || self.seconds == Some(0) {
            bail!("--rooms, --seeds and --seconds: at least 1");
        }
        Ok(())
    }
}

/// Where results go beside the terminal.
#[derive(Args, Debug, Clone)]
pub(crate) struct Destination {
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write figures as SVG into this directory; not with --marks.
    #[arg(long, value_name = "DIR", conflicts_with = "marks")]
    plots: Option<PathBuf>,
}

/// Runs the simulation and prints what came of it.
pub(crate) fn command(options: &Options, destination: &Destination) -> Result<()> {
    options.check()?;
    let results = if options.marks {
        let cases = marks::all(options, marks::FULL);
        let outcomes = marks::run(options, &cases, options.seeds.unwrap_or(30));
        print!("{}", marks::text(&outcomes, options.points));
        json!({ "marks": outcomes })
    } else {
        let rows = table::run(options);
        print!("{}", table::text(&rows, options));
        if let Some(directory) = &destination.plots {
            plot::write(directory, &rows, options)?;
        }
        json!({ "rows": rows })
    };
    if let Some(file) = &destination.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The middle value; of an even number the mean of the two in the middle.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

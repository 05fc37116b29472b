//! Overload: what still gets through, and how soon all is well again. In virtual
//! time (`simulate`) or against a real server (`real`).

mod flood;
mod mix;
mod polite;
mod real;
mod result;
mod steady;
mod storm;
mod tally;
mod users;
mod watch;

use anyhow::Result;
use clap::Args;

use crate::simulate;

/// Seconds of a phase against a real server.
const PHASE_SECONDS: u64 = 60;

/// What to do.
#[derive(Args, Debug, Clone)]
pub(crate) struct OverloadOptions {
    /// In virtual time, the engine's overload control beside that of others.
    #[arg(long)]
    simulate: bool,
    #[command(flatten)]
    real: real::Options,
    #[command(flatten)]
    simulation: simulate::Options,
    #[command(flatten)]
    destination: simulate::Destination,
}

/// Runs the command.
pub(crate) fn command(options: &OverloadOptions) -> Result<()> {
    if options.simulate {
        return simulate::command(&options.simulation, &options.destination);
    }
    let seconds = options.simulation.seconds.unwrap_or(PHASE_SECONDS) as f64;
    real::command(&options.real, seconds, options.destination.json.clone())
}

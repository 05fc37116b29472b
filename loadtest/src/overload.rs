//! Overload: what still gets through, and how soon all is well again.

use anyhow::{Result, bail};
use clap::Args;

use crate::simulate;

/// What to do.
#[derive(Args, Debug, Clone)]
pub(crate) struct OverloadOptions {
    /// In virtual time, the engine's overload control beside that of others.
    #[arg(long)]
    simulate: bool,
    #[command(flatten)]
    simulation: simulate::Options,
    #[command(flatten)]
    destination: simulate::Destination,
}

/// Runs the command.
pub(crate) fn command(options: &OverloadOptions) -> Result<()> {
    if !options.simulate {
        bail!("only --simulate is there");
    }
    simulate::command(&options.simulation, &options.destination)
}

//! `tidegate serve`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{environment, logging};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Configuration file. Absent: defaults, loopback only, demo page.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
}

/// Loads, logs, serves until told to stop.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let loaded = Config::load(arguments.config.as_deref(), environment())?;
    logging::init(&loaded.config.log)?;
    crate::server::run(loaded.config, loaded.origin)?;
    Ok(ExitCode::SUCCESS)
}

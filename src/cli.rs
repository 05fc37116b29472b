//! The command line: one server and the tools to try it.
//!
//! `tidegate serve` with no file and `tidegate watch ROOM` in another terminal
//! work without any preparation: the server leaves a development key where only
//! its user can read it, and the other commands take it from there.

mod admission;
mod check;
mod duration;
mod logging;
mod publish;
mod serve;
mod terminal;
mod token;
mod trace;
mod trust;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::engine::ids::RoomId;

/// Live-room broadcast and overload-control edge server.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server. Without a file: defaults, loopback only, demo page.
    Serve(serve::Arguments),
    /// Check a configuration file: every mistake, or what it amounts to.
    CheckConfig(check::Arguments),
    /// Print a token for a user.
    Token(token::Arguments),
    /// Watch a room in the terminal.
    Watch(watch::Arguments),
    /// Publish an event, or one per line of standard input.
    Publish(publish::Arguments),
    /// See and overrule overload control, as an operator.
    Admission(admission::Arguments),
    /// Show the way of single events, step by step.
    Trace(trace::Arguments),
}

/// Runs what the process was asked for, and says how it went: 0 well, 1 not, 2
/// not understood.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::CheckConfig(arguments) => check::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Watch(arguments) => watch::run(arguments),
        Command::Publish(arguments) => publish::run(&arguments),
        Command::Admission(arguments) => admission::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("tidegate: {error:#}");
        ExitCode::FAILURE
    })
}

/// The environment as `config` takes it. Values that are not UTF-8 are no
/// configuration, but they must not stop the process either.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

/// A runtime for a command, which has one thing to do.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Reads a room name from the command line.
fn room(name: &str) -> Result<RoomId, String> {
    RoomId::new(name).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_are_understood() {
        for line in [
            "tidegate serve",
            "tidegate serve --config a.toml",
            "tidegate check-config a.toml",
            "tidegate token --user u --room a --room b:* --role publisher --ttl 2h",
            "tidegate watch r --url ws://127.0.0.1:1 --token t --json --transport quic",
            "tidegate publish r chat {\"a\":1} --key k --amount -3 --ttl-ms 5 --id i --user u",
            "tidegate watch r --url wss://edge --ca authority.pem",
            "tidegate publish r chat -",
            "tidegate publish r chat - --url https://edge --protocol grpc --insecure",
            "tidegate admission show",
            "tidegate admission pin 3 64 --url http://127.0.0.1:1",
            "tidegate admission silence r like --for 10m --token t",
            "tidegate trace e1 --room r --watch --for 5m --follow --token t",
            "tidegate trace --json",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "tidegate admission pin",
            "tidegate trace e1 --for 5m",
            "tidegate watch a/b",
            "tidegate watch r --transport pigeon",
            "tidegate watch r --certificate-sha256 abc",
            "tidegate watch r --ca authority.pem --insecure",
            "tidegate publish r chat - --protocol smtp",
            "tidegate token --room a",
            "tidegate token --user u --ttl 1y",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

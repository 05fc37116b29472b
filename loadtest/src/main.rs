//! Measures Tidegate and the machine under it.
//!
//! The parent orchestrates; worker processes, which are this executable again,
//! hold the sockets. Both the server and the bare floor go through the same
//! window (`drive`), so that their figures compare.

mod arrival;
mod audit;
mod book;
mod certificate;
mod check;
mod connect;
mod crash;
mod crowd;
mod drive;
mod fanout;
mod fleet;
mod floor;
mod generate;
mod handshakes;
mod hist;
mod html;
mod http;
mod joins;
mod ledger;
mod link;
mod log_bench;
mod namespace;
mod overload;
mod protocol;
mod publish;
mod quic;
mod realtime;
mod replay;
mod report;
mod run;
mod server;
mod simulate;
mod spoof;
mod storm;
mod stream;
mod sys;
mod token;
mod told;
mod trace;
mod transport;
mod trust;
mod upstream;
mod viewer;
mod worker;
mod wsclient;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The machine's bare cost of writing the same bytes to N sockets.
    Floor(Box<floor::FloorOptions>),
    /// N viewers receive what is published: cost, latency, memory, loss.
    Fanout(Box<fanout::FanoutOptions>),
    /// A connect storm, and what the viewers of another room feel of it.
    Joins(Box<joins::JoinsOptions>),
    /// A storm of QUIC handshakes, without and with Retry.
    Handshakes(Box<handshakes::HandshakesOptions>),
    /// First packets of QUIC from addresses of others. Needs root.
    Spoof(Box<spoof::SpoofOptions>),
    /// Important events over a bad line, QUIC against WebSocket. Needs root.
    Link(Box<link::LinkOptions>),
    /// A recorded room through the publisher API, with an exact check at the end.
    Replay(Box<replay::ReplayOptions>),
    /// The server is killed again and again: nothing accepted may be lost.
    Crash(Box<crash::CrashOptions>),
    /// Everybody is cut off and comes back at once: when have all caught up?
    Storm(Box<storm::StormOptions>),
    /// The arrival rate that the server reports against the true one.
    Arrival(Box<arrival::ArrivalOptions>),
    /// Overload control beside that of others, in virtual time.
    Overload(Box<overload::OverloadOptions>),
    /// What the durable log costs on this disk.
    Log(log_bench::LogOptions),
    /// Writes a trace fitted to recorded rooms.
    Generate(generate::GenerateOptions),
    /// Ratios of the headline figures of two --json files.
    Compare {
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Holds sockets for the parent.
    #[command(hide = true)]
    Worker,
    /// Sends for `spoof`.
    #[command(hide = true)]
    SpoofSender,
    /// Writes bursts for `floor`.
    #[command(hide = true)]
    FloorWriter {
        /// Sockets.
        viewers: u32,
        /// Bytes per write.
        bytes: usize,
    },
    /// Becomes another program, pinned and bound to its parent.
    #[command(hide = true)]
    ExecPinned {
        /// Processors.
        #[arg(long, default_value = "")]
        cpus: String,
        /// Program and arguments.
        #[arg(last = true)]
        program: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Floor(options) => floor::command(&options),
        Command::Fanout(options) => fanout::command(&options),
        Command::Joins(options) => joins::command(&options),
        Command::Handshakes(options) => handshakes::command(&options),
        Command::Spoof(options) => spoof::command(&options),
        Command::Link(options) => link::command(&options),
        Command::Replay(options) => replay::command(&options),
        Command::Crash(options) => crash::command(&options),
        Command::Storm(options) => storm::command(&options),
        Command::Arrival(options) => arrival::command(&options),
        Command::Overload(options) => overload::command(&options),
        Command::Log(options) => log_bench::command(&options),
        Command::Generate(options) => generate::command(&options),
        Command::Compare { first, second } => report::compare(&first, &second),
        Command::Worker => worker::run(),
        Command::SpoofSender => spoof::sender::run(),
        Command::FloorWriter { viewers, bytes } => floor::writer(viewers, bytes),
        Command::ExecPinned { cpus, program } => sys::exec_pinned(&cpus, &program),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `tidegate token`, and how the other commands get theirs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use super::{duration, environment};
use crate::auth::{Authenticator, Claims, DevKey, Role};
use crate::clock::Clock;
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Who the bearer is.
    #[arg(long)]
    user: String,
    /// A room, a prefix with * at its end, or * for all. May be repeated.
    #[arg(long = "room", value_name = "ROOM")]
    rooms: Vec<String>,
    /// viewer, publisher or operator.
    #[arg(long, default_value_t = Role::Viewer, value_parser = role)]
    role: Role,
    /// What sort of client the bearer uses, up to 32 bytes: ios, web. Limits can
    /// go by it.
    #[arg(long)]
    client: Option<String>,
    /// How long it holds: 90s, 15m, 1h, 7d.
    #[arg(long, default_value = "1h", value_parser = duration::parse)]
    ttl: Duration,
    #[command(flatten)]
    key: KeySource,
}

/// Where the key comes from that signs a token.
#[derive(Debug, Clone, Args)]
pub(super) struct KeySource {
    /// Configuration whose first shared secret signs. Without keys in it: the
    /// development key of the server on the same port.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
}

/// How a command that talks to a server shows who it is.
#[derive(Debug, Clone, Args)]
pub(super) struct TokenSource {
    /// A token. Absent: one is made with the key of --config, or of the server
    /// that runs on this machine with defaults.
    #[arg(long, env = "TIDEGATE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    key: KeySource,
}

/// Prints a token.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.rooms.is_empty() && arguments.role != Role::Operator {
        bail!("without --room the token would allow no room at all; --room '*' allows all");
    }
    let claims = Claims {
        user: arguments.user.clone(),
        role: arguments.role,
        rooms: arguments.rooms.clone(),
        client: arguments.client.clone(),
    };
    println!("{}", arguments.key.mint(&claims, arguments.ttl, None)?);
    Ok(ExitCode::SUCCESS)
}

fn role(name: &str) -> Result<Role, String> {
    name.parse().map_err(|_| "allowed: viewer, publisher, operator".to_owned())
}

impl KeySource {
    /// A token for the server on `port` of this machine; `None`: on the port of
    /// the configuration.
    fn mint(&self, claims: &Claims, ttl: Duration, port: Option<u16>) -> anyhow::Result<String> {
        let config = Config::load(self.config.as_deref(), environment())?.config;
        let dev_key = if config.auth.needs_dev_key() {
            let port = port.unwrap_or(config.server.listen.port());
            Some(DevKey::read(port).context("no key to sign a token with")?)
        } else {
            None
        };
        let authenticator = match Authenticator::new(&config.auth, dev_key) {
            Ok(authenticator) => authenticator,
            Err(errors) => bail!(crate::config::ConfigErrors(errors)),
        };
        Ok(authenticator.mint(claims, ttl, Clock::start().now())?)
    }
}

impl TokenSource {
    /// The given token, or a new one for the server on `port` of this machine.
    /// Ask anew for every connection: a server that was started again has a new
    /// development key.
    pub(super) fn token(&self, claims: &Claims, port: u16) -> anyhow::Result<String> {
        const TTL: Duration = Duration::from_secs(12 * 3_600);
        match &self.token {
            Some(token) => Ok(token.clone()),
            None => self.key.mint(claims, TTL, Some(port)).map_err(|error| {
                anyhow!(
                    "{error:#}\n  give --token, or --config with the server's file, or run \
                     `tidegate serve` on this machine"
                )
            }),
        }
    }
}

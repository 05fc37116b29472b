//! Which certificate the server has, and where new ones come from.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinHandle;
use tracing::info;

use crate::clock::Clock;
use crate::config::Config;
use crate::tls::{Identity, reload};

/// From files, or made for development on loopback; otherwise there is none.
pub(super) fn open(config: &Config, clock: Clock) -> anyhow::Result<Option<Identity>> {
    let now = clock.now();
    let identity = match config.tls.files() {
        Some(files) => Identity::from_files(files, now).context("tls")?,
        None if config.server.is_local() => Identity::development(now).context("tls")?,
        None => {
            info!("no tls.certificate: no TLS and no QUIC, only connections in clear");
            return Ok(None);
        }
    };
    Ok(Some(identity))
}

/// What the first lines say of it.
pub(super) fn announce(identity: &Identity, clock: Clock) -> Option<String> {
    let known = *identity.fingerprints(clock.now()).first()?;
    let sha256 = STANDARD.encode(known.sha256);
    let expires_ms = known.expires.as_millis();
    if !identity.is_development() {
        info!(sha256, expires_ms, "certificate");
        return None;
    }
    info!(sha256, expires_ms, "certificate for development");
    Some(format!("development certificate: SHA-256 {sha256}\n"))
}

/// Looks for new certificates until it is aborted. A server whose certificate is
/// in files lives through SIGHUP, which asks for a look.
pub(super) fn watch(
    identity: &Identity,
    config: &Config,
    clock: Clock,
) -> anyhow::Result<JoinHandle<()>> {
    let hangup = match identity.is_development() {
        true => None,
        false => Some(reload::on_hangup().context("SIGHUP")?),
    };
    let task = reload::run(identity.clone(), config.tls.reload(), hangup, clock);
    Ok(tokio::spawn(task))
}

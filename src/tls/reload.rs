//! Looks for a new certificate now and then, and when told to.
//!
//! By looking at the files, not by being told of changes to them: that works on
//! every file system, and through the symbolic links by which some orchestrators
//! swap whole directories. Files of which one has changed and the other has not
//! yet are a failed reload like any other, and looked at again when they change
//! next.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::certificate::span;
use super::{Fingerprint, Identity};
use crate::clock::Clock;
use crate::engine::time::Time;

/// Operators are warned this long before the end.
const WARN_AHEAD: Duration = Duration::from_secs(14 * 86_400);
/// And as often.
const WARN_EVERY: Duration = Duration::from_secs(86_400);

/// Asks for an immediate look: SIGHUP.
///
/// # Errors
/// When the process cannot have it.
pub fn on_hangup() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Looks every `every`, and whenever `hangup` comes, until it is aborted.
pub async fn run(identity: Identity, every: Duration, mut hangup: Option<Signal>, clock: Clock) {
    let mut warning = Warning::default();
    loop {
        warning.check(&identity, clock.now());
        let told = async {
            match &mut hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let anyway = tokio::select! {
            _ = told => true,
            () = tokio::time::sleep(every) => false,
        };
        let now = clock.now();
        match identity.refresh(anyway, now) {
            Ok(false) => {}
            Ok(true) => {
                let expires = identity.reloads().expires;
                let holds_for = span(expires.since(now));
                info!(generation = identity.generation(), holds_for, "new certificate");
                warning = Warning::default();
            }
            Err(reason) => error!(%reason, "the certificate was not reloaded; the old one stays"),
        }
    }
}

/// When operators were last warned of the end.
#[derive(Default)]
struct Warning(Option<Time>);

impl Warning {
    fn check(&mut self, identity: &Identity, now: Time) {
        let Some(&Fingerprint { expires, .. }) = identity.fingerprints(now).first() else { return };
        if identity.is_development() || !self.is_due(expires, now) {
            return;
        }
        if now > expires {
            error!(ago = span(now.since(expires)), "the certificate has expired");
        } else {
            warn!(within = span(expires.since(now)), "the certificate expires soon");
        }
    }

    fn is_due(&mut self, expires: Time, now: Time) -> bool {
        let late = now + WARN_AHEAD >= expires;
        let due = late && self.0.is_none_or(|last| now.since(last) >= WARN_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_of_two_weeks_ahead_and_once_a_day() {
        let (now, hour) = (Time::from_millis(1_800_000_000_000), Duration::from_secs(3_600));
        let expires = now + hour * 24 * 16;
        let mut warning = Warning::default();
        let told = (0..24 * 20).filter(|h| warning.is_due(expires, now + hour * *h)).count();
        // From two days on, to the end of the 20 days, the first hour of each.
        assert_eq!(told, 18);
    }
}

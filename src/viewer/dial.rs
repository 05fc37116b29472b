//! Making a connection: one transport, or both in a race.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::{sleep, timeout};

use super::choice::Plan;
use super::link::{Closed, DialError, Dialed};
use super::quic::Dialer;
use super::target::Target;
use super::{StartError, Transport, websocket};
use crate::trust::Trust;
use crate::wire::proto::v1;

/// For connecting, upgrading and being welcomed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// For QUIC, when WebSocket has failed: where nobody is, UDP is silent.
const AFTER: Duration = Duration::from_secs(2);

/// What connections are made with.
#[derive(Clone)]
pub(super) struct Dials {
    /// Of WebSocket.
    tls: Arc<ClientConfig>,
    pub(super) quic: Dialer,
}

/// How an attempt went.
pub(super) struct Attempt {
    pub(super) outcome: Result<Dialed, DialError>,
    /// Both transports were tried, and this is how the loser failed, if it did.
    pub(super) raced: bool,
}

impl Dials {
    pub(super) fn new(trust: &Trust) -> Result<Self, StartError> {
        let tls = trust.client(&[b"http/1.1"]);
        let tls = Arc::new(tls.map_err(|error| StartError::Tls(error.to_string()))?);
        Ok(Self { tls, quic: Dialer::new(trust)? })
    }

    /// Makes a connection and says what is `first` on it.
    pub(super) async fn dial(
        self,
        target: Target,
        plan: Plan,
        first: Vec<v1::ClientMessage>,
    ) -> Attempt {
        match plan {
            Plan::Only(transport) => {
                let outcome = self.with(transport, &target, first).await;
                Attempt { outcome, raced: false }
            }
            Plan::Race(head_start) => self.race(&target, head_start, first).await,
        }
    }

    async fn with(
        &self,
        transport: Transport,
        target: &Target,
        first: Vec<v1::ClientMessage>,
    ) -> Result<Dialed, DialError> {
        let dialed = async {
            match transport {
                Transport::WebSocket => websocket::dial(target, &self.tls, first).await,
                Transport::Quic => self.quic.dial(target, first).await,
            }
        };
        let late = |_| Err(DialError::failed(format!("{transport}: connecting took too long")));
        timeout(CONNECT_TIMEOUT, dialed).await.unwrap_or_else(late)
    }

    async fn race(
        &self,
        target: &Target,
        head_start: Duration,
        first: Vec<v1::ClientMessage>,
    ) -> Attempt {
        let quic = self.with(Transport::Quic, target, first.clone());
        let websocket = self.with(Transport::WebSocket, target, first);
        tokio::pin!(quic, websocket);
        let early = tokio::select! {
            outcome = &mut quic => Some(outcome),
            () = sleep(head_start) => None,
        };
        let failed = match early {
            Some(Ok(dialed)) => return Attempt { outcome: Ok(dialed), raced: false },
            Some(Err(error)) => Some(error),
            None => None,
        };
        let outcome = match failed {
            Some(error) => websocket.await.map_err(|other| worse(error, other)),
            None => tokio::select! {
                outcome = &mut quic => match outcome {
                    Ok(dialed) => Ok(dialed),
                    Err(error) => websocket.await.map_err(|other| worse(error, other)),
                },
                outcome = &mut websocket => match outcome {
                    Ok(dialed) => Ok(dialed),
                    Err(other) => {
                        let late = |_| Err(DialError::failed("quic: connecting took too long"));
                        let outcome = timeout(AFTER, quic).await.unwrap_or_else(late);
                        outcome.map_err(|error| worse(error, other))
                    }
                },
            },
        };
        Attempt { outcome, raced: true }
    }
}

/// Both failed. A word of the server to stay away holds for both.
fn worse(quic: DialError, websocket: DialError) -> DialError {
    match (quic.is_final(), websocket.is_final()) {
        (true, _) => quic,
        (_, true) => websocket,
        _ => DialError::Failed(Closed {
            code: None,
            why: format!("{}; {}", websocket.why(), quic.why()),
            untrusted: websocket.is_distrust() || quic.is_distrust(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_failures_the_final_one_is_told() {
        let passing = || DialError::failed("late");
        let refused = || DialError::Refused { code: 403, why: "no".to_owned() };
        assert_eq!(worse(passing(), refused()), refused());
        assert_eq!(worse(refused(), passing()), refused());
        assert_eq!(worse(passing(), DialError::failed("gone")).why(), "gone; late");
        let stranger = || DialError::distrusted("UnknownIssuer");
        assert!(worse(stranger(), passing()).is_distrust());
        assert!(worse(passing(), stranger()).is_distrust());
        assert!(!worse(passing(), passing()).is_distrust());
    }
}

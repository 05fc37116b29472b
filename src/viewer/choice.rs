//! Which transport to try, and how soon the other one after it.
//!
//! QUIC is better where it works, and some networks drop UDP without a word, so
//! neither its absence nor its presence is known before it is tried. It gets a
//! head start, then WebSocket is tried beside it, and whoever is welcomed first
//! has won ("Happy Eyeballs", RFC 8305, for transports). A QUIC that lost is left
//! alone for a while that doubles, or every connection would wait for its head
//! start; a network changes, so not for ever.

use std::time::Duration;

use super::Transport;
use crate::engine::time::Time;

/// Two round trips of a slow mobile line: a handshake and the welcome.
const HEAD_START: Duration = Duration::from_millis(300);
/// For a QUIC that won last time.
const LONG_HEAD_START: Duration = Duration::from_secs(1);
/// How long a QUIC that failed is left alone at first.
const SHUN: Duration = Duration::from_secs(60);
/// And at most.
const SHUN_LIMIT: Duration = Duration::from_secs(1_800);

/// What to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Only(Transport),
    /// QUIC, and WebSocket beside it after this long or when it fails.
    Race(Duration),
}

#[derive(Debug)]
pub(super) struct Choice {
    /// What the user wants; `None`: the better one.
    wanted: Option<Transport>,
    won: Option<Transport>,
    shunned: Option<Time>,
    failures: u32,
}

impl Choice {
    pub(super) fn new(wanted: Option<Transport>) -> Self {
        Self { wanted, won: None, shunned: None, failures: 0 }
    }

    pub(super) fn plan(&self, now: Time) -> Plan {
        match self.wanted {
            Some(transport) => Plan::Only(transport),
            None if self.shunned.is_some_and(|until| now < until) => {
                Plan::Only(Transport::WebSocket)
            }
            None if self.won == Some(Transport::Quic) => Plan::Race(LONG_HEAD_START),
            None => Plan::Race(HEAD_START),
        }
    }

    /// A connection stands. `raced`: the other one was tried too.
    pub(super) fn won(&mut self, transport: Transport, raced: bool, now: Time) {
        self.won = Some(transport);
        match transport {
            Transport::Quic => self.shunned = None,
            Transport::WebSocket if raced => self.shun(now),
            Transport::WebSocket => {}
        }
    }

    /// Nothing could be connected: what was known of the network is no longer so.
    pub(super) fn failed(&mut self) {
        self.shunned = None;
    }

    /// A connection ended. `told`: with a word from the server. `held`: how long it
    /// had stood.
    pub(super) fn lost(&mut self, transport: Transport, told: bool, held: Duration, now: Time) {
        if transport == Transport::Quic {
            if held >= SHUN {
                self.failures = 0;
            } else if !told {
                // A network that lets a handshake pass and then nothing.
                self.shun(now);
            }
        }
    }

    fn shun(&mut self, now: Time) {
        let wait = SHUN.saturating_mul(1 << self.failures.min(16)).min(SHUN_LIMIT);
        self.failures = self.failures.saturating_add(1);
        self.shunned = Some(now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    const WEBSOCKET: Plan = Plan::Only(Transport::WebSocket);

    #[test]
    fn what_is_wanted_is_tried_whatever_happens() {
        let mut choice = Choice::new(Some(Transport::Quic));
        for _ in 0..3 {
            assert_eq!(choice.plan(at(0)), Plan::Only(Transport::Quic));
            choice.lost(Transport::Quic, false, Duration::ZERO, at(0));
            choice.failed();
        }
    }

    #[test]
    fn a_quic_that_lost_is_left_alone_for_a_while_that_doubles() {
        let mut choice = Choice::new(None);
        assert_eq!(choice.plan(at(0)), Plan::Race(HEAD_START));
        choice.won(Transport::WebSocket, true, at(0));
        assert_eq!((choice.plan(at(59)), choice.plan(at(60))), (WEBSOCKET, Plan::Race(HEAD_START)));
        choice.won(Transport::WebSocket, true, at(60));
        assert_eq!(
            (choice.plan(at(179)), choice.plan(at(180))),
            (WEBSOCKET, Plan::Race(HEAD_START))
        );
        for _ in 0..40 {
            choice.won(Transport::WebSocket, true, at(200));
        }
        assert_eq!(choice.plan(at(2_000)), Plan::Race(HEAD_START), "half an hour at most");
        choice.won(Transport::WebSocket, true, at(2_000));
        choice.failed();
        assert_eq!(choice.plan(at(2_001)), Plan::Race(HEAD_START), "another network perhaps");
    }

    #[test]
    fn a_quic_that_won_gets_a_longer_start_and_one_that_breaks_at_once_none() {
        let mut choice = Choice::new(None);
        choice.won(Transport::Quic, false, at(0));
        assert_eq!(choice.plan(at(1)), Plan::Race(LONG_HEAD_START));
        choice.lost(Transport::Quic, true, Duration::ZERO, at(1));
        assert_eq!(choice.plan(at(1)), Plan::Race(LONG_HEAD_START), "the server said why");
        choice.lost(Transport::Quic, false, Duration::from_secs(30), at(2));
        assert_eq!(choice.plan(at(3)), WEBSOCKET);
        choice.won(Transport::Quic, false, at(100));
        choice.lost(Transport::Quic, false, Duration::from_secs(600), at(700));
        assert_eq!(choice.plan(at(700)), Plan::Race(LONG_HEAD_START), "it had held");
    }
}

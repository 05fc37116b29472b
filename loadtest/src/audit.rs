//! The account at the end: what publishers were told is compared with what the
//! log has, and that with what every viewer was shown.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::crowd;
use crate::http::Client;
use crate::report::Section;
use crate::server::Server;
use crate::token::Signer;
use crate::upstream;

/// Events asked for at a time.
const PAGE: usize = 1_000;
/// Differences told in words; all are counted.
const WORDS: usize = 20;

/// A room's important events, as `GET /v1/rooms/{room}/events` has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// In order of their important numbers: which of the publisher's events,
    /// and its number.
    events: Vec<(u32, u64)>,
    /// The room's last important number.
    pub(crate) important: u64,
}

#[derive(Deserialize)]
struct Page {
    epoch: u64,
    important: u64,
    complete: bool,
    more: bool,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    id: String,
    seq: u64,
    important: u64,
}

impl Ledger {
    /// Reads all of a room's important events; anything but the numbers 1 to n,
    /// each once and in order, is told.
    pub(crate) fn read(server: &Server, room: &str, verdict: &mut Verdict) -> Result<Ledger> {
        let token = Signer::new(&server.secret).viewer("auditor", room)?;
        let mut client = Client::new(server.addr, Some(token));
        let mut ledger = Ledger::default();
        let mut epoch = None;
        loop {
            let after = ledger.events.len();
            let path = format!("/v1/rooms/{room}/events?important_after={after}&limit={PAGE}");
            let (status, body) = client.get(&path)?;
            if status != 200 {
                bail!("{path}: {status} {}", String::from_utf8_lossy(&body));
            }
            let page: Page = serde_json::from_slice(&body).context("events of a room")?;
            if !page.complete {
                verdict
                    .add(&mut |v| &mut v.holes, format!("{room}: not all after {after} is kept"));
            }
            if *epoch.get_or_insert(page.epoch) != page.epoch {
                verdict.add(&mut |v| &mut v.holes, format!("{room}: another epoch"));
            }
            ledger.important = page.important;
            let got = page.events.len();
            for event in page.events {
                let expected = ledger.events.len() as u64 + 1;
                if event.important != expected {
                    let text = format!("{room}: {} where {expected} was due", event.important);
                    verdict.add(&mut |v| &mut v.holes, text);
                }
                let n = event.id.rsplit('-').next().and_then(|n| n.parse().ok());
                ledger.events.push((n.context("an event that is not ours")?, event.seq));
            }
            if !page.more {
                return Ok(ledger);
            }
            if got == 0 {
                bail!("{path}: more is said to come, and nothing does");
            }
        }
    }
}

/// What differs. All zero: nothing was lost, doubled or made up.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// Accepted, and not in the log.
    pub(crate) lost: u64,
    /// In the log more than once.
    pub(crate) doubled: u64,
    /// In the log under another number than was answered.
    pub(crate) renumbered: u64,
    /// In the log, and never accepted.
    pub(crate) made_up: u64,
    /// Important numbers that are missing, repeated or out of order.
    pub(crate) holes: u64,
    /// Numbers of the room given to two events.
    pub(crate) shared_numbers: u64,
    /// Refused for good.
    pub(crate) refused: u64,
    /// Viewers that never came in.
    pub(crate) absent: u64,
    /// Viewers that were not shown exactly what their room had from their first
    /// join on, once and in order.
    pub(crate) wrong_viewers: u64,
    /// Important numbers seen with two different events.
    pub(crate) conflicts: u64,
    /// Times a room's numbering began anew or went back.
    pub(crate) new_numberings: u64,
    /// Numbers that frames skipped without a notice.
    pub(crate) skipped: u64,
    /// The first differences, in words.
    pub(crate) words: Vec<String>,
}

type Count<'a> = &'a mut dyn FnMut(&mut Verdict) -> &mut u64;

impl Verdict {
    fn add(&mut self, count: Count<'_>, text: String) {
        *count(self) += 1;
        if self.words.len() < WORDS {
            self.words.push(text);
        }
    }

    /// Differences of all sorts.
    pub(crate) fn total(&self) -> u64 {
        self.lost
            + self.doubled
            + self.renumbered
            + self.made_up
            + self.holes
            + self.shared_numbers
            + self.refused
            + self.absent
            + self.wrong_viewers
            + self.conflicts
            + self.new_numberings
            + self.skipped
    }

    /// Compares what was answered with what the log has.
    pub(crate) fn log(&mut self, name: &str, told: &[upstream::Accepted], ledger: &Ledger) {
        let (mut by_n, mut by_seq) = (HashMap::new(), HashMap::new());
        for &(n, seq) in &ledger.events {
            if by_n.insert(n, seq).is_some() {
                self.add(&mut |v| &mut v.doubled, format!("{name}: event {n} twice"));
            }
            if let Some(other) = by_seq.insert(seq, n) {
                let text = format!("{name}: number {seq} for events {other} and {n}");
                self.add(&mut |v| &mut v.shared_numbers, text);
            }
        }
        for accepted in told {
            match by_n.remove(&accepted.n) {
                None => {
                    let text = format!("{name}: event {} was accepted and is gone", accepted.n);
                    self.add(&mut |v| &mut v.lost, text);
                }
                Some(seq) if seq != accepted.seq => {
                    let text = format!(
                        "{name}: event {} was answered {} and is {seq}",
                        accepted.n, accepted.seq
                    );
                    self.add(&mut |v| &mut v.renumbered, text);
                }
                Some(_) => {}
            }
        }
        for n in by_n.keys() {
            self.add(&mut |v| &mut v.made_up, format!("{name}: event {n} was never accepted"));
        }
    }

    /// Compares what viewers were shown with what the log has.
    pub(crate) fn viewers(&mut self, seen: &crowd::Outcome, ledgers: &[Ledger]) {
        for (index, viewer) in seen.viewers.iter().enumerate() {
            let Some(base) = viewer.base else {
                self.add(&mut |v| &mut v.absent, format!("viewer {index} never came in"));
                continue;
            };
            let events = ledgers[viewer.room].events.iter();
            let due: Vec<u32> = events.skip(base as usize).map(|&(n, _)| n).collect();
            if viewer.shown != due {
                let same = viewer.shown.iter().zip(&due).take_while(|(a, b)| a == b).count();
                let text = format!(
                    "viewer {index} of room {}: shown {} of {} events, the same up to {}",
                    viewer.room,
                    viewer.shown.len(),
                    due.len(),
                    base + same as u64
                );
                self.add(&mut |v| &mut v.wrong_viewers, text);
            }
        }
        for (room, number, one, other) in &seen.conflicts {
            let text = format!("room {room}: important {number} is event {one} and {other}");
            self.add(&mut |v| &mut v.conflicts, text);
        }
        self.new_numberings += seen.tally.renumbered;
        self.skipped += seen.tally.skipped;
    }

    /// For the report.
    pub(crate) fn section(&self) -> Section {
        let line = |parts: &[(&str, u64)]| {
            let parts: Vec<String> = parts.iter().map(|(name, n)| format!("{n} {name}")).collect();
            parts.join(", ")
        };
        let log = [
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("renumbered", self.renumbered),
            ("made up", self.made_up),
            ("holes", self.holes),
            ("numbers used twice", self.shared_numbers),
            ("refused for good", self.refused),
        ];
        let viewers = [
            ("with a difference", self.wrong_viewers),
            ("absent", self.absent),
            ("numbers seen with two events", self.conflicts),
            ("new numberings", self.new_numberings),
            ("numbers skipped silently", self.skipped),
        ];
        let mut section =
            Section::new("account").line("log", line(&log)).line("viewers", line(&viewers)).line(
                "verdict",
                if self.total() == 0 { "nothing lost, nothing twice" } else { "FAILED" },
            );
        for words in &self.words {
            section = section.line("", words.clone());
        }
        section
    }
}

/// Reads every room and compares everything.
pub(crate) fn account(
    server: &Server,
    rooms: &[String],
    told: &upstream::Outcome,
    verdict: &mut Verdict,
) -> Result<Vec<Ledger>> {
    let mut ledgers = Vec::new();
    for (name, accepted) in rooms.iter().zip(&told.accepted) {
        let ledger = Ledger::read(server, name, verdict)?;
        verdict.log(name, accepted, &ledger);
        ledgers.push(ledger);
    }
    verdict.refused += told.refused.values().sum::<u64>();
    Ok(ledgers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowd::Seen;
    use crate::upstream::Accepted;

    fn ledger(events: &[(u32, u64)]) -> Ledger {
        Ledger { events: events.to_vec(), important: events.len() as u64 }
    }

    fn told(events: &[(u32, u64)]) -> Vec<Accepted> {
        events.iter().map(|&(n, seq)| Accepted { n, seq }).collect()
    }

    #[test]
    fn a_log_that_has_what_was_answered_passes() {
        let mut verdict = Verdict::default();
        verdict.log("r", &told(&[(1, 5), (0, 2)]), &ledger(&[(0, 2), (1, 5)]));
        assert_eq!(verdict.total(), 0, "{:?}", verdict.words);
    }

    #[test]
    fn every_difference_between_answers_and_log_is_counted() {
        let mut verdict = Verdict::default();
        let log = ledger(&[(0, 1), (1, 2), (1, 3), (2, 3), (9, 7)]);
        verdict.log("r", &told(&[(0, 1), (1, 3), (2, 4), (3, 5)]), &log);
        let counts = (verdict.lost, verdict.doubled, verdict.renumbered, verdict.made_up);
        assert_eq!(counts, (1, 1, 1, 1), "{:?}", verdict.words);
        assert_eq!((verdict.shared_numbers, verdict.total()), (1, 5));
    }

    #[test]
    fn viewers_must_be_shown_all_since_they_came_once_and_in_order() {
        let ledgers = [ledger(&[(0, 1), (1, 2), (2, 3)])];
        let verdict = |base: Option<u64>, shown: &[u32]| {
            let seen = Seen { room: 0, base, shown: shown.to_vec() };
            let mut verdict = Verdict::default();
            let outcome = crowd::Outcome { viewers: vec![seen], ..crowd::Outcome::default() };
            verdict.viewers(&outcome, &ledgers);
            verdict.total()
        };
        assert_eq!(verdict(Some(0), &[0, 1, 2]), 0);
        assert_eq!(verdict(Some(2), &[2]), 0);
        let wrong: [&[u32]; 5] = [&[0, 1], &[0, 1, 1, 2], &[1, 0, 2], &[0, 2], &[0, 1, 2, 3]];
        for shown in wrong {
            assert_eq!(verdict(Some(0), shown), 1, "{shown:?}");
        }
        assert_eq!(verdict(None, &[]), 1);
    }
}

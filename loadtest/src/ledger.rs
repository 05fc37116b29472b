//! The exact balance of a replay: what the server accepted against what one
//! viewer received. Accepted = delivered + merged + dropped with reason, for
//! every kind; sums to the unit; important events all, once, in order.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::check::{Recording, content};
use crate::trace::TraceEvent;

/// Complaints kept in words.
const MAX_ERRORS: usize = 20;

/// How events of a kind become fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Not at all.
    Append,
    /// Added up, by key, or by user and key.
    Sum {
        /// By user and key.
        by_user: bool,
    },
    /// The newest per key, or per user and key.
    Latest {
        /// By user and key.
        by_user: bool,
    },
    /// Some of them.
    Sample,
}

/// The rules of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Never merged away, never dropped.
    pub(crate) important: bool,
    /// How they become fewer.
    pub(crate) merge: Merge,
}

/// Rules by kind; a kind that is not named is `ordered`, `append`.
#[derive(Debug, Clone)]
pub(crate) struct Rules(BTreeMap<String, Rule>);

impl Default for Rules {
    /// Those of a server without configured kinds.
    fn default() -> Self {
        let append = Merge::Append;
        let latest = Merge::Latest { by_user: false };
        let sum = |by_user| Merge::Sum { by_user };
        let table = [
            ("red_packet", true, append),
            ("coupon", true, append),
            ("product_card", true, latest),
            ("stream_state", true, latest),
            ("control", true, append),
            ("ban", true, append),
            ("chat", false, append),
            ("super_chat", false, append),
            ("guard", false, append),
            ("gift", false, sum(true)),
            ("follow", false, Merge::Sample),
            ("fansclub", false, Merge::Sample),
            ("enter", false, Merge::Sample),
            ("like", false, sum(false)),
            ("stats", false, latest),
        ];
        Self(
            table
                .into_iter()
                .map(|(name, important, merge)| (name.to_owned(), Rule { important, merge }))
                .collect(),
        )
    }
}

impl Rules {
    /// Overrides one kind: `name=lane:merge[:user_key]`.
    pub(crate) fn set(&mut self, text: &str) -> Result<(), String> {
        let wrong = || format!("{text:?}: name=lane:merge[:user_key]");
        let (name, rule) = text.split_once('=').ok_or_else(wrong)?;
        let mut parts = rule.split(':');
        let important = match parts.next() {
            Some("important") => true,
            Some("ordered" | "sampled") => false,
            _ => return Err(wrong()),
        };
        let merge = parts.next().ok_or_else(wrong)?;
        let by_user = match parts.next() {
            None | Some("key") => false,
            Some("user_key") => true,
            Some(_) => return Err(wrong()),
        };
        let merge = match merge {
            "append" => Merge::Append,
            "sum" => Merge::Sum { by_user },
            "latest" => Merge::Latest { by_user },
            "sample" => Merge::Sample,
            _ => return Err(wrong()),
        };
        self.0.insert(name.to_owned(), Rule { important, merge });
        Ok(())
    }

    fn of(&self, kind: &str) -> Rule {
        self.0.get(kind).copied().unwrap_or(Rule { important: false, merge: Merge::Append })
    }
}

/// One accepted event.
#[derive(Debug)]
struct Accepted {
    kind: String,
    user: String,
    key: String,
    amount: i64,
    content: u64,
    seq: Option<u64>,
}

/// What was accepted, in order.
#[derive(Debug)]
pub(crate) struct Ledger {
    rules: Rules,
    order: Vec<String>,
    events: HashMap<String, Accepted>,
}

/// A kind's line of the balance.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct KindBalance {
    /// By the server's answers.
    pub(crate) accepted: u64,
    /// Seen by themselves.
    pub(crate) delivered: u64,
    /// In a sum, or overtaken by a newer one.
    pub(crate) merged: u64,
    /// Named as dropped by the room.
    pub(crate) dropped: u64,
    /// Named as lost by this viewer alone.
    pub(crate) gap: u64,
}

/// The balance.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Balance {
    /// By kind.
    pub(crate) kinds: BTreeMap<String, KindBalance>,
    /// Distinct sums compared.
    pub(crate) sums: u64,
    /// What does not balance, first ones in words.
    pub(crate) errors: Vec<String>,
    /// All of that.
    pub(crate) error_count: u64,
}

impl Ledger {
    /// Empty.
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, order: Vec::new(), events: HashMap::new() }
    }

    /// An event that the server accepted under this id and number.
    pub(crate) fn accept(&mut self, id: &str, event: &TraceEvent, seq: Option<u64>) {
        let user = event.user.clone().unwrap_or_default();
        let key = event.key.clone().unwrap_or_default();
        let amount = event.amount.unwrap_or(1);
        let payload = event.payload.as_ref().map_or("null", |payload| payload.get());
        let content = content(&event.kind, &user, &key, amount, payload);
        let kind = event.kind.clone();
        self.order.push(id.to_owned());
        self.events.insert(id.to_owned(), Accepted { kind, user, key, amount, content, seq });
    }

    /// Events accepted.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Draws the balance with what a viewer recorded.
    pub(crate) fn balance(&self, seen: &Recording) -> Balance {
        let mut balance = Balance::default();
        for event in self.events.values() {
            balance.kind(&event.kind).accepted += 1;
        }
        for (kind, count) in &seen.dropped {
            balance.kind(kind).dropped += count;
        }
        for (kind, count) in &seen.gaps {
            balance.kind(kind).gap += count;
        }
        self.events_seen(seen, &mut balance);
        self.numbers(&mut balance);
        self.important(seen, &mut balance);
        self.sums(seen, &mut balance);
        self.latest(seen, &mut balance);
        for (kind, line) in balance.kinds.clone() {
            self.close(&kind, &line, &mut balance);
        }
        balance
    }

    /// Every event seen was accepted, says the same, and came once.
    fn events_seen(&self, seen: &Recording, balance: &mut Balance) {
        let mut times: HashMap<&str, u32> = HashMap::new();
        for event in &seen.events {
            *times.entry(&event.id).or_default() += 1;
            let Some(accepted) = self.events.get(&event.id) else {
                balance.fail(format!("{} {} was never accepted", event.kind, event.id));
                continue;
            };
            if event.content != accepted.content || event.kind != accepted.kind {
                balance.fail(format!("{} {} says something else", event.kind, event.id));
            }
            if event.seq != accepted.seq {
                balance.fail(format!(
                    "{} {} has number {:?}, was accepted with {:?}",
                    event.kind, event.id, event.seq, accepted.seq
                ));
            }
            let rule = self.rules.of(&event.kind);
            if matches!(rule.merge, Merge::Sum { .. }) && !rule.important {
                balance.fail(format!("{} {} travelled beside its sum", event.kind, event.id));
            }
            balance.kind(&event.kind).delivered += 1;
        }
        for (id, count) in times.into_iter().filter(|(_, count)| *count > 1) {
            balance.fail(format!("{id} came {count} times"));
        }
    }

    /// Numbers were given in the order of acceptance, without holes.
    fn numbers(&self, balance: &mut Balance) {
        let numbers: Vec<u64> =
            self.order.iter().filter_map(|id| self.events.get(id)?.seq).collect();
        for pair in numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1) {
            balance.fail(format!("number {} was given after {}", pair[1], pair[0]));
        }
    }

    /// Important events all came, once, in order.
    fn important(&self, seen: &Recording, balance: &mut Balance) {
        let is_important = |kind: &str| self.rules.of(kind).important;
        let wanted = self
            .order
            .iter()
            .filter(|id| self.events.get(*id).is_some_and(|event| is_important(&event.kind)));
        let mut came =
            seen.events.iter().filter(|event| is_important(&event.kind)).map(|event| &event.id);
        for wanted in wanted {
            match came.next() {
                Some(id) if id == wanted => {}
                other => {
                    balance.fail(format!("important {wanted} was due, {other:?} came"));
                    return;
                }
            }
        }
    }

    /// Deltas add up to what was accepted, for every key.
    fn sums(&self, seen: &Recording, balance: &mut Balance) {
        let mut wanted: HashMap<(&str, &str, &str), i64> = HashMap::new();
        for event in self.events.values() {
            if let Merge::Sum { by_user } = self.rules.of(&event.kind).merge {
                let user = if by_user { event.user.as_str() } else { "" };
                *wanted.entry((&event.kind, user, &event.key)).or_default() += event.amount;
            }
        }
        balance.sums = wanted.len() as u64;
        for (kind, user, key, sum) in &seen.sums {
            let due = wanted.remove(&(kind.as_str(), user.as_str(), key.as_str()));
            if due.unwrap_or(0) != *sum {
                balance.fail(format!("{kind} of {user:?} {key:?}: {sum} came, {due:?} was due"));
            }
        }
        for ((kind, user, key), due) in wanted.into_iter().filter(|(_, due)| *due != 0) {
            balance.fail(format!("{kind} of {user:?} {key:?}: nothing came, {due} was due"));
        }
    }

    /// The last of every key that came is the last that was accepted.
    fn latest(&self, seen: &Recording, balance: &mut Balance) {
        let mut wanted: HashMap<(&str, &str, &str), &str> = HashMap::new();
        let mut came: HashMap<(&str, &str, &str), &str> = HashMap::new();
        let key = |event: &'_ Accepted| {
            let Merge::Latest { by_user } = self.rules.of(&event.kind).merge else { return None };
            Some(by_user)
        };
        for id in &self.order {
            if let Some((id, event)) = self.events.get_key_value(id)
                && let Some(by_user) = key(event)
            {
                let user = if by_user { event.user.as_str() } else { "" };
                wanted.insert((&event.kind, user, &event.key), id);
            }
        }
        for one in &seen.events {
            if let Some((id, event)) = self.events.get_key_value(&one.id)
                && let Some(by_user) = key(event)
            {
                let user = if by_user { event.user.as_str() } else { "" };
                came.insert((&event.kind, user, &event.key), id);
            }
        }
        for (key, wanted) in wanted {
            let came = came.get(&key);
            if came != Some(&wanted) {
                balance.fail(format!("latest {key:?}: {wanted} was due, {came:?} came"));
            }
        }
    }

    /// The kind's line balances.
    fn close(&self, kind: &str, line: &KindBalance, balance: &mut Balance) {
        let known = line.delivered + line.dropped + line.gap;
        match self.rules.of(kind).merge {
            // What is neither seen nor dropped is in the sum (compared above),
            // or was overtaken.
            Merge::Sum { .. } | Merge::Latest { .. } if known <= line.accepted => {
                balance.kind(kind).merged = line.accepted - known;
            }
            _ if known == line.accepted => {}
            _ => balance.fail(format!(
                "{kind}: {} accepted, {} delivered, {} dropped, {} in gaps",
                line.accepted, line.delivered, line.dropped, line.gap
            )),
        }
    }
}

impl Balance {
    fn kind(&mut self, kind: &str) -> &mut KindBalance {
        self.kinds.entry(kind.to_owned()).or_default()
    }

    /// One thing that does not balance.
    pub(crate) fn fail(&mut self, error: String) {
        self.error_count += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Seen;

    /// Accepts what `events` says; the first field is the id, numbers follow the lane.
    fn accepted(events: &[(&str, &str)]) -> (Ledger, Recording) {
        let mut ledger = Ledger::new(Rules::default());
        let mut right = Recording::default();
        let (mut seq, mut important) = (0, 0);
        for (id, json) in events {
            let event: TraceEvent = serde_json::from_str(json).unwrap();
            let rule = ledger.rules.of(&event.kind);
            let sampled = ["like", "stats", "enter"].contains(&event.kind.as_str());
            let number = (!sampled).then(|| {
                seq += 1;
                seq
            });
            ledger.accept(id, &event, number);
            let overtaken = *id == "s1";
            if !matches!(rule.merge, Merge::Sum { .. }) && !overtaken {
                right.events.push(Seen {
                    id: (*id).into(),
                    kind: event.kind.clone(),
                    seq: number,
                    important: rule.important.then(|| {
                        important += 1;
                        important
                    }),
                    content: ledger.events[*id].content,
                });
            }
        }
        right.sums = vec![
            ("gift".into(), "u1".into(), "rose".into(), 5),
            ("like".into(), String::new(), String::new(), 7),
        ];
        (ledger, right)
    }

    fn example() -> (Ledger, Recording) {
        accepted(&[
            ("c1", r#"{"t_ms":0,"kind":"chat","user":"u1","payload":"hi"}"#),
            ("g1", r#"{"t_ms":0,"kind":"gift","user":"u1","key":"rose","amount":2}"#),
            ("b1", r#"{"t_ms":0,"kind":"ban","user":"u2","amount":600}"#),
            ("g2", r#"{"t_ms":0,"kind":"gift","user":"u1","key":"rose","amount":3}"#),
            ("l1", r#"{"t_ms":0,"kind":"like","user":"u1","amount":7}"#),
            ("s1", r#"{"t_ms":0,"kind":"stats","payload":{"online":1}}"#),
            ("s2", r#"{"t_ms":0,"kind":"stats","payload":{"online":2}}"#),
            ("b2", r#"{"t_ms":0,"kind":"ban","user":"u3"}"#),
            ("c2", r#"{"t_ms":0,"kind":"chat","user":"u1","payload":"ho"}"#),
        ])
    }

    #[test]
    fn a_right_stream_balances() {
        let (ledger, right) = example();
        let balance = ledger.balance(&right);
        assert_eq!(balance.error_count, 0, "{:?}", balance.errors);
        assert_eq!(balance.kinds["gift"].merged, 2);
        assert_eq!((balance.kinds["stats"].delivered, balance.kinds["stats"].merged), (1, 1));
    }

    #[test]
    fn a_dropped_event_must_be_announced() {
        let (ledger, mut wrong) = example();
        wrong.events.retain(|event| event.id != "c2");
        assert_eq!(ledger.balance(&wrong).error_count, 1);
        wrong.dropped.insert("chat".into(), 1);
        assert_eq!(ledger.balance(&wrong).error_count, 0);
        wrong.dropped.insert("chat".into(), 2);
        assert_eq!(ledger.balance(&wrong).error_count, 1);
    }

    fn complains(change: impl FnOnce(&mut Recording), about: &str) {
        let (ledger, mut wrong) = example();
        change(&mut wrong);
        let balance = ledger.balance(&wrong);
        assert!(
            balance.errors.iter().any(|error| error.contains(about)),
            "no complaint about {about}: {:?}",
            balance.errors
        );
    }

    #[test]
    fn every_sort_of_wrong_stream_is_noticed() {
        complains(|seen| seen.sums[0].3 += 1, "6 came, Some(5) was due");
        complains(|seen| drop(seen.sums.pop()), "nothing came, 7 was due");
        complains(|seen| seen.events[0].content ^= 1, "says something else");
        complains(|seen| seen.events[0].seq = Some(9), "has number Some(9)");
        complains(|seen| seen.events[0].id = "x".into(), "was never accepted");
        complains(|seen| seen.events.push(seen.events[0].clone()), "came 2 times");
        complains(|seen| seen.events.retain(|e| e.id != "b2"), "important b2 was due");
        complains(|seen| seen.events.swap(1, 3), "important b1 was due");
        complains(|seen| seen.events.retain(|e| e.id != "s2"), "s2 was due");
    }

    #[test]
    fn holes_in_the_numbers_given_are_noticed() {
        let (mut ledger, right) = example();
        if let Some(event) = ledger.events.get_mut("c2") {
            event.seq = Some(99);
        }
        assert!(ledger.balance(&right).errors.iter().any(|error| error.contains("number 99")));
    }

    #[test]
    fn rules_are_read() {
        let mut rules = Rules::default();
        rules.set("pin=important:latest:user_key").unwrap();
        let latest = Merge::Latest { by_user: true };
        assert_eq!(rules.of("pin"), Rule { important: true, merge: latest });
        for bad in ["pin", "pin=fast:sum", "pin=ordered", "pin=ordered:sum:all"] {
            assert!(rules.set(bad).is_err(), "{bad}");
        }
    }
}

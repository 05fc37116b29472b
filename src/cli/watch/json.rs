//! What happens in a room as JSON, one object with one field per line: the names
//! of the protocol where it has them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::terminal::escape_json;
use crate::viewer::{
    Event, Failure, Gap, GapReason, Happening, Snapshot, Status, Total, Why, Withheld,
};

/// The line of a change of the connection.
pub(super) fn status(status: &Status) -> Option<String> {
    let value = match status {
        Status::Connected { transport, address } => {
            json!({"connected": {"transport": transport.to_string(), "address": address}})
        }
        Status::Waiting { why, again_in, .. } => {
            json!({"disconnected": {"why": why, "again_in_ms": again_in.as_millis() as u64}})
        }
        Status::Idle | Status::Connecting => return None,
    };
    Some(escape_json(&value.to_string()))
}

/// The line of a happening.
pub(super) fn happening(happening: &Happening) -> Option<String> {
    let value = match happening {
        Happening::Joined(snapshot) => json!({"joined": joined(snapshot)}),
        Happening::Event(it) => json!({"event": event(it)}),
        Happening::Totals(totals) => {
            json!({"totals": totals.iter().map(total).collect::<Vec<_>>()})
        }
        Happening::Online(online) => json!({"online": online}),
        Happening::Gap(it) => json!({"gap": gap(it)}),
        Happening::Withheld(withheld) => json!({"withheld": self::withheld(*withheld)}),
        Happening::Dropped(dropped) => json!({"dropped": counts(dropped)}),
        Happening::Missed { from, to } => json!({"missed": {"from": from, "to": to}}),
        Happening::Lost { from, to } => json!({"lost": {"from": from, "to": to}}),
        Happening::Failed(Failure { code, reason, .. }) => {
            json!({"error": {"code": code, "reason": reason}})
        }
        Happening::Leaving { reconnect_after } => {
            json!({"goaway": {"reconnect_after_ms": reconnect_after.as_millis() as u64}})
        }
        // The connection's own state is told once, not for every room.
        _ => return None,
    };
    Some(escape_json(&value.to_string()))
}

fn withheld(withheld: Withheld) -> &'static str {
    match withheld {
        Withheld::Nothing => "nothing",
        Withheld::Sampled => "sampled",
        Withheld::Totals => "totals",
        Withheld::Ordered => "ordered",
    }
}

fn joined(snapshot: &Snapshot) -> Value {
    let why = match snapshot.why {
        Why::First => "first",
        Why::Recovered => "recovered",
        Why::Behind => "behind",
        Why::Renumbered => "renumbered",
        Why::Rebased => "rebased",
    };
    json!({
        "why": why,
        "epoch": snapshot.position.epoch,
        "seq": snapshot.position.seq,
        "important": snapshot.position.important,
        "online": snapshot.online,
        "users": snapshot.users,
        "users_exact": snapshot.users_exact,
        "state": snapshot.state.iter().map(event).collect::<Vec<_>>(),
        "totals": snapshot.totals.iter().map(total).collect::<Vec<_>>(),
    })
}

fn event(event: &Event) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("id", json!(event.id));
    put("kind", json!(event.kind));
    put("user", json!(event.user));
    let numbers = [("seq", event.seq), ("important", event.important)];
    for (name, number) in numbers {
        if let Some(number) = number {
            put(name, json!(number));
        }
    }
    match event.json() {
        Some(payload) => put("payload", payload),
        None => {
            put("payload", json!(STANDARD.encode(&event.payload)));
            put("encoding", json!("base64"));
        }
    }
    if let Some(key) = &event.key {
        put("key", json!(key));
    }
    if let Some(amount) = event.amount {
        put("amount", json!(amount));
    }
    put("time_ms", json!(event.time_ms));
    Value::Object(fields)
}

fn total(total: &Total) -> Value {
    let Total { kind, user, key, sum, delta } = total;
    match user {
        Some(user) => json!({"kind": kind, "user": user, "key": key, "sum": sum, "delta": delta}),
        None => json!({"kind": kind, "key": key, "sum": sum, "delta": delta}),
    }
}

fn gap(gap: &Gap) -> Value {
    let why = match gap.why {
        GapReason::Slow => "slow",
        GapReason::Away => "away",
        GapReason::Unannounced => "unannounced",
    };
    json!({"first_seq": gap.first_seq, "last_seq": gap.last_seq, "why": why,
        "dropped": counts(&gap.dropped)})
}

fn counts(dropped: &BTreeMap<String, u64>) -> Value {
    json!(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(what: &Happening) -> Value {
        serde_json::from_str(&happening(what).unwrap()).unwrap()
    }

    fn an_event(payload: &'static [u8]) -> Event {
        Event {
            id: "a".to_owned(),
            kind: "chat".to_owned(),
            user: "mei".to_owned(),
            seq: Some(4),
            important: None,
            payload: payload.into(),
            key: None,
            amount: Some(2),
            time_ms: 9,
        }
    }

    #[test]
    fn an_event_has_the_names_of_the_protocol() {
        let written = line(&Happening::Event(an_event(b"{\"a\":1}")));
        let expected = json!({"event": {"id": "a", "kind": "chat", "user": "mei", "seq": 4,
            "payload": {"a": 1}, "amount": 2, "time_ms": 9}});
        assert_eq!(written, expected);
        let bytes = line(&Happening::Event(an_event(&[0xff])));
        assert_eq!(bytes["event"]["payload"], "/w==");
        assert_eq!(bytes["event"]["encoding"], "base64");
    }

    #[test]
    fn control_characters_stay_escaped() {
        let failure = Failure { code: "\u{9b}".into(), reason: "\u{7f}".into(), retry_after: None };
        let text = happening(&Happening::Failed(failure)).unwrap();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

//! Overload control end to end, with the real binary: publishers that misbehave,
//! and operators who decide.
//!
//! A server is overloaded here by one request of a thousand events while its
//! queue may hold one millisecond of work: more than fits on any machine, so no
//! assertion rests on how fast this one is.

#[path = "overload/flood.rs"]
mod flood;
mod harness;
#[path = "overload/operator.rs"]
mod operator;

use std::time::{Duration, Instant};

use flood::{Client, Flood, SMALL_QUEUE, events, rejected};
use harness::{PATIENCE, Server};
use operator::decide;
use serde_json::{Value, json};

/// Publishes one event until it is taken, as a polite publisher would; returns
/// how often it was refused before.
fn insist(client: &mut Client, room: &str, event: &Value) -> u32 {
    let until = Instant::now() + PATIENCE;
    for refusals in 0.. {
        let answer = client.publish(room, &json!([event]));
        let result = &answer["results"][0];
        if result["status"] == "accepted" {
            return refusals;
        }
        assert_eq!(result["code"], "overloaded", "{answer}");
        let wait = result["retry_after_ms"].as_u64().expect("a time to come back");
        assert!((1..=10_000).contains(&wait), "{answer}");
        assert!(Instant::now() < until, "still refused after {refusals} attempts: {answer}");
        std::thread::sleep(Duration::from_millis(wait));
    }
    unreachable!("the loop ends by returning")
}

#[test]
fn a_claimed_priority_changes_nothing() {
    let server = Server::start("");
    // Up to and with tier 5: likes pass, entrances (6) and unknown kinds (63) do not.
    decide(&server, "pin", &json!({"business": 5, "user": 127}));
    let claims = json!({
        "tier": 0, "priority": 0, "business": 0, "user_level": 0, "lane": "important",
        "admission": {"business": 0, "user": 0},
    });
    let event = |id: &str, kind: &str| {
        let mut event = claims.clone();
        event["id"] = json!(id);
        event["kind"] = json!(kind);
        event["user"] = json!("mallory");
        event["payload"] = claims.clone();
        event
    };
    let kinds = ["like", "enter", "RED_PACKET", "red_packet ", "vip", "red_packet"];
    let batch: Value = kinds.iter().map(|kind| event(&format!("id-{kind}"), kind)).collect();
    let (status, answer) = server.publish("r", batch);
    assert_eq!(status, 200, "{answer}");
    let codes: Vec<&str> = answer["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| result["code"].as_str().unwrap_or("accepted"))
        .collect();
    let refused = "overloaded";
    assert_eq!(codes, ["accepted", refused, refused, refused, refused, "accepted"], "{answer}");
    assert_eq!(answer["admission"]["business"], 5, "{answer}");
}

#[test]
fn what_ignores_every_level_costs_no_important_event() {
    let server = Server::start_with(SMALL_QUEUE, &[("TIDEGATE__SERVER__SHARDS", "1")]);
    let mut viewer = server.viewer("watcher", "hot");
    let flood = Flood::start(&server, "hot", 3);
    server.wait_metric("tidegate_admission_refused_total", 1_000.0);
    let mut polite = Client::new(&server, "polite");
    let ids: Vec<String> = (0..20).map(|n| format!("packet-{n}")).collect();
    for id in &ids {
        let event = json!({"id": id, "kind": "red_packet", "user": "host", "payload": id});
        insist(&mut polite, "hot", &event);
    }
    let tally = flood.stop();
    assert!(tally.refused > 1_000, "the flood was hardly refused: {tally:?}");
    let mut seen = Vec::new();
    while seen.len() < ids.len() {
        let frame = viewer.expect("frame");
        let packets = frame["events"].as_array().expect("events").iter();
        let packets = packets.filter(|event| event["kind"] == "red_packet");
        seen.extend(packets.filter_map(|event| Some(event["id"].as_str()?.to_owned())));
    }
    assert_eq!(seen, ids, "each once, in the order in which they were accepted");
}

#[test]
fn a_room_that_is_flooded_leaves_another_its_own() {
    let server = Server::start_with(SMALL_QUEUE, &[("TIDEGATE__SERVER__SHARDS", "1")]);
    let mut viewer = server.viewer("watcher", "calm");
    let flood = Flood::start(&server, "flooded", 3);
    server.wait_metric("tidegate_admission_refused_total", 10_000.0);
    let mut polite = Client::new(&server, "polite");
    let mut taken = 0;
    for n in 0..100 {
        // The same kind as the flood's, from users of every level, once each.
        let event = json!({"id": format!("chat-{n}"), "kind": "chat", "user": format!("u{n}"), "payload": n});
        let answer = polite.publish("calm", &json!([event]));
        taken += usize::from(answer["results"][0]["status"] == "accepted");
        std::thread::sleep(Duration::from_millis(30));
    }
    let tally = flood.stop();
    let flooded = tally.accepted as f64 / (tally.accepted + tally.refused) as f64;
    let calm = taken as f64 / 100.0;
    assert!(tally.refused > 1_000, "the flood was hardly refused: {tally:?}");
    // Not all: a window may find the flood before it has found out whose it is.
    assert!(calm > flooded, "taken: {calm:.2} of the calm room's, {flooded:.2} of the flood");
    let mut seen = 0;
    while seen < taken {
        let frame = viewer.expect("frame");
        seen += frame["events"].as_array().expect("events").len();
    }
    assert_eq!(seen, taken);
}

#[test]
fn requests_beyond_a_turn_wait_in_line_and_are_all_answered() {
    // A turn reads one of these requests at most.
    let server =
        Server::start_with("[ingress]\nslice_us = 50\n", &[("TIDEGATE__SERVER__SHARDS", "1")]);
    std::thread::scope(|scope| {
        for caller in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let mut client = Client::new(server, "im");
                for request in 0..20 {
                    let batch = (0..200).map(|n| {
                        json!({"id": format!("{caller}-{request}-{n}"), "kind": "like", "payload": "x".repeat(50)})
                    });
                    let answer = client.publish("hot", &batch.collect());
                    assert_eq!(answer["results"].as_array().expect("results").len(), 200);
                }
            });
        }
    });
    assert_eq!(server.metric("tidegate_ingress_request_wait_seconds_count"), 320.0);
    assert!(server.metric("tidegate_ingress_request_wait_seconds_sum") > 0.0, "none ever waited");
    server.wait_metric("tidegate_admission_admitted_total", 1.0);
    assert_eq!(server.metric("tidegate_ingress_requests_waiting"), 0.0);
}

#[test]
fn a_dry_run_refuses_nothing_and_counts_what_it_would_have() {
    let environment = [("TIDEGATE__SERVER__SHARDS", "1"), ("TIDEGATE__ADMISSION__DRY_RUN", "true")];
    let server = Server::start_with(SMALL_QUEUE, &environment);
    let flood = Flood::start(&server, "hot", 3);
    server.wait_metric("tidegate_admission_would_refuse_total", 1_000.0);
    let tally = flood.stop();
    assert!(tally.accepted > 0 && tally.refused == 0, "{tally:?}");
    assert!((server.metric("tidegate_admission_refused_total")).abs() < f64::EPSILON);
    let (_, answer) = server.publish("hot", json!([{"id": "x", "kind": "enter", "payload": null}]));
    assert_eq!(answer["admission"]["business"], 63, "callers are told of no level: {answer}");
}

/// Distinct users, each with one event; as many as a debug build takes in a few
/// seconds. `loadtest overload --distinct-users 1000000` does the million.
const USERS: usize = 200_000;

#[test]
fn users_without_number_take_bounded_memory() {
    // Every store that knows users is in use, and smaller than their number.
    let server = Server::start(
        "[limits]\nuser_events_per_second = 50\nkeys = 10000\n[admission]\ndry_run = true\n",
    );
    let mut client = Client::new(&server, "im");
    let kinds = ["chat", "like", "gift", "enter"];
    let mut publish = |from: usize| {
        for start in (from..from + USERS / 2).step_by(1_000) {
            let batch: Value = (start..start + 1_000)
                .map(|n| {
                    json!({"id": n.to_string(), "kind": kinds[n % 4], "user": format!("user-{n}"),
                           "key": "k", "amount": 1, "payload": null})
                })
                .collect();
            client.publish(&format!("room-{}", start / 1_000 % 8), &batch);
        }
    };
    // The first half fills what has a bound.
    publish(0);
    let half = server.metric("process_resident_memory_bytes");
    publish(USERS / 2);
    let all = server.metric("process_resident_memory_bytes");
    assert!(half > 0.0);
    // A hundred thousand users more at a hundred bytes each would be 10 MB.
    let grown = (all - half) / 1e6;
    assert!(grown < 8.0, "{grown:.1} MB more for the second {} users", USERS / 2);
}

#[test]
fn a_refused_event_is_told_when_to_come_back_and_by_which_level() {
    let server = Server::start_with(SMALL_QUEUE, &[("TIDEGATE__SERVER__SHARDS", "1")]);
    let flood = Flood::start(&server, "r", 3);
    server.wait_metric("tidegate_admission_refused_total", 1_000.0);
    let mut client = Client::new(&server, "im");
    let until = Instant::now() + PATIENCE;
    let (answer, refused) = (0..)
        .map(|batch| {
            assert!(Instant::now() < until, "nothing is ever refused");
            let answer = client.publish("r", &events(&format!("b{batch}"), 1_000));
            let refused = rejected(&answer, "overloaded");
            (answer, refused)
        })
        .find(|(_, refused)| !refused.is_empty())
        .expect("an endless search");
    flood.stop();
    for wait in refused {
        assert!(wait.is_some_and(|wait| (1..=10_000).contains(&wait)), "{wait:?}");
    }
    assert!(answer["admission"]["ttl_ms"].as_u64().is_some_and(|ttl| ttl > 0), "{answer}");
}

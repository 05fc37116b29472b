//! The publisher library: against a server that plays an overloaded Tidegate, and
//! against the real one.
//!
//! Times here are real, so what is asserted of them is only what a slow machine
//! keeps too: that something ends at all, or long before something else would.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tidegate::client::{
    Content, NewEvent, Outcome, PublishError, Publisher, PublisherSettings, PublisherStats,
    Receipt, StartError,
};
use tidegate::engine::ids::RoomId;

#[path = "publisher/fake.rs"]
mod fake;
mod harness;
#[path = "publisher/real.rs"]
mod real;

use fake::{Act, Fake, Level, OPEN};

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gifts and above.
const GIFTS: Level = Level { business: 1, ttl_ms: 10_000 };

fn room(name: &str) -> RoomId {
    RoomId::new(name).expect("a room")
}

fn event(id: impl std::fmt::Display, kind: &str) -> NewEvent {
    NewEvent { user: format!("user-{id}"), ..NewEvent::new(id.to_string(), kind) }
}

fn settings(fake: &Fake) -> PublisherSettings {
    PublisherSettings::new(fake.url(), "token")
}

fn start(settings: PublisherSettings) -> Publisher {
    Publisher::start(settings).expect("a publisher")
}

/// A publisher that has the table of priorities.
async fn ready(settings: PublisherSettings) -> Publisher {
    let publisher = start(settings);
    within(async {
        while publisher.stats().tables == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    publisher
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends")
}

async fn outcomes(receipts: Vec<Receipt>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for receipt in receipts {
        outcomes.push(within(receipt).await);
    }
    outcomes
}

fn accepted(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|o| matches!(o, Outcome::Accepted { .. })).count()
}

/// Publishes events of a kind with ids from `start`.
fn publish_many(
    publisher: &Publisher,
    name: &str,
    kind: &str,
    ids: std::ops::Range<usize>,
) -> Vec<Receipt> {
    let publish = |id| publisher.publish(&room(name), event(id, kind)).expect("room for it");
    ids.map(publish).collect()
}

/// Everything has exactly one outcome.
fn balanced(stats: &PublisherStats, taken: u64) {
    assert_eq!((stats.taken, stats.held()), (taken, 0), "{stats:?}");
}

#[tokio::test]
async fn shedding_starts_within_one_answer_and_only_probes_go_on() {
    let fake = Fake::start().await;
    fake.script(|script| script.level = GIFTS);
    let publisher = ready(settings(&fake)).await;
    let first = within(publisher.publish(&room("r"), event("g", "gift")).expect("taken")).await;
    assert_eq!(first, Outcome::Accepted { seq: Some(1) });

    let began = Instant::now();
    let mut ended = Vec::new();
    for step in 0..20 {
        let receipts = publish_many(&publisher, "r", "chat", step * 100..(step + 1) * 100);
        ended.extend(outcomes(receipts).await);
    }
    let elapsed = began.elapsed().as_secs_f64();
    let stats = within(publisher.close()).await;
    let sent = fake.seen(|seen| seen.events.iter().filter(|(_, e)| e["kind"] == "chat").count());
    assert_eq!(sent as u64, stats.caller.probes, "what was sent below the level was a probe");
    assert!(sent > 0 && sent as f64 <= 5.0 + 0.01 * 2_000.0 + 10.0 * elapsed, "{sent} probes");
    let shed = ended.iter().filter(|o| match o {
        // At most what is left of the level's time, twice.
        Outcome::ShedLocally { retry_after } => *retry_after <= Duration::from_secs(20),
        _ => false,
    });
    assert_eq!(shed.count(), 2_000 - sent);
    assert_eq!(stats.rejected.get("overloaded"), Some(&(sent as u64)));
    balanced(&stats, 2_001);
}

#[tokio::test]
async fn probes_notice_when_the_level_opens() {
    let fake = Fake::start().await;
    fake.script(|script| script.level = GIFTS);
    let publisher = ready(settings(&fake)).await;
    within(publisher.publish(&room("r"), event("g", "gift")).expect("taken")).await;
    outcomes(publish_many(&publisher, "r", "chat", 0..200)).await;
    assert!(publisher.stats().shed_locally > 100);

    fake.script(|script| script.level = OPEN);
    let began = Instant::now();
    let mut id = 1_000;
    while accepted(&outcomes(publish_many(&publisher, "r", "chat", id..id + 1)).await) == 0 {
        id += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "that is what the level's end would take"
        );
    }
    let after = outcomes(publish_many(&publisher, "r", "chat", 5_000..5_200)).await;
    assert_eq!(accepted(&after), 200, "one answer opens everything");
}

#[tokio::test]
async fn a_level_ends_with_its_time_when_the_server_says_nothing() {
    let fake = Fake::start().await;
    let level = Level { business: 1, ttl_ms: 1_500 };
    fake.script(|script| script.level = level);
    let mut settings = settings(&fake);
    settings.caller.probes_per_second = 0.0;
    settings.caller.probe_share = 0.0;
    let publisher = ready(settings).await;
    within(publisher.publish(&room("r"), event("g", "gift")).expect("taken")).await;
    fake.script(|script| script.level = OPEN);
    let mut id = 0;
    within(async {
        while accepted(&outcomes(publish_many(&publisher, "r", "chat", id..id + 1)).await) == 0 {
            id += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(publisher.stats().caller.probes, 0, "no probe could have told");
}

#[tokio::test]
async fn without_a_table_of_priorities_nothing_is_shed() {
    let fake = Fake::start().await;
    fake.script(|script| {
        script.table = false;
        script.level = GIFTS;
    });
    let publisher = start(settings(&fake));
    let mut ended = Vec::new();
    for step in 0..10 {
        let receipts = publish_many(&publisher, "r", "chat", step * 50..(step + 1) * 50);
        ended.extend(outcomes(receipts).await);
    }
    assert_eq!(fake.seen(|seen| seen.events.len()), 500);
    assert!(ended.iter().all(|o| matches!(o, Outcome::Rejected(r) if r.code == "overloaded")));
    let stats = within(publisher.close()).await;
    assert_eq!((stats.shed_locally, stats.caller.probes, stats.tables), (0, 0, 0));
}

#[tokio::test]
async fn the_storm_of_one_room_does_not_silence_another() {
    let fake = Fake::start().await;
    fake.script(|script| script.levels.extend([("hot".to_owned(), GIFTS)]));
    let publisher = ready(settings(&fake)).await;
    within(publisher.publish(&room("hot"), event("g", "gift")).expect("taken")).await;
    outcomes(publish_many(&publisher, "hot", "chat", 0..500)).await;

    // All that is known of the server is the hot room's level, and its storm has
    // used up the probes; the calm room hears of its own level nevertheless.
    let (mut id, mut calm) = (1_000, 0);
    within(async {
        while calm < 100 {
            outcomes(publish_many(&publisher, "hot", "chat", id..id + 100)).await;
            let chat = outcomes(publish_many(&publisher, "calm", "chat", id + 100..id + 101)).await;
            let came = accepted(&chat);
            assert!(calm == 0 || came == 1, "once its level is known, it is never shed: {chat:?}");
            calm += came;
            id += 200;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let chats = |name: &str| {
        fake.seen(|seen| {
            let of_room =
                seen.events.iter().filter(|(room, e)| room == name && e["kind"] == "chat");
            of_room.count()
        })
    };
    assert!(chats("hot") < 500 && chats("calm") >= 100, "{} {}", chats("hot"), chats("calm"));
}

#[tokio::test]
async fn an_event_refused_for_now_is_sent_again_and_arrives_once() {
    let fake = Fake::start().await;
    fake.script(|script| {
        script.level = Level { business: 1, ttl_ms: 1 };
        script.retry_after_ms = Some(50);
    });
    let publisher = ready(settings(&fake)).await;
    let receipts = publish_many(&publisher, "r", "chat", 0..5);
    within(fake.requests(1)).await;
    fake.script(|script| script.level = OPEN);
    let ended = outcomes(receipts).await;
    assert_eq!(accepted(&ended), 5, "{ended:?}");
    let (sent, delivered) = fake.seen(|seen| (seen.events.len(), seen.delivered.len()));
    assert_eq!(delivered, 5);
    let stats = within(publisher.close()).await;
    assert_eq!(sent as u64, 5 + stats.caller.retries);
    balanced(&stats, 5);
}

#[tokio::test]
async fn an_event_whose_answer_was_lost_is_sent_again_and_arrives_once() {
    let fake = Fake::start().await;
    fake.script(|script| script.act = Act::Cut);
    let publisher = ready(settings(&fake)).await;
    let receipts = publish_many(&publisher, "r", "gift", 0..5);
    within(fake.requests(1)).await;
    fake.script(|script| script.act = Act::Serve);
    let ended = outcomes(receipts).await;
    let numbers: Vec<_> = (1..=5).map(|seq| Outcome::Accepted { seq: Some(seq) }).collect();
    assert_eq!(ended, numbers, "the numbers of the first time");
    assert!(fake.seen(|seen| seen.delivered.len()) == 5 && publisher.stats().caller.retries >= 5);
}

#[tokio::test]
async fn a_server_that_starts_later_gets_what_was_published_before() {
    // A port that was free a moment ago.
    let address = Fake::start().await.address;
    let settings = PublisherSettings {
        max_resends: 20,
        ..PublisherSettings::new(format!("http://{address}"), "token")
    };
    let publisher = start(settings);
    let receipts = publish_many(&publisher, "r", "gift", 0..5);
    within(async {
        while publisher.stats().requests_failed < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let fake = Fake::start_at(address).await;
    assert_eq!(accepted(&outcomes(receipts).await), 5);
    assert_eq!(fake.seen(|seen| seen.delivered.len()), 5);
}

#[tokio::test]
async fn retries_keep_to_their_budget_when_everything_fails() {
    let fake = Fake::start().await;
    let busy = json!({"error": {"code": "draining", "reason": "r", "temporary": true,
        "retry_after_ms": 20}});
    fake.script(|script| script.act = Act::Answer(503, busy.to_string()));
    let publisher = ready(settings(&fake)).await;
    let began = Instant::now();
    let mut receipts = Vec::new();
    for n in 0..20 {
        receipts.extend(publish_many(&publisher, &format!("r{n}"), "gift", n * 100..(n + 1) * 100));
    }
    let ended = outcomes(receipts).await;
    // Nothing was accepted, and only that pays for more than ten a second.
    let allowed = 10.0 * began.elapsed().as_secs_f64() + 30.0;
    assert!(ended.iter().all(|o| matches!(o, Outcome::Rejected(r) if r.code == "draining")));
    let resent = fake.seen(|seen| seen.events.len()) - 2_000;
    assert!(resent > 5 && resent as f64 <= allowed, "{resent} of {allowed}");
    let stats = within(publisher.close()).await;
    assert_eq!(stats.caller.retries, resent as u64);
    assert!(stats.caller.retries_exhausted > 0);
    balanced(&stats, 2_000);
}

#[tokio::test]
async fn answers_that_make_no_sense_end_in_an_outcome_and_do_no_lasting_harm() {
    let fake = Fake::start().await;
    let odd_level = r#"{"results":[{"id":"1","status":"accepted","seq":1}],
        "admission":{"business":-7,"user":1e400,"share":"none","ttl_ms":{}}}"#;
    let shut_for_ever = r#"{"results":[{"id":"1","status":"rejected","code":"x","reason":"y"}],
        "admission":{"business":-9,"user":-9,"share":-1,"ttl_ms":18446744073709551615}}"#;
    for (status, body) in [
        (200, ""),
        (200, "{}"),
        (200, "null"),
        (200, r#"{"results":[]}"#),
        (200, odd_level),
        (200, shut_for_ever),
        (500, "<html>oh</html>"),
        (404, "<html>nothing</html>"),
        (301, ""),
        (418, r#"{"error":{}}"#),
        (503, r#"{"error":{"code":"x","retry_after_ms":18446744073709551615}}"#),
    ] {
        // A publisher each: what one believes of the level is its own matter.
        let mut settings = settings(&fake);
        settings.max_resends = 1;
        settings.caller.max_ttl = Duration::from_millis(50);
        let publisher = ready(settings).await;
        fake.script(|script| script.act = Act::Answer(status, body.to_owned()));
        let bad = outcomes(publish_many(&publisher, "r", "chat", 0..1)).await;
        let wanted = usize::from(body == odd_level);
        assert_eq!(accepted(&bad), wanted, "{status} {body}: {bad:?}");
        fake.script(|script| script.act = Act::Serve);
        within(async {
            let mut id = 1;
            while accepted(&outcomes(publish_many(&publisher, "r", "chat", id..id + 1)).await) == 0
            {
                id += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(within(publisher.close()).await.held(), 0);
    }
}

#[tokio::test]
async fn what_matters_most_goes_first_in_batches_that_keep_their_order_and_bounds() {
    let fake = Fake::start().await;
    fake.open_gate(false);
    let publisher = ready(PublisherSettings { in_flight: 1, ..settings(&fake) }).await;
    let mut receipts = publish_many(&publisher, "r", "chat", 0..1);
    within(fake.requests(1)).await;
    // While one request is under way:
    receipts.extend(publish_many(&publisher, "r", "chat", 1..250));
    receipts.extend(publish_many(&publisher, "other", "gift", 250..251));
    receipts.extend(publish_many(&publisher, "r", "red_packet", 251..252));
    let ttl = Some(Duration::from_millis(1));
    let short = NewEvent { ttl, ..event("short", "chat") };
    let expires = publisher.publish(&room("r"), short).expect("taken");
    tokio::time::sleep(Duration::from_millis(5)).await;
    fake.open_gate(true);
    assert_eq!(accepted(&outcomes(receipts).await), 252);
    assert_eq!(within(expires).await, Outcome::Expired);

    let (delivered, batches) = fake.seen(|seen| (seen.delivered.clone(), seen.batches.clone()));
    assert_eq!(delivered[..3], ["0", "251", "1"], "the packet passes the chat");
    let chat: Vec<usize> = delivered.iter().map(|id| id.parse().expect("a number")).collect();
    let chat: Vec<usize> = chat.into_iter().filter(|id| *id < 250).collect();
    assert!(chat.is_sorted(), "{chat:?}");
    assert!(batches.iter().all(|size| *size <= 100) && batches.len() <= 6, "{batches:?}");
}

#[tokio::test]
async fn a_batch_that_is_too_large_for_the_server_goes_in_parts() {
    let fake = Fake::start().await;
    fake.script(|script| script.most = 7);
    let publisher = ready(settings(&fake)).await;
    assert_eq!(accepted(&outcomes(publish_many(&publisher, "r", "chat", 0..100)).await), 100);
    let delivered = fake.seen(|seen| seen.delivered.clone());
    let wanted: Vec<String> = (0..100).map(|id| id.to_string()).collect();
    assert_eq!(delivered, wanted);
    assert_eq!(publisher.stats().caller.retries, 0, "it costs no budget");

    fake.script(|script| script.most = 0);
    let refused = outcomes(publish_many(&publisher, "r", "chat", 100..110)).await;
    let code = |o: &Outcome| matches!(o, Outcome::Rejected(r) if r.code == "too_many_events");
    assert!(refused.iter().all(code), "{refused:?}");
    balanced(&within(publisher.close()).await, 110);

    // Being split is no attempt: the parts may still be sent again, and what is
    // accepted first pays for that.
    fake.script(|script| script.most = 100);
    let publisher = ready(settings(&fake)).await;
    let first = outcomes(publish_many(&publisher, "r", "chat", 2_000..2_300)).await;
    assert_eq!(accepted(&first), 300);
    fake.script(|script| {
        script.most = 7;
        script.level = Level { business: 1, ttl_ms: 1 };
        script.retry_after_ms = Some(30);
    });
    let before = fake.seen(|seen| seen.batches.len());
    let receipts = publish_many(&publisher, "r", "chat", 1_000..1_100);
    // 100, 50, 25, 12, and six that are refused for now.
    within(fake.requests(before + 5)).await;
    fake.script(|script| script.level = OPEN);
    assert_eq!(accepted(&outcomes(receipts).await), 100);
}

#[tokio::test]
async fn the_queue_is_bounded_by_events_and_by_bytes() {
    let fake = Fake::start().await;
    fake.open_gate(false);
    let bounds = PublisherSettings { queue_events: 10, queue_bytes: 20_000, ..settings(&fake) };
    let publisher = ready(bounds).await;
    let mut receipts = publish_many(&publisher, "r", "chat", 0..10);
    let refused = publisher.publish(&room("r"), event("eleven", "chat"));
    assert_eq!(refused.err(), Some(PublishError::QueueFull));
    fake.open_gate(true);
    assert_eq!(accepted(&outcomes(std::mem::take(&mut receipts)).await), 10);

    fake.open_gate(false);
    let large = |id: &str| NewEvent {
        payload: Content::Bytes(Bytes::from(vec![0; 9_000])),
        ..event(id, "chat")
    };
    receipts.push(publisher.publish(&room("r"), large("a")).expect("12,000 of base64 fit"));
    let refused = publisher.publish(&room("r"), large("b"));
    assert_eq!(refused.err(), Some(PublishError::QueueFull));
    fake.open_gate(true);
    assert_eq!(accepted(&outcomes(receipts).await), 1);
    let stats = within(publisher.close()).await;
    assert_eq!(stats.queue_full, 2);
    balanced(&stats, 11);
}

#[tokio::test]
async fn in_a_full_queue_the_least_important_gives_way_and_is_told() {
    let fake = Fake::start().await;
    fake.open_gate(false);
    let bounds = PublisherSettings { queue_events: 32, in_flight: 1, ..settings(&fake) };
    let publisher = ready(bounds).await;
    // One is under way: it gives way to nothing.
    let first = publish_many(&publisher, "r", "like", 0..1);
    within(fake.requests(1)).await;
    let mut chats = publish_many(&publisher, "r", "chat", 1..11);
    let likes = publish_many(&publisher, "r", "like", 11..32);
    let refused = publisher.publish(&room("r"), event("late", "like"));
    assert_eq!(refused.err(), Some(PublishError::QueueFull), "an equal one stays outside");
    let refused = publisher.publish(&room("r"), event("nobody", "unheard_of"));
    assert_eq!(refused.err(), Some(PublishError::QueueFull), "so does a lesser one");

    let take = |id: &str, kind: &str| publisher.publish(&room("r"), event(id, kind));
    let mut gifts = Vec::new();
    for n in 0..8 {
        gifts.push(take(&format!("g{n}"), "gift").expect("a like gives way"));
        // The task has its turn; there are two places beyond the bounds.
        within(async {
            while publisher.stats().displaced < n + 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    fake.open_gate(true);
    let displaced = outcomes(likes).await;
    let lost = |o: &Outcome| *o == Outcome::Displaced;
    assert!(displaced[..13].iter().all(|o| !lost(o)), "the newest give way: {displaced:?}");
    assert!(displaced[13..].iter().all(lost), "{displaced:?}");
    assert_eq!(accepted(&outcomes(gifts).await), 8);
    chats.extend(first);
    assert_eq!(accepted(&outcomes(chats).await), 11);
    let stats = within(publisher.close()).await;
    assert_eq!((stats.displaced, stats.queue_full), (8, 2), "{stats:?}");
    balanced(&stats, 40);
}

#[tokio::test]
async fn what_waits_to_be_sent_again_gives_way_with_its_last_answer() {
    let fake = Fake::start().await;
    fake.script(|script| {
        script.level = GIFTS;
        script.retry_after_ms = Some(5_000);
    });
    let bounds = PublisherSettings { queue_events: 16, ..settings(&fake) };
    let publisher = ready(bounds).await;
    // Probes and first attempts are refused for now and wait; the rest is shed.
    let likes = publish_many(&publisher, "r", "like", 0..16);
    within(fake.requests(1)).await;
    let full = async {
        while publisher.stats().held() < 16 || publisher.stats().level.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(full).await;
    let gift = publisher.publish(&room("r"), event("g", "gift")).expect("a like gives way");
    assert_eq!(accepted(&outcomes(vec![gift]).await), 1);
    let stats = publisher.stats();
    assert_eq!((stats.rejections(), stats.displaced), (1, 0), "{stats:?}");
    drop(publisher);
    let refused = |o: &&Outcome| matches!(o, Outcome::Rejected(r) if r.code == "overloaded");
    let outcomes = outcomes(likes).await;
    assert_eq!(outcomes.iter().filter(refused).count(), 1, "{outcomes:?}");
}

#[tokio::test]
async fn closing_sends_what_waits_and_waits_for_the_answers() {
    let fake = Fake::start().await;
    let slow = PublisherSettings { linger: Duration::from_secs(3_600), ..settings(&fake) };
    let publisher = ready(slow).await;
    let receipts = publish_many(&publisher, "r", "chat", 0..50);
    let stats = within(publisher.close()).await;
    assert_eq!((stats.accepted, accepted(&outcomes(receipts).await)), (50, 50));
    balanced(&stats, 50);
}

#[tokio::test]
async fn nothing_hangs_at_the_end_though_the_server_answers_nothing() {
    let fake = Fake::start().await;
    fake.script(|script| script.act = Act::Stall);
    let close_timeout = Duration::from_millis(200);
    let short = PublisherSettings { in_flight: 2, close_timeout, ..settings(&fake) };
    let publisher = ready(short.clone()).await;
    let mut receipts = Vec::new();
    for n in 0..4 {
        receipts.extend(publish_many(&publisher, &format!("r{n}"), "chat", n * 10..n * 10 + 10));
    }
    let stats = within(publisher.close()).await;
    assert!(outcomes(receipts).await.iter().all(|o| *o == Outcome::Abandoned));
    assert_eq!(stats.abandoned, 40);
    balanced(&stats, 40);

    // Events that wait to be sent again keep what they were told.
    let busy = json!({"error": {"code": "draining", "reason": "r", "temporary": true,
        "retry_after_ms": 9_000}});
    fake.script(|script| script.act = Act::Answer(503, busy.to_string()));
    let publisher = ready(short.clone()).await;
    let receipts = publish_many(&publisher, "r", "chat", 0..10);
    within(fake.requests(3)).await;
    let stats = within(publisher.close()).await;
    assert_eq!(stats.rejected.get("draining"), Some(&10), "{stats:?}");
    assert!(outcomes(receipts).await.iter().all(|o| matches!(o, Outcome::Rejected(_))));

    fake.script(|script| script.act = Act::Stall);
    let publisher = ready(short).await;
    let receipts = publish_many(&publisher, "r", "chat", 0..10);
    within(fake.requests(4)).await;
    drop(publisher);
    assert!(outcomes(receipts).await.iter().all(|o| *o == Outcome::Abandoned));
}

#[tokio::test]
async fn a_token_can_be_replaced_and_what_cannot_work_does_not_start() {
    let fake = Fake::start().await;
    let publisher = ready(settings(&fake)).await;
    publisher.set_token("fresh").expect("a token");
    outcomes(publish_many(&publisher, "r", "chat", 0..1)).await;
    let header = fake.seen(|seen| seen.authorization.clone());
    assert_eq!(header.as_deref(), Some("Bearer fresh"));
    assert!(matches!(publisher.set_token("two\nlines"), Err(StartError::Token)));
    let expired = json!({"error": {"code": "token_expired", "reason": "r", "temporary": false}});
    fake.script(|script| script.act = Act::Answer(401, expired.to_string()));
    let refused = outcomes(publish_many(&publisher, "r", "chat", 1..2)).await;
    assert!(matches!(&refused[0], Outcome::Rejected(r) if r.code == "token_expired"));
    assert_eq!(fake.seen(|seen| seen.events.len()), 2, "asking again would not mend it");
    for url in ["", "localhost:7400", "https://", "ws://host", "http://", "http://a b"] {
        let started = Publisher::start(PublisherSettings::new(url, "token"));
        assert!(matches!(started, Err(StartError::Url(_))), "{url:?}");
    }
}

#[test]
fn it_needs_a_runtime() {
    let started = Publisher::start(PublisherSettings::new("http://127.0.0.1:1", "token"));
    assert!(matches!(started, Err(StartError::NoRuntime)));
}

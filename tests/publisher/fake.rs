//! A server that plays Tidegate, and can be told to be overloaded, slow, broken
//! or gone.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tidegate::clock::Clock;
use tidegate::engine::ids::Tier;
use tidegate::engine::level::{HourKey, LevelKey};
use tidegate::engine::priority::AdmissionLevel;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Tiers of the kinds that the fake knows.
pub(crate) const KINDS: [(&str, u8); 4] =
    [("red_packet", 0), ("gift", 1), ("chat", 3), ("like", 5)];

/// What the server does with the next requests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// Admits by its level, remembers ids.
    Serve,
    /// Takes the events like `Serve`, and breaks off in the middle of the answer.
    Cut,
    /// Answers this, and takes nothing.
    Answer(u16, String),
    /// Answers nothing at all.
    Stall,
}

/// The level an answer carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    pub(crate) business: u8,
    pub(crate) ttl_ms: u64,
}

/// Everything gets in.
pub(crate) const OPEN: Level = Level { business: 63, ttl_ms: 1_000 };

pub(crate) struct Script {
    pub(crate) act: Act,
    pub(crate) level: Level,
    /// Rooms with a level of their own.
    pub(crate) levels: HashMap<String, Level>,
    /// What a refusal for the level asks for; `None`: it is for good.
    pub(crate) retry_after_ms: Option<u64>,
    /// Whether there is a table of priorities.
    pub(crate) table: bool,
    /// Events in one request.
    pub(crate) most: usize,
}

/// What the server saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Events by room, in the order in which they came in requests that were read.
    pub(crate) events: Vec<(String, Value)>,
    pub(crate) batches: Vec<usize>,
    /// Accepted ids and their numbers.
    pub(crate) accepted: BTreeMap<String, u64>,
    /// Ids in the order of acceptance.
    pub(crate) delivered: Vec<String>,
    pub(crate) authorization: Option<String>,
}

pub(crate) struct Shared {
    pub(crate) script: Mutex<Script>,
    pub(crate) seen: Mutex<Seen>,
    key: HourKey,
    gate: watch::Sender<bool>,
}

/// The server; gone when dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address")).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let script = Script {
            act: Act::Serve,
            level: OPEN,
            levels: HashMap::new(),
            retry_after_ms: None,
            table: true,
            most: 1_000,
        };
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            seen: Mutex::default(),
            key: LevelKey::from_seed(1).hour(Clock::start().now()),
            gate: watch::Sender::new(true),
        });
        let router = Router::new()
            .route("/v1/admission", get(table))
            .route("/v1/rooms/{room}/events", post(publish))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving");
        });
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what it does from now on.
    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().expect("not poisoned"));
    }

    /// Looks at what it saw.
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().expect("not poisoned"))
    }

    /// Whether requests get their answers; until then they wait.
    pub(crate) fn open_gate(&self, open: bool) {
        self.shared.gate.send_replace(open);
    }

    /// Waits until so many requests were read.
    pub(crate) async fn requests(&self, count: usize) {
        while self.seen(|seen| seen.batches.len()) < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn answer(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

async fn table(State(shared): State<Arc<Shared>>) -> Response<Body> {
    let key = shared.key;
    let script = shared.script.lock().expect("not poisoned");
    if !script.table {
        return answer(StatusCode::NOT_FOUND, "");
    }
    let body = json!({
        "admission": {"business": 63, "user": 127},
        "kinds": KINDS.into_iter().collect::<HashMap<_, _>>(),
        "unknown_kind": 63,
        "user_levels": {
            "key": format!("{:032x}", key.to_bits()),
            "valid_until_ms": key.ends().as_millis(),
        },
    });
    answer(StatusCode::OK, body.to_string())
}

async fn publish(
    State(shared): State<Arc<Shared>>,
    Path(room): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).expect("the publisher writes JSON");
    let events = body["events"].as_array().expect("events").clone();
    {
        let mut seen = shared.seen.lock().expect("not poisoned");
        seen.batches.push(events.len());
        seen.events.extend(events.iter().map(|event| (room.clone(), event.clone())));
        seen.authorization =
            headers.get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned);
    }
    let mut gate = shared.gate.subscribe();
    gate.wait_for(|open| *open).await.expect("the server is there");
    let (act, most) = {
        let script = shared.script.lock().expect("not poisoned");
        (script.act.clone(), script.most)
    };
    if events.len() > most && matches!(act, Act::Serve) {
        let error = json!({"error": {"code": "too_many_events", "reason": "", "temporary": false}});
        return answer(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
    }
    match act {
        Act::Serve => answer(StatusCode::OK, serve(&shared, &room, &events)),
        Act::Cut => {
            let whole = serve(&shared, &room, &events);
            let half = Bytes::from(whole[..whole.len() / 2].to_owned());
            let broken = Err(std::io::Error::other("cut"));
            answer(
                StatusCode::OK,
                Body::from_stream(futures_util::stream::iter([Ok(half), broken])),
            )
        }
        Act::Answer(status, body) => answer(StatusCode::from_u16(status).expect("a status"), body),
        Act::Stall => std::future::pending().await,
    }
}

fn serve(shared: &Shared, room: &str, events: &[Value]) -> String {
    let script = shared.script.lock().expect("not poisoned");
    let mut seen = shared.seen.lock().expect("not poisoned");
    let wire = script.levels.get(room).copied().unwrap_or(script.level);
    let level = AdmissionLevel::from_wire(wire.business, 127, None);
    let tiers = HashMap::from(KINDS);
    let mut results = Vec::new();
    for event in events {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let id = text("id");
        let tier = Tier(tiers.get(text("kind").as_str()).copied().unwrap_or(63));
        let priority = shared.key.priority(tier, &text("user"), &id);
        if let Some(seq) = seen.accepted.get(&id) {
            results.push(json!({"id": id, "status": "accepted", "seq": seq}));
        } else if level.admits(priority) {
            let seq = seen.accepted.len() as u64 + 1;
            seen.accepted.insert(id.clone(), seq);
            seen.delivered.push(id.clone());
            results.push(json!({"id": id, "status": "accepted", "seq": seq}));
        } else {
            let mut result =
                json!({"id": id, "status": "rejected", "code": "overloaded", "reason": "r"});
            if let Some(millis) = script.retry_after_ms {
                result["retry_after_ms"] = millis.into();
            }
            results.push(result);
        }
    }
    let admission = json!({"business": wire.business, "user": 127, "ttl_ms": wire.ttl_ms});
    json!({"results": results, "admission": admission}).to_string()
}

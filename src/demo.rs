//! The demo: a page that shows a live room, tokens for it, and a feed that
//! keeps the room alive while somebody watches. Served only when it is on,
//! which by default is when no configuration file was given.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::auth::{Authenticator, Claims, Role};
use crate::clock::Clock;
use crate::engine::draft::Draft;
use crate::engine::event::{Event, Payload};
use crate::engine::ids::RoomId;
use crate::engine::kind::Kinds;
use crate::ingress::answer::{ApiError, json as json_answer};
use crate::shard::peers::{LocalShards, Message, Origin, Path as _, Placement as _};
use crate::tls::Identity;

/// The library of `clients/js`, built. It is committed, so that the server builds
/// without Node; a test of the library rebuilds it and compares.
const LIBRARY: &str = include_str!("../clients/js/dist/tidegate.js");
/// The demo's room.
pub const ROOM: &str = "demo";
/// How long a page's tokens hold.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);
/// Rhythm of the feed.
const BEAT: Duration = Duration::from_millis(250);
/// How long the feed sleeps while nobody watches.
const IDLE: Duration = Duration::from_secs(1);

/// Makes the tokens of a page.
#[derive(Clone)]
pub struct Tokens {
    auth: Arc<Authenticator>,
    identity: Option<Identity>,
    clock: Clock,
}

impl Tokens {
    /// With the server's own key; `identity` tells pages of a certificate that was
    /// made for development.
    #[must_use]
    pub fn new(auth: &Arc<Authenticator>, identity: Option<&Identity>, clock: Clock) -> Self {
        let identity = identity.filter(|identity| identity.is_development()).cloned();
        Self { auth: Arc::clone(auth), identity, clock }
    }

    fn mint(&self, user: &str, role: Role) -> Result<String, ApiError> {
        let claims =
            Claims { user: user.to_owned(), role, rooms: vec![ROOM.to_owned()], client: None };
        self.auth.mint(&claims, TOKEN_TTL, self.clock.now()).map_err(|error| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            ApiError::new(status, "no_signing_key", error.to_string())
        })
    }
}

/// The page and its session.
pub fn router(tokens: Tokens) -> Router {
    let page = || get(|| async { file(include_str!("demo/page/index.html"), "text/html") });
    Router::new()
        .route("/", page())
        .route("/demo", page())
        .route(
            "/demo/app.js",
            get(|| async { file(include_str!("demo/page/app.js"), "text/javascript") }),
        )
        .route(
            "/demo/slow.js",
            get(|| async { file(include_str!("demo/page/slow.js"), "text/javascript") }),
        )
        .route("/demo/tidegate.js", get(|| async { file(LIBRARY, "text/javascript") }))
        .route(
            "/demo/style.css",
            get(|| async { file(include_str!("demo/page/style.css"), "text/css") }),
        )
        .route(
            "/demo/icon.svg",
            get(|| async { file(include_str!("demo/page/icon.svg"), "image/svg+xml") }),
        )
        .route("/demo/session", get(session))
        .route("/demo/certificate", get(certificate))
        .with_state(tokens)
}

fn file(text: &'static str, kind: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_str(&format!("{kind}; charset=utf-8"));
    if let Ok(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

async fn session(State(tokens): State<Tokens>) -> Result<Response<Body>, ApiError> {
    let user = format!("guest-{:04x}", rand::random::<u16>());
    let body = json!({
        "room": ROOM,
        "user": user,
        "viewer_token": tokens.mint(&user, Role::Viewer)?,
        "publisher_token": tokens.mint("im-service", Role::Publisher)?,
    });
    let mut response = json_answer(StatusCode::OK, body.to_string().into_bytes());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What a page needs to trust the development certificate by its hash: that of
/// the present one, and of earlier ones while they hold, in base64.
async fn certificate(State(tokens): State<Tokens>) -> Result<Response<Body>, ApiError> {
    let now = tokens.clock.now();
    let known = tokens.identity.map(|identity| identity.fingerprints(now)).unwrap_or_default();
    let mut hashes = known.iter().map(|known| {
        let sha256 = STANDARD.encode(known.sha256);
        json!({"sha256": sha256, "expires_ms": known.expires.as_millis()})
    });
    let Some(mut body) = hashes.next() else {
        let reason = "there is no certificate for development here";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_certificate", reason));
    };
    body["previous"] = hashes.collect();
    let mut response = json_answer(StatusCode::OK, body.to_string().into_bytes());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Publishes what a small live room might see, while somebody watches it.
pub async fn feed(shards: Arc<LocalShards>, kinds: Arc<Kinds>, clock: Clock) {
    let Ok(room) = RoomId::new(ROOM) else { return };
    let mut script = Script { draws: rand::random(), beat: 0 };
    loop {
        if online(&shards, &room).await == 0 {
            sleep(IDLE).await;
            continue;
        }
        let now = clock.now();
        let drafts = script.next_beat();
        let events: Vec<Event> = drafts
            .into_iter()
            .filter_map(|line| line.draft().check(&kinds, true, now).ok())
            .collect();
        // A full mailbox means real publishers need the room more.
        let _ = shards.publish(room.clone(), events, Duration::ZERO, Origin::Nobody);
        sleep(BEAT).await;
    }
}

async fn online(shards: &LocalShards, room: &RoomId) -> u32 {
    let (reply, answer) = oneshot::channel();
    shards.send(shards.home_of(room), Message::ReadRoom { room: room.clone(), reply });
    answer.await.ok().flatten().map_or(0, |snapshot| snapshot.snapshot().online)
}

struct Line {
    id: String,
    kind: &'static str,
    user: String,
    payload: serde_json::Value,
    key: Option<&'static str>,
    amount: Option<i64>,
}

impl Line {
    fn draft(&self) -> Draft<'_> {
        Draft {
            id: &self.id,
            kind: self.kind,
            user: &self.user,
            payload: Payload { bytes: self.payload.to_string().into(), json: true },
            key: self.key,
            amount: self.amount,
            ttl_ms: None,
        }
    }
}

const NAMES: [&str; 12] = [
    "Mika", "Jonas", "Aiko", "Lena", "Rafael", "Noor", "Tove", "Emre", "Yuki", "Clara", "Dmitri",
    "Ines",
];
const CHAT: [&str; 14] = [
    "hello from Lisbon!",
    "is the blue one back in stock?",
    "that jacket is gorgeous",
    "first time here, what are we looking at?",
    "size M please",
    "how long is shipping?",
    "the colour looks different on my screen",
    "wow, that price",
    "can you show it from behind?",
    "take my money",
    "anyone else got the last drop?",
    "greetings to everyone",
    "does it come in green?",
    "ordered two!",
];
const GIFTS: [(&str, &str, i64); 3] =
    [("rose", "Rose", 1), ("rocket", "Rocket", 50), ("lantern", "Lantern", 10)];
const CARDS: [(&str, &str); 3] =
    [("Harbour rain jacket", "89.00"), ("Tide mug, set of two", "24.50"), ("Canvas tote", "19.90")];

/// What happens in the demo's room, beat by beat.
struct Script {
    draws: u64,
    beat: u64,
}

impl Script {
    fn draw(&mut self, below: u64) -> u64 {
        self.draws = self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.draws >> 33) % below
    }

    fn line(&mut self, kind: &'static str, payload: serde_json::Value) -> Line {
        let user = NAMES[self.draw(NAMES.len() as u64) as usize].to_owned();
        let number = self.draw(1 << 30);
        let id = format!("demo-{:x}-{number:x}", self.beat);
        Line { id, kind, user, payload, key: None, amount: None }
    }

    fn next_beat(&mut self) -> Vec<Line> {
        self.beat += 1;
        let mut lines = Vec::new();
        for _ in 0..self.draw(4) {
            let amount = 1 + self.draw(9) as i64;
            let like = self.line("like", serde_json::Value::Null);
            lines.push(Line { amount: Some(amount), ..like });
        }
        if self.draw(3) == 0 {
            let text = CHAT[self.draw(CHAT.len() as u64) as usize];
            lines.push(self.line("chat", json!(text)));
        }
        if self.draw(6) == 0 {
            lines.push(self.line("enter", serde_json::Value::Null));
        }
        if self.draw(20) == 0 {
            let (key, name, value) = GIFTS[self.draw(GIFTS.len() as u64) as usize];
            let combo = 1 + self.draw(6);
            let first = self.line("gift", json!({"name": name, "value": value}));
            for i in 0..combo {
                lines.push(Line {
                    id: format!("{}-{i}", first.id),
                    user: first.user.clone(),
                    payload: first.payload.clone(),
                    key: Some(key),
                    amount: Some(1),
                    kind: first.kind,
                });
            }
        }
        if self.beat % 80 == 5 {
            let (title, price) = CARDS[self.draw(CARDS.len() as u64) as usize];
            let card = self.line("product_card", json!({"title": title, "price": price}));
            lines.push(Line { key: Some("pinned"), ..card });
        }
        if self.beat % 240 == 120 {
            let packet = json!({"title": "Harbour luck", "amount": 88, "seconds": 8});
            lines.push(self.line("red_packet", packet));
        }
        lines
    }
}

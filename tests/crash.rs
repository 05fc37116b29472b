//! The server dies at random moments, on the real binary: nothing that was
//! accepted is lost or comes twice, in the log and for every viewer. The long
//! form is `loadtest crash`. Moments are counted in accepted events, not in
//! time; the seed is printed.

mod harness;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::{PATIENCE, Server};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

const ROOMS: usize = 3;
const VIEWERS: usize = 4;
/// The last event of a room.
const END: &str = "end";
/// Between two attempts to reach a server that is being restarted.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection from another address than the server's: on the same one the
/// kernel could give a client the port of a server that is being restarted.
fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into())?;
    socket.connect(&address.into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Publishes one event; `None`: there was no answer.
fn publish(address: SocketAddr, token: &str, room: &str, id: &str) -> Option<Value> {
    let body = json!({"events": [{"id": id, "kind": "red_packet", "payload": id}]}).to_string();
    let request = format!(
        "POST /v1/rooms/{room}/events HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Content-Type: application/json\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = connect(address).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    if answer.starts_with("HTTP/1.1 503") {
        return None; // It is leaving.
    }
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(body["results"][0].clone())
}

/// Publishes one event until it is accepted; returns its number.
fn insist(address: SocketAddr, token: &str, room: &str, id: &str) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        match publish(address, token, room, id) {
            Some(result) if result["status"] == "accepted" => {
                return result["seq"].as_u64().expect("a number");
            }
            Some(result) => {
                assert!(result["retry_after_ms"].is_u64(), "refused for good: {result}");
            }
            None => {}
        }
        assert!(Instant::now() < until, "{id} of {room} is never accepted");
        std::thread::sleep(PAUSE);
    }
}

/// A viewer as a client library would be: it comes back, acknowledges, drops by
/// number what it has, and asks for what it misses.
struct Client {
    address: SocketAddr,
    room: String,
    token: String,
    /// Epoch, last number, last important number without a hole.
    at: Option<(u64, u64, u64)>,
    /// What was shown.
    shown: Vec<String>,
}

impl Client {
    /// Watches until the room's last event; returns what was shown.
    fn watch(mut self, here: &AtomicU64) -> Vec<String> {
        let until = Instant::now() + 3 * PATIENCE;
        while self.shown.last().is_none_or(|id| id != END) {
            assert!(Instant::now() < until, "{} does not end: {:?}", self.room, self.shown.last());
            // However a connection ends, the next one goes on.
            if self.connection(here).is_none() {
                std::thread::sleep(PAUSE);
            }
        }
        self.shown
    }

    /// One connection, to its end. `None`: it was cut off.
    fn connection(&mut self, here: &AtomicU64) -> Option<()> {
        let url = format!("ws://{}/v1/ws", self.address);
        let mut request = url.into_client_request().expect("a request");
        let protocol = "tidegate.v1.json".parse().expect("a header value");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let stream = connect(self.address).ok()?;
        let (mut socket, _) = tungstenite::client(request, stream).ok()?;
        let mut join = json!({"room": self.room, "token": self.token, "acks": true});
        if let Some((epoch, seq, important)) = self.at {
            join["resume"] = json!({"epoch": epoch, "seq": seq, "important": important});
        }
        say(&mut socket, &json!({ "join": join }))?;
        loop {
            let Message::Text(text) = socket.read().ok()? else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if let Some(joined) = message.get("joined") {
                self.joined(joined, here);
            } else if let Some(frame) = message.get("frame") {
                let missing = self.frame(frame);
                if self.shown.last().is_some_and(|id| id == END) {
                    return Some(());
                }
                let (_, _, important) = self.at?;
                let room = &self.room;
                if let Some(to) = missing {
                    say(
                        &mut socket,
                        &json!({"pull": {"room": room, "from": important + 1, "to": to}}),
                    )?;
                } else if frame.get("ack").is_some() {
                    say(&mut socket, &json!({"ack": {"room": room, "important": important}}))?;
                }
            } else if message.get("goaway").is_some() {
                return None;
            }
        }
    }

    fn joined(&mut self, joined: &Value, here: &AtomicU64) {
        let number = |name: &str| joined[name].as_u64().expect("a number");
        let (epoch, seq, important) = (number("epoch"), number("seq"), number("important"));
        assert!(joined.get("missed").is_none(), "all of it is kept: {joined}");
        match &mut self.at {
            None => {
                here.fetch_add(1, Ordering::SeqCst);
                self.at = Some((epoch, seq, important));
            }
            Some((known, last, shown)) if *known != epoch => {
                // Nothing of the room was logged: a later numbering is all new.
                assert!(*shown == 0 && epoch > *known, "one numbering over all restarts");
                (*known, *last) = (epoch, seq);
            }
            Some((_, last, shown)) => {
                assert!(important >= *shown, "what was shown is gone");
                if joined["recovered"] == false {
                    *last = seq;
                }
            }
        }
    }

    /// Shows what is new; returns the last number of what is missing.
    fn frame(&mut self, frame: &Value) -> Option<u64> {
        let (_, seq, shown) = self.at.as_mut().expect("joined before");
        *seq = (*seq).max(frame["last_seq"].as_u64().expect("a number"));
        for event in frame["events"].as_array().expect("events") {
            // Behind a hole nothing is shown: it comes again with the pull.
            if event["important"] == *shown + 1 {
                *shown += 1;
                self.shown.push(event["id"].as_str().expect("an id").to_owned());
            }
        }
        let newest = frame["important"].as_u64().expect("a number");
        (newest > *shown).then_some(newest)
    }
}

fn say(socket: &mut WebSocket<TcpStream>, message: &Value) -> Option<()> {
    socket.send(Message::text(message.to_string())).ok()
}

/// Publishes to one room until it is told to stop; returns ids and numbers.
fn publisher(
    server: &Server,
    room: String,
    stop: &Arc<AtomicBool>,
    accepted: &Arc<AtomicU64>,
) -> JoinHandle<Vec<(String, u64)>> {
    let (address, token) = (server.address, server.token("im", "publisher", &["*"]));
    let (stop, accepted) = (Arc::clone(stop), Arc::clone(accepted));
    std::thread::spawn(move || {
        let mut told = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let id = format!("{room}-{}", told.len());
            let seq = insist(address, &token, &room, &id);
            told.push((id, seq));
            accepted.fetch_add(1, Ordering::SeqCst);
        }
        told.push((END.to_owned(), insist(address, &token, &room, END)));
        told
    })
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The room's important events: ids and numbers, in order.
fn logged(server: &Server, room: &str) -> Vec<(String, u64)> {
    let token = server.token("auditor", "viewer", &[room]);
    let mut events: Vec<(String, u64)> = Vec::new();
    loop {
        let path = format!("/v1/rooms/{room}/events?important_after={}&limit=50", events.len());
        let (status, page) = server.http("GET", &path, Some(&token), "");
        assert_eq!((status, &page["complete"]), (200, &json!(true)), "{page}");
        for event in page["events"].as_array().expect("events") {
            assert_eq!(event["important"], events.len() as u64 + 1, "no hole, nothing twice");
            let id = event["id"].as_str().expect("an id").to_owned();
            events.push((id, event["seq"].as_u64().expect("a number")));
        }
        if page["more"] == false {
            return events;
        }
    }
}

/// Ends the server `times` times, by `end`, while rooms are busy.
fn survives(times: u32, end: fn(&mut Server)) {
    let seed = harness::now();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut server = Server::start("");
    let rooms: Vec<String> = (0..ROOMS).map(|room| format!("r{room}")).collect();
    let here = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for (number, room) in
        rooms.iter().flat_map(|room| std::iter::repeat_n(room, VIEWERS)).enumerate()
    {
        let client = Client {
            address: server.address,
            room: room.clone(),
            token: server.token(&format!("u{number}"), "viewer", &[room]),
            at: None,
            shown: Vec::new(),
        };
        let here = Arc::clone(&here);
        clients.push((room, std::thread::spawn(move || client.watch(&here))));
    }
    let everybody = clients.len() as u64;
    wait_until("viewers do not join", || here.load(Ordering::SeqCst) == everybody);
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let publishers: Vec<_> =
        rooms.iter().map(|room| publisher(&server, room.clone(), &stop, &accepted)).collect();
    for _ in 0..times {
        let moment = accepted.load(Ordering::SeqCst) + random.random_range(1..80);
        wait_until("nothing is accepted", || accepted.load(Ordering::SeqCst) >= moment);
        end(&mut server);
        server.again();
    }
    stop.store(true, Ordering::SeqCst);
    let mut all = HashMap::new();
    for (room, publisher) in rooms.iter().zip(publishers) {
        let mut told = publisher.join().expect("every event was answered");
        let events = logged(&server, room);
        told.sort_by_key(|(_, seq)| *seq);
        assert_eq!(events, told, "the log of {room} is what was answered");
        assert!(events.is_sorted_by(|(_, a), (_, b)| a < b), "no number was given twice");
        all.insert(room, events.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
    }
    for (room, client) in clients {
        let shown = client.join().expect("a viewer that came through");
        assert_eq!(shown, all[room], "all of {room}, once and in order");
    }
}

#[test]
fn kills_lose_nothing_and_double_nothing() {
    survives(6, Server::kill);
}

#[test]
fn orderly_ends_lose_nothing_and_double_nothing() {
    survives(3, |server| server.terminate());
}

#[test]
fn what_came_before_a_viewer_was_back_in_a_room_without_a_past_can_be_pulled() {
    let mut server = Server::start("");
    let token = server.token("u", "viewer", &["r"]);
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.join("r", &token);
    let before = viewer.expect("joined");
    server.kill();
    server.again();
    let event = json!([{"id": "a", "kind": "red_packet", "payload": 1}]);
    assert_eq!(server.publish("r", event).0, 200);
    let mut viewer = server.connect();
    viewer.expect("welcome");
    viewer.resume("r", &token, &json!({"epoch": before["epoch"], "seq": 0, "important": 0}));
    let joined = viewer.expect("joined");
    assert_eq!((&joined["recovered"], &joined["important"]), (&json!(false), &json!(1)));
    // Epochs are ordered: all of a later one is new to whoever knows an earlier.
    assert!(joined["epoch"].as_u64() > before["epoch"].as_u64(), "{joined}");
    viewer.send(&json!({"pull": {"room": "r", "from": 1, "to": 1}}));
    assert_eq!(viewer.expect("frame")["events"][0]["id"], "a");
}

#[test]
fn the_first_number_after_a_restart_is_not_given_again_by_the_next() {
    let mut server = Server::start("");
    let event = |id: &str, kind: &str| json!([{"id": id, "kind": kind, "payload": 1}]);
    let number = |(status, body): (u16, Value)| {
        assert_eq!(status, 200, "{body}");
        body["results"][0]["seq"].as_u64().expect("a number")
    };
    let mut last = number(server.publish("r", event("a", "red_packet")));
    for life in 0..5 {
        server.kill();
        server.again();
        // Talk is answered without waiting for the log.
        let next = number(server.publish("r", event(&format!("c{life}"), "chat")));
        assert!(next > last, "life {life}: {next} after {last}");
        last = next;
    }
}

//! Events of our own, sent through the publisher API.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::drive::Source;
use crate::http::Client;
use crate::server::Server;
use crate::sys;
use crate::viewer::marked_payload;

/// The answer to a publication.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    /// Per event, in order.
    pub(crate) results: Vec<EventResult>,
}

/// What became of one event.
#[derive(Debug, Deserialize)]
pub(crate) struct EventResult {
    /// Its id.
    pub(crate) id: String,
    /// `accepted` or `rejected`.
    pub(crate) status: String,
    /// Its number, unless sampled.
    #[serde(default)]
    pub(crate) seq: Option<u64>,
    /// Why it was rejected.
    #[serde(default)]
    pub(crate) code: Option<String>,
}

impl EventResult {
    /// Whether it was taken.
    pub(crate) fn accepted(&self) -> bool {
        self.status == "accepted"
    }
}

/// Publishes `events` (JSON objects) to `room`.
pub(crate) fn publish(client: &mut Client, room: &str, events: &[String]) -> Result<Answer> {
    let body = format!("{{\"events\":[{}]}}", events.join(","));
    let (status, body) = client.post(&format!("/v1/rooms/{room}/events"), body.as_bytes())?;
    if status != 200 {
        bail!("publishing to {room}: {status} {}", String::from_utf8_lossy(&body));
    }
    let answer: Answer = serde_json::from_slice(&body).context("answer to a publication")?;
    if answer.results.len() != events.len() {
        bail!("{} results for {} events", answer.results.len(), events.len());
    }
    Ok(answer)
}

/// Sends marked events of one kind into the rooms of a run, one per request.
pub(crate) struct Publisher {
    client: Client,
    pid: Option<u32>,
    rooms: Vec<String>,
    kind: String,
    run: u64,
    /// Bytes of an event's payload.
    pub(crate) payload: usize,
    /// Why events were refused, the last time.
    pub(crate) refusal: Option<String>,
}

impl Publisher {
    /// For these rooms of a server.
    pub(crate) fn new(server: &Server, rooms: &[String], kind: &str) -> Result<Self> {
        Ok(Self {
            client: server.publisher()?,
            pid: server.pid(),
            rooms: rooms.to_vec(),
            kind: kind.to_owned(),
            run: sys::mono_us(),
            payload: 64,
            refusal: None,
        })
    }
}

impl Source for Publisher {
    fn send(&mut self, room: u16, n: u64, intended: u64) -> Result<bool> {
        let event = format!(
            "{{\"id\":\"{}-{room}-{n}\",\"kind\":\"{}\",\"user\":\"loadtest\",\"payload\":{}}}",
            self.run,
            self.kind,
            marked_payload(room, n, intended, self.payload)
        );
        let name = &self.rooms[usize::from(room)];
        let answer = publish(&mut self.client, name, &[event])?;
        let result = &answer.results[0];
        if !result.accepted() {
            self.refusal.clone_from(&result.code);
        }
        Ok(result.accepted())
    }

    fn pid(&self) -> Option<u32> {
        self.pid
    }
}

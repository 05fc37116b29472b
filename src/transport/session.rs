//! What a viewer's messages mean, whatever transport brings them.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Authenticator, Role};
use crate::clock::Clock;
use crate::engine::draft::Draft;
use crate::engine::ids::{ImportantNo, RoomId};
use crate::engine::kind::Kinds;
use crate::engine::mark::{Mark, Way};
use crate::engine::room::Position;
use crate::limits::{CallerLimits, ClientTypes};
use crate::shard::connection::{Speaker, ViewerKey};
use crate::shard::stats::{JOIN_RESULTS, PUBLISH_REFUSALS, count};
use crate::shard::{Entry, Shard, Speech};
use crate::trace::{Arrival, Watch};
use crate::transport::websocket::decode::Inbound;
use crate::transport::websocket::reader::Listener;
use crate::wire::close::CloseReason;
use crate::wire::message::{ClientEvent, ClientMessage, ServerMessage};
use crate::wire::{json, proto};

/// Advice to a viewer whose event found the home's mailbox full.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Serves the viewers of one shard.
pub struct Session {
    /// Who may do what.
    pub auth: Arc<Authenticator>,
    /// What may be said.
    pub kinds: Arc<Kinds>,
    /// How much of it, by client type.
    pub limits: Arc<CallerLimits>,
    /// Client types that have joined.
    pub clients: ClientTypes,
    /// Which events are followed.
    pub watch: Arc<Watch>,
    /// What time it is.
    pub clock: Clock,
}

impl Listener for Session {
    fn opened(&mut self, shard: &mut Shard, key: ViewerKey) {
        shard.welcome(key);
    }

    fn ping(&mut self, shard: &mut Shard, key: ViewerKey) -> bool {
        shard.hear(key) == Speech::Granted
    }

    fn message(&mut self, shard: &mut Shard, key: ViewerKey, message: Inbound<'_>) {
        let speech = shard.hear(key);
        let json = shard.viewers.row(key.index).format.is_json();
        let parsed = match (message, json) {
            (Inbound::Text(text), true) => json::client_message(text),
            (Inbound::Binary(bytes), false) => proto::client_message(bytes),
            _ => return shard.close(key, CloseReason::WrongDataType),
        };
        match (speech, parsed) {
            (Speech::Closed, _) => {}
            (_, Err(reason)) => {
                error(shard, key, "bad_message", &reason, false, None);
                shard.close(key, CloseReason::BadMessage);
            }
            (Speech::Granted, Ok(message)) => {
                shard.stats.messages[message.index()] += 1;
                self.granted(shard, key, message);
            }
            (Speech::TooFast(wait), Ok(message)) => {
                shard.stats.messages[message.index()] += 1;
                too_fast(shard, key, &message, wait);
            }
        }
    }
}

impl Session {
    fn granted(&mut self, shard: &mut Shard, key: ViewerKey, message: ClientMessage) {
        match message {
            ClientMessage::Join { room, token, resume, acks } => {
                self.join(shard, key, &room, &token, (resume, acks));
            }
            ClientMessage::Leave { room } => leave(shard, key, &room),
            ClientMessage::Publish(event) => self.publish(shard, key, &event),
            ClientMessage::Pull { room, from, to } => pull(shard, key, &room, from, to),
            ClientMessage::Ack { room, important } => {
                // An `ack` for a room that it has just left is no mistake.
                if let Ok(room) = RoomId::new(&room) {
                    shard.acknowledge(key, &room, important);
                }
            }
            ClientMessage::Digest { room, from, to, digest } => {
                if let Ok(room) = RoomId::new(&room) {
                    shard.reconcile(key, &room, (from, to), digest);
                }
            }
            ClientMessage::Pong => {}
        }
    }

    fn join(
        &mut self,
        shard: &mut Shard,
        key: ViewerKey,
        room: &str,
        token: &str,
        (resume, acks): (Option<Position>, bool),
    ) {
        let grant = match self.auth.verify(token, self.clock.now()) {
            Ok(grant) => grant,
            Err(refused) => {
                count(&mut shard.stats.joins, &JOIN_RESULTS, "bad_token");
                let reason = refused.to_string();
                return error(shard, key, refused.code(), &reason, false, Some(room));
            }
        };
        let allowed = RoomId::new(room).ok().filter(|room| grant.allows_room(room));
        let Some(id) = allowed else {
            count(&mut shard.stats.joins, &JOIN_RESULTS, "forbidden_room");
            let reason = "the token does not grant this room";
            return error(shard, key, "forbidden_room", reason, false, Some(room));
        };
        let any_kind = grant.role != Role::Viewer;
        let speaker = Speaker { any_kind, client: self.clients.number(grant.client_type()) };
        if let Err(refused) =
            shard.join(key, &id, Entry { user: &grant.user, speaker, resume, acks })
        {
            shard.refuse_join(key, &id, refused);
        }
    }

    fn publish(&mut self, shard: &mut Shard, key: ViewerKey, said: &ClientEvent) {
        let room = RoomId::new(&said.room).ok();
        let place = room.and_then(|room| shard.speaker_in(key, &room).map(|s| (room, s)));
        let Some((room, (user, speaker))) = place else {
            let reason = "join the room before publishing to it";
            return reject(shard, key, &said.id, "not_joined", reason, None);
        };
        if shard.is_draining() {
            let reason = "the server is leaving";
            return reject(shard, key, &said.id, "draining", reason, Some(BUSY_RETRY));
        }
        let now = self.clock.now();
        let arrival = Arrival { way: Way::Viewer, shard: shard.id(), received: now };
        let marker = self.watch.begin(&room, arrival, None);
        let mark = marker.and_then(|marker| marker.mark(&said.id, &said.kind));
        if let Err(limited) = self.limits.take(None, self.clients.name(speaker.client), 1, now) {
            let (code, reason) = (limited.by.code(), limited.by.reason());
            trace_refusal(shard, mark, code);
            return reject(shard, key, &said.id, code, reason, Some(limited.retry_after));
        }
        let draft = Draft {
            id: &said.id,
            kind: &said.kind,
            user: &user,
            payload: said.payload.clone(),
            key: said.key.as_deref(),
            amount: said.amount,
            ttl_ms: None,
        };
        match draft.check(&self.kinds, speaker.any_kind, now) {
            Err(refused) => {
                let reason = refused.to_string();
                trace_refusal(shard, mark, refused.code());
                reject(shard, key, &said.id, refused.code(), &reason, None);
            }
            Ok(mut event) => {
                event.mark.clone_from(&mark);
                if !shard.publish(key, room, event) {
                    trace_refusal(shard, mark, "busy");
                    let reason = "the server has more events waiting than it takes";
                    reject(shard, key, &said.id, "busy", reason, Some(BUSY_RETRY));
                }
            }
        }
    }
}

/// An event that is followed goes no further.
fn trace_refusal(shard: &Shard, mark: Option<Arc<Mark>>, code: &'static str) {
    if let Some(mark) = mark {
        shard.trace_refusal(mark, code);
    }
}

fn leave(shard: &mut Shard, key: ViewerKey, room: &str) {
    let left = RoomId::new(room).is_ok_and(|id| shard.leave(key, &id));
    if left {
        shard.reply(key, &ServerMessage::Left { room });
    } else {
        error(shard, key, "not_joined", "this connection is not in the room", false, Some(room));
    }
}

fn pull(shard: &mut Shard, key: ViewerKey, room: &str, from: ImportantNo, to: ImportantNo) {
    let id = RoomId::new(room).ok().filter(|id| shard.speaker_in(key, id).is_some());
    match id {
        Some(id) => shard.pull(key, &id, from, to),
        None => {
            let reason = "join the room before pulling from it";
            error(shard, key, "not_joined", reason, false, Some(room));
        }
    }
}

fn too_fast(shard: &mut Shard, key: ViewerKey, message: &ClientMessage, wait: Duration) {
    let reason = "too many messages; slow down, or the connection is closed";
    match message {
        ClientMessage::Publish(event) => {
            reject(shard, key, &event.id, "rate_limited", reason, Some(wait));
        }
        ClientMessage::Ack { .. } | ClientMessage::Digest { .. } | ClientMessage::Pong => {}
        ClientMessage::Join { room, .. }
        | ClientMessage::Leave { room }
        | ClientMessage::Pull { room, .. } => {
            error(shard, key, "rate_limited", reason, true, Some(room));
        }
    }
}

fn error(
    shard: &mut Shard,
    key: ViewerKey,
    code: &str,
    reason: &str,
    temporary: bool,
    room: Option<&str>,
) {
    let retry_after_ms = None;
    shard.reply(key, &ServerMessage::Error { code, reason, temporary, room, retry_after_ms });
}

fn reject(
    shard: &mut Shard,
    key: ViewerKey,
    id: &str,
    code: &str,
    reason: &str,
    retry: Option<Duration>,
) {
    let counter = if PUBLISH_REFUSALS.contains(&code) { code } else { "bad_event" };
    count(&mut shard.stats.publish_refused, &PUBLISH_REFUSALS, counter);
    let retry_after_ms = retry.map(|wait| wait.as_millis() as u64);
    let admission = None;
    shard.reply(key, &ServerMessage::Rejected { id, code, reason, retry_after_ms, admission });
}

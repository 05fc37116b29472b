//! The protobuf subprotocol: the shapes and names of the JSON one, generated
//! from `proto/tidegate/v1/room.proto`.

use prost::Message as _;

use super::message::{ClientEvent, ClientMessage, Gap, Recovery, ServerMessage, payload_of_bytes};
use crate::engine::delivery::Cut;
use crate::engine::digest::Digest;
use crate::engine::event::{DroppedKind, Frame, Numbered, Snapshot, Total};
use crate::engine::ids::{Epoch, ImportantNo, Seq};
use crate::engine::priority::Advice;
use crate::engine::room::Position;

/// Generated messages.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
}

use v1::client_message::Message as In;
use v1::server_message::Message as Out;

fn event(numbered: &Numbered) -> v1::Event {
    let event = &numbered.event;
    v1::Event {
        id: event.id.to_string(),
        kind: event.kind.name.to_string(),
        user: event.user.to_string(),
        seq: numbered.seq.map(|s| s.0),
        important: numbered.important.map(|i| i.0),
        payload: event.payload.bytes.clone(),
        key: event.key.as_ref().map(ToString::to_string),
        amount: event.amount,
        time_ms: event.received.as_millis(),
    }
}

fn total(total: &Total) -> v1::Total {
    v1::Total {
        kind: total.kind.name.to_string(),
        key: total.key.to_string(),
        sum: total.sum,
        delta: total.delta,
        user: total.user.as_ref().map(ToString::to_string),
    }
}

fn dropped(dropped: &[DroppedKind]) -> std::collections::HashMap<String, u64> {
    dropped.iter().map(|d| (d.kind.name.to_string(), d.count)).collect()
}

fn encode(message: Out) -> Vec<u8> {
    v1::ServerMessage { message: Some(message) }.encode_to_vec()
}

/// A whole `frame` message, of which `cut` has been taken already.
#[must_use]
pub fn frame(frame: &Frame, cut: Cut) -> Vec<u8> {
    encode(Out::Frame(v1::Frame {
        room: frame.room.to_string(),
        epoch: frame.epoch.0,
        first_seq: frame.first_seq.0,
        last_seq: frame.last_seq.0,
        important: frame.important.0,
        time_ms: frame.time.as_millis(),
        events: frame.events.iter().map(|e| event(e)).collect(),
        totals: frame.totals.iter().map(total).collect(),
        dropped: dropped(&frame.dropped),
        online: frame.online,
        ack: frame.ack.map(|a| v1::AckAsked {
            one_in: a.one_in,
            within_ms: a.within_ms,
            digest_from: a.digest_from.map(|from| from.0),
        }),
        withheld: cut.withheld(),
    }))
}

/// A whole `joined` message.
#[must_use]
pub fn joined(snapshot: &Snapshot, recovery: Recovery) -> Vec<u8> {
    encode(Out::Joined(v1::Joined {
        room: snapshot.room.to_string(),
        epoch: snapshot.epoch.0,
        seq: snapshot.seq.0,
        important: snapshot.important.0,
        online: snapshot.online,
        users: snapshot.users.count,
        users_exact: snapshot.users.exact,
        recovered: recovery.recovered,
        missed: recovery.missed.map(|(from, to)| v1::Missed { from: from.0, to: to.0 }),
        state: snapshot.state.iter().map(|e| event(e)).collect(),
        totals: snapshot.totals.iter().map(total).collect(),
        rebased: recovery.rebased,
    }))
}

/// A message to one viewer.
#[must_use]
pub fn server_message(message: &ServerMessage<'_>) -> Vec<u8> {
    encode(match *message {
        ServerMessage::Welcome { session, ping_interval_ms, ack_slot } => {
            let (session, ack_slot) = (session.to_owned(), u32::from(ack_slot));
            Out::Welcome(v1::Welcome { session, ping_interval_ms, ack_slot })
        }
        ServerMessage::Gap(Gap { room, first_seq, last_seq, dropped: counts }) => {
            Out::Gap(v1::Gap {
                room: room.to_owned(),
                first_seq: first_seq.0,
                last_seq: last_seq.0,
                dropped: dropped(counts),
            })
        }
        ServerMessage::Accepted { id, seq, admission } => Out::Accepted(v1::Accepted {
            id: id.to_owned(),
            seq: seq.map(|s| s.0),
            admission: admission.map(self::admission),
        }),
        ServerMessage::Rejected { id, code, reason, retry_after_ms, admission } => {
            Out::Rejected(v1::Rejected {
                id: id.to_owned(),
                code: code.to_owned(),
                reason: reason.to_owned(),
                retry_after_ms,
                admission: admission.map(self::admission),
            })
        }
        ServerMessage::Error { code, reason, temporary, room, retry_after_ms } => {
            Out::Error(v1::Error {
                code: code.to_owned(),
                reason: reason.to_owned(),
                temporary,
                room: room.map(ToOwned::to_owned),
                retry_after_ms,
            })
        }
        ServerMessage::Goaway { reconnect_after_ms } => {
            Out::Goaway(v1::Goaway { reconnect_after_ms, url: None })
        }
        ServerMessage::Ping => Out::Ping(v1::Ping {}),
        ServerMessage::Missed { room, from, to, within_ms } => {
            let (room, from, to) = (room.to_owned(), from.0, to.0);
            Out::Missed(v1::MissedNotice { room, from, to, within_ms })
        }
        ServerMessage::Left { room } => Out::Left(v1::Left { room: room.to_owned() }),
    })
}

/// What is admitted, as every answer carries it.
#[must_use]
pub fn admission(advice: Advice) -> v1::Admission {
    v1::Admission {
        business: u32::from(advice.level.business()),
        user: u32::from(advice.level.user()),
        share: advice.share_per_mille().map(|share| f64::from(share) / 1_000.0),
        ttl_ms: advice.ttl.as_millis() as u64,
    }
}

/// Reads a viewer's message.
///
/// # Errors
/// Why it is none, for people.
pub fn client_message(bytes: &[u8]) -> Result<ClientMessage, String> {
    let message = v1::ClientMessage::decode(bytes).map_err(|e| e.to_string())?;
    Ok(match message.message.ok_or("an empty or unknown message")? {
        In::Join(join) => ClientMessage::Join {
            room: join.room,
            token: join.token,
            resume: join.resume.map(|r| Position {
                epoch: Epoch(r.epoch),
                seq: Seq(r.seq),
                important: ImportantNo(r.important),
            }),
            acks: join.acks,
        },
        In::Leave(leave) => ClientMessage::Leave { room: leave.room },
        In::Publish(event) => ClientMessage::Publish(ClientEvent {
            room: event.room,
            id: event.id,
            kind: event.kind,
            payload: payload_of_bytes(event.payload),
            key: event.key,
            amount: event.amount,
        }),
        In::Ack(ack) => {
            ClientMessage::Ack { room: ack.room, important: ImportantNo(ack.important) }
        }
        In::Pull(pull) => ClientMessage::Pull {
            room: pull.room,
            from: ImportantNo(pull.from),
            to: ImportantNo(pull.to),
        },
        In::Digest(digest) => ClientMessage::Digest {
            room: digest.room,
            from: ImportantNo(digest.from),
            to: ImportantNo(digest.to),
            digest: Digest { count: digest.count, xor: digest.xor },
        },
        In::Pong(_) => ClientMessage::Pong,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_broken_message_is_refused() {
        assert!(client_message(&[]).is_err());
        assert!(client_message(&[0xff, 0xff]).is_err());
        let pong = v1::ClientMessage { message: Some(In::Pong(v1::Pong {})) }.encode_to_vec();
        assert_eq!(client_message(&pong), Ok(ClientMessage::Pong));
    }
}

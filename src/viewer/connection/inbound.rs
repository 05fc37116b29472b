//! What a connection brings, handed to whom it is for.

use std::time::Duration;

use super::{Phase, SILENCE_GRACE, Task, draw};
use crate::engine::time::Time;
use crate::viewer::happening::Happening;
use crate::viewer::link::Received;
use crate::viewer::outcome::Failure;
use crate::viewer::room::Source;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;
use crate::wire::proto::v1::server_message::Message as In;

impl Task {
    pub(super) fn received(&mut self, received: Received) {
        let now = self.clock.now();
        if let Phase::Live(live) = &mut self.phase {
            live.heard_by = now + live.ping_interval + SILENCE_GRACE;
        }
        match received {
            Received::Alive => {}
            Received::Closed(closed) => self.lost(closed, now),
            Received::Message(source, message) => {
                self.shared.count(|stats| {
                    stats.messages += 1;
                    stats.datagrams += u64::from(source == Source::Datagram);
                });
                if let Some(message) = message.message {
                    self.message(source, message, now);
                }
                self.collect();
            }
        }
    }

    fn message(&mut self, source: Source, message: In, now: Time) {
        match message {
            In::Joined(joined) => {
                if let Some(member) = self.members.get_mut(&joined.room) {
                    member.joined(joined, now, &mut draw);
                }
            }
            In::Frame(frame) => {
                if let Some(member) = self.members.get_mut(&frame.room) {
                    member.frame(source, frame, now, &mut draw);
                }
            }
            In::Gap(gap) => {
                if let Some(member) = self.members.get_mut(&gap.room) {
                    member.gap(gap);
                }
            }
            In::Missed(missed) => {
                if let Some(member) = self.members.get_mut(&missed.room) {
                    member.missed(&missed, now, &mut draw);
                }
            }
            In::Accepted(accepted) => self.publishes.accepted(&accepted),
            In::Rejected(rejected) => self.publishes.rejected(rejected),
            In::Error(error) => self.failed(error, now),
            In::Goaway(goaway) => {
                let reconnect_after = Duration::from_millis(goaway.reconnect_after_ms);
                let to = goaway.url.and_then(|url| self.target.moved(&url));
                self.goaway = Some((reconnect_after, to));
                for member in self.members.values_mut() {
                    member.tell(Happening::Leaving { reconnect_after });
                }
            }
            In::Ping(_) => self.sends.push(Out::Pong(v1::Pong {})),
            // The first is part of connecting; who left does not look back.
            In::Welcome(_) | In::Left(_) => {}
        }
    }

    fn failed(&mut self, error: v1::Error, now: Time) {
        let v1::Error { code, reason, temporary, room, retry_after_ms } = error;
        let failure =
            Failure { code, reason, retry_after: retry_after_ms.map(Duration::from_millis) };
        let Some(room) = room else {
            self.complaint = Some(failure.to_string());
            for member in self.members.values_mut() {
                member.tell(Happening::Failed(failure.clone()));
            }
            return;
        };
        if let Some(member) = self.members.get_mut(&room)
            && let Err(end) = member.failed(failure, temporary, now, &mut draw)
        {
            self.end(&room, end);
        }
    }
}

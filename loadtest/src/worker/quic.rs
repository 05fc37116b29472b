//! A worker whose viewers speak QUIC.

use anyhow::Result;
use prost::Message as _;
use tidegate::wire::proto::v1;
use tidegate::wire::proto::v1::client_message::Message;

use super::Worker;
use crate::book::Answer;
use crate::protocol::Datagrams;
use crate::quic::{Lane, Reply, Watcher};
use crate::sys;
use crate::viewer::Phase;

/// A join as it stands on the control stream, without its length.
pub(super) fn join(room: &str, token: String) -> Vec<u8> {
    let join = v1::Join { room: room.to_owned(), token, ..v1::Join::default() };
    v1::ClientMessage { message: Some(Message::Join(join)) }.encode_to_vec()
}

fn pong() -> Vec<u8> {
    v1::ClientMessage { message: Some(Message::Pong(v1::Pong {})) }.encode_to_vec()
}

impl Worker {
    /// Lets the connections do what is due.
    pub(super) fn turn_quic(&mut self) -> Result<()> {
        let Some(mut quic) = self.quic.take() else { return Ok(()) };
        let outcome = quic.turn(self);
        self.quic = Some(quic);
        outcome
    }

    /// Hangs up politely: the server need not wait for anybody's silence.
    pub(super) fn close_quic(&mut self) -> Result<()> {
        let Some(mut quic) = self.quic.take() else { return Ok(()) };
        quic.close_all(self)
    }

    /// What was sent in the window.
    pub(super) fn datagrams(&self) -> Datagrams {
        let Some(quic) = &self.quic else { return Datagrams::default() };
        let traffic = quic.traffic();
        Datagrams {
            sent: traffic.sent,
            sends: traffic.sends,
            refused: traffic.refused,
            lost: quic.lost_packets(),
        }
    }
}

impl Watcher for Worker {
    fn connected(&mut self, viewer: usize) -> Vec<u8> {
        if self.viewers[viewer].phase == Phase::Connecting {
            self.viewers[viewer].phase = Phase::Joining;
        }
        self.join_of(viewer)
    }

    fn received(&mut self, viewer: usize, bytes: usize) {
        self.book.read(&self.viewers[viewer], bytes);
    }

    fn message(&mut self, viewer: usize, lane: Lane, message: &[u8]) -> Reply {
        let now = sys::mono_us();
        let one = &mut self.viewers[viewer];
        if one.phase == Phase::Closed {
            return Reply::Nothing;
        }
        match self.book.lane_message(one, lane, message, now) {
            Answer::None => Reply::Nothing,
            Answer::Joined => {
                self.live(viewer);
                Reply::Nothing
            }
            Answer::Pong => Reply::Say(pong()),
            Answer::Later(wait) => match self.refused_for_now(viewer, wait, now) {
                Ok(()) => Reply::Nothing,
                Err(reason) => self.give_up(viewer, reason),
            },
            Answer::Refused(reason) if one.phase == Phase::Live => {
                self.book.fail(reason);
                Reply::Nothing
            }
            Answer::Refused(reason) => self.give_up(viewer, reason),
        }
    }

    fn is_deaf(&self, viewer: usize) -> bool {
        let viewer = &self.viewers[viewer];
        self.slow_stopped && viewer.slow && viewer.phase == Phase::Live
    }

    fn closed(&mut self, viewer: usize, reason: String) {
        self.gone(viewer, reason);
    }
}

impl Worker {
    fn give_up(&mut self, viewer: usize, reason: String) -> Reply {
        self.gone(viewer, reason);
        Reply::HangUp
    }
}

//! Viewers and their connections: delays, stalls, cuts, important events on a
//! stream of their own, and acknowledgements that may be lies.

use std::sync::Arc;
use std::time::Duration;

use tidegate::engine::event::Frame;
use tidegate::engine::ids::Seq;
use tidegate::engine::room::Position;
use tidegate::engine::time::Time;

use super::client::{Client, Message};
use super::judge::Shown;
use super::server::Server;
use super::world::{Step, World};

/// What it says about what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Honest,
    /// It did not promise to acknowledge, and does not.
    Silent,
    /// It promised, and does not.
    Broken,
    /// More than it has, more than there is.
    TooMuch,
}

#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) room: usize,
    pub(crate) client: Client,
    pub(crate) shown: Shown,
    /// It left for good.
    pub(crate) gone: bool,
    word: Word,
    apart: bool,
    conn: Option<usize>,
    resume: Option<Position>,
}

/// One connection, from its join on.
#[derive(Debug)]
pub(crate) struct Conn {
    viewer: usize,
    process: u64,
    /// As the viewer sees it.
    pub(crate) open: bool,
    /// The server has seen that it is gone.
    pub(crate) noticed: bool,
    /// When the last message on each stream arrives.
    main: Time,
    important: Time,
    checking: bool,
}

impl World {
    pub(crate) fn new_viewer(&mut self, room: usize) {
        let word = if self.rng.percent(self.with.liar_percent) {
            *self.rng.pick(&[Word::Silent, Word::Broken, Word::TooMuch])
        } else {
            Word::Honest
        };
        self.viewers.push(Viewer {
            room,
            client: Client::new(self.rng.next() as u16),
            shown: Shown::default(),
            gone: false,
            word,
            apart: self.rng.percent(self.with.apart_percent),
            conn: None,
            resume: None,
        });
        let viewer = self.viewers.len() - 1;
        let late = if self.rng.percent(30) { 7_000 } else { 300 };
        self.within(0, late, Step::Arrive(viewer));
        let wait = self.rng.between(1, 2 * self.with.cut_every);
        self.after(wait, Step::Cut(viewer));
    }

    /// A connection's other end, unless the server or the member is gone.
    pub(crate) fn at_server(&mut self, conn: usize) -> Option<(&mut Server, usize)> {
        let Conn { viewer, process, noticed, .. } = self.conns[conn];
        let there = !noticed && process == self.process;
        let server = self.server.as_mut().filter(|_| there)?;
        Some((server, self.viewers[viewer].room))
    }

    /// It connects and joins, from where it left off.
    pub(crate) fn arrive(&mut self, index: usize) {
        let ready = self.server.as_ref().is_some_and(|server| !server.stopping);
        let viewer = &mut self.viewers[index];
        if viewer.gone || viewer.conn.is_some() {
            return;
        }
        if !ready {
            return self.within(50, 300, Step::Arrive(index));
        }
        let conn = self.conns.len();
        viewer.conn = Some(conn);
        let acks = viewer.word != Word::Silent;
        let (room, slot, resume) = (viewer.room, viewer.client.slot, viewer.resume);
        self.conns.push(Conn {
            viewer: index,
            process: self.process,
            open: true,
            noticed: false,
            main: self.now,
            important: self.now,
            checking: false,
        });
        if let Some(server) = self.server.as_mut() {
            server.subscribe(room, (conn, slot, acks), resume, self.now);
        }
    }

    /// Now and then a connection breaks, or its viewer leaves.
    pub(crate) fn cut_sometimes(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let wait = self.rng.between(1, 2 * self.with.cut_every);
        self.after(wait, Step::Cut(index));
        let leaves = self.rng.percent(3);
        let viewer = &mut self.viewers[index];
        let Some(conn) = viewer.conn else { return };
        viewer.gone |= leaves;
        self.seen.left += u64::from(leaves);
        self.cut(conn);
    }

    /// A connection is gone for its viewer; the server will notice.
    pub(crate) fn cut(&mut self, conn: usize) {
        if !std::mem::replace(&mut self.conns[conn].open, false) {
            return;
        }
        self.seen.cuts += 1;
        let index = self.conns[conn].viewer;
        let viewer = &mut self.viewers[index];
        (viewer.conn, viewer.resume) = (None, viewer.client.cut());
        self.within(0, 2_000, Step::Noticed(conn));
        let away = match self.rng.below(10) {
            0..6 => 200,
            6..9 => 1_500,
            _ => 5_000,
        };
        self.within(1, away, Step::Arrive(index));
    }

    pub(crate) fn noticed(&mut self, conn: usize) {
        let now = self.now;
        if let Some((server, room)) = self.at_server(conn) {
            server.left(room, conn, now);
        }
        self.conns[conn].noticed = true;
    }

    /// Puts a message on its way.
    pub(crate) fn send(&mut self, conn: usize, message: Message) {
        let apart = self.viewers[self.conns[conn].viewer].apart;
        let Message::Frame(frame) = &message else { return self.send_main(conn, message) };
        if !apart || frame.events.iter().all(|event| event.important.is_none()) {
            return self.send_main(conn, message);
        }
        let (important, others) =
            frame.events.iter().cloned().partition(|event| event.important.is_some());
        let beside = Frame {
            first_seq: Seq(frame.last_seq.0 + 1),
            events: important,
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ..Frame::clone(frame)
        };
        let main = Frame { events: others, ack: None, ..Frame::clone(frame) };
        let says_nothing = main.first_seq > main.last_seq
            && main.events.is_empty()
            && main.totals.is_empty()
            && main.dropped.is_empty();
        if !says_nothing {
            self.send_main(conn, Message::Frame(Arc::new(main)));
        }
        if !self.calm && self.rng.percent(3) {
            self.seen.lost_on_the_way += 1;
            return;
        }
        let at = self.arrival(self.conns[conn].important);
        self.conns[conn].important = at;
        self.queue(at, Step::Deliver(conn, Message::Frame(Arc::new(beside))));
    }

    fn send_main(&mut self, conn: usize, message: Message) {
        let at = self.arrival(self.conns[conn].main);
        self.conns[conn].main = at;
        self.queue(at, Step::Deliver(conn, message));
    }

    /// When something arrives that goes behind what arrives at `last`.
    fn arrival(&mut self, last: Time) -> Time {
        let stalls = !self.calm && self.rng.below(100) < 2;
        self.seen.stalled_streams += u64::from(stalls);
        let micros = if stalls {
            self.rng.between(50_000, 3_000_000)
        } else {
            self.rng.between(500, 30_000)
        };
        last.max(self.now + Duration::from_micros(micros))
    }

    /// A message has arrived, unless the connection was cut meanwhile.
    pub(crate) fn deliver(&mut self, conn: usize, message: &Message) {
        let Conn { viewer: index, open, .. } = self.conns[conn];
        if !open {
            self.seen.lost_in_cuts += 1;
            return;
        }
        let viewer = &mut self.viewers[index];
        let knew = viewer.client.epoch().is_some();
        let heard = viewer.client.receive(message);
        let Some(epoch) = viewer.client.epoch() else { return };
        let (room, have) = (viewer.room, viewer.client.have);
        let judge = &self.judges[room];
        judge.heard(epoch, &mut viewer.shown, &heard, have);
        if let Some((from, to)) = heard.given_up {
            self.seen.given_up += to + 1 - from;
            self.judges[room].may_give_up(room, to, self.log());
        }
        self.seen.heard(message, &heard, knew);
        if let Some(within) = heard.ack {
            let micros = self.rng.between(0, within.as_micros() as u64);
            self.after(micros, Step::AckDue(conn));
        }
        if let Some(within) = heard.check
            && !std::mem::replace(&mut self.conns[conn].checking, true)
        {
            let micros = self.rng.between(1, within.as_micros() as u64 + 1);
            self.after(micros, Step::Check(conn));
        }
    }

    pub(crate) fn ack_due(&mut self, conn: usize) {
        let Conn { viewer, open: true, .. } = self.conns[conn] else { return };
        let Viewer { client, word, .. } = &self.viewers[viewer];
        let number = match word {
            Word::Honest => client.have,
            Word::Silent | Word::Broken => return,
            Word::TooMuch => client.latest() + self.rng.below(50),
        };
        self.seen.lies += u64::from(number > self.viewers[viewer].client.have);
        self.within(1, 30, Step::Acked(conn, number));
    }

    /// Pulls what is still missing, and looks again.
    pub(crate) fn check_holes(&mut self, conn: usize) {
        self.conns[conn].checking = false;
        let Conn { viewer, open: true, .. } = self.conns[conn] else { return };
        if let Some((from, to)) = self.viewers[viewer].client.pull() {
            self.seen.pulls += 1;
            self.conns[conn].checking = true;
            self.within(1, 30, Step::Pull(conn, from, to));
            self.within(1_000, 1_500, Step::Check(conn));
        }
    }
}

//! Events that were said and have no answer yet.
//!
//! What had none before the connection broke is sent again with the same id when
//! the room is joined again; the server knows an id for 24 hours and delivers it
//! once.

use std::time::Duration;

use tokio::sync::oneshot;

use super::outcome::{Failure, PublishError, Published};
use crate::engine::time::Time;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;

type Reply = oneshot::Sender<Result<Published, PublishError>>;

#[derive(Debug)]
struct Pending {
    event: v1::Publish,
    reply: Reply,
    /// It was sent on this connection.
    sent: bool,
    /// It was sent on any.
    tried: bool,
    until: Time,
}

#[derive(Debug)]
pub(super) struct Publishes {
    pending: Vec<Pending>,
    most: usize,
    patience: Duration,
}

impl Publishes {
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        Self { pending: Vec::new(), most: most.max(1), patience }
    }

    /// Takes an event up, or says why not.
    pub(super) fn take(&mut self, event: v1::Publish, reply: Reply, now: Time) -> bool {
        let refused = if self.pending.len() >= self.most {
            PublishError::Full
        } else if self.pending.iter().any(|pending| pending.event.id == event.id) {
            PublishError::SameId
        } else {
            let until = now + self.patience;
            self.pending.push(Pending { event, reply, sent: false, tried: false, until });
            return true;
        };
        end(reply, Err(refused));
        false
    }

    /// What of this room is to be sent now, and how much of it for another time.
    pub(super) fn unsent(&mut self, room: &str) -> (Vec<Out>, u64) {
        let mut again = 0;
        let unsent = self.pending.iter_mut().filter(|p| !p.sent && p.event.room == room);
        let out = unsent.map(|pending| {
            again += u64::from(pending.tried);
            (pending.sent, pending.tried) = (true, true);
            Out::Publish(pending.event.clone())
        });
        (out.collect(), again)
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self) {
        self.pending.iter_mut().for_each(|pending| pending.sent = false);
    }

    pub(super) fn accepted(&mut self, accepted: &v1::Accepted) {
        if let Some(pending) = self.out(&accepted.id) {
            end(pending.reply, Ok(Published { seq: accepted.seq }));
        }
    }

    pub(super) fn rejected(&mut self, rejected: v1::Rejected) {
        // A server that is leaving has not looked at it; the next one will.
        if rejected.code == "draining" {
            return;
        }
        if let Some(pending) = self.out(&rejected.id) {
            let v1::Rejected { code, reason, retry_after_ms, .. } = rejected;
            let retry_after = retry_after_ms.map(Duration::from_millis);
            let failure = Failure { code, reason, retry_after };
            end(pending.reply, Err(PublishError::Rejected(failure)));
        }
    }

    fn out(&mut self, id: &str) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| pending.event.id == id)?;
        Some(self.pending.remove(index))
    }

    /// The room was left.
    pub(super) fn forget(&mut self, room: &str) {
        for pending in self.pending.extract_if(.., |pending| pending.event.room == room) {
            end(pending.reply, Err(PublishError::Closed));
        }
    }

    /// Ends what nobody answered in time.
    pub(super) fn expire(&mut self, now: Time) {
        for pending in self.pending.extract_if(.., |pending| pending.until <= now) {
            end(pending.reply, Err(PublishError::NoAnswer));
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.pending.iter().map(|pending| pending.until).min()
    }
}

/// Who dropped the future does not want to know.
fn end(reply: Reply, outcome: Result<Published, PublishError>) {
    let _ = reply.send(outcome);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<Published, PublishError>>;

    fn say(publishes: &mut Publishes, id: &str, now: u64) -> Answer {
        let (reply, answer) = oneshot::channel();
        let (room, id) = ("r".to_owned(), id.to_owned());
        let event = v1::Publish { room, id, ..v1::Publish::default() };
        publishes.take(event, reply, Time::from_millis(now));
        answer
    }

    fn publishes() -> Publishes {
        Publishes::new(2, Duration::from_millis(100))
    }

    #[test]
    fn what_had_no_answer_is_sent_again_in_order_with_the_same_id() {
        let mut publishes = publishes();
        let mut first = say(&mut publishes, "a", 0);
        let mut second = say(&mut publishes, "b", 0);
        assert_eq!(publishes.unsent("other").0.len(), 0);
        assert_eq!((publishes.unsent("r").0.len(), publishes.unsent("r").0.len()), (2, 0));
        let seq = Some(4);
        publishes.accepted(&v1::Accepted { id: "b".to_owned(), seq, admission: None });
        assert_eq!(second.try_recv().unwrap(), Ok(Published { seq }));
        let code = "draining".to_owned();
        publishes.rejected(v1::Rejected { id: "a".to_owned(), code, ..v1::Rejected::default() });
        publishes.lost();
        let (again, count) = publishes.unsent("r");
        let [Out::Publish(event)] = &again[..] else { panic!("{again:?}") };
        assert_eq!((event.id.as_str(), count), ("a", 1));
        let rejected =
            v1::Rejected { id: "a".to_owned(), code: "x".to_owned(), ..v1::Rejected::default() };
        publishes.rejected(rejected);
        assert!(matches!(first.try_recv().unwrap(), Err(PublishError::Rejected(_))));
    }

    #[test]
    fn every_event_has_an_end() {
        let mut publishes = publishes();
        let mut first = say(&mut publishes, "a", 0);
        assert_eq!(say(&mut publishes, "a", 0).try_recv().unwrap(), Err(PublishError::SameId));
        let mut second = say(&mut publishes, "b", 50);
        assert_eq!(say(&mut publishes, "c", 0).try_recv().unwrap(), Err(PublishError::Full));
        publishes.expire(Time::from_millis(100));
        assert_eq!(first.try_recv().unwrap(), Err(PublishError::NoAnswer));
        assert_eq!(publishes.next_deadline(), Some(Time::from_millis(150)));
        publishes.forget("r");
        assert_eq!(second.try_recv().unwrap(), Err(PublishError::Closed));
        assert_eq!(publishes.next_deadline(), None);
    }
}

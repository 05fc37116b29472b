//! A viewer's client that believes nothing: it reads the bytes of its connection
//! and keeps the books of what it was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;
use tidegate::engine::event::Snapshot;
use tidegate::engine::kind::{Kind, Lane, Merge, MergeBy};

use super::world::kinds;

/// Kind, user, key.
type Key = (String, String, String);

/// One room, as the client has it.
#[derive(Debug, Default)]
struct Books {
    /// Every number up to here was covered by a frame or announced as lost.
    covered: u64,
    /// Every important event up to here came, or is gone for good.
    important: u64,
    unpaid: u64,
    /// The server said that owed events are gone.
    gone: bool,
    last_ordered: u64,
    ordered: BTreeSet<u64>,
    gaps: Vec<(u64, u64)>,
    /// Told by gaps and by frames, by kind.
    lost: HashMap<String, u64>,
    sums: BTreeMap<Key, i64>,
    values: BTreeMap<Key, String>,
}

/// See the module's documentation.
pub(crate) struct Client {
    rooms: BTreeMap<String, Books>,
    kinds: HashMap<String, Arc<Kind>>,
    unread: Vec<u8>,
}

impl Client {
    /// In these rooms from the first event on.
    pub(crate) fn new(rooms: impl Iterator<Item = String>) -> Self {
        let kinds = kinds().into_iter().map(|kind| (kind.name.to_string(), kind)).collect();
        Self {
            rooms: rooms.map(|room| (room, Books::default())).collect(),
            kinds,
            unread: Vec::new(),
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let mut read = 0;
        while let Some((header, length)) = message(&self.unread[read..]) {
            let Some(text) = self.unread.get(read + header..read + header + length) else { break };
            let value: Value = serde_json::from_slice(text).expect("whole messages");
            read += header + length;
            let (name, content) = value.as_object().and_then(|o| o.iter().next()).expect("one");
            if name == "ping" {
                continue;
            }
            let room = content["room"].as_str().expect("of a room");
            let books = self.rooms.get_mut(room).expect("one that was joined");
            match name.as_str() {
                "frame" => books.frame(content, &self.kinds),
                "gap" => books.gap(content),
                "joined" => books.joined(content, &self.kinds),
                "error" => books.gone = content["code"] == "history_gone",
                other => panic!("{other}"),
            }
        }
        self.unread.drain(..read);
    }

    pub(crate) fn unpaid(&self) -> u64 {
        self.rooms.values().map(|books| books.unpaid).sum()
    }

    /// Compares with the room, with the ordered events that it sent, and with how many
    /// it left out.
    pub(crate) fn check(
        &self,
        room: &Snapshot,
        carried: &BTreeMap<u64, Arc<Kind>>,
        shed: &HashMap<String, u64>,
    ) {
        let books = &self.rooms[room.room.as_str()];
        assert!(self.unread.is_empty());
        assert_eq!(books.covered, room.seq.0, "all numbers are accounted for");
        assert_eq!(books.important, room.important.0, "nothing important is missing");
        let mut lost: HashMap<&str, u64> = HashMap::new();
        for (seq, kind) in carried.iter().filter(|(seq, _)| !books.ordered.contains(seq)) {
            let told = books.gaps.iter().any(|(first, last)| first <= seq && seq <= last);
            assert!(told, "{} {seq} is missing without a word", kind.name);
            *lost.entry(&kind.name).or_default() += 1;
        }
        for kind in self.kinds.values().filter(|kind| kind.lane == Lane::Ordered) {
            let told = books.lost.get(&*kind.name).copied().unwrap_or(0);
            let lost = lost.get(&*kind.name).copied().unwrap_or(0);
            let shed = shed.get(&*kind.name).copied().unwrap_or(0);
            assert_eq!(told, lost + shed, "{}", kind.name);
        }
        for total in &room.totals {
            let user = total.user.as_deref().unwrap_or_default();
            let key = key(&total.kind.name, user, &total.key);
            assert_eq!(books.sums.get(&key), Some(&total.sum), "{key:?}");
        }
        let mut values = books.values.clone();
        for state in &room.state {
            let event = &state.event;
            let key = value_key(&event.kind, &event.user, event.key.as_deref().unwrap_or(""));
            assert_eq!(values.remove(&key).as_deref(), Some(&*event.id), "{key:?}");
        }
        // The room forgets what has expired without a word.
        for ((kind, ..), id) in values {
            assert!(self.kinds[&kind].ttl.is_some(), "{kind} {id} is no more");
        }
    }
}

impl Books {
    fn frame(&mut self, frame: &Value, kinds: &HashMap<String, Arc<Kind>>) {
        let (first, last) = (number(frame, "first_seq"), number(frame, "last_seq"));
        if first <= last {
            assert!(first <= self.covered + 1, "{} to {first}: no word of it", self.covered);
            self.covered = self.covered.max(last);
        }
        for (kind, count) in frame["dropped"].as_object().into_iter().flatten() {
            *self.lost.entry(kind.clone()).or_default() += count.as_u64().expect("a count");
        }
        let withheld = frame["withheld"].as_u64().unwrap_or(0);
        for event in frame["events"].as_array().expect("events") {
            let least = match kinds[text(event, "kind")].lane {
                Lane::Sampled => 1,
                Lane::Ordered => 3,
                Lane::Important => 4,
            };
            assert!(withheld < least, "withheld, and sent: {frame}");
            self.event(event, kinds);
        }
        for total in frame["totals"].as_array().expect("totals") {
            assert!(withheld < 2, "withheld, and sent: {frame}");
            self.total(total);
        }
        assert_eq!(number(frame, "important"), self.important, "a client would pull: {frame}");
    }

    fn event(&mut self, event: &Value, kinds: &HashMap<String, Arc<Kind>>) {
        if let Some(important) = event["important"].as_u64() {
            if std::mem::take(&mut self.gone) {
                self.skip_to(important - 1);
            }
            assert_eq!(important, self.important + 1, "important events come once, in order");
            self.important = important;
        } else if let Some(seq) = event["seq"].as_u64() {
            assert!(seq > self.last_ordered, "{seq} after {}", self.last_ordered);
            self.last_ordered = seq;
            self.ordered.insert(seq);
        }
        self.value(event, kinds);
    }

    fn gap(&mut self, gap: &Value) {
        let (first, last) = (number(gap, "first_seq"), number(gap, "last_seq"));
        assert!(first <= self.covered + 1 && first <= last, "{} and {gap}", self.covered);
        self.covered = self.covered.max(last);
        self.gaps.push((first, last));
        for (kind, count) in gap["dropped"].as_object().expect("counts") {
            *self.lost.entry(kind.clone()).or_default() += count.as_u64().expect("a count");
        }
    }

    fn joined(&mut self, joined: &Value, kinds: &HashMap<String, Arc<Kind>>) {
        assert_eq!(joined["rebased"], true);
        assert_eq!(number(joined, "seq"), self.covered, "skipped without a gap");
        if std::mem::take(&mut self.gone) {
            self.skip_to(number(joined, "important"));
        }
        assert_eq!(number(joined, "important"), self.important, "owed events come before");
        (self.sums, self.values) = (BTreeMap::new(), BTreeMap::new());
        for event in joined["state"].as_array().expect("state") {
            self.value(event, kinds);
        }
        for total in joined["totals"].as_array().expect("totals") {
            self.total(total);
        }
    }

    fn skip_to(&mut self, important: u64) {
        self.unpaid += important - self.important;
        self.important = important;
    }

    fn value(&mut self, event: &Value, kinds: &HashMap<String, Arc<Kind>>) {
        let kind = &kinds[text(event, "kind")];
        if matches!(kind.merge, Merge::Latest(_)) {
            let key = value_key(kind, text(event, "user"), text(event, "key"));
            if event["payload"].is_null() {
                self.values.remove(&key);
            } else {
                self.values.insert(key, text(event, "id").to_owned());
            }
        }
    }

    fn total(&mut self, total: &Value) {
        let user = total["user"].as_str().unwrap_or_default();
        let key = key(text(total, "kind"), user, text(total, "key"));
        self.sums.insert(key, total["sum"].as_i64().expect("a sum"));
    }
}

/// Length of the header and of the content of the WebSocket message that begins
/// here, once its header is whole.
fn message(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => Some((4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)))),
        127 => Some((10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize)),
        short => Some((2, usize::from(short))),
    }
}

fn value_key(kind: &Kind, user: &str, name: &str) -> Key {
    let by_user = kind.merge == Merge::Latest(MergeBy::UserKey);
    key(&kind.name, if by_user { user } else { "" }, name)
}

fn key(kind: &str, user: &str, name: &str) -> Key {
    (kind.to_owned(), user.to_owned(), name.to_owned())
}

fn number(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or_else(|| panic!("{field} of {of}"))
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_else(|| panic!("{field} of {of}"))
}

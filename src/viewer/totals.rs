//! Which of two values is the newer one, where datagrams overtake each other and
//! the ordered stream.
//!
//! A sum is absolute, so only the newest counts, of each kind, user and key. A
//! frame says when it was made.

use std::collections::HashMap;

use crate::wire::proto::v1;

/// Sums whose time is remembered. What is beyond is taken as it comes: it is right
/// again with its next change.
const MAX_KEYS: usize = 4_096;

type Key = (String, Option<String>, String);

#[derive(Debug, Default)]
pub(super) struct Newest {
    totals: HashMap<Key, u64>,
    online: u64,
    /// The newest frame of all.
    frame: u64,
}

impl Newest {
    /// The room as it stands replaces everything from before.
    pub(super) fn reset(&mut self) {
        // It has no time of its own: what is older than the newest frame so far was
        // made before it.
        let floor = self.frame;
        self.totals.values_mut().for_each(|time| *time = floor);
        self.online = floor;
    }

    /// A frame made at this time has come; leaves of its sums those that are new.
    pub(super) fn totals(&mut self, totals: &mut Vec<v1::Total>, time_ms: u64) {
        self.frame = self.frame.max(time_ms);
        totals.retain(|total| {
            let key = (total.kind.clone(), total.user.clone(), total.key.clone());
            if let Some(known) = self.totals.get_mut(&key) {
                let newer = time_ms >= *known;
                *known = time_ms.max(*known);
                return newer;
            }
            if self.totals.len() < MAX_KEYS {
                self.totals.insert(key, time_ms);
            }
            true
        });
    }

    /// Whether this number of viewers is the newest.
    pub(super) fn online(&mut self, time_ms: u64) -> bool {
        let newer = time_ms >= self.online;
        self.online = time_ms.max(self.online);
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(newest: &mut Newest, time_ms: u64, keys: &[&str]) -> Vec<String> {
        let total = |key: &&str| v1::Total { key: (*key).to_owned(), ..v1::Total::default() };
        let mut totals = keys.iter().map(total).collect();
        newest.totals(&mut totals, time_ms);
        totals.into_iter().map(|total| total.key).collect()
    }

    #[test]
    fn the_newest_sum_of_each_key_wins() {
        let mut newest = Newest::default();
        assert_eq!(sums(&mut newest, 20, &["a", "b"]), ["a", "b"]);
        assert_eq!(sums(&mut newest, 10, &["a", "c"]), ["c"], "a was overtaken, c was not");
        assert_eq!(sums(&mut newest, 20, &["a"]), ["a"], "of one moment both count");
        assert!(newest.online(5) && newest.online(9) && !newest.online(8));
    }

    #[test]
    fn what_was_made_before_the_state_does_not_replace_it() {
        let mut newest = Newest::default();
        sums(&mut newest, 5, &["a"]);
        sums(&mut newest, 30, &["b"]);
        newest.reset();
        assert_eq!(sums(&mut newest, 20, &["a"]), [""; 0]);
        assert!(!newest.online(29) && newest.online(30));
    }

    #[test]
    fn memory_is_bounded() {
        let mut newest = Newest::default();
        for key in 0..5_000 {
            assert_eq!(sums(&mut newest, 9, &[&key.to_string()]).len(), 1);
        }
        assert_eq!(newest.totals.len(), MAX_KEYS);
    }
}

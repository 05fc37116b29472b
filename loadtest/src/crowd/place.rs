//! What the viewers of one room have in common: messages that are read once for
//! all, and which event has which number.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::told::{Frame, Told};

/// Messages of a room that are kept parsed: all its viewers get the same ones.
const PARSED: usize = 4;

/// An event's name: whether it is important, and which of its sort.
type Named = (bool, u64);

/// What rooms have in common.
#[derive(Default)]
pub(super) struct Place {
    parsed: VecDeque<(Vec<u8>, Arc<Told>)>,
    /// Which event has which number, as first seen.
    by_seq: HashMap<u64, Named>,
    /// The same for important numbers.
    by_important: HashMap<u64, Named>,
}

impl Place {
    /// What a message says; the same bytes are not read for every viewer.
    pub(super) fn read(
        &mut self,
        text: &[u8],
        conflicts: &mut Vec<String>,
    ) -> Result<Arc<Told>, String> {
        if let Some((_, told)) = self.parsed.iter().find(|(bytes, _)| bytes == text) {
            return Ok(Arc::clone(told));
        }
        let told = serde_json::from_slice(text).map_err(|error| {
            format!("unreadable message ({error}): {}", String::from_utf8_lossy(text))
        })?;
        let told = Arc::new(told);
        if let Told::Frame(frame) = &*told {
            self.note(frame, conflicts);
        }
        if matches!(*told, Told::Frame(_) | Told::Joined(_)) {
            self.parsed.truncate(PARSED - 1);
            self.parsed.push_front((text.to_vec(), Arc::clone(&told)));
        }
        Ok(told)
    }

    /// Notes which event has which number; tells of numbers that two have.
    fn note(&mut self, frame: &Frame, conflicts: &mut Vec<String>) {
        for event in &frame.events {
            let (seq, important, n) = event.numbers();
            let named = (important.is_some(), n);
            let numbers =
                [("seq", seq, &mut self.by_seq), ("important", important, &mut self.by_important)];
            for (sort, number, known) in numbers {
                let Some(number) = number else { continue };
                let first = *known.entry(number).or_insert(named);
                if first != named {
                    conflicts.push(format!("{sort} {number} is of {first:?} and {named:?}"));
                }
            }
        }
    }
}

//! Answers reads of retained events, on a thread of its own: the disk may make
//! it wait, and a shard must not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::disk::{Disk, DiskFile, read_full};
use super::format::{Look, Place, file_name, look};
use super::index::Position;
use super::record::{KindOf, Record, Stored};
use super::{Read, ReadAnswer, Shared};

/// Segments kept open for the next read.
const OPEN_FILES: usize = 16;

pub(super) struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) kinds: KindOf,
    pub(super) store: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) files: HashMap<u32, Arc<dyn DiskFile>>,
}

impl Reader {
    /// Until nobody can ask any more.
    pub(super) fn run(mut self, requests: &Receiver<Read>) {
        for request in requests {
            let answer = self.answer(&request);
            {
                let mut stats = self.shared.stats();
                stats.reads += 1;
                stats.read_events += answer.events.len() as u64;
            }
            (request.reply)(answer);
        }
    }

    fn answer(&mut self, request: &Read) -> ReadAnswer {
        let Read { room, epoch, after, max_events, max_bytes, .. } = request;
        let found = {
            let index = self.shared.index();
            // A removed file's space is free only when nobody has it open.
            self.files.retain(|number, _| index.tally.segments.contains_key(number));
            index.lookup(room, *epoch, *after, *max_events, *max_bytes)
        };
        let mut answer = ReadAnswer {
            events: Vec::with_capacity(found.positions.len()),
            complete: found.complete,
            more: found.more,
        };
        for (number, position) in found.positions {
            let stored = self.read(position).filter(|stored| {
                stored.room == *room && stored.epoch == *epoch && stored.important == number
            });
            match stored {
                Some(stored) => answer.events.push(stored.numbered()),
                None => {
                    answer.complete = false;
                    // Not damage if retention took it in between.
                    let index = self.shared.index();
                    let retained = index.numbering(room, *epoch);
                    if retained.is_some_and(|n| n.stand().first <= number) {
                        self.shared.stats().damaged_reads += 1;
                    }
                }
            }
        }
        answer
    }

    fn read(&mut self, position: Position) -> Option<Stored> {
        let mut bytes = vec![0; position.len as usize];
        let file = self.file(position.segment)?;
        let read = read_full(file.as_ref(), &mut bytes, position.offset.into()).ok()?;
        let place = Place { store: self.store, segment: position.segment };
        match look(bytes.get(..read).filter(|b| !b.is_empty())?, place, position.offset.into()) {
            Look::Record { content, .. } => match Record::decode(content, self.kinds.as_ref()) {
                Some(Record::Event(stored)) => Some(stored),
                _ => None,
            },
            _ => None,
        }
    }

    fn file(&mut self, segment: u32) -> Option<Arc<dyn DiskFile>> {
        if let Some(file) = self.files.get(&segment) {
            return Some(Arc::clone(file));
        }
        let file = self.disk.open(&file_name(segment)).ok()?;
        if self.files.len() >= OPEN_FILES {
            self.files.clear();
        }
        self.files.insert(segment, Arc::clone(&file));
        Some(file)
    }
}

//! Which files of the directory count, and where each validly ends.
//!
//! Read before any record: a segment's end is stated by its successors, twice
//! over, in their headers and in the list that is their first record.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile, read_full};
use super::format::{Header, HeaderRead, Look, Place, RECORDS_AT, file_name, look, segment_number};
use super::record::Record;
use super::report::{Damage, DamageKind};

/// Enough of a file to hold the header and the list of some 80,000 segments.
const PREAMBLE: usize = 1 << 20;

/// One segment that counts.
pub(super) struct Found {
    pub(super) number: u32,
    /// Nothing where the file is missing or cannot be read.
    pub(super) file: Option<Arc<dyn DiskFile>>,
    pub(super) len: u64,
    pub(super) header: Option<Header>,
    /// Where it ends by what its successors say.
    pub(super) end: Option<u64>,
    /// The file's beginning, until the list was read from it.
    preamble: Vec<u8>,
    listed: Option<Vec<(u32, u64)>>,
}

/// The directory.
#[derive(Default)]
pub(super) struct Layout {
    /// Which log this is; nothing when no header says so.
    pub(super) store: Option<u64>,
    /// In order of number; missing ones among them.
    pub(super) segments: Vec<Found>,
    /// Files that hold nothing that counts.
    pub(super) void: Vec<u32>,
    /// Highest number of any file.
    pub(super) highest: u32,
    pub(super) damaged: Vec<Damage>,
}

/// Why the directory cannot be used.
pub(super) enum LayoutError {
    Io(io::Error),
    Newer { segment: u32, version: u32 },
}

impl Layout {
    pub(super) fn read(disk: &dyn Disk) -> Result<Self, LayoutError> {
        let names = disk.list().map_err(LayoutError::Io)?;
        let numbers: BTreeSet<u32> = names.iter().filter_map(|n| segment_number(n)).collect();
        let mut layout = Self { highest: numbers.last().copied().unwrap_or(0), ..Self::default() };
        for number in numbers {
            layout.open(disk, number)?;
        }
        layout.choose_store();
        layout.read_lists();
        layout.drop_void();
        layout.find_missing();
        layout.find_ends();
        Ok(layout)
    }

    fn damage(&mut self, segment: u32, bytes: u64, what: DamageKind) {
        self.damaged.push(Damage { segment, offset: 0, bytes, what });
    }

    fn open(&mut self, disk: &dyn Disk, number: u32) -> Result<(), LayoutError> {
        let mut found = Found {
            number,
            file: None,
            len: 0,
            header: None,
            end: None,
            preamble: Vec::new(),
            listed: None,
        };
        let read = disk.open(&file_name(number)).and_then(|file| {
            let len = file.len()?;
            let mut preamble = vec![0; usize::try_from(len).unwrap_or(PREAMBLE).min(PREAMBLE)];
            let read = read_full(file.as_ref(), &mut preamble, 0)?;
            preamble.truncate(read);
            Ok((file, len, preamble))
        });
        match read {
            Ok((file, len, preamble)) => {
                (found.file, found.len, found.preamble) = (Some(file), len, preamble);
            }
            Err(_) => self.damage(number, 0, DamageKind::Unreadable),
        }
        if found.file.is_some() {
            match Header::decode(&found.preamble) {
                HeaderRead::Newer(version) => {
                    return Err(LayoutError::Newer { segment: number, version });
                }
                HeaderRead::Good(header, both) => {
                    found.header = Some(header);
                    // Both being there and differing is damage; one may just be cut off.
                    if !both && found.len >= RECORDS_AT {
                        self.damage(number, RECORDS_AT, DamageKind::HeaderCopy);
                    }
                }
                HeaderRead::Damaged => self.damage(number, RECORDS_AT, DamageKind::Header),
                // A cut; the scan says so.
                HeaderRead::Short => {}
            }
        }
        self.segments.push(found);
        Ok(())
    }

    /// The store that most headers name; files of others are left alone.
    fn choose_store(&mut self) {
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        for header in self.segments.iter().filter_map(|found| found.header) {
            *votes.entry(header.store).or_default() += 1;
        }
        self.store = votes.into_iter().max_by_key(|&(_, votes)| votes).map(|(store, _)| store);
        let store = self.store;
        let void = &mut self.void;
        let mut foreign = Vec::new();
        self.segments.retain(|found| {
            let own = store.is_some()
                && found.header.is_none_or(|header| {
                    Some(header.store) == store && header.segment == found.number
                });
            if !own && found.len < RECORDS_AT && found.file.is_some() {
                // Not even a header came to be.
                void.push(found.number);
            } else if !own {
                foreign.push((found.number, found.len));
            }
            own
        });
        for (number, len) in foreign {
            self.damage(number, len, DamageKind::Foreign);
        }
    }

    fn read_lists(&mut self) {
        for found in &mut self.segments {
            let preamble = std::mem::take(&mut found.preamble);
            let records = preamble.get(RECORDS_AT as usize..).filter(|records| !records.is_empty());
            let (Some(records), Some(store)) = (records, self.store) else { continue };
            let place = Place { store, segment: found.number };
            if let Look::Record { content, .. } = look(records, place, RECORDS_AT)
                && let Some(Record::Segments(listed)) = Record::decode_list(content)
            {
                found.listed = Some(listed);
            }
        }
    }

    /// Segments between a segment and its stated predecessor were never used.
    fn drop_void(&mut self) {
        let spans: Vec<(u32, u32)> = self
            .segments
            .iter()
            .filter_map(|found| found.header)
            .map(|header| (header.previous, header.segment))
            .collect();
        let void = |n: u32| spans.iter().any(|&(previous, own)| previous < n && n < own);
        let (dropped, kept): (Vec<Found>, Vec<Found>) =
            std::mem::take(&mut self.segments).into_iter().partition(|found| void(found.number));
        self.void.extend(dropped.iter().map(|found| found.number));
        self.segments = kept;
        self.damaged.retain(|damage| !void(damage.segment));
    }

    /// Gives segments that should be there and are not their place in the row.
    fn find_missing(&mut self) {
        let newest = self.segments.iter().rev().find(|found| found.listed.is_some());
        let from = newest.map_or(0, |found| found.number);
        let listed = newest.and_then(|found| found.listed.as_ref()).into_iter().flatten();
        let stated = self.segments.iter().filter_map(|found| found.header.map(|h| h.previous));
        let expected: BTreeSet<u32> = listed
            .map(|&(number, _)| number)
            .chain(stated.filter(|&previous| previous > from))
            .collect();
        for number in expected {
            if let Err(at) = self.segments.binary_search_by_key(&number, |found| found.number) {
                let missing = Found {
                    number,
                    file: None,
                    len: 0,
                    header: None,
                    end: None,
                    preamble: Vec::new(),
                    listed: None,
                };
                self.segments.insert(at, missing);
                self.damage(number, 0, DamageKind::Missing);
            }
        }
    }

    fn find_ends(&mut self) {
        for at in 0..self.segments.len() {
            let (before, after) = self.segments.split_at_mut(at + 1);
            let found = &mut before[at];
            found.end = after.iter().find_map(|later| {
                let header = later.header.filter(|header| header.previous == found.number);
                let listed = later.listed.iter().flatten();
                let mut listed = listed.filter(|&&(number, _)| number == found.number);
                header.map(|h| h.previous_end).or_else(|| listed.next().map(|&(_, end)| end))
            });
        }
    }
}

//! A disk in memory that fails at will and forgets what was not synced.
//!
//! It forgets as Linux does: a sync that failed leaves what it should have
//! written readable and clean, so a later sync that succeeds does not write it
//! either. A power cut keeps any subset of the unsynced pages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tidegate::log::{Disk, DiskFile};

use super::rng::Rng;

const PAGE: usize = 4_096;

/// What the next operations of a sort meet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Writes that fail.
    pub(crate) write: u32,
    /// Syncs that fail.
    pub(crate) sync: u32,
    /// Directory syncs that fail.
    pub(crate) sync_dir: u32,
    /// Files that cannot be created.
    pub(crate) create: u32,
    /// Writes that take half of what they are given, or one byte.
    pub(crate) short: u32,
    /// Bytes that all files together may hold.
    pub(crate) space: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// As programs see it.
    seen: Vec<u8>,
    /// As it is on the platter.
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct World {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    /// Names as they are on the platter.
    durable_names: BTreeMap<String, usize>,
    faults: Faults,
    locked: bool,
    hold: Option<Hold>,
    held: bool,
}

/// Where an operation stops until it is let go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Half of a write is done.
    Write,
    /// A sync has not begun.
    Sync,
}

/// Copies are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk(Arc<(Mutex<World>, Condvar)>);

fn take(count: &mut u32) -> bool {
    let due = *count > 0;
    *count = count.saturating_sub(1);
    due
}

impl MemoryDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().expect("nothing panics under this lock")
    }

    /// With these files, all durable.
    pub(crate) fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        let mut world = disk.world();
        for (name, bytes) in files {
            let at = world.files.len();
            let (seen, durable) = (bytes.clone(), bytes.clone());
            world.files.push(Content { seen, durable, ..Content::default() });
            world.names.insert(name.clone(), at);
            world.durable_names.insert(name.clone(), at);
        }
        drop(world);
        disk
    }

    /// All files as programs see them.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world();
        world.names.iter().map(|(n, &at)| (n.clone(), world.files[at].seen.clone())).collect()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// The next such operation stops halfway.
    pub(crate) fn hold(&self, hold: Hold) {
        self.world().hold = Some(hold);
    }

    /// Waits until one has.
    pub(crate) fn until_held(&self) {
        let world = self.0.1.wait_while(self.world(), |world| !world.held);
        drop(world.expect("nothing panics under this lock"));
    }

    /// Lets it go on.
    pub(crate) fn let_go(&self) {
        self.world().hold = None;
        self.0.1.notify_all();
    }

    fn stop_at(&self, hold: Hold) {
        let mut world = self.world();
        if world.hold == Some(hold) {
            world.held = true;
            self.0.1.notify_all();
            let waited = self.0.1.wait_while(world, |world| world.hold.is_some());
            world = waited.expect("nothing panics under this lock");
            world.held = false;
        }
    }

    /// What another process finds after this one was killed: everything written.
    pub(crate) fn after_kill(&self) -> Self {
        let world = self.world();
        let copy = World {
            files: world.files.clone(),
            names: world.names.clone(),
            durable_names: world.durable_names.clone(),
            ..World::default()
        };
        Self(Arc::new((Mutex::new(copy), Condvar::new())))
    }

    /// What is left after a power cut.
    pub(crate) fn after_power_cut(&self, rng: &mut Rng) -> Self {
        let world = self.world();
        let mut names = world.durable_names.clone();
        for (name, &at) in &world.names {
            if rng.percent(50) {
                names.insert(name.clone(), at);
            }
        }
        for name in world.durable_names.keys() {
            if !world.names.contains_key(name) && rng.percent(50) {
                names.remove(name);
            }
        }
        let left = |&at: &usize, rng: &mut Rng| {
            let Content { seen, durable, dirty, .. } = &world.files[at];
            let mut bytes = durable.clone();
            // How far the length got; a file system orders it behind its pages, or not.
            let grown = seen.len().saturating_sub(durable.len());
            bytes.resize(durable.len() + rng.below(grown as u64 + 1) as usize, 0);
            for &page in dirty {
                if rng.percent(60) {
                    let from = page * PAGE;
                    let to = (from + PAGE).min(seen.len()).min(bytes.len());
                    if from < to {
                        bytes[from..to].copy_from_slice(&seen[from..to]);
                    }
                }
            }
            bytes
        };
        let files = names.iter().map(|(n, at)| (n.clone(), left(at, rng))).collect();
        drop(world);
        Self::with(&files)
    }
}

struct Lock(MemoryDisk);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.world().locked = false;
    }
}

struct MemoryFile(MemoryDisk, usize);

impl Disk for MemoryDisk {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut world = self.world();
        if std::mem::replace(&mut world.locked, true) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock(self.clone())))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world();
        if take(&mut world.faults.create) {
            return Err(ErrorKind::StorageFull.into());
        }
        if world.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let at = world.files.len();
        world.files.push(Content::default());
        world.names.insert(name.to_owned(), at);
        Ok(Arc::new(MemoryFile(self.clone(), at)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let at = self.world().names.get(name).copied().ok_or(ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile(self.clone(), at)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.world().names.remove(name);
        removed.map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut world = self.world();
        if take(&mut world.faults.sync_dir) {
            return Err(io::Error::from_raw_os_error(5));
        }
        world.durable_names = world.names.clone();
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut world = self.0.world();
        if take(&mut world.faults.write) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut count = bytes.len();
        let held = world.hold == Some(Hold::Write);
        if held || take(&mut world.faults.short) {
            count = (count / 2).max(1);
        }
        if let Some(space) = world.faults.space {
            let used: usize = world.names.values().map(|&at| world.files[at].seen.len()).sum();
            count = count.min(space.saturating_sub(used));
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
        }
        let content = &mut world.files[self.1];
        let from = offset as usize;
        let to = from + count;
        if content.seen.len() < to {
            content.seen.resize(to, 0);
        }
        content.seen[from..to].copy_from_slice(&bytes[..count]);
        content.dirty.extend(from / PAGE..=(to - 1) / PAGE);
        drop(world);
        if held {
            self.0.stop_at(Hold::Write);
        }
        Ok(count)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.0.world();
        let seen = &world.files[self.1].seen;
        let rest = seen.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.stop_at(Hold::Sync);
        let mut world = self.0.world();
        let failed = take(&mut world.faults.sync);
        let content = &mut world.files[self.1];
        let dirty = std::mem::take(&mut content.dirty);
        if failed {
            return Err(io::Error::from_raw_os_error(5));
        }
        let len = content.seen.len();
        content.durable.resize(len, 0);
        for page in dirty {
            let from = (page * PAGE).min(len);
            let to = (from + PAGE).min(len);
            content.durable[from..to].copy_from_slice(&content.seen[from..to]);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.world().files[self.1].seen.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.world().files[self.1].seen.truncate(len as usize);
        Ok(())
    }
}

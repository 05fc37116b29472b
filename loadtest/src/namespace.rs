//! Network namespaces: this thread moves into one, and what it starts or opens
//! there stays there. They have no name, so nothing is left when the last
//! process in one ends.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace, kept alive by this.
pub(crate) struct Namespace(File);

impl Namespace {
    /// Where this thread is.
    pub(crate) fn here() -> Result<Namespace> {
        Namespace::at(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one behind a file such as `/proc/PID/ns/net`.
    pub(crate) fn at(path: &Path) -> Result<Namespace> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Namespace(file))
    }

    /// Moves this thread there.
    pub(crate) fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network namespace, which needs root (CAP_SYS_ADMIN)")
    }

    /// Does something there, and comes back.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Namespace::here()?;
        self.enter()?;
        let outcome = work();
        home.enter()?;
        outcome
    }
}

/// Moves this thread into a namespace of its own, in which only loopback is up.
pub(crate) fn unshare() -> Result<()> {
    // SAFETY: a network namespace of its own takes nothing from other threads,
    // unlike a descriptor table: open descriptors stay what they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .context("making a network namespace, which needs root (CAP_SYS_ADMIN)")?;
    ip("link set lo up")
}

/// `ip` with these arguments.
pub(crate) fn ip(arguments: &str) -> Result<()> {
    let words = arguments.split_ascii_whitespace();
    let output = Command::new("ip").args(words).output().context("starting ip (iproute2)")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("ip {arguments}: {error}");
    }
    Ok(())
}

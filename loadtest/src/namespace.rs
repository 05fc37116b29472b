//! Network namespaces: this thread moves into one, and what it starts or opens
//! there stays there. They have no name, so nothing is left when the last
//! process in one ends.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

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
///
/// `unshare` (util-linux) makes it: a process of it lends its own, and may end
/// as soon as this thread is there.
pub(crate) fn unshare() -> Result<()> {
    let mut lender = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo apart; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting unshare (util-linux)")?;
    let mut word = String::new();
    let stdout = lender.stdout.take().context("no pipe")?;
    BufReader::new(stdout).read_line(&mut word)?;
    let entered = match word.is_empty() {
        true => Err(anyhow!("making a network namespace needs root (CAP_SYS_ADMIN)")),
        false => Namespace::at(Path::new(&format!("/proc/{}/ns/net", lender.id())))
            .and_then(|namespace| namespace.enter()),
    };
    // Without its input it ends by itself.
    drop(lender.stdin.take());
    lender.wait()?;
    entered?;
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

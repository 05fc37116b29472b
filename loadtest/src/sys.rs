//! What is asked of the machine: time, processors, limits, and what a process used.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Microseconds of `CLOCK_MONOTONIC`: one clock for all processes of a machine,
/// so a latency may be taken between two of them.
pub(crate) fn mono_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// Seconds since the Unix epoch, for tokens and reports.
pub(crate) fn wall_secs() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A list of processors such as `0`, `1-3` or `0,2`; `none` and the empty text
/// mean: no pinning.
pub(crate) fn parse_cpus(text: &str) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    if text == "none" {
        return Ok(cpus);
    }
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.parse().with_context(|| format!("processor list {text:?}"))?;
        let last: usize = last.parse().with_context(|| format!("processor list {text:?}"))?;
        if first > last || last >= 1024 {
            bail!("processor list {text:?}");
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// Keeps this thread, and what it starts, on `cpus`; nothing if the list is empty.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    processors();
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("pinning to {cpus:?}"))
}

/// Has this thread, and those it starts, give way to others: a third of their weight.
pub(crate) fn run_later() {
    // Whoever may not lower a priority has one to spare no more.
    let _ = rustix::process::nice(5);
}

/// Sets this process's nice value, where that is allowed.
pub(crate) fn set_nice(value: i32) {
    let _ = rustix::process::setpriority_process(None, value);
}

/// How many processors this process might use when it was first asked, which is
/// before it pinned itself.
pub(crate) fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Has the kernel kill this process when the thread that started it ends.
pub(crate) fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("setting the parent death signal")
}

/// Raises the soft limit of open descriptors to the hard one; returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused only where the limit is already at its maximum.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Nanoseconds of processor time that a process's threads have used (user and
/// system), by the scheduler's own account.
pub(crate) fn cpu_ns(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread that ended since the listing is simply not counted.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        sum += text.split_ascii_whitespace().next().and_then(|ns| ns.parse::<u64>().ok())?;
    }
    Some(sum)
}

/// Nanoseconds that these processors have been idle, all together; all
/// processors if none is named. Exact to the kernel's tick, 10 ms.
pub(crate) fn idle_ns(cpus: &[usize]) -> Option<u64> {
    const TICK_NS: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/stat").ok()?;
    let mut sum = 0;
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let number = fields.next().and_then(|name| name.strip_prefix("cpu"));
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else { continue };
        if cpus.is_empty() || cpus.contains(&number) {
            // user, nice, system, idle, iowait
            let idle = fields.skip(3).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
            sum += idle.sum::<u64>() * TICK_NS;
        }
    }
    Some(sum)
}

/// Resident kilobytes by `/proc/PID/status`: cheap, for samples during a run.
pub(crate) fn rss_kib(pid: u32) -> Option<u64> {
    field_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// Resident kilobytes by `/proc/PID/smaps_rollup`: exact, walks all pages, for
/// moments when nothing else happens.
pub(crate) fn exact_rss_kib(pid: u32) -> Option<u64> {
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(text) => field_kib(&text, "Rss:"),
        Err(_) => rss_kib(pid),
    }
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Datagrams that this network namespace's kernel dropped because a receive
/// buffer was full, since it began.
pub(crate) fn udp_drops() -> u64 {
    udp_counter(&fs::read_to_string("/proc/net/snmp").unwrap_or_default(), "RcvbufErrors")
        .unwrap_or(0)
}

/// A counter of the two `Udp:` lines, names and values.
fn udp_counter(snmp: &str, name: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|field| field == name)?;
    values.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// Datagrams dropped because a receive buffer was full, by the sockets of a
/// server's port and by those connected to it, since they were opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PortDrops {
    /// The server's.
    pub(crate) server: u64,
    /// Its viewers'.
    pub(crate) viewers: u64,
}

/// What the sockets of this port, and those connected to it, have dropped.
pub(crate) fn port_drops(port: u16) -> PortDrops {
    port_drops_in(&fs::read_to_string("/proc/net/udp").unwrap_or_default(), port)
}

fn port_drops_in(table: &str, port: u16) -> PortDrops {
    let mut sums = PortDrops::default();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, remote, .., drops] = fields[..] else { continue };
        let is_it = |address: &str| {
            let text = address.rsplit_once(':').map(|(_, port)| port);
            text.and_then(|text| u16::from_str_radix(text, 16).ok()) == Some(port)
        };
        let drops = drops.parse::<u64>().unwrap_or(0);
        if is_it(local) {
            sums.server += drops;
        } else if is_it(remote) {
            sums.viewers += drops;
        }
    }
    sums
}

/// What a figure was measured on.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(crate) struct Machine {
    /// Model name of the first processor.
    pub(crate) cpu: String,
    /// Processors this process may use.
    pub(crate) processors: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Load averages when the run began: other work on the machine shows here.
    pub(crate) load_average: String,
}

/// Describes this machine, as it was when first asked.
pub(crate) fn machine() -> Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(look).clone()
}

fn look() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown");
    Machine {
        cpu: cpu.to_owned(),
        processors: processors(),
        memory_mib: field_kib(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_average: read("/proc/loadavg").trim().to_owned(),
    }
}

/// A command that starts `program` pinned to `cpus` and bound to die with this
/// process. It goes through our own hidden subcommand, which arranges both and
/// then becomes the program, so that its process id is the one we know.
pub(crate) fn pinned_command(program: &str, cpus: &[usize]) -> Result<Command> {
    let own = std::env::current_exe().context("finding our own executable")?;
    let mut command = Command::new(own);
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    command.arg("exec-pinned").arg("--cpus").arg(list.join(",")).arg("--").arg(program);
    Ok(command)
}

/// The hidden subcommand of [`pinned_command`]: never returns but with an error.
pub(crate) fn exec_pinned(cpus: &str, program: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    die_with_parent()?;
    pin(&parse_cpus(cpus)?)?;
    raise_descriptor_limit();
    let Some((name, arguments)) = program.split_first() else { bail!("no program") };
    Err(Command::new(name).args(arguments).exec()).with_context(|| format!("starting {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_read() {
        assert_eq!(parse_cpus("0,2-4").unwrap(), [0, 2, 3, 4]);
        assert!(parse_cpus("none").unwrap().is_empty());
        assert!(parse_cpus("3-1").is_err());
        assert!(parse_cpus("x").is_err());
    }

    #[test]
    fn dropped_datagrams_are_found() {
        let snmp = "Tcp: a b\nTcp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 7 8 9\n";
        assert_eq!(udp_counter(snmp, "RcvbufErrors"), Some(9));
        assert_eq!(udp_counter(snmp, "None"), None);
    }

    #[test]
    fn dropped_datagrams_are_told_apart_by_port() {
        let table = "sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid \
             timeout inode ref pointer drops\n\
             1: 0100007F:1CE8 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 7 2 0 5\n\
             2: 0101017F:4E20 0100007F:1CE8 01 00000000:00000000 00:00000000 00000000 0 0 8 2 0 3\n\
             3: 0101017F:4E21 0100007F:1CE9 01 00000000:00000000 00:00000000 00000000 0 0 9 2 0 9\n";
        assert_eq!(port_drops_in(table, 7400), PortDrops { server: 5, viewers: 3 });
    }

    #[test]
    fn own_usage_is_visible() {
        let pid = std::process::id();
        assert!(cpu_ns(pid).unwrap() > 0);
        assert!(exact_rss_kib(pid).unwrap() > 0);
        assert!(rss_kib(pid).unwrap() > 0);
        assert!(idle_ns(&[]).unwrap() >= idle_ns(&[0]).unwrap());
    }
}

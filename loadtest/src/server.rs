//! The server under test: started here with a configuration of our own, or an
//! existing one; and what it says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use crate::http::Client;
use crate::run::Deadline;
use crate::token::Signer;
use crate::{certificate, sys};

/// How long a server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Of its log that are shown.
const LOG_LINES: usize = 15;
/// Connections that one shard with a descriptor table of its own should hold:
/// well under the limit of 20,000, because the kernel does not share them evenly.
const CONNECTIONS_PER_TABLE: u32 = 13_000;

/// Which server to measure.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerOptions {
    /// Executable to start; by default `tidegate` beside this one.
    #[arg(long)]
    server_bin: Option<PathBuf>,
    /// Configuration file for it; addresses, shards and the key are overridden.
    #[arg(long)]
    server_config: Option<PathBuf>,
    /// Setting for it, as `section.field=value`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    settings: Vec<String>,
    /// Shards; by default one per server processor.
    #[arg(long)]
    shards: Option<u32>,
    /// Use a running server at this address (host:port) instead.
    #[arg(long, requires = "key")]
    url: Option<String>,
    /// Its operators' address.
    #[arg(long, requires = "url")]
    admin_url: Option<String>,
    /// Its HS256 secret.
    #[arg(long)]
    key: Option<String>,
    /// Its process id, where it runs on this machine: without it neither
    /// processor time nor memory is known.
    #[arg(long, requires = "url")]
    server_pid: Option<u32>,
    /// Processors of the server, such as `0` or `0-1`, or `none` [default: 0 if
    /// there are several].
    #[arg(long)]
    server_cpus: Option<String>,
    /// Processors of the load generator [default: all but the first].
    #[arg(long)]
    client_cpus: Option<String>,
    /// Where it is to listen; loopback if absent.
    #[arg(skip)]
    listen: Option<IpAddr>,
}

impl ServerOptions {
    /// The same with one setting more, which those of the command line overrule.
    pub(crate) fn with(&self, setting: &str) -> Self {
        let mut options = self.clone();
        options.settings.insert(0, setting.to_owned());
        options
    }

    /// The same on another address than loopback; the certificate is ours.
    pub(crate) fn elsewhere(&self, listen: IpAddr) -> Self {
        Self { listen: Some(listen), ..self.clone() }
    }

    /// The server's processors and ours.
    pub(crate) fn processors(&self) -> Result<(Vec<usize>, Vec<usize>)> {
        let all = sys::processors();
        let list = |text: &Option<String>, default: std::ops::Range<usize>| match text {
            Some(text) => sys::parse_cpus(text),
            None if all < 2 => Ok(Vec::new()),
            None => Ok(default.collect()),
        };
        Ok((list(&self.server_cpus, 0..1)?, list(&self.client_cpus, 1..all)?))
    }
}

/// A server under test; ends with this value if it was started by it.
pub(crate) struct Server {
    child: Option<Child>,
    /// How it was started, to start it again.
    launch: Option<Launch>,
    pid: Option<u32>,
    /// Viewers and publishers.
    pub(crate) addr: SocketAddr,
    admin: Option<SocketAddr>,
    /// HS256 secret.
    pub(crate) secret: String,
}

/// A program with everything it is started with.
struct Launch {
    program: PathBuf,
    config: Option<PathBuf>,
    settings: Vec<(String, String)>,
    cpus: Vec<usize>,
    /// Its working directory: what it keeps is kept there, and removed with it.
    dir: PathBuf,
    /// Not removed.
    keep: bool,
}

impl Launch {
    fn start(&self) -> Result<Child> {
        let mut command = sys::pinned_command(&self.program.to_string_lossy(), &self.cpus)?;
        command.arg("serve").current_dir(&self.dir);
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        for (name, value) in &self.settings {
            let name = name.replace('.', "__").to_ascii_uppercase();
            command.env(format!("TIDEGATE__{name}"), value);
        }
        let path = self.dir.join("server.log");
        let log = fs::File::options().create(true).append(true).open(path)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {}", self.program.display()))
    }
}

impl Server {
    /// Starts a server that can hold so many viewers' descriptors, or finds the
    /// one named.
    pub(crate) fn start(
        options: &ServerOptions,
        descriptors: u32,
        deadline: Deadline,
    ) -> Result<Server> {
        let mut server = match &options.url {
            Some(url) => Self::existing(options, url)?,
            None => Self::spawn(options, descriptors)?,
        };
        match server.wait_ready(deadline) {
            Ok(()) => Ok(server),
            Err(error) => {
                let log = server.log_tail();
                server.stop();
                Err(error.context(format!("the server is not ready; its log ends:\n{log}")))
            }
        }
    }

    fn existing(options: &ServerOptions, url: &str) -> Result<Server> {
        let resolve = |url: &str| -> Result<SocketAddr> {
            let host = url.split("://").last().unwrap_or(url).trim_end_matches('/');
            let mut found = host.to_socket_addrs().with_context(|| format!("address {url}"))?;
            found.next().with_context(|| format!("address {url}"))
        };
        Ok(Server {
            child: None,
            launch: None,
            pid: options.server_pid,
            addr: resolve(url)?,
            admin: options.admin_url.as_deref().map(resolve).transpose()?,
            secret: options.key.clone().context("--key is needed")?,
        })
    }

    fn spawn(options: &ServerOptions, descriptors: u32) -> Result<Server> {
        let program = match &options.server_bin {
            Some(path) => std::path::absolute(path)?,
            None => std::env::current_exe()?.with_file_name("tidegate"),
        };
        if !program.exists() {
            bail!("no server at {}; build it, or say --server-bin", program.display());
        }
        let dir = std::env::temp_dir().join(format!(
            "tidegate-loadtest-{}-{}",
            std::process::id(),
            sys::mono_us()
        ));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let listen = options.listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let (addr, admin) = (SocketAddr::new(listen, free_port()?), free_port()?);
        let admin = SocketAddr::new(listen, admin);
        let secret = format!("loadtest-{:032x}-{}", u128::from(sys::mono_us()), std::process::id());
        let (cpus, _) = options.processors()?;
        let mut shards = options.shards.unwrap_or(u32::try_from(cpus.len().max(1))?);
        let separate = descriptors > 18_000;
        if separate {
            shards = shards.max(descriptors.div_ceil(CONNECTIONS_PER_TABLE));
        }
        let mut settings = vec![
            ("server.listen".to_owned(), addr.to_string()),
            ("server.admin_listen".to_owned(), admin.to_string()),
            ("server.shards".to_owned(), shards.to_string()),
            ("server.demo".to_owned(), "false".to_owned()),
            (
                "auth.keys".to_owned(),
                format!("[{{id=\"loadtest\",algorithm=\"HS256\",secret=\"{secret}\"}}]"),
            ),
        ];
        // On loopback the server makes its own.
        if !listen.is_loopback() {
            let (certificate, key) = certificate::write(&dir, listen)?;
            settings.push(("tls.certificate".to_owned(), certificate.display().to_string()));
            settings.push(("tls.key".to_owned(), key.display().to_string()));
            // Publishers and scrapes go in clear, as they always did.
            settings.push(("tls.plaintext".to_owned(), "always".to_owned()));
        }
        if separate {
            settings.push(("server.separate_descriptors".to_owned(), "true".to_owned()));
        }
        for setting in &options.settings {
            let (name, value) = setting
                .split_once('=')
                .with_context(|| format!("--set {setting}: section.field=value"))?;
            settings.push((name.to_owned(), value.to_owned()));
        }
        let config = options.server_config.as_ref().map(std::path::absolute).transpose()?;
        let launch = Launch { program, config, settings, cpus, dir, keep: false };
        let child = launch.start()?;
        let pid = Some(child.id());
        let launch = Some(launch);
        Ok(Server { child: Some(child), launch, pid, addr, admin: Some(admin), secret })
    }

    /// Kills it without a warning, or asks it to end; returns when it is gone.
    pub(crate) fn end(&mut self, ask: bool) -> Result<()> {
        let child = self.child.as_mut().context("only a server started here can be ended")?;
        if ask {
            kill_process(Pid::from_child(child), Signal::TERM).context("signalling the server")?;
        } else {
            child.kill().context("killing the server")?;
        }
        child.wait().context("waiting for the server's end")?;
        Ok(())
    }

    /// Starts it again after [`Server::end`], with all that it kept.
    pub(crate) fn again(&mut self) -> Result<()> {
        let launch = self.launch.as_ref().context("only a server started here can be restarted")?;
        let child = launch.start()?;
        self.pid = Some(child.id());
        self.child = Some(child);
        Ok(())
    }

    /// Leaves its files where they are when it ends; returns where.
    pub(crate) fn keep_files(&mut self) -> Option<PathBuf> {
        let launch = self.launch.as_mut()?;
        launch.keep = true;
        Some(launch.dir.clone())
    }

    /// Waits until it says that it is ready.
    pub(crate) fn wait_ready(&mut self, deadline: Deadline) -> Result<()> {
        let Some(admin) = self.admin else { return Ok(()) };
        let started = Instant::now();
        loop {
            deadline.check("waiting for the server")?;
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("it ended with {status}");
            }
            let answer = Client::new(admin, None).get("/readyz");
            match answer {
                Ok((200, _)) => return Ok(()),
                other if started.elapsed() > READY_LIMIT => {
                    return match other {
                        Ok((status, _)) => Err(anyhow!("/readyz says {status}")),
                        Err(error) => Err(error),
                    };
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Its process, if known.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The operators' address, if known.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// A publisher's connection.
    pub(crate) fn publisher(&self) -> Result<Client> {
        let token = Signer::new(&self.secret).publisher()?;
        Ok(Client::new(self.addr, Some(token)))
    }

    /// Its metrics, each summed over its labels; empty if it has none.
    pub(crate) fn metrics(&self) -> Metrics {
        let Some(admin) = self.admin else { return Metrics::default() };
        match Client::new(admin, None).get("/metrics") {
            Ok((200, body)) => Metrics::parse(&String::from_utf8_lossy(&body)),
            _ => Metrics::default(),
        }
    }

    /// Whether it still runs; always true of one that we did not start.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The end of its log, from the panic on if there was one.
    pub(crate) fn log_tail(&self) -> String {
        let Some(launch) = &self.launch else { return String::new() };
        let log = fs::read_to_string(launch.dir.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let panic = lines.iter().position(|line| line.contains("panicked at"));
        let start = panic.unwrap_or(lines.len().saturating_sub(LOG_LINES));
        lines[start..].iter().take(LOG_LINES).copied().collect::<Vec<_>>().join("\n")
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Sockets of the load generator are closed by now: a drain has nothing
        // to wait for.
        if let Some(pid) = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < END_LIMIT {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if matches!(child.try_wait(), Ok(None)) {
            let _ = writeln!(std::io::stderr(), "the server did not end on SIGTERM: killed");
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(launch) = self.launch.take().filter(|launch| !launch.keep) {
            remove(&launch.dir);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn remove(dir: &Path) {
    // A leftover in the temporary directory harms nobody.
    let _ = fs::remove_dir_all(dir);
}

/// Outside the range from which the kernel takes ports for connections: while
/// the server is being restarted, nobody else may get its port.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// One that is free for TCP and for UDP.
fn free_port() -> Result<u16> {
    let first = u16::try_from(sys::mono_us() % PORTS.len() as u64)?;
    let mut candidates = (PORTS.start + first..PORTS.end).chain(PORTS);
    let any = Ipv4Addr::UNSPECIFIED;
    candidates
        .find(|&port| {
            TcpListener::bind((any, port)).is_ok() && UdpSocket::bind((any, port)).is_ok()
        })
        .context("no free port")
}

/// A scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// By name, summed over labels.
    sums: BTreeMap<String, f64>,
    /// By name and labels, as they are written.
    series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the Prometheus text format, summing each metric over its labels.
    pub(crate) fn parse(text: &str) -> Self {
        let (mut sums, mut series) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = match line.split_once('{') {
                Some((name, rest)) => (name, rest.rsplit_once('}').map_or("", |(_, v)| v)),
                None => line.split_once(' ').unwrap_or((line, "")),
            };
            let value = rest.split_ascii_whitespace().next().and_then(|v| v.parse::<f64>().ok());
            if let Some(value) = value {
                if let Some((head, _)) = line.rsplit_once('}') {
                    series.insert(format!("{head}}}"), value);
                }
                *sums.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Self { sums, series }
    }

    /// How much a counter grew since an earlier scrape; `None` if there is none.
    pub(crate) fn growth(&self, earlier: &Metrics, name: &str) -> Option<f64> {
        Some(self.sums.get(name)? - earlier.sums.get(name).copied().unwrap_or(0.0))
    }

    /// How much each of the counters grew whose name begins with one of these,
    /// by name and labels; those that did not are left out.
    pub(crate) fn growths(&self, earlier: &Metrics, prefixes: &[&str]) -> BTreeMap<String, f64> {
        let lines = self.sums.iter().chain(&self.series);
        let wanted = lines.filter(|(name, _)| {
            let bare = name.split('{').next().unwrap_or_default();
            // With labels only, where there are some.
            let labelled = format!("{name}{{");
            bare.ends_with("_total")
                && prefixes.iter().any(|prefix| bare.starts_with(prefix))
                && !self
                    .series
                    .range(labelled.clone()..)
                    .next()
                    .is_some_and(|(series, _)| series.starts_with(&labelled))
        });
        wanted
            .map(|(name, now)| {
                let before = earlier.series.get(name).or(earlier.sums.get(name));
                (name.clone(), now - before.copied().unwrap_or(0.0))
            })
            .filter(|(_, grown)| *grown > 0.0)
            .collect()
    }

    /// The same of one series, labels as they are written.
    pub(crate) fn series_growth(&self, earlier: &Metrics, series: &str) -> Option<f64> {
        Some(self.series.get(series)? - earlier.series.get(series).copied().unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# HELP x y\ntidegate_writes_total{shard=\"0\",k=\"a } b\"} 5\n\
                    tidegate_writes_total{shard=\"1\"} 7 1234\nup 1\n";
        let before = Metrics::parse("tidegate_writes_total{shard=\"0\"} 2\n");
        let after = Metrics::parse(text);
        assert_eq!(after.growth(&before, "tidegate_writes_total"), Some(10.0));
        assert_eq!(after.growth(&before, "up"), Some(1.0));
        assert_eq!(after.growth(&before, "absent"), None);
        let one = "tidegate_writes_total{shard=\"1\"}";
        // By series and not once more as a sum; another's counters are left out.
        let grown = after.growths(&before, &["tidegate_"]);
        assert_eq!((grown.len(), grown.get(one)), (2, Some(&7.0)), "{grown:?}");
        assert!(after.growths(&before, &["other_"]).is_empty());
        assert_eq!(after.series_growth(&before, one), Some(7.0));
    }
}

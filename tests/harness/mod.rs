//! A real server for end-to-end tests: its own ports, key and folder; and
//! viewers that speak to it.
#![allow(dead_code, reason = "each test crate uses its part of the harness")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

/// The key of every test server.
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Longest wait for anything; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Viewers' and publishers' address.
    pub(crate) address: SocketAddr,
    /// Operators' address.
    pub(crate) admin: SocketAddr,
    environment: Vec<(String, String)>,
    /// Holds its configuration and its log.
    pub(crate) folder: tempfile::TempDir,
}

/// The server in a mount namespace of its own, with a file system in memory
/// where its log is.
fn on_small_disk(log: &std::path::Path, megabytes: u32) -> Command {
    std::fs::create_dir_all(log).expect("a folder");
    let script =
        format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$1\" && shift && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg(script).arg(env!("CARGO_BIN_EXE_tidegate")).arg(log);
    command
}

/// What it writes about itself.
const LOG: &str = "stderr.log";

fn spawn(
    command: &mut Command,
    folder: &std::path::Path,
    environment: &[(String, String)],
) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.join(LOG));
    let mut child = command
        .args(["serve", "--config"])
        .arg(folder.join("tidegate.toml"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stderr(log.expect("a file"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("an announcement");
    let log = || std::fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    assert!(line.contains("serving on"), "announced {line:?}; {}", log());
    child
}

/// A port that is free, for TCP and UDP. Not one that the system chooses: those are
/// what outgoing connections take, of other tests too, before a server can.
fn free_port() -> SocketAddr {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let next =
            std::process::id().wrapping_mul(64).wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        // Below 32,768, where Linux begins to choose.
        let address = SocketAddr::from(([127, 0, 0, 1], 12_000 + (next % 20_000) as u16));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

impl Server {
    /// With the defaults, two shards, a key, and `extra` TOML.
    pub(crate) fn start(extra: &str) -> Server {
        Self::start_with(extra, &[])
    }

    /// The same with environment variables.
    pub(crate) fn start_with(extra: &str, environment: &[(&str, &str)]) -> Server {
        Self::start_as(extra, environment, None)
    }

    fn start_as(extra: &str, environment: &[(&str, &str)], small_disk: Option<u32>) -> Server {
        let (address, admin) = (free_port(), free_port());
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("tidegate.toml");
        let log = folder.path().join("log");
        let log = log.display();
        // `extra` comes last, so that it may open sections of its own.
        let text = format!(
            "[server]\nlisten = \"{address}\"\nadmin_listen = \"{admin}\"\nshards = 2\n\
             reconnect_spread_ms = 1000\n[durable]\ndirectory = \"{log}\"\n[log]\nfilter = \"warn\"\n\
             [[auth.keys]]\nid = \"test\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n{extra}\n"
        );
        std::fs::write(&config, text).expect("a config");
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(owned).collect();
        let mut command = match small_disk {
            None => Command::new(env!("CARGO_BIN_EXE_tidegate")),
            Some(megabytes) => on_small_disk(&folder.path().join("log"), megabytes),
        };
        let child = spawn(&mut command, folder.path(), &environment);
        Server { child, address, admin, environment, folder }
    }

    /// Listening beyond loopback, and reached on it.
    pub(crate) fn start_open(extra: &str) -> Server {
        let any = SocketAddr::from(([0, 0, 0, 0], free_port().port())).to_string();
        let mut server = Self::start_with(extra, &[("TIDEGATE__SERVER__LISTEN", &any)]);
        server
            .address
            .set_port(any.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).expect("one"));
        server
    }

    /// With a disk of its own for the log.
    pub(crate) fn start_on_small_disk(extra: &str, megabytes: u32) -> Server {
        Self::start_as(extra, &[], Some(megabytes))
    }

    /// A file beside the log, as the server sees its disk.
    pub(crate) fn beside_log(&self, name: &str) -> std::path::PathBuf {
        let log = self.folder.path().join("log").join(name);
        let root = format!("/proc/{}/root", self.child.id());
        std::path::Path::new(&root).join(log.strip_prefix("/").expect("absolute"))
    }

    /// Kills it without a warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }

    /// Starts it again, with the same configuration and log, once it is gone.
    pub(crate) fn again(&mut self) {
        self.child.wait().expect("waited");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        self.child = spawn(&mut command, self.folder.path(), &self.environment);
    }

    /// A token that holds for an hour.
    pub(crate) fn token(&self, user: &str, role: &str, rooms: &[&str]) -> String {
        sign(&json!({"sub": user, "role": role, "rooms": rooms, "exp": now() + 3_600}))
    }

    /// Opens a viewer's connection and reads the welcome.
    pub(crate) fn connect(&self) -> Viewer {
        self.connect_as("tidegate.v1.json")
    }

    /// Opens a connection with another subprotocol.
    pub(crate) fn connect_as(&self, subprotocol: &str) -> Viewer {
        let mut request =
            format!("ws://{}/v1/ws", self.address).into_client_request().expect("a request");
        let value = subprotocol.parse().expect("a header value");
        request.headers_mut().insert("Sec-WebSocket-Protocol", value);
        let stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (socket, _) = tungstenite::client(request, stream).expect("upgraded");
        Viewer { socket }
    }

    /// A viewer in a room.
    pub(crate) fn viewer(&self, user: &str, room: &str) -> Viewer {
        let mut viewer = self.connect();
        viewer.expect("welcome");
        viewer.join(room, &self.token(user, "viewer", &[room]));
        viewer.expect("joined");
        viewer
    }

    /// Publishes events to a room; returns status and body.
    pub(crate) fn publish(&self, room: &str, events: Value) -> (u16, Value) {
        let token = self.token("im", "publisher", &["*"]);
        let body = json!({ "events": events }).to_string();
        self.http("POST", &format!("/v1/rooms/{room}/events"), Some(&token), &body)
    }

    /// One request on a connection of its own.
    pub(crate) fn http(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (u16, Value) {
        let authorization =
            token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n",
            body.len()
        );
        let (status, text) = exchange(self.address, &[head.as_bytes(), body.as_bytes()].concat());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A sample of the metrics page, summed over what matches `series`.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        let (_, text) = exchange(self.admin, request);
        let samples = text.lines().filter(|line| line.starts_with(series));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric is at least `least`.
    pub(crate) fn wait_metric(&self, series: &str, least: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(series) < least {
            assert!(Instant::now() < until, "{series} stays at {}", self.metric(series));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to leave.
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// What it has written about itself.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// Its exit status, once it is gone.
    pub(crate) fn wait(mut self) -> std::process::ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < until, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// A token with these claims, signed with the test key.
pub(crate) fn sign(claims: &Value) -> String {
    let header = Header { kid: Some("test".to_owned()), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&header, claims, &key).expect("signed")
}

/// Sends bytes on a connection of their own and reads to its end.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// A viewer's connection.
pub(crate) struct Viewer<S = TcpStream> {
    /// To be spoken to directly where a test breaks rules.
    pub(crate) socket: WebSocket<S>,
}

impl<S: Read + Write> Viewer<S> {
    /// Sends a JSON message.
    pub(crate) fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).expect("sent");
    }

    /// Asks to join.
    pub(crate) fn join(&mut self, room: &str, token: &str) {
        self.send(&json!({"join": {"room": room, "token": token}}));
    }

    /// Asks to join where another connection left off.
    pub(crate) fn resume(&mut self, room: &str, token: &str, from: &Value) {
        self.send(&json!({"join": {"room": room, "token": token, "resume": from}}));
    }

    /// The next message: its name and content.
    pub(crate) fn next(&mut self) -> (String, Value) {
        loop {
            match self.socket.read().expect("a message") {
                Message::Text(text) => {
                    let value: Value = serde_json::from_str(&text).expect("JSON");
                    let object = value.as_object().expect("an object");
                    assert_eq!(object.len(), 1, "one field: {text}");
                    let (name, content) = object.iter().next().expect("one");
                    return (name.clone(), content.clone());
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The next message of this name, past others.
    pub(crate) fn expect(&mut self, name: &str) -> Value {
        loop {
            let (got, content) = self.next();
            if got == name {
                return content;
            }
            assert!(got != "error" && got != "goaway", "waiting for {name}, got {got} {content}");
        }
    }

    /// The next message, which must be an error with this code.
    pub(crate) fn expect_error(&mut self, code: &str) {
        let (name, content) = self.next();
        assert_eq!((name.as_str(), content["code"].as_str()), ("error", Some(code)), "{content}");
    }

    /// Reads until the server closes; returns its code.
    pub(crate) fn closed(&mut self) -> Option<u16> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|f| u16::from(f.code)),
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    panic!("the connection stays open")
                }
                Err(_) => return None,
            }
        }
    }

    /// Sends bytes as they are, past the WebSocket client.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).expect("sent");
    }
}

/// A close code as tungstenite shows it.
pub(crate) fn code(number: u16) -> CloseCode {
    CloseCode::from(number)
}

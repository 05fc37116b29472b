//! A keep-alive HTTP/1.1 client, as small as publishing and scraping need.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer.
const MAX_ANSWER: usize = 64 << 20;

/// One connection, made when first needed and again when the server closed it.
pub(crate) struct Client {
    addr: SocketAddr,
    bearer: Option<String>,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    /// To a server; `bearer`: the token to show.
    pub(crate) fn new(addr: SocketAddr, bearer: Option<String>) -> Self {
        Self { addr, bearer, stream: None, buffer: Vec::new() }
    }

    /// GET: status and body.
    pub(crate) fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        self.request("GET", path, b"")
    }

    /// POST of JSON: status and body.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.request("POST", path, body)
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let bearer = self
            .bearer
            .as_ref()
            .map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{bearer}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.addr,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let kept = self.stream.is_some();
        match self.exchange(&request) {
            // The server may have closed a connection that was idle. Requests are
            // safe to repeat: events carry ids.
            Err(_) if kept => {
                self.stream = None;
                self.exchange(&request)
            }
            other => other,
        }
        .with_context(|| format!("{method} http://{}{path}", self.addr))
    }

    fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                none.insert(stream)
            }
        };
        self.buffer.clear();
        let answer = stream
            .write_all(request)
            .map_err(anyhow::Error::from)
            .and_then(|()| answer(stream, &mut self.buffer));
        match answer {
            Ok((status, body, true)) => Ok((status, body)),
            Ok((status, body, false)) => {
                self.stream = None;
                Ok((status, body))
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }
}

/// Status, body, and whether the connection may be used again.
fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(u16, Vec<u8>, bool)> {
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .context("answer without a status")?;
    let header = |wanted: &str| {
        head.split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    let keep = header("connection").as_deref() != Some("close");
    if header("transfer-encoding").as_deref() == Some("chunked") {
        return Ok((status, chunked(stream, buffer, head_end)?, keep));
    }
    let Some(length) = header("content-length") else {
        bail!("answer {status} without a length");
    };
    let length: usize = length.parse().context("content-length")?;
    while buffer.len() < head_end + length {
        fill(stream, buffer)?;
    }
    Ok((status, buffer[head_end..head_end + length].to_vec(), keep))
}

fn chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>, mut at: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = loop {
            if let Some(end) = memchr::memmem::find(&buffer[at..], b"\r\n") {
                break at + end;
            }
            fill(stream, buffer)?;
        };
        let size = std::str::from_utf8(&buffer[at..line_end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16)?;
        at = line_end + 2;
        while buffer.len() < at + size + 2 {
            fill(stream, buffer)?;
        }
        body.extend_from_slice(&buffer[at..at + size]);
        at += size + 2;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    let mut chunk = [0; 65_536];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => bail!("connection closed before the answer was whole"),
            Ok(n) => {
                buffer.extend_from_slice(&chunk[..n]);
                if buffer.len() > MAX_ANSWER {
                    bail!("answer too large");
                }
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn serve(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        addr
    }

    #[test]
    fn answers_of_both_forms_are_read_on_one_connection() {
        let addr = serve(vec![
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 429 Slow\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        ]);
        let mut client = Client::new(addr, Some("t".into()));
        assert_eq!(client.get("/").unwrap(), (200, b"hello".to_vec()));
        assert_eq!(client.post("/x", b"{}").unwrap(), (429, b"abcde".to_vec()));
    }
}

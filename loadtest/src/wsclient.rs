//! The viewer's side of WebSocket (RFC 6455), by hand and without copies: just
//! what a measuring client needs, so that its cost per frame is one `read(2)`.

/// Text message.
pub(crate) const TEXT: u8 = 1;
/// Close.
pub(crate) const CLOSE: u8 = 8;
/// Ping.
pub(crate) const PING: u8 = 9;
/// Pong.
pub(crate) const PONG: u8 = 10;

/// RFC 6455's own example key: a server cannot tell, and the answer to it is known.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Any non-zero mask: the server must really unmask.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What stands at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A whole frame, and the length of all of it.
    Frame(Frame<'a>, usize),
    /// Part of a frame.
    Partial,
    /// Not what a server may send.
    Bad(&'static str),
}

/// One WebSocket frame from a server.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Last of its message.
    pub(crate) fin: bool,
    /// First bit reserved for extensions: compressed.
    pub(crate) rsv1: bool,
    /// Kind of frame.
    pub(crate) opcode: u8,
    /// Content.
    pub(crate) payload: &'a [u8],
}

/// Reads one frame from the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let [first, second, rest @ ..] = bytes else { return Parsed::Partial };
    if first & 0x30 != 0 {
        return Parsed::Bad("reserved bits set");
    }
    if second & 0x80 != 0 {
        return Parsed::Bad("masked frame from a server");
    }
    let (length, header) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            if length > 1 << 30 {
                return Parsed::Bad("frame of more than a gigabyte");
            }
            (usize::try_from(length).unwrap_or(usize::MAX), 10)
        }
        (126 | 127, _) => return Parsed::Partial,
        (short, _) => (usize::from(short), 2),
    };
    let Some(payload) = bytes.get(header..header + length) else { return Parsed::Partial };
    let frame =
        Frame { fin: first & 0x80 != 0, rsv1: first & 0x40 != 0, opcode: first & 0x0f, payload };
    Parsed::Frame(frame, header + length)
}

/// Bytes of a server's frame header for a payload of `length` bytes.
pub(crate) fn server_header_bytes(length: usize) -> usize {
    match length {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// An unmasked frame, as a server writes it.
pub(crate) fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 10);
    push_header(&mut out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
    out
}

/// A masked frame, as a client must write it.
pub(crate) fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    push_header(&mut out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn push_header(out: &mut Vec<u8>, opcode: u8, length: usize, masked: u8) {
    out.push(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => out.push(masked | short),
        (_, Ok(middle)) => {
            out.push(masked | 126);
            out.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// The opening request.
pub(crate) fn upgrade_request(host: &str, compress: bool) -> Vec<u8> {
    let extension = if compress {
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
         client_no_context_takeover\r\n"
    } else {
        ""
    };
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: tidegate.v1.json\r\n{extension}\r\n"
    )
    .into_bytes()
}

/// What the answer to the opening request says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// More is to come.
    Partial,
    /// Agreed; frames begin after so many bytes.
    Agreed {
        /// Length of the answer.
        length: usize,
        /// Whether permessage-deflate was agreed.
        compressed: bool,
    },
    /// Anything else, with the reason.
    Refused(String),
}

/// Reads the answer to [`upgrade_request`].
pub(crate) fn parse_upgrade(bytes: &[u8]) -> Upgrade {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > 16_384 {
            Upgrade::Refused("handshake answer of more than 16 KiB".into())
        } else {
            Upgrade::Partial
        };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        return Upgrade::Refused(format!("handshake: {status}"));
    }
    let mut accept = false;
    let mut protocol = false;
    let mut compressed = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "sec-websocket-accept" => accept = value == ACCEPT,
            "sec-websocket-protocol" => protocol = value == "tidegate.v1.json",
            "sec-websocket-extensions" => compressed = value.starts_with("permessage-deflate"),
            _ => {}
        }
    }
    match (accept, protocol) {
        (true, true) => Upgrade::Agreed { length: end + 4, compressed },
        (false, _) => Upgrade::Refused("handshake: wrong Sec-WebSocket-Accept".into()),
        (_, false) => Upgrade::Refused("handshake: subprotocol not agreed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_form_are_read_back() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let payload = vec![b'x'; length];
            let bytes = server_frame(TEXT, &payload);
            assert_eq!(bytes.len(), length + server_header_bytes(length));
            let expected = Frame { fin: true, rsv1: false, opcode: TEXT, payload: &payload };
            assert_eq!(parse(&bytes), Parsed::Frame(expected, bytes.len()));
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_partial() {
        let bytes = server_frame(TEXT, &[b'x'; 300]);
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Parsed::Partial, "cut at {cut}");
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_bad() {
        assert!(matches!(parse(&client_frame(TEXT, b"hi")), Parsed::Bad(_)));
        assert!(matches!(parse(&[0xb1, 0]), Parsed::Bad(_)));
        let giant = [0x81, 127, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(parse(&giant), Parsed::Bad(_)));
    }

    #[test]
    fn client_frames_are_masked() {
        let bytes = client_frame(TEXT, b"hello");
        assert_eq!(&bytes[..2], [0x81, 0x85]);
        let back: Vec<u8> =
            bytes[6..].iter().zip(bytes[2..6].iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(back, b"hello");
    }

    #[test]
    fn the_handshake_answer_is_checked() {
        let good = format!(
            "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\
             Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
        );
        let length = good.len();
        assert_eq!(
            parse_upgrade(format!("{good}xx").as_bytes()),
            Upgrade::Agreed { length, compressed: false }
        );
        assert_eq!(parse_upgrade(&good.as_bytes()[..length - 1]), Upgrade::Partial);
        let wrong = good.replace(ACCEPT, "bogus");
        assert!(matches!(parse_upgrade(wrong.as_bytes()), Upgrade::Refused(_)));
        let refused = "HTTP/1.1 503 Service Unavailable\r\n\r\n";
        assert!(matches!(parse_upgrade(refused.as_bytes()), Upgrade::Refused(_)));
    }
}

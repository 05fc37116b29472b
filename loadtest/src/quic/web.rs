//! WebTransport over HTTP/3 as far as a viewer needs it: one session per
//! connection, written by hand, for a library would weigh more than the viewer.
//!
//! What is said is what Chromium says: settings on a control stream, and CONNECT
//! with `:protocol` webtransport on the first request stream (RFC 9220;
//! draft-ietf-webtrans-http3). Its answer opens the session: then the viewer's
//! control stream is one of the session's, as is the server's of important
//! events, each behind a type and the session's id, and so are datagrams. There
//! is no dynamic table, and the server has none either, so its QPACK streams are
//! left unread.

use quinn_proto::StreamId;

use super::inbox::varint;

/// Application protocol.
pub(super) const ALPN: &[u8] = b"h3";

/// Streams that the server may open: control, two of QPACK, important events, and
/// what it may come to want.
pub(super) const SERVER_STREAMS: u32 = 8;

/// Before the first bytes of a bidirectional stream of session 0: WT_STREAM (0x41)
/// as a two-byte integer, and the session's id.
pub(super) const STREAM: [u8; 3] = [0x40, 0x41, 0x00];

/// A control stream (0x00) with SETTINGS (0x04) in it: H3_DATAGRAM (0x33) and, of
/// draft 02, ENABLE_WEBTRANSPORT (0x2b603742) are 1.
pub(super) const CONTROL: [u8; 10] = [0x00, 0x04, 0x07, 0x33, 0x01, 0xab, 0x60, 0x37, 0x42, 0x01];

/// Type of the server's unidirectional streams within a session.
const SESSION_STREAM: u64 = 0x54;
const FRAME_DATA: u64 = 0x00;
const FRAME_HEADERS: u64 = 0x01;
/// A capsule that closes the session: a code of four bytes and a reason.
const CLOSE_SESSION: u64 = 0x2843;
/// Longest answer that is waited for.
const MAX_ANSWER: usize = 4 << 10;

/// The CONNECT request for `/v1/wt`, as a HEADERS frame. Indices are those of
/// QPACK's static table (RFC 9204, appendix A).
pub(super) fn request(authority: &str) -> Vec<u8> {
    let mut section = vec![0x00, 0x00];
    section.push(0xc0 | 15); // :method CONNECT
    section.push(0xc0 | 23); // :scheme https
    for (index, value) in [(0, authority), (1, "/v1/wt")] {
        section.push(0x50 | index); // :authority, :path
        text(&mut section, value);
    }
    // A name of its own: three bits of its length, and the rest.
    section.extend([0x27, 9 - 7]);
    section.extend(b":protocol");
    text(&mut section, "webtransport");
    let mut frame = vec![FRAME_HEADERS as u8];
    debug_assert!(section.len() < 0x4000, "a length of two bytes");
    frame.extend((0x4000 | section.len() as u16).to_be_bytes());
    frame.extend(section);
    frame
}

/// A value without Huffman's code, shorter than 127 bytes.
fn text(out: &mut Vec<u8>, value: &str) {
    debug_assert!(value.len() < 127, "a length of one byte");
    out.push(value.len() as u8);
    out.extend(value.as_bytes());
}

/// A viewer's session.
pub(super) struct Session {
    /// The stream of the request, and of capsules.
    pub(super) request: StreamId,
    heard: Vec<u8>,
    is_open: bool,
    /// Streams of the server whose type has not come.
    pub(super) unknown: Vec<(StreamId, Vec<u8>)>,
}

/// What the request's stream says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// The session is open.
    Opened,
    /// The server does not want it, or no more.
    Over(String),
}

impl Session {
    pub(super) fn new(request: StreamId) -> Self {
        Self { request, heard: Vec::new(), is_open: false, unknown: Vec::new() }
    }

    /// More of the request's stream.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
    }

    /// What has been heard and not told.
    pub(super) fn news(&mut self) -> News {
        loop {
            let Some((kind, body, used)) = record(&self.heard) else {
                return match self.heard.len() > MAX_ANSWER {
                    true => News::Over("an answer without an end".into()),
                    false => News::Nothing,
                };
            };
            let news = match (kind, self.is_open) {
                // Behind the prefix of two bytes: the status by its index.
                (FRAME_HEADERS, false) if body.starts_with(&[0x00, 0x00, 0xc0 | 25]) => {
                    News::Opened
                }
                (FRAME_HEADERS, false) => News::Over(format!("no session: {body:02x?}")),
                (FRAME_DATA, true) => closed(body),
                // Frames that are for others to know.
                _ => News::Nothing,
            };
            self.heard.drain(..used);
            self.is_open |= news == News::Opened;
            if news != News::Nothing {
                return news;
            }
        }
    }
}

/// What a stream of the server is, once that has come: whether one of the
/// session's, and how many bytes said so.
pub(super) fn kind(head: &[u8]) -> Option<(bool, usize)> {
    let (kind, used) = varint(head)?;
    if kind != SESSION_STREAM {
        return Some((false, used));
    }
    let (_session, id) = varint(&head[used..])?;
    Some((true, used + id))
}

/// A datagram without the session's id before it.
pub(super) fn datagram(bytes: &[u8]) -> Option<&[u8]> {
    let (_session, used) = varint(bytes)?;
    Some(&bytes[used..])
}

/// A type, a length and as many bytes; and how many that were in all.
fn record(bytes: &[u8]) -> Option<(u64, &[u8], usize)> {
    let (kind, first) = varint(bytes)?;
    let (length, second) = varint(&bytes[first..])?;
    let start = first + second;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    Some((kind, bytes.get(start..end)?, end))
}

/// What the capsules in a DATA frame say.
fn closed(mut capsules: &[u8]) -> News {
    while let Some((kind, body, used)) = record(capsules) {
        if kind == CLOSE_SESSION
            && let Some((code, reason)) = body.split_first_chunk()
        {
            let reason = String::from_utf8_lossy(reason);
            return News::Over(format!("close {} {reason}", u32::from_be_bytes(*code)));
        }
        capsules = &capsules[used..];
    }
    News::Nothing
}

#[cfg(test)]
mod tests {
    use quinn_proto::{Dir, Side};

    use super::*;

    fn session() -> Session {
        Session::new(StreamId::new(Side::Client, Dir::Bi, 0))
    }

    /// Everything that is told when `bytes` come one by one.
    fn told(bytes: &[u8]) -> Vec<News> {
        let mut session = session();
        let hear = |byte: &u8| {
            session.hear(&[*byte]);
            session.news()
        };
        bytes.iter().map(hear).filter(|news| *news != News::Nothing).collect()
    }

    #[test]
    fn a_session_is_opened_by_status_200_and_closed_by_its_capsule() {
        // HEADERS with 200 and one more field; a DATA frame with an unknown capsule
        // and the closing one.
        let answer = [0x01, 0x05, 0x00, 0x00, 0xd9, 0x51, 0x00];
        let capsules = [0x20, 0x01, 0xff, 0x68, 0x43, 0x06, 0x00, 0x00, 0x0b, 0xb8, b'o', b'k'];
        let data = [&[0x00, capsules.len() as u8], &capsules[..]].concat();
        let closed = News::Over("close 3000 ok".into());
        assert_eq!(told(&[&answer[..], &data].concat()), [News::Opened, closed]);
        let refused = told(&[0x01, 0x03, 0x00, 0x00, 0xdb]);
        assert!(matches!(&refused[..], [News::Over(why)] if why.contains("db")), "{refused:?}");
    }

    #[test]
    fn the_request_is_one_frame_of_its_length() {
        let frame = request("127.0.0.1:7400");
        let (kind, section, used) = record(&frame).unwrap();
        assert_eq!((kind, used), (FRAME_HEADERS, frame.len()));
        assert!(section.starts_with(&[0, 0, 0xcf, 0xd7, 0x50, 14]));
        assert!(section.ends_with(b":protocol\x0cwebtransport"));
        let (kind, settings, used) = record(&CONTROL[1..]).unwrap();
        assert_eq!((kind, settings.len(), used), (0x04, 7, CONTROL.len() - 1));
    }

    #[test]
    fn streams_and_datagrams_are_told_by_their_first_bytes() {
        assert_eq!(kind(&[0x40]), None);
        assert_eq!(kind(&[0x40, 0x54]), None, "the session's id is to come");
        assert_eq!(kind(&[0x40, 0x54, 0x00, 0x07]), Some((true, 3)));
        assert_eq!(kind(&[0x02]), Some((false, 1)));
        assert_eq!(datagram(&[0x00, 1, 2]), Some(&[1, 2][..]));
        assert_eq!(datagram(&[]), None);
    }
}

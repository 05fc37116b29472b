//! What a client asks for with the header section of a request (RFC 9114,
//! section 4.3; RFC 9220), and whether it may have it.

use super::Rules;
use super::codes::{H3_MESSAGE_ERROR, H3_NO_ERROR};
use super::qpack::{Fields, QpackError};
use crate::transport::origin;

/// Tokens of WebTransport in `:protocol`: of the drafts up to 14, which is what
/// browsers send, and of the later ones.
const PROTOCOLS: [&[u8]; 2] = [b"webtransport", b"webtransport-h3"];

/// Fields that say something of a connection that HTTP/3 does not have
/// (RFC 9114, section 4.2).
const CONNECTION_FIELDS: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A WebTransport session.
    Accept,
    /// Answered with a status.
    Refuse(Refusal),
    /// Not readable: a connection error, `QPACK_DECOMPRESSION_FAILED`.
    Unreadable,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not a request (RFC 9114, section 4.1.2).
    Malformed,
    /// CONNECT of nothing, as to a proxy, or of another protocol.
    OtherProtocol,
    /// A page from elsewhere.
    ForeignOrigin,
    /// Not our path.
    UnknownPath,
    /// GET and the like of our path.
    NotConnect,
    /// There is a session, or a request is being read.
    Busy,
    /// The header section is larger than allowed.
    TooLarge,
}

impl Refusal {
    /// The status of the answer.
    pub(super) const fn status(self) -> u16 {
        match self {
            Refusal::Malformed | Refusal::OtherProtocol => 400,
            Refusal::ForeignOrigin => 403,
            Refusal::UnknownPath => 404,
            Refusal::NotConnect => 405,
            Refusal::Busy => 429,
            Refusal::TooLarge => 431,
        }
    }

    /// What the client is told to stop sending with.
    pub(super) const fn error(self) -> u64 {
        match self {
            Refusal::Malformed => H3_MESSAGE_ERROR,
            _ => H3_NO_ERROR,
        }
    }

    /// The result of the handshake, as metrics name it.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Refusal::ForeignOrigin => "foreign_origin",
            _ => "bad_handshake",
        }
    }
}

/// The fields that matter. Of each the first; none may come twice.
#[derive(Debug, Default)]
struct Request {
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    protocol: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    origin: Option<Vec<u8>>,
}

enum Unfit {
    Malformed,
    Qpack(QpackError),
}

impl From<QpackError> for Unfit {
    fn from(error: QpackError) -> Self {
        Unfit::Qpack(error)
    }
}

const MALFORMED: Verdict = Verdict::Refuse(Refusal::Malformed);

/// Judges the request with this header section.
pub(super) fn judge(section: &[u8], rules: &Rules) -> Verdict {
    match read(section, rules.max_header) {
        Ok(request) => decide(&request, rules),
        Err(Unfit::Malformed) => MALFORMED,
        Err(Unfit::Qpack(QpackError::TooLarge)) => Verdict::Refuse(Refusal::TooLarge),
        Err(Unfit::Qpack(QpackError::Broken)) => Verdict::Unreadable,
    }
}

fn read(section: &[u8], limit: usize) -> Result<Request, Unfit> {
    let mut fields = Fields::new(section, limit)?;
    let mut request = Request::default();
    let mut pseudo = true;
    while let Some((name, value)) = fields.next()? {
        let (name, value) = (name.as_ref(), value.as_ref());
        let is_pseudo = name.first() == Some(&b':');
        pseudo &= is_pseudo;
        if pseudo != is_pseudo || !is_value(value) || !(is_pseudo || is_name(name, value)) {
            return Err(Unfit::Malformed);
        }
        let place = match name {
            b":method" => &mut request.method,
            b":scheme" => &mut request.scheme,
            b":authority" => &mut request.authority,
            b":path" => &mut request.path,
            b":protocol" => &mut request.protocol,
            b"host" => &mut request.host,
            b"origin" => &mut request.origin,
            _ if is_pseudo => return Err(Unfit::Malformed),
            _ => continue,
        };
        if place.replace(value.to_vec()).is_some() {
            return Err(Unfit::Malformed);
        }
    }
    Ok(request)
}

/// A name of a field in lower case (RFC 9110, section 5.1; RFC 9114, section 4.2).
fn is_name(name: &[u8], value: &[u8]) -> bool {
    let token = |byte: &u8| {
        matches!(byte,
        b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
    };
    let of_connection = CONNECTION_FIELDS.contains(&name) || name == b"te" && value != b"trailers";
    !name.is_empty() && name.iter().all(token) && !of_connection
}

/// No control characters, no blanks at its ends (RFC 9110, section 5.5).
fn is_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    value.iter().all(plain) && !blank(value.first()) && !blank(value.last())
}

fn decide(request: &Request, rules: &Rules) -> Verdict {
    let Some(method) = request.method.as_deref() else { return MALFORMED };
    let authority = request.authority.as_deref().or(request.host.as_deref());
    let connect = method == b"CONNECT";
    if connect && request.protocol.is_none() {
        // RFC 9114, section 4.4.
        let fits = request.scheme.is_none() && request.path.is_none();
        let fits = fits && request.authority.as_ref().is_some_and(|host| !host.is_empty());
        return if fits { Verdict::Refuse(Refusal::OtherProtocol) } else { MALFORMED };
    }
    let (Some(scheme), Some(path)) = (request.scheme.as_deref(), request.path.as_deref()) else {
        return MALFORMED;
    };
    let contradicts = match (&request.authority, &request.host) {
        (Some(authority), Some(host)) => authority != host,
        _ => false,
    };
    // `:protocol` is for CONNECT alone (RFC 8441, section 4).
    if !connect && request.protocol.is_some()
        || contradicts
        || path.is_empty()
        || scheme != b"https"
        || authority.is_none_or(<[u8]>::is_empty)
    {
        return MALFORMED;
    }
    let bare = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let authority = authority.and_then(|authority| std::str::from_utf8(authority).ok());
    let protocol = request.protocol.as_deref().unwrap_or_default();
    let refusal = if connect && !PROTOCOLS.contains(&protocol) {
        Refusal::OtherProtocol
    } else if bare != rules.path.as_bytes() {
        Refusal::UnknownPath
    } else if !connect {
        Refusal::NotConnect
    } else if !origin::allowed(request.origin.as_deref(), authority, &rules.origins) {
        Refusal::ForeignOrigin
    } else {
        return Verdict::Accept;
    };
    Verdict::Refuse(refusal)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{rules, section};
    use super::*;

    const CONNECT: [(&str, &str); 5] = [
        (":method", "CONNECT"),
        (":protocol", "webtransport"),
        (":scheme", "https"),
        (":authority", "live.example:7400"),
        (":path", "/v1/wt"),
    ];

    /// The request of a client with some fields replaced, left out (empty
    /// value) or added.
    fn verdict(changes: &[(&str, &str)]) -> Verdict {
        let mut fields = CONNECT.to_vec();
        for (name, value) in changes {
            match fields.iter_mut().find(|(known, _)| known == name) {
                Some(field) => field.1 = value,
                None => fields.push((name, value)),
            }
        }
        fields.retain(|(_, value)| !value.is_empty());
        judge(&section(&fields), &rules())
    }

    fn refused(refusal: Refusal) -> Verdict {
        Verdict::Refuse(refusal)
    }

    #[test]
    fn a_session_is_asked_for_with_either_token_of_the_protocol() {
        assert_eq!(verdict(&[]), Verdict::Accept);
        assert_eq!(verdict(&[(":protocol", "webtransport-h3")]), Verdict::Accept);
        assert_eq!(verdict(&[(":protocol", "websocket")]), refused(Refusal::OtherProtocol));
        assert_eq!(verdict(&[(":path", "/v1/wt?room=a")]), Verdict::Accept);
        assert_eq!(verdict(&[("sec-webtransport-http3-draft02", "1")]), Verdict::Accept);
        assert_eq!(verdict(&[(":authority", ""), ("host", "live.example")]), Verdict::Accept);
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let own = ("origin", "https://live.example:7400");
        assert_eq!(verdict(&[own]), Verdict::Accept);
        assert_eq!(verdict(&[("origin", "https://evil.example")]), refused(Refusal::ForeignOrigin));
        let mut twice = CONNECT.to_vec();
        twice.extend([own, own]);
        assert_eq!(judge(&section(&twice), &rules()), MALFORMED);
    }

    #[test]
    fn other_requests_are_told_what_is_wrong() {
        assert_eq!(verdict(&[(":path", "/")]), refused(Refusal::UnknownPath));
        assert_eq!(verdict(&[(":path", "/v1/wt/")]), refused(Refusal::UnknownPath));
        let get = [(":method", "GET"), (":protocol", "")];
        assert_eq!(verdict(&get), refused(Refusal::NotConnect));
        assert_eq!(verdict(&[get[0], get[1], (":path", "/x")]), refused(Refusal::UnknownPath));
        let plain = [(":protocol", ""), (":scheme", ""), (":path", "")];
        assert_eq!(verdict(&plain), refused(Refusal::OtherProtocol));
        let long = "x".repeat(rules().max_header);
        assert_eq!(verdict(&[("cookie", &long)]), refused(Refusal::TooLarge));
    }

    #[test]
    fn what_is_no_request_is_malformed() {
        for changes in [
            &[(":method", "")][..],
            &[(":scheme", "")],
            &[(":path", "")],
            &[(":authority", "")],
            &[(":protocol", "")],
            &[(":scheme", "http")],
            &[(":status", "200")],
            &[(":method", "GET")],
            &[("host", "other.example")],
            &[("Origin", "https://live.example:7400")],
            &[("upgrade", "websocket")],
            &[("te", "gzip")],
            &[("x y", "1")],
            &[("x", " 1")],
            &[("x", "1\r\nhost: evil")],
        ] {
            assert_eq!(verdict(changes), MALFORMED, "{changes:?}");
        }
        let mut late = CONNECT.to_vec();
        late.insert(0, ("x", "1"));
        assert_eq!(judge(&section(&late), &rules()), MALFORMED);
        assert_eq!(judge(&section(&[]), &rules()), MALFORMED);
        assert_eq!(judge(b"\0\0\x80", &rules()), Verdict::Unreadable);
        assert_eq!(judge(b"", &rules()), Verdict::Unreadable);
    }
}

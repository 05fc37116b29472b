//! Where a viewer's server is.

use http::Uri;

use super::StartError;

/// Where WebSocket connections are upgraded.
const PATH: &str = "/v1/ws";

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether WebSocket goes over TLS. QUIC always does.
    pub(super) tls: bool,
    /// Of WebSocket.
    pub(super) path: String,
}

impl Target {
    /// Reads `ws`, `wss`, `http` and `https` URLs. Without a path: the server's own.
    pub(super) fn parse(url: &str) -> Result<Self, StartError> {
        let wrong = || StartError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" => PATH.to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { host, port, tls, path })
    }

    /// `host:port`, with brackets where they belong.
    pub(super) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// For the WebSocket handshake.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Where a server that is leaving sends its viewers, unless that is less safe
    /// than here.
    pub(super) fn moved(&self, url: &str) -> Option<Self> {
        Self::parse(url).ok().filter(|to| to.tls || !self.tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> String {
        Target::parse(text).map_or_else(|error| error.to_string(), |target| target.url())
    }

    #[test]
    fn the_address_may_be_short() {
        assert_eq!(url("ws://127.0.0.1:7400"), "ws://127.0.0.1:7400/v1/ws");
        assert_eq!(url("https://live.example/"), "wss://live.example:443/v1/ws");
        assert_eq!(url("http://a:1/x?y=1"), "ws://a:1/x?y=1");
        assert_eq!(url("wss://[::1]:9"), "wss://[::1]:9/v1/ws");
        assert_eq!(Target::parse("ws://[::1]").unwrap().host, "::1");
        for wrong in ["ftp://a", "a b", "a:1", "ws://", "/v1/ws"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_is_sent_from_a_safe_place_to_an_unsafe_one() {
        let (safe, clear) = (Target::parse("wss://a").unwrap(), Target::parse("ws://a").unwrap());
        assert_eq!(safe.moved("ws://b"), None);
        assert_eq!(safe.moved("https://b").unwrap().host, "b");
        assert_eq!(clear.moved("ws://b:1").unwrap().port, 1);
        assert_eq!(clear.moved("nonsense"), None);
    }
}

//! Which pages may connect. Neither WebSocket nor WebTransport is held back by
//! a browser's same-origin policy, so the server has to look (RFC 6455,
//! section 10.2); both ask here.

/// Whether a page of `origin` may connect to a server that it calls `authority`
/// (the `Host` field, or `:authority`). `allowed` are origins, or `*` for all;
/// empty: the server's own host and port. A client that names no origin is no
/// browser, and may.
#[must_use]
pub fn allowed(origin: Option<&[u8]>, authority: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    if allowed.iter().any(|entry| entry == "*" || entry.eq_ignore_ascii_case(origin)) {
        return true;
    }
    if !allowed.is_empty() {
        return false;
    }
    let Some(authority) = authority else { return false };
    let bare = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    bare.is_some_and(|bare| bare.eq_ignore_ascii_case(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Option<&str> = Some("live.example:7400");

    #[test]
    fn without_a_list_only_pages_of_the_same_host_and_port_may() {
        assert!(allowed(Some(b"https://live.example:7400"), HOST, &[]));
        assert!(allowed(Some(b"http://LIVE.example:7400"), HOST, &[]));
        for foreign in [
            "https://evil.example",
            "https://live.example",
            "https://live.example:7400.evil.example",
            "ftp://live.example:7400",
            "live.example:7400",
            "null",
            "",
        ] {
            assert!(!allowed(Some(foreign.as_bytes()), HOST, &[]), "{foreign}");
        }
        assert!(!allowed(Some(b"https://live.example:7400"), None, &[]));
        assert!(!allowed(Some(b"https://\xff"), HOST, &["https://a.example".to_owned()]));
    }

    #[test]
    fn a_list_says_all_there_is_to_say() {
        let list = ["https://shop.example".to_owned()];
        assert!(allowed(Some(b"https://shop.example"), HOST, &list));
        assert!(!allowed(Some(b"https://live.example:7400"), HOST, &list));
        assert!(allowed(Some(b"https://any.example"), HOST, &["*".to_owned()]));
    }

    #[test]
    fn a_client_that_is_no_browser_may() {
        assert!(allowed(None, None, &["https://shop.example".to_owned()]));
    }
}

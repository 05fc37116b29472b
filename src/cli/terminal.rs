//! What may stand on a terminal.
//!
//! Everything a room says was written by strangers. A terminal obeys what it is
//! shown, so nothing of theirs reaches it that could be an escape sequence or
//! turn the reading direction around.

use std::env;
use std::io::{self, IsTerminal as _};

/// Whether standard output shows colours.
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && colours_wanted()
}

/// <https://no-color.org>: set and not empty means no.
pub(super) fn colours_wanted() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` on one line, without control characters, at most `limit` characters.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let mut clean: String = text.chars().take(limit).map(harmless).collect();
    if text.chars().nth(limit).is_some() {
        clean.push('…');
    }
    clean
}

/// JSON with the control characters that it allows unescaped (those beyond
/// ASCII, and DEL) escaped; it stays the same JSON.
pub(super) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Between values; inside strings JSON has them escaped already.
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if c.is_control() || reorders(c) => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            c => escaped.push(c),
        }
    }
    escaped
}

fn harmless(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() || reorders(c) => '\u{fffd}',
        c => c,
    }
}

/// Characters that change the direction of others, and line ends of Unicode.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    /// Whether colours are wanted.
    pub(super) on: bool,
}

impl Paint {
    pub(super) fn red(self, text: &str) -> String {
        self.with("31;1", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// A colour that is the same for the same `name`.
    pub(super) fn named(self, name: &str, text: &str) -> String {
        // Without red, which means trouble.
        const COLOURS: [&str; 10] = ["32", "33", "34", "35", "36", "92", "93", "94", "95", "96"];
        let hash =
            name.bytes().fold(7usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        self.with(COLOURS[hash % COLOURS.len()], text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escape_sequence_gets_through() {
        let nasty = "a\x1b[2Jb\x07\u{9b}31mc\u{202e}d\r\ne\x7f\u{0}";
        let clean = clean(nasty, 100);
        assert!(clean.chars().all(|c| !c.is_control() && !reorders(c)), "{clean:?}");
        assert_eq!(clean, "a\u{fffd}[2Jb\u{fffd}\u{fffd}31mc\u{fffd}d  e\u{fffd}\u{fffd}");
        assert_eq!(super::clean("日本語 ok 🎁", 100), "日本語 ok 🎁");
        assert_eq!(super::clean("abcdef", 3), "abc…");
    }

    #[test]
    fn escaped_json_is_the_same_json_on_one_line() {
        let json = "{\"a\":\n\"x\u{9b}y\u{7f}\u{202e}\"}";
        let escaped = escape_json(json);
        assert!(escaped.chars().all(|c| !c.is_control() && !reorders(c)), "{escaped}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(json), value(&escaped));
    }

    #[test]
    fn without_colours_text_is_bare() {
        assert_eq!(Paint { on: false }.red("x"), "x");
        assert_eq!(Paint { on: true }.red("x"), "\x1b[31;1mx\x1b[0m");
    }
}

//! What the tests of this module share.

use super::{Rules, qpack};

/// Rules with small bounds.
pub(super) fn rules() -> Rules {
    Rules { origins: Vec::new(), path: "/v1/wt".to_owned(), max_header: 1_024 }
}

/// A header section of these fields.
pub(super) fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        qpack::put_field(&mut section, name, value);
    }
    section
}

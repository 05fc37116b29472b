//! SPDX licence expressions.

/// Whether an SPDX expression can be satisfied by the allowed licences.
pub(crate) fn allows(allowed: &[&str], expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(allowed, &tokens, &mut at) && at == tokens.len()
}

fn any_of(allowed: &[&str], tokens: &[&str], at: &mut usize) -> bool {
    let mut holds = all_of(allowed, tokens, at);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= all_of(allowed, tokens, at);
    }
    holds
}

fn all_of(allowed: &[&str], tokens: &[&str], at: &mut usize) -> bool {
    let mut holds = one(allowed, tokens, at);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(allowed, tokens, at);
    }
    holds
}

fn one(allowed: &[&str], tokens: &[&str], at: &mut usize) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let holds = any_of(allowed, tokens, at);
        *at += 1;
        return holds;
    }
    if tokens.get(*at) == Some(&"WITH") {
        // An exception only permits more.
        *at += 2;
    }
    allowed.contains(token)
}

#[test]
fn an_expression_holds_when_the_list_satisfies_it() {
    let list = &["MIT", "Apache-2.0", "Unicode-3.0"];
    assert!(allows(list, "(MIT OR GPL-3.0-only) AND Unicode-3.0"));
    assert!(allows(list, "Apache-2.0 WITH LLVM-exception"));
    assert!(allows(list, "MIT/GPL-3.0-only"));
    assert!(!allows(list, "GPL-3.0-only"));
    assert!(!allows(list, "MIT AND GPL-3.0-only"));
    assert!(!allows(list, ""));
}

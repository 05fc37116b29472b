//! Reading the repository as text.

use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` that belongs to the project, relative to its root.
pub(crate) fn files(folder: &str) -> Vec<String> {
    const NOT_OURS: &[&str] = &["target", "node_modules", ".git", ".cache", "__pycache__"];
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if !NOT_OURS.contains(&name.to_string_lossy().as_ref()) {
                    folders.push(path);
                }
            } else {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn rust_files(folder: &str) -> Vec<String> {
    files(folder).into_iter().filter(|file| has_extension(file, "rs")).collect()
}

pub(crate) fn has_extension(file: &str, extension: &str) -> bool {
    Path::new(file).extension().is_some_and(|e| e == extension)
}

pub(crate) fn read(file: &str) -> String {
    let bytes = std::fs::read(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The source with comments and the contents of string literals blanked; lines
/// and columns stay where they are.
pub(crate) fn blank(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => line_end(bytes, at),
            [b'/', b'*', ..] => block_comment_end(bytes, at),
            [b'"', ..] => string_end(bytes, at),
            [b'r', b'"' | b'#', ..] if !is_word_before(bytes, at) => raw_string_end(bytes, at),
            [b'\'', ..] => char_end(bytes, at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end < bytes.len() {
        match &bytes[end..] {
            [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
            [b'*', b'/', ..] => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            break;
        }
    }
    end
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return at;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = at + 2 + hashes;
    let found = bytes[body..].windows(close.len()).position(|window| window == close);
    found.map_or(bytes.len(), |n| body + n + close.len())
}

/// A character literal, but not a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    match &bytes[at..] {
        [_, b'\\', _, rest @ ..] => {
            rest.iter().position(|b| *b == b'\'').map_or(at, |n| at + 3 + n + 1)
        }
        [_, _, b'\'', ..] => at + 3,
        _ => at,
    }
}

/// Cuts `#[cfg(test)] mod … { … }` off.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let tests = line.trim() == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.trim_start().starts_with("mod "));
        if !tests {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        out.push('\n');
        for line in lines.by_ref() {
            out.push('\n');
            if line.trim_end() == close || line.trim_end().ends_with(';') && line.contains("mod ") {
                break;
            }
        }
    }
    out
}

/// What ships of a source file. Modules that exist for tests only are empty.
pub(crate) fn shipped(file: &str) -> String {
    const TEST_MODULES: &[&str] = &["testing.rs", "tests.rs", "simulation.rs"];
    let name = Path::new(file).file_name().map(|n| n.to_string_lossy().into_owned());
    let in_test_folder = Path::new(file).components().any(|c| c.as_os_str() == "tests");
    if in_test_folder || name.is_some_and(|n| TEST_MODULES.contains(&n.as_str())) {
        return String::new();
    }
    without_tests(&blank(&read(file)))
}

/// Whether `needle` stands in `line` as a whole word or path.
pub(crate) fn has_word(line: &str, needle: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + needle.len()..].chars().next();
        let starts = needle.starts_with(|c: char| !word(c)) || !before.is_some_and(word);
        let ends = needle.ends_with(|c: char| !word(c)) || !after.is_some_and(word);
        starts && ends
    })
}

pub(crate) fn numbered(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().map(|(i, line)| (i + 1, line))
}

pub(crate) fn module_of(file: &str) -> &str {
    let path = file.strip_prefix("src/").unwrap_or(file);
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Names of the modules that follow `crate::`, in groups too.
pub(crate) fn named_modules(code: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if is_word_before(code.as_bytes(), at) || code[..at].ends_with('$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let mut push = |text: &str| {
            let name: String = text
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            names.push((line, name));
        };
        let Some(group) = rest.strip_prefix('{') else {
            push(rest);
            continue;
        };
        let mut depth = 0;
        let mut from = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' if depth == 0 => {
                    push(&group[from..i]);
                    from = i + 1;
                }
                '}' if depth == 0 => {
                    if !group[from..i].trim().is_empty() {
                        push(&group[from..i]);
                    }
                    break;
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names
}

/// `(name, first line, lines)` of every function.
pub(crate) fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let Some(at) = trimmed.find("fn ") else { continue };
        let modifiers = trimmed[..at].split_whitespace();
        let is_function = modifiers.into_iter().all(|word| {
            matches!(word, "pub" | "async" | "unsafe" | "const" | "extern")
                || word.starts_with("pub(")
        });
        if !is_function {
            continue;
        }
        let name: String =
            trimmed[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|l| l.trim_end() == close) {
            found.push((name, start + 1, length + 1));
        }
    }
    found
}

#[test]
fn code_is_told_from_comments_strings_and_tests() {
    let code = blank("let a = \"crate::server\"; // crate::main\nuse crate::{wire::x, shard};\n");
    let names: Vec<String> = named_modules(&code).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["wire", "shard"]);
    assert!(has_word("let t = Instant::now();", "Instant"));
    assert!(!has_word("let t = MyInstant::now();", "Instant"));
    assert!(!has_word("brand::new()", "rand"));
    assert!(has_word("todo!()", "todo!"));
    assert!(blank("let c = '\"'; let d = todo!();").contains("todo!"));
    assert!(!blank("r#\"todo!\"#").contains("todo!"));
    let cut = without_tests("fn a() {}\n#[cfg(test)]\nmod tests {\n    todo\n}\nfn b() {}\n");
    assert!(!cut.contains("todo") && cut.contains("fn b"));
    let long = format!("fn x() {{\n{}}}\n", "    a();\n".repeat(100));
    assert_eq!(functions(&long), [("x".to_owned(), 1, 102)]);
}

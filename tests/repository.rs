//! What reviewers forget: import directions, calls that are banned somewhere,
//! metrics and dashboards that agree, shipped files that parse, sizes, licences.
//!
//! Everything is read as text. Comments and string contents are blanked first,
//! and `#[cfg(test)]` modules are cut off, so that only what ships is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use serde_json::Value;

#[path = "repository/licence.rs"]
mod licence;
#[path = "repository/protocol.rs"]
mod protocol;
#[path = "repository/source.rs"]
mod source;

use source::{
    blank, files, functions, has_extension, has_word, module_of, named_modules, numbered, read,
    root, rust_files, shipped,
};

/// Which modules of the crate a module may name. A lower one never names a
/// higher one: main → server → worker → {admin, demo} → {ingress, transport} →
/// shard → wire → engine; clock, limits, tls, config and auth stand beside shard. `telemetry`
/// reads the plain counters of all below it, so nothing but `admin` and above
/// names it.
const IMPORTS: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("clock", &["engine"]),
    ("wire", &["engine"]),
    ("log", &["engine", "clock"]),
    ("limits", &["engine"]),
    ("tls", &["engine", "clock"]),
    ("trust", &[]),
    ("connector", &["trust"]),
    ("config", &["engine", "limits", "clock", "tls", "trust"]),
    ("auth", &["engine", "config"]),
    ("trace", &["engine", "clock", "connector", "trust"]),
    ("shard", &["engine", "wire", "clock", "limits", "log", "trace", "tls"]),
    ("telemetry", &["engine", "wire", "shard", "ingress", "log", "trace", "tls"]),
    (
        "transport",
        &["engine", "wire", "shard", "clock", "config", "auth", "limits", "trace", "tls"],
    ),
    ("ingress", &["engine", "wire", "shard", "clock", "config", "auth", "limits", "trace"]),
    (
        "admin",
        &[
            "engine",
            "wire",
            "shard",
            "clock",
            "config",
            "auth",
            "telemetry",
            "ingress",
            "log",
            "trace",
            "tls",
        ],
    ),
    ("demo", &["engine", "wire", "shard", "clock", "config", "auth", "ingress", "tls"]),
    (
        "worker",
        &[
            "engine",
            "wire",
            "shard",
            "clock",
            "config",
            "auth",
            "telemetry",
            "transport",
            "ingress",
            "admin",
            "demo",
            "tls",
        ],
    ),
    (
        "server",
        &[
            "engine",
            "wire",
            "shard",
            "clock",
            "config",
            "auth",
            "telemetry",
            "transport",
            "ingress",
            "admin",
            "demo",
            "worker",
            "limits",
            "log",
            "trace",
            "tls",
        ],
    ),
    ("client", &["engine", "clock", "wire", "connector", "trust"]),
    ("viewer", &["engine", "clock", "wire", "trust"]),
    ("cli", &["engine", "clock", "config", "auth", "server", "client", "viewer", "trust"]),
    ("main", &["cli", "config", "server"]),
    ("lib", &[]),
];

/// What the engine must not touch: a core that reads no clock, no socket and no
/// randomness can be replayed from a seed.
const BANNED_IN_ENGINE: &[&str] = &[
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "RandomState",
    "rand",
    "tokio",
    "mio",
    "rustix",
    "socket2",
    "tracing",
    "std::net",
    "std::fs",
    "std::io",
    "std::env",
    "std::thread",
    "std::process",
    "std::sync::Mutex",
    "std::sync::mpsc",
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "async",
    "await",
];

/// Calls that are banned in all of `src`, and where they are at home. An
/// unbounded channel is at home where something else bounds what goes in.
const BANNED: &[(&str, &[&str])] = &[
    ("Instant::now", &["src/clock.rs"]),
    ("SystemTime::now", &["src/clock.rs"]),
    ("todo!", &[]),
    ("unimplemented!", &[]),
    ("dbg!", &[]),
    ("thread::sleep", &[]),
    ("process::exit", &[]),
    ("#[ignore", &[]),
    ("unbounded_channel", &["src/shard/peers.rs", "src/server.rs"]),
];

/// Those of them that tests must not use either.
const BANNED_IN_TESTS: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];

/// Files that may hold `unsafe`, each block under a SAFETY comment.
const UNSAFE_FILES: &[&str] = &[
    "loadtest/src/realtime.rs",
    "src/transport/quic/keys.rs",
    "src/transport/quic/packed.rs",
    "src/transport/quic/prefetch.rs",
    "src/transport/quic/socket.rs",
    "src/transport/quic/steer.rs",
    "src/transport/websocket/reader.rs",
    "src/worker/descriptors.rs",
];

const MOST_LINES_OF_A_FILE: usize = 600;
const MOST_LINES_OF_A_FUNCTION: usize = 90;
/// Functions that were longer when the limit came: `(file, name)`. Entries only go.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];
/// Files that were longer when the limit came. Entries only go.
const LONG_FILES: &[&str] = &[];

const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Dependencies that the binaries hold in two versions. Entries only go; one more
/// comes with a dependency that is worth it: `hashbrown` with governor, whose
/// newest release still has 0.16, and h2; `rand_core`, a few traits, with the
/// sketch of cardinality-estimator; `untrusted`, one small file, with aws-lc-rs.
const DUPLICATES: &[&str] = &["base64", "hashbrown", "rand_core", "tower-http", "untrusted"];

/// Fails with all findings at once.
fn report(findings: &[String], rule: &str) {
    let mut text = String::new();
    for finding in findings {
        let _ = writeln!(text, "  {finding}");
    }
    assert!(findings.is_empty(), "{rule}\n{text}");
}

#[test]
fn imports_go_downward_only() {
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let mut findings = Vec::new();
    for file in rust_files("src") {
        let module = module_of(&file);
        let Some(allowed) = table.get(module) else {
            findings.push(format!("{file}: module `{module}` is not in the table of this test"));
            continue;
        };
        let code = shipped(&file);
        for (line, name) in named_modules(&code) {
            if name != module
                && table.contains_key(name.as_str())
                && !allowed.contains(&name.as_str())
            {
                findings.push(format!("{file}:{line}: `{module}` must not name `{name}`"));
            }
        }
        // Upwards by `super` would go unseen.
        let depth = file.matches('/').count();
        let climb = "super::".repeat(depth);
        for (line, text) in numbered(&code) {
            if depth > 0 && text.contains(&climb) && module != "lib" && module != "main" {
                findings.push(format!("{file}:{line}: write `crate::` instead of `{climb}`"));
            }
        }
    }
    report(&findings, "imports go downward only:");
}

#[test]
fn the_engine_has_no_io_no_clock_and_no_runtime() {
    let mut findings = Vec::new();
    for file in rust_files("src").into_iter().filter(|file| module_of(file) == "engine") {
        for (line, text) in numbered(&shipped(&file)) {
            for banned in BANNED_IN_ENGINE {
                if has_word(text, banned) {
                    findings.push(format!("{file}:{line}: `{banned}`: {}", text.trim()));
                }
            }
        }
    }
    report(&findings, "the engine is a state machine; these do not belong there:");
}

#[test]
fn calls_stay_where_they_are_at_home() {
    let mut findings = Vec::new();
    for file in rust_files("src").into_iter().chain(rust_files("tests")) {
        let ships = file.starts_with("src/");
        let code = if ships { shipped(&file) } else { blank(&read(&file)) };
        for (line, text) in numbered(&code) {
            for (banned, home) in BANNED {
                // Tests may look at the clock and wait, but none may be switched off.
                if !ships && !BANNED_IN_TESTS.contains(banned) {
                    continue;
                }
                if has_word(text, banned) && !home.contains(&file.as_str()) {
                    findings.push(format!("{file}:{line}: `{banned}`"));
                }
            }
        }
    }
    report(&findings, "banned here:");
}

#[test]
fn unsafe_is_rare_and_argued() {
    let mut findings = Vec::new();
    for file in rust_files("src").into_iter().chain(rust_files("loadtest")) {
        let source = read(&file);
        let lines: Vec<&str> = source.lines().collect();
        for (line, text) in numbered(&blank(&source)) {
            if !has_word(text, "unsafe") || text.contains("unsafe_") {
                continue;
            }
            if !UNSAFE_FILES.contains(&file.as_str()) {
                findings.push(format!("{file}:{line}: `unsafe` in a file that is not on the list"));
            }
            let above = &lines[line.saturating_sub(8)..line];
            if !above.iter().any(|l| l.contains("SAFETY:")) {
                findings.push(format!("{file}:{line}: no SAFETY comment above"));
            }
        }
    }
    report(&findings, "`unsafe` needs a reason:");
}

#[test]
fn files_hold_one_idea_and_functions_fit_a_screen() {
    let mut findings = Vec::new();
    for file in rust_files("src").into_iter().chain(rust_files("loadtest")) {
        let source = read(&file);
        let lines = source.lines().count();
        if lines > MOST_LINES_OF_A_FILE && !LONG_FILES.contains(&file.as_str()) {
            findings.push(format!("{file}: {lines} lines"));
        }
        for (name, line, length) in functions(&blank(&source)) {
            if length > MOST_LINES_OF_A_FUNCTION
                && !LONG_FUNCTIONS.contains(&(file.as_str(), name.as_str()))
            {
                findings.push(format!("{file}:{line}: `{name}` has {length} lines"));
            }
        }
    }
    report(
        &findings,
        &format!(
            "over {MOST_LINES_OF_A_FILE} lines a file, or {MOST_LINES_OF_A_FUNCTION} a function:"
        ),
    );
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    // Put together here, so that this file does not name them either.
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut findings = Vec::new();
    for file in files(".") {
        if file == "LICENSE" {
            continue;
        }
        for (line, text) in numbered(&read(&file)) {
            if let Some(path) = paths.iter().find(|path| text.contains(**path)) {
                findings.push(format!("{file}:{line}: {path}"));
            }
        }
    }
    report(&findings, "paths of one machine:");
}

#[test]
fn lock_files_name_no_registry_hosts() {
    let mut findings = Vec::new();
    for file in files(".").into_iter().filter(|file| file.ends_with("package-lock.json")) {
        for (line, text) in numbered(&read(&file)) {
            if text.contains("\"resolved\": \"http") {
                findings.push(format!("{file}:{line}: {}", text.trim()));
            }
        }
    }
    report(&findings, "npm config set omit-lockfile-registry-resolved true:");
}

#[test]
fn every_shipped_configuration_parses() {
    let mut parsed = 0;
    for file in files("config").into_iter().filter(|file| has_extension(file, "toml")) {
        let path = root().join(&file);
        if let Err(errors) = tidegate::config::Config::load(Some(&path), std::iter::empty()) {
            panic!("{file}: {errors}");
        }
        parsed += 1;
    }
    assert!(parsed > 0, "config/ holds no configuration");
}

#[test]
fn every_shipped_document_parses() {
    for file in files(".").into_iter().filter(|file| has_extension(file, "json")) {
        let value: Result<Value, _> = serde_json::from_str(&read(&file));
        assert!(value.is_ok(), "{file}: {value:?}");
    }
    for file in ["deny.toml", "clippy.toml", "rustfmt.toml"] {
        let value: Result<toml::Table, _> = toml::from_str(&read(file));
        assert!(value.is_ok(), "{file}: {value:?}");
    }
}

/// Metric families in a text, without the suffixes that exposition adds.
fn metrics_named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.starts_with("tidegate_") || name.starts_with("process_"))
        .map(family)
        .collect()
}

fn family(name: &str) -> String {
    let name =
        ["_bucket", "_sum", "_count"].iter().fold(name, |n, s| n.strip_suffix(s).unwrap_or(n));
    name.strip_suffix("_total").unwrap_or(name).to_owned()
}

/// Every PromQL expression of a dashboard, variables included.
fn expressions(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if matches!(name.as_str(), "expr" | "definition") => {
                        out.push(text.clone());
                    }
                    _ => expressions(value, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, out)),
        _ => {}
    }
}

#[test]
fn dashboards_and_metrics_agree() {
    let exported = metrics_named(&exposition_names());
    assert!(!exported.is_empty(), "src/telemetry.rs names no metric");
    let mut shown = BTreeSet::new();
    let mut findings = Vec::new();
    for file in files("dashboards").into_iter().filter(|file| has_extension(file, "json")) {
        let dashboard: Value = serde_json::from_str(&read(&file)).expect("a JSON document");
        let mut queries = Vec::new();
        expressions(&dashboard, &mut queries);
        assert!(!queries.is_empty(), "{file} asks nothing");
        for query in queries {
            for metric in metrics_named(&query) {
                if !exported.contains(&metric) {
                    findings.push(format!("{file}: {metric} is not exported: {query}"));
                }
                shown.insert(metric);
            }
        }
    }
    for metric in exported.difference(&shown) {
        findings.push(format!("src/telemetry.rs: {metric} is on no dashboard"));
    }
    report(&findings, "dashboards and metrics disagree:");
}

/// The names in src/telemetry.rs as they are exposed.
fn exposition_names() -> String {
    let files = files("src").into_iter().filter(|file| file.starts_with("src/telemetry"));
    files.map(|file| read(&file)).collect::<Vec<_>>().join("\n")
}

/// `(name, version, licence)` of what the workspace is built from, here.
fn dependencies(edges: &str) -> BTreeSet<(String, String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--prefix", "none", "-e", edges])
        .args(["-f", "{p}|{l}"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    lines
        .map(|(package, licence)| {
            let mut words = package.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let version = words.next().unwrap_or_default().to_owned();
            (name, version, licence.trim_end_matches(" (*)").to_owned())
        })
        .collect()
}

#[test]
fn dependencies_have_licences_we_may_ship() {
    let mut findings = Vec::new();
    for (name, version, terms) in dependencies("normal,build,dev") {
        if !licence::allows(LICENCES, &terms) {
            findings.push(format!("{name} {version}: {terms:?}"));
        }
    }
    report(&findings, "not on the list of licences:");
}

#[test]
fn no_new_dependency_comes_in_two_versions() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version, _) in dependencies("normal,no-proc-macro") {
        versions.entry(name).or_default().insert(version);
    }
    let mut findings = Vec::new();
    for (name, versions) in versions {
        if versions.len() > 1 && !DUPLICATES.contains(&name.as_str()) {
            findings.push(format!("{name}: {versions:?}"));
        }
    }
    report(&findings, "in two versions:");
}

#[test]
fn a_series_belongs_to_its_family() {
    assert_eq!(family("tidegate_message_age_seconds_bucket"), "tidegate_message_age_seconds");
    assert_eq!(family("tidegate_frames_total"), "tidegate_frames");
}

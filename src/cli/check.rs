//! `tidegate check-config`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::environment;
use crate::config::{Config, Rooms};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Configuration file.
    file: PathBuf,
}

/// Prints every mistake, or the values in effect.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match Config::load(Some(&arguments.file), environment()) {
        Ok(loaded) => {
            println!("{}: ok", arguments.file.display());
            println!("{}", summary(&loaded.config)?);
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) => {
            eprintln!("{}: {errors}", arguments.file.display());
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Every value in effect, a section per line, `*` before what is not the default.
fn summary(config: &Config) -> anyhow::Result<String> {
    let values = toml::Table::try_from(config)?;
    let defaults = toml::Table::try_from(Config::default())?;
    let mut lines = Vec::new();
    section("", &values, Some(&defaults), &mut lines);
    lines.push(format!(
        "auth: {} shared secrets, {}",
        config.auth.keys.len(),
        if config.auth.needs_dev_key() {
            "a development key is made at start"
        } else {
            "no development key"
        },
    ));
    lines.push(format!("rooms: up to about {} KiB each", room_bound(&config.rooms) / 1_024));
    Ok(lines.join("\n"))
}

fn section(
    name: &str,
    values: &toml::Table,
    defaults: Option<&toml::Table>,
    lines: &mut Vec<String>,
) {
    let mut line = String::new();
    for (key, value) in values.iter().filter(|(_, value)| !value.is_table()) {
        let own = defaults.and_then(|defaults| defaults.get(key)) != Some(value);
        line.push_str(&format!(" {}{key}={value}", if own { "*" } else { "" }));
    }
    if !line.is_empty() {
        let header = if name.is_empty() { String::new() } else { format!("[{name}]") };
        lines.push(format!("{header}{line}").trim_start().to_owned());
    }
    for (key, value) in values {
        if let toml::Value::Table(inner) = value {
            let path = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            let defaults = defaults.and_then(|defaults| defaults.get(key)?.as_table());
            section(&path, inner, defaults, lines);
        }
    }
}

/// What one room may hold in memory, in bytes, ids at 100 bytes each.
fn room_bound(rooms: &Rooms) -> usize {
    let ids = rooms.dedupe_sequenced + rooms.dedupe_sampled;
    rooms.buffer_bytes
        + rooms.history_bytes
        + rooms.history_important_bytes
        + rooms.state_bytes
        + 100 * ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_summary_shows_every_section_and_marks_what_differs() {
        let mut config = Config::default();
        config.rooms.flush_events = 7;
        let text = summary(&config).unwrap();
        for expected in
            ["[server] ", "[kinds.chat] ", "[unknown_kind] ", " *flush_events=7", " shards=0"]
        {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert_eq!(text.matches('*').count(), 1, "{text}");
    }

    #[test]
    fn the_summary_names_secrets_and_does_not_tell_them() {
        let mut config = Config::default();
        let token = Secret::new("Bearer s3cret");
        config.trace.otlp_headers.insert("authorization".to_owned(), token);
        let text = summary(&config).unwrap();
        assert!(text.contains("[trace.otlp_headers] *authorization=\"[secret]\""), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

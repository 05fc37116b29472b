//! docs/protocol.md says all that is on the wire: every message, field, code and
//! default of the code stands in it.

use std::collections::BTreeMap;

use tidegate::auth::AuthError;
use tidegate::engine::draft::DraftError;
use tidegate::engine::outcome::Refusal;
use tidegate::limits::LimitKind;
use tidegate::shard::JoinError;
use tidegate::shard::stats::PUBLISH_REFUSALS;
use tidegate::wire::close::CloseReason;

use super::report;
use super::source::read;

const PAGE: &str = "docs/protocol.md";

/// The messages of a schema: name to fields, as `(name, number)`.
fn schema(text: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut messages: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim) {
        let line = line.split("//").next().unwrap_or_default().trim();
        if let Some(rest) = line.strip_prefix("message ") {
            current = rest.split_whitespace().next().unwrap_or_default().to_owned();
            messages.entry(current.clone()).or_default();
        } else if let Some((field, number)) = line.trim_end_matches(';').split_once(" = ") {
            let name = field.split_whitespace().last().unwrap_or_default();
            let fields = messages.entry(current.clone()).or_default();
            fields.push((name.to_owned(), number.to_owned()));
        }
    }
    messages
}

fn both_schemas() -> BTreeMap<String, Vec<(String, String)>> {
    let files = ["proto/tidegate/v1/room.proto", "proto/tidegate/v1/admission.proto"];
    files.iter().flat_map(|file| schema(&read(file))).collect()
}

/// The part of the page from `heading` to the next heading or bold name.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    let begin = page.find(&format!("\n{heading}"))? + 1;
    let rest = &page[begin..];
    let after = rest.find('\n').unwrap_or(rest.len());
    let ends = ["\n#", "\nAn **", "\nA **"];
    let end = ends.iter().filter_map(|end| rest[after..].find(end)).min();
    Some(&rest[..end.map_or(rest.len(), |end| after + end)])
}

/// Fields of `message` without a row `| `name` | number |` in `text`.
fn missing_rows(text: &str, fields: &[(String, String)]) -> Vec<String> {
    let has = |name: &str, number: &str| {
        let starts = [format!("| `{name}` | {number} |"), format!("| `{name}`? | {number} |")];
        text.lines().any(|line| starts.iter().any(|start| line.starts_with(start)))
    };
    let missing = fields.iter().filter(|(name, number)| !has(name, number));
    missing.map(|(name, number)| format!("{name} = {number}")).collect()
}

#[test]
fn every_message_and_field_stands_in_the_protocol() {
    let (page, messages) = (read(PAGE), both_schemas());
    let mut findings = Vec::new();
    for (side, place) in
        [("ClientMessage", "### From the client"), ("ServerMessage", "### From the server")]
    {
        let begin = page.find(place).unwrap_or_else(|| panic!("{PAGE} has no {place}"));
        assert!(!messages[side].is_empty(), "{side} holds no message");
        for (name, number) in &messages[side] {
            let heading = format!("#### `{name}` ({number})");
            let Some(text) = section(&page[begin..], &heading) else {
                findings.push(format!("{heading} is missing under {place}"));
                continue;
            };
            let wanted = if name == "missed" { "missednotice" } else { name };
            let (_, fields) = messages
                .iter()
                .find(|(message, _)| message.to_lowercase() == *wanted)
                .unwrap_or_else(|| panic!("the schema has no message for `{name}`"));
            for field in missing_rows(text, fields) {
                findings.push(format!("{heading} lacks {field}"));
            }
        }
    }
    for (message, heading) in
        [("Event", "An **event**"), ("Total", "A **total**"), ("Admission", "An **admission**")]
    {
        let text = section(&page, heading).unwrap_or_else(|| panic!("{PAGE} has no {heading}"));
        for field in missing_rows(text, &messages[message]) {
            findings.push(format!("{heading} lacks {field}"));
        }
    }
    // These stand in the row of the one field that has them.
    for (message, row) in
        [("Resume", "| `resume`? |"), ("Missed", "| `missed`? | 9 |"), ("AckAsked", "| `ack`? |")]
    {
        let line = page.lines().find(|line| line.starts_with(row));
        let line = line.unwrap_or_else(|| panic!("{PAGE} has no row {row}"));
        for (name, number) in &messages[message] {
            if !line.contains(name.as_str()) || !line.contains(number.as_str()) {
                findings.push(format!("{row} lacks {name} = {number}"));
            }
        }
    }
    report(&findings, "docs/protocol.md and the schema disagree:");
}

#[test]
fn every_close_code_stands_in_the_protocol() {
    let page = read(PAGE);
    let codes = CloseReason::ALL.iter().filter_map(|reason| Some((reason.code()?, reason.name())));
    let rows = codes.map(|(code, name)| format!("\n| {code} | `{name}` |"));
    let missing: Vec<String> = rows.filter(|row| !page.contains(row.as_str())).collect();
    report(&missing, "close codes that docs/protocol.md does not explain:");
}

/// What viewers can hear in `error` and `rejected`.
fn codes() -> Vec<String> {
    let text = read("src/auth.rs");
    let words = text.split('"').filter(|word| word.starts_with("token_"));
    let mut codes: Vec<String> = words.map(str::to_owned).collect();
    assert!(
        codes.iter().any(|code| code == AuthError::Expired.code()),
        "codes of tokens: {codes:?}"
    );
    codes.extend(Refusal::CODES.map(str::to_owned));
    codes.extend(DraftError::CODES.map(str::to_owned));
    // `bad_event` is a counter's name for those of drafts.
    codes.extend(PUBLISH_REFUSALS.iter().filter(|c| **c != "bad_event").map(|c| (*c).to_owned()));
    let limits = [LimitKind::Room, LimitKind::User, LimitKind::Client];
    codes.extend(limits.map(|limit| limit.code().to_owned()));
    let retry_after = std::time::Duration::ZERO;
    let joins = [
        JoinError::AlreadyJoined,
        JoinError::TooManyRooms,
        JoinError::OtherUser,
        JoinError::Overloaded { retry_after },
    ];
    codes.extend(joins.map(|join| join.code().to_owned()));
    // Those that are written where they are sent. (A path of a machine would look like the
    // second.)
    for file in
        ["src/transport/session.rs", concat!("src/shard/ho", "me/read.rs"), "src/wire/shared.rs"]
    {
        let text = read(file);
        for call in ["error(shard, key, \"", "error(id, \"", "code: \"", "&said.id, \""] {
            let found = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            codes.extend(found.filter(|code| code.len() > 1).map(str::to_owned));
        }
    }
    codes
}

#[test]
fn every_code_of_errors_and_refusals_stands_in_the_protocol() {
    let page = read(PAGE);
    let text = section(&page, "## Codes").expect("the page lists codes");
    let missing: Vec<String> =
        codes().into_iter().filter(|code| !text.contains(&format!("`{code}`"))).collect();
    report(&missing, "codes that docs/protocol.md does not explain:");
}

#[test]
fn the_limits_of_the_protocol_are_those_of_the_configuration() {
    let page = read(PAGE);
    let text = section(&page, "## Limits").expect("the page lists limits");
    let shipped: toml::Table = toml::from_str(&read("config/tidegate.toml")).expect("valid TOML");
    let mut findings = Vec::new();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut rows = rows.filter_map(|row| row.split_once("` | ")).peekable();
    assert!(rows.peek().is_some(), "no rows");
    for (name, rest) in rows {
        let value =
            name.split_once('.').and_then(|(section, field)| shipped.get(section)?.get(field));
        let said = rest.split(' ').next().unwrap_or_default();
        if value.map(ToString::to_string).as_deref() != Some(said) {
            findings.push(format!("{name}: {said} here, {value:?} in config/tidegate.toml"));
        }
    }
    report(&findings, "docs/protocol.md and the configuration disagree:");
}

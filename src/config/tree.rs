//! A configuration as written: values with the place each came from.
//!
//! TOML and environment meet here before they become a [`super::Config`], because
//! a message that names line or variable needs both, and because a wrong value is
//! cut out of the tree so that reading goes on and finds the next mistake.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// The text of an environment variable: what its value is wherever a string
    /// is expected, though it reads as a number.
    pub(super) raw: Option<String>,
}

/// What a [`Node`] holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    String(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// Cut out of an array, whose other indices must stay.
    Pruned,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    Line(usize),
    Env(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => Ok(()),
            Origin::Line(line) => write!(f, "line {line}"),
            Origin::Env(name) => f.write_str(name),
        }
    }
}

/// One step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// `a.b[0].c`.
pub(super) fn dotted(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) if text.is_empty() => text.push_str(key),
            Segment::Key(key) => text.extend([".", key]),
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

impl Node {
    /// An empty table.
    pub(super) fn table(origin: Origin) -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin, raw: None }
    }

    /// Reads a TOML document.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<ConfigError>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors.iter().map(|error| syntax_error(text, error)).collect());
        }
        let lines = Lines::new(text);
        let origin = |at: usize| Origin::Line(lines.position(at).0);
        let table = from_table(document.get_ref(), &origin);
        Ok(Self { value: table, origin: Origin::Default, raw: None })
    }

    /// Reads the value of an environment variable: TOML if it is that, otherwise
    /// a string.
    pub(super) fn from_env(name: &str, raw: &str) -> Self {
        let origin = |_| Origin::Env(name.to_owned());
        let value = match DeValue::parse(raw.trim()) {
            Ok(parsed) => from_value(parsed.get_ref(), &origin),
            Err(_) => Value::String(raw.to_owned()),
        };
        let raw = (!matches!(value, Value::String(_))).then(|| raw.to_owned());
        Self { value, origin: origin(0), raw }
    }

    /// From values that nobody wrote down.
    pub(super) fn from_default(value: toml::Value) -> Self {
        let value = match value {
            toml::Value::String(text) => Value::String(text),
            toml::Value::Integer(number) => Value::Integer(number.into()),
            toml::Value::Float(number) => Value::Float(number),
            toml::Value::Boolean(flag) => Value::Bool(flag),
            toml::Value::Datetime(date) => Value::Datetime(date.to_string()),
            toml::Value::Array(items) => {
                Value::Array(items.into_iter().map(Self::from_default).collect())
            }
            toml::Value::Table(table) => {
                let entries = table.into_iter().map(|(key, v)| (key, Self::from_default(v)));
                Value::Table(entries.collect())
            }
        };
        Self { value, origin: Origin::Default, raw: None }
    }

    /// Its entries, if it is a table.
    pub(super) fn entries(&self) -> Option<&BTreeMap<String, Node>> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// Its entries, if it is a table.
    pub(super) fn entries_mut(&mut self) -> Option<&mut BTreeMap<String, Node>> {
        match &mut self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// Lays `over` upon this: tables entry by entry, all else replaced.
    pub(super) fn overlay(&mut self, over: Node) {
        match (&mut self.value, over) {
            (Value::Table(mine), Node { value: Value::Table(theirs), .. }) => {
                for (key, node) in theirs {
                    match mine.get_mut(&key) {
                        Some(old) => old.overlay(node),
                        None => drop(mine.insert(key, node)),
                    }
                }
            }
            (_, over) => *self = over,
        }
    }

    /// The nearest origin along `path`.
    pub(super) fn origin_of(&self, path: &[Segment]) -> &Origin {
        self.descend(path).map_or(&self.origin, |(child, rest)| child.origin_of(rest))
    }

    /// Cuts out what stands at `path`. False if nothing does.
    pub(super) fn prune(&mut self, path: &[Segment]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut node = self;
        for segment in parents {
            let child = match (segment, &mut node.value) {
                (Segment::Key(key), Value::Table(entries)) => entries.get_mut(key),
                (Segment::Index(index), Value::Array(items)) => items.get_mut(*index),
                _ => None,
            };
            let Some(child) = child else { return false };
            node = child;
        }
        match (last, &mut node.value) {
            (Segment::Key(key), Value::Table(entries)) => entries.remove(key).is_some(),
            (Segment::Index(index), Value::Array(items)) => match items.get_mut(*index) {
                Some(item) if item.value != Value::Pruned => {
                    item.value = Value::Pruned;
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn descend<'p>(&self, path: &'p [Segment]) -> Option<(&Node, &'p [Segment])> {
        let (first, rest) = path.split_first()?;
        let child = match (first, &self.value) {
            (Segment::Key(key), Value::Table(entries)) => entries.get(key),
            (Segment::Index(index), Value::Array(items)) => items.get(*index),
            _ => None,
        }?;
        Some((child, rest))
    }
}

fn from_table(table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    let entries = table.iter().map(|(key, value)| {
        let value = from_value(value.get_ref(), origin);
        let node = Node { value, origin: origin(key.span().start), raw: None };
        (key.get_ref().to_string(), node)
    });
    Value::Table(entries.collect())
}

fn from_value(value: &DeValue<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            // A number beyond 128 bits is out of every range anyway.
            let parsed = i128::from_str_radix(number.as_str(), number.radix());
            Value::Integer(parsed.unwrap_or(i128::MAX))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => {
            let node = |item: &toml::Spanned<DeValue<'_>>| Node {
                value: from_value(item.get_ref(), origin),
                origin: origin(item.span().start),
                raw: None,
            };
            Value::Array(items.iter().map(node).collect())
        }
        DeValue::Table(table) => from_table(table, origin),
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(text.len(), |span| span.start);
    let (line, column) = Lines::new(text).position(at);
    ConfigError::new("", format!("not valid TOML: {}", error.message()))
        .origin(format!("line {line}, column {column}"))
}

/// Byte offsets to lines and columns.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line and column of the byte `at`, both from 1, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts[line - 1];
        let before =
            self.text.get(start..at).map_or(at.saturating_sub(start), |s| s.chars().count());
        (line, before + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Segment {
        Segment::Key(name.to_owned())
    }

    #[test]
    fn every_value_knows_its_line() {
        let tree = Node::parse("a = 1\n[b]\nc = [\n 1,\n 2]\n").unwrap();
        assert_eq!(tree.origin_of(&[key("a")]), &Origin::Line(1));
        assert_eq!(tree.origin_of(&[key("b"), key("c")]), &Origin::Line(3));
        assert_eq!(tree.origin_of(&[key("b"), key("c"), Segment::Index(1)]), &Origin::Line(5));
        assert_eq!(tree.origin_of(&[key("b"), key("absent")]), &Origin::Line(2));
    }

    #[test]
    fn a_syntax_error_names_line_and_column() {
        let errors = Node::parse("a = 1\nb = = 2\n").unwrap_err();
        assert!(errors[0].origin.starts_with("line 2, column 5"), "{errors:?}");
        assert!(!Node::parse("é = \"").unwrap_err().is_empty());
        assert!(!Node::parse("a = [1, 2\n").unwrap_err().is_empty());
    }

    #[test]
    fn pruning_an_array_keeps_the_other_indices() {
        let mut tree = Node::parse("a = [1, 2, 3]").unwrap();
        assert!(tree.prune(&[key("a"), Segment::Index(0)]));
        assert!(!tree.prune(&[key("a"), Segment::Index(0)]), "only once");
        let Value::Array(items) = &tree.entries().unwrap()["a"].value else { panic!() };
        assert_eq!(items[1].value, Value::Integer(2));
        assert!(!tree.prune(&[key("nothing")]));
    }

    #[test]
    fn an_environment_value_is_toml_or_else_text() {
        let value = |raw| Node::from_env("X", raw).value;
        assert_eq!(value("12"), Value::Integer(12));
        assert_eq!(value("\"12\""), Value::String("12".into()));
        assert_eq!(value("127.0.0.1:1"), Value::String("127.0.0.1:1".into()));
        assert_eq!(value(""), Value::String(String::new()));
        assert!(matches!(value("[1, 2]"), Value::Array(items) if items.len() == 2));
    }
}

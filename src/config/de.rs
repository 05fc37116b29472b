//! Reads a [`Node`] into a struct, with errors that know their path.
//!
//! A deserializer of its own, because that of `toml` stops with a text. This one
//! says as data which field failed and what it takes, so that [`read`] can report
//! the mistake, cut the field out and go on.

use std::fmt::Display;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor, value::StrDeserializer,
};
use serde::forward_to_deserialize_any;

use super::error::ConfigError;
use super::tree::{Node, Segment, Value, dotted};

/// Reads `tree` as a `T` whose every field has a default. Each mistake is added
/// to `errors` with its path, and its field is cut out of `tree`; the result is
/// `None` only if nothing could be read at all.
pub(super) fn read<T: DeserializeOwned>(
    tree: &mut Node,
    errors: &mut Vec<(Vec<Segment>, ConfigError)>,
) -> Option<T> {
    loop {
        match T::deserialize(&*tree) {
            Ok(value) => return Some(value),
            Err(error) => {
                let path: Vec<Segment> = error.path.into_iter().rev().collect();
                let report = ConfigError::new(dotted(&path), error.problem)
                    .allowed(error.allowed)
                    .origin(tree.origin_of(&path).to_string());
                let pruned = tree.prune(&path);
                errors.push((path, report));
                if !pruned {
                    return None;
                }
            }
        }
    }
}

/// One failure. The path grows from its inner end outwards.
#[derive(Debug, thiserror::Error)]
#[error("{problem}; allowed: {allowed}")]
pub(super) struct Failure {
    path: Vec<Segment>,
    problem: String,
    allowed: String,
}

impl Failure {
    fn new(problem: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { path: Vec::new(), problem: problem.into(), allowed: allowed.into() }
    }

    fn at(mut self, segment: Segment) -> Self {
        self.path.push(segment);
        self
    }
}

impl de::Error for Failure {
    fn custom<T: Display>(message: T) -> Self {
        let message = message.to_string();
        if message.contains("socket address") {
            return Self::new("is not a socket address", "ADDRESS:PORT, like \"127.0.0.1:7400\"");
        }
        Self::new(message, "")
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        // The kind of value only: a misplaced secret must not be printed.
        let found = match unexpected {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a float",
            Unexpected::Str(_) => "a string",
            Unexpected::Seq => "an array",
            Unexpected::Map => "a table",
            _ => "a value of another type",
        };
        Self::new(format!("is {found}"), describe(expected))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let problem = match unexpected {
            Unexpected::Unsigned(number) => format!("is {number}"),
            Unexpected::Signed(number) => format!("is {number}"),
            _ => "is not a possible value".to_owned(),
        };
        Self::new(problem, describe(expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = nearest(variant, expected).map(|name| format!(", did you mean {name:?}?"));
        let quoted: Vec<String> = expected.iter().map(|name| format!("{name:?}")).collect();
        Self::new(format!("is {variant:?}{}", hint.unwrap_or_default()), quoted.join(", "))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = nearest(field, expected).map(|name| format!(", did you mean `{name}`?"));
        let problem = format!("unknown field{}", hint.unwrap_or_default());
        Self::new(problem, expected.join(", ")).at(Segment::Key(field.to_owned()))
    }
}

/// What a serde type expects, in the words of a reader of TOML.
fn describe(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number from 0".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array, like [\"a\", \"b\"]".to_owned(),
        "a map" => "a table".to_owned(),
        "path string" => "a path, as a string".to_owned(),
        "socket address" => "ADDRESS:PORT, like \"127.0.0.1:7400\"".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

/// The name that `word` was probably meant to be: at most a third of it differs.
pub(super) fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    names
        .iter()
        .map(|name| (distance(&word, name), *name))
        .filter(|(distance, name)| *distance <= name.len().max(word.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visit_integer(*number, visitor),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Datetime(_) => {
                Err(Failure::invalid_type(Unexpected::Other("a date"), &visitor as &dyn Expected))
            }
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Table(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), current: None })
            }
            Value::Pruned => visitor.visit_unit(),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.raw {
            Some(raw) => visitor.visit_borrowed_str(raw),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.value {
            // A derived struct would take an array field by field.
            Value::Array(_) => {
                Err(Failure::invalid_type(Unexpected::Seq, &visitor as &dyn Expected))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let text = match (&self.raw, &self.value) {
            (Some(raw), _) => raw,
            (None, Value::String(text)) => text,
            _ => {
                let quoted: Vec<String> = variants.iter().map(|name| format!("{name:?}")).collect();
                return Err(Failure::new("is not a string", quoted.join(", ")));
            }
        };
        visitor.visit_enum(IntoDeserializer::<Failure>::into_deserializer(text.as_str()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn visit_integer<'de, V: Visitor<'de>>(number: i128, visitor: V) -> Result<V::Value, Failure> {
    if let Ok(small) = i64::try_from(number) {
        visitor.visit_i64(small)
    } else if let Ok(large) = u64::try_from(number) {
        visitor.visit_u64(large)
    } else {
        Err(Failure::new(format!("is {number}"), describe(&visitor as &dyn Expected)))
    }
}

struct Entries<'de> {
    entries: std::collections::btree_map::Iter<'de, String, Node>,
    current: Option<(&'de String, &'de Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let (key, node) = self.current.ok_or_else(|| Failure::new("has no value", ""))?;
        seed.deserialize(node).map_err(|failure| failure.at(Segment::Key(key.clone())))
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        while let Some(item) = self.items.get(self.next) {
            let index = self.next;
            self.next += 1;
            if item.value != Value::Pruned {
                let read = seed.deserialize(item);
                return read.map(Some).map_err(|failure| failure.at(Segment::Index(index)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_a_foreign_one_is_not() {
        let names = ["listen", "admin_listen", "shards"];
        assert_eq!(nearest("lisen", &names), Some("listen"));
        assert_eq!(nearest("Listen", &names), Some("listen"));
        assert_eq!(nearest("admin_lisetn", &names), Some("admin_listen"));
        assert_eq!(nearest("colour", &names), None);
    }

    #[test]
    fn reading_goes_on_after_every_mistake() {
        let text =
            "default_kinds = 3\nserver = [1]\n[websocket]\nallowed_origins = [1, \"*\", 2]\n";
        let mut tree = Node::parse(text).unwrap();
        let mut errors = Vec::new();
        let config: crate::config::Config = read(&mut tree, &mut errors).unwrap();
        assert_eq!(config.websocket.allowed_origins, ["*"]);
        let mut paths: Vec<String> = errors.into_iter().map(|(_, error)| error.path).collect();
        paths.sort();
        let expected = [
            "default_kinds",
            "server",
            "websocket.allowed_origins[0]",
            "websocket.allowed_origins[2]",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn the_value_of_a_misplaced_secret_is_not_printed() {
        let mut tree = Node::parse("[auth]\nleeway_s = \"hunter2hunter2\"\n").unwrap();
        let mut errors = Vec::new();
        read::<crate::config::Config>(&mut tree, &mut errors);
        let text = errors[0].1.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("a whole number from 0"), "{text}");
    }
}

//! From file and environment to a checked [`Config`].

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors};
use super::tree::{Node, Origin, Segment, Value};
use super::{Config, de, env, kinds, validate};

/// Bytes of a configuration file. The annotated one has about 20 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Fields of a kind that belong to its merge rule and leave with it.
const OF_MERGE: [&str; 3] = ["by", "n", "idle_reset_ms"];

/// Where a configuration came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigOrigin {
    /// The file; absent: embedded defaults.
    pub file: Option<PathBuf>,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Where they came from.
    pub origin: ConfigOrigin,
}

impl Config {
    /// Reads `file` (absent: nothing but defaults), lays `env` over it and checks
    /// the result. `env` may hold any variables; those of others are left alone.
    ///
    /// # Errors
    /// Every mistake there is, not only the first. Only TOML that is not valid
    /// hides the rest.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigErrors> {
        let text = file.map(read_file).transpose().map_err(|error| ConfigErrors(vec![error]))?;
        let config = Self::from_toml(text.as_deref().unwrap_or_default(), env)?;
        Ok(Loaded { config, origin: ConfigOrigin { file: file.map(Path::to_owned) } })
    }

    /// Like [`Config::load`], with the text of the file.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn from_toml(
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut tree = Node::parse(text).map_err(ConfigErrors)?;
        let mut errors = Vec::new();
        env::overlay(&mut tree, env, &mut errors);
        add_built_in_kinds(&mut tree);

        let written = tree.clone();
        let mut unreadable = Vec::new();
        let config: Option<Self> = de::read(&mut tree, &mut unreadable);
        let paths: Vec<String> = unreadable.iter().map(|(_, error)| error.path.clone()).collect();
        errors.extend(unreadable.into_iter().map(|(_, error)| error));

        if let Some(config) = &config {
            let found = validate::check(config, paths.iter().any(|path| path.starts_with("auth")));
            // What stands where an unreadable value stood is nobody's mistake.
            let real = found.into_iter().filter(|e| !paths.iter().any(|p| covers(p, &e.path)));
            errors.extend(real.map(|error| with_origin(error, &written)));
        }
        match config {
            Some(config) if errors.is_empty() => Ok(config),
            _ => {
                errors.sort_by(|a, b| a.path.cmp(&b.path));
                Err(ConfigErrors(errors))
            }
        }
    }
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    let fail =
        |what: String| ConfigError::new("", format!("cannot read {}: {what}", file.display()));
    let size = fs::metadata(file).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(fail(format!("it has {size} bytes")).allowed(format!("{MAX_FILE_BYTES} bytes")));
    }
    fs::read_to_string(file).map_err(|error| fail(error.to_string()))
}

/// Lays what is written in `[kinds]` over the built-in kinds, field by field.
fn add_built_in_kinds(tree: &mut Node) {
    let Some(root) = tree.entries_mut() else { return };
    let wanted = root.get("default_kinds").is_none_or(|flag| flag.value != Value::Bool(false));
    let kinds = root.entry("kinds".to_owned()).or_insert_with(|| Node::table(Origin::Default));
    let Some(kinds) = kinds.entries_mut() else { return };
    if !wanted {
        return;
    }
    for (name, config) in kinds::built_in() {
        let Ok(built_in) = toml::Value::try_from(config) else { continue };
        let mut kind = Node::from_default(built_in);
        if let Some(written) = kinds.remove(&name) {
            if written.entries().is_some_and(|fields| fields.contains_key("merge")) {
                for field in OF_MERGE {
                    kind.prune(&[Segment::Key(field.to_owned())]);
                }
            }
            let origin = written.origin.clone();
            kind.overlay(written);
            kind.origin = origin;
        }
        kinds.insert(name, kind);
    }
}

/// Whether `path` is `outer` or lies within it.
fn covers(outer: &str, path: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Adds the line or variable of the field that `error` names.
fn with_origin(error: ConfigError, written: &Node) -> ConfigError {
    if !error.origin.is_empty() {
        return error;
    }
    let origin = written.origin_of(&segments(&error.path)).to_string();
    error.origin(origin)
}

/// Reads a dotted path back. The names of kinds hold no dots, see `validate`.
fn segments(path: &str) -> Vec<Segment> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    let segment = |part: &str| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
        Some(index) => Segment::Index(index),
        None => Segment::Key(part.to_owned()),
    };
    parts.map(segment).collect()
}

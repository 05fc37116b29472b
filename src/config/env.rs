//! `TIDEGATE__SECTION__FIELD`: the environment over the file.
//!
//! Every variable with the prefix belongs to us, so a misspelt one is an error
//! like a misspelt field, not a setting that silently does nothing.

use super::error::ConfigError;
use super::kinds;
use super::tree::{Node, Origin};

const PREFIX: &str = "TIDEGATE__";

/// Lays every variable with the prefix over `tree`, in order of name, so that
/// `…__CHAT={…}` comes before `…__CHAT__TIER`.
pub(super) fn overlay(
    tree: &mut Node,
    env: impl Iterator<Item = (String, String)>,
    errors: &mut Vec<ConfigError>,
) {
    let mut variables: Vec<(String, String)> =
        env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    variables.sort();
    for (name, raw) in variables {
        let path: Vec<&str> = name[PREFIX.len()..].split("__").collect();
        if path.iter().any(|part| part.is_empty()) {
            let error = ConfigError::new(&name, "is not the name of a field");
            errors.push(error.allowed("TIDEGATE__SECTION__FIELD, like TIDEGATE__SERVER__LISTEN"));
            continue;
        }
        let path = field_path(tree, &path);
        let mut node = Node::from_env(&name, &raw);
        for part in path.into_iter().rev() {
            let mut table = Node::table(Origin::Env(name.clone()));
            if let Some(entries) = table.entries_mut() {
                entries.insert(part, node);
            }
            node = table;
        }
        tree.overlay(node);
    }
}

/// Field names are lower case; kinds are found whatever the case of their name.
fn field_path(tree: &Node, parts: &[&str]) -> Vec<String> {
    let mut path: Vec<String> = parts.iter().map(|part| part.to_lowercase()).collect();
    if path.len() > 1 && path[0] == "kinds" {
        let configured = tree.entries().and_then(|root| root.get("kinds")?.entries());
        let names = configured.into_iter().flat_map(|kinds| kinds.keys().cloned());
        let known = names.chain(kinds::built_in().into_keys());
        if let Some(name) = known.into_iter().find(|name| name.to_lowercase() == path[1]) {
            path[1] = name;
        }
    }
    path
}

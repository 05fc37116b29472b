//! What a verified token allows.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::AuthError;
use crate::engine::ids::RoomId;
use crate::engine::time::Time;

/// What the bearer of a token may do until it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who it is: `sub`.
    pub user: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// What sort of client it uses: `client`.
    pub client: Option<Arc<str>>,
    /// In which rooms.
    pub rooms: RoomGrants,
    /// From when on `verify` refuses the token: `exp` and the leeway.
    pub expires: Time,
}

impl Grant {
    /// Whether it holds for `room`. An operator's holds for every room.
    #[must_use]
    pub fn allows_room(&self, room: &RoomId) -> bool {
        self.role == Role::Operator || self.rooms.contains(room)
    }

    /// What the limit of client types goes by: `client`, or else the role.
    #[must_use]
    pub fn client_type(&self) -> &str {
        self.client.as_deref().unwrap_or(self.role.name())
    }

    /// Whether it has expired at `now`.
    #[must_use]
    pub fn expired(&self, now: Time) -> bool {
        now >= self.expires
    }
}

/// What a token's bearer may do; each may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Join rooms, and publish kinds that viewers may publish.
    #[default]
    Viewer,
    /// Join and read rooms, and publish every kind.
    Publisher,
    /// Everything, in every room.
    Operator,
}

impl Role {
    /// Its name in tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Publisher => "publisher",
            Role::Operator => "operator",
        }
    }

    /// Whether it may publish a kind that viewers may publish (`viewer_publish`)
    /// or may not.
    #[must_use]
    pub const fn may_publish(self, viewer_publish: bool) -> bool {
        viewer_publish || matches!(self, Role::Publisher | Role::Operator)
    }

    /// Whether it may read a room's state and history over HTTP.
    #[must_use]
    pub const fn may_read(self) -> bool {
        matches!(self, Role::Publisher | Role::Operator)
    }
}

impl FromStr for Role {
    type Err = AuthError;

    fn from_str(name: &str) -> Result<Self, AuthError> {
        [Role::Viewer, Role::Publisher, Role::Operator]
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or(AuthError::BadRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rooms that a token names. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomGrants(Arc<[Pattern]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Room(RoomId),
    Prefix(Box<str>),
}

impl RoomGrants {
    /// From patterns: a room name, a prefix with `*` at its end, or `*`.
    ///
    /// # Errors
    /// [`AuthError::BadRooms`] for anything else, since what cannot match was
    /// meant to be something that can.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self, AuthError> {
        let patterns = patterns.iter().map(|pattern| Pattern::parse(pattern.as_ref()));
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of the patterns matches.
    #[must_use]
    pub fn contains(&self, room: &RoomId) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Room(name) => name == room,
            Pattern::Prefix(prefix) => room.as_str().starts_with(&**prefix),
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, AuthError> {
        let name = |text| RoomId::new(text).map_err(|_| AuthError::BadRooms);
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Prefix("".into())),
            Some(prefix) => name(prefix).map(|_| Self::Prefix(prefix.into())),
            None => name(text).map(Self::Room),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(patterns: &[&str], room: &str) -> bool {
        RoomGrants::parse(patterns).unwrap().contains(&RoomId::new(room).unwrap())
    }

    #[test]
    fn a_room_is_matched_by_name_prefix_or_star() {
        assert!(allows(&["a", "b"], "b"));
        assert!(!allows(&["a"], "ab"), "a name is not a prefix");
        assert!(allows(&["live:*"], "live:42"));
        assert!(allows(&["live:*"], "live:"));
        assert!(!allows(&["live:*"], "live"));
        assert!(allows(&["*"], "anything"));
        assert!(!allows(&[], "anything"), "no rooms means none");
    }

    #[test]
    fn a_pattern_that_cannot_match_is_refused() {
        for bad in ["a*b", "**", "a**", "a b", "", "é*"] {
            assert_eq!(RoomGrants::parse(&[bad]), Err(AuthError::BadRooms), "{bad:?}");
        }
    }

    #[test]
    fn roles_contain_one_another() {
        assert!(Role::Viewer < Role::Publisher && Role::Publisher < Role::Operator);
        assert!(Role::Viewer.may_publish(true) && !Role::Viewer.may_publish(false));
        assert!(Role::Publisher.may_publish(false) && Role::Publisher.may_read());
        assert!(!Role::Viewer.may_read());
    }
}

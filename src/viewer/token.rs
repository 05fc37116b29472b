//! Where the tokens come from that rooms are joined with.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

pub(super) type Asked = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// What a room is joined with: a token, or somebody to ask for one before every
/// join, so that it is fresh when a connection has to be made anew.
#[derive(Clone)]
pub struct Token(Source);

#[derive(Clone)]
enum Source {
    Fixed(String),
    Provider(Arc<dyn Fn() -> Asked + Send + Sync>),
}

impl Token {
    /// Asked before every join. If there is no token to be had, the room ends with
    /// what the provider says; one that can get one later waits for that itself.
    pub fn provider<F, A>(provider: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self(Source::Provider(Arc::new(move || Box::pin(provider()))))
    }

    pub(super) fn ask(&self) -> Asked {
        match &self.0 {
            Source::Fixed(token) => Box::pin(std::future::ready(Ok(token.clone()))),
            Source::Provider(provider) => provider(),
        }
    }

    /// Whether asking again may give another one.
    pub(super) fn renews(&self) -> bool {
        matches!(self.0, Source::Provider(_))
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self(Source::Fixed(token.to_owned()))
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(Source::Fixed(token))
    }
}

impl fmt::Debug for Token {
    /// Keeps the token out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.renews() { "Token(provider)" } else { "Token(fixed)" })
    }
}

//! The development key: how the commands in one terminal get tokens for a server
//! started with defaults in another.
//!
//! The server writes 32 random bytes to a file that only its user can read; the
//! commands of the same user read it. Nobody is asked to invent a secret for a
//! first try, and no secret is ever the same on two machines. It is made anew at
//! every start and accepted on loopback only, see `config`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use rand::Rng as _;
use thiserror::Error;

use crate::config::KeyMaterial;

/// The `kid` of tokens signed with it.
const KEY_ID: &str = "dev";
const KEY_BYTES: usize = 32;

/// 32 random bytes that sign tokens for development.
#[derive(Clone)]
pub struct DevKey([u8; KEY_BYTES]);

/// Why there is no development key.
#[derive(Debug, Error)]
pub enum DevKeyError {
    /// No server with defaults left a key for this port.
    #[error("{} does not exist: no server without [auth] keys runs on this port", .0.display())]
    Missing(PathBuf),
    /// Somebody else owns the file, or others may read it, or it is no plain file.
    #[error("{} is not a plain file that only you can read and write", .0.display())]
    NotPrivate(PathBuf),
    /// The file holds something else.
    #[error("{} does not hold a development key", .0.display())]
    NotAKey(PathBuf),
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl DevKey {
    /// Makes a new key and leaves it for the commands that talk to the server on
    /// `port`, in `$XDG_RUNTIME_DIR` or the directory for temporary files.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(port: u16) -> Result<Self, DevKeyError> {
        Self::create_in(&directory(), port)
    }

    /// Reads the key of the server on `port`.
    ///
    /// # Errors
    /// There is none, or the file could have been written by somebody else.
    pub fn read(port: u16) -> Result<Self, DevKeyError> {
        Self::read_in(&directory(), port)
    }

    /// A random key that is written nowhere.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; KEY_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Like [`DevKey::create`], in `directory`.
    ///
    /// # Errors
    /// Those of [`DevKey::create`].
    pub fn create_in(directory: &Path, port: u16) -> Result<Self, DevKeyError> {
        let path = file(directory, port);
        let key = Self::random();
        key.write(&path).map_err(|error| DevKeyError::Io { path, error })?;
        Ok(key)
    }

    /// Like [`DevKey::read`], in `directory`.
    ///
    /// # Errors
    /// Those of [`DevKey::read`].
    pub fn read_in(directory: &Path, port: u16) -> Result<Self, DevKeyError> {
        let path = file(directory, port);
        let text = match read_private(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(DevKeyError::NotPrivate(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DevKeyError::Missing(path));
            }
            Err(error) => return Err(DevKeyError::Io { path, error }),
        };
        decode(text.trim_end()).map(Self).ok_or(DevKeyError::NotAKey(path))
    }

    /// As a key for [`super::Authenticator`].
    pub(super) fn material(&self) -> KeyMaterial {
        KeyMaterial::shared_secret(KEY_ID, &self.0)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // `create_new` is O_CREAT and O_EXCL: it fails on anything that is there,
        // a symbolic link included, so nobody can direct the key elsewhere.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(hex.as_bytes())?;
        file.write_all(b"\n")
    }
}

impl fmt::Debug for DevKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevKey")
    }
}

fn directory() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|path| path.is_absolute() && path.is_dir()).unwrap_or_else(env::temp_dir)
}

fn file(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!("tidegate-dev-{port}.key"))
}

/// The text of `path`; `None` if others own it, may read it, or it is a link.
fn read_private(path: &Path) -> io::Result<Option<String>> {
    let seen = fs::symlink_metadata(path)?;
    if !seen.is_file() {
        return Ok(None);
    }
    let file = File::open(path)?;
    let opened = file.metadata()?;
    // The same file that was just seen not to be a link, whatever happened between.
    let same = (opened.dev(), opened.ino()) == (seen.dev(), seen.ino());
    let mine = opened.uid() == rustix::process::geteuid().as_raw();
    if !same || !mine || opened.mode() & 0o077 != 0 {
        return Ok(None);
    }
    let mut text = String::new();
    file.take(4_096).read_to_string(&mut text)?;
    Ok(Some(text))
}

fn decode(hex: &str) -> Option<[u8; KEY_BYTES]> {
    let mut bytes = [0; KEY_BYTES];
    if hex.len() != 2 * KEY_BYTES || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_the_server_writes_the_commands_read() {
        let dir = tempfile::tempdir().unwrap();
        let first = DevKey::create_in(dir.path(), 7400).unwrap();
        assert_eq!(DevKey::read_in(dir.path(), 7400).unwrap().0, first.0);
        let second = DevKey::create_in(dir.path(), 7400).unwrap();
        assert_ne!(first.0, second.0, "new at every start");
        assert_eq!(DevKey::read_in(dir.path(), 7400).unwrap().0, second.0);
        let mode = fs::metadata(file(dir.path(), 7400)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let missing = DevKey::read_in(dir.path(), 7499).unwrap_err();
        assert!(matches!(missing, DevKeyError::Missing(_)));
    }

    #[test]
    fn a_link_is_neither_followed_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = file(dir.path(), 1);
        symlink(&victim, &path).unwrap();
        assert!(matches!(DevKey::read_in(dir.path(), 1), Err(DevKeyError::NotPrivate(_))));
        DevKey::create_in(dir.path(), 1).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_key_that_others_can_read_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        DevKey::create_in(dir.path(), 1).unwrap();
        let path = file(dir.path(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(DevKey::read_in(dir.path(), 1), Err(DevKeyError::NotPrivate(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(matches!(DevKey::read_in(dir.path(), 1), Err(DevKeyError::NotAKey(_))));
    }
}

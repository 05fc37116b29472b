//! Certificates and TLS: who the server is, towards viewers and publishers.
//!
//! An [`Identity`] is made once, from files or for development, and shared by
//! every listener: TLS on TCP takes [`Identity::tcp_config`], QUIC builds a
//! configuration of its own around [`Identity::resolver`]. Which certificate is
//! shown is asked once per full handshake, so a new one (see [`reload`]) is used
//! from the next handshake on, and no connection is touched.
//!
//! [`channel`] is one TLS connection without I/O, which both HTTP and viewers'
//! connections are driven through.
//!
//! The cryptography is aws-lc-rs, handed over explicitly: a process-wide default
//! would depend on which dependency is asked first.

pub mod certificate;
pub mod channel;
pub mod development;
pub mod reload;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use thiserror::Error;

use self::certificate::{Certificate, Files, LoadError, Stamp};
use self::development::MakeError;
use crate::engine::time::Time;

/// What TLS on TCP is used for (RFC 7301): gRPC and HTTP/2, or HTTP/1.1, to which
/// a WebSocket is an upgrade.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The cryptography that everything here uses.
#[must_use]
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| default_provider().into());
    &PROVIDER
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The files are not right.
    #[error(transparent)]
    Files(#[from] LoadError),
    /// No certificate could be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// TLS itself could not be set up.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate as a client may know it in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// SHA-256 over its DER encoding.
    pub sha256: [u8; 32],
    /// Until when it holds.
    pub expires: Time,
}

impl From<&Certificate> for Fingerprint {
    fn from(certificate: &Certificate) -> Self {
        Self { sha256: certificate.sha256, expires: certificate.expires }
    }
}

/// What became of looking for a new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reloads {
    /// Certificates taken, the first not counted.
    pub loaded: u64,
    /// Files that gave none; the old one stayed.
    pub failed: u64,
    /// Until when the present one holds.
    pub expires: Time,
}

/// Who the server is. Clones share everything.
#[derive(Clone)]
pub struct Identity(Arc<Shared>);

struct Shared {
    /// Absent: made for development.
    files: Option<Files>,
    present: Arc<Present>,
    tcp: Arc<ServerConfig>,
    state: Mutex<State>,
    generation: AtomicU64,
    loaded: AtomicU64,
    failed: AtomicU64,
}

struct State {
    /// What the files looked like when they were last read.
    stamp: Stamp,
    current: Certificate,
    /// Earlier ones that were made here and still hold.
    former: Vec<Fingerprint>,
}

/// The certificate that handshakes are made with.
struct Present(RwLock<Arc<CertifiedKey>>);

impl Present {
    fn get(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

impl fmt::Debug for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Present")
    }
}

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl Identity {
    /// With the certificate and key of these files.
    ///
    /// # Errors
    /// When they are not right, or TLS cannot be set up.
    pub fn from_files(files: Files, now: Time) -> Result<Self, IdentityError> {
        // Before it is read: a change in between is seen at the next look.
        let stamp = files.stamp();
        let current = files.load(now)?;
        Self::new(Some(files), stamp, current)
    }

    /// With a certificate of its own, for this machine alone.
    ///
    /// # Errors
    /// When none can be made, or TLS cannot be set up.
    pub fn development(now: Time) -> Result<Self, IdentityError> {
        Self::new(None, Stamp::default(), development::make(now)?)
    }

    fn new(
        files: Option<Files>,
        stamp: Stamp,
        current: Certificate,
    ) -> Result<Self, IdentityError> {
        let present = Arc::new(Present(RwLock::new(Arc::clone(&current.key))));
        let tcp = tcp_config(Arc::clone(&present) as _)?;
        Ok(Self(Arc::new(Shared {
            files,
            present,
            tcp: Arc::new(tcp),
            state: Mutex::new(State { stamp, current, former: Vec::new() }),
            generation: AtomicU64::new(1),
            loaded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })))
    }

    /// TLS 1.2 and 1.3 for TCP, for ALPN `h2` and `http/1.1`. The same for as long
    /// as the server runs: the certificate changes within.
    #[must_use]
    pub fn tcp_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.tcp)
    }

    /// Answers handshakes with the present certificate.
    #[must_use]
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::clone(&self.0.present) as _
    }

    /// 1, and one more with every new certificate.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Relaxed)
    }

    /// Whether the certificate was made here, for development.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.0.files.is_none()
    }

    /// The present certificate, and earlier ones made here that still hold, newest
    /// first.
    #[must_use]
    pub fn fingerprints(&self, now: Time) -> Vec<Fingerprint> {
        let state = self.state();
        let former = state.former.iter().rev().filter(|former| former.expires >= now);
        std::iter::once(Fingerprint::from(&state.current)).chain(former.copied()).collect()
    }

    /// What became of reloading.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        Reloads {
            loaded: self.0.loaded.load(Ordering::Relaxed),
            failed: self.0.failed.load(Ordering::Relaxed),
            expires: self.state().current.expires,
        }
    }

    /// Takes a new certificate if there is one: of files when they have changed
    /// (or `anyway`), of those made here when the present one ends soon. Returns
    /// whether there is.
    ///
    /// # Errors
    /// Why the present one stays although it should not.
    pub fn refresh(&self, anyway: bool, now: Time) -> Result<bool, IdentityError> {
        let mut state = self.state();
        let next = match &self.0.files {
            Some(files) => {
                let stamp = files.stamp();
                if stamp == state.stamp && !anyway {
                    return Ok(false);
                }
                // Whatever is wrong is told once, and again when they change.
                state.stamp = stamp;
                files.load(now).map_err(IdentityError::from)
            }
            None if development::is_due(&state.current, now) => {
                development::make(now).map_err(IdentityError::from)
            }
            None => return Ok(false),
        };
        let next = next.inspect_err(|_| {
            self.0.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        self.0.present.set(Arc::clone(&next.key));
        let last = std::mem::replace(&mut state.current, next);
        if self.is_development() {
            state.former.retain(|former| former.expires >= now);
            state.former.push(Fingerprint::from(&last));
        }
        self.0.loaded.fetch_add(1, Ordering::Relaxed);
        self.0.generation.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("files", &self.0.files).finish_non_exhaustive()
    }
}

fn tcp_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Sessions are resumed from what the client keeps, in tickets that are good
    // for 6 to 12 hours; nothing is remembered here. One ticket will do: whoever
    // comes back opens one connection and gets the next ticket on it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_made_here_is_renewed_and_its_hash_told_until_it_ends() {
        let start = Time::from_millis(1_800_000_000_000);
        let identity = Identity::development(start).expect("made");
        let first = identity.fingerprints(start);
        assert_eq!(first.len(), 1);
        assert!(matches!(identity.refresh(true, start + DAY * 9), Ok(false)));
        assert_eq!(identity.generation(), 1);

        assert!(matches!(identity.refresh(false, start + DAY * 11), Ok(true)));
        assert_eq!((identity.generation(), identity.reloads().loaded), (2, 1));
        let second = identity.fingerprints(start + DAY * 11);
        assert_eq!(second.len(), 2);
        assert_eq!(second[1], first[0]);
        assert_eq!(identity.0.present.get().cert[0], identity.state().current.key.cert[0]);
        assert_eq!(identity.fingerprints(start + DAY * 14), second[..1]);
    }

    #[test]
    fn files_that_are_wrong_are_told_of_once_and_the_old_certificate_stays() {
        let now = Time::from_millis(1_800_000_000_000);
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let files = Files { certificate: at("certificate.pem"), key: at("key.pem") };
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
            std::fs::write(&files.certificate, made.cert.pem()).expect("written");
            std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        };
        write("a.example");
        let identity = Identity::from_files(files.clone(), now).expect("loaded");
        let first = identity.fingerprints(now);
        assert!(matches!(identity.refresh(false, now), Ok(false)), "nothing has changed");

        std::fs::write(&files.key, "no key").expect("written");
        assert!(identity.refresh(false, now).is_err());
        assert!(matches!(identity.refresh(false, now), Ok(false)), "told before");
        assert!(identity.refresh(true, now).is_err(), "asked for");
        assert_eq!(identity.fingerprints(now), first);
        assert_eq!((identity.reloads().failed, identity.generation()), (2, 1));

        write("b.example");
        assert!(matches!(identity.refresh(false, now), Ok(true)));
        assert_ne!(identity.fingerprints(now)[0], first[0]);
        assert_eq!(identity.fingerprints(now).len(), 1, "old files are of no use to anybody");
        assert_eq!(identity.generation(), 2);
    }
}

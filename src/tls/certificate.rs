//! A certificate with its key: read from files or made, and checked before
//! anybody is shown it.

use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore, SupportedCipherSuite};
use thiserror::Error;

use super::provider;
use crate::engine::time::Time;

/// Bytes of one file. A chain of four certificates has about 8 KiB.
const MAX_FILE_BYTES: u64 = 1 << 18;
const DAY: Duration = Duration::from_secs(86_400);

/// Why files give no certificate. Each names the file that it is about.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The certificate's file cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    CertificateUnreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key's file cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    KeyUnreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no PEM certificate in it, or one that is not whole.
    #[error("{} holds no usable certificate: {reason}", file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no PEM private key in it, or of a kind that cannot sign.
    #[error("{} holds no usable private key: {reason}", file.display())]
    NoKey {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Each is right by itself.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Clients would refuse it.
    #[error("{} has expired {} ago", file.display(), span(*by))]
    Expired {
        /// The file.
        file: PathBuf,
        /// Since when.
        by: Duration,
    },
    /// Clients would refuse it yet.
    #[error("{} is not valid for another {}", file.display(), span(*by))]
    NotYetValid {
        /// The file.
        file: PathBuf,
        /// Until when.
        by: Duration,
    },
}

impl LoadError {
    /// Whether the key is at fault rather than the certificate.
    #[must_use]
    pub const fn is_about_key(&self) -> bool {
        matches!(
            self,
            LoadError::KeyUnreadable { .. } | LoadError::NoKey { .. } | LoadError::Mismatch { .. }
        )
    }
}

/// `duration` in the largest unit that shows it.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / DAY.as_secs()),
    }
}

/// A certificate chain and its key, and what is known of them.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// What handshakes are signed with.
    pub key: Arc<CertifiedKey>,
    /// notBefore of the server's own certificate, in whole seconds.
    pub begins: Time,
    /// notAfter of it, in whole seconds: the last at which it holds.
    pub expires: Time,
    /// SHA-256 over its DER encoding.
    pub sha256: [u8; 32],
}

impl Certificate {
    /// From a chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// rustls' own, where the certificate cannot be parsed, the key cannot sign
    /// or does not fit. The time of validity is not judged.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, rustls::Error> {
        let own = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let (begins, expires) = validity(own)?;
        let sha256 = sha256(own);
        let key = Arc::new(CertifiedKey::from_der(chain, key, provider())?);
        Ok(Self { key, begins, expires, sha256 })
    }
}

/// From when to when a certificate holds. rustls has no accessor for it, but
/// checks it before anything else, and says what it found.
fn validity(certificate: &CertificateDer<'_>) -> Result<(Time, Time), rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let (first, last) = (Duration::ZERO, Duration::from_secs(u64::MAX));
    let found = |at: Duration| -> Result<Option<UnixTime>, rustls::Error> {
        let verified = rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &RootCertStore::empty(),
            &[],
            UnixTime::since_unix_epoch(at),
            provider().signature_verification_algorithms.all,
        );
        match verified {
            Err(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::ExpiredContext { not_after, .. } => Ok(Some(not_after)),
                CertificateError::NotValidYetContext { not_before, .. } => Ok(Some(not_before)),
                CertificateError::UnknownIssuer => Ok(None),
                other => Err(other.into()),
            },
            Err(other) => Err(other),
            Ok(()) => Ok(None),
        }
    };
    // One that began with the epoch is not too early at any time.
    let begins = found(first)?.map_or(0, |time| time.as_secs());
    let expires = found(last)?.map_or(u64::MAX, |time| time.as_secs());
    Ok((seconds(begins), seconds(expires)))
}

fn seconds(since_epoch: u64) -> Time {
    Time::default() + Duration::from_secs(since_epoch)
}

fn sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut sha256 = [0; 32];
    // The hash of a suite that is always there; its output has 32 bytes.
    if let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256 {
        sha256.copy_from_slice(suite.common.hash_provider.hash(certificate).as_ref());
    }
    sha256
}

/// Where certificate and key are kept, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// By what a change of the files is seen: when they were modified, how long they
/// are and which files they are, for a new one may be moved over the old one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp([Option<(i64, i64, u64, u64)>; 2]);

impl Files {
    /// What they look like now.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let look = |metadata: Metadata| {
            (metadata.mtime(), metadata.mtime_nsec(), metadata.size(), metadata.ino())
        };
        Stamp([&self.certificate, &self.key].map(|file| fs::metadata(file).ok().map(look)))
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn load(&self, now: Time) -> Result<Certificate, LoadError> {
        let found = self.read()?;
        let file = self.certificate.clone();
        if now > found.expires {
            return Err(LoadError::Expired { file, by: now.since(found.expires) });
        }
        if now < found.begins {
            return Err(LoadError::NotYetValid { file, by: found.begins.since(now) });
        }
        Ok(found)
    }

    fn read(&self) -> Result<Certificate, LoadError> {
        let file = || self.certificate.clone();
        let text = read(&self.certificate).map_err(|error| LoadError::CertificateUnreadable {
            file: file(),
            reason: error.to_string(),
        })?;
        let none = |reason: String| LoadError::NoCertificate { file: file(), reason };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| none(describe(&error)))?;
        let own = chain.first().ok_or_else(|| none(describe(&pem::Error::NoItemsFound)))?;
        validity(own).map_err(|error| none(error.to_string()))?;

        let file = || self.key.clone();
        let text = read(&self.key).map_err(|error| LoadError::KeyUnreadable {
            file: file(),
            reason: error.to_string(),
        })?;
        let none = |reason: String| LoadError::NoKey { file: file(), reason };
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| none(describe(&error)))?;
        Certificate::new(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                LoadError::Mismatch { certificate: self.certificate.clone(), key: file() }
            }
            other => none(other.to_string()),
        })
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe or a device has no length to be asked for.
    fs::File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// What is wrong with PEM. Nothing of the file is quoted: it may hold a key.
fn describe(error: &pem::Error) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match error {
        pem::Error::NoItemsFound => write!(text, "there is none in PEM"),
        pem::Error::MissingSectionEnd { .. } => write!(text, "its last section has no end"),
        pem::Error::IllegalSectionStart { .. } => write!(text, "a section begins badly"),
        pem::Error::Base64Decode(_) => write!(text, "it is not base64"),
        pem::Error::SectionTooLarge => write!(text, "a section is too large"),
        _ => write!(text, "it is not PEM"),
    };
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// Certificate and key of `name` in PEM, valid for these days since 1970.
    fn made(name: &str, days: std::ops::Range<u64>) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(1970, 1, 1) + DAY * days.start as u32;
        params.not_after = date_time_ymd(1970, 1, 1) + DAY * days.end as u32;
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> (Self, Files) {
            let folder = tempfile::tempdir().expect("a folder");
            let at = |name: &str| folder.path().join(name);
            let files = Files { certificate: at("certificate.pem"), key: at("key.pem") };
            fs::write(&files.certificate, certificate).expect("written");
            fs::write(&files.key, key).expect("written");
            (Self(folder), files)
        }
    }

    fn day(day: u64) -> Time {
        seconds(day * DAY.as_secs())
    }

    #[test]
    fn the_time_of_validity_is_found_in_both_encodings_of_time() {
        // RFC 5280, section 4.1.2.5: UTCTime through 2049, GeneralizedTime from
        // 2050. Day 29,220 is 2050-01-01.
        for days in [20_000..20_100, 29_219..29_220, 29_220..40_000, 1..29_220] {
            let (certificate, key) = made("a.example", days.clone());
            let (_folder, files) = Folder::new(certificate, key);
            let found = files.load(day(days.start) + Duration::from_secs(1)).expect("loaded");
            assert_eq!((found.begins, found.expires), (day(days.start), day(days.end)));
        }
    }

    #[test]
    fn a_certificate_holds_from_its_first_to_its_last_second() {
        let (certificate, key) = made("a.example", 20_000..20_010);
        let (_folder, files) = Folder::new(certificate, key);
        let second = Duration::from_secs(1);
        let fails = |now: Time| files.load(now).err().map(|error| error.to_string());
        assert_eq!(fails(day(20_000)), None);
        assert_eq!(fails(day(20_010)), None);
        let early = fails(day(20_000) - second).expect("too early");
        assert!(early.ends_with("certificate.pem is not valid for another 1 s"), "{early}");
        let late = fails(day(20_013)).expect("too late");
        assert!(late.ends_with("certificate.pem has expired 3 days ago"), "{late}");
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_own_words() {
        let (good, key) = made("a.example", 20_000..20_010);
        let (_, other_key) = made("b.example", 20_000..20_010);
        let broken = good.replacen("MII", "AII", 1);
        let cut = &good[..good.len() / 2];
        let cases: [(&str, &str, bool, &str); 8] = [
            ("", &key, false, "holds no usable certificate: there is none in PEM"),
            (&key, &key, false, "certificate.pem holds no usable certificate: there is none"),
            (&broken, &key, false, "holds no usable certificate: invalid peer certificate"),
            (cut, &key, false, "holds no usable certificate: its last section has no end"),
            (&good, "", true, "key.pem holds no usable private key: there is none in PEM"),
            (&good, &good, true, "key.pem holds no usable private key: there is none in PEM"),
            (
                &good,
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                true,
                "key.pem holds no usable private key: ",
            ),
            (&good, &other_key, true, "key.pem is not the key of "),
        ];
        for (certificate, key, about_key, expected) in cases {
            let (_folder, files) = Folder::new(certificate, key);
            let error = files.load(day(20_005)).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}, not {expected}");
            assert_eq!(error.is_about_key(), about_key, "{error}");
        }
    }

    #[test]
    fn files_that_are_not_there_or_too_large_are_named() {
        let (certificate, key) = made("a.example", 20_000..20_010);
        let (folder, files) = Folder::new(&certificate, &key);
        let gone = Files { key: folder.0.path().join("gone.pem"), ..files.clone() };
        let error = gone.load(day(20_005)).expect_err("no key").to_string();
        assert!(error.contains("gone.pem: No such file"), "{error}");
        fs::write(&files.certificate, vec![b'x'; MAX_FILE_BYTES as usize + 1]).expect("written");
        let error = files.load(day(20_005)).expect_err("too large").to_string();
        assert!(error.contains("certificate.pem: it has more than 262144 bytes"), "{error}");
    }

    #[test]
    fn a_file_moved_over_another_of_the_same_size_and_time_is_a_change() {
        let (folder, files) = Folder::new("one", "two");
        let before = files.stamp();
        assert_eq!(before, files.stamp());
        let next = folder.0.path().join("next");
        fs::write(&next, "six").expect("written");
        let modified = fs::metadata(&files.certificate).and_then(|m| m.modified()).expect("a time");
        let file = fs::File::options().write(true).open(&next).expect("opened");
        file.set_modified(modified).expect("set");
        fs::rename(&next, &files.certificate).expect("moved");
        assert_ne!(before, files.stamp());
    }
}

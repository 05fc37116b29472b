//! Keys of packets, kept as what they are made from.
//!
//! A cipher works with a schedule that is computed from its key: of AES-GCM some
//! 600 bytes. A connection has four of them, two for a key update that may never
//! come, and uses the others for a few packets a second, when they have long left
//! the caches. Here a key is kept as its bytes, and its schedule is made for each
//! packet: sealing 560 bytes takes 0.3 µs with it, and 0.55 to 1.2 µs with a
//! schedule that has to come from memory (measured, AES-128 and AES-256).
//!
//! What hides headers stays as it is: its schedule takes 0.25 µs to make and less
//! than 0.1 µs to fetch.
//!
//! rustls lets a suite bring its own keys for QUIC; handshakes, secrets and
//! derivations stay its own.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::crypto::cipher::{self, AeadKey, Iv};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::quic::{self, Tag};
use rustls::{CipherSuite, Error, SupportedCipherSuite, Tls13CipherSuite};

use crate::tls::provider;

/// What protects packets under one cipher suite (RFC 9001, section 5).
struct Protection {
    suite: CipherSuite,
    packet: &'static Algorithm,
    /// Packets that one key may seal, and that it may fail to open (RFC 9001,
    /// section 6.6 and appendix B).
    sealed: u64,
    refused: u64,
}

static PROTECTIONS: [&Protection; 3] = [
    &Protection {
        suite: CipherSuite::TLS13_AES_256_GCM_SHA384,
        packet: &AES_256_GCM,
        sealed: 1 << 23,
        refused: 1 << 52,
    },
    &Protection {
        suite: CipherSuite::TLS13_AES_128_GCM_SHA256,
        packet: &AES_128_GCM,
        sealed: 1 << 23,
        refused: 1 << 52,
    },
    &Protection {
        suite: CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        packet: &CHACHA20_POLY1305,
        sealed: u64::MAX,
        refused: 1 << 36,
    },
];

/// Makes the keys of packets as above, and those of headers as rustls does.
struct Compact {
    of: &'static Protection,
    headers: &'static dyn quic::Algorithm,
}

static COMPACT: LazyLock<Vec<Compact>> = LazyLock::new(|| {
    let tls13 = provider().cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
    let known = tls13.filter_map(|suite| {
        let of = PROTECTIONS.iter().find(|of| of.suite == suite.common.suite)?;
        Some(Compact { of, headers: suite.quic? })
    });
    known.collect()
});

/// The suites of TLS 1.3, each with the keys of this module.
static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let tls13 = provider().cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
    tls13.filter_map(with_these_keys).collect()
});

fn with_these_keys(suite: &Tls13CipherSuite) -> Option<Tls13CipherSuite> {
    let CipherSuiteCommon { suite: name, hash_provider, confidentiality_limit } = suite.common;
    let compact = COMPACT.iter().find(|compact| compact.of.suite == name)?;
    Some(Tls13CipherSuite {
        common: CipherSuiteCommon { suite: name, hash_provider, confidentiality_limit },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: Some(compact),
    })
}

/// The cryptography of everything else, but of TLS 1.3 alone, and with the keys
/// of this module for QUIC.
#[must_use]
pub fn compact() -> Arc<CryptoProvider> {
    let cipher_suites = SUITES.iter().map(SupportedCipherSuite::Tls13).collect();
    Arc::new(CryptoProvider { cipher_suites, ..CryptoProvider::clone(provider()) })
}

impl quic::Algorithm for Compact {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn quic::PacketKey> {
        Box::new(PacketKey { of: self.of, key, iv })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn quic::HeaderProtectionKey> {
        self.headers.header_protection_key(key)
    }

    fn aead_key_len(&self) -> usize {
        self.of.packet.key_len()
    }
}

/// Seals or opens packets.
struct PacketKey {
    of: &'static Protection,
    key: AeadKey,
    iv: Iv,
}

impl PacketKey {
    fn schedule(&self) -> Result<LessSafeKey, Error> {
        UnboundKey::new(self.of.packet, self.key.as_ref())
            .map(LessSafeKey::new)
            .map_err(|_| Error::General("no key of this length".into()))
    }

    /// No number comes twice under one key, and so no nonce (RFC 9001, section
    /// 5.3).
    fn nonce(&self, packet: u64) -> Nonce {
        Nonce::assume_unique_for_key(cipher::Nonce::new(&self.iv, packet).0)
    }
}

impl quic::PacketKey for PacketKey {
    fn encrypt_in_place(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> Result<Tag, Error> {
        let tag = self
            .schedule()?
            .seal_in_place_separate_tag(self.nonce(packet), Aad::from(header), payload)
            .map_err(|_| Error::EncryptError)?;
        Ok(Tag::from(tag.as_ref()))
    }

    fn decrypt_in_place<'a>(
        &self,
        packet: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let opened = self.schedule()?.open_in_place(self.nonce(packet), Aad::from(header), payload);
        opened.map(|plain| &*plain).map_err(|_| Error::DecryptError)
    }

    fn tag_len(&self) -> usize {
        self.of.packet.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.of.sealed
    }

    fn integrity_limit(&self) -> u64 {
        self.of.refused
    }
}

#[cfg(test)]
mod tests {
    use rustls::Side;
    use rustls::quic::{Keys, Version};

    use super::*;

    /// Of one suite: rustls' keys and these, from the same secret.
    fn pairs() -> Vec<(Keys, Keys)> {
        let theirs = provider().cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
        theirs
            .map(|theirs| {
                let name = theirs.common.suite;
                let ours = SUITES.iter().find(|suite| suite.common.suite == name);
                let of = |suite: &'static Tls13CipherSuite| {
                    Keys::initial(
                        Version::V1,
                        suite,
                        suite.quic.expect("keys for QUIC"),
                        &[7; 8],
                        Side::Server,
                    )
                };
                (of(theirs), of(ours.expect("every suite has keys here")))
            })
            .collect()
    }

    #[test]
    fn packets_are_those_of_rustls_under_every_suite() {
        let pairs = pairs();
        assert_eq!(pairs.len(), PROTECTIONS.len());
        for (theirs, ours) in pairs {
            for (packet, length) in [(0, 0), (1, 20), (1 << 40, 1_200)] {
                let plain = vec![0x5a; length];
                let mut sealed = plain.clone();
                let tag = ours.local.packet.encrypt_in_place(packet, b"header", &mut sealed);
                let mut expected = plain.clone();
                let by_them =
                    theirs.local.packet.encrypt_in_place(packet, b"header", &mut expected);
                assert_eq!(sealed, expected);
                let tag = tag.expect("sealed");
                assert_eq!(tag.as_ref(), by_them.expect("sealed").as_ref());

                sealed.extend_from_slice(tag.as_ref());
                let mut spoilt = sealed.clone();
                let opened = ours.local.packet.decrypt_in_place(packet, b"header", &mut sealed);
                assert_eq!(opened.expect("opened"), plain);
                spoilt[length / 2] ^= 1;
                assert!(
                    ours.local.packet.decrypt_in_place(packet, b"header", &mut spoilt).is_err()
                );
            }
            let (ours, theirs) = (&ours.remote.packet, &theirs.remote.packet);
            assert_eq!(ours.tag_len(), theirs.tag_len());
            assert_eq!(ours.confidentiality_limit(), theirs.confidentiality_limit());
            assert_eq!(ours.integrity_limit(), theirs.integrity_limit());
        }
    }

    #[test]
    fn a_key_takes_one_line_of_memory() {
        assert!(size_of::<PacketKey>() <= 64);
    }
}

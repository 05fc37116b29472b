//! Keys of packets, kept as what they are made from.
//!
//! A cipher works with a schedule that is computed from its key: of AES-GCM some
//! 600 bytes. A connection has four of them, two for a key update that may never
//! come, and uses the others for a few packets a second, when they have long left
//! the caches. Here a key is kept as its bytes, and its schedule is made for each
//! packet: sealing 560 bytes takes 0.3 µs with it, and 0.55 to 1.2 µs with a
//! schedule that has to come from memory (measured, AES-128 and AES-256).
//!
//! What hides headers is one block of AES, and kept likewise: making its schedule
//! and using it takes 0.08 to 0.11 µs here, and as rustls has it, it is 520 bytes,
//! twice.
//!
//! rustls lets a suite bring its own keys for QUIC; handshakes, secrets and
//! derivations stay its own.

use std::alloc::Layout;
use std::sync::{Arc, LazyLock};

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128Enc, Aes256Enc, Block};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use bytes::BytesMut;
use quinn_proto::crypto::{self, CryptoError};
use rustls::crypto::cipher::{self, AeadKey, Iv};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::quic::{self, Tag};
use rustls::{CipherSuite, Error, SupportedCipherSuite, Tls13CipherSuite};

use crate::tls::provider;

/// What protects packets under one cipher suite (RFC 9001, section 5).
struct Protection {
    suite: CipherSuite,
    packet: &'static Algorithm,
    header: Header,
    /// Packets that one key may seal, and that it may fail to open (RFC 9001,
    /// section 6.6 and appendix B).
    sealed: u64,
    refused: u64,
}

/// What hides headers under it (RFC 9001, section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Aes128,
    Aes256,
    /// As rustls does it: it has no schedule.
    Theirs,
}

static PROTECTIONS: [&Protection; 3] = [
    &Protection {
        suite: CipherSuite::TLS13_AES_256_GCM_SHA384,
        packet: &AES_256_GCM,
        header: Header::Aes256,
        sealed: 1 << 23,
        refused: 1 << 52,
    },
    &Protection {
        suite: CipherSuite::TLS13_AES_128_GCM_SHA256,
        packet: &AES_128_GCM,
        header: Header::Aes128,
        sealed: 1 << 23,
        refused: 1 << 52,
    },
    &Protection {
        suite: CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        packet: &CHACHA20_POLY1305,
        header: Header::Theirs,
        sealed: u64::MAX,
        refused: 1 << 36,
    },
];

/// Makes keys that are kept as above.
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
        match self.of.header {
            Header::Theirs => self.headers.header_protection_key(key),
            cipher => Box::new(HeaderKey { cipher, key }),
        }
    }

    fn aead_key_len(&self) -> usize {
        self.of.packet.key_len()
    }
}

/// Seals or opens packets. One line of the caches, and nothing else of this trait has
/// an alignment like that; see [`packet_key`].
#[repr(align(64))]
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

/// Hides the numbers of packets, and finds them. As above.
#[repr(align(64))]
struct HeaderKey {
    cipher: Header,
    key: AeadKey,
}

/// The first bit of a packet with a long header (RFC 9000, section 17.2).
const LONG: u8 = 0x80;
/// Bits of the first byte that are hidden in a long header, and in a short one (RFC
/// 9001, section 5.4.1).
const HIDDEN_LONG: u8 = 0x0f;
const HIDDEN_SHORT: u8 = 0x1f;
/// Those that say how long the packet's number is, less one.
const NUMBER_LENGTH: u8 = 0x03;

impl HeaderKey {
    /// Bytes of a packet from which its mask is made (RFC 9001, section 5.4.3).
    const SAMPLE: usize = 16;

    fn mask(&self, sample: &[u8]) -> Result<Block, Error> {
        let mut block: Block =
            sample.try_into().map_err(|_| Error::General("no sample of this length".into()))?;
        let key = self.key.as_ref();
        let made = match self.cipher {
            Header::Aes128 => Aes128Enc::new_from_slice(key).map(|k| k.encrypt_block(&mut block)),
            Header::Aes256 | Header::Theirs => {
                Aes256Enc::new_from_slice(key).map(|k| k.encrypt_block(&mut block))
            }
        };
        made.map(|()| block).map_err(|_| Error::General("no key of this length".into()))
    }

    /// `plain` says how long the number is, from the first byte as it was hidden
    /// and as it is with the mask.
    fn apply(
        &self,
        sample: &[u8],
        first: &mut u8,
        number: &mut [u8],
        plain: impl Fn(u8, u8) -> u8,
    ) -> Result<(), Error> {
        let mask = self.mask(sample)?;
        let hidden = if *first & LONG == LONG { HIDDEN_LONG } else { HIDDEN_SHORT };
        let masked = *first ^ (mask[0] & hidden);
        let length = usize::from(plain(*first, masked) & NUMBER_LENGTH) + 1;
        *first = masked;
        for (byte, mask) in number.iter_mut().zip(&mask[1..]).take(length) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl quic::HeaderProtectionKey for HeaderKey {
    fn encrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, |before, _| before)
    }

    fn decrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, packet_number, |_, after| after)
    }

    fn sample_len(&self) -> usize {
        Self::SAMPLE
    }
}

/// A key for `quinn-proto`. It has a type of its own for keys, which is a box around
/// rustls' box; a key of this module needs no more than its own, and so one line of
/// memory less has to be fetched.
#[must_use]
pub fn packet_key(key: Box<dyn quic::PacketKey>) -> Box<dyn crypto::PacketKey> {
    if Layout::for_value(&*key) != Layout::new::<PacketKey>() {
        return Box::new(key);
    }
    // SAFETY: only types of rustls and of this module have the trait, as the
    // provider is this module's, and those of rustls have another layout.
    unsafe { Box::from_raw(Box::into_raw(key).cast::<PacketKey>()) }
}

/// The same of headers. That of ChaCha20 is rustls' own.
#[must_use]
pub fn header_key(key: Box<dyn quic::HeaderProtectionKey>) -> Box<dyn crypto::HeaderKey> {
    if Layout::for_value(&*key) != Layout::new::<HeaderKey>() {
        return Box::new(key);
    }
    // SAFETY: as above.
    unsafe { Box::from_raw(Box::into_raw(key).cast::<HeaderKey>()) }
}

impl crypto::PacketKey for PacketKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, payload) = buf.split_at_mut(header_len);
        let (payload, place) = payload.split_at_mut(payload.len() - self.of.packet.tag_len());
        match quic::PacketKey::encrypt_in_place(self, packet, header, payload) {
            Ok(tag) => place.copy_from_slice(tag.as_ref()),
            Err(_) => unreachable!("a packet is short enough for every cipher"),
        }
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let plain = quic::PacketKey::decrypt_in_place(self, packet, header, payload);
        let length = plain.map_err(|_| CryptoError)?.len();
        payload.truncate(length);
        Ok(())
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

impl HeaderKey {
    /// Where in a packet are the sample, the first byte, and what may be its number,
    /// which begins at `at` (RFC 9001, section 5.4.2).
    fn parts(packet: &mut [u8], at: usize) -> (&[u8], &mut u8, &mut [u8]) {
        let (header, rest) = packet.split_at_mut(at + 4);
        let (first, number) = header.split_at_mut(at);
        (&rest[..Self::SAMPLE], &mut first[0], number)
    }
}

impl crypto::HeaderKey for HeaderKey {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let (sample, first, number) = Self::parts(packet, pn_offset);
        let found = quic::HeaderProtectionKey::decrypt_in_place(self, sample, first, number);
        debug_assert!(found.is_ok(), "a sample is as long as it has to be");
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let (sample, first, number) = Self::parts(packet, pn_offset);
        let hidden = quic::HeaderProtectionKey::encrypt_in_place(self, sample, first, number);
        debug_assert!(hidden.is_ok(), "a sample is as long as it has to be");
    }

    fn sample_size(&self) -> usize {
        Self::SAMPLE
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
    fn headers_are_hidden_as_rustls_does_under_every_suite() {
        for (theirs, ours) in pairs() {
            assert_eq!(ours.local.header.sample_len(), theirs.local.header.sample_len());
            for first in 0..=u8::MAX {
                let sample: [u8; 16] = std::array::from_fn(|i| first.wrapping_mul(31) ^ i as u8);
                let number = [1, 2, 3, 4];
                let (mut hidden, mut number_hidden) = (first, number);
                let made =
                    ours.local.header.encrypt_in_place(&sample, &mut hidden, &mut number_hidden);
                made.expect("hidden");
                let (mut by_them, mut number_by_them) = (first, number);
                let made = theirs.local.header.encrypt_in_place(
                    &sample,
                    &mut by_them,
                    &mut number_by_them,
                );
                made.expect("hidden");
                assert_eq!((hidden, number_hidden), (by_them, number_by_them), "{first:#x}");

                let found =
                    ours.local.header.decrypt_in_place(&sample, &mut hidden, &mut number_hidden);
                found.expect("found");
                assert_eq!((hidden, number_hidden), (first, number), "{first:#x}");
            }
            let short = &[0; 15];
            let refused = ours.local.header.encrypt_in_place(short, &mut 0, &mut [0; 4]);
            assert!(refused.is_err());
        }
    }

    /// Whole packets, as `quinn-proto` seals and opens them, with its own box around
    /// rustls' keys on the other side.
    #[test]
    fn packets_for_quinn_are_those_of_rustls_under_every_suite() {
        for (theirs, ours) in pairs() {
            assert_ne!(
                Layout::for_value(&*theirs.local.packet),
                Layout::for_value(&*ours.local.packet)
            );
            let ours = (packet_key(ours.local.packet), header_key(ours.local.header));
            let theirs = (packet_key(theirs.local.packet), header_key(theirs.local.header));
            assert_eq!(ours.0.tag_len(), theirs.0.tag_len());
            assert_eq!(ours.0.integrity_limit(), theirs.0.integrity_limit());
            assert_eq!(ours.0.confidentiality_limit(), theirs.0.confidentiality_limit());
            assert_eq!(ours.1.sample_size(), theirs.1.sample_size());
            // A short header: a byte, an id of eight, a number of one to four.
            for (first, number) in [(0x40, 1), (0x41, 2), (0x42, 3), (0x43, 4), (0xc3, 4)] {
                let header = 9 + number;
                let mut plain: Vec<u8> = (0..header + 40 + 16).map(|i| i as u8).collect();
                plain[0] = first;
                let (mut sealed, mut by_them) = (plain.clone(), plain.clone());
                ours.0.encrypt(77, &mut sealed, header);
                ours.1.encrypt(9, &mut sealed);
                theirs.0.encrypt(77, &mut by_them, header);
                theirs.1.encrypt(9, &mut by_them);
                assert_eq!(sealed, by_them, "{first:#x}");

                ours.1.decrypt(9, &mut sealed);
                let mut payload = BytesMut::from(&sealed[header..]);
                ours.0.decrypt(77, &sealed[..header], &mut payload).expect("opened");
                assert_eq!(sealed[..header], plain[..header]);
                assert_eq!(payload, plain[header..header + 40]);
                let mut payload = BytesMut::from(&by_them[header..]);
                assert!(ours.0.decrypt(78, &plain[..header], &mut payload).is_err());
            }
        }
    }

    #[test]
    fn a_key_takes_one_line_of_memory() {
        assert_eq!(size_of::<PacketKey>(), 64);
        assert_eq!(size_of::<HeaderKey>(), 64);
    }
}

//! Who gives way first: the admission level of an event, and the keyed hash it
//! rests on.
//!
//! Overload control after DAGOR (Zhou et al., *Overload Control for Scaling
//! WeChat Microservices*, SoCC 2018): an event has a business priority B (the
//! [`Tier`] of its kind) and, because one tier is too coarse a valve, a user
//! priority U in 0..=127 (section 4.2.3). U is a hash of the user, so all events
//! of one user share one fate and a conversation is not torn apart; it changes
//! every hour, so nobody is at the bottom for ever; and it is keyed, so nobody
//! can choose a name that stands at the top.
//!
//! Among equals the earlier event wins. Equals are mostly events of the same
//! user, and this way who repeats himself displaces nobody, himself included:
//! what the room decided to shed stays shed, and sending more cannot change it.
//! Preferring the newest would keep buffered chat fresher, but everything that
//! is buffered leaves in the same frame, and staleness has its own rule: the
//! time to live.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use siphasher::sip128;
use siphasher::sip128::Hasher128;

use super::ids::Tier;
use super::priority::Priority;
use super::time::Time;

/// User levels run from 0 (most important) to this.
pub const LOWEST_USER_LEVEL: u8 = 127;

/// How long a user keeps a level.
const HOUR_MICROS: u64 = 3_600_000_000;

/// Secret of all keyed hashes of a server: user levels, remembered ids, merge
/// keys, flush phases. Nobody outside can aim for a collision or a good level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LevelKey {
    k0: u64,
    k1: u64,
}

/// Position of an event in the order of importance; the smaller matters more.
/// Field order is comparison order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Business priority.
    pub tier: Tier,
    /// User priority.
    pub level: u8,
    /// Position in the room's order of acceptance.
    pub order: u64,
}

/// The part of the secret that user levels of one hour rest on. An upstream
/// that is trusted to publish may have it, and then sheds before it sends; it
/// learns nothing of other hours, nor of the server's other hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HourKey {
    k0: u64,
    k1: u64,
    ends: Time,
}

/// What a hash is for; one input never has the same hash in two uses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    Level,
    EventId,
    Phase,
    SumByKey,
    SumByUserKey,
    LatestByKey,
    LatestByUserKey,
    Visitor,
}

impl LevelKey {
    /// From a random 128-bit seed.
    #[must_use]
    pub const fn from_seed(seed: u128) -> Self {
        Self { k0: seed as u64, k1: (seed >> 64) as u64 }
    }

    /// What this hour's user levels rest on.
    #[must_use]
    pub fn hour(&self, now: Time) -> HourKey {
        let hour = now.as_micros() / HOUR_MICROS;
        let mut hasher = sip128::SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write_u64((Use::Level as u64) | (hour << 8));
        let hash = hasher.finish128();
        let ends = Time::from_micros((hour + 1) * HOUR_MICROS);
        HourKey { k0: hash.h1, k1: hash.h2, ends }
    }

    /// The user's level in this hour: 0 to [`LOWEST_USER_LEVEL`], smaller is more important.
    #[must_use]
    pub fn user_level(&self, user: &str, now: Time) -> u8 {
        self.hour(now).user_level(user)
    }

    /// 64 bits of `text` for one use.
    pub(super) fn hash64(&self, purpose: Use, text: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write_u64(purpose as u64);
        hasher.write(text.as_bytes());
        hasher.finish()
    }

    /// A user's hash for counting different ones.
    #[must_use]
    pub fn visitor(&self, user: &str) -> u64 {
        self.hash128(Use::Visitor, [user]) as u64
    }

    /// 128 bits of `parts` for one use: two inputs that differ have the same
    /// hash so rarely (about 2^-64 after 2^32 inputs) that the hash can stand
    /// for them. Lengths are hashed too, so parts cannot run into each other.
    pub(super) fn hash128<const N: usize>(&self, purpose: Use, parts: [&str; N]) -> u128 {
        let mut hasher = sip128::SipHasher13::new_with_keys(self.k0, self.k1);
        for part in parts {
            hasher.write_u64((purpose as u64) | ((part.len() as u64) << 8));
            hasher.write(part.as_bytes());
        }
        hasher.finish128().as_u128()
    }
}

impl HourKey {
    /// From [`to_bits`](Self::to_bits), good until `ends`.
    #[must_use]
    pub const fn from_bits(bits: u128, ends: Time) -> Self {
        Self { k0: bits as u64, k1: (bits >> 64) as u64, ends }
    }

    /// The key as one number.
    #[must_use]
    pub const fn to_bits(self) -> u128 {
        (self.k1 as u128) << 64 | self.k0 as u128
    }

    /// When the next hour's key takes over.
    #[must_use]
    pub const fn ends(self) -> Time {
        self.ends
    }

    /// The user's level: 0 to [`LOWEST_USER_LEVEL`], smaller is more important.
    #[must_use]
    pub fn user_level(&self, user: &str) -> u8 {
        (self.hash(user, 0) & u64::from(LOWEST_USER_LEVEL)) as u8
    }

    /// Where an event of `user` with this `id` stands.
    #[must_use]
    pub fn priority(&self, tier: Tier, user: &str, id: &str) -> Priority {
        let hash = self.hash(user, 0);
        let level = (hash & u64::from(LOWEST_USER_LEVEL)) as u8;
        let of_user = (hash >> 8) as u16 & 0xff00;
        let of_event = self.hash(id, 1) as u16 & 0xff;
        Priority::new(tier, level, of_user | of_event)
    }

    fn hash(&self, text: &str, purpose: u8) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write_u8(purpose);
        hasher.write(text.as_bytes());
        hasher.finish()
    }
}

impl fmt::Debug for HourKey {
    /// Keeps the secret out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HourKey(..)")
    }
}

impl fmt::Debug for LevelKey {
    /// Keeps the secret out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: LevelKey = LevelKey::from_seed(0x0123_4567_89ab_cdef_1122_3344_5566_7788);
    const NOON: Time = Time::from_millis(1_700_000_000_000);

    #[test]
    fn a_user_keeps_the_level_for_an_hour_and_users_spread_evenly() {
        let hour = std::time::Duration::from_secs(3_600);
        let (mut seen, mut changed) = ([0u32; 128], 0);
        for i in 0..12_800 {
            let user = format!("u{i}");
            let level = KEY.user_level(&user, NOON);
            assert_eq!(level, KEY.user_level(&user, NOON));
            changed += u32::from(level != KEY.user_level(&user, NOON + hour));
            seen[usize::from(level)] += 1;
        }
        assert!(changed > 12_500, "levels move every hour: {changed}");
        assert!(seen.iter().all(|&n| (50..200).contains(&n)), "{seen:?}");
    }

    #[test]
    fn another_key_gives_other_levels() {
        let other = LevelKey::from_seed(1);
        let same = (0..1_000)
            .filter(|i| {
                let user = i.to_string();
                KEY.user_level(&user, NOON) == other.user_level(&user, NOON)
            })
            .count();
        assert!(same < 40, "{same}");
    }

    #[test]
    fn parts_and_uses_do_not_run_into_each_other() {
        let a = KEY.hash128(Use::SumByKey, ["ab", "c"]);
        assert_ne!(a, KEY.hash128(Use::SumByKey, ["a", "bc"]));
        assert_ne!(a, KEY.hash128(Use::LatestByKey, ["ab", "c"]));
    }

    #[test]
    fn an_upstream_with_the_hours_key_finds_the_same_priorities_and_no_others() {
        let hour = KEY.hour(NOON);
        assert!(hour.ends() > NOON);
        let upstream = HourKey::from_bits(hour.to_bits(), hour.ends());
        let next = KEY.hour(hour.ends());
        assert_ne!(next.to_bits(), hour.to_bits());
        for i in 0..100 {
            let user = format!("u{i}");
            let here = hour.priority(Tier(3), &user, "e");
            assert_eq!(upstream.priority(Tier(3), &user, "e"), here);
            assert_eq!(here.cell(), 3 * 128 + usize::from(KEY.user_level(&user, NOON)));
        }
    }

    #[test]
    fn events_of_one_user_share_a_cell_and_can_be_told_apart_within_it() {
        let hour = KEY.hour(NOON);
        let positions: std::collections::HashSet<_> =
            (0..1_000).map(|i| hour.priority(Tier(3), "u", &i.to_string())).collect();
        let cells: std::collections::HashSet<_> = positions.iter().map(|p| p.cell()).collect();
        assert_eq!(cells.len(), 1);
        assert!(positions.len() > 200, "{}", positions.len());
    }

    #[test]
    fn tier_outranks_level_and_level_outranks_age() {
        let rank = |tier, level, order| Rank { tier: Tier(tier), level, order };
        let mut ranks = [rank(1, 0, 0), rank(0, 9, 5), rank(0, 9, 4), rank(0, 1, 9)];
        ranks.sort_unstable();
        assert_eq!(ranks, [rank(0, 1, 9), rank(0, 9, 4), rank(0, 9, 5), rank(1, 0, 0)]);
    }
}

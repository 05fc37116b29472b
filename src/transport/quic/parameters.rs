//! How many connection ids a client is given.
//!
//! It says how many it would keep, and `quinn-proto` gives it as many, up to
//! eight. Each stands in a table of the endpoint and in two of the connection, and
//! these double: with more than three, both of the connection's do. So what the
//! client says is lowered on its way in.

use quinn_proto::VarInt;
use quinn_proto::coding::Codec as _;

/// Connection ids that a client has at a time: one in use, one to move on with
/// (RFC 9000, section 9.5), and one more in case it moves again before the next
/// has come.
const MOST_IDS: VarInt = VarInt::from_u32(3);

/// The transport parameter that says how many a client would keep; not less than
/// two (RFC 9000, section 18.2).
const ACTIVE_CONNECTION_ID_LIMIT: u64 = 0x0e;

/// A client's transport parameters (RFC 9000, section 18), of which it keeps
/// fewer connection ids than it might. What is malformed stays as it is.
pub(super) fn with_few_ids(parameters: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parameters.len());
    let mut rest = parameters;
    while let Some((id, value, behind)) = split(rest) {
        if id == ACTIVE_CONNECTION_ID_LIMIT && integer(value).is_some_and(|n| n > MOST_IDS) {
            for number in [VarInt::from_u32(id as u32), VarInt::from_u32(1), MOST_IDS] {
                number.encode(&mut out);
            }
        } else {
            out.extend_from_slice(&rest[..rest.len() - behind.len()]);
        }
        rest = behind;
    }
    out.extend_from_slice(rest);
    out
}

/// The first parameter's id and value, and what follows.
fn split(parameters: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let mut rest = parameters;
    let id = VarInt::decode(&mut rest).ok()?.into_inner();
    let length = VarInt::decode(&mut rest).ok()?.into_inner();
    let (value, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((id, value, behind))
}

/// The integer that is all of `value`.
fn integer(mut value: &[u8]) -> Option<VarInt> {
    VarInt::decode(&mut value).ok().filter(|_| value.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_that_would_keep_many_ids_keeps_three() {
        for (said, heard) in [(2, 2), (3, 3), (4, 3), (8, 3), (1 << 20, 3)] {
            let mut parameters = vec![0x04, 0x04, 0x80, 0x01, 0x00, 0x00];
            let behind = [0x0f, 0x02, 0xab, 0xcd];
            let mut lowered = parameters.clone();
            for (limit, out) in [(said, &mut parameters), (heard, &mut lowered)] {
                let limit = VarInt::from_u32(limit);
                let mut value = Vec::new();
                limit.encode(&mut value);
                out.extend([0x0e, value.len() as u8]);
                out.extend(value);
                out.extend(behind);
            }
            assert_eq!(with_few_ids(&parameters), lowered, "{said}");
        }
    }

    #[test]
    fn a_limit_that_is_not_one_stays_for_the_reader_to_refuse() {
        for malformed in [&[0x0e, 2, 5, 5][..], &[0x0e, 0], &[0x0e, 1], &[0x0e, 9, 5], &[0x0e]] {
            assert_eq!(with_few_ids(malformed), malformed);
        }
    }

    proptest! {
        /// Whatever comes: nothing but the one value changes, and it does once.
        #[test]
        fn the_rest_is_as_it_was(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let once = with_few_ids(&bytes);
            prop_assert_eq!(with_few_ids(&once), once.clone());
            if !bytes.contains(&(ACTIVE_CONNECTION_ID_LIMIT as u8)) {
                prop_assert_eq!(once, bytes);
            }
        }
    }
}

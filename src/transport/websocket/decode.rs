//! From the bytes of one connection to its messages, without I/O.
//!
//! Bytes come in whatever pieces the socket has; [`Decoder::feed`] hands out
//! each complete message. A decoder between two messages holds nothing, so its
//! owner drops it: only a connection in the middle of a message has one.
//!
//! The size limit holds at every step: for a frame's declared length before a
//! byte of it is kept, for the sum of a message's fragments, and for what a
//! compressed message inflates to.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::wire::close::CloseReason;
use crate::wire::deflate::{InflateError, Inflater};

/// Longest header a client sends: 2 bytes, 8 of length, 4 of mask.
const MAX_HEADER: usize = 14;
/// Longest payload of a control frame (RFC 6455, section 5.5).
const MAX_CONTROL: u64 = 125;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// A whole text message, valid UTF-8.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with the same bytes.
    Ping(&'a [u8]),
    /// Answers a ping.
    Pong,
    /// Goodbye; the code to answer with, if it gave one.
    Close(Option<u16>),
}

/// Rules of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// permessage-deflate was negotiated.
    pub deflate: bool,
    /// Largest message in bytes, inflated.
    pub max_message: usize,
}

/// A message whose frames are still coming.
#[derive(Debug)]
struct Partial {
    text: bool,
    compressed: bool,
    data: Vec<u8>,
    /// How far `data` is known to be UTF-8 (text that is not compressed).
    valid: usize,
}

/// The frame being received.
#[derive(Debug)]
struct Current {
    header: FrameHeader,
    /// Payload bytes still to come.
    left: u64,
    /// Payload bytes already unmasked, for the mask's phase.
    done: usize,
    /// Payload of a control frame, kept apart from the message around it.
    control: Vec<u8>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes of an incomplete header.
    head: Vec<u8>,
    current: Option<Current>,
    message: Option<Partial>,
}

impl Decoder {
    /// Whether nothing has begun that is not complete.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.head.is_empty() && self.current.is_none() && self.message.is_none()
    }

    /// Takes bytes, and gives every message that they complete to `each`, until
    /// that returns false.
    ///
    /// # Errors
    /// The reason to close the connection with. Nothing may be fed after that.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        rules: Rules,
        inflater: &mut Inflater,
        each: &mut dyn FnMut(Inbound<'_>) -> bool,
    ) -> Result<(), CloseReason> {
        loop {
            if self.current.is_none() {
                let Some(current) = self.read_header(&mut input, rules)? else { return Ok(()) };
                self.current = Some(current);
            }
            let Some(current) = &mut self.current else { return Ok(()) };
            let take = usize::try_from(current.left).unwrap_or(usize::MAX).min(input.len());
            let (bytes, rest) = input.split_at(take);
            input = rest;
            let mask = current.header.mask.unwrap_or_default();
            let target = match (current.header.opcode, &mut self.message) {
                (OpCode::Data(_), Some(message)) => &mut message.data,
                _ => &mut current.control,
            };
            unmask_into(target, bytes, mask, current.done);
            current.done += take;
            current.left -= take as u64;
            if current.left > 0 {
                return self.check_utf8(false);
            }
            let Some(current) = self.current.take() else { return Ok(()) };
            if !self.finish_frame(&current, rules, inflater, each)? {
                return Ok(());
            }
        }
    }

    /// The next frame's header, once it is complete and allowed.
    fn read_header(
        &mut self,
        input: &mut &[u8],
        rules: Rules,
    ) -> Result<Option<Current>, CloseReason> {
        if input.is_empty() && self.head.is_empty() {
            return Ok(None);
        }
        let before = self.head.len();
        let take = input.len().min(MAX_HEADER - before);
        self.head.extend_from_slice(&input[..take]);
        let mut cursor = Cursor::new(&self.head);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CloseReason::ProtocolError)?;
        let Some((header, length)) = parsed else {
            *input = &input[take..];
            if self.head.len() >= 2 {
                // What two bytes show is judged at once.
                early_check(&self.head, rules)?;
            }
            return Ok(None);
        };
        let used = cursor.position() as usize;
        *input = &input[used - before..];
        self.head = Vec::new();
        self.check_header(&header, length, rules)?;
        Ok(Some(Current { header, left: length, done: 0, control: Vec::new() }))
    }

    fn check_header(
        &mut self,
        header: &FrameHeader,
        length: u64,
        rules: Rules,
    ) -> Result<(), CloseReason> {
        let unknown_bits = header.rsv2 || header.rsv3 || (header.rsv1 && !rules.deflate);
        if header.mask.is_none() || unknown_bits {
            return Err(CloseReason::ProtocolError);
        }
        let begun = match header.opcode {
            OpCode::Control(_) => {
                let legal = header.is_final && !header.rsv1 && length <= MAX_CONTROL;
                return if legal { Ok(()) } else { Err(CloseReason::ProtocolError) };
            }
            OpCode::Data(Data::Continue) => {
                let message = self.message.as_ref().filter(|_| !header.rsv1);
                message.ok_or(CloseReason::ProtocolError)?.data.len()
            }
            OpCode::Data(kind) => {
                if self.message.is_some() {
                    return Err(CloseReason::ProtocolError);
                }
                self.message = Some(Partial {
                    text: kind == Data::Text,
                    compressed: header.rsv1,
                    data: Vec::new(),
                    valid: 0,
                });
                0
            }
        };
        // Compressed bytes are held to the same limit as what they inflate to.
        if length.saturating_add(begun as u64) > rules.max_message as u64 {
            return Err(CloseReason::MessageTooLarge);
        }
        Ok(())
    }

    /// Returns false when whoever listens wants no more.
    fn finish_frame(
        &mut self,
        current: &Current,
        rules: Rules,
        inflater: &mut Inflater,
        each: &mut dyn FnMut(Inbound<'_>) -> bool,
    ) -> Result<bool, CloseReason> {
        match current.header.opcode {
            OpCode::Control(Control::Ping) => Ok(each(Inbound::Ping(&current.control))),
            OpCode::Control(Control::Pong) => Ok(each(Inbound::Pong)),
            OpCode::Control(_) => {
                each(Inbound::Close(close_code(&current.control)?));
                Ok(false)
            }
            OpCode::Data(_) if !current.header.is_final => self.check_utf8(false).map(|()| true),
            OpCode::Data(_) => {
                self.check_utf8(true)?;
                let Some(message) = self.message.take() else { return Ok(true) };
                deliver(message, rules, inflater, each)
            }
        }
    }

    /// Text must be UTF-8, and is refused as soon as it cannot be any more
    /// (RFC 6455, section 8.1).
    fn check_utf8(&mut self, complete: bool) -> Result<(), CloseReason> {
        let Some(message) = self.message.as_mut().filter(|m| m.text && !m.compressed) else {
            return Ok(());
        };
        match std::str::from_utf8(&message.data[message.valid..]) {
            Ok(_) => message.valid = message.data.len(),
            Err(error) if !complete && error.error_len().is_none() => {
                message.valid += error.valid_up_to();
            }
            Err(_) => return Err(CloseReason::InvalidData),
        }
        Ok(())
    }
}

/// Judges the first two bytes of a header whose length or mask is still to come.
fn early_check(head: &[u8], rules: Rules) -> Result<(), CloseReason> {
    let rsv1_allowed = rules.deflate && head[0] & 0x08 == 0;
    let reserved = if rsv1_allowed { 0x30 } else { 0x70 };
    let unmasked = head[1] & 0x80 == 0;
    let long_control = head[0] & 0x08 != 0 && head[1] & 0x7f > 125;
    if head[0] & reserved != 0 || unmasked || long_control {
        return Err(CloseReason::ProtocolError);
    }
    Ok(())
}

fn deliver(
    message: Partial,
    rules: Rules,
    inflater: &mut Inflater,
    each: &mut dyn FnMut(Inbound<'_>) -> bool,
) -> Result<bool, CloseReason> {
    let data = if message.compressed {
        let inflated = inflater.inflate(&message.data, rules.max_message);
        inflated.map_err(|error| match error {
            InflateError::TooLarge => CloseReason::MessageTooLarge,
            InflateError::Corrupt => CloseReason::InvalidData,
        })?
    } else {
        message.data
    };
    if !message.text {
        return Ok(each(Inbound::Binary(&data)));
    }
    if message.compressed && std::str::from_utf8(&data).is_err() {
        return Err(CloseReason::InvalidData);
    }
    Ok(each(Inbound::Text(&data)))
}

/// Appends `bytes`, which begin `done` bytes into their frame, unmasked.
fn unmask_into(target: &mut Vec<u8>, bytes: &[u8], mut mask: [u8; 4], done: usize) {
    let start = target.len();
    target.extend_from_slice(bytes);
    mask.rotate_left(done % 4);
    let mut chunks = target[start..].chunks_exact_mut(4);
    for chunk in &mut chunks {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// The code to answer a close frame with.
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    match payload {
        [] => Ok(None),
        [_] => Err(CloseReason::ProtocolError),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !CloseCode::from(code).is_allowed() {
                return Err(CloseReason::ProtocolError);
            }
            std::str::from_utf8(reason).map_err(|_| CloseReason::InvalidData)?;
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::deflate::Deflater;

    const RULES: Rules = Rules { deflate: true, max_message: 1_000 };

    /// A client's frame. `first` is the whole first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let mut out = vec![first];
        match payload.len() {
            n @ 0..=125 => out.push(0x80 | n as u8),
            n @ 126..=65_535 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        out
    }

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<String>, bool), CloseReason> {
        let mut decoder = Decoder::default();
        let mut inflater = Inflater::default();
        let mut seen = Vec::new();
        for piece in pieces {
            decoder.feed(piece, RULES, &mut inflater, &mut |message| {
                seen.push(format!("{message:?}"));
                true
            })?;
        }
        Ok((seen, decoder.is_idle()))
    }

    fn shown(message: Inbound<'_>) -> String {
        format!("{message:?}")
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_the_bytes_are_cut(
            cuts in prop::collection::vec(0usize..2_000, 0..12)
        ) {
            let long = vec![b'x'; 300];
            let small = Deflater::new(3).compress(b"squeezed squeezed squeezed");
            let stream = [
                frame(0x01, "hé".as_bytes()),
                frame(0x89, b"in between"),
                frame(0x80, b"llo"),
                frame(0x82, &long),
                frame(0xc1, &small),
                frame(0x8a, b""),
                frame(0x88, &[0x03, 0xe8]),
            ].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % stream.len()).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            pieces.push(&stream[from..]);
            let expected = vec![
                shown(Inbound::Ping(b"in between")),
                shown(Inbound::Text("héllo".as_bytes())),
                shown(Inbound::Binary(&long)),
                shown(Inbound::Text(b"squeezed squeezed squeezed")),
                shown(Inbound::Pong),
                shown(Inbound::Close(Some(1000))),
            ];
            prop_assert_eq!(decode(&pieces), Ok((expected, true)));
        }

        #[test]
        fn no_input_makes_it_panic_or_hold_more_than_the_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..4_000)
        ) {
            let mut decoder = Decoder::default();
            let mut inflater = Inflater::default();
            for piece in bytes.chunks(7) {
                let result = decoder.feed(piece, RULES, &mut inflater, &mut |_| true);
                let held = decoder.message.as_ref().map_or(0, |m| m.data.len());
                prop_assert!(held <= RULES.max_message);
                if result.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn every_broken_rule_has_its_close_code() {
        let fragment = frame(0x01, b"a");
        let cases: Vec<(&str, Vec<u8>, CloseReason)> = vec![
            ("unmasked", vec![0x81, 0x02, b'h', b'i'], CloseReason::ProtocolError),
            ("reserved bit", frame(0xa1, b"x"), CloseReason::ProtocolError),
            ("reserved opcode", frame(0x83, b"x"), CloseReason::ProtocolError),
            ("fragmented ping", frame(0x09, b"x"), CloseReason::ProtocolError),
            ("long ping", frame(0x89, &[0; 126]), CloseReason::ProtocolError),
            ("compressed ping", frame(0xc9, b"x"), CloseReason::ProtocolError),
            ("continuation of nothing", frame(0x80, b"x"), CloseReason::ProtocolError),
            (
                "message in a message",
                [fragment.clone(), frame(0x81, b"x")].concat(),
                CloseReason::ProtocolError,
            ),
            ("oversized", frame(0x82, &[0; 1_001]), CloseReason::MessageTooLarge),
            (
                "oversized in fragments",
                [frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat(),
                CloseReason::MessageTooLarge,
            ),
            (
                "bomb",
                frame(0xc2, &Deflater::new(9).compress(&[0; 50_000])),
                CloseReason::MessageTooLarge,
            ),
            ("not deflate", frame(0xc2, &[0xff; 20]), CloseReason::InvalidData),
            ("not UTF-8", frame(0x81, &[0xff]), CloseReason::InvalidData),
            ("not UTF-8, unfinished", frame(0x01, &[b'a', 0xff]), CloseReason::InvalidData),
            ("close with one byte", frame(0x88, &[3]), CloseReason::ProtocolError),
            (
                "close with a reserved code",
                frame(0x88, &1005u16.to_be_bytes()),
                CloseReason::ProtocolError,
            ),
        ];
        for (name, bytes, reason) in cases {
            assert_eq!(decode(&[&bytes]), Err(reason), "{name}");
        }
    }

    #[test]
    fn a_declared_size_is_refused_before_its_bytes_come() {
        let giant = frame(0x82, &vec![0; 100_000]);
        assert_eq!(decode(&[&giant[..14]]), Err(CloseReason::MessageTooLarge));
    }
}

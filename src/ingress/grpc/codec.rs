//! Messages between tonic's framing and ours. Requests stay bytes: what is in
//! them is read piece by piece, as far as it is needed.

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::wire::proto::v1;

/// Bytes in, [`v1::PublishResponse`] out.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublishCodec;

impl Codec for PublishCodec {
    type Encode = v1::PublishResponse;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for PublishCodec {
    type Item = v1::PublishResponse;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for PublishCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

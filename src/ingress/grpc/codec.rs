//! Messages between tonic's framing and ours. Requests stay bytes: what is in
//! them is read piece by piece, as far as it is needed.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes in, answers of one sort out.
#[derive(Debug)]
pub(super) struct Answering<M>(PhantomData<fn(M)>);

impl<M> Default for Answering<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + 'static> Codec for Answering<M> {
    type Encode = M;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<M: Message> Encoder for Answering<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M> Decoder for Answering<M> {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

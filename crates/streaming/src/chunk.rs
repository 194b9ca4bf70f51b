//! A buffer with room in front for the head of whatever frame it will travel in, so that a chunk is written at once.

use std::io;

use bytes::BytesMut;

/// Bytes kept free in front: the head of a SPDY data frame; a WebSocket channel takes the last of them.
pub(crate) const ROOM: usize = 8;
/// Most bytes of one chunk: large ones make large transfers cheap.
const LARGE: usize = 128 << 10;
/// Bytes of a chunk that has not been full yet: most sessions say little.
const SMALL: usize = 4 << 10;

/// Bytes on their way to a client.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// [`ROOM`], then the payload.
    pub(crate) bytes: BytesMut,
    size: usize,
}

impl Chunk {
    pub(crate) fn new() -> Self {
        Self { bytes: BytesMut::new(), size: SMALL }
    }

    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut bytes = BytesMut::zeroed(ROOM);
        bytes.extend_from_slice(payload);
        Self { bytes, size: SMALL }
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(ROOM..).unwrap_or_default()
    }

    /// Replaces the payload by what `read` appends.
    pub(crate) fn fill(
        &mut self,
        read: impl FnOnce(&mut BytesMut) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.bytes.len() == ROOM + self.size {
            self.size = LARGE;
        }
        self.bytes.clear();
        self.bytes.reserve(ROOM + self.size);
        self.bytes.resize(ROOM, 0);
        read(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_grows_once_it_was_full() {
        let mut chunk = Chunk::new();
        let mut fill = |length: usize| {
            let n = chunk.fill(|bytes| {
                let room = bytes.capacity() - bytes.len();
                bytes.extend_from_slice(&vec![1; length.min(room)]);
                Ok(length.min(room))
            });
            (n.unwrap(), chunk.payload().len())
        };
        assert_eq!(fill(5), (5, 5));
        assert_eq!(fill(1 << 20), (SMALL, SMALL));
        assert_eq!(fill(1 << 20), (LARGE, LARGE));
    }
}

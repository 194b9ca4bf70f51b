//! A buffer with room in front for the head of whatever frame it will travel in, so that a chunk is written at once.

use std::io;

use bytes::BytesMut;

/// Bytes kept free in front: for the head of a WebSocket frame and its channel; one of SPDY is shorter.
pub(crate) const ROOM: usize = 11;
/// Most bytes of one chunk: large ones make large transfers cheap.
const LARGE: usize = 128 << 10;
/// Bytes of a chunk that has not been full yet: most sessions say little.
const SMALL: usize = 4 << 10;

/// Bytes on their way to a client.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// [`ROOM`], then the payload.
    bytes: BytesMut,
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

    /// Whether memory is held, for a payload or from the last one.
    pub(crate) fn is_held(&self) -> bool {
        self.bytes.capacity() > 0
    }

    /// The payload right behind `head`, which has at most [`ROOM`] bytes.
    pub(crate) fn behind(&mut self, head: &[u8]) -> &[u8] {
        let from = ROOM - head.len();
        self.bytes[from..ROOM].copy_from_slice(head);
        &self.bytes[from..]
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
    fn heads_of_any_length_stand_right_before_the_payload() {
        let mut chunk = Chunk::of(b"payload");
        assert_eq!(chunk.behind(b"12345678"), b"12345678payload");
        assert_eq!(chunk.behind(b"1"), b"1payload");
        assert_eq!(chunk.behind(b"12345678901"), b"12345678901payload");
    }

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

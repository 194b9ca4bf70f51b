//! Buffers that come back when nobody looks at them any more. A fresh one of this size is a fresh mapping, and costs a
//! page fault every 4 KiB: a quarter of a move's CPU time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::protocol::PIECE;

/// Room for a piece and what a frame has around it, in bytes.
const ROOM: usize = PIECE + 64;
/// Kept while nobody uses them: bounds what an idle connection holds.
const KEPT: usize = 40;

/// Where buffers come from and go back to.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer to fill; [`Piece::take`] makes bytes of it.
#[derive(Debug)]
pub(super) struct Piece {
    buffer: Box<[u8]>,
    used: usize,
    home: Pieces,
}

impl Pieces {
    /// One with room for at least `length` bytes, of any contents.
    pub fn get(&self, length: usize) -> Piece {
        let kept = if length <= ROOM { self.kept().pop() } else { None };
        let buffer = kept.unwrap_or_else(|| vec![0; length.max(ROOM)].into_boxed_slice());
        Piece { buffer, used: 0, home: self.clone() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    /// All of its room.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Its first `used` bytes.
    pub fn take(mut self, used: usize) -> Bytes {
        self.used = used.min(self.buffer.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.used]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut kept = self.home.kept();
        if buffer.len() == ROOM && kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_the_last_look_at_it() {
        let pieces = Pieces::default();
        let mut piece = pieces.get(3);
        piece.room()[..3].copy_from_slice(b"abc");
        let whole = piece.take(3);
        let part = whole.slice(1..2);
        drop(whole);
        assert_eq!((&part[..], pieces.kept().len()), (&b"b"[..], 0));
        drop(part);
        assert_eq!(pieces.kept().len(), 1);
        drop(pieces.get(ROOM + 1));
        assert_eq!(pieces.kept().len(), 1, "one of another size is not kept");
    }
}

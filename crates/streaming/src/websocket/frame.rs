//! Frames that a server sends (RFC 6455, section 5.2): whole, and without a mask.

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

/// The head of a frame and the bytes of it that are in use.
pub(super) struct Head([u8; 10], usize);

impl Head {
    /// In the shortest of the three forms, as the RFC asks.
    pub(super) fn new(opcode: Opcode, length: usize) -> Self {
        const FIN: u8 = 0x80;
        let long = (length as u64).to_be_bytes();
        let mut head = [0; 10];
        head[0] = FIN | opcode as u8;
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..126), _) => {
                head[1] = short;
                Self(head, 2)
            }
            (_, Ok(middle)) => {
                head[1] = 126;
                head[2..4].copy_from_slice(&middle.to_be_bytes());
                Self(head, 4)
            }
            _ => {
                head[1] = 127;
                head[2..].copy_from_slice(&long);
                Self(head, 10)
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

    use super::*;

    #[test]
    fn heads_are_what_another_implementation_reads() {
        for length in [0, 1, 125, 126, 127, 255, 256, 65535, 65536, 1 << 20] {
            for (opcode, byte) in
                [(Opcode::Text, 1), (Opcode::Binary, 2), (Opcode::Close, 8), (Opcode::Pong, 10)]
            {
                let head = Head::new(opcode, length);
                let mut read = std::io::Cursor::new(head.bytes());
                let (header, said) = FrameHeader::parse(&mut read).unwrap().unwrap();
                assert_eq!((said, u8::from(header.opcode)), (length as u64, byte));
                assert!(header.is_final && header.mask.is_none());
                assert_eq!(read.position(), head.bytes().len() as u64);
            }
        }
    }
}

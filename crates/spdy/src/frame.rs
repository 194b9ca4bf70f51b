//! Frames of SPDY/3.1: what the bytes mean, and which bytes are none.
//!
//! ```text
//! control  |1|version(15)|type(16)| flags(8)|length(24)| payload
//! data     |0|stream(31)          | flags(8)|length(24)| bytes
//! ```

/// Bytes of the head that every frame begins with.
pub const HEAD: usize = 8;
/// Longest control frame that is read. Longer ones have no honest use here: three short headers open a stream.
pub const CONTROL_LIMIT: usize = 16 << 10;
/// Longest payload that a frame can have.
pub const LENGTH_LIMIT: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;
/// SETTINGS: the window that streams begin with (section 2.6.4).
const INITIAL_WINDOW: u32 = 7;

/// Why a stream is reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Data for a stream that is not open.
    InvalidStream = 2,
    /// The stream is not wanted; nothing was done with it.
    Refused = 3,
}

/// Bytes that are no frame, or a frame that may not come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("SPDY version {0} is not spoken here: 3 is")]
    Version(u16),
    /// Beyond [`CONTROL_LIMIT`].
    #[error("a control frame of {0} bytes is longer than any that is needed")]
    TooLong(usize),
    /// Not what its type asks for.
    #[error("a frame of type {kind} cannot be {length} bytes long")]
    Length {
        /// The frame's type.
        kind: u16,
        /// Bytes of its payload.
        length: usize,
    },
    /// No stream has this number.
    #[error("stream 0 cannot be used")]
    StreamZero,
}

/// The first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Of a control frame, to be read with [`Control::parse`].
    Control {
        /// The frame's type.
        kind: u16,
        /// What they mean depends on the type.
        flags: u8,
        /// Bytes of payload, at most [`CONTROL_LIMIT`].
        length: usize,
    },
    /// Of a data frame.
    Data {
        /// The stream, not 0.
        stream: u32,
        /// The sender will send nothing more on the stream.
        fin: bool,
        /// Bytes of payload, at most [`LENGTH_LIMIT`].
        length: usize,
    },
}

impl Head {
    /// Reads the first bytes of a frame.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, high, middle, low] = bytes;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            let head = Self::Data { stream, fin: flags & FIN != 0, length };
            return if stream == 0 { Err(FrameError::StreamZero) } else { Ok(head) };
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_LIMIT {
            return Err(FrameError::TooLong(length));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame; `block` is a compressed header block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the specification")]
pub enum Control<'a> {
    /// Opens a stream.
    SynStream { stream: u32, fin: bool, block: &'a [u8] },
    /// Accepts a stream.
    SynReply { block: &'a [u8] },
    /// Ends a stream both ways.
    Reset { stream: u32 },
    /// The window that the peer gives new streams, if it says.
    Settings { window: Option<u32> },
    /// Wants the same back.
    Ping { id: u32 },
    /// No further streams.
    GoAway,
    /// More headers of a stream.
    Headers { stream: u32, fin: bool, block: &'a [u8] },
    /// The peer takes so many bytes more; stream 0 is the connection.
    WindowUpdate { stream: u32, delta: u32 },
    /// To be passed over (section 2.2.1).
    Unknown,
}

impl<'a> Control<'a> {
    /// Reads a control frame's payload; `kind` and `flags` are its head's.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let wrong = FrameError::Length { kind, length: payload.len() };
        let word = |at: usize| -> Result<u32, FrameError> {
            let bytes = payload.get(at..at + 4).ok_or(wrong)?;
            Ok(bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        };
        let exactly = |length: usize| if payload.len() == length { Ok(()) } else { Err(wrong) };
        let fin = flags & FIN != 0;
        Ok(match kind {
            1 => {
                let block = payload.get(10..).ok_or(wrong)?;
                Self::SynStream { stream: own(word(0)?)?, fin, block }
            }
            2 => Self::SynReply { block: payload.get(4..).ok_or(wrong)? },
            3 => {
                exactly(8)?;
                Self::Reset { stream: own(word(0)?)? }
            }
            4 => Self::Settings { window: settings(payload).ok_or(wrong)? },
            6 => {
                exactly(4)?;
                Self::Ping { id: word(0)? }
            }
            7 => {
                exactly(8)?;
                Self::GoAway
            }
            8 => {
                let block = payload.get(4..).ok_or(wrong)?;
                Self::Headers { stream: own(word(0)?)?, fin, block }
            }
            9 => {
                exactly(8)?;
                Self::WindowUpdate { stream: word(0)? & STREAM_MASK, delta: word(4)? & STREAM_MASK }
            }
            _ => Self::Unknown,
        })
    }
}

/// A stream's number, which is not 0.
fn own(word: u32) -> Result<u32, FrameError> {
    match word & STREAM_MASK {
        0 => Err(FrameError::StreamZero),
        stream => Ok(stream),
    }
}

/// The initial window among settings; `None` when the entries are not as many as is said.
fn settings(payload: &[u8]) -> Option<Option<u32>> {
    let (count, entries) = payload.split_first_chunk::<4>()?;
    if u64::from(u32::from_be_bytes(*count)) * 8 != entries.len() as u64 {
        return None;
    }
    let entries = entries.chunks_exact(8).map(|e| {
        let number = |at: usize| e[at..].iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b));
        (number(0) & 0x00ff_ffff, number(4))
    });
    let window = entries.rev().find(|(id, _)| *id == INITIAL_WINDOW);
    Some(window.map(|(_, value)| value))
}

/// The head of a data frame. `length` is at most [`LENGTH_LIMIT`].
pub fn data(stream: u32, length: usize, fin: bool) -> [u8; HEAD] {
    debug_assert!(length <= LENGTH_LIMIT);
    let [a, b, c, d] = (stream & STREAM_MASK).to_be_bytes();
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [a, b, c, d, u8::from(fin), high, middle, low]
}

fn control(kind: u16, payload: &[&[u8]]) -> Vec<u8> {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    let mut frame = vec![0x80, 3, c, d, 0, high, middle, low];
    payload.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

/// Opens a stream on which both sides will send.
pub fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
    control(1, &[&stream.to_be_bytes(), &[0; 6], block]) // no other stream, highest priority, no slot
}

/// Accepts a stream.
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(2, &[&stream.to_be_bytes(), block])
}

/// Ends a stream both ways.
pub fn reset(stream: u32, status: Status) -> Vec<u8> {
    control(3, &[&stream.to_be_bytes(), &(status as u32).to_be_bytes()])
}

/// Answers a ping, or is one.
pub fn ping(id: u32) -> Vec<u8> {
    control(6, &[&id.to_be_bytes()])
}

/// `last`: the last stream that was accepted. `error`: the peer broke the protocol.
pub fn go_away(last: u32, error: bool) -> Vec<u8> {
    control(7, &[&last.to_be_bytes(), &u32::from(error).to_be_bytes()])
}

/// Lets the peer send so many bytes more; stream 0 is the connection.
pub fn window_update(stream: u32, delta: u32) -> Vec<u8> {
    control(9, &[&stream.to_be_bytes(), &delta.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(frame: &[u8]) -> Result<(Head, Option<Control<'_>>), FrameError> {
        let head = Head::parse(*frame.first_chunk().expect("a head"))?;
        match head {
            Head::Control { kind, flags, length } => {
                assert_eq!(length, frame.len() - HEAD);
                Ok((head, Some(Control::parse(kind, flags, &frame[HEAD..])?)))
            }
            Head::Data { .. } => Ok((head, None)),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&data(5, 300, true)).unwrap().0, Head::Data { stream: 5, fin: true, length: 300 });
        assert_eq!(parse(&ping(7)).unwrap().1, Some(Control::Ping { id: 7 }));
        assert_eq!(parse(&reset(3, Status::Refused)).unwrap().1, Some(Control::Reset { stream: 3 }));
        assert_eq!(parse(&go_away(9, true)).unwrap().1, Some(Control::GoAway));
        let update = Control::WindowUpdate { stream: 0, delta: 4096 };
        assert_eq!(parse(&window_update(0, 4096)).unwrap().1, Some(update));
        let open = Control::SynStream { stream: 1, fin: false, block: b"zz" };
        assert_eq!(parse(&syn_stream(1, b"zz")).unwrap().1, Some(open));
        assert_eq!(parse(&syn_reply(1, b"zz")).unwrap().1, Some(Control::SynReply { block: b"zz" }));
    }

    #[test]
    fn settings_must_be_as_many_as_they_say() {
        let entry = [0, 0, 0, 7, 0, 1, 0, 0];
        let settings =
            |count: u32| Control::parse(4, 0, &[&count.to_be_bytes()[..], &entry].concat()).map(|_| ());
        assert_eq!(settings(1), Ok(()));
        for lie in [0, 2, u32::MAX, 0x2000_0001] {
            assert_eq!(settings(lie), Err(FrameError::Length { kind: 4, length: 12 }), "{lie}");
        }
        let one = [&1u32.to_be_bytes()[..], &entry].concat();
        assert_eq!(Control::parse(4, 0, &one), Ok(Control::Settings { window: Some(65536) }));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(Head::parse([0, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::StreamZero));
        let huge = Head::parse([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]);
        assert_eq!(huge, Err(FrameError::TooLong(LENGTH_LIMIT)));
        assert_eq!(Control::parse(1, 0, &[0; 10]), Err(FrameError::StreamZero));
        assert_eq!(Control::parse(6, 0, &[0; 5]), Err(FrameError::Length { kind: 6, length: 5 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u16..12, flags: u8, payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Control::parse(kind, flags, &payload);
        }

        #[test]
        fn heads_survive(stream in 1u32..=STREAM_MASK, length in 0..=LENGTH_LIMIT, fin: bool) {
            prop_assert_eq!(Head::parse(data(stream, length, fin)), Ok(Head::Data { stream, fin, length }));
        }
    }
}

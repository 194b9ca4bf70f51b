//! Header blocks: names and values, compressed with one zlib stream per direction (section 2.6.10).
//!
//! Every block that arrives must go through [`Reader`], wanted or not: the next one is compressed against it. What a
//! block may unpack to is bounded, so that no bomb (CVE-2026-35469) costs more than that.

use flate2::{Decompress, FlushDecompress, Status};

use crate::dictionary;

/// Most bytes that one block may unpack to.
pub const BLOCK_LIMIT: usize = 32 << 10;
/// Most headers of one block.
const COUNT_LIMIT: u32 = 64;

/// A header block that cannot be read. The connection cannot go on: its compression state is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No zlib stream, or one that starts from another dictionary.
    #[error("a header block is not compressed as SPDY/3 wants")]
    Compression,
    /// Beyond [`BLOCK_LIMIT`].
    #[error("a header block unpacks to more than {BLOCK_LIMIT} bytes")]
    TooLarge,
    /// More than any stream has.
    #[error("a header block has more than {COUNT_LIMIT} headers")]
    TooMany,
    /// They point past the block, or not to its end.
    #[error("a header block's lengths do not fit it")]
    Lengths,
    /// Against the specification.
    #[error("a header's name or value is not text, or comes twice")]
    Name,
}

/// The headers of a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Unpacks the blocks of one direction.
#[derive(Debug)]
pub struct Reader {
    inflate: Decompress,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// For a connection's first block.
    pub fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// See [`HeaderError`]; the connection is over.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.unpack(block)?)
    }

    fn unpack(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut text = Vec::with_capacity(512);
        while !block.is_empty() {
            if text.len() == text.capacity() {
                text.reserve(text.len());
            }
            if text.len() > BLOCK_LIMIT {
                return Err(HeaderError::TooLarge);
            }
            let before = (self.inflate.total_in(), text.len());
            match self.inflate.decompress_vec(block, &mut text, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary::bytes())
                        .map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
            let read = usize::try_from(self.inflate.total_in() - before.0).unwrap_or(usize::MAX);
            if read == 0 && text.len() == before.1 && text.len() < text.capacity() {
                return Err(HeaderError::Compression);
            }
            block = block.get(read..).unwrap_or(&[]);
        }
        self.finish(&mut text)?;
        Ok(text)
    }

    /// Takes what is unpacked and had no room yet.
    fn finish(&mut self, text: &mut Vec<u8>) -> Result<(), HeaderError> {
        while text.len() == text.capacity() {
            if text.len() > BLOCK_LIMIT {
                return Err(HeaderError::TooLarge);
            }
            text.reserve(text.len());
            match self.inflate.decompress_vec(&[], text, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) | Err(_) => return Err(HeaderError::Compression),
            }
        }
        if text.len() > BLOCK_LIMIT { Err(HeaderError::TooLarge) } else { Ok(()) }
    }
}

/// Writes the blocks of one direction: stored, not packed. Ours are short and few, and a compressor's tables would cost
/// each connection 256 KiB.
#[derive(Debug, Default)]
pub struct Writer {
    begun: bool,
}

/// What a zlib stream begins with whose blocks are stored and which starts from a dictionary (RFC 1950, section 2.2).
const BEGIN: [u8; 2] = [0x78, 0x20];
/// Longest stored block (RFC 1951, section 3.2.4).
const STORED: usize = 0xffff;

impl Writer {
    /// For a connection's first block.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next block; names in lower case.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = length(headers.len()).to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend(length(part.len()));
            text.extend(part.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            block.extend(BEGIN);
            block.extend(dictionary::ADLER32.to_be_bytes());
        }
        // The empty block at the end, which a flush of zlib's leaves, makes Go's reader hand out what it has.
        for piece in text.chunks(STORED).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            block.push(0);
            block.extend(length.to_le_bytes());
            block.extend((!length).to_le_bytes());
            block.extend(piece);
        }
        block
    }
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn parse(text: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = text;
    let count = number(&mut rest)?;
    if count > COUNT_LIMIT {
        return Err(HeaderError::TooMany);
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = string(&mut rest)?.to_ascii_lowercase();
        let value = string(&mut rest)?;
        if name.is_empty() || headers.get(&name).is_some() {
            return Err(HeaderError::Name);
        }
        headers.0.push((name, value));
    }
    if rest.is_empty() { Ok(headers) } else { Err(HeaderError::Lengths) }
}

fn number(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Lengths)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn string(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = usize::try_from(number(rest)?).map_err(|_| HeaderError::Lengths)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Lengths)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Name)
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// As other peers pack it.
    fn pack(text: &[u8]) -> Vec<u8> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary::bytes()).unwrap();
        let mut block = Vec::with_capacity(text.len() + 1024);
        deflate.compress_vec(text, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    #[test]
    fn blocks_of_one_connection_are_read_in_order() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        for kind in ["error", "stdin", "stdout"] {
            let block = writer.write(&[("streamtype", kind), ("port", "80")]);
            let headers = reader.read(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port")), (Some(kind), Some("80")));
        }
        assert_eq!(reader.read(&writer.write(&[])).unwrap(), Headers::default());
    }

    #[test]
    fn a_bomb_is_refused_at_its_size() {
        let mut text = vec![0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0xff, 0xff, 0xff];
        text.resize(4 << 20, b'x');
        let block = pack(&text);
        assert!(block.len() < 64 << 10);
        assert_eq!(Reader::new().read(&block), Err(HeaderError::TooLarge));
    }

    #[test]
    fn lies_about_lengths_and_counts_are_refused() {
        let refused = |text: &[u8]| Reader::new().read(&pack(text)).unwrap_err();
        assert_eq!(refused(&[0xff; 4]), HeaderError::TooMany);
        assert_eq!(refused(&[0, 0, 0, 1]), HeaderError::Lengths);
        assert_eq!(refused(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']), HeaderError::Lengths);
        assert_eq!(refused(&[0, 0, 0, 0, 9]), HeaderError::Lengths);
        assert_eq!(refused(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), HeaderError::Name);
        let twice = [0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 1, b'A', 0, 0, 0, 0];
        assert_eq!(refused(&twice), HeaderError::Name);
        assert_eq!(Reader::new().read(b"this is no zlib stream"), Err(HeaderError::Compression));
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(block in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Reader::new().read(&block);
        }

        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Reader::new().read(&pack(&text));
        }

        #[test]
        fn headers_survive(values in prop::collection::vec("[ -~]{0,600}", 0..40)) {
            let names: Vec<String> = (0..values.len()).map(|n| format!("x-{n}")).collect();
            let headers: Vec<(&str, &str)> =
                names.iter().zip(&values).map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let (mut writer, mut reader) = (Writer::new(), Reader::new());
            for _ in 0..2 {
                let read = reader.read(&writer.write(&headers)).unwrap();
                prop_assert!(headers.iter().all(|(n, v)| read.get(n) == Some(v)));
            }
        }
    }
}

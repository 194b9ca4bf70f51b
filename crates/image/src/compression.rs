//! What a layer blob is compressed with, told by its first bytes: media types lie, digests do not.

use std::io::{self, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as Zstd;

use crate::digest::Hashing;
use crate::limits::{LimitExceeded, Limits};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A frame that decoders skip; zstd:chunked layers may begin with one.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
const BUFFER: usize = 64 << 10;

type Source<R> = Chain<Cursor<Vec<u8>>, Hashing<R>>;

/// The uncompressed content of a blob, bounded in size and ratio.
pub(crate) struct Decompressed<R: Read> {
    decoder: Decoder<Source<R>>,
    compressed: Arc<AtomicU64>,
    passed: u64,
    limits: Limits,
}

enum Decoder<R: Read> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<Zstd<'static, BufReader<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(crate) fn new(blob: R, limits: &Limits) -> io::Result<Self> {
        let mut blob = Hashing::new(blob);
        let compressed = blob.meter();
        let mut magic = Vec::new();
        (&mut blob).take(4).read_to_end(&mut magic)?;
        let decoder = Decoder::for_magic(magic, blob, limits)?;
        Ok(Self { decoder, compressed, passed: 0, limits: limits.clone() })
    }

    /// The blob, which may have bytes left that belong to its digest.
    pub(crate) fn into_blob(self) -> Hashing<R> {
        match self.decoder {
            Decoder::Plain(source) => source,
            Decoder::Gzip(decoder) => decoder.into_inner().into_inner(),
            Decoder::Zstd(decoder) => decoder.finish().into_inner(),
        }
        .into_inner()
        .1
    }

    fn bound(&mut self, read: usize) -> Result<(), LimitExceeded> {
        self.passed += read as u64;
        LimitExceeded::check("uncompressed bytes of a layer", self.passed, self.limits.layer)?;
        let compressed = self.compressed.load(Ordering::Relaxed);
        let most = compressed.saturating_mul(self.limits.ratio).saturating_add(self.limits.ratio_free);
        LimitExceeded::check("uncompressed bytes per compressed byte of a layer", self.passed, most)
            .map_err(|error| LimitExceeded { limit: self.limits.ratio, ..error })
    }
}

impl<R: Read> Decoder<Source<R>> {
    fn for_magic(magic: Vec<u8>, blob: Hashing<R>, limits: &Limits) -> io::Result<Self> {
        let zstd =
            magic == ZSTD || (magic.len() == 4 && magic[1..] == ZSTD_SKIPPABLE && magic[0] & 0xf0 == 0x50);
        let gzip = magic.starts_with(&GZIP);
        let source = Cursor::new(magic).chain(blob);
        Ok(match (gzip, zstd) {
            (true, _) => Self::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, source)))),
            (_, true) => {
                let mut decoder = Zstd::with_buffer(BufReader::with_capacity(BUFFER, source))?;
                decoder.window_log_max(limits.zstd_window_log)?;
                Self::Zstd(Box::new(decoder))
            }
            _ => Self::Plain(source),
        })
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.decoder {
            Decoder::Plain(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }?;
        self.bound(read).map_err(io::Error::other)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8], limits: &Limits) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Decompressed::new(blob, limits)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn all_three_kinds_and_short_blobs_are_read() {
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let limits = Limits::default();
        let mut twice = gzip(&content[..1000]);
        twice.extend(gzip(&content[1000..]));
        for blob in [content.clone(), gzip(&content), twice, zstd::encode_all(&content[..], 3).unwrap()] {
            let mut decompressed = Decompressed::new(&blob[..], &limits).unwrap();
            let mut read = Vec::new();
            decompressed.read_to_end(&mut read).unwrap();
            assert_eq!(read, content);
            let mut rest = decompressed.into_blob();
            assert_eq!(rest.drain().unwrap(), crate::digest::Digest::of(&blob));
            assert_eq!(rest.count(), blob.len() as u64);
        }
        assert_eq!(read(b"", &limits).unwrap(), b"");
        assert_eq!(read(b"ab", &limits).unwrap(), b"ab");
    }

    #[test]
    fn bombs_end_at_the_ratio() {
        let limits = Limits { ratio_free: 1 << 20, ..Limits::default() };
        for blob in [gzip(&vec![0; 64 << 20]), zstd::encode_all(&vec![0; 64 << 20][..], 3).unwrap()] {
            let error = read(&blob, &limits).unwrap_err().downcast::<LimitExceeded>().unwrap();
            assert_eq!(error.limit, limits.ratio);
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![1; 1 << 20]).unwrap();
        assert!(read(&encoder.finish().unwrap(), &Limits::default()).is_err());
    }
}

//! Doors for the fuzzers (`fuzz/`): what is read of an image before any of it is on the disk.

use std::io::{self, Read};

use crate::compression::Decompressed;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{self, Manifest};
use crate::reference::Reference;
use crate::unpack::archive::Archive;

/// As much as one input may unpack to: fuzzing is about the readers, not about how long zeros take.
const MOST: u64 = 8 << 20;

/// A layer's blob: decompressed, then every entry of the archive in it with its data.
pub fn tar(blob: &[u8]) {
    let limits = Limits { layer: MOST, entries: 10_000, ..Limits::default() };
    let Ok(content) = Decompressed::new(blob, &limits) else { return };
    let mut archive = Archive::new(content);
    for _ in 0..limits.entries {
        let Ok(Some(member)) = archive.next() else { return };
        let began = archive.position();
        // Half of the entries are skipped instead, as unpacking skips what it does not need.
        if member.mode & 1 == 0 && io::copy(&mut archive.by_ref(), &mut io::sink()).is_err() {
            return;
        }
        assert!(archive.position() - began <= member.size, "more data than the entry has");
        assert!(archive.position() <= MOST, "beyond the limit");
    }
}

/// A document: the first byte says as what it is served, and whether it is a configuration.
pub fn manifest(bytes: &[u8]) {
    let Some((kind, document)) = bytes.split_first() else { return };
    let limits = Limits::default();
    let config = || manifest::parse_config(document, &limits);
    let kind = match kind % 4 {
        0 => "application/vnd.oci.image.manifest.v1+json",
        1 => "application/vnd.docker.distribution.manifest.list.v2+json",
        2 => "",
        _ => {
            if let Ok(config) = config() {
                let count = config.rootfs().diff_ids().len();
                let layers = manifest::layers(&config, vec![None; count]);
                assert!(layers.is_err() || count <= limits.layers);
            }
            return;
        }
    };
    match Manifest::parse_served(document, kind, &limits) {
        Ok(Manifest::Index { manifests }) => drop(manifest::choose(&manifests).cloned()),
        Ok(Manifest::Image { layers, .. } | Manifest::Artifact { layers }) => {
            assert!(layers.len() <= limits.layers);
            assert!(layers.iter().all(|layer| layer.digest.as_str().parse::<Digest>().is_ok()));
        }
        Err(refusal) => assert!(refusal.to_string().len() < 2048, "a refusal is long: {refusal}"),
    }
}

/// An image name: what is accepted, is accepted again as it is written, and means the same.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let again: Reference = reference.to_string().parse().expect("a full name is a name");
            assert_eq!(again.to_string(), reference.to_string());
            assert_eq!((again.registry(), again.target()), (reference.registry(), reference.target()));
            let path = format!("{}/{}", reference.registry(), reference.repository());
            assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")), "{path} climbs");
        }
        Err(refusal) => assert!(refusal.to_string().len() < 4096, "a refusal is long: {refusal}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Damages of one input; enough to find what is shallow on every run of the tests.
    const DAMAGES: u64 = 300;

    /// A small generator (xorshift64*), so that a failure comes again.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0) % end.max(1)
        }

        /// Flips, sets, repeats, moves or cuts a few bytes.
        fn damage(&mut self, input: &[u8]) -> Vec<u8> {
            let mut damaged = input.to_vec();
            for _ in 0..=self.below(4) {
                let at = self.below(damaged.len());
                let end = (at + self.below(64)).min(damaged.len());
                match self.below(6) {
                    _ if damaged.is_empty() => damaged.push(b'x'),
                    0 => damaged[at] ^= 1 << self.below(8),
                    1 => damaged[at] = [0, 0xff, b'0', b'9', b'"', b':', b'/', b'.'][self.below(8)],
                    2 => damaged.truncate(end),
                    3 => drop(damaged.drain(at..end)),
                    4 => {
                        let piece = damaged[at..end].to_vec();
                        let to = self.below(damaged.len());
                        damaged.splice(to..to, piece);
                    }
                    _ => damaged[at..end].fill(b'7'),
                }
            }
            damaged
        }
    }

    fn damaged_seeds(name: &str, door: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        let mut random = Random(1);
        for seed in fs::read_dir(corpus).unwrap() {
            let seed = fs::read(seed.unwrap().path()).unwrap();
            door(&seed);
            for _ in 0..DAMAGES {
                door(&random.damage(&seed));
            }
        }
        for bytes in [&b""[..], b"\x00{}", b"\x03null", b"\x1f\x8b\x08", &[0xff; 1024], b"\xf0\x9f"] {
            door(bytes);
        }
    }

    #[test]
    fn doors_take_damaged_seeds() {
        damaged_seeds("tar", tar);
        damaged_seeds("manifest", manifest);
        damaged_seeds("reference", reference);
    }
}

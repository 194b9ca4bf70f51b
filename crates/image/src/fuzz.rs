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
        Err(refusal) => assert!(refusal.to_string().len() < 1024, "a refusal is long: {refusal}"),
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
    use super::*;

    #[test]
    fn doors_take_anything() {
        for bytes in [&b""[..], b"\x00{}", b"\x03null", b"\x1f\x8b\x08", &[0xff; 1024], b"a/b:c", b"\xf0\x9f"]
        {
            tar(bytes);
            manifest(bytes);
            reference(bytes);
        }
    }
}

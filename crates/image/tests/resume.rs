//! Transfers that break off, and are taken up where they did.

#![allow(clippy::unwrap_used, reason = "tests may fail at once")]

mod bed;

use bed::registry::{Registry, Reply};
use bed::tar::{Header, Tar};
use bed::{Bed, Built, Packing, build, chain, is_root};
use image::{Class, Digest};

fn image() -> Built {
    let noise: Vec<u8> = (0..50_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let header = Header { path: b"noise", size: noise.len() as u64, ..Header::default() };
    build(&[Tar::new().entry(&header, &noise).end()], Packing::Gzip)
}

async fn pull(reply: impl Fn(Vec<u8>) -> Reply) -> (Registry, Digest, Result<(), (Class, String)>) {
    let (registry, bed, image) = (Registry::start(), Bed::new(), image());
    let name = registry.put("library/x", "1", &image);
    let blob = Digest::of(&image.blobs[0]);
    registry.blob("library/x", &blob, reply(image.blobs[0].clone()));
    let pulled = bed.images.pull(&name, None).await;
    bed.assert_clean("resume");
    (registry, blob, pulled.map(|_| ()).map_err(|error| (error.class(), chain(&error))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_broke() {
    if !is_root() {
        return;
    }
    let (registry, blob, pulled) = pull(|body| Reply::Pieces { most: body.len() / 3, body, late: 0 }).await;
    pulled.unwrap();
    let offsets: Vec<_> =
        registry.requests().iter().filter(|r| r.path.contains(blob.as_str())).map(|r| r.offset).collect();
    assert_eq!(offsets[0], 0);
    assert!(offsets.len() >= 3 && offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_sends_it_again() {
    if !is_root() {
        return;
    }
    let (registry, blob, pulled) = pull(|body| Reply::Growing { piece: body.len() / 2 + 1, body }).await;
    pulled.unwrap();
    assert_eq!(registry.count("GET", blob.as_str()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_never_ends_or_lies_is_given_up() {
    if !is_root() {
        return;
    }
    let (registry, blob, pulled) = pull(|body| Reply::Pieces { most: 10, body, late: 0 }).await;
    let (class, message) = pulled.unwrap_err();
    assert_eq!(class, Class::Unavailable, "{message}");
    assert!(message.contains("broke off") && registry.count("GET", blob.as_str()) < 10, "{message}");
    let (_, _, pulled) = pull(|body| Reply::Pieces { most: body.len() / 3, body, late: 1 }).await;
    let (class, message) = pulled.unwrap_err();
    assert_eq!(class, Class::Unavailable, "{message}");
    assert!(message.contains("another part"), "{message}");
}

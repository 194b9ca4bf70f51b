use std::time::Duration;

use ::spdy::{frame, header as headers};
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// A client's end, raw, and the reader of what it sends.
fn connection() -> (DuplexStream, Reader) {
    let (client, server) = duplex(1 << 16);
    let (incoming, outgoing) = tokio::io::split(server);
    let activity = Arc::new(Activity::new());
    let writer = Arc::new(Writer::new(Box::new(outgoing), Arc::clone(&activity)));
    (client, Reader::new(Box::new(incoming), writer, activity))
}

fn syn_stream(packer: &mut headers::Writer, stream: u32, kind: &str) -> Vec<u8> {
    let block = packer.write(&[("streamtype", kind)]);
    frame::syn_stream(stream, &block)
}

async fn next(reader: &mut Reader) -> Result<Option<Event>, SpdyError> {
    tokio::time::timeout(Duration::from_secs(5), reader.next()).await.expect("it does not hang")
}

#[tokio::test]
async fn streams_are_opened_fed_and_ended() {
    let (mut client, mut reader) = connection();
    let mut packer = headers::Writer::new();
    client.write_all(&syn_stream(&mut packer, 1, "stdin")).await.unwrap();
    client.write_all(&[&frame::data(1, 2, true)[..], b"hi"].concat()).await.unwrap();
    let Ok(Some(Event::Open { stream: 1, headers, fin: false })) = next(&mut reader).await else {
        panic!("opened")
    };
    assert_eq!(headers.get("streamtype"), Some("stdin"));
    let Ok(Some(Event::Data { stream: 1, data, fin: true })) = next(&mut reader).await else {
        panic!("data")
    };
    assert_eq!(&data[..], b"hi");
    drop(client);
    assert!(matches!(next(&mut reader).await, Ok(None)));
}

#[tokio::test]
async fn a_frame_of_any_length_comes_in_pieces() {
    let (mut client, mut reader) = connection();
    client.write_all(&syn_stream(&mut headers::Writer::new(), 1, "stdin")).await.unwrap();
    next(&mut reader).await.unwrap();
    let length = 1 << 20;
    let sending = tokio::spawn(async move {
        client.write_all(&frame::data(1, length, true)).await.unwrap();
        client.write_all(&vec![7; length]).await.unwrap();
        client
    });
    let (mut total, mut ended) = (0, false);
    while !ended {
        let Ok(Some(Event::Data { data, fin, .. })) = next(&mut reader).await else { panic!("data") };
        assert!(data.len() <= PIECE);
        (total, ended) = (total + data.len(), fin);
    }
    assert_eq!(total, length);
    drop(sending.await);
}

#[tokio::test]
async fn numbers_must_be_odd_and_grow() {
    for numbers in [&[2][..], &[3, 1], &[1, 1]] {
        let (mut client, mut reader) = connection();
        let mut packer = headers::Writer::new();
        for number in numbers {
            client.write_all(&syn_stream(&mut packer, *number, "data")).await.unwrap();
        }
        let mut last = Ok(None);
        for _ in numbers {
            last = next(&mut reader).await;
        }
        assert!(matches!(last, Err(SpdyError::Number(_))), "{numbers:?}: {last:?}");
    }
}

#[tokio::test]
async fn ten_thousand_streams_are_refused_and_not_remembered() {
    let (client, mut reader) = connection();
    let (mut answers, mut sending) = tokio::io::split(client);
    let feeding = tokio::spawn(async move {
        let mut packer = headers::Writer::new();
        for n in 0..10_000u32 {
            sending.write_all(&syn_stream(&mut packer, 2 * n + 1, "data")).await.unwrap();
        }
    });
    let draining = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await });
    let mut opened = 0;
    while opened < STREAMS {
        assert!(matches!(next(&mut reader).await, Ok(Some(Event::Open { .. }))));
        opened += 1;
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(500), reader.next()).await.is_err()
            || feeding.is_finished()
    );
    assert_eq!(reader.open.len(), STREAMS);
    draining.abort();
    feeding.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_bytes_hang_it_or_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), control: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut reader) = connection();
            if control {
                client.write_all(&[0x80, 3, 0]).await.unwrap();
            }
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            while let Ok(Some(_)) = next(&mut reader).await {}
        });
    }
}

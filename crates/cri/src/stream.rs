//! Lists as streams (KEP-5825): every object once, in batches that stay far below the 16 MiB of a gRPC message.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

/// What a streaming RPC answers with.
pub(crate) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Objects in one message.
const BATCH: usize = 100;

/// Sends `all` in messages made by `wrap`; no message when there is none.
pub(crate) fn batches<T: Send + 'static, M: Send + 'static>(
    all: Vec<T>,
    wrap: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Items<M> {
    let mut rest = all.into_iter();
    let messages = std::iter::from_fn(move || {
        let batch: Vec<T> = rest.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(wrap(batch)))
    });
    Box::pin(tokio_stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn each_object_comes_once() {
        let sent: Vec<Vec<usize>> =
            batches((0..250).collect(), |batch| batch).map(Result::unwrap).collect().await;
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(sent.concat(), (0..250).collect::<Vec<_>>());
        assert_eq!(batches(Vec::<u8>::new(), |batch| batch).collect::<Vec<_>>().await.len(), 0);
    }
}

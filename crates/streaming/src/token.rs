//! One-time tokens: what an RPC has checked is what the bearer may do, once and soon.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::request::Request;

/// How long a token is good for.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait to be used.
const WAITING: usize = 1000;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Too many wait.
    #[error("{WAITING} streaming requests wait for their client already: try again within a minute")]
    Full,
    /// No randomness.
    #[error("no random token could be had from the kernel: {0}")]
    Random(getrandom::Error),
}

/// Requests that wait for their client.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Instant, Request)>>);

impl Tokens {
    fn table(&self) -> MutexGuard<'_, HashMap<String, (Instant, Request)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 128 random bits in hexadecimal, good for one use within [`LIFETIME`].
    pub(crate) fn issue(&self, request: Request) -> Result<String, TokenError> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(TokenError::Random)?;
        let token = hex::encode(bits);
        let mut table = self.table();
        if table.len() >= WAITING {
            table.retain(|_, (issued, _)| issued.elapsed() < LIFETIME);
        }
        if table.len() >= WAITING {
            return Err(TokenError::Full);
        }
        table.insert(token.clone(), (Instant::now(), request));
        Ok(token)
    }

    /// What `token` is good for, at most once. `kind` is the kind of request that the client names.
    pub(crate) fn redeem(&self, kind: &str, token: &str) -> Option<Request> {
        let (issued, request) = self.table().remove(token)?;
        (issued.elapsed() < LIFETIME && request.kind() == kind).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Attach;

    fn request() -> Request {
        Request::Attach(Attach { container: api::id::ContainerId::random(), streams: Default::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.issue(request()).unwrap();
        assert_eq!(token.len(), 32);
        assert!(tokens.redeem("attach", "0123456789abcdef0123456789abcdef").is_none());
        assert!(tokens.redeem("attach", &token).is_some());
        assert!(tokens.redeem("attach", &token).is_none(), "used");
        let token = tokens.issue(request()).unwrap();
        assert!(tokens.redeem("exec", &token).is_none(), "for another purpose");
        let token = tokens.issue(request()).unwrap();
        tokio::time::advance(LIFETIME).await;
        assert!(tokens.redeem("attach", &token).is_none(), "late");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_empties_itself() {
        let tokens = Tokens::default();
        for _ in 0..WAITING {
            tokens.issue(request()).unwrap();
        }
        assert!(matches!(tokens.issue(request()), Err(TokenError::Full)));
        tokio::time::advance(LIFETIME).await;
        tokens.issue(request()).unwrap();
        assert_eq!(tokens.table().len(), 1);
    }
}

//! The HTTP/1.1 request that a client begins with: read within bounds, answered by a switch of protocol or a refusal.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest request head.
const HEAD_LIMIT: usize = 16 << 10;
/// Most header lines of one request.
const HEADERS: usize = 64;

/// Why a request is answered with an HTTP error; the text is what the client reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the request is no HTTP/1.1 request with a head of at most {HEAD_LIMIT} bytes")]
    Malformed,
    #[error("the method must be GET or POST")]
    Method,
    #[error("no such streaming request: its token was used, has expired, or never was")]
    Token,
    #[error("the request must be upgraded to SPDY/3.1 or websocket")]
    Upgrade,
    #[error("none of the protocols {0:?} is spoken here")]
    Protocol(Vec<String>),
    #[error("requests from pages of other origins are refused")]
    Origin,
}

impl Refusal {
    fn status(&self) -> &'static str {
        match self {
            Self::Malformed | Self::Upgrade => "400 Bad Request",
            Self::Protocol(_) | Self::Origin => "403 Forbidden",
            Self::Token => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
        }
    }

    /// The whole response.
    pub(crate) fn response(&self) -> String {
        let (status, text) = (self.status(), self.to_string());
        let length = text.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n{text}\n"
        )
    }
}

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// All values of a header, each split at commas.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let values = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        let parts = values.flat_map(|(_, value)| value.split(','));
        parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Whether this header has this word among others.
    pub(crate) fn says(&self, name: &str, word: &str) -> bool {
        self.list(name).iter().any(|part| part.eq_ignore_ascii_case(word))
    }

    /// Kind and token of `/KIND/TOKEN`.
    pub(crate) fn target(&self) -> Option<(&str, &str)> {
        let path = self.path.split('?').next()?;
        path.strip_prefix('/')?.split_once('/')
    }

    /// Pages of browsers may not reach what only the node's own agents should: they name where they come from.
    pub(crate) fn check_origin(&self) -> Result<(), Refusal> {
        let Some(origin) = self.get("origin") else { return Ok(()) };
        let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
        if self.get("host") == Some(authority) { Ok(()) } else { Err(Refusal::Origin) }
    }
}

/// Reads a request's head; what the client sent after it comes back as the second value. `None`: it left.
pub(crate) async fn read(
    wire: &mut (impl AsyncRead + Unpin),
) -> io::Result<Result<(Head, Vec<u8>), Refusal>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if wire.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match parse(&bytes) {
            Ok(Some((head, length))) => return Ok(Ok((head, bytes.split_off(length)))),
            Ok(None) if bytes.len() < HEAD_LIMIT => {}
            Ok(None) => return Ok(Err(Refusal::Malformed)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes).map_err(|_| Refusal::Malformed)?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    if request.version != Some(1) {
        return Err(Refusal::Malformed);
    }
    if !matches!(request.method, Some("GET" | "POST")) {
        return Err(Refusal::Method);
    }
    let text = |header: &httparse::Header<'_>| {
        let value = String::from_utf8(header.value.to_vec()).map_err(|_| Refusal::Malformed)?;
        Ok((header.name.to_owned(), value))
    };
    let headers = request.headers.iter().map(text).collect::<Result<Vec<_>, Refusal>>()?;
    let head = Head { path: request.path.unwrap_or_default().to_owned(), headers };
    let body = head.get("content-length").is_some_and(|length| length != "0");
    if body || head.get("transfer-encoding").is_some() {
        return Err(Refusal::Malformed);
    }
    Ok(Some((head, length)))
}

/// Answers with a refusal.
pub(crate) async fn refuse(wire: &mut (impl AsyncWrite + Unpin), refusal: &Refusal) -> io::Result<()> {
    wire.write_all(refusal.response().as_bytes()).await?;
    wire.flush().await?;
    wire.shutdown().await
}

/// Switches to another protocol.
pub(crate) async fn switch(
    wire: &mut (impl AsyncWrite + Unpin),
    upgrade: &str,
    headers: &[(&str, &str)],
) -> io::Result<()> {
    let mut response =
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n");
    for (name, value) in headers {
        response.push_str(&format!("{name}: {value}\r\n"));
    }
    response.push_str("\r\n");
    wire.write_all(response.as_bytes()).await?;
    wire.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<(Head, usize)>, String> {
        parse(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_head_is_its_path_and_headers() {
        let text = "POST /exec/abc?x=1 HTTP/1.1\r\nHost: n:1\r\nConnection: keep-alive, Upgrade\r\n\
                    X-Stream-Protocol-Version: v4.channel.k8s.io\r\nx-stream-protocol-version: v3.channel.k8s.io\r\n\r\nrest";
        let (head, length) = head(text).unwrap().unwrap();
        assert_eq!(head.target(), Some(("exec", "abc")));
        assert!(head.says("connection", "upgrade") && !head.says("connection", "close"));
        assert_eq!(head.list("x-stream-protocol-version"), ["v4.channel.k8s.io", "v3.channel.k8s.io"]);
        assert_eq!(&text[length..], "rest");
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        assert_eq!(head("GET / HTTP/1.1\r\nHost: n").unwrap(), None, "more is to come");
        for text in [
            "GET / HTTP/1.0\r\n\r\n",
            "\u{0}\u{1}\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(head(text).unwrap_err().contains("no HTTP/1.1 request"), "{text:?}");
        }
        assert!(head("PUT / HTTP/1.1\r\n\r\n").unwrap_err().contains("GET or POST"));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let check = |origin: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:9\r\nOrigin: {origin}\r\n\r\n");
            head(&text).unwrap().unwrap().0.check_origin().is_ok()
        };
        assert!(check("http://127.0.0.1:9"));
        assert!(!check("http://evil.example") && !check("null"));
    }

    #[tokio::test]
    async fn a_bomb_of_headers_is_cut_off() {
        let bomb = [&b"GET / HTTP/1.1\r\n"[..], &vec![b'a'; 1 << 20]].concat();
        assert!(matches!(read(&mut &bomb[..]).await, Ok(Err(Refusal::Malformed))));
        assert!(read(&mut &b"GET"[..]).await.is_err());
    }
}

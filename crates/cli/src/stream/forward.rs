//! One TCP connection joined to a port of a pod: a SPDY connection with one stream for its bytes, one for an error.
//!
//! Every connection has its own to the daemon, so that none waits for another, and the kernel's windows hold each back.

use std::io;

use spdy::frame::{self, Control, HEAD, Head};
use spdy::header;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{StreamError, dial};

const PROTOCOL: &str = "portforward.k8s.io";
/// The streams, in the order in which they are opened.
const ERROR: u32 = 1;
const DATA: u32 = 3;
/// Bytes sent in one frame.
const PIECE: usize = 64 << 10;
/// Most that is read of a refusal or an error.
const TEXT: u64 = 4 << 10;
/// Most header lines of an answer.
const LINES: usize = 32;

/// Carries `local`'s bytes to the port and back until both directions have ended.
pub async fn join(url: &str, port: u16, local: TcpStream) -> Result<(), StreamError> {
    // Dropped, the sending half would tell the daemon that we have left.
    let (from_daemon, mut to_daemon) = open(url, port).await?;
    let (from_local, to_local) = local.into_split();
    let mut text = Vec::new();
    let down = down(from_daemon, to_local, &mut text);
    // What the daemon does not take any more is no error of the answer, which may be whole.
    let up = async {
        let _ = up(from_local, &mut to_daemon).await;
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        ended = down => ended,
        () = up => unreachable!("it never ends"),
    };
    match String::from_utf8_lossy(&text).trim() {
        "" => ended,
        said => Err(StreamError::Session(said.to_owned())),
    }
}

/// Switches to SPDY and opens both streams.
async fn open(url: &str, port: u16) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), StreamError> {
    let (connection, authority, path) = dial(url).await?;
    let (incoming, mut outgoing) = connection.into_split();
    let mut incoming = BufReader::with_capacity(PIECE + HEAD, incoming);
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {PROTOCOL}\r\n\r\n"
    );
    outgoing.write_all(request.as_bytes()).await?;
    switched(&mut incoming).await?;
    let mut headers = header::Writer::new();
    let port = port.to_string();
    for (stream, kind) in [(ERROR, "error"), (DATA, "data")] {
        let block = headers.write(&[("streamtype", kind), ("port", &port), ("requestid", "0")]);
        outgoing.write_all(&frame::syn_stream(stream, &block)).await?;
    }
    outgoing.write_all(&frame::data(ERROR, 0, true)).await?;
    Ok((incoming, outgoing))
}

/// Reads the answer's head; what is no switch is a refusal with a text.
async fn switched(incoming: &mut BufReader<OwnedReadHalf>) -> Result<(), StreamError> {
    let mut head = Vec::new();
    for _ in 0..LINES {
        let mut line = String::new();
        (&mut *incoming).take(TEXT).read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let first = head.first().ok_or(StreamError::Cut)?;
    if first.split(' ').nth(1) == Some("101") {
        return Ok(());
    }
    let mut text = String::new();
    let _ = incoming.take(TEXT).read_to_string(&mut text).await;
    Err(StreamError::Refused(if text.is_empty() { first.clone() } else { text.trim().to_owned() }))
}

/// Sends what comes from here, and its end.
async fn up(mut from: OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut piece = vec![0; HEAD + PIECE];
    loop {
        let read = from.read(&mut piece[HEAD..]).await?;
        piece[..HEAD].copy_from_slice(&frame::data(DATA, read, read == 0));
        to.write_all(&piece[..HEAD + read]).await?;
        if read == 0 {
            return Ok(());
        }
    }
}

/// Hands on what the port says until both streams have ended; `text` becomes what the error stream says.
async fn down(
    mut from: BufReader<OwnedReadHalf>,
    mut to: OwnedWriteHalf,
    text: &mut Vec<u8>,
) -> Result<(), StreamError> {
    let (mut data_ended, mut error_ended) = (false, false);
    while !(data_ended && error_ended) {
        let mut head = [0; HEAD];
        from.read_exact(&mut head).await.map_err(cut)?;
        match Head::parse(head)? {
            Head::Data { stream: DATA, fin, length } => {
                // Where nobody takes them any more they are passed over: the error stream is still to come.
                let mut payload = (&mut from).take(length as u64);
                if tokio::io::copy_buf(&mut payload, &mut to).await.is_err() {
                    tokio::io::copy_buf(&mut payload, &mut tokio::io::sink()).await?;
                }
                if fin {
                    data_ended = true;
                    let _ = to.shutdown().await;
                }
            }
            Head::Data { fin, length, .. } => {
                let mut payload = (&mut from).take(length as u64);
                (&mut payload).take(TEXT).read_to_end(text).await?;
                tokio::io::copy_buf(&mut payload, &mut tokio::io::sink()).await?;
                error_ended |= fin;
            }
            Head::Control { kind, flags, length } => {
                let mut payload = vec![0; length];
                from.read_exact(&mut payload).await.map_err(cut)?;
                match Control::parse(kind, flags, &payload)? {
                    Control::Reset { .. } => {
                        return Err(StreamError::Session("the pod's port was refused".to_owned()));
                    }
                    Control::GoAway => return Err(StreamError::Cut),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn cut(error: io::Error) -> StreamError {
    if error.kind() == io::ErrorKind::UnexpectedEof { StreamError::Cut } else { error.into() }
}

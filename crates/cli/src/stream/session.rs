//! A process's streams joined to ours over a WebSocket: the channels of v5.channel.k8s.io.
//!
//! What is typed and what is shown travel independently, so that neither waits for the other.

use std::io::{ErrorKind, Read, Write, stderr, stdin, stdout};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{StreamError, dial};
use crate::terminal;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of input sent at once.
const PIECE: usize = 32 << 10;
/// What leaves a session that can be left: ^P ^Q.
const LEAVING: [u8; 2] = [0x10, 0x11];

type Socket = WebSocketStream<TcpStream>;

/// What of ours is joined.
#[derive(Debug, Clone, Copy)]
pub struct Ours {
    pub stdin: bool,
    pub tty: bool,
    /// Typing ^P ^Q ends the session and nothing else.
    pub can_leave: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process did, with this exit code; 0 where there is none.
    Exit(i32),
    /// ^P ^Q.
    Left,
    /// This signal came to us, or nobody reads our output any more, which is like SIGPIPE.
    Signal(i32),
}

impl End {
    /// As an exit code, the shells' way.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Exit(code) => code,
            Self::Left => 0,
            Self::Signal(number) => 128 + number,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// Serves the session until its end. The terminal is as before then.
pub async fn run(url: &str, ours: Ours) -> Result<End, StreamError> {
    let mut signals = Signals::new()?;
    // Raw only where what is typed gets somewhere: else ^C would do nothing.
    let raw = ours.tty && ours.stdin;
    let _raw = raw.then(terminal::Raw::enter).transpose().map_err(|_| StreamError::Terminal)?;
    let (to, from) = connect(url).await?.split();
    tokio::select! {
        end = show(from) => end,
        end = tell(to, ours) => Ok(end),
        number = signals.next() => Ok(End::Signal(number)),
    }
}

async fn connect(url: &str) -> Result<Socket, StreamError> {
    let (connection, authority, path) = dial(url).await?;
    let request = format!("ws://{authority}{path}").into_client_request();
    let mut request = request.map_err(failed)?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let (socket, _) = client_async(request, connection).await.map_err(failed)?;
    Ok(socket)
}

fn failed(error: tungstenite::Error) -> StreamError {
    match error {
        tungstenite::Error::Http(answer) => StreamError::Refused(answer.status().to_string()),
        error => Box::new(error).into(),
    }
}

/// The signals that end us, so that the terminal is put back first.
struct Signals([(Signal, i32); 3]);

impl Signals {
    fn new() -> Result<Self, StreamError> {
        let of = |kind: SignalKind| Ok::<_, StreamError>((signal(kind)?, kind.as_raw_value()));
        Ok(Self([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    async fn next(&mut self) -> i32 {
        let [(interrupt, a), (terminate, b), (hangup, c)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}

/// Sends what is typed and the terminal's size. Ends only by ^P ^Q: what else went wrong, the other direction tells.
async fn tell(mut to: SplitSink<Socket, Message>, ours: Ours) -> End {
    let mut typed = if ours.stdin { read_stdin() } else { mpsc::channel(1).1 };
    let mut keys = Keys { can_leave: ours.can_leave && ours.tty, held: false };
    let mut input = ours.stdin;
    let mut resized = signal(SignalKind::window_change()).ok();
    let mut told = to.send(size(ours)).await;
    while told.is_ok() {
        let message = tokio::select! {
            piece = typed.recv(), if input => match piece {
                Some(piece) => {
                    let (message, leave) = keys.pass(&piece);
                    if leave {
                        return End::Left;
                    }
                    message
                }
                None => {
                    input = false;
                    vec![CLOSE, STDIN].into()
                }
            },
            () = window_change(&mut resized), if ours.tty => size(ours),
            else => break,
        };
        told = to.send(message).await;
    }
    std::future::pending().await
}

async fn window_change(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}

/// A thread, because a read of a terminal cannot be given up: the process ends without it.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match stdin().lock().read(&mut piece) {
                Ok(read @ 1..) if sender.blocking_send(piece[..read].to_vec()).is_ok() => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    receiver
}

/// The terminal's size; an empty piece of input where there is none.
fn size(ours: Ours) -> Message {
    let Some((width, height)) = terminal::size().filter(|_| ours.tty) else {
        return vec![STDIN].into();
    };
    let mut message = vec![RESIZE];
    message.extend(format!("{{\"Width\":{width},\"Height\":{height}}}").into_bytes());
    message.into()
}

/// What is typed on its way, with an eye on ^P ^Q.
struct Keys {
    can_leave: bool,
    /// ^P was typed and not passed on yet.
    held: bool,
}

impl Keys {
    /// The message that passes a piece on, and whether the session is left.
    fn pass(&mut self, piece: &[u8]) -> (Message, bool) {
        let mut message = Vec::with_capacity(piece.len() + 2);
        message.push(STDIN);
        for key in piece {
            if std::mem::take(&mut self.held) {
                if *key == LEAVING[1] {
                    return (message.into(), true);
                }
                message.push(LEAVING[0]);
            }
            if self.can_leave && *key == LEAVING[0] {
                self.held = true;
            } else {
                message.push(*key);
            }
        }
        (message.into(), false)
    }
}

/// Shows what the process says until its end.
async fn show(mut from: SplitStream<Socket>) -> Result<End, StreamError> {
    while let Some(message) = from.next().await {
        let Message::Binary(bytes) = message.map_err(failed)? else { continue };
        let Some((channel, bytes)) = bytes.split_first() else { continue };
        let shown = match *channel {
            STDOUT => write(&mut stdout().lock(), bytes),
            STDERR => write(&mut stderr().lock(), bytes),
            ERROR if !bytes.is_empty() => return exit_code(bytes).map(End::Exit),
            _ => Ok(()),
        };
        match shown {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Signal(13)),
            shown => shown.map_err(StreamError::Output)?,
        }
    }
    Err(StreamError::Cut)
}

fn write(out: &mut dyn Write, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// From the `Status` object of Kubernetes.
fn exit_code(status: &[u8]) -> Result<i32, StreamError> {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let mut codes = causes.filter(|cause| cause["reason"] == "ExitCode");
    let code = codes.find_map(|cause| cause["message"].as_str()?.parse().ok());
    let message = status["message"].as_str().unwrap_or("the daemon does not say why");
    code.ok_or_else(|| StreamError::Session(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_in_the_causes() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#).expect("a code"), 0);
        let failure = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failure).expect("a code"), 7);
        let error = exit_code(br#"{"status":"Failure","message":"no such program"}"#).expect_err("no code");
        assert_eq!(error.to_string(), "no such program");
    }

    #[test]
    fn a_session_is_left_by_two_keys_in_a_row() {
        let typed = |can_leave, pieces: &[&[u8]]| {
            let mut keys = Keys { can_leave, held: false };
            let passed = pieces.iter().map(|piece| keys.pass(piece));
            let (bytes, left): (Vec<_>, Vec<_>) =
                passed.map(|(m, left)| (m.into_data()[1..].to_vec(), left)).unzip();
            (bytes.concat(), left.contains(&true))
        };
        assert_eq!(typed(true, &[b"ls\x10\x11"]), (b"ls".to_vec(), true));
        assert_eq!(typed(true, &[b"\x10", b"\x11"]), (Vec::new(), true));
        assert_eq!(typed(true, &[b"\x10", b"x\x11"]), (b"\x10x\x11".to_vec(), false));
        assert_eq!(typed(true, &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(typed(false, &[b"a\x10\x11"]), (b"a\x10\x11".to_vec(), false));
    }

    #[test]
    fn ends_are_codes_as_shells_give_them() {
        assert_eq!(
            [End::Exit(7), End::Exit(300), End::Left, End::Signal(15)].map(End::code),
            [7, 255, 0, 143]
        );
    }
}

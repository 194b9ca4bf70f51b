//! Exec and attach: a client on one side, the ends of a process's streams on the other.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use pod::{Attached, ContainerState, Execution, Pods, Wanted};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use crate::chunk::Chunk;
use crate::client::{Client, Sender, Size};
use crate::outcome::Outcome;
use crate::request::{Attach, Exec, Streams};

/// How long output is awaited after the process ended, while a child of it holds the pipe and says nothing.
const DRAIN: Duration = Duration::from_millis(100);
/// How long a buffer is kept for more output. Most sessions say little and wait long.
const REST: Duration = Duration::from_millis(50);
/// How long after the last output of an attached container its end is awaited.
const ENDING: Duration = Duration::from_secs(1);

impl From<Streams> for Wanted {
    fn from(streams: Streams) -> Self {
        let Streams { stdin, stdout, stderr, tty } = streams;
        Self { stdin, stdout, stderr: stderr && !tty, tty }
    }
}

/// Runs a command for a client. A client that leaves takes the command with it.
pub(crate) async fn exec(pods: &Pods, request: Exec, mut client: Client) {
    let started = pods.exec(&request.container, request.command, request.streams.into()).await;
    let outcome = match started {
        Err(error) => Outcome::Failed(chain(&error)),
        Ok(mut execution) => {
            let gone = client.gone.clone();
            let outcome = tokio::select! {
                outcome = run(&mut execution, &mut client) => outcome.ok(),
                () = gone.cancelled() => None,
            };
            let Some(outcome) = outcome else { return execution.kill().await };
            outcome
        }
    };
    client.finish(&outcome).await;
}

/// Serves the client until the command has ended and everything it said is sent. An error: the client is lost.
async fn run(execution: &mut Execution, client: &mut Client) -> io::Result<Outcome> {
    let (tell_end, ended) = watch::channel(false);
    let input = feed(client.stdin.take(), execution.stdin.take());
    let terminal = execution.terminal.take();
    let mut told = client.size.clone();
    let sizes = async {
        while let (Some(size), Some(terminal)) = (next_size(&mut told).await, &terminal) {
            let _ = sys::pty::resize(terminal, size.width, size.height);
        }
    };
    let (stdout, stderr) = (execution.stdout.take(), execution.stderr.take());
    let outputs = async {
        tokio::try_join!(
            pump(stdout.as_ref(), client.stdout.as_ref(), ended.clone()),
            pump(stderr.as_ref(), client.stderr.as_ref(), ended.clone()),
        )
    };
    let exit = async {
        let code = execution.exit().await;
        tell_end.send_replace(true);
        code
    };
    let work = async {
        let (exit, sent) = tokio::join!(exit, outputs);
        sent.map(|_| match exit {
            Some(code) => Outcome::Exit(code),
            None => Outcome::Failed("the pod's shim is gone, and the command with it".to_owned()),
        })
    };
    tokio::select! {
        outcome = work => outcome,
        () = forever(input) => unreachable!("it never ends"),
        () = forever(sizes) => unreachable!("it never ends"),
    }
}

/// Connects a client to a container's process 1.
pub(crate) async fn attach(pods: &Pods, request: Attach, mut client: Client) {
    let outcome = match pods.attach(&request.container, request.streams.into()).await {
        Err(error) => Outcome::Failed(chain(&error)),
        Ok(attached) => {
            let gone = client.gone.clone();
            tokio::select! {
                outcome = serve(pods, &request, attached, &mut client) => match outcome {
                    Ok(outcome) => outcome,
                    Err(_) => return,
                },
                () = gone.cancelled() => return,
            }
        }
    };
    client.finish(&outcome).await;
}

async fn serve(
    pods: &Pods,
    request: &Attach,
    mut attached: Attached,
    client: &mut Client,
) -> io::Result<Outcome> {
    let id = &request.container;
    let (_running, ended) = watch::channel(false);
    let input = async {
        feed(client.stdin.take(), attached.stdin.take()).await;
        if attached.stdin_once {
            let _ = pods.close_stdin(id).await;
        }
    };
    let mut told = client.size.clone();
    let sizes = async {
        while let Some(size) = next_size(&mut told).await {
            let _ = pods.resize(id, size.width, size.height).await;
        }
    };
    let (stdout, stderr) = (attached.stdout.take(), attached.stderr.take());
    if stdout.is_none() && stderr.is_none() {
        input.await;
        return Ok(Outcome::Done);
    }
    let work = async {
        tokio::try_join!(
            pump(stdout.as_ref(), client.stdout.as_ref(), ended.clone()),
            pump(stderr.as_ref(), client.stderr.as_ref(), ended.clone()),
        )
    };
    tokio::select! {
        sent = work => sent?,
        () = forever(input) => unreachable!("it never ends"),
        () = forever(sizes) => unreachable!("it never ends"),
    };
    Ok(end_of(pods, request).await)
}

/// Why a container's output ended: it did, or its shim gave up a client that did not keep up.
async fn end_of(pods: &Pods, request: &Attach) -> Outcome {
    let running = || pods.container(&request.container).is_ok_and(|c| c.state() == ContainerState::Running);
    let deadline = tokio::time::Instant::now() + ENDING;
    while running() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(ENDING / 50).await;
    }
    if running() {
        let why = "the container runs on: it has closed its output, or this client read it too slowly";
        return Outcome::Failed(why.to_owned());
    }
    Outcome::Done
}

async fn forever(work: impl Future<Output = ()>) {
    work.await;
    std::future::pending().await
}

/// Passes what the client types on, until it ends or nobody reads it.
async fn feed(from: Option<mpsc::Receiver<Bytes>>, to: Option<pipe::Sender>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(mut bytes) = from.recv().await {
        if to.write_all_buf(&mut bytes).await.is_err() {
            return;
        }
    }
}

/// The next size that the client tells; none: it will tell no more.
async fn next_size(sizes: &mut watch::Receiver<Option<Size>>) -> Option<Size> {
    loop {
        sizes.changed().await.ok()?;
        if let Some(size) = *sizes.borrow_and_update() {
            return Some(size);
        }
    }
}

/// Sends what a process says until no writer is left, or it has ended and nothing comes any more.
async fn pump(
    from: Option<&pipe::Receiver>,
    to: Option<&Sender>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let (Some(from), Some(to)) = (from, to) else { return Ok(()) };
    let mut silence = std::pin::pin!(async move {
        if ended.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let (mut over, mut chunk) = (false, Chunk::new());
    loop {
        tokio::select! {
            biased;
            ready = from.readable() => ready?,
            () = &mut silence, if !over => { over = true; continue }
            () = tokio::time::sleep(DRAIN), if over => return Ok(()),
            () = tokio::time::sleep(REST), if chunk.is_held() => { chunk = Chunk::new(); continue }
        }
        if !drain(from, to, &mut chunk).await? {
            return Ok(());
        }
    }
}

/// Sends what is there now; `false`: no writer is left.
async fn drain(from: &pipe::Receiver, to: &Sender, chunk: &mut Chunk) -> io::Result<bool> {
    loop {
        match chunk.fill(|bytes| from.try_read_buf(bytes)) {
            Ok(0) => return Ok(false),
            Ok(_) => to.send(chunk).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            // EIO: a terminal that no program has open any more.
            Err(_) => return Ok(false),
        }
    }
}

/// An error and its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

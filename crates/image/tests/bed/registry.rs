//! A registry that does exactly what a test tells it, and the real one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use image::Digest;

use super::Built;

#[derive(Clone)]
pub enum Reply {
    /// 200 with this body.
    Body(Vec<u8>),
    /// A status, headers and a body.
    Status(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// 200 that announces more than it sends.
    Truncated(Vec<u8>, usize),
    /// At most so many bytes of what is asked for, then the end of the connection. The ranges it knows begin so many
    /// bytes too late.
    Pieces { body: Vec<u8>, most: usize, late: usize },
    /// The same without ranges: each answer is from the beginning, and one piece longer than the one before.
    Growing { body: Vec<u8>, piece: usize },
    /// 200 whose body has no length and no end.
    Endless,
    /// 200 that stops half-way and keeps the connection.
    Stall(Vec<u8>),
    /// `Body` when the Authorization header is this, else 401 with this challenge.
    Guarded { authorization: String, challenge: String, body: Vec<u8> },
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub headers: Vec<String>,
    /// First byte that is asked for.
    pub offset: usize,
}

#[derive(Default)]
struct State {
    replies: Mutex<HashMap<String, Reply>>,
    requests: Mutex<Vec<Request>>,
}

/// A scripted registry on a port of its own.
pub struct Registry {
    pub address: String,
    state: Arc<State>,
}

impl Registry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&served);
                thread::spawn(move || serve(stream.unwrap(), &state));
            }
        });
        Self { address, state }
    }

    pub fn reply(&self, path: &str, reply: Reply) {
        self.state.replies.lock().unwrap().insert(path.to_owned(), reply);
    }

    /// Puts an image under `repository:tag` and returns its name.
    pub fn put(&self, repository: &str, tag: &str, image: &Built) -> String {
        for target in [tag.to_owned(), Digest::of(&image.manifest).to_string()] {
            self.reply(&format!("/v2/{repository}/manifests/{target}"), Reply::Body(image.manifest.clone()));
        }
        for blob in image.blobs.iter().chain([&image.config]) {
            self.blob(repository, &Digest::of(blob), Reply::Body(blob.clone()));
        }
        format!("{}/{repository}:{tag}", self.address)
    }

    pub fn blob(&self, repository: &str, digest: &Digest, reply: Reply) {
        self.reply(&format!("/v2/{repository}/blobs/{digest}"), reply);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How often `method` was asked of paths that contain `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.requests().iter().filter(|r| r.method == method && r.path.contains(part)).count()
    }
}

fn serve(stream: TcpStream, state: &State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let range = header("range").unwrap_or_default();
    let offset = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let authorization = header("authorization");
    let request = Request { method, path, authorization, headers, offset };
    let before = {
        let mut requests = state.requests.lock().unwrap();
        requests.push(request.clone());
        requests.iter().filter(|known| known.path == request.path).count()
    };
    let reply = {
        let replies = state.replies.lock().unwrap();
        let bare = request.path.split('?').next().unwrap();
        replies.get(bare).cloned().unwrap_or(Reply::Status(404, Vec::new(), Vec::new()))
    };
    let _ = answer(stream, &request, reply, before);
}

fn answer(mut stream: TcpStream, request: &Request, reply: Reply, turn: usize) -> std::io::Result<()> {
    let head = request.method == "HEAD";
    let mut send = |status: u16, headers: &[(&str, String)], length: Option<usize>, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status} Status\r\nConnection: close\r\n")?;
        for (key, value) in headers {
            write!(stream, "{key}: {value}\r\n")?;
        }
        if let Some(length) = length {
            write!(stream, "Content-Length: {length}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        stream.write_all(if head { b"" } else { body })
    };
    match reply {
        Reply::Body(body) => send(200, &[], Some(body.len()), &body),
        Reply::Status(status, headers, body) => send(status, &headers, Some(body.len()), &body),
        Reply::Truncated(body, length) => send(200, &[], Some(length), &body),
        Reply::Pieces { body, most, late } if request.offset > 0 => {
            let from = (request.offset + late).min(body.len());
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            let end = (from + most).min(body.len());
            send(206, &[("Content-Range", range)], Some(body.len() - from), &body[from..end])
        }
        Reply::Pieces { body, most, .. } => send(200, &[], Some(body.len()), &body[..most.min(body.len())]),
        Reply::Growing { body, piece } => {
            send(200, &[], Some(body.len()), &body[..(piece * turn).min(body.len())])
        }
        Reply::Endless => {
            send(200, &[], None, b"")?;
            while stream.write_all(&[b' '; 65536]).is_ok() {}
            Ok(())
        }
        Reply::Stall(body) => {
            send(200, &[], Some(body.len() + 1000), &body)?;
            thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        Reply::Guarded { authorization, challenge, body } => match &request.authorization {
            Some(given) if *given == authorization => send(200, &[], Some(body.len()), &body),
            _ => send(401, &[("WWW-Authenticate", challenge)], Some(0), b""),
        },
    }
}

/// The real docker-registry with the images of `hack/images`, on a free port; ends with this value.
pub struct Real {
    pub address: String,
    name: String,
}

impl Real {
    /// `None`, with the reason printed, where it is not installed.
    pub fn start() -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("image-tests-{}-{count}", std::process::id());
        let started = Command::new(script()).args(["start", &name]).output().ok()?;
        if !started.status.success() {
            eprintln!("SKIPPED: no docker-registry: {}", String::from_utf8_lossy(&started.stderr).trim());
            return None;
        }
        let address = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        Some(Self { address, name })
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/meridian/{name}", self.address)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = Command::new(script()).args(["stop", &self.name]).status();
    }
}

fn script() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/registry")
}

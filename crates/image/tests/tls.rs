//! Registries over TLS: certificates are checked, and nothing that began with TLS goes on without.
//!
//! The machine's certificates are what `SSL_CERT_FILE` says, so the test runs itself again with a file of its own.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use bed::registry::{Registry, Reply};
use bed::tar::Tar;
use bed::{Bed, Packing, build, chain, is_root};
use image::{Auth, Class, Digest, Mirror};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const CERTIFICATES: &str = "SSL_CERT_FILE";

#[test]
fn tls_is_checked_and_never_left() {
    if !is_root() {
        return;
    }
    if std::env::var_os("MERIDIAN_TLS_TEST").is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(pulls());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (file, key) = (directory.path().join("ca.pem"), directory.path().join("key.der"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&file, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_der()).unwrap();
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls_is_checked_and_never_left", "--nocapture"])
        .env(CERTIFICATES, &file)
        .env("MERIDIAN_TLS_TEST", &key)
        .status()
        .unwrap();
    assert!(again.success());
}

async fn pulls() {
    let image = build(&[Tar::new().file("f", "x").end()], Packing::Gzip);
    let registry = Registry::start();
    registry.put("library/x", "1", &image);
    let secure = terminate(&registry.address);
    let port = secure.rsplit(':').next().unwrap();

    // A registry that is known, under the name of its certificate.
    let trusted = format!("https://localhost:{port}");
    let mirrored = |endpoint: &str| {
        let endpoint = endpoint.to_owned();
        move |config: &mut image::ImageConfig| {
            config.mirrors = vec![Mirror { host: "registry.invalid".into(), endpoint }];
        }
    };
    let name = "registry.invalid/library/x:1";
    let bed = Bed::with(mirrored(&trusted));
    bed.images.pull(name, None).await.map_err(|error| chain(&error)).unwrap();
    bed.assert_clean("trusted");

    // The same under a name that the certificate does not have.
    let bed = Bed::with(mirrored(&format!("https://127.0.0.1:{port}")));
    let before = registry.requests().len();
    let error = bed.images.pull(name, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{}", chain(&error));
    assert_eq!(registry.requests().len(), before, "nothing was asked");

    // A redirect to plain HTTP, of the blob and of the manifest.
    let plain = Registry::start();
    let blob = Digest::of(&image.blobs[0]);
    let location = format!("http://{}/blob", plain.address);
    registry.blob("library/x", &blob, Reply::Status(307, vec![("Location", location)], vec![]));
    let bed = Bed::with(mirrored(&trusted));
    bed.images.pull(name, None).await.unwrap_err();
    assert_eq!(plain.requests().len(), 0, "a redirect to plain HTTP was followed");

    // A token service without TLS.
    let realm = format!("http://{}/token", plain.address);
    let guarded = Reply::Guarded {
        authorization: "Bearer x".into(),
        challenge: format!(r#"Bearer realm="{realm}""#),
        body: vec![],
    };
    registry.reply("/v2/library/x/manifests/1", guarded);
    let bed = Bed::with(mirrored(&trusted));
    let auth = Auth::Basic { username: "user".into(), password: "hunter2".into() };
    bed.images.pull(name, Some(auth)).await.unwrap_err();
    assert_eq!(plain.requests().len(), 0, "a token was asked for without TLS");
}

/// Listens with TLS and passes everything on to `plain`.
fn terminate(plain: &str) -> String {
    let certificate = CertificateDer::from_pem_file(std::env::var_os(CERTIFICATES).unwrap()).unwrap();
    let key = std::fs::read(std::env::var_os("MERIDIAN_TLS_TEST").unwrap()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let plain = plain.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, plain) = (Arc::clone(&config), plain.clone());
            thread::spawn(move || pass_on(stream.unwrap(), config, &plain));
        }
    });
    address
}

/// One request and its answer; the scripted registry closes after each.
fn pass_on(stream: TcpStream, config: Arc<ServerConfig>, plain: &str) -> Option<()> {
    let mut secure = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        secure.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let mut upstream = TcpStream::connect(plain).ok()?;
    upstream.write_all(&request).ok()?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).ok()?;
    secure.write_all(&answer).ok()?;
    secure.conn.send_close_notify();
    secure.flush().ok()
}

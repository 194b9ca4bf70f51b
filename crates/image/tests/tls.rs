//! Registries over TLS: certificates are checked, and nothing that began with TLS goes on without.
//!
//! The machine's certificates are what `SSL_CERT_FILE` says, so the test runs itself again with a file of its own.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests may fail at once and list many cases")]

mod bed;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
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

/// Directory of `ca.pem`, the certificate of localhost and its own authority, and of `key.der`.
const MATERIAL: &str = "MERIDIAN_TLS_TEST";

#[test]
fn tls_is_checked_and_never_left() {
    again("tls_is_checked_and_never_left", "ca.pem", pulls);
}

/// A node without certificate authorities is a node all the same.
#[test]
fn authorities_are_missed_only_where_they_are_needed() {
    again("authorities_are_missed_only_where_they_are_needed", "none.pem", pulls_without_authorities);
}

/// Runs `test` in another process whose system trusts what `trusted` holds.
fn again<F: Future<Output = ()>>(name: &str, trusted: &str, test: impl FnOnce(PathBuf) -> F) {
    if !is_root() {
        return;
    }
    if let Some(material) = std::env::var_os(MATERIAL) {
        tokio::runtime::Runtime::new().unwrap().block_on(test(material.into()));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(directory.path().join("ca.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.path().join("key.der"), made.signing_key.serialize_der()).unwrap();
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CERTIFICATES, directory.path().join(trusted))
        .env("SSL_CERT_DIR", directory.path().join("none"))
        .env(MATERIAL, directory.path())
        .status()
        .unwrap();
    assert!(again.success());
}

async fn pulls_without_authorities(material: PathBuf) {
    let image = build(&[Tar::new().file("f", "x").end()], Packing::Gzip);
    let registry = Registry::start();
    let plain = registry.put("library/x", "1", &image);
    let bed = Bed::new();
    bed.images.pull(&plain, None).await.map_err(|error| chain(&error)).unwrap();

    let secure = terminate(&material, &registry.address);
    let port = secure.rsplit(':').next().unwrap();
    let name = "registry.invalid/library/x:1";
    let hosts = material.join("hosts");
    let place = hosts.join("registry.invalid");
    std::fs::create_dir_all(&place).unwrap();
    let text = format!("server = \"https://localhost:{port}\"\n");
    std::fs::write(place.join("hosts.toml"), &text).unwrap();
    let bed = Bed::with(|config| config.hosts = vec![hosts]);
    let error = bed.images.pull(name, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains("ca-certificates"), "{}", chain(&error));
    std::fs::write(
        place.join("hosts.toml"),
        format!("{text}ca = \"{}\"\n", material.join("ca.pem").display()),
    )
    .unwrap();
    bed.images.pull(name, None).await.map_err(|error| chain(&error)).unwrap();
}

async fn pulls(material: PathBuf) {
    let image = build(&[Tar::new().file("f", "x").end()], Packing::Gzip);
    let registry = Registry::start();
    registry.put("library/x", "1", &image);
    let secure = terminate(&material, &registry.address);
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
fn terminate(material: &Path, plain: &str) -> String {
    let certificate = CertificateDer::from_pem_file(material.join("ca.pem")).unwrap();
    let key = std::fs::read(material.join("key.der")).unwrap();
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

use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::Context;
use crate::{
    error::Error,
    output::{self, Format},
};

/// Validity of the CA. There is no revocation: nodes trust exactly the CA they are given, and a certificate that got
/// into wrong hands is good until it ends.
const AUTHORITY: Duration = Duration::days(3650);
/// Validity of a node's certificate; `certs init` in the same directory makes the next, once the old files are moved.
const NODE: Duration = Duration::days(365);

/// Certificates for moving pods between nodes
#[derive(Debug, Args)]
pub struct Certs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
}

/// Make a CA and a certificate for each node
///
/// Writes ca.crt and ca.key, and NODE.crt and NODE.key for each node. Copy ca.crt and a node's two files to that node
/// and name them in `[peer]` of its config.toml; keep ca.key away from nodes. A directory that holds a CA already gets
/// certificates of that CA.
#[derive(Debug, Args)]
struct Init {
    /// Where to write
    #[arg(default_value = "/etc/meridian/certs")]
    dir: PathBuf,
    /// A node: its name and the addresses or DNS names that others reach it by
    #[arg(long = "node", required = true, value_name = "NAME[=ADDRESS,...]")]
    nodes: Vec<String>,
}

impl Certs {
    pub fn run(self, cx: &Context) -> Result<(), Error> {
        let Command::Init(init) = self.command;
        let written = init.run()?;
        match cx.output {
            Format::Text => {
                output::print(written.iter().map(|p| format!("{}\n", p.display())).collect::<String>())
            }
            Format::Json => output::json(&json!({ "written": written })),
        }
    }
}

impl Init {
    /// Makes the files and returns their paths. Files that are there are never written over.
    fn run(self) -> Result<Vec<PathBuf>, Error> {
        let nodes = self.nodes.iter().map(|n| node(n)).collect::<Result<Vec<_>, _>>()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| file("make", &self.dir, source))?;
        let mut written = Vec::new();
        let issuer = self.authority(&mut written)?;
        for (name, addresses) in nodes {
            let failed = |source| Error::Certificate { name: name.clone(), source };
            let key = KeyPair::generate().map_err(failed)?;
            let certificate =
                leaf(&name, addresses).map_err(failed)?.signed_by(&key, &issuer).map_err(failed)?;
            self.write(&format!("{name}.key"), &key.serialize_pem(), &mut written)?;
            self.write(&format!("{name}.crt"), &certificate.pem(), &mut written)?;
        }
        Ok(written)
    }

    /// The CA of the directory, made if there is none. An issuer is its name and its key, and the name is always that
    /// of [`root`], so that the certificate itself need not be read.
    fn authority(&self, written: &mut Vec<PathBuf>) -> Result<Issuer<'static, KeyPair>, Error> {
        let key = self.dir.join("ca.key");
        let failed = |source| Error::Certificate { name: "Meridian CA".to_owned(), source };
        if key.exists() {
            let pem = fs::read_to_string(&key).map_err(|source| file("read", &key, source))?;
            return Ok(Issuer::new(root(), KeyPair::from_pem(&pem).map_err(failed)?));
        }
        let pair = KeyPair::generate().map_err(failed)?;
        let certificate = root().self_signed(&pair).map_err(failed)?;
        self.write("ca.key", &pair.serialize_pem(), written)?;
        self.write("ca.crt", &certificate.pem(), written)?;
        Ok(Issuer::new(root(), pair))
    }

    fn write(&self, name: &str, content: &str, written: &mut Vec<PathBuf>) -> Result<(), Error> {
        let path = self.dir.join(name);
        let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
        let opened = File::options().write(true).create_new(true).mode(mode).open(&path);
        let result = opened.and_then(|mut f| f.write_all(content.as_bytes()).and_then(|()| f.sync_all()));
        result.map_err(|source| file("make", &path, source))?;
        written.push(path);
        Ok(())
    }
}

/// `NAME` or `NAME=ADDRESS,...`; the name counts as an address, too.
fn node(text: &str) -> Result<(String, Vec<String>), Error> {
    let (name, addresses) = text.split_once('=').unwrap_or((text, ""));
    let good = |word: &str| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c))
            && !word.contains("..")
    };
    let addresses = addresses.split(',').filter(|a| !a.is_empty()).map(str::to_owned);
    let all: Vec<String> = [name.to_owned()].into_iter().chain(addresses).collect();
    if name == "ca" || !all.iter().all(|word| good(word)) {
        return Err(Error::Usage(format!(
            "--node {text:?}: write NAME or NAME=ADDRESS,ADDRESS; \"ca\" is taken"
        )));
    }
    Ok((name.to_owned(), all))
}

fn root() -> CertificateParams {
    let mut params = dated("Meridian CA", AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A node is server to some and client to others.
fn leaf(name: &str, addresses: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(name, NODE);
    for address in addresses {
        params.subject_alt_names.push(match address.parse::<IpAddr>() {
            Ok(ip) => rcgen::SanType::IpAddress(ip),
            Err(_) => rcgen::SanType::DnsName(address.try_into()?),
        });
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Valid from a day ago, for nodes whose clocks are behind.
fn dated(name: &str, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = OffsetDateTime::now_utc() - Duration::DAY;
    params.not_after = OffsetDateTime::now_utc() + validity;
    params
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn init(dir: &Path, nodes: &[&str]) -> Result<Vec<PathBuf>, Error> {
        Init { dir: dir.to_owned(), nodes: nodes.iter().map(|n| (*n).to_owned()).collect() }.run()
    }

    #[test]
    fn keys_are_private_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let written = init(dir.path(), &["a=10.0.0.1", "b=10.0.0.2,b.example"]).expect("made");
        assert_eq!(written.len(), 6);
        for path in &written {
            let mode = fs::metadata(path).expect("there").permissions().mode() & 0o777;
            assert_eq!(
                mode,
                if path.extension().is_some_and(|e| e == "key") { 0o600 } else { 0o644 },
                "{path:?}"
            );
        }
        let ca = fs::read(dir.path().join("ca.crt")).expect("read");
        assert_eq!(init(dir.path(), &["c"]).expect("made by the same CA").len(), 2);
        assert_eq!(fs::read(dir.path().join("ca.crt")).expect("read"), ca);
        assert!(matches!(init(dir.path(), &["a"]), Err(Error::File { what: "make", .. })));
    }

    #[test]
    fn names_are_no_paths() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["", "../x", "a/b", "ca", "a=b/c", "a\n"] {
            assert!(matches!(init(dir.path(), &[name]), Err(Error::Usage(_))), "{name}");
        }
    }
}

//! Directories that say how each registry is reached, in the layout of containerd's `certs.d`.
//!
//! ```text
//! DIRECTORY/registry.example:5000/hosts.toml    or registry.example_5000_, else _default
//!   server = "https://registry.example:5000"    the registry itself; this address when missing
//!   [host."https://mirror.example"]             asked before it, in the order of the file
//!     capabilities = ["pull", "resolve"]        resolve: tags too, pull: digests only
//!     ca = "ca.pem"                             beside the system's; relative to this directory
//!     client = [["node.cert", "node.key"]]      or one file with both
//!     skip_verify = false
//!     override_path = false                     true: the address is complete, /v2 is not added
//!     [host."https://mirror.example".header]
//!       x-team = "blue"
//! ```
//! The keys of a host may stand at the top as well, for the server. A directory without `hosts.toml` may hold `*.crt`
//! and pairs of `*.cert` and `*.key`, as Docker's do. Files are read anew for each pull.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::error::FetchError;
use super::tls::Tls;

const FILE: &str = "hosts.toml";

/// One address, and how it is spoken to.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// With a scheme, without the API's path.
    pub(super) address: String,
    /// The address is the API's root.
    pub(super) complete: bool,
    /// May be asked what a tag means.
    pub(super) resolves: bool,
    /// May be asked for content.
    pub(super) pulls: bool,
    pub(super) headers: HeaderMap,
    pub(super) tls: Tls,
}

/// What a directory says about a registry.
#[derive(Debug)]
pub(super) struct Hosts {
    pub(super) mirrors: Vec<Host>,
    /// The registry itself; its address is empty when the file names none.
    pub(super) server: Host,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    /// In the order of the file.
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    settings: Settings,
}

#[derive(Deserialize, Default)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<Names>,
    client: Option<Identities>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, Names>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Identities {
    One(String),
    Many(Vec<Names>),
}

impl Names {
    fn list(&self) -> Vec<&str> {
        match self {
            Self::One(name) => vec![name],
            Self::Many(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// What the first of `directories` that knows `registry` says about it.
pub(super) fn find(directories: &[PathBuf], registry: &str) -> Result<Option<Hosts>, FetchError> {
    let plain = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names: Vec<&str> =
        [Some(registry), plain.as_deref(), Some("_default")].into_iter().flatten().collect();
    for directory in directories {
        for name in &names {
            let place = directory.join(name);
            if place.is_dir() {
                return read(&place).map(Some);
            }
        }
    }
    Ok(None)
}

fn read(place: &Path) -> Result<Hosts, FetchError> {
    let file = place.join(FILE);
    let wrong = |reason: String| FetchError::Hosts { file: file.clone(), reason };
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return docker(place),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let parsed: File = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let mut mirrors = Vec::new();
    for (address, settings) in parsed.host {
        let settings = settings.try_into::<Settings>().map_err(|error| wrong(error.message().to_owned()))?;
        mirrors.push(host(place, address, &settings).map_err(wrong)?);
    }
    let server = host(place, parsed.server.unwrap_or_default(), &parsed.settings).map_err(wrong)?;
    Ok(Hosts { mirrors, server })
}

fn host(place: &Path, address: String, settings: &Settings) -> Result<Host, String> {
    let can = |what: &str| settings.capabilities.as_ref().is_none_or(|list| list.iter().any(|c| c == what));
    let mut headers = HeaderMap::new();
    for (name, values) in &settings.header {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header"))?;
        for value in values.list() {
            let value =
                HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} is none"))?;
            headers.append(name.clone(), value);
        }
    }
    let ca = settings.ca.as_ref().map(Names::list).unwrap_or_default();
    let tls = Tls {
        ca: ca.into_iter().map(|name| place.join(name)).collect(),
        identities: identities(place, settings.client.as_ref())?,
        skip_verify: settings.skip_verify,
    };
    let complete = settings.override_path;
    Ok(Host { address, complete, resolves: can("resolve"), pulls: can("pull"), headers, tls })
}

/// Files that together hold a certificate and its key: a path, a list of paths, a list of pairs.
fn identities(place: &Path, client: Option<&Identities>) -> Result<Vec<Vec<PathBuf>>, String> {
    let one = |names: Vec<&str>| match names.len() {
        1 | 2 => Ok(names.into_iter().map(|name| place.join(name)).collect()),
        _ => Err("client must be a file, or pairs of a certificate and a key".to_owned()),
    };
    match client {
        None => Ok(Vec::new()),
        Some(Identities::One(name)) => Ok(vec![vec![place.join(name)]]),
        Some(Identities::Many(list)) => list.iter().map(|names| one(names.list())).collect(),
    }
}

/// Docker's directories hold files of certificates only.
fn docker(place: &Path) -> Result<Hosts, FetchError> {
    let listing = fs::read_dir(place);
    let wrong =
        |error: std::io::Error| FetchError::Hosts { file: place.to_owned(), reason: error.to_string() };
    let mut paths: Vec<PathBuf> =
        listing.map_err(wrong)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let ending = |ending: &str| {
        let wanted = ending.to_owned();
        paths.iter().filter(move |path| path.extension().is_some_and(|found| *found == *wanted)).cloned()
    };
    let tls = Tls {
        ca: ending("crt").collect(),
        identities: ending("cert").map(|path| vec![path.clone(), path.with_extension("key")]).collect(),
        skip_verify: false,
    };
    Ok(Hosts { mirrors: Vec::new(), server: Host { resolves: true, pulls: true, tls, ..Host::default() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_in_its_order() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("registry.example_5000_");
        fs::create_dir(&place).unwrap();
        let text = r#"
            server = "https://origin.example"
            skip_verify = true
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = ["a.pem", "/etc/b.pem"]
              client = [["c.cert", "c.key"], "both.pem"]
              dial_timeout = "3s"
              [host."https://z.example".header]
                x-team = ["blue", "green"]
            [host."http://a.example/proxy"]
              override_path = true
        "#;
        fs::write(place.join(FILE), text).unwrap();
        let found = find(&[root.path().to_owned()], "registry.example:5000").unwrap().unwrap();
        let [z, a] = &found.mirrors[..] else { panic!("{found:?}") };
        assert_eq!((z.address.as_str(), a.address.as_str()), ("https://z.example", "http://a.example/proxy"));
        assert!(z.pulls && !z.resolves && a.pulls && a.resolves && a.complete && !z.complete);
        assert_eq!(z.headers.get_all("x-team").iter().count(), 2);
        assert_eq!(z.tls.ca, [place.join("a.pem"), "/etc/b.pem".into()]);
        assert_eq!(
            z.tls.identities,
            [vec![place.join("c.cert"), place.join("c.key")], vec![place.join("both.pem")]]
        );
        assert!(found.server.tls.skip_verify && found.server.address == "https://origin.example");
        assert!(find(&[root.path().to_owned()], "other.example").unwrap().is_none());
        fs::create_dir(root.path().join("_default")).unwrap();
        assert!(find(&[root.path().to_owned()], "other.example").unwrap().is_some());
        for bad in
            ["host = 1", "[host.x]\nca = 1", "[host.x.header]\n'a b' = 'c'", "client = [['a','b','c']]", "["]
        {
            fs::write(place.join(FILE), bad).unwrap();
            let error = find(&[root.path().to_owned()], "registry.example:5000").unwrap_err();
            assert!(error.to_string().contains("hosts.toml"), "{bad}: {error}");
        }
    }

    #[test]
    fn dockers_directories_hold_certificates() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("registry.example");
        fs::create_dir(&place).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "notes"] {
            fs::write(place.join(name), "").unwrap();
        }
        let found = find(&[root.path().to_owned()], "registry.example").unwrap().unwrap().server.tls;
        assert_eq!(found.ca, [place.join("ca.crt")]);
        assert_eq!(found.identities, [vec![place.join("client.cert"), place.join("client.key")]]);
    }
}

//! Configuration lists as they lie in a directory: found, bounded, checked.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// A list takes some kilobytes; more is no list.
const LIMIT: u64 = 1 << 20;
/// Versions whose results and operations are understood, oldest first.
const VERSIONS: [Version; 6] = [
    Version(0, 3, 0),
    Version(0, 3, 1),
    Version(0, 4, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
    Version(1, 1, 1),
];

/// Why there is no list to use.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The directory holds no configuration (yet).
    #[error("no CNI configuration in {}", directory.display())]
    None {
        /// As configured.
        directory: PathBuf,
    },
    /// Directory or file cannot be read.
    #[error("read CNI configuration {}", path.display())]
    Read {
        /// Of directory or file.
        path: PathBuf,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// It is no JSON.
    #[error("CNI configuration {} is no JSON", path.display())]
    Json {
        /// Of the file.
        path: PathBuf,
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
    /// It breaks the specification, section 1.
    #[error("CNI configuration {}: {key} must be {rule}", path.display())]
    Rule {
        /// Of the file.
        path: PathBuf,
        /// The offending key.
        key: &'static str,
        /// What would be right.
        rule: &'static str,
    },
}

/// Of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub u8, pub u8, pub u8);

impl Version {
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        (parts.next().is_none() && VERSIONS.contains(&version)).then_some(version)
    }
}

/// A valid list.
#[derive(Debug, Clone)]
pub(super) struct List {
    pub name: String,
    pub version: Version,
    /// As written.
    pub version_text: String,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
    /// The whole file, for the record.
    pub value: Value,
}

/// One plugin's part of a list.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    /// Name of its program.
    pub kind: String,
    /// All of its keys.
    pub keys: Map<String, Value>,
}

impl Plugin {
    /// Whether it wants to be told about this.
    pub fn has(&self, capability: &str) -> bool {
        self.keys.get("capabilities").and_then(|all| all.get(capability)).and_then(Value::as_bool)
            == Some(true)
    }
}

/// The list of the first file by name, as the field's runtimes choose.
pub(super) fn load(directory: &Path) -> Result<List, ListError> {
    let failed = |source| ListError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ListError::None { directory: directory.to_owned() });
        }
        Err(error) => return Err(failed(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let first = paths.map_err(failed)?.into_iter().filter(|path| is_configuration(path)).min();
    let path = first.ok_or_else(|| ListError::None { directory: directory.to_owned() })?;
    let mut text = Vec::new();
    let read = fs::File::open(&path).and_then(|file| file.take(LIMIT).read_to_end(&mut text));
    read.map_err(|source| ListError::Read { path: path.clone(), source })?;
    let value =
        serde_json::from_slice(&text).map_err(|source| ListError::Json { path: path.clone(), source })?;
    List::new(value).map_err(|(key, rule)| ListError::Rule { path, key, rule })
}

fn is_configuration(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known))
}

impl List {
    /// Checks a list, or a configuration of a single plugin, which is a list of one.
    pub fn new(value: Value) -> Result<Self, (&'static str, &'static str)> {
        let name = text(&value, "name").filter(|name| is_name(name));
        let name =
            name.ok_or(("name", "letters, digits, '.', '_' and '-', and begin with a letter or digit"))?;
        // Of several (since 1.1.0) the newest that both sides know.
        let offered = value.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
        let offered = offered.filter_map(Value::as_str).chain(text(&value, "cniVersion"));
        let known = offered.filter_map(|text| Version::parse(text).map(|version| (version, text)));
        let (version, version_text) = known.max().ok_or(("cniVersion", "0.3.0 to 1.1.1"))?;
        let plugins = match value.get("plugins") {
            Some(plugins) => plugins.as_array().cloned().unwrap_or_default(),
            None => vec![value.clone()],
        };
        let plugins = plugins.into_iter().map(plugin).collect::<Option<Vec<_>>>();
        let plugins = plugins.filter(|plugins| !plugins.is_empty());
        let plugins =
            plugins.ok_or(("plugins", "objects, each with a type that names a program and no path"))?;
        let (disable_check, disable_gc) = (is_on(&value, "disableCheck"), is_on(&value, "disableGC"));
        let (name, version_text) = (name.to_owned(), version_text.to_owned());
        Ok(Self { name, version, version_text, disable_check, disable_gc, plugins, value })
    }
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

/// The field's lists have such keys as text, too.
fn is_on(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(|value| *value == Value::Bool(true) || value.as_str() == Some("true"))
}

fn plugin(value: Value) -> Option<Plugin> {
    let kind = text(&value, "type").filter(|kind| is_name(kind))?.to_owned();
    let ipam = value.get("ipam").and_then(|ipam| ipam.get("type"));
    if !ipam.is_none_or(|kind| kind.as_str().is_some_and(|kind| kind.is_empty() || is_name(kind))) {
        return None;
    }
    match value {
        Value::Object(keys) => Some(Plugin { kind, keys }),
        _ => None,
    }
}

/// A type that were a path would run any program (CVE-2021-20206).
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_single_plugins_are_lists() {
        let list = json!({"cniVersion": "1.0.0", "name": "a", "plugins": [
            {"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}}]});
        let list = List::new(list).unwrap();
        assert!(
            list.plugins[1].has("portMappings") && !list.plugins[1].has("dns") && !list.plugins[0].has("dns")
        );
        let single = List::new(json!({"cniVersion": "0.4.0", "name": "b", "type": "ptp"})).unwrap();
        assert!(single.plugins[0].kind == "ptp" && single.version < list.version);
    }

    #[test]
    fn of_several_versions_the_newest_known_is_spoken() {
        let list =
            List::new(json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "9.0.0"], "name": "a",
            "disableCheck": "true", "disableGC": true, "plugins": [{"type": "x"}]}));
        let list = list.unwrap();
        assert_eq!(list.version_text, "1.1.0");
        assert!(list.disable_check && list.disable_gc);
    }

    #[test]
    fn what_breaks_the_specification_is_named() {
        for (list, key) in [
            (json!({"cniVersion": "1.0.0", "type": "x"}), "name"),
            (json!({"cniVersion": "1.0.0", "name": "a b", "type": "x"}), "name"),
            (json!({"cniVersion": "2.0.0", "name": "a", "type": "x"}), "cniVersion"),
            (json!({"name": "a", "type": "x"}), "cniVersion"),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": []}), "plugins"),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "../../sh"}]}), "plugins"),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": ["bridge"]}), "plugins"),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "type": "x", "ipam": {"type": "/bin/sh"}}),
                "plugins",
            ),
            (json!([]), "name"),
        ] {
            assert_eq!(List::new(list.clone()).unwrap_err().0, key, "{list}");
        }
    }
}

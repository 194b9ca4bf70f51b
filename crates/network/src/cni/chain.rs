//! One operation of a list: each plugin in turn, with the environment and configuration that the specification wants
//! (sections 2 to 4).

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answer::{self, AnswerError};
use super::conflist::{List, Plugin, Version};
use super::exec::{self, Output};
use super::record::Record;
use super::{Cni, CniError};
use crate::attach::INTERFACE;

/// DEL is given the result of ADD since then.
const RESULT_FOR_DEL: Version = Version(0, 4, 0);

/// Longest wait for an answer to STATUS: the kubelet gives up a runtime whose own status has not come for 30 s.
const STATUS: Duration = Duration::from_secs(5);

/// What plugins are asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

/// Ids of the pods that are there.
#[derive(Debug)]
pub(super) struct Valid(pub Vec<String>);

/// A list with what it is about.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    list: &'a List,
    directories: &'a [PathBuf],
    deadline: Duration,
    subject: Subject<'a>,
}

#[derive(Debug)]
enum Subject<'a> {
    Pod { id: &'a str, record: &'a Record },
    Node { valid: Option<&'a Valid> },
}

impl Cni {
    pub(super) fn chain<'a>(&'a self, list: &'a List, id: &'a str, record: &'a Record) -> Chain<'a> {
        self.about(list, Subject::Pod { id, record })
    }

    pub(super) fn node<'a>(&'a self, list: &'a List, valid: Option<&'a Valid>) -> Chain<'a> {
        self.about(list, Subject::Node { valid })
    }

    fn about<'a>(&'a self, list: &'a List, subject: Subject<'a>) -> Chain<'a> {
        Chain { list, directories: &self.config.plugin_dirs, deadline: self.deadline(), subject }
    }
}

impl Chain<'_> {
    /// The last plugin's result is the pod's.
    pub fn add(&self) -> Result<(Value, Vec<IpAddr>), CniError> {
        let mut last = (Value::Null, Vec::new());
        for plugin in &self.list.plugins {
            let previous = Some(&last.0).filter(|result| result.is_object());
            let output = self.run(Operation::Add, plugin, previous)?;
            let result = answer::result(&output)
                .and_then(|result| answer::addresses(&result).map(|addresses| (result, addresses)));
            last = result.map_err(|source| failed(Operation::Add, plugin, source))?;
        }
        match self.list.plugins.last() {
            Some(plugin) if last.1.is_empty() => Err(failed(Operation::Add, plugin, AnswerError::NoAddress)),
            _ => Ok(last),
        }
    }

    /// Asks all plugins, last first, and answers the first error.
    pub fn del(&self) -> Result<(), CniError> {
        let previous = self.result().filter(|_| self.list.version >= RESULT_FOR_DEL);
        let plugins = self.list.plugins.iter().rev();
        all(plugins.map(|plugin| self.ask(Operation::Del, plugin, previous)))
    }

    /// Asks all plugins, in order, and answers the first error.
    pub fn gc(&self) -> Result<(), CniError> {
        all(self.list.plugins.iter().map(|plugin| self.ask(Operation::Gc, plugin, None)))
    }

    /// Asks one plugin after the other whether all is well, until one says no.
    pub fn inquire(&self, operation: Operation) -> Result<(), CniError> {
        self.list.plugins.iter().try_for_each(|plugin| self.ask(operation, plugin, self.result()))
    }

    fn ask(&self, operation: Operation, plugin: &Plugin, previous: Option<&Value>) -> Result<(), CniError> {
        let output = self.run(operation, plugin, previous)?;
        answer::refusal(&output).map_err(|source| failed(operation, plugin, source))
    }

    fn result(&self) -> Option<&Value> {
        match &self.subject {
            Subject::Pod { record, .. } => record.result.as_ref(),
            Subject::Node { .. } => None,
        }
    }

    fn run(
        &self,
        operation: Operation,
        plugin: &Plugin,
        previous: Option<&Value>,
    ) -> Result<Output, CniError> {
        let program = find(self.directories, &plugin.kind)?;
        let input = Value::from(self.configuration(plugin, previous)).to_string();
        let environment = self.environment(operation);
        let deadline = if operation == Operation::Status { self.deadline.min(STATUS) } else { self.deadline };
        exec::run(&program, &environment, input.as_bytes(), deadline).map_err(|source| CniError::Exec {
            plugin: plugin.kind.clone(),
            operation: operation.name(),
            source,
        })
    }

    fn environment(&self, operation: Operation) -> Vec<(&'static str, OsString)> {
        let path = std::env::join_paths(self.directories).unwrap_or_default();
        let mut all = vec![("CNI_COMMAND", operation.name().into()), ("CNI_PATH", path)];
        if let Subject::Pod { id, record } = &self.subject {
            // DEL of a pod whose namespace is gone names none.
            let netns = if record.netns.exists() { record.netns.as_path() } else { Path::new("") };
            all.push(("CNI_CONTAINERID", id.into()));
            all.push(("CNI_NETNS", netns.into()));
            all.push(("CNI_IFNAME", INTERFACE.into()));
            all.push(("CNI_ARGS", record.args.clone().into()));
        }
        all
    }

    fn configuration(&self, plugin: &Plugin, previous: Option<&Value>) -> Map<String, Value> {
        let mut keys = plugin.keys.clone();
        keys.insert("name".into(), self.list.name.clone().into());
        keys.insert("cniVersion".into(), self.list.version_text.clone().into());
        match &self.subject {
            Subject::Pod { record, .. } => {
                let wanted = record.capabilities.iter().filter(|(capability, _)| plugin.has(capability));
                let wanted: Map<_, _> = wanted.map(|(key, value)| (key.clone(), value.clone())).collect();
                if !wanted.is_empty() {
                    keys.insert("runtimeConfig".into(), wanted.into());
                }
            }
            Subject::Node { valid: Some(valid) } => {
                let attachment = |id| json!({"containerID": id, "ifname": INTERFACE});
                keys.insert("cni.dev/valid-attachments".into(), valid.0.iter().map(attachment).collect());
            }
            Subject::Node { valid: None } => {}
        }
        if let Some(previous) = previous {
            keys.insert("prevResult".into(), previous.clone());
        }
        keys
    }
}

/// The first error, after everybody was asked.
fn all(answers: impl Iterator<Item = Result<(), CniError>>) -> Result<(), CniError> {
    let errors: Vec<_> = answers.filter_map(Result::err).collect();
    errors.into_iter().next().map_or(Ok(()), Err)
}

fn failed(operation: Operation, plugin: &Plugin, source: AnswerError) -> CniError {
    CniError::Answer { plugin: plugin.kind.clone(), operation: operation.name(), source }
}

/// The first program of this name.
pub(super) fn find(directories: &[PathBuf], kind: &str) -> Result<PathBuf, CniError> {
    let mut candidates = directories.iter().map(|directory| directory.join(kind));
    candidates
        .find(|path| path.is_file())
        .ok_or_else(|| CniError::NotFound { plugin: kind.to_owned(), directories: directories.to_vec() })
}

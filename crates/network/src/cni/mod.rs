//! Pod networks of others: CNI plugins, specification 1.1 (and 1.0, 0.4, 0.3), for nodes that configure them.
//!
//! ```text
//! ADD   record written ─▶ plugin 1 ─result─▶ plugin 2 ─result─▶ … ─▶ record with the result
//!          └─ any error: DEL
//! DEL   from the record alone: plugin n ─▶ … ─▶ plugin 1 ─▶ record removed
//! ```
//!
//! The directory is read at each use: a list that appears, changes or breaks counts from that moment, for new pods;
//! those there are keep the list they were made with, in their record.

mod answer;
mod chain;
mod conflist;
mod exec;
mod record;
mod request;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;

pub use answer::AnswerError;
pub use conflist::ListError;
pub use exec::ExecError;
pub use record::RecordError;
pub use request::PodRequest;

use crate::attach::{self, AttachError};
use chain::{Operation, Valid};
use conflist::{List, Version};
use record::{Record, Records};

const CHECK: Version = Version(0, 4, 0);
const STATUS: Version = Version(1, 1, 0);
const GC: Version = Version(1, 1, 0);

/// Section `[cni]` of the daemon's configuration. All keys are optional.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniConfig {
    /// Where the configuration list is; the first by name is used.
    pub config_dir: PathBuf,
    /// Where plugins are looked for, in order.
    pub plugin_dirs: Vec<PathBuf>,
    /// How long one plugin may take, in seconds, up to 3600; STATUS has 5 at most.
    pub timeout_seconds: u64,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            config_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_seconds: 30,
        }
    }
}

/// Why the plugins did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// No usable configuration.
    #[error(transparent)]
    List(#[from] ListError),
    /// What is remembered of the pod.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record's list is none (any more).
    #[error("the CNI record of pod {pod} is damaged: {key} must be {rule}")]
    Damaged {
        /// Its id.
        pod: String,
        /// Of the list.
        key: &'static str,
        /// What would be right.
        rule: &'static str,
    },
    /// The loopback interface.
    #[error(transparent)]
    Loopback(#[from] AttachError),
    /// No such program.
    #[error("CNI plugin {plugin} is in none of {directories:?}: install it or set cni.plugin_dirs")]
    NotFound {
        /// Its type.
        plugin: String,
        /// As configured.
        directories: Vec<PathBuf>,
    },
    /// It gave no answer.
    #[error("CNI plugin {plugin}, {operation}")]
    Exec {
        /// Its type.
        plugin: String,
        /// As in CNI_COMMAND.
        operation: &'static str,
        /// What happened.
        #[source]
        source: ExecError,
    },
    /// It said no, or nothing that can be understood.
    #[error("CNI plugin {plugin}, {operation}")]
    Answer {
        /// Its type.
        plugin: String,
        /// As in CNI_COMMAND.
        operation: &'static str,
        /// What it said.
        #[source]
        source: AnswerError,
    },
}

/// The plugins of this node.
#[derive(Debug)]
pub struct Cni {
    config: CniConfig,
    records: Records,
    /// Held for reading by each ADD, so that GC, which writes, knows of all attachments.
    adding: RwLock<()>,
}

impl Cni {
    /// `records` is a directory of its own that survives a reboot; it is made when needed.
    #[must_use]
    pub fn new(config: CniConfig, records: PathBuf) -> Self {
        Self { config, records: Records::new(records), adding: RwLock::default() }
    }

    /// Connects a pod: brings up lo in its namespace, which lies at `path`, then runs ADD of each plugin. Answers the
    /// pod's addresses, the primary one first. Blocks for as long as the plugins take.
    ///
    /// # Errors
    /// See [`CniError`]. What the plugins did is undone by DEL; where that fails too, the record stays for
    /// [`Cni::del`].
    pub fn add(&self, pod: &PodRequest, netns: BorrowedFd<'_>, path: &Path) -> Result<Vec<IpAddr>, CniError> {
        let _adding = self.adding.read().unwrap_or_else(PoisonError::into_inner);
        let list = conflist::load(&self.config.config_dir)?;
        attach::loopback(netns)?;
        let mut record = Record {
            list: list.value.clone(),
            netns: path.to_owned(),
            args: pod.args(),
            capabilities: pod.capabilities(),
            result: None,
        };
        self.records.write(&pod.id, &record)?;
        let added = self.chain(&list, &pod.id, &record).add().and_then(|(result, addresses)| {
            record.result = Some(result);
            self.records.write(&pod.id, &record)?;
            Ok(addresses)
        });
        added.inspect_err(|_| {
            let _ = self.del(&pod.id);
        })
    }

    /// Takes a pod down by DEL of each plugin, with the configuration it was made with; nothing happens for a pod that
    /// has no record. Its namespace may be gone. May be repeated. Blocks for as long as the plugins take.
    ///
    /// # Errors
    /// See [`CniError`]: the first of them, after all plugins were asked. The record stays.
    pub fn del(&self, pod: &str) -> Result<(), CniError> {
        if let Some((record, list)) = self.recorded(pod)? {
            self.chain(&list, pod, &record).del()?;
        }
        Ok(self.records.remove(pod)?)
    }

    /// Asks each plugin whether the pod is connected as it was at first.
    ///
    /// # Errors
    /// See [`CniError`]; a pod without a finished record, or a list older than 0.4.0, has nothing to check.
    pub fn check(&self, pod: &str) -> Result<(), CniError> {
        match self.recorded(pod)? {
            Some((record, list))
                if record.result.is_some() && list.version >= CHECK && !list.disable_check =>
            {
                self.chain(&list, pod, &record).inquire(Operation::Check)
            }
            _ => Ok(()),
        }
    }

    /// Whether pods can be connected now: a list that is valid, whose plugins are there, and say so if they can (STATUS,
    /// since 1.1.0).
    ///
    /// # Errors
    /// See [`CniError`].
    pub fn status(&self) -> Result<(), CniError> {
        let list = conflist::load(&self.config.config_dir)?;
        for plugin in &list.plugins {
            chain::find(&self.config.plugin_dirs, &plugin.kind)?;
        }
        if list.version < STATUS { Ok(()) } else { self.node(&list, None).inquire(Operation::Status) }
    }

    /// The list in use, as it was written.
    #[must_use]
    pub fn list(&self) -> Option<serde_json::Value> {
        conflist::load(&self.config.config_dir).ok().map(|list| list.value)
    }

    /// The addresses that a pod was given; none if it is none of the plugins'.
    #[must_use]
    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let record = self.records.read(pod).ok().flatten();
        let result = record.and_then(|record| record.result);
        result.and_then(|result| answer::addresses(&result).ok()).unwrap_or_default()
    }

    /// The pods that have a record and are not `alive`.
    #[must_use]
    pub fn stale(&self, alive: &[String]) -> Vec<String> {
        self.records.ids().into_iter().filter(|id| !alive.contains(id)).collect()
    }

    /// Has the plugins forget whatever they hold for none that has a record (GC, since 1.1.0).
    ///
    /// # Errors
    /// See [`CniError`]: the first of them, after all plugins were asked.
    pub fn collect(&self) -> Result<(), CniError> {
        let _adding = self.adding.write().unwrap_or_else(PoisonError::into_inner);
        match conflist::load(&self.config.config_dir) {
            Ok(list) if list.version >= GC && !list.disable_gc => {
                self.node(&list, Some(&Valid(self.records.ids()))).gc()
            }
            _ => Ok(()),
        }
    }

    fn recorded(&self, pod: &str) -> Result<Option<(Record, List)>, CniError> {
        let Some(record) = self.records.read(pod)? else { return Ok(None) };
        let damaged = |(key, rule)| CniError::Damaged { pod: pod.to_owned(), key, rule };
        let list = List::new(record.list.clone()).map_err(damaged)?;
        Ok(Some((record, list)))
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.config.timeout_seconds.min(3600))
    }
}

//! The JSON files of an archive, in the words of the engines that read them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{BIND_MOUNTS, CONFIG, SHORT_STATUS, SPEC, STATUS};
use crate::manifest::Image;

/// What the metadata of an archive is made from. Times in ns since the epoch.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    /// Container id.
    pub id: String,
    /// CRI name.
    pub name: String,
    /// CRI attempt.
    pub attempt: u32,
    /// Sandbox id.
    pub pod_id: String,
    /// The pod's name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its uid.
    pub pod_uid: String,
    /// Its image.
    pub image: Image,
    /// When it was made.
    pub created_at: i64,
    /// When it was started.
    pub started_at: i64,
    /// The cut.
    pub checkpointed_at: i64,
    /// Process 1 on the host.
    pub pid: u32,
    /// Its log.
    pub log_path: String,
    /// CRI labels.
    pub labels: BTreeMap<String, String>,
    /// CRI annotations.
    pub annotations: BTreeMap<String, String>,
    /// Mounts from the host.
    pub bind_mounts: Vec<BindMount>,
    /// The OCI runtime spec.
    pub spec: Value,
}

/// A mount from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// A directory, not a file.
    pub directory: bool,
    /// Mode bits of the source.
    pub permissions: u32,
}

impl ContainerFacts {
    /// (file name, contents).
    pub(super) fn files(&self) -> [(&'static str, Value); 5] {
        [
            (CONFIG, self.config()),
            (SPEC, self.annotated_spec()),
            (STATUS, self.status()),
            (SHORT_STATUS, self.short_status()),
            (BIND_MOUNTS, self.bind_mounts()),
        ]
    }

    /// checkpointctl's `ContainerConfig`. CRI-O wants a bare image id in `rootfsImageRef`.
    fn config(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "rootfsImage": self.image.reference,
            "rootfsImageRef": self.image.id.trim_start_matches("sha256:"),
            "rootfsImageName": self.image.reference,
            "runtime": "meridian",
            "createdTime": rfc3339(self.created_at),
            "checkpointedTime": rfc3339(self.checkpointed_at),
            "restoredTime": rfc3339(0),
            "restored": false,
        })
    }

    /// checkpointctl and CRI-O find the container's names among the spec's annotations.
    fn annotated_spec(&self) -> Value {
        let mut spec = self.spec.clone();
        let Some(fields) = spec.as_object_mut() else { return spec };
        let annotations = fields.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            let names = [
                ("io.kubernetes.cri.container-type", "container"),
                ("io.kubernetes.cri.container-name", &self.name),
                ("io.kubernetes.cri.sandbox-id", &self.pod_id),
                ("io.kubernetes.cri.sandbox-name", &self.pod_name),
                ("io.kubernetes.cri.sandbox-namespace", &self.pod_namespace),
                ("io.kubernetes.cri.sandbox-uid", &self.pod_uid),
                ("io.kubernetes.cri.image-name", &self.image.reference),
                ("io.kubernetes.cri-o.Annotations", "{}"),
            ];
            annotations.extend(names.map(|(key, value)| (key.to_owned(), json!(value))));
        }
        spec
    }

    /// CRI's `ContainerStatus` as Go's JSON.
    fn status(&self) -> Value {
        json!({
            "id": self.id,
            "metadata": { "name": self.name, "attempt": self.attempt },
            "state": 1, // CONTAINER_RUNNING
            "created_at": self.created_at,
            "started_at": self.started_at,
            "image": { "image": self.image.reference, "user_specified_image": self.image.reference },
            "image_ref": self.image.id,
            "image_id": self.image.id,
            "labels": self.labels,
            "annotations": self.annotations,
            "log_path": self.log_path,
        })
    }

    /// containerd's own status record.
    fn short_status(&self) -> Value {
        json!({
            "CreatedAt": self.created_at,
            "StartedAt": self.started_at,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Pid": self.pid,
            "Reason": "",
            "Message": "",
        })
    }

    fn bind_mounts(&self) -> Value {
        let mount = |mount: &BindMount| {
            json!({
                "source": mount.source.to_string_lossy(),
                "destination": mount.destination.to_string_lossy(),
                "file_type": if mount.directory { "directory" } else { "file" },
                "permissions": mount.permissions,
            })
        };
        self.bind_mounts.iter().map(mount).collect()
    }
}

/// Go's zero time for a time we do not have.
fn rfc3339(ns: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(ns.into()).ok().filter(|_| ns > 0);
    time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| "0001-01-01T00:00:00Z".into())
}

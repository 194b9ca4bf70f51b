use std::fmt::Write;

use api::meridian::v1::{Namespace, NamespacesRequest, NamespacesResponse};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    find, json,
    output::{self, Format},
};

/// Show a pod's namespaces: inode, parent, owner, members, and what holds them
#[derive(Debug, Args)]
pub struct Ns {
    /// The pod
    pod: String,
}

impl Ns {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let pod = find::pod(&node, &self.pod).await?;
        let request = NamespacesRequest { pod_id: pod.id };
        let reply = node.meridian.namespaces(request).await;
        let reply =
            reply.map_err(Error::refused(format!("read the namespaces of {}", self.pod)))?.into_inner();
        match cx.output {
            Format::Json => output::json(&json::message("meridian.v1.NamespacesResponse", &reply)),
            Format::Text => output::print(tree(&reply)),
        }
    }
}

/// The pod, its namespaces, and below each its members.
fn tree(reply: &NamespacesResponse) -> String {
    let mut text = format!("{} ({})\n", reply.pod_name, reply.pod_id);
    for (i, ns) in reply.namespaces.iter().enumerate() {
        let last = i + 1 == reply.namespaces.len();
        let (branch, trunk) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        line(&mut text, format_args!("{branch} {}", describe(ns)));
        for (j, m) in ns.members.iter().enumerate() {
            let branch = if j + 1 == ns.members.len() { "└─" } else { "├─" };
            line(&mut text, format_args!("{trunk}  {branch} {} (pid {})", m.container_name, m.pid));
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}

fn describe(ns: &Namespace) -> String {
    let mut text = format!("{:<7}[{}]", ns.kind, ns.inode);
    if ns.node {
        text.push_str(" the node's");
    }
    if ns.parent != 0 {
        text.push_str(&format!(" parent {}", ns.parent));
    }
    if ns.owner != 0 {
        text.push_str(&format!(" owner {}", ns.owner));
    }
    if let Some(offsets) = &ns.offsets {
        text.push_str(&format!(
            " offsets monotonic {} ns, boottime {} ns",
            offsets.monotonic, offsets.boottime
        ));
    }
    if !ns.pin.is_empty() {
        text.push_str(&format!(" pinned at {}", ns.pin));
    }
    text
}

#[cfg(test)]
mod tests {
    use api::meridian::v1::{Member, TimeOffsets};

    use super::*;

    #[test]
    fn a_tree() {
        let member = |name: &str, pid| Member { container_name: name.into(), pid, ..Default::default() };
        let reply = NamespacesResponse {
            pod_id: "abc".into(),
            pod_name: "web".into(),
            namespaces: vec![
                Namespace {
                    kind: "time".into(),
                    inode: 4_026_532_001,
                    owner: 4_026_531_837,
                    pin: "/run/meridian/ns/abc/time".into(),
                    members: vec![member("main", 7), member("side", 9)],
                    offsets: Some(TimeOffsets { monotonic: -5, boottime: 0 }),
                    ..Default::default()
                },
                Namespace { kind: "cgroup".into(), inode: 4, node: true, ..Default::default() },
            ],
        };
        assert_eq!(
            tree(&reply),
            "web (abc)\n\
             ├─ time   [4026532001] owner 4026531837 offsets monotonic -5 ns, boottime 0 ns pinned at \
             /run/meridian/ns/abc/time\n\
             │   ├─ main (pid 7)\n\
             │   └─ side (pid 9)\n\
             └─ cgroup [4] the node's\n"
        );
    }
}

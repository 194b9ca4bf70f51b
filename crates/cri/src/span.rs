//! What an RPC is about, for its span, which the daemon's layer around all services has opened.

use api::id::{ContainerId, PodId};
use pod::Pods;
use tracing::Span;

/// Longest name of an image in a span, in bytes: it comes from the client.
const NAME_MAX: usize = 255;
/// As much of `sha256:` and an image's id as the field's tools print.
const ID_SHORT: usize = "sha256:".len() + 13;

pub(crate) fn pod(id: &PodId) {
    Span::current().record("pod", id.short());
}

/// The container, and the pod it is in.
pub(crate) fn container(pods: &Pods, id: &ContainerId) {
    if let Ok(container) = pods.container(id) {
        pod(&container.metadata.pod);
    }
    Span::current().record("container", id.short());
}

/// The image, by the name or id of the request.
pub(crate) fn image(name: &str) {
    Span::current().record("image", short(name));
}

fn short(name: &str) -> &str {
    let most = if name.starts_with("sha256:") { ID_SHORT } else { NAME_MAX };
    &name[..name.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn ids_of_images_are_short_and_names_bounded() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(short(&digest), "sha256:aaaaaaaaaaaaa");
        assert_eq!(short("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause:3.10");
        assert_eq!(short(&"ü".repeat(1000)).len(), 254);
    }
}

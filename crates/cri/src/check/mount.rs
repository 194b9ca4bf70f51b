//! Volumes and devices of a container.

use api::cri::v1::{Device, Mount, MountPropagation};

use super::{Check, Field, distinct, one_of, security, text};

/// All volumes; two at one path contradict each other.
pub(crate) fn mounts(field: Field<'_>, mounts: &[Mount]) -> Check {
    for (i, m) in mounts.iter().enumerate() {
        mount(field.index(i), m)?;
    }
    let paths = mounts.iter().map(|m| m.container_path.trim_end_matches('/'));
    distinct(field, paths, "mounted over by no other entry")
}

fn mount(field: Field<'_>, m: &Mount) -> Check {
    text::absolute(field.at("container_path"), &m.container_path)?;
    if m.container_path.trim_end_matches('/').is_empty() {
        return Err(field.at("container_path").wrong(&m.container_path, "a path below the root directory"));
    }
    source(field, m)?;
    let propagation: MountPropagation = one_of(
        field.at("propagation"),
        m.propagation,
        "PROPAGATION_PRIVATE, PROPAGATION_HOST_TO_CONTAINER or PROPAGATION_BIDIRECTIONAL (0 to 2)",
    )?;
    recursive_read_only(field, m, propagation)?;
    options(field.at("mount_options"), &m.mount_options)?;
    id_mappings(field, m)
}

fn source(field: Field<'_>, m: &Mount) -> Check {
    let image = m.image.as_ref().is_some_and(|i| !i.image.is_empty());
    match (image, m.host_path.is_empty()) {
        (true, false) => Err(field.at("image").conflict("contradicts host_path: a volume has one source")),
        (true, true) if !m.readonly => {
            Err(field.at("readonly").conflict("must be true: an image cannot be written"))
        }
        (true, true) if m.propagation != 0 => Err(field
            .at("propagation")
            .conflict("must be PROPAGATION_PRIVATE: nothing is mounted below an image")),
        (true, true) if m.image_sub_path.is_empty() => Ok(()),
        (true, true) => text::relative(field.at("image_sub_path"), &m.image_sub_path),
        // The kubelet sets image_sub_path for every volume with a subPath; without an image, host_path is already below.
        (false, _) => text::absolute(field.at("host_path"), &m.host_path),
    }
}

/// KEP-3857: never weakened to a plain read-only mount.
fn recursive_read_only(field: Field<'_>, m: &Mount, propagation: MountPropagation) -> Check {
    if !m.recursive_read_only {
        return Ok(());
    }
    let field = field.at("recursive_read_only");
    if !m.readonly {
        return Err(field.conflict("contradicts readonly: false"));
    }
    if propagation != MountPropagation::PropagationPrivate {
        return Err(field.conflict(format_args!("contradicts propagation {}", propagation.as_str_name())));
    }
    Ok(())
}

fn options(field: Field<'_>, options: &[String]) -> Check {
    for (i, option) in options.iter().enumerate() {
        if !matches!(option.as_str(), "noexec" | "nodev" | "nosuid") {
            return Err(field.index(i).wrong(option, "noexec, nodev or nosuid"));
        }
    }
    distinct(field, options.iter().map(String::as_str), "given once")
}

fn id_mappings(field: Field<'_>, m: &Mount) -> Check {
    if m.uid_mappings.is_empty() != m.gid_mappings.is_empty() {
        return Err(field.at("uidMappings").conflict("and gidMappings must be given together"));
    }
    security::id_ranges(field.at("uidMappings"), &m.uid_mappings)?;
    security::id_ranges(field.at("gidMappings"), &m.gid_mappings)
}

/// Device nodes.
pub(crate) fn devices(field: Field<'_>, devices: &[Device]) -> Check {
    for (i, device) in devices.iter().enumerate() {
        let field = field.index(i);
        text::absolute(field.at("container_path"), &device.container_path)?;
        text::absolute(field.at("host_path"), &device.host_path)?;
        permissions(field.at("permissions"), &device.permissions)?;
    }
    Ok(())
}

fn permissions(field: Field<'_>, value: &str) -> Check {
    let known = value.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
    let once = b"rwm".iter().all(|p| value.bytes().filter(|b| b == p).count() <= 1);
    if known && once && !value.is_empty() {
        Ok(())
    } else {
        Err(field.wrong(value, "letters of \"rwm\", each once"))
    }
}

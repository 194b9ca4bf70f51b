//! A container's configuration.

use api::cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, KeyValue, LinuxContainerConfig,
    PodSandboxConfig, Signal,
};

use super::{Check, Field, id, mount, one_of, required, resources, sandbox, security, text};

/// Bytes of arguments and environment together: a quarter of the default stack limit, which is where execve(2) draws
/// the line.
const EXEC_MAX: usize = 2 << 20;

/// `CreateContainer`.
pub(crate) fn create(request: &CreateContainerRequest) -> Check {
    id::lookup(Field::of("pod_sandbox_id"), &request.pod_sandbox_id)?;
    let given = required(Field::of("config"), request.config.as_ref())?;
    config(Field::of("config"), given)?;
    match &request.sandbox_config {
        Some(pod) => within(Field::of("config"), given, pod),
        None => Ok(()),
    }
}

/// A container's own configuration, without regard to its pod.
pub(crate) fn config(field: Field<'_>, config: &ContainerConfig) -> Check {
    metadata(field.at("metadata"), required(field.at("metadata"), config.metadata.as_ref())?)?;
    let image = required(field.at("image"), config.image.as_ref())?;
    if image.image.is_empty() {
        return Err(field.at("image").at("image").missing("an image id or name"));
    }
    process(field, config)?;
    mount::mounts(field.at("mounts"), &config.mounts)?;
    mount::devices(field.at("devices"), &config.devices)?;
    text::labels(field.at("labels"), &config.labels)?;
    text::labels(field.at("annotations"), &config.annotations)?;
    if !config.log_path.is_empty() {
        text::relative(field.at("log_path"), &config.log_path)?;
    }
    if config.windows.is_some() {
        return Err(field.at("windows").conflict("is for Windows nodes: this one runs Linux"));
    }
    if let Some(device) = config.cdi_devices.first() {
        return Err(field
            .at("CDI_devices")
            .index(0)
            .at("name")
            .wrong(&device.name, "empty: this build has no CDI"));
    }
    one_of::<Signal>(field.at("stop_signal"), config.stop_signal, "a Signal (0 to 65)")?;
    config.linux.as_ref().map_or(Ok(()), |given| linux(field.at("linux"), given))
}

fn metadata(field: Field<'_>, metadata: &ContainerMetadata) -> Check {
    text::name(field.at("name"), &metadata.name)
}

fn process(field: Field<'_>, config: &ContainerConfig) -> Check {
    text::arguments(field.at("command"), &config.command)?;
    text::arguments(field.at("args"), &config.args)?;
    if !config.working_dir.is_empty() {
        text::absolute(field.at("working_dir"), &config.working_dir)?;
    }
    for (i, env) in config.envs.iter().enumerate() {
        variable(field.at("envs").index(i), env)?;
    }
    let strings = config.command.iter().chain(&config.args).map(String::len);
    let variables = config.envs.iter().map(|e| e.key.len() + e.value.len() + 1);
    let size: usize = strings.chain(variables).map(|length| length + 1 + size_of::<usize>()).sum();
    if size > EXEC_MAX {
        return Err(field.at("envs").conflict(format_args!(
            "and the command take {size} bytes: execve(2) allows {EXEC_MAX} together"
        )));
    }
    Ok(())
}

fn variable(field: Field<'_>, env: &KeyValue) -> Check {
    text::variable(field.at("key"), &env.key)?;
    text::variable_value(field.at("value"), &env.key, &env.value).map(|_| ())
}

fn linux(field: Field<'_>, linux: &LinuxContainerConfig) -> Check {
    if let Some(given) = &linux.resources {
        resources::linux(field.at("resources"), given)?;
    }
    let context = linux.security_context.as_ref();
    context.map_or(Ok(()), |given| security::container(field.at("security_context"), given))
}

/// What a container may ask for in this pod. A mode left at its default says nothing; NODE does.
pub(crate) fn within(field: Field<'_>, config: &ContainerConfig, pod: &PodSandboxConfig) -> Check {
    let Some(context) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) else {
        return Ok(());
    };
    let (field, pod_modes) = (field.at("linux"), sandbox::namespaces(pod));
    let field = field.at("security_context");
    if let Some(modes) = &context.namespace_options {
        for (kind, own, its) in
            [("network", modes.network, pod_modes.network), ("ipc", modes.ipc, pod_modes.ipc)]
        {
            if sandbox::is_node(own) && !sandbox::is_node(its) {
                return Err(field.at("namespace_options").at(kind).wrong("NODE", "the pod's, which is POD"));
            }
        }
    }
    let pod_privileged =
        pod.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|c| c.privileged);
    if context.privileged && !pod_privileged {
        return Err(field.at("privileged").wrong(true, "false in a pod that is not privileged"));
    }
    Ok(())
}

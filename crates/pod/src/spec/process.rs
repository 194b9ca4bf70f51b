//! What a container executes: arguments, environment, directory.

use std::collections::HashMap;

use api::cri::v1::{ContainerConfig, KeyValue};

use super::SpecError;

/// Where programs are searched when neither image nor request says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image says about its process.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageProcess {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
}

/// The command line: `command` replaces the image's entrypoint and cmd, `args` replaces its cmd.
pub(crate) fn args(config: &ContainerConfig, image: &ImageProcess) -> Result<Vec<String>, SpecError> {
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<_> = head.iter().chain(tail).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    Ok(args)
}

/// The environment: the image's, what every process expects, then the request's. The last of a name wins, in the
/// place of the first.
pub(crate) fn env(
    config: &ContainerConfig,
    image: &ImageProcess,
    hostname: &str,
    home: &str,
) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", PATH);
    if config.tty {
        env.set("TERM", "xterm");
    }
    if !hostname.is_empty() {
        env.set("HOSTNAME", hostname);
    }
    env.set("HOME", home);
    for variable in &image.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        env.set(key, value);
    }
    for KeyValue { key, value } in &config.envs {
        let value = std::str::from_utf8(value).map_err(|_| SpecError::Environment { key: key.clone() })?;
        env.set(key, value);
    }
    Ok(env.0.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
}

#[derive(Default)]
struct Environment(Vec<(String, String)>, HashMap<String, usize>);

impl Environment {
    fn set(&mut self, key: &str, value: &str) {
        match self.1.get(key) {
            Some(&at) => value.clone_into(&mut self.0[at].1),
            None => {
                self.1.insert(key.to_owned(), self.0.len());
                self.0.push((key.to_owned(), value.to_owned()));
            }
        }
    }
}

/// The working directory: the request's, the image's, or `/`.
pub(crate) fn cwd(config: &ContainerConfig, image: &ImageProcess) -> String {
    [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty()).map_or_else(
        || "/".to_owned(),
        |dir| if dir.starts_with('/') { dir.clone() } else { format!("/{dir}") },
    )
}

/// The signal that asks a container to stop: the request's, the image's, SIGTERM.
pub(crate) fn stop_signal(config: &ContainerConfig, image: &ImageProcess) -> Result<u32, SpecError> {
    if config.stop_signal != 0 {
        let name = config.stop_signal().as_str_name();
        return number(name).ok_or_else(|| SpecError::StopSignal { text: name.to_owned() });
    }
    match image.stop_signal.as_str() {
        "" => Ok(SIGTERM),
        text => number(text).ok_or_else(|| SpecError::StopSignal { text: text.chars().take(40).collect() }),
    }
}

const SIGTERM: u32 = 15;
const SIGRTMIN: u32 = 34;
const SIGRTMAX: u32 = 64;

/// signal(7) on x86-64 and arm64, by number.
const SIGNALS: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal's number: `15`, `TERM`, `SIGTERM`, `RTMIN+3`, `SIGNAL_SIGRTMINPLUS3` (as CRI spells it).
fn number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase().replace("PLUS", "+").replace("MINUS", "-");
    let name = upper.strip_prefix("SIGNAL_").unwrap_or(&upper);
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let offset = |text: &str| text.parse::<u32>().ok();
    match name {
        "RTMIN" => Some(SIGRTMIN),
        "RTMAX" => Some(SIGRTMAX),
        "IOT" => Some(6),
        "POLL" => Some(29),
        "CLD" => Some(17),
        "UNUSED" => Some(31),
        _ => {
            if let Some(up) = name.strip_prefix("RTMIN+") {
                offset(up).map(|n| SIGRTMIN + n).filter(|n| *n <= SIGRTMAX)
            } else if let Some(down) = name.strip_prefix("RTMAX-") {
                offset(down).and_then(|n| SIGRTMAX.checked_sub(n)).filter(|n| *n >= SIGRTMIN)
            } else {
                let at = SIGNALS.iter().skip(1).position(|known| *known == name);
                at.and_then(|at| u32::try_from(at + 1).ok())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::cri::v1::Signal;

    use super::*;

    fn image() -> ImageProcess {
        ImageProcess {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["A=1".into(), "PATH=/bin".into()],
            working_dir: "srv".into(),
            ..Default::default()
        }
    }

    fn config(command: &[&str], args: &[&str]) -> ContainerConfig {
        let list = |items: &[&str]| items.iter().map(ToString::to_string).collect();
        ContainerConfig { command: list(command), args: list(args), ..Default::default() }
    }

    #[test]
    fn command_and_args_replace_as_kubernetes_says() {
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "default"]),
            (&[], &["x"], &["/entry", "x"]),
            (&["/c"], &[], &["/c"]),
            (&["/c"], &["x"], &["/c", "x"]),
        ];
        for (command, given, expected) in table {
            assert_eq!(args(&config(command, given), &image()).unwrap(), expected);
        }
        assert!(matches!(args(&config(&[], &[]), &ImageProcess::default()), Err(SpecError::NoCommand)));
    }

    #[test]
    fn the_last_variable_of_a_name_wins() {
        let mut config = config(&[], &[]);
        config.envs = vec![
            KeyValue { key: "A".into(), value: b"2".into() },
            KeyValue { key: "HOME".into(), value: b"/h".into() },
        ];
        let env = env(&config, &image(), "pod", "/root").unwrap();
        assert_eq!(env, ["PATH=/bin", "HOSTNAME=pod", "HOME=/h", "A=2"]);
    }

    #[test]
    fn signals_by_any_name() {
        let table = [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("sigkill", Some(9)),
            ("SIGUSR1", Some(10)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("SYS", Some(31)),
            ("0", None),
            ("65", None),
            ("FOO", None),
            ("RTMIN+99", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn every_signal_of_the_proto_has_a_number() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).unwrap();
            assert!(number(signal.as_str_name()).is_some(), "{}", signal.as_str_name());
        }
    }

    #[test]
    fn relative_directories_of_images_start_at_the_root() {
        assert_eq!(cwd(&config(&[], &[]), &image()), "/srv");
        assert_eq!(cwd(&config(&[], &[]), &ImageProcess::default()), "/");
    }
}

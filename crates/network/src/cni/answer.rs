//! What plugins answer: a result, or an error object (specification, section 5). Untrusted as far as size and form go.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value};

use super::conflist::Version;
use super::exec::Output;

/// A pod has one address of each family; dual-stack on several networks has some.
const ADDRESSES: usize = 32;
/// Of a plugin's words that are passed on, in bytes.
const WORDS: usize = 1000;

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The plugin said no.
    #[error("{message}")]
    Refused {
        /// Its code; 11 is "try again later".
        code: u64,
        /// Its message and details, or what it wrote to standard error.
        message: String,
    },
    /// It said yes in words that are none.
    #[error("its answer is no CNI result: {begin:?}")]
    Form {
        /// How the answer begins.
        begin: String,
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
    /// An address is none.
    #[error("its result has the address {address:?}, which is none")]
    Address {
        /// As written.
        address: String,
    },
    /// More than a pod can have.
    #[error("its result has {count} addresses; up to {ADDRESSES} are taken")]
    Addresses {
        /// In the result.
        count: usize,
    },
    /// The last result has none: the node's agent could not reach the pod.
    #[error("its result has no address for the pod")]
    NoAddress,
    /// The result is written in another language.
    #[error("its result has cniVersion {version:?}, which is not known")]
    Version {
        /// As written.
        version: String,
    },
}

/// The result of an operation that has one: ADD.
pub(super) fn result(output: &Output) -> Result<Value, AnswerError> {
    refusal(output)?;
    let form = |source| AnswerError::Form { begin: words(&output.stdout), source };
    let value: Value = serde_json::from_slice(&output.stdout).map_err(form)?;
    if !value.is_object() {
        return Err(form(serde_json::Error::custom("no object")));
    }
    match value.get("cniVersion") {
        None => Ok(value),
        Some(version) if version.as_str().and_then(Version::parse).is_some() => Ok(value),
        Some(version) => Err(AnswerError::Version { version: words(version.to_string().as_bytes()) }),
    }
}

/// Whether an operation succeeded. An error object is an error, whatever the exit code says.
pub(super) fn refusal(output: &Output) -> Result<(), AnswerError> {
    let object = serde_json::from_slice::<Map<String, Value>>(&output.stdout).unwrap_or_default();
    if let Some(code) = object.get("code") {
        let text = |key| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let said = [text("msg"), text("details")].into_iter().filter(|text| !text.is_empty());
        let message = words(said.collect::<Vec<_>>().join(": ").as_bytes());
        return Err(AnswerError::Refused { code: code.as_u64().unwrap_or(0), message });
    }
    if output.code == 0 {
        return Ok(());
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let message = format!("exit code {}: {}", output.code, words(said));
    Err(AnswerError::Refused { code: 0, message })
}

/// The beginning, on one line, without what would move a terminal's cursor.
fn words(text: &[u8]) -> String {
    let begin = text.get(..WORDS).unwrap_or(text);
    let text = String::from_utf8_lossy(begin);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[derive(Deserialize)]
struct Addresses {
    #[serde(default)]
    ips: Vec<Address>,
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

/// The pod's addresses in the result's order; those of interfaces that stay on the node are none of them.
pub(super) fn addresses(result: &Value) -> Result<Vec<IpAddr>, AnswerError> {
    let form = |source| AnswerError::Form { begin: words(result.to_string().as_bytes()), source };
    let Addresses { ips, interfaces } = Addresses::deserialize(result).map_err(form)?;
    if ips.len() > ADDRESSES {
        return Err(AnswerError::Addresses { count: ips.len() });
    }
    let of_pod = |ip: &Address| {
        let interface = ip.interface.and_then(|index| interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let parse = |Address { address, .. }: Address| {
        parse(&address).ok_or_else(|| AnswerError::Address { address: words(address.as_bytes()) })
    };
    ips.into_iter().filter(of_pod).map(parse).collect()
}

/// An address that a host can have, with a prefix length that its family can have.
fn parse(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let fits = prefix.parse::<u8>().is_ok_and(|prefix| prefix <= bits);
    (fits && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast())
        .then_some(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn output(code: i32, stdout: &str, stderr: &str) -> Output {
        Output { code, stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn an_error_object_is_an_error_whatever_the_exit_code() {
        let said = refusal(&output(0, r#"{"code": 7, "msg": "no", "details": "why"}"#, "")).unwrap_err();
        assert_eq!(said.to_string(), "no: why");
        let said = refusal(&output(2, "", "line 1\nline\x1b 2")).unwrap_err();
        assert_eq!(said.to_string(), "exit code 2: line 1 line  2");
        refusal(&output(0, "", "a warning")).unwrap();
    }

    #[test]
    fn garbage_is_no_result() {
        let deep = "[".repeat(100_000);
        for text in ["", "ok", "[]", "7", "{\"ips\": [", &deep] {
            assert!(matches!(result(&output(0, text, "")), Err(AnswerError::Form { .. })), "{text:.20}");
        }
        for version in ["\"0.1.0\"", "\"9.9.9\"", "1", "{}"] {
            let text = format!("{{\"cniVersion\": {version}, \"ips\": []}}");
            assert!(matches!(result(&output(0, &text, "")), Err(AnswerError::Version { .. })), "{text}");
        }
        for code in ["-1", "\"7\"", "null", "1e99", "0"] {
            let text = format!("{{\"code\": {code}, \"msg\": [], \"details\": \"why\"}}");
            assert_eq!(result(&output(0, &text, "")).unwrap_err().to_string(), "why", "{text}");
        }
    }

    #[test]
    fn addresses_are_the_pods_in_order() {
        let result = json!({"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/n"}], "ips": [
            {"address": "10.1.0.2/16", "interface": 1}, {"address": "10.1.0.1/16", "interface": 0},
            {"address": "fd00::2/64"}]});
        let expected: [IpAddr; 2] = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result).unwrap(), expected);
        let many: Vec<_> = (0..10_000).map(|_| json!({"address": "10.1.0.2/16"})).collect();
        assert!(matches!(addresses(&json!({"ips": many})), Err(AnswerError::Addresses { count: 10_000 })));
        for none in [
            "x",
            "",
            "10.1.0.2",
            "10.1.0.2/33",
            "10.1.0.2/-1",
            "10.1.0.256/24",
            "0.0.0.0/0",
            "127.0.0.1/8",
            "fd00::2/129",
            "ff02::1/64",
            "10.1.0.2/24/24",
            "10.1.0.2/24\n",
        ] {
            assert!(
                matches!(addresses(&json!({"ips": [{"address": none}]})), Err(AnswerError::Address { .. })),
                "{none}"
            );
        }
        assert!(addresses(&json!({"ips": 3})).is_err());
    }
}

//! What plugins answer: a result, or an error object (specification, section 5). Untrusted as far as size and form go.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

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
}

#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The result of an operation that has one: ADD.
pub(super) fn result(output: &Output) -> Result<Value, AnswerError> {
    refusal(output)?;
    let form = |source| AnswerError::Form { begin: words(&output.stdout), source };
    let value: Value = serde_json::from_slice(&output.stdout).map_err(form)?;
    if value.is_object() { Ok(value) } else { Err(form(serde_json::Error::custom("no object"))) }
}

/// Whether an operation succeeded. An error object is an error, whatever the exit code says.
pub(super) fn refusal(output: &Output) -> Result<(), AnswerError> {
    match serde_json::from_slice::<Refusal>(&output.stdout) {
        Ok(Refusal { code, msg, details }) => {
            let message = if details.is_empty() { msg } else { format!("{msg}: {details}") };
            Err(AnswerError::Refused { code, message: words(message.as_bytes()) })
        }
        Err(_) if output.code == 0 => Ok(()),
        Err(_) => {
            let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
            let message = format!("exit code {}: {}", output.code, words(said));
            Err(AnswerError::Refused { code: 0, message })
        }
    }
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
        let bare = address.split('/').next().unwrap_or_default();
        bare.parse().map_err(|_| AnswerError::Address { address: words(address.as_bytes()) })
    };
    ips.into_iter().filter(of_pod).map(parse).collect()
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
        for text in ["", "ok", "[]", "7", "{\"ips\": ["] {
            assert!(matches!(result(&output(0, text, "")), Err(AnswerError::Form { .. })), "{text}");
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
        assert!(addresses(&json!({"ips": [{"address": "x"}]})).is_err());
        assert!(addresses(&json!({"ips": 3})).is_err());
    }
}

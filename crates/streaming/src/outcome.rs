//! How a session ended, as the client hears it on its error stream.

use serde_json::json;

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended with this code, or 128 + signal.
    Exit(i32),
    /// An attached container is there no longer, or the client's part is done.
    Done,
    /// Something did not work.
    Failed(String),
}

/// What a channel protocol wants on its error stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Up to version 3: a sentence, or nothing.
    Text,
    /// From version 4 on: a `Status` object of Kubernetes.
    Status,
}

impl Outcome {
    pub(crate) fn message(&self, form: Form) -> String {
        match form {
            Form::Text => self.text(),
            Form::Status => self.status().to_string(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Exit(0) | Self::Done => String::new(),
            Self::Exit(code) => format!("command terminated with non-zero exit code: {code}"),
            Self::Failed(why) => why.clone(),
        }
    }

    fn status(&self) -> serde_json::Value {
        match self {
            Self::Exit(0) | Self::Done => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": why,
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_exit_code_where_they_look() {
        let status: serde_json::Value =
            serde_json::from_str(&Outcome::Exit(7).message(Form::Status)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        let done: serde_json::Value = serde_json::from_str(&Outcome::Exit(0).message(Form::Status)).unwrap();
        assert_eq!(done["status"], "Success");
        assert_eq!(Outcome::Exit(0).message(Form::Text), "");
        assert!(Outcome::Exit(7).message(Form::Text).contains('7'));
    }
}

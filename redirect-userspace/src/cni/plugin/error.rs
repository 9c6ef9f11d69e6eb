//! Errors as the specification wants them: a code, a message, and details (CNI spec 1.1, section 5, error).

use super::super::conflist::VERSIONS;

#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("{0}")]
    Environment(String),
    #[error("the network configuration on standard input cannot be read: {0}")]
    Input(String),
    #[error("the network configuration on standard input is longer than a mebibyte")]
    TooLong,
    #[error("cniVersion {0:?} is none of {VERSIONS:?}")]
    Version(String),
    #[error("the network configuration has no {what}")]
    Missing { what: &'static str },
    #[error("prevResult cannot be read: {0}")]
    PrevResult(String),
    #[error("the node agent does not answer at {socket}: {error}")]
    NoAgent { socket: String, error: String },
    #[error("the node agent's answer cannot be read: {0}")]
    Answer(String),
    #[error("the pod cannot be captured: {error}")]
    NotCaptured { error: String, hint: String },
    /// Answer to STATUS.
    #[error("{0}")]
    Unavailable(String),
}

impl PluginError {
    /// Numbers below 100 are the specification's.
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) => 4,
            Self::Input(_) | Self::TooLong | Self::PrevResult(_) => 6,
            Self::Missing { .. } => 7,
            // "Try again later".
            Self::NoAgent { .. } | Self::Answer(_) => 11,
            Self::Unavailable(_) => 50,
            Self::NotCaptured { .. } => 100,
        }
    }

    fn details(&self) -> &str {
        match self {
            Self::NoAgent { .. } => {
                "pods of captured namespaces do not start without it: look at the agent's own pod or unit; namespaces in \
                 excludeNamespaces do not need it"
            }
            Self::NotCaptured { hint, .. } => hint,
            _ => "",
        }
    }

    /// The same, as the answer to STATUS.
    pub(super) fn unavailable(self) -> Self {
        Self::Unavailable(self.to_string())
    }

    pub(super) fn to_json(&self, version: &str) -> String {
        serde_json::json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
            "details": self.details(),
        })
        .to_string()
    }
}

//! The environment of a call (CNI spec 1.1, section 2, parameters): parsed once.

use std::path::{Path, PathBuf};

use super::{super::protocol::PodName, PluginError, pod_name};

/// The variables of the process's environment that a call is made of, as they are.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub command: String,
    pub container_id: String,
    pub netns: String,
    pub args: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub command: Command,
    pub pod: Option<PodName>,
    container_id: Option<String>,
    netns: Option<PathBuf>,
}

impl Call {
    pub fn parse(environment: &Environment) -> Result<Self, PluginError> {
        let command = match environment.command.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            "" => {
                return Err(PluginError::Environment(
                    "CNI_COMMAND is not set: this is a CNI plugin, which a container runtime runs"
                        .to_owned(),
                ));
            }
            other => {
                return Err(PluginError::Environment(format!(
                    "CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION"
                )));
            }
        };
        let pod = match command {
            Command::Add | Command::Check => arguments(&environment.args)?,
            // Nothing of them matters for the rest; a pod's end least of all fails for them.
            _ => None,
        };
        Ok(Self {
            command,
            pod,
            container_id: match command {
                Command::Add | Command::Check | Command::Del => {
                    container_id(&environment.container_id)?
                }
                _ => None,
            },
            netns: Some(&environment.netns)
                .filter(|netns| !netns.is_empty())
                .map(PathBuf::from),
        })
    }

    pub fn container_id(&self) -> Result<&str, PluginError> {
        self.container_id
            .as_deref()
            .ok_or_else(|| PluginError::Environment("CNI_CONTAINERID is not set".to_owned()))
    }

    pub fn netns(&self) -> Result<&Path, PluginError> {
        self.netns
            .as_deref()
            .ok_or_else(|| PluginError::Environment("CNI_NETNS is not set".to_owned()))
    }
}

/// Letters, digits, `_`, `.` and `-`, the first a letter or a digit (CNI spec, section 2).
fn container_id(text: &str) -> Result<Option<String>, PluginError> {
    if text.is_empty() {
        return Ok(None);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        true => Ok(Some(text.to_owned())),
        false => Err(PluginError::Environment(format!(
            "CNI_CONTAINERID {text:?} has other characters than letters, digits, `_`, `.` and `-`"
        ))),
    }
}

/// What Kubernetes says of the pod in `CNI_ARGS`: `KEY=VALUE` pairs, separated by `;`. Others' keys are theirs.
fn arguments(text: &str) -> Result<Option<PodName>, PluginError> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(PluginError::Environment(format!(
                "CNI_ARGS: {pair:?} is not KEY=VALUE"
            )));
        };
        let slot = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            _ => continue,
        };
        if value.is_empty()
            || value.len() > 253
            || value.contains(|c: char| c.is_control() || c == '/')
        {
            return Err(PluginError::Environment(format!(
                "CNI_ARGS: {value:?} cannot be {key}"
            )));
        }
        *slot = Some(value.to_owned());
    }
    Ok(pod_name(namespace, name, uid))
}

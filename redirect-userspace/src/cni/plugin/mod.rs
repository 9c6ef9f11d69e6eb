//! The CNI plugin: tells the node agent of each pod, and lets a pod start only when it is captured.
//!
//! CNI spec 1.1, section 2: the call is in the environment, the configuration on standard input, the answer on standard output.
//! It is the last of a chain, so it passes on untouched what the network before it said. No async runtime and no threads: it
//! runs for each pod, and ends in milliseconds.

mod agent;
mod call;
mod error;

use std::{io::Read, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use self::call::{Call, Command};
use super::{
    conflist::{Entry, VERSIONS},
    protocol::{Attachment, PodName, Request},
};

pub use self::{call::Environment, error::PluginError};

/// Longest configuration that is read: prevResult and all.
const MAX_INPUT: u64 = 1 << 20;

/// What the plugin does: what it prints, and its exit status.
pub struct Outcome {
    pub stdout: String,
    pub success: bool,
}

/// Answers one call.
pub fn run(environment: &Environment, input: impl Read) -> Outcome {
    let mut text = String::new();
    let read = input.take(MAX_INPUT + 1).read_to_string(&mut text);
    let version = version_of(&text);
    let result = match read {
        Err(error) => Err(PluginError::Input(error.to_string())),
        Ok(length) if length as u64 > MAX_INPUT => Err(PluginError::TooLong),
        Ok(_) => answer(environment, &text),
    };
    match result {
        Ok(stdout) => Outcome {
            stdout,
            success: true,
        },
        Err(error) => Outcome {
            stdout: error.to_json(&version),
            success: false,
        },
    }
}

/// What the runtime adds to our entry of the list.
#[derive(Deserialize)]
struct Config<'a> {
    #[serde(rename = "cniVersion")]
    version: String,
    /// Of the network: a garbage collection speaks of one.
    #[serde(default)]
    name: String,
    #[serde(borrow, rename = "prevResult", default)]
    previous: Option<&'a RawValue>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Option<Vec<ValidAttachment>>,
}

#[derive(Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

fn answer(environment: &Environment, text: &str) -> Result<String, PluginError> {
    let call = Call::parse(environment)?;
    if call.command == Command::Version {
        return Ok(versions(&version_of(text)));
    }
    let (entry, config) = parse(text)?;
    match call.command {
        Command::Add => add(&call, &entry, &config),
        Command::Check => check(&call, &entry, &config),
        Command::Del => {
            let container_id = call.container_id()?.to_owned();
            // Deleting must not be held up by an agent that is gone: the kernel takes down with the namespace what it holds.
            if let Err(error) = agent::ask(&entry, &Request::Del { container_id }) {
                eprintln!("{error}; the agent will notice by itself");
            }
            Ok(String::new())
        }
        Command::Gc => {
            let valid = config.valid.ok_or(PluginError::Missing {
                what: "cni.dev/valid-attachments",
            })?;
            let container_ids = valid.into_iter().map(|valid| valid.container_id).collect();
            let network = config.name;
            agent::ask(
                &entry,
                &Request::Gc {
                    network,
                    container_ids,
                },
            )?;
            Ok(String::new())
        }
        Command::Status => {
            agent::ask(&entry, &Request::Status).map_err(PluginError::unavailable)?;
            Ok(String::new())
        }
        Command::Version => unreachable!("answered above"),
    }
}

fn add(call: &Call, entry: &Entry, config: &Config<'_>) -> Result<String, PluginError> {
    let previous = config.previous.ok_or(PluginError::Missing {
        what: "prevResult: the plugin is to be chained behind one that makes the network",
    })?;
    if !is_excluded(call, entry) {
        let attachment = attachment(call, &config.name, previous)?;
        agent::ask(entry, &Request::Add(attachment))?;
    }
    Ok(previous.get().to_owned())
}

fn check(call: &Call, entry: &Entry, config: &Config<'_>) -> Result<String, PluginError> {
    let previous = config
        .previous
        .ok_or(PluginError::Missing { what: "prevResult" })?;
    if !is_excluded(call, entry) {
        let attachment = attachment(call, &config.name, previous)?;
        agent::ask(entry, &Request::Check(attachment))?;
    }
    Ok(String::new())
}

/// Pods of these namespaces start without the agent: its own, and what it needs to start.
fn is_excluded(call: &Call, entry: &Entry) -> bool {
    let pod = call.pod.as_ref();
    pod.is_some_and(|pod| entry.exclude_namespaces.contains(&pod.namespace))
}

fn attachment(call: &Call, network: &str, previous: &RawValue) -> Result<Attachment, PluginError> {
    Ok(Attachment {
        container_id: call.container_id()?.to_owned(),
        netns: call.netns()?.to_owned(),
        network: network.to_owned(),
        pod: call.pod.clone(),
        ips: addresses(previous)?,
    })
}

/// The pod's addresses: those of a result that are not on an interface of the host's (CNI spec, section 5: `ips`, `interfaces`).
fn addresses(previous: &RawValue) -> Result<Vec<IpAddr>, PluginError> {
    #[derive(Deserialize)]
    struct Result {
        #[serde(default)]
        ips: Vec<Ip>,
        #[serde(default)]
        interfaces: Vec<Interface>,
    }
    #[derive(Deserialize)]
    struct Ip {
        address: String,
        #[serde(default)]
        interface: Option<usize>,
    }
    #[derive(Deserialize)]
    struct Interface {
        #[serde(default)]
        sandbox: String,
    }
    let invalid = |error: String| PluginError::PrevResult(error);
    let result: Result =
        serde_json::from_str(previous.get()).map_err(|error| invalid(error.to_string()))?;
    let on_host = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_some_and(|interface| interface.sandbox.is_empty())
    };
    let ips = result.ips.iter().filter(|ip| !on_host(ip));
    ips.map(|ip| {
        let address = ip.address.parse::<IpNet>().map(|net| net.addr());
        let address = address.or_else(|_| ip.address.parse::<IpAddr>());
        address.map_err(|_| invalid(format!("{:?} is no address", ip.address)))
    })
    .collect()
}

/// Our entry of the list, and what the runtime adds to it. Read one by one: serde cannot borrow from a flattened structure.
fn parse(text: &str) -> Result<(Entry, Config<'_>), PluginError> {
    let input = |error: serde_json::Error| PluginError::Input(error.to_string());
    let config: Config<'_> = serde_json::from_str(text).map_err(input)?;
    match VERSIONS.contains(&config.version.as_str()) {
        true => Ok((serde_json::from_str(text).map_err(input)?, config)),
        false => Err(PluginError::Version(config.version)),
    }
}

/// In which version to answer: that of the question where it can be read and is one of ours.
fn version_of(text: &str) -> String {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    let asked = serde_json::from_str::<Versioned>(text).map(|asked| asked.version);
    let known = asked
        .ok()
        .filter(|asked| VERSIONS.contains(&asked.as_str()));
    known.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned())
}

fn versions(version: &str) -> String {
    serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}

/// For [`Call`].
fn pod_name(
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
) -> Option<PodName> {
    Some(PodName {
        namespace: namespace?,
        name: name?,
        uid,
    })
}

#[cfg(test)]
mod tests;

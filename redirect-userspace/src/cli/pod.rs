//! `redirect pod add|remove|list`.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use crate::{
    cni::protocol::{self, Answer, ListedPod, Request},
    node::socket::ask,
};

/// The pods of the running daemon
#[derive(Debug, Subcommand)]
pub enum PodCommand {
    Add(Box<Add>),
    Remove(Remove),
    List(List),
}

/// Capture a pod, also over restarts, until `pod remove`
///
/// Returns when its capture was verified in the kernel. A pod that was added before becomes what is said now. What is given by
/// flags goes over what is in the file.
#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    socket: Socket,
    /// An entry as the configuration's `pods` has them, in YAML; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The Kubernetes namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// What names the pod on this node [default: NAMESPACE/NAME]
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// Its network namespace, such as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Its cgroup v2 directory
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Its addresses
    #[arg(long, value_name = "IP,..", value_delimiter = ',')]
    ips: Vec<IpAddr>,
    #[command(flatten)]
    options: Box<Options>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of capture, as in the configuration")]
struct Options {
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    exclude_outbound_cidrs: Vec<String>,
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    include_outbound_ports: Vec<u16>,
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    include_outbound_cidrs: Vec<String>,
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    exclude_inbound_cidrs: Vec<String>,
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    include_inbound_ports: Vec<u16>,
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    include_inbound_cidrs: Vec<String>,
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    probe_ports: Vec<u16>,
    #[arg(long, value_name = "DIR,..", value_delimiter = ',')]
    exempt_cgroups: Vec<PathBuf>,
    #[arg(long)]
    on_proxy_failure: Option<OnProxyFailure>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    bypass_inbound: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    capture_dns: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    refuse_udp: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    refuse_sctp: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_forwarding: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    reset_older_connections: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    capture_metadata_address: Option<bool>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    preserve_client_ip: Option<bool>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnProxyFailure {
    Refuse,
    Pass,
}

/// Let go of a pod that `pod add` added; its connections drain
///
/// What the configuration, Kubernetes or a CNI plugin want as well stays captured.
#[derive(Debug, Args)]
pub struct Remove {
    #[command(flatten)]
    socket: Socket,
    /// The pod's uid, as `pod list` shows it
    #[arg(value_name = "UID")]
    uid: String,
}

/// Show the pods that are to be captured, who wants them, and why one is not captured
///
/// Exit status: 1 if there is one that is not captured.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    socket: Socket,
    /// A JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Socket {
    /// The daemon's agent.socket
    #[arg(long, value_name = "FILE", default_value = protocol::SOCKET)]
    socket: PathBuf,
}

impl PodCommand {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Add(add) => {
                let pod = add.entry()?;
                ask(&add.socket.socket, &Request::PodAdd { pod })?;
                writeln!(out, "captured")?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Remove(remove) => {
                let uid = remove.uid;
                ask(&remove.socket.socket, &Request::PodRemove { uid })?;
                writeln!(out, "removed")?;
                Ok(ExitCode::SUCCESS)
            }
            Self::List(list) => list.execute(out),
        }
    }
}

impl Add {
    /// The file's fields, and the flags' over them. Whether they make a pod, the daemon says, which knows its configuration.
    fn entry(&self) -> anyhow::Result<Value> {
        let mut entry = match &self.file {
            Some(file) => read(file)?,
            None => Map::new(),
        };
        entry.extend(self.fields());
        Ok(Value::Object(entry))
    }

    fn fields(&self) -> Map<String, Value> {
        let texts = [
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("serviceAccount", &self.service_account),
            ("uid", &self.uid),
        ];
        let mut fields = Map::new();
        fields.extend(texts.into_iter().filter_map(|(field, text)| {
            let text = text.as_ref()?;
            Some((field.to_owned(), json!(text)))
        }));
        for (field, path) in [("netns", &self.netns), ("cgroup", &self.cgroup)] {
            fields.extend(path.as_ref().map(|path| (field.to_owned(), json!(path))));
        }
        if !self.ips.is_empty() {
            fields.insert("ips".to_owned(), json!(self.ips));
        }
        fields.extend(self.options.fields());
        fields
    }
}

impl Options {
    fn fields(&self) -> impl Iterator<Item = (String, Value)> {
        let lists = [
            ("excludeOutboundPorts", json!(self.exclude_outbound_ports)),
            ("excludeOutboundCidrs", json!(self.exclude_outbound_cidrs)),
            ("includeOutboundPorts", json!(self.include_outbound_ports)),
            ("includeOutboundCidrs", json!(self.include_outbound_cidrs)),
            ("excludeInboundPorts", json!(self.exclude_inbound_ports)),
            ("excludeInboundCidrs", json!(self.exclude_inbound_cidrs)),
            ("includeInboundPorts", json!(self.include_inbound_ports)),
            ("includeInboundCidrs", json!(self.include_inbound_cidrs)),
            ("probePorts", json!(self.probe_ports)),
            ("exemptCgroups", json!(self.exempt_cgroups)),
        ];
        let on_proxy_failure = self.on_proxy_failure.map(|then| match then {
            OnProxyFailure::Refuse => "refuse",
            OnProxyFailure::Pass => "pass",
        });
        let values = [
            ("onProxyFailure", json!(on_proxy_failure)),
            ("bypassInbound", json!(self.bypass_inbound)),
            ("captureDns", json!(self.capture_dns)),
            ("refuseUdp", json!(self.refuse_udp)),
            ("refuseSctp", json!(self.refuse_sctp)),
            ("allowForwarding", json!(self.allow_forwarding)),
            ("resetOlderConnections", json!(self.reset_older_connections)),
            (
                "captureMetadataAddress",
                json!(self.capture_metadata_address),
            ),
            ("preserveClientIp", json!(self.preserve_client_ip)),
        ];
        let is_said = |(_, value): &(_, Value)| *value != json!([]) && !value.is_null();
        let all = lists.into_iter().chain(values).filter(is_said);
        all.map(|(field, value)| (field.to_owned(), value))
    }
}

/// An entry in a file, which is a map.
fn read(file: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = match file == Path::new("-") {
        true => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    let text = text.with_context(|| format!("read {}", file.display()))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a pod's entry", file.display()))
}

impl List {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let answer = ask(&self.socket.socket, &Request::PodList)?;
        let Answer::Pods { pods } = answer else {
            anyhow::bail!("the daemon's answer is no list of pods");
        };
        match self.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&pods)?)?,
            false => write!(out, "{}", table(&pods))?,
        }
        Ok(match pods.iter().all(|listed| listed.error.is_none()) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

/// One line per pod, under a heading.
fn table(pods: &[ListedPod]) -> String {
    let heading = ["UID", "POD", "WANTED BY", "STATE"].map(str::to_owned);
    let rows = pods.iter().map(|listed| {
        let text = |field: &str| listed.pod[field].as_str().unwrap_or_default().to_owned();
        [
            text("uid"),
            format!("{}/{}", text("namespace"), text("name")),
            listed.sources.join(","),
            match &listed.error {
                None => "captured".to_owned(),
                Some(error) => format!("failed: {error}"),
            },
        ]
    });
    let rows: Vec<_> = [heading].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let lines = rows.iter().map(|[uid, pod, sources, state]| {
        let [a, b, c] = widths;
        format!("{uid:a$}  {pod:b$}  {sources:c$}  {state}\n")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        add: Add,
    }

    fn entry(arguments: &str) -> Value {
        let words = ["add"].into_iter().chain(arguments.split_whitespace());
        Line::parse_from(words).add.entry().unwrap()
    }

    #[test]
    fn flags_make_the_entry_that_the_configuration_would_have() {
        let entry = entry(
            "--name web --namespace shop --service-account sa --netns /n --cgroup /c --ips 10.0.0.1,fd00::1 \
             --exclude-outbound-ports 22,25 --include-inbound-cidrs 10.0.0.0/8 --capture-dns false --refuse-udp \
             --on-proxy-failure pass",
        );
        assert_eq!(
            entry,
            json!({
                "name": "web", "namespace": "shop", "serviceAccount": "sa", "netns": "/n", "cgroup": "/c",
                "ips": ["10.0.0.1", "fd00::1"], "excludeOutboundPorts": [22, 25],
                "includeInboundCidrs": ["10.0.0.0/8"], "captureDns": false, "refuseUdp": true,
                "onProxyFailure": "pass",
            })
        );
    }

    #[test]
    fn flags_go_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pod.yaml");
        std::fs::write(&file, "name: web\nips: [10.0.0.1]\nprobePorts: []\n").unwrap();
        let entry = entry(&format!("--file {} --ips 10.0.0.2", file.display()));
        assert_eq!(
            entry,
            json!({ "name": "web", "ips": ["10.0.0.2"], "probePorts": [] })
        );
        std::fs::write(&file, "- web\n").unwrap();
        let add = Line::parse_from(["add", "--file", file.to_str().unwrap()]).add;
        assert!(
            add.entry()
                .unwrap_err()
                .to_string()
                .contains("not a pod's entry")
        );
    }

    #[test]
    fn the_table_lines_up() {
        let listed = |uid: &str, sources: &[&str], error: Option<&str>| ListedPod {
            pod: json!({ "uid": uid, "namespace": "shop", "name": "web" }),
            sources: sources.iter().map(ToString::to_string).collect(),
            error: error.map(Into::into),
        };
        let pods = [
            listed("b5c0", &["kubernetes"], None),
            listed("shop/web", &["config", "command"], Some("port taken")),
        ];
        assert_eq!(
            table(&pods),
            "UID       POD       WANTED BY       STATE\n\
             b5c0      shop/web  kubernetes      captured\n\
             shop/web  shop/web  config,command  failed: port taken\n"
        );
    }
}

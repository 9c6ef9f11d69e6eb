//! The testbed of a bench: two nodes, and on each a captured pod and one like it that is not captured.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use redirect_common::ports;
use serde_json::json;

use super::{
    apps::{App, EXCLUDED_PORT, echo, serve},
    haproxy::{self, Pair},
};
use crate::{
    DaemonSpec, Metrics, Node, Pod, Process, RunId, Testbed, get, testbed::lock, wait_until,
};

/// A way from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Variant {
    /// No proxy.
    Direct,
    /// A pair of HAProxys that splice, without crypto.
    Splice,
    /// A pair of HAProxys with mutual TLS, one TLS connection per connection.
    Tls,
    /// eBPF capture and HBONE.
    Redirect,
}

impl Variant {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Splice, Self::Tls, Self::Redirect];

    pub fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Splice => "HAProxy splice",
            Self::Tls => "HAProxy TLS",
            Self::Redirect => "redirect",
        }
    }
}

/// The processes that carry a variant's connections, as pids.
#[derive(Clone, Copy, Debug)]
pub struct Proxies {
    pub outbound: u32,
    pub inbound: u32,
}

pub struct Stage {
    pub captured: Ends,
    pub plain: Ends,
    tls: Option<Pair>,
    tls_bulk: Option<Pair>,
    splice: Option<Pair>,
    daemons: Option<(Running, Running)>,
    _apps: Vec<Process>,
    pub about: Vec<String>,
    // Last, so that it outlives what runs in it.
    _bed: Testbed,
}

/// A client pod on one node and a server pod on the other.
pub struct Ends {
    pub client: Pod,
    pub server: Pod,
}

/// A daemon whose log goes to a file: read line by line it would take part in what is measured.
pub(super) struct Running(Child);

impl Stage {
    pub fn start(variants: &[Variant], access_log: bool, workers: usize) -> Result<Self> {
        let bed = Testbed::new();
        end_on_signal(&bed);
        let (a, b) = (bed.node("a"), bed.node("b"));
        let ends = |prefix: &str| Ends {
            client: a.pod(&format!("{prefix}client")),
            server: b.pod(&format!("{prefix}server")),
        };
        let (captured, plain) = (ends(""), ends("plain-"));
        for pod in [
            &captured.client,
            &captured.server,
            &plain.client,
            &plain.server,
        ] {
            tune(pod);
        }
        let mut apps = serve(&captured.server, bed.directory())?;
        apps.extend(serve(&plain.server, bed.directory())?);
        apps.push(echo(&captured.client, EXCLUDED_PORT)?);
        let mut about = vec!["reno in every pod".to_owned(), versions()];
        let pair = |kind, variant| {
            variants
                .contains(&variant)
                .then(|| Pair::start(kind, &plain, bed.directory()))
                .transpose()
        };
        let splice = pair(haproxy::Kind::Splice, Variant::Splice)?;
        let tls = pair(haproxy::Kind::Tls, Variant::Tls)?;
        let tls_bulk = pair(haproxy::Kind::TlsBulk, Variant::Tls)?;
        about.push(haproxy::ABOUT.to_owned());
        let daemons = if variants.contains(&Variant::Redirect) {
            bed.workloads()
                .hbone(&captured.client)
                .hbone(&captured.server)
                .write();
            let excluded = json!({ "excludeOutboundPorts": [EXCLUDED_PORT] });
            let daemon = |node: &Node, pod: &Pod, options| {
                let spec = node
                    .daemon()
                    .config(json!({ "workers": workers }))
                    .capture_with(pod, options);
                Running::start(&spec, node, access_log)
            };
            about.push(format!(
                "daemons: {workers} worker(s), access log {}",
                if access_log { "on" } else { "off" }
            ));
            Some((
                daemon(&a, &captured.client, excluded)?,
                daemon(&b, &captured.server, json!({}))?,
            ))
        } else {
            None
        };
        Ok(Self {
            captured,
            plain,
            tls,
            tls_bulk,
            splice,
            daemons,
            _apps: apps,
            about,
            _bed: bed,
        })
    }

    /// The pods whose traffic goes this way.
    pub fn ends(&self, variant: Variant) -> &Ends {
        if variant == Variant::Redirect {
            &self.captured
        } else {
            &self.plain
        }
    }

    /// Where the client connects to, so that it comes to `app` this way.
    pub fn dial(&self, variant: Variant, app: App) -> SocketAddr {
        match variant {
            Variant::Direct | Variant::Redirect => self.ends(variant).server.at(app.port()),
            Variant::Splice => haproxy::dial(haproxy::Kind::Splice, app),
            Variant::Tls if app == App::Iperf => haproxy::dial(haproxy::Kind::TlsBulk, app),
            Variant::Tls => haproxy::dial(haproxy::Kind::Tls, app),
        }
    }

    /// Who carries connections to `app` this way.
    pub fn proxies(&self, variant: Variant, app: App) -> Option<Proxies> {
        match variant {
            Variant::Direct => None,
            Variant::Splice => self.splice.as_ref().map(Pair::proxies),
            Variant::Tls if app == App::Iperf => self.tls_bulk.as_ref().map(Pair::proxies),
            Variant::Tls => self.tls.as_ref().map(Pair::proxies),
            Variant::Redirect => {
                let (outbound, inbound) = self.daemons.as_ref()?;
                Some(Proxies {
                    outbound: outbound.0.id(),
                    inbound: inbound.0.id(),
                })
            }
        }
    }
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn start(spec: &DaemonSpec, node: &Node, access_log: bool) -> Result<Self> {
        let log = node.directory().join("daemon.log");
        let mut command = spec.ready_command();
        let filter = if access_log {
            "info"
        } else {
            "info,redirect::access=off"
        };
        command.args(["--log", filter]);
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("cannot start redirect")?;
        let mut running = Self(child);
        let admin = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let ready = wait_until(Duration::from_secs(20), || {
            let ready = get(node.netns(), admin(ports::READINESS), "/healthz/ready");
            ready.is_ok_and(|response| response.status == 200)
                || matches!(running.0.try_wait(), Ok(Some(_)))
        });
        let metrics = get(node.netns(), admin(ports::METRICS), "/metrics");
        let captured = metrics.map_or(0.0, |metrics| {
            Metrics::parse(&metrics.body).sum("redirect_pods_captured", &[])
        });
        if !ready || captured != 1.0 {
            bail!(
                "the daemon on {} has not captured its pod; it said:\n{}",
                node.name(),
                said()
            );
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn versions() -> String {
    let first_line = |command: &str, argument: &str| {
        let output = Command::new(command).arg(argument).output().ok()?;
        let text = if output.stdout.is_empty() {
            output.stderr
        } else {
            output.stdout
        };
        String::from_utf8_lossy(&text)
            .lines()
            .next()
            .map(str::to_owned)
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let programs = [
        ("haproxy", "-v"),
        ("nginx", "-v"),
        ("iperf3", "-v"),
        ("wrk", "-v"),
    ];
    let programs: Vec<String> = programs
        .iter()
        .filter_map(|(name, flag)| first_line(name, flag))
        .collect();
    format!(
        "Linux {}, {processors} processors; {}",
        kernel.trim(),
        programs.join("; ")
    )
}

/// Ctrl-C and SIGTERM remove the testbed, since they skip its `Drop`.
pub(super) fn end_on_signal(bed: &Testbed) {
    static BEDS: Mutex<Vec<RunId>> = Mutex::new(Vec::new());
    use nix::sys::signal::{SigSet, Signal};

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().expect("masks this thread's signals");
    let mut beds = lock(&BEDS);
    beds.push(bed.id().clone());
    if beds.len() > 1 {
        return;
    }
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let failed = lock(&BEDS)
                .iter()
                .flat_map(crate::leftovers::remove)
                .collect::<Vec<_>>();
            failed
                .iter()
                .for_each(|failure| eprintln!("cleaning up: {failure}"));
            std::process::exit(130);
        }
    });
}

/// The sysctls that make runs comparable: BBR paces, and short-lived connections use up ports that wait in TIME_WAIT.
pub(super) fn tune(pod: &Pod) {
    for (key, value) in [
        ("net.ipv4.tcp_congestion_control", "reno"),
        ("net.ipv4.tcp_tw_reuse", "1"),
        ("net.ipv4.ip_local_port_range", "1024 65535"),
        ("net.core.somaxconn", "8192"),
        ("net.ipv4.tcp_max_syn_backlog", "8192"),
    ] {
        pod.sysctl(key, value);
    }
}

//! From a document, the environment and the flags to a [`Config`].

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{
    Backend, CaptureConfig, Config, Flags, Host, IdentityConfig, IptablesVariant, LogConfig,
    LogFormat, Mode, Part, agent, dns, pods,
    sections::{admin, duration, hbone, probers, proxy},
};
use crate::{
    document::{Fields, Mistake, Mistakes, Node, Value},
    identity::spiffe::{check_segment, check_trust_domain},
};

const MAX_WORKERS: usize = 1024;

pub(super) fn read(value: &Value, host: &Host, flags: &Flags) -> Result<Config, Vec<Mistake>> {
    let mistakes = Mistakes::default();
    let config = Reader {
        host,
        flags,
        mistakes: &mistakes,
    }
    .config(&Node::root(value, &mistakes));
    match (config, mistakes.into_vec()) {
        (Some(config), mistakes) if mistakes.is_empty() => Ok(config),
        (_, mistakes) => Err(mistakes),
    }
}

struct Reader<'a> {
    host: &'a Host,
    flags: &'a Flags,
    mistakes: &'a Mistakes,
}

impl Reader<'_> {
    fn config(&self, root: &Node<'_>) -> Option<Config> {
        let mut fields = root.fields()?;
        let f = &mut fields;
        let node = self.node(f);
        let trust_domain = self.text(
            f,
            "trustDomain",
            "REDIRECT_TRUST_DOMAIN",
            "cluster.local",
            |name| check_trust_domain(name).map_err(|e| e.to_string()),
        );
        let cluster_id = self.text(
            f,
            "clusterId",
            "REDIRECT_CLUSTER_ID",
            "Kubernetes",
            printable,
        );
        let network = self.text(f, "network", "REDIRECT_NETWORK", "", |name| {
            match name.contains('/') {
                true => Err(format!("{name:?} cannot be a network: it has a slash")),
                false => printable(name),
            }
        });
        let workers = self.workers(f);
        let state_dir = self.path(f, "stateDir", "REDIRECT_STATE_DIR", "/run/redirect");
        let agent = section(f, "agent", |f| agent::read(f, state_dir.as_deref()));
        let kubernetes = agent.as_ref().and_then(|agent| agent.kubernetes.as_ref());
        let by_api = kubernetes.is_some_and(|kubernetes| kubernetes.workloads);
        let workloads = self.workloads(f, by_api);
        let mut capture = section(f, "capture", |f| self.capture(f));
        let proxy = section(f, "proxy", |f| Some(proxy(f)));
        let hbone = section(f, "hbone", hbone);
        let dns = section(f, "dns", dns::read);
        let identity = f.required("identity").and_then(|node| self.identity(&node));
        let mode = capture
            .as_ref()
            .map_or(Mode::Shared, |capture| capture.mode);
        let admin = section(f, "admin", |f| admin(f, mode));
        if let (Some(capture), Some(agent)) = (&mut capture, &agent) {
            capture.part = agent.zds.part();
            if let Some((field, what)) = agent::misfit(capture) {
                self.fail::<()>(field, what);
            }
        }
        let log = self.log();
        let mut pods = match (f.optional("pods"), &trust_domain) {
            (Some(list), Some(trust_domain)) => pods::read(&list, trust_domain, mode),
            // The trust domain's mistake is known; the pods' shall be, too.
            (Some(list), None) => pods::read(&list, "cluster.local", mode),
            (None, _) if mode == Mode::Dedicated => {
                self.fail::<()>("pods", "is missing: dedicated mode captures exactly one");
                Vec::new()
            }
            (None, _) => Vec::new(),
        };
        if dns.as_ref().is_some_and(|dns| !dns.enabled) {
            pods.iter_mut()
                .for_each(|pod| pod.options.capture_dns = false);
        }
        fields.end();
        Some(Config {
            node: node?,
            trust_domain: trust_domain?,
            cluster_id: cluster_id?,
            network: network?,
            workers: workers?,
            state_dir: state_dir?,
            workloads: workloads?,
            capture: capture?,
            proxy: proxy?,
            hbone: hbone?,
            dns: dns?,
            identity: identity?,
            admin: admin?,
            log: log?,
            agent: agent?,
            pods,
        })
    }

    fn node(&self, fields: &mut Fields<'_>) -> Option<String> {
        let check = |name: &str| check_segment("node", name).map_err(|e| e.to_string());
        let below = self.text(fields, "node", "REDIRECT_NODE", &self.host.hostname, check);
        match &self.flags.node {
            Some(name) => self.checked("--node", name, check),
            None => below,
        }
    }

    fn workers(&self, fields: &mut Fields<'_>) -> Option<NonZeroUsize> {
        let file = fields
            .optional("workers")
            .map(|node| node.integer(1..=MAX_WORKERS as u64));
        let environment = self.environment("REDIRECT_WORKERS").map(|text| {
            let parsed = text
                .parse::<u64>()
                .ok()
                .filter(|n| (1..=MAX_WORKERS as u64).contains(n));
            parsed.or_else(|| {
                self.fail(
                    "REDIRECT_WORKERS",
                    format!("{text:?} is not a number between 1 and {MAX_WORKERS}"),
                )
            })
        });
        let flag = self.flags.workers.map(|workers| match workers.get() {
            n if n <= MAX_WORKERS => Some(n as u64),
            n => self.fail(
                "--workers",
                format!("{n} is not between 1 and {MAX_WORKERS}"),
            ),
        });
        let half = (self.host.cores / 2).clamp(1, MAX_WORKERS) as u64;
        let chosen = flag.or(environment).or(file).unwrap_or(Some(half))?;
        NonZeroUsize::new(usize::try_from(chosen).ok()?)
    }

    fn capture(&self, f: &mut Fields<'_>) -> Option<CaptureConfig> {
        let backends = Backend::ALL.map(|backend| (backend.name(), backend));
        let backend = f
            .optional("backend")
            .map_or(Some(Backend::Auto), |node| node.choice(&backends));
        let modes = Mode::ALL.map(|mode| (mode.name(), mode));
        let mode = f
            .optional("mode")
            .map_or(Some(Mode::Shared), |node| node.choice(&modes));
        let variants = [
            ("auto", IptablesVariant::Auto),
            ("nft", IptablesVariant::Nft),
            ("legacy", IptablesVariant::Legacy),
        ];
        let iptables = f
            .optional("iptables")
            .map_or(Some(IptablesVariant::Auto), |node| node.choice(&variants));
        let leak_guard = boolean(f, "leakGuard", true);
        let probers = section(f, "probes", |f| Some(probers(f)));
        let bpffs = f
            .optional("bpffs")
            .map_or(Some("/sys/fs/bpf".into()), |node| absolute(&node));
        // To try an upgrade between two versions with one build, and to go back to a build whose number was wrong.
        let abi = f
            .optional("abi")
            .map_or(Some(redirect_common::ABI_VERSION), |node| {
                node.integer(1..=u32::MAX)
            });
        let mount_bpffs = boolean(f, "mountBpffs", true);
        let cgroup = f.optional("cgroup").and_then(|node| absolute(&node));
        let exempt_uid = f.optional("exemptUid").and_then(|node| {
            let by_rules = !matches!(backend, Some(Backend::Ebpf | Backend::None));
            match mode == Some(Mode::Dedicated) && by_rules {
                true => node.integer(0..=u32::MAX),
                false => node.fail(
                    "only in dedicated mode and with rules: otherwise the proxy is exempt by its cgroup, which nobody can forge",
                ),
            }
        });
        let events = boolean(f, "events", false);
        let detach = boolean(f, "detachOnExit", false);
        let verify_interval = duration(f, "verifyInterval", false, Duration::from_secs(10));
        Some(CaptureConfig {
            part: Part::Whole,
            backend: backend?,
            mode: mode?,
            iptables: iptables?,
            leak_guard,
            probers: probers?,
            bpffs: bpffs?,
            abi: abi?,
            mount_bpffs,
            cgroup,
            exempt_uid,
            events,
            detach_on_exit: detach || self.flags.detach_on_exit,
            verify_interval,
        })
    }

    fn identity(&self, node: &Node<'_>) -> Option<IdentityConfig> {
        let mut fields = node.fields()?;
        let source = fields
            .required("source")
            .and_then(|node| node.choice(&[("devCa", true), ("files", false)]));
        let dir = fields.required("dir").and_then(|node| absolute(&node));
        let ttl = fields.optional("ttl");
        fields.end();
        if source? {
            if !self.flags.dev_ca {
                node.fail::<()>(
                    "source: devCa signs with the root key of the whole mesh on this node: for development only, and \
                     only with the flag --dev-ca",
                );
            }
            let ttl = ttl.map_or(Some(Duration::from_secs(24 * 3600)), |node| {
                match node.duration(false)? {
                    ttl if ttl < Duration::from_secs(1) => node.fail("must be at least 1s"),
                    ttl => Some(ttl),
                }
            });
            return Some(IdentityConfig::DevCa {
                dir: dir?,
                ttl: ttl?,
            });
        }
        if let Some(ttl) = ttl {
            ttl.fail::<()>("only with source: devCa; certificate files have their own time");
        }
        Some(IdentityConfig::Files { dir: dir? })
    }

    /// Environment and flags only: logging starts before the file is read.
    fn log(&self) -> Option<LogConfig> {
        let (name, filter) = match (&self.flags.log, self.environment("REDIRECT_LOG")) {
            (Some(flag), _) => ("--log", flag.as_str()),
            (None, Some(variable)) => ("REDIRECT_LOG", variable),
            (None, None) => ("", "info"),
        };
        if let Err(error) = EnvFilter::builder().parse(filter) {
            return self.fail(name, format!("{filter:?} is not a log filter: {error}"));
        }
        let format = match (
            self.flags.log_format,
            self.environment("REDIRECT_LOG_FORMAT"),
        ) {
            (Some(format), _) => format,
            (None, None | Some("text")) => LogFormat::Text,
            (None, Some("json")) => LogFormat::Json,
            (None, Some(other)) => {
                return self.fail(
                    "REDIRECT_LOG_FORMAT",
                    format!("{other:?} is not one of text, json"),
                );
            }
        };
        Some(LogConfig {
            filter: filter.to_owned(),
            format,
        })
    }

    /// A text field that an environment variable can override.
    fn text(
        &self,
        fields: &mut Fields<'_>,
        name: &'static str,
        variable: &'static str,
        default: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<String> {
        let file = fields
            .optional(name)
            .map(|node| node.checked(|text| check(text).map(|()| text.to_owned())));
        match (self.environment(variable), file) {
            (Some(text), _) => self.checked(variable, text, check),
            (None, Some(file)) => file,
            (None, None) => self.checked(name, default, check),
        }
    }

    fn path(
        &self,
        fields: &mut Fields<'_>,
        name: &'static str,
        variable: &'static str,
        default: &str,
    ) -> Option<PathBuf> {
        self.optional_path(fields, name, variable)
            .unwrap_or_else(|| Some(default.into()))
    }

    /// `None` if nothing is said; `Some(None)` if it is wrong.
    fn optional_path(
        &self,
        fields: &mut Fields<'_>,
        name: &'static str,
        variable: &'static str,
    ) -> Option<Option<PathBuf>> {
        let file = fields.optional(name).map(|node| absolute(&node));
        match self.environment(variable) {
            Some(text) => Some(
                check_absolute(text)
                    .map_err(|what| self.fail::<()>(variable, what))
                    .ok()
                    .map(|()| text.into()),
            ),
            None => file,
        }
    }

    /// A file, unless the mesh is what the Kubernetes API says.
    fn workloads(&self, fields: &mut Fields<'_>, by_api: bool) -> Option<Option<PathBuf>> {
        match self.optional_path(fields, "workloads", "REDIRECT_WORKLOADS") {
            Some(path) if !by_api => path.map(Some),
            None if by_api => Some(None),
            None => self.fail("workloads", "is missing"),
            Some(_) => self.fail(
                "workloads",
                "and agent.kubernetes.workloads: true exclude each other: the mesh is what a file says, or what the Kubernetes API says",
            ),
        }
    }

    fn checked(
        &self,
        name: &str,
        text: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<String> {
        match check(text) {
            Ok(()) => Some(text.to_owned()),
            Err(what) => self.fail(name, what),
        }
    }

    /// A variable that is set, but to nothing, counts as unset.
    fn environment(&self, variable: &str) -> Option<&str> {
        self.host
            .environment
            .get(variable)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    fn fail<T>(&self, name: &str, what: impl Into<String>) -> Option<T> {
        self.mistakes.add(name, what);
        None
    }
}

/// Reads a map of fields that all have defaults: absent is the same as empty.
pub(super) fn section<'a, T>(
    fields: &mut Fields<'a>,
    name: &'static str,
    read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
) -> Option<T> {
    let mut inner = match fields.optional(name) {
        Some(node) => node.fields()?,
        None => fields.empty(name),
    };
    let value = read(&mut inner);
    inner.end();
    value
}

/// Gives the default in place of a wrong value: its mistake is noted, and reading can go on.
pub(super) fn boolean(f: &mut Fields<'_>, name: &'static str, default: bool) -> bool {
    f.optional(name)
        .and_then(|node| node.boolean())
        .unwrap_or(default)
}

pub(super) fn absolute(node: &Node<'_>) -> Option<PathBuf> {
    node.checked(|text| {
        check_absolute(text)
            .map(|()| PathBuf::from_str(text).unwrap_or_else(|never| match never {}))
    })
}

fn check_absolute(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not an absolute path"));
    }
    if text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(format!("{text:?} has a part `..` or a zero byte"));
    }
    Ok(())
}

fn printable(text: &str) -> Result<(), String> {
    if text.len() > 253 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!(
            "{text:?} has blanks or control characters, or more than 253 bytes"
        ));
    }
    Ok(())
}

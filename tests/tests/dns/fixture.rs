//! A captured pod, two DNS servers that are in no mesh, and a service.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output},
};

use redirect_tests::{App, Daemon, Event, Pod, Testbed, eventually, process::PATIENCE};
use serde_json::{Value, json};

pub struct Fixture {
    pub daemon: Daemon,
    pub client: Pod,
    pub servers: [Pod; 2],
    pub upstreams: [App; 2],
    // Last, so that it outlives what runs in it.
    pub bed: Testbed,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(json!({}), json!({}))
    }

    /// With further configuration of the daemon, and options of the pod.
    pub fn with(config: Value, options: Value) -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let client = node.pod("client");
        let servers = [node.pod("dns1"), node.pod("dns2")];
        let (web, other) = (node.pod("web"), node.pod("other"));
        let workloads = bed
            .workloads()
            .hbone(&client)
            .hbone(&web)
            .tcp(&other)
            .service("web", &["10.96.0.20", "fd00:96::20"], 80, &[&web], 8080)
            .service("v4", &["10.96.0.21"], 80, &[&web], 8080)
            .service("members", &[], 80, &[&web, &other], 8080);
        workloads.write();
        let upstreams = [0, 1].map(|number| {
            let name = format!("dns{}", number + 1);
            let pod: &Pod = &servers[number];
            serve(pod, &name, &[pod.at(53), pod.at6(53)])
        });
        let daemon = node.daemon().capture_with(&client, options);
        let daemon = daemon
            .env("REDIRECT_LOG", "redirect::dns=debug,info")
            .config(config)
            .start();
        Self {
            daemon,
            client,
            servers,
            upstreams,
            bed,
        }
    }

    /// Where the first server listens.
    pub fn server(&self) -> SocketAddr {
        self.servers[0].at(53)
    }

    /// Runs dig in the pod, asking the first server, and gives what it printed.
    #[track_caller]
    pub fn dig(&self, args: &[&str]) -> String {
        let server = format!("@{}", self.servers[0].ipv4());
        let mut all = vec![server.as_str(), "+tries=1", "+time=10"];
        all.extend(args);
        let output = self.run("dig", &all);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "dig {all:?}: {text}");
        assert!(!text.contains("unexpected source"), "{text}");
        text
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command: Command = self.client.command(program);
        command
            .args(args)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Starts `dns-ask` in the pod.
    pub fn ask(&self, args: &[&str]) -> App {
        self.client.app(["dns-ask"].iter().chain(args))
    }

    /// What the first server was asked with this name, of all until now.
    pub fn seen(&self, name: &str) -> Vec<Event> {
        let all = self.upstreams[0].events("query");
        let of_name = |event: &Event| event.str("name").eq_ignore_ascii_case(name);
        all.into_iter().filter(of_name).collect()
    }

    /// Waits until so many queries are counted as answered by `by`, or not, with this result.
    #[track_caller]
    pub fn wait_counted(&self, by: &str, result: &str, count: f64) {
        let labels = [("by", by), ("result", result)];
        eventually(&format!("{count} queries, {labels:?}"), PATIENCE, || {
            let metrics = self.daemon.metrics();
            match metrics.sum("redirect_dns_queries_total", &labels) {
                counted if counted >= count => Ok(()),
                counted => Err(format!("{counted} in\n{}", metrics.text())),
            }
        });
    }

    /// `getaddrinfo` of the C library in the pod, with this resolv.conf.
    #[track_caller]
    pub fn getaddrinfo(&self, resolv: &str, name: &str) -> App {
        let file = self.bed.directory().join("resolv.conf");
        fs::write(&file, resolv).expect("write resolv.conf");
        let mut command = self.client.command("unshare");
        let script = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" dns-ask \"$3\"";
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command
            .arg(file)
            .arg(redirect_tests::app_binary())
            .arg(name);
        App::new(redirect_tests::Process::spawn("resolving app", command))
    }
}

/// Starts a DNS server in `pod`, on these addresses of it.
#[track_caller]
pub fn serve(pod: &Pod, name: &str, addrs: &[SocketAddr]) -> App {
    let mut args = vec!["dns-serve".to_owned(), "--name".to_owned(), name.to_owned()];
    args.extend(
        addrs
            .iter()
            .flat_map(|addr| ["--listen".to_owned(), addr.to_string()]),
    );
    let app = pod.app(args);
    app.event("listening");
    app
}

/// Whether dig printed this record, with blanks of any kind in between.
pub fn has_record(text: &str, record: &str) -> bool {
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    text.lines()
        .any(|line| words(line).join(" ").ends_with(record))
}

/// The data of the answer section, as `dig +short` prints it.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

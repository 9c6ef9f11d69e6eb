//! Golden: what a user sees. `INSTA_UPDATE=always cargo test` writes the files below `snapshots/` anew; look at the difference.

use std::{fs, path::Path};

use clap::{CommandFactory, FromArgMatches};
use insta::assert_snapshot;

use super::*;

/// The output and the exit status of a command, with `dir` and `DIR` for one another.
fn redirect(dir: &Path, arguments: &str) -> String {
    let shown = dir.to_str().unwrap();
    let arguments = arguments.replace("DIR", shown);
    let words = std::iter::once("redirect").chain(arguments.split_whitespace());
    // A width of its own: that of the terminal must not matter.
    let matches = match Cli::command().term_width(100).try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return format!("{error}exit status {}\n", error.exit_code()),
    };
    let cli = Cli::from_arg_matches(&matches).unwrap();
    let host = Host {
        hostname: "node-a".to_owned(),
        cores: 8,
        ..Host::default()
    };
    let mut out = Vec::new();
    let status = match execute(cli.command, &host, &mut out) {
        Ok(code) if code == ExitCode::SUCCESS => 0,
        Ok(_) => 1,
        Err(error) => {
            writeln!(out, "error: {}", explain(&error)).unwrap();
            1
        }
    };
    format!("{}exit status {status}\n", String::from_utf8(out).unwrap()).replace(shown, "DIR")
}

fn here(arguments: &str) -> String {
    redirect(Path::new("/nowhere"), arguments)
}

#[test]
fn help() {
    let commands = [
        "",
        "run",
        "check",
        "config",
        "config check",
        "ca",
        "ca init",
        "ca issue",
        "rules",
        "rules print",
        "rules apply",
        "rules verify",
        "rules clean",
        "pod",
        "pod add",
        "pod remove",
        "pod list",
        "uninstall",
    ];
    let all: String = commands
        .map(|command| {
            format!(
                "$ redirect {command} --help\n{}\n",
                here(&format!("{command} --help"))
            )
        })
        .concat();
    assert_snapshot!(all);
}

#[test]
fn wrong_usage_has_status_2() {
    for arguments in [
        "",
        "walk",
        "run",
        "run --config",
        "run --config x --workers 0",
        "run --config x --workers many",
        "run --config x --log-format xml",
        "config check",
        "ca issue DIR --out DIR",
        "ca issue DIR --identity a/b --out DIR --ttl 0s",
        "uninstall all",
        "check --mode sideways",
        "rules apply",
        "rules print --exempt-mark --exempt-uid 1",
        "rules print --exclude-outbound-ports 0x1",
        "rules print --exclude-outbound-cidrs 10.0.0.0/33",
    ] {
        assert!(
            here(arguments).ends_with("exit status 2\n"),
            "{arguments}: {}",
            here(arguments)
        );
    }
}

const WORKLOADS: &str = "
workloads: [{namespace: default, name: client, workloadIps: [10.1.0.2], services: {default/typo: {80: 80}}}]
services: [{name: web, namespace: default, hostname: web, vips: [/10.96.0.1], ports: {80: 80}}]
";

fn config(dir: &Path) -> String {
    format!(
        "
workloads: {dir}/workloads.yaml
identity: {{source: devCa, dir: {dir}/ca}}
pods:
- name: client
  namespace: default
  serviceAccount: client
  netns: {dir}/netns
  cgroup: {dir}/cgroup
  ips: [10.1.0.2, 'fd00:1::2']
- name: server
  namespace: default
  serviceAccount: server
  netns: /proc/self/ns/net
  cgroup: /proc
  ips: [10.1.0.3]
",
        dir = dir.display()
    )
}

#[test]
fn config_check_of_a_good_file() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    fs::write(dir.join("c.yaml"), config(dir)).unwrap();
    assert_snapshot!(
        "config_check_with_much_missing",
        redirect(dir, "config check DIR/c.yaml")
    );
    fs::write(dir.join("workloads.yaml"), WORKLOADS).unwrap();
    redirect(dir, "ca init DIR/ca");
    for missing in ["netns", "cgroup"] {
        fs::create_dir(dir.join(missing)).unwrap();
    }
    assert_snapshot!(
        "config_check_with_all_there",
        redirect(
            dir,
            "config check DIR/c.yaml --dev-ca --workers 2 --node n1"
        )
    );
}

#[test]
fn config_check_tells_what_rules_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (backend, is_told) in [("nftables", true), ("iptables", true), ("ebpf", false)] {
        let text = config(dir).replace("- name: client", "- name: client\n  onProxyFailure: pass")
            + &format!("capture: {{ backend: {backend} }}\n");
        fs::write(dir.join("c.yaml"), text).unwrap();
        let told = redirect(dir, "config check DIR/c.yaml");
        let warning = format!("onProxyFailure: pass holds with backend {backend} only when");
        assert_eq!(told.contains(&warning), is_told, "{told}");
    }
}

#[test]
fn config_check_of_bad_files() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let bad = config(dir)
        .replace("10.1.0.3", "10.0.0.300")
        .replace("serviceAccount: client", "serviceAcount: client");
    fs::write(dir.join("bad.yaml"), bad).unwrap();
    fs::write(dir.join("c.yaml"), config(dir)).unwrap();
    fs::write(
        dir.join("workloads.yaml"),
        WORKLOADS.replace("/10.96.0.1", "10.96.0.1"),
    )
    .unwrap();
    fs::write(dir.join("broken.yaml"), "pods: [").unwrap();
    fs::write(dir.join("broken.toml"), "pods = \n").unwrap();
    let files = [
        "bad.yaml",
        "c.yaml",
        "broken.yaml",
        "broken.toml",
        "missing.yaml",
    ];
    let all: String = files
        .map(|file| {
            format!(
                "$ redirect config check {file}\n{}\n",
                redirect(dir, &format!("config check DIR/{file}"))
            )
        })
        .concat();
    assert_snapshot!(all);
}

#[test]
fn authorities() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let steps = [
        "ca issue DIR/ca --identity default/client --out DIR/certs",
        "ca init DIR/ca --trust-domain Example.org",
        "ca init DIR/ca --trust-domain example.org",
        "ca init DIR/ca --trust-domain example.org",
        "ca issue DIR/ca --identity default/client --out DIR/certs",
        "ca issue DIR/ca --identity default/client --out DIR/certs --trust-domain example.org",
        "ca issue DIR/ca --identity default/client --out DIR/certs --trust-domain example.org --ttl 1h",
        "ca issue DIR/ca --identity client --out DIR/certs --trust-domain example.org",
        "ca issue DIR/ca --identity ../client --out DIR/certs --trust-domain example.org",
    ];
    let all: String = steps
        .map(|step| format!("$ redirect {step}\n{}\n", redirect(dir, step)))
        .concat();
    assert_snapshot!(all);
    for file in [
        "roots.pem",
        "default/client/cert.pem",
        "default/client/key.pem",
    ] {
        assert!(dir.join("certs").join(file).is_file(), "{file}");
    }
}

#[test]
fn version() {
    assert_eq!(
        here("version"),
        format!("redirect {}\nexit status 0\n", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(here("--version"), here("version"));
}

#[test]
fn rules_print() {
    let printed = [
        "--mode dedicated",
        "--mode dedicated --backend nftables --family ipv6",
        "--exempt-mark --capture-inbound --exclude-outbound-ports 22,25 --exclude-outbound-cidrs 10.9.0.0/16,fd00::/8",
        "",
        "--exempt-cgroup /proc",
    ]
    .map(|flags| {
        let command = format!("rules print {flags}");
        format!("$ redirect {command}\n{}\n", here(&command))
    });
    assert_snapshot!(printed.concat());
}

#[test]
fn flags_reach_the_configuration() {
    let matches = Cli::command().get_matches_from(
        "redirect run --config c --dev-ca --detach-on-exit --workers 3 --node n --log debug --log-format json".split(' '),
    );
    let Command::Run(run) = Cli::from_arg_matches(&matches).unwrap().command else {
        panic!("run")
    };
    let flags = run.flags.resolve();
    assert!(flags.dev_ca && flags.detach_on_exit);
    assert_eq!(
        (flags.workers.unwrap().get(), flags.node.as_deref()),
        (3, Some("n"))
    );
    assert_eq!(
        (flags.log.as_deref(), flags.log_format),
        (Some("debug"), Some(crate::config::LogFormat::Json))
    );
}

#[test]
fn an_error_tells_each_cause_once() {
    let cause = std::io::Error::other("the cause");
    let error = anyhow::Error::from(crate::config::ConfigError::Read {
        path: "/f".into(),
        source: cause,
    });
    assert_eq!(
        explain(&error.context("while starting")),
        "while starting: read /f: the cause"
    );
}

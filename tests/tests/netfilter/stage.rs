//! Rules that were applied by hand, and stand-ins for the proxy and its clients.

use std::{net::SocketAddr, path::Path, process::Command};

use redirect::sys::netns::Netns;
use redirect_tests::{App, Node, Pod, Process, app_binary, redirect_binary};

pub const TOOLS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];

/// `redirect rules apply`, which must succeed.
#[track_caller]
pub fn apply(netns: &Netns, tool: &str, flags: &[&str]) {
    let mut command = Command::new(redirect_binary());
    command.args(["rules", "apply", "--backend", tool, "--netns"]);
    command.arg(netns.path()).args(flags);
    let output = command.output().expect("start redirect");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {flags:?}: {errors}");
}

/// What the listener behind `dst` says first to a new connection of an app.
#[track_caller]
pub fn connect(pod: &Pod, dst: SocketAddr) -> String {
    let app = pod.app(["connect", &dst.to_string(), "recv-line"]);
    app.event("received").text().to_owned()
}

/// The same from a process in `cgroup` of the node's namespace; empty if it got no connection within a second.
pub fn connect_from_node(node: &Node, cgroup: &Path, dst: SocketAddr) -> String {
    std::fs::create_dir_all(cgroup).expect("make the cgroup");
    said(node.command_in(cgroup, "timeout"), dst)
}

/// From a pod, from the address that its route says; empty if it got no connection within a second.
pub fn try_connect(pod: &Pod, dst: SocketAddr) -> String {
    said(pod.command("timeout"), dst)
}

fn said(mut command: Command, dst: SocketAddr) -> String {
    let script = r#"exec 3<>"/dev/tcp/$0/$1" && read -r line <&3 && echo "$line""#;
    let (ip, port) = (dst.ip().to_string(), dst.port().to_string());
    command.args(["1", "bash", "-c", script, &ip, &port]);
    let output = command.output().expect("timeout and bash are installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `rdt-app serve` in the node's namespace, on `[::]:port`.
#[track_caller]
pub fn serve_on_node(node: &Node, port: u16, mode: &str) -> App {
    let mut command = node.command(app_binary());
    command.args(["serve", "--mode", mode, "--listen", &format!("[::]:{port}")]);
    let app = App::new(Process::spawn(
        format!("server on {}", node.name()),
        command,
    ));
    app.event("listening");
    app
}

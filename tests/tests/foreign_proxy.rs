//! Proxies that know nothing of us work unchanged behind our eBPF capture: two of Debian's, which ask `SO_ORIGINAL_DST`.

use std::{fs, net::SocketAddr, process::Command};

use redirect_tests::{
    App, Mesh, Process, eventually,
    exchange::{greeted, greeter},
    process::PATIENCE,
};

/// The daemon is gone and its programs stay: others take its port, in its cgroup and the pod's namespace.
struct Stage {
    mesh: Mesh,
    server: App,
}

impl Stage {
    fn new() -> Self {
        let mut mesh = Mesh::start();
        let server = greeter(&mesh.outsider, 8080);
        mesh.daemon_a.sigkill();
        Self { mesh, server }
    }

    /// A command in the daemon's place.
    fn command(&self, program: &str) -> Command {
        let cgroup = self.mesh.daemon_a.spec().cgroup();
        self.mesh.client.command_at(&cgroup, program)
    }

    /// Waits until `proxy` carries connections.
    #[track_caller]
    fn wait_for(&self, proxy: &Process) {
        eventually("the proxy carries a connection", PATIENCE, || {
            let asked = self.mesh.outsider.at(8080).to_string();
            let app = self.mesh.client.app(["connect", &asked, "recv-line"]);
            let there =
                app.next_event().name() == "connected" && app.next_event().name() == "received";
            there.then_some(()).ok_or_else(|| proxy.transcript(20))
        });
        self.server.event("accepted");
    }

    /// The app reaches what it asked for, sees it as if there were no proxy, and is not connected to it; gives its socket's
    /// address.
    #[track_caller]
    fn carried(&self, dst: SocketAddr) -> SocketAddr {
        let connected = greeted(&self.mesh.client, dst, &[]);
        assert_eq!(connected.addr("peername"), dst, "getpeername");
        let own = canonical(connected.addr("sockname"));
        let client = match canonical(dst) {
            SocketAddr::V4(_) => self.mesh.client.ipv4(),
            SocketAddr::V6(_) => self.mesh.client.ipv6(),
        };
        assert_eq!(own.ip(), client, "getsockname");
        let accepted = self.server.event("accepted");
        assert_eq!(accepted.addr("local"), canonical(dst));
        assert_ne!(accepted.addr("peer"), own, "it is a direct connection");
        own
    }

    fn mapped(&self) -> SocketAddr {
        let mapped = format!("[::ffff:{}]:8080", self.mesh.outsider.ipv4());
        mapped.parse().expect("an address")
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// IPv4 only: for IPv6 it takes the local address, behind netfilter as well.
#[test]
fn an_unmodified_haproxy_carries_what_we_capture() {
    let stage = Stage::new();
    let path = stage.mesh.bed.directory().join("haproxy.cfg");
    // A server at 0.0.0.0 without a port is the address and port that the client asked for.
    let config = "global\n\
        \x20   maxconn 100\n\
        \x20   log stdout format raw local0\n\
        defaults\n\
        \x20   mode tcp\n\
        \x20   timeout connect 5s\n\
        \x20   timeout client 1m\n\
        \x20   timeout server 1m\n\
        listen transparent\n\
        \x20   log global\n\
        \x20   log-format \"carried %ci:%cp to %[dst]:%[dst_port]\"\n\
        \x20   bind 0.0.0.0:15001\n\
        \x20   server asked 0.0.0.0\n";
    fs::write(&path, config).expect("write HAProxy's configuration");
    let mut command = stage.command("haproxy");
    command.args(["-db", "-f"]).arg(&path);
    let haproxy = Process::spawn("haproxy", command);
    stage.wait_for(&haproxy);
    for dst in [stage.mesh.outsider.at(8080), stage.mapped()] {
        let own = stage.carried(dst);
        let line = format!("carried {own} to {}", canonical(dst));
        haproxy.wait_line("line of its log", |said| said.contains(&line).then_some(()));
    }
}

/// It asks for IPv6 first, also on a connection over IPv4.
#[test]
fn an_unmodified_shadowsocks_carries_what_we_capture() {
    let stage = Stage::new();
    let inner = ["-p", "8388", "-k", "secret", "-m", "aes-128-gcm"];
    let mut command = stage.command("ss-server");
    command.args(["-s", "127.0.0.1"]).args(inner);
    let far_end = Process::spawn("ss-server", command);
    let mut command = stage.command("ss-redir");
    command.args(["-v", "-b", "::", "-l", "15001", "-s", "127.0.0.1"]);
    let redir = Process::spawn("ss-redir", {
        command.args(inner);
        command
    });
    stage.wait_for(&redir);
    for dst in [
        stage.mesh.outsider.at(8080),
        stage.mesh.outsider.at6(8080),
        stage.mapped(),
    ] {
        stage.carried(dst);
    }
    drop(far_end);
}

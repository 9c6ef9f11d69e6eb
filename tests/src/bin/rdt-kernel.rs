//! The self-test that `cargo xtask test-kernels` boots an old kernel for: two nodes with real daemons that choose their backend
//! themselves, and the contract of capture in short.
//!
//! One line on standard output for each result, each beginning with `rdt-kernel: `. A check that fails does not end the others.

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
};

use redirect_tests::{
    App, Event, Mesh, Pod,
    exchange::{greeted, greeter, refused},
    redirect_binary,
    state::State,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut report = Report::default();
    report.check("redirect check tells what is there", features);
    let Some(mut stage) = report.check("two daemons start and capture their pods", Stage::set)
    else {
        return report.end();
    };
    let mesh = &stage.mesh;
    for (family, dst) in stage.destinations() {
        report.check(&format!("outbound {family} arrives by HBONE"), || {
            stage.arrives(dst)
        });
        report.check(
            &format!("outbound {family}: the app sees its destination"),
            || stage.sees_its_destination(dst),
        );
    }
    for (family, dst) in [
        ("IPv4", mesh.client.at(8081)),
        ("IPv6", mesh.client.at6(8081)),
    ] {
        report.check(
            &format!("inbound {family} in plaintext goes by the proxy"),
            || stage.inbound(dst),
        );
    }
    report.check("nothing but HBONE went between the nodes", || {
        assert_eq!(stage.mesh.wall.leaked(), 0);
    });
    stage.mesh.daemon_a.sigkill();
    for (family, dst) in stage.destinations() {
        report.check(
            &format!("outbound {family} is refused without a daemon"),
            || refused(&stage.mesh.client, dst),
        );
    }
    report.check("nothing leaked meanwhile", || {
        assert_eq!(stage.mesh.wall.leaked(), 0)
    });
    report.check("uninstall lets go", || stage.uninstall());
    report.check("the client's namespace is as it was before", || {
        let differences = stage.before.differences(&state(&stage.mesh.client));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    });
    for (family, dst) in [
        ("IPv4", stage.mesh.outsider.at(8080)),
        ("IPv6", stage.mesh.outsider.at6(8080)),
    ] {
        report.check(&format!("{family} is direct afterwards"), || {
            stage.is_direct(dst)
        });
    }
    drop(stage);
    report.end()
}

/// What was found, line by line as it is found: a machine that hangs has told where.
#[derive(Default)]
struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    fn check<T>(&mut self, name: &str, check: impl FnOnce() -> T) -> Option<T> {
        // What a broken check leaves half done is seen by those that follow, which is what they are for.
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(value) => {
                self.passed += 1;
                println!("rdt-kernel: ok {name}");
                Some(value)
            }
            Err(_) => {
                self.failed += 1;
                println!("rdt-kernel: FAILED {name}");
                None
            }
        }
    }

    fn end(self) -> ExitCode {
        println!(
            "rdt-kernel: end passed={} failed={}",
            self.passed, self.failed
        );
        match self.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// Prints what `redirect check` says: its choice, and what the programs miss.
fn features() {
    let run = |args: &[&str]| {
        let output = Command::new(redirect_binary())
            .arg("check")
            .args(args)
            .output();
        output.expect("start redirect check")
    };
    let table = run(&[]);
    print!("{}", String::from_utf8_lossy(&table.stdout));
    assert!(
        table.status.success(),
        "no backend works: {}",
        String::from_utf8_lossy(&table.stderr)
    );
    let told: Value = serde_json::from_slice(&run(&["--json"]).stdout).expect("JSON");
    println!(
        "rdt-kernel: backend={} because={}",
        text(&told["backend"]),
        text(&told["because"])
    );
    for feature in told["features"].as_array().expect("a list of features") {
        if feature["found"] == false {
            println!(
                "rdt-kernel: missing {} | {}",
                text(&feature["name"]),
                text(&feature["detail"])
            );
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The client pod's daemon is `a`, the server's `b`; a server on port 8080 of each pod that is not the client.
struct Stage {
    mesh: Mesh,
    server: App,
    outside: App,
    own: App,
    before: State,
}

fn state(pod: &Pod) -> State {
    State::of(pod.netns(), &[pod.cgroup()])
}

impl Stage {
    fn set() -> Self {
        let mut before = State::default();
        let mesh = Mesh::builder()
            .config(json!({ "capture": { "backend": "auto" } }))
            .start_with(|client, _| before = state(client));
        let chosen = mesh.daemon_a.wait_log("choice of a backend", |line| {
            line.contains("chose the backend")
        });
        println!("rdt-kernel: {chosen}");
        let server = greeter(&mesh.server, 8080);
        let outside = greeter(&mesh.outsider, 8080);
        let own = greeter(&mesh.client, 8081);
        Self {
            mesh,
            server,
            outside,
            own,
            before,
        }
    }

    fn destinations(&self) -> [(&'static str, SocketAddr); 3] {
        let server = &self.mesh.server;
        let mapped = format!("[::ffff:{}]:8080", server.ipv4());
        [
            ("IPv4", server.at(8080)),
            ("IPv6", server.at6(8080)),
            ("v4-mapped", mapped.parse().expect("an address")),
        ]
    }

    fn arrives(&self, dst: SocketAddr) {
        greeted(&self.mesh.client, dst, &[]);
        let accepted = self.server.event("accepted");
        assert_eq!(accepted.addr("local"), canonical(dst));
    }

    fn sees_its_destination(&self, dst: SocketAddr) {
        let connected: Event = greeted(&self.mesh.client, dst, &[]);
        self.server.event("accepted");
        assert_eq!(canonical(connected.addr("peername")), canonical(dst));
        let source = connected.addr("sockname").ip().to_canonical();
        assert!(
            [self.mesh.client.ipv4(), self.mesh.client.ipv6()].contains(&source),
            "{source}"
        );
    }

    /// A client that is in no mesh: the app sees its address, but not its port, for the connection is the proxy's.
    fn inbound(&self, dst: SocketAddr) {
        let connected = greeted(&self.mesh.outsider, dst, &[]);
        let accepted = self.own.event("accepted");
        let (peer, client) = (accepted.addr("peer"), canonical(connected.addr("sockname")));
        assert_eq!(accepted.addr("local"), dst);
        assert_eq!(peer.ip(), client.ip());
        assert_ne!(peer.port(), client.port(), "it came directly");
    }

    fn uninstall(&mut self) {
        let spec = self.mesh.daemon_a.spec();
        let output = spec
            .command()
            .arg("uninstall")
            .arg("--bpffs")
            .arg(spec.bpffs())
            .arg("--state-dir")
            .arg(spec.state_dir())
            .output()
            .expect("start redirect uninstall");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn is_direct(&self, dst: SocketAddr) {
        let connected = greeted(&self.mesh.client, dst, &[]);
        let accepted = self.outside.event("accepted");
        assert_eq!(accepted.addr("peer"), canonical(connected.addr("sockname")));
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

//! Certificates: short-lived ones are renewed under open connections, and files serve as well as the development root.

use std::{fs, path::Path, time::Duration};

use redirect_tests::{
    Pod, Testbed,
    exchange::{Held, greeted, greeter},
    hbone,
    sockets::established,
    wait_until,
};
use serde_json::json;

fn renewals(daemon: &redirect_tests::Daemon) -> usize {
    daemon
        .log()
        .iter()
        .filter(|line| line.contains("certificate renewed"))
        .count()
}

#[test]
fn certificates_are_renewed_without_dropping_connections() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let (client, server) = (a.pod("client"), b.pod("server"));
    bed.workloads().hbone(&client).hbone(&server).write();
    let identity = json!({ "identity": { "source": "devCa", "dir": bed.ca(), "ttl": "4s" } });
    let daemon_a = a.daemon().capture(&client).config(identity.clone()).start();
    let daemon_b = b.daemon().capture(&server).config(identity).start();
    let _server = greeter(&server, 8080);
    let mut held = Held::open(&client, server.at(8080));
    // The first certificates of both are long over then.
    let mut rounds = 0;
    let renewed = wait_until(Duration::from_secs(30), || {
        rounds += 1;
        held.echo(&format!("round {rounds}"))
            .expect("an open connection goes on");
        greeted(&client, server.at(8080), &[]);
        renewals(&daemon_a) >= 4 && renewals(&daemon_b) >= 4
    });
    assert!(
        renewed,
        "{} and {} renewals",
        renewals(&daemon_a),
        renewals(&daemon_b)
    );
    assert!(rounds > 10, "only {rounds} rounds");
    // The held connection's tunnel takes no new streams since its certificates are over: they have another one.
    assert!(
        established(client.netns(), hbone::PORT) >= 2,
        "one tunnel for old and new connections"
    );
}

#[test]
fn certificate_files_are_used_and_read_again() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let (client, server) = (a.pod("client"), b.pod("server"));
    bed.workloads().hbone(&client).hbone(&server).write();
    let dir = bed.directory().join("files");
    let issue = |pod: &Pod| {
        let mut command = std::process::Command::new(redirect_tests::redirect_binary());
        command
            .arg("ca")
            .arg("issue")
            .arg(bed.ca())
            .arg("--identity");
        command
            .arg(format!("default/{}", pod.service_account()))
            .arg("--out")
            .arg(&dir);
        let output = command.output().expect("start redirect");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    issue(&client);
    issue(&server);
    let identity = json!({ "identity": { "source": "files", "dir": dir } });
    let daemon_a = a.daemon().capture(&client).config(identity.clone()).start();
    let _daemon_b = b.daemon().capture(&server).config(identity).start();
    let _server = greeter(&server, 8080);
    let mut held = Held::open(&client, server.at(8080));

    let before = fs::read(certificate(&dir, &client)).expect("issued");
    issue(&client);
    assert_ne!(
        fs::read(certificate(&dir, &client)).expect("issued"),
        before
    );
    let lines = || renewals(&daemon_a);
    assert!(
        wait_until(Duration::from_secs(70), || lines() > 0),
        "the new file is not used"
    );
    held.echo("still").expect("an open connection goes on");
    greeted(&client, server.at(8080), &[]);

    // A file that fits no key changes nothing.
    fs::write(certificate(&dir, &client), "no certificate\n").expect("write");
    daemon_a.wait_log("report of the bad file", |line| {
        line.contains("no new certificate")
    });
    greeted(&client, server.at(8080), &[]);
}

fn certificate(dir: &Path, pod: &Pod) -> std::path::PathBuf {
    dir.join("default")
        .join(pod.service_account())
        .join("cert.pem")
}

#[test]
fn daemons_with_different_roots_do_not_talk() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let (client, server) = (a.pod("client"), b.pod("server"));
    bed.workloads().hbone(&client).hbone(&server).write();
    let other = bed.directory().join("other-ca");
    let output = std::process::Command::new(redirect_tests::redirect_binary())
        .args(["ca", "init"])
        .arg(&other)
        .output()
        .expect("start redirect");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let daemon_a = a.daemon().capture(&client).start();
    let _daemon_b = b
        .daemon()
        .capture(&server)
        .config(json!({ "identity": { "source": "devCa", "dir": other } }))
        .start();
    let app = greeter(&server, 8080);
    redirect_tests::exchange::refused(&client, server.at(8080));
    daemon_a.wait_failed("outbound", "peer_tls", 1);
    assert_eq!(app.events("accepted"), []);
    // The root's key is for its owner only.
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(other.join("root-key.pem"))
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

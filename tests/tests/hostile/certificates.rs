//! Who is let in, by certificate and by version of TLS.

use std::process::Command;

use rcgen::ExtendedKeyUsagePurpose;
use redirect_tests::hbone::{Forge, Leaf};

use super::Stage;

#[test]
fn certificates_are_judged() {
    let stage = Stage::set();
    let id = "spiffe://cluster.local/ns/default/sa/mallory";
    let greeting = stage.try_connect(&stage.forge.identity("mallory"), &stage.authority());
    assert!(
        greeting
            .as_deref()
            .is_ok_and(|text| text.starts_with("hello ")),
        "{greeting:?}"
    );

    let uris = |uris: &[&str]| Leaf {
        uris: uris.iter().map(ToString::to_string).collect(),
        ..Leaf::new(id)
    };
    let usage = |usage| Leaf {
        usages: vec![usage],
        ..Leaf::new(id)
    };
    for (what, leaf) in [
        (
            "another trust domain",
            Leaf::new("spiffe://other.local/ns/default/sa/mallory"),
        ),
        (
            "a trust domain that begins the same",
            Leaf::new("spiffe://cluster.local.evil/ns/default/sa/mallory"),
        ),
        (
            "expired",
            Leaf {
                valid: (2020, 2021),
                ..Leaf::new(id)
            },
        ),
        (
            "not yet valid",
            Leaf {
                valid: (2090, 2099),
                ..Leaf::new(id)
            },
        ),
        ("no SAN", uris(&[])),
        (
            "a SAN that is no SPIFFE identity",
            uris(&["https://cluster.local/ns/default/sa/mallory"]),
        ),
        (
            "two identities",
            uris(&[id, "spiffe://cluster.local/ns/default/sa/client"]),
        ),
        (
            "not for clients",
            usage(ExtendedKeyUsagePurpose::ServerAuth),
        ),
    ] {
        let result = stage.try_connect(&stage.forge.leaf(&leaf), &stage.authority());
        assert!(result.is_err(), "{what}: accepted");
    }
    let stranger = stage.try_connect(&Forge::stranger().identity("mallory"), &stage.authority());
    assert!(stranger.is_err(), "a stranger's root: accepted");
    let metrics = stage.mesh.daemon_b.metrics();
    let refused = metrics.sum(
        "redirect_connections_failed_total",
        &[("direction", "inbound")],
    );
    assert!(refused >= 9.0, "{refused} counted in\n{}", metrics.text());
    stage.still_works();
}

#[test]
fn tls_1_2_is_refused() {
    let stage = Stage::set();
    let dir = stage.mesh.bed.directory().join("issued");
    let mut issue = stage.mesh.daemon_b.spec().command();
    issue
        .arg("ca")
        .arg("issue")
        .arg(stage.mesh.bed.ca())
        .args(["--identity", "default/mallory", "--out"])
        .arg(&dir);
    let issued = issue.output().expect("start redirect");
    assert!(
        issued.status.success(),
        "{}",
        String::from_utf8_lossy(&issued.stderr)
    );
    let leaf = dir.join("default/mallory");
    let handshake = |version: &str| {
        let mut command: Command = stage.mallory.command("openssl");
        command.args([
            "s_client",
            "-brief",
            version,
            "-alpn",
            "h2",
            "-connect",
            &stage.hbone().to_string(),
        ]);
        command
            .arg("-cert")
            .arg(leaf.join("cert.pem"))
            .arg("-key")
            .arg(leaf.join("key.pem"));
        command.arg("-CAfile").arg(dir.join("roots.pem"));
        let output = command
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl is installed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let modern = handshake("-tls1_3");
    assert!(modern.contains("Protocol version: TLSv1.3"), "{modern}");
    assert!(modern.contains("Verification: OK"), "{modern}");
    for version in ["-tls1_2", "-tls1_1"] {
        let refused = handshake(version);
        assert!(
            !refused.contains("Protocol version"),
            "{version}: {refused}"
        );
    }
    stage.still_works();
}

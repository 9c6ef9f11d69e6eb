//! Debian's HAProxy in both pods, in the places where redirect's listeners are: what users would otherwise take.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::{
    apps::{App, wait_listening},
    stage::{Ends, Proxies},
};
use crate::{Pod, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes stay in the kernel; no crypto.
    Splice,
    /// TLS 1.3 with AES-128-GCM, certificates verified both ways, one TLS connection per connection.
    Tls,
    /// The same with large buffers: a quarter faster in bulk, a tenth slower with many requests.
    TlsBulk,
}

/// How it is tuned, for the table's head.
pub const ABOUT: &str = "HAProxy: nbthread 2, no log, TLS 1.3 AES-128-GCM, session reuse as by default, tune.bufsize 16384; \
    for TLS in bulk a pair of its own with 131072";
const THREADS: usize = 2;

/// One HAProxy beside the client, one beside the server.
pub struct Pair {
    outbound: Process,
    inbound: Process,
}

impl Pair {
    pub fn start(kind: Kind, ends: &Ends, directory: &Path) -> Result<Self> {
        let directory = directory.join(format!("haproxy-{kind:?}"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        if kind != Kind::Splice {
            make_certificates(&directory)?;
        }
        let inbound = start(
            &ends.server,
            &directory,
            "server",
            &config(
                |app| {
                    let (from, to) = (
                        ends.server.at(between(kind, app)),
                        ends.server.at(app.port()),
                    );
                    (
                        format!("{from}{}", tls(kind, &directory, "server")),
                        to.to_string(),
                    )
                },
                kind,
            ),
        )?;
        let outbound = start(
            &ends.client,
            &directory,
            "client",
            &config(
                |app| {
                    let (from, to) = (dial(kind, app), ends.server.at(between(kind, app)));
                    (
                        from.to_string(),
                        format!("{to}{}", tls(kind, &directory, "client")),
                    )
                },
                kind,
            ),
        )?;
        for app in App::ALL {
            wait_listening(ends.server.netns(), ends.server.at(between(kind, app)))?;
            wait_listening(ends.client.netns(), dial(kind, app))?;
        }
        Ok(Self { outbound, inbound })
    }

    pub fn proxies(&self) -> Proxies {
        Proxies {
            outbound: self.outbound.pid(),
            inbound: self.inbound.pid(),
        }
    }
}

/// Where the client connects to.
pub fn dial(kind: Kind, app: App) -> SocketAddr {
    ([127, 0, 0, 1], between(kind, app)).into()
}

/// The port between the two, and the client's.
fn between(kind: Kind, app: App) -> u16 {
    app.port()
        + match kind {
            Kind::Splice => 10_000,
            Kind::Tls => 20_000,
            Kind::TlsBulk => 30_000,
        }
}

fn start(pod: &Pod, directory: &Path, side: &str, config: &str) -> Result<Process> {
    let path = directory.join(format!("{side}.cfg"));
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = pod.command("haproxy");
    command.args(["-db", "-f"]).arg(path);
    Ok(Process::spawn(
        format!("haproxy in {}", pod.name()),
        command,
    ))
}

/// `way` gives, for each app, what to bind and which server to connect to.
fn config(way: impl Fn(App) -> (String, String), kind: Kind) -> String {
    let splice = if kind == Kind::Splice {
        "    option splice-auto\n"
    } else {
        ""
    };
    let buffer = if kind == Kind::TlsBulk {
        131_072
    } else {
        16_384
    };
    let mut config = format!(
        "global\n    maxconn 6000\n    nbthread {THREADS}\n    tune.bufsize {buffer}\n\
         defaults\n    mode tcp\n    maxconn 6000\n{splice}\
         \x20   timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
    );
    for app in App::ALL {
        let (bind, server) = way(app);
        config += &format!("listen {app:?}\n    bind {bind}\n    server peer {server}\n");
    }
    config
}

fn tls(kind: Kind, directory: &Path, side: &str) -> String {
    if kind == Kind::Splice {
        return String::new();
    }
    let directory = directory.display();
    format!(
        " ssl crt {directory}/{side}.pem ca-file {directory}/ca.crt verify required ssl-min-ver TLSv1.3 \
         ciphersuites TLS_AES_128_GCM_SHA256"
    )
}

/// ECDSA P-256 like redirect's own, one root and a leaf for each side.
fn make_certificates(directory: &Path) -> Result<()> {
    let script = r#"
set -eu
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=bench -days 2 -out ca.crt
for side in client server; do
    key $side
    openssl req -new -key $side.key -subj /CN=$side -out $side.csr
    printf 'subjectAltName=URI:spiffe://cluster.local/ns/default/sa/%s\nextendedKeyUsage=serverAuth,clientAuth\n' \
        $side > $side.ext
    openssl x509 -req -in $side.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile $side.ext -out $side.crt
    cat $side.crt $side.key > $side.pem
done"#;
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .context("cannot run sh")?;
    if !output.status.success() {
        bail!(
            "openssl cannot make certificates: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

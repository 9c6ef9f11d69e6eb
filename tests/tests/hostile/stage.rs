//! The scene of all these tests.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use redirect_tests::{
    Mesh, Pod,
    exchange::{greeted, greeter},
    hbone::{self, Credentials, Forge, TlsStream, Tunnel, frames, run_in},
};
use tokio::io::AsyncWriteExt;

/// A mesh with a greeter on the server's port 8080, and a pod that no daemon captures, next to the server.
pub struct Stage {
    _greeter: redirect_tests::App,
    pub mallory: Pod,
    pub forge: Forge,
    pub mesh: Mesh,
}

impl Stage {
    pub fn set() -> Self {
        Self::on(Mesh::start())
    }

    pub fn on(mesh: Mesh) -> Self {
        let mallory = mesh.b.pod("mallory");
        let forge = Forge::of(mesh.bed.ca());
        Self {
            _greeter: greeter(&mesh.server, 8080),
            mallory,
            forge,
            mesh,
        }
    }

    pub fn hbone(&self) -> SocketAddr {
        self.mesh.server.at(hbone::PORT)
    }

    pub fn authority(&self) -> String {
        self.mesh.server.at(8080).to_string()
    }

    /// Whether a well-behaved client is served as ever.
    #[track_caller]
    pub fn still_works(&self) {
        let started = Instant::now();
        greeted(&self.mesh.client, self.mesh.server.at(8080), &[]);
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "took {:?}",
            started.elapsed()
        );
    }

    /// A whole CONNECT with these credentials, up to the greeting.
    pub fn try_connect(
        &self,
        credentials: &Credentials,
        authority: &str,
    ) -> Result<String, String> {
        run_in(self.mallory.netns(), || async {
            let mut tunnel = Tunnel::open(self.hbone(), credentials)
                .await
                .map_err(|e| e.to_string())?;
            let mut stream = tunnel.connect(authority).await.map_err(|e| e.to_string())?;
            stream.receive_line().await.map_err(|e| e.to_string())
        })
    }
}

/// Runs `f` on a TLS connection on which the HTTP/2 preface was sent.
pub fn with_raw<T: Send>(
    stage: &Stage,
    credentials: &Credentials,
    f: impl AsyncFnOnce(&mut TlsStream) -> io::Result<T> + Send,
) -> io::Result<T> {
    run_in(stage.mallory.netns(), || async {
        let mut tls = hbone::handshake(stage.hbone(), credentials).await?;
        tls.write_all(&frames::preface()).await?;
        f(&mut tls).await
    })
}

//! What runs in the pods of a bench: iperf3, nginx and an echo server of our own.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use redirect::sys::netns::Netns;

use crate::{Pod, Process, wait_until};

/// What listens in the server pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    Iperf,
    Http,
    Echo,
}

impl App {
    pub const ALL: [Self; 3] = [Self::Iperf, Self::Http, Self::Echo];

    pub fn port(self) -> u16 {
        match self {
            Self::Iperf => 5201,
            Self::Http => 8080,
            Self::Echo => 7000,
        }
    }
}

/// An echo server's port that the captured client's options exclude.
pub const EXCLUDED_PORT: u16 = 7100;

/// Starts every [`App`] in `pod`, and the echo server on the excluded port.
pub fn serve(pod: &Pod, directory: &Path) -> Result<Vec<Process>> {
    let config = directory.join(format!("nginx-{}.conf", pod.name()));
    fs::write(&config, nginx_config(directory, pod))
        .with_context(|| format!("cannot write {}", config.display()))?;
    let mut nginx = pod.command("nginx");
    nginx
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&config)
        .args(["-e", "stderr"]);
    let mut iperf = pod.command("iperf3");
    iperf
        .args(["--server", "--port"])
        .arg(App::Iperf.port().to_string());
    let mut apps = vec![echo(pod, App::Echo.port())?, echo(pod, EXCLUDED_PORT)?];
    for (app, command) in [(App::Http, nginx), (App::Iperf, iperf)] {
        apps.push(Process::spawn(
            format!("{app:?} in {}", pod.name()),
            command,
        ));
        wait_listening(pod.netns(), pod.at(app.port()))?;
    }
    Ok(apps)
}

pub fn echo(pod: &Pod, port: u16) -> Result<Process> {
    let mut command = pod.command(me()?);
    command
        .args(["helper", "serve"])
        .arg(format!("0.0.0.0:{port}"));
    let process = Process::spawn(format!("echo in {}", pod.name()), command);
    wait_listening(pod.netns(), pod.at(port))?;
    Ok(process)
}

/// This program, whose `helper` commands run in pods.
pub fn me() -> Result<PathBuf> {
    std::env::current_exe().context("a running program has a path")
}

pub fn wait_listening(netns: &Netns, address: SocketAddr) -> Result<()> {
    let listening = wait_until(Duration::from_secs(10), || {
        netns
            .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
            .unwrap_or(false)
    });
    if !listening {
        bail!("nothing listens on {address}");
    }
    Ok(())
}

fn nginx_config(directory: &Path, pod: &Pod) -> String {
    let scratch = directory.display();
    let (name, port) = (pod.name(), App::Http.port());
    format!(
        "daemon off;
worker_processes 1;
pid {scratch}/nginx-{name}.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {scratch}/nginx-{name}-body;
    proxy_temp_path {scratch}/nginx-{name}-proxy;
    fastcgi_temp_path {scratch}/nginx-{name}-fastcgi;
    uwsgi_temp_path {scratch}/nginx-{name}-uwsgi;
    scgi_temp_path {scratch}/nginx-{name}-scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    server {{ listen 0.0.0.0:{port} backlog=8192; location / {{ return 200 \"hello from the server\\n\"; }} }}
}}
"
    )
}

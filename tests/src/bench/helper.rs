//! What runs inside pods during a bench: `rdt-bench helper …`, one JSON line of result on standard output.

use std::{
    cell::Cell,
    io::{self, BufRead, Write},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use super::dns;
use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Helper {
    /// Echo what comes, on any number of connections.
    Serve { address: SocketAddr },
    /// Connect, send one byte, await it, close; again and again on some connections at once.
    Churn {
        address: SocketAddr,
        seconds: u32,
        tasks: usize,
    },
    /// Open connections, use each once, say so, and hold them until standard input ends.
    Hold {
        address: SocketAddr,
        connections: usize,
    },
    /// Answer each DNS query at once.
    Resolve { address: SocketAddr },
    /// Ask a DNS server, with so many queries under way.
    Ask {
        address: SocketAddr,
        name: String,
        seconds: u32,
        in_flight: usize,
    },
    /// Per number on standard input, time so many calls of `connect()`.
    Connect { address: SocketAddr },
}

/// What `churn` found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Churned {
    pub connections: u64,
    pub failed: u64,
    pub seconds: f64,
}

/// What `hold` says when all connections stand.
#[derive(Debug, Serialize, Deserialize)]
pub struct Held {
    pub connections: usize,
}

/// How long each `connect()` took, in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Timed {
    pub nanoseconds: Vec<u64>,
}

pub fn run(helper: &Helper) -> Result<()> {
    allow_many_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let local = tokio::task::LocalSet::new();
    match *helper {
        Helper::Resolve { address } => dns::resolve_here(address),
        Helper::Ask {
            address,
            ref name,
            seconds,
            in_flight,
        } => say(&dns::ask_here(address, name, seconds, in_flight)?),
        Helper::Serve { address } => local.block_on(&runtime, serve(address)),
        Helper::Churn {
            address,
            seconds,
            tasks,
        } => say(&local.block_on(&runtime, churn(address, seconds, tasks))),
        Helper::Hold {
            address,
            connections,
        } => local.block_on(&runtime, hold(address, connections)),
        Helper::Connect { address } => connect(address),
    }
}

fn say(result: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    writeln!(out)
        .and_then(|()| out.flush())
        .context("nobody listens")
}

/// Raises the soft limit; where that fails the connections will say so.
fn allow_many_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

async fn serve(address: SocketAddr) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?; // accepted sockets inherit it
    socket
        .bind(address)
        .with_context(|| format!("cannot bind {address}"))?;
    let listener: TcpListener = socket.listen(8192)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::task::spawn_local(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 || stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn once(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}

async fn churn(address: SocketAddr, seconds: u32, tasks: usize) -> Churned {
    let (done, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds.into());
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (done, failed) = (Rc::clone(&done), Rc::clone(&failed));
            tokio::task::spawn_local(async move {
                while Instant::now() < until {
                    let counter = if once(address).await.is_ok() {
                        &done
                    } else {
                        &failed
                    };
                    counter.set(counter.get() + 1);
                }
            })
        })
        .collect();
    for task in running {
        let _ = task.await;
    }
    Churned {
        connections: done.get(),
        failed: failed.get(),
        seconds: started.elapsed().as_secs_f64(),
    }
}

async fn hold(address: SocketAddr, connections: usize) -> Result<()> {
    let mut held = Vec::with_capacity(connections);
    for number in 0..connections {
        held.push(
            once(address)
                .await
                .with_context(|| format!("connection {number} to {address}"))?,
        );
    }
    say(&Held {
        connections: held.len(),
    })?;
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

fn connect(address: SocketAddr) -> Result<()> {
    // Both of those that are compared run on the same processor, never on the listener's by chance.
    let mut first = CpuSet::new();
    first.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &first)?;
    for line in io::stdin().lock().lines() {
        let count: usize = line?.trim().parse().context("a number per line")?;
        let nanoseconds = (0..count)
            .map(|_| time_one(address))
            .collect::<Result<_>>()?;
        say(&Timed { nanoseconds })?;
    }
    Ok(())
}

fn time_one(address: SocketAddr) -> Result<u64> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A reset at close: no port stays in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    let address = address.into();
    let started = Instant::now();
    socket.connect(&address)?;
    let took = started.elapsed();
    u64::try_from(took.as_nanos()).context("a connect of centuries")
}

//! `many --count N ADDR…`: N connections at once to the addresses in turn, each echoed on and then held.
//!
//! After `held` it reads lines: `again` echoes on each connection once more, the end of input closes all.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{emit, error_name};

#[derive(clap::Args)]
pub struct Args {
    addrs: Vec<SocketAddr>,
    /// Further addresses: each port FROM to FROM+PORTS-1 of `IP`.
    #[arg(long, num_args = 3, value_names = ["IP", "FROM", "PORTS"])]
    range: Option<Vec<String>>,
    #[arg(long)]
    count: usize,
    /// How many connects and echoes may be under way.
    #[arg(long, default_value_t = 128)]
    parallel: usize,
    /// Only connect and hold, without a byte.
    #[arg(long)]
    silent: bool,
    /// Limit on one connect or echo, in seconds.
    #[arg(long, default_value_t = 20)]
    limit: u64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(hold(args))
}

async fn hold(args: Args) -> anyhow::Result<()> {
    let mut addrs = args.addrs.clone();
    if let Some([ip, from, ports]) = args.range.as_deref() {
        let (ip, from, ports): (IpAddr, u16, u16) = (ip.parse()?, from.parse()?, ports.parse()?);
        addrs.extend((from..from + ports).map(|port| SocketAddr::new(ip, port)));
    }
    anyhow::ensure!(!addrs.is_empty(), "give addresses or --range");
    let limit = Duration::from_secs(args.limit);
    let permits = Arc::new(Semaphore::new(args.parallel));

    let started = Instant::now();
    let mut opening = JoinSet::new();
    for number in 0..args.count {
        let (addr, permits, silent) = (
            addrs[number % addrs.len()],
            Arc::clone(&permits),
            args.silent,
        );
        opening.spawn(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            let opened = within(limit, async {
                let mut stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let peer_is_right = stream.peer_addr()? == addr;
                if !silent {
                    echo(&mut stream, number).await?;
                }
                Ok((stream, peer_is_right))
            });
            (number, opened.await)
        });
    }
    let mut held = Vec::new();
    let (mut errors, mut wrong_peers) = (BTreeMap::<String, u64>::new(), 0);
    while let Some(opened) = opening.join_next().await {
        match opened? {
            (number, Ok((stream, peer_is_right))) => {
                wrong_peers += u64::from(!peer_is_right);
                held.push((number, stream));
            }
            (_, Err(error)) => *errors.entry(error_name(&error)).or_default() += 1,
        }
    }
    emit("held", summary(held.len(), &errors, wrong_peers, started));

    let (lines, mut next) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = next.recv().await {
        anyhow::ensure!(line == "again", "unknown command {line}");
        held = again(held, limit, &permits).await?;
    }
    Ok(())
}

/// Echoes once more on each connection; keeps those that worked.
async fn again(
    held: Vec<(usize, TcpStream)>,
    limit: Duration,
    permits: &Arc<Semaphore>,
) -> anyhow::Result<Vec<(usize, TcpStream)>> {
    let started = Instant::now();
    let mut echoing = JoinSet::new();
    for (number, mut stream) in held {
        let permits = Arc::clone(permits);
        echoing.spawn(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            within(limit, echo(&mut stream, number))
                .await
                .map(|()| (number, stream))
        });
    }
    let (mut kept, mut errors) = (Vec::new(), BTreeMap::<String, u64>::new());
    while let Some(echoed) = echoing.join_next().await {
        match echoed? {
            Ok(connection) => kept.push(connection),
            Err(error) => *errors.entry(error_name(&error)).or_default() += 1,
        }
    }
    emit("again", summary(kept.len(), &errors, 0, started));
    Ok(kept)
}

/// Sends a line that no other connection sends, and wants exactly it back.
async fn echo(stream: &mut TcpStream, number: usize) -> io::Result<()> {
    let line = format!("connection {number}\n");
    stream.write_all(line.as_bytes()).await?;
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back).await?;
    if back == line.as_bytes() {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn summary(ok: usize, errors: &BTreeMap<String, u64>, wrong_peers: u64, started: Instant) -> Value {
    json!({
        "ok": ok,
        "errors": errors,
        "wrongPeers": wrong_peers,
        "seconds": started.elapsed().as_secs_f64(),
    })
}

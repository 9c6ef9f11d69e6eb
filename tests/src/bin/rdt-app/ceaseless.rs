//! `ceaseless ADDR…`: connects without a pause, each time echoes a little and closes, until the end of standard input.
//!
//! Says `going` after the first connections, and `done` with the counts.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::{emit, error_name};

#[derive(clap::Args)]
pub struct Args {
    addrs: Vec<SocketAddr>,
    /// Connections at a time to each address.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
}

/// After so many it says that it is going.
const GOING: u64 = 100;
/// For one connection with its echo.
const LIMIT: Duration = Duration::from_secs(20);

static OK: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicBool = AtomicBool::new(false);

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(|| {
        io::stdin().lines().for_each(drop);
        ENDED.store(true, Ordering::Relaxed);
    });
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for addr in args.addrs {
            for number in 0..args.parallel {
                tasks.spawn(connect_on(addr, number as u64));
            }
        }
        let mut errors = BTreeMap::<String, u64>::new();
        while let Some(failed) = tasks.join_next().await {
            for error in failed? {
                *errors.entry(error).or_default() += 1;
            }
        }
        let ok = OK.load(Ordering::Relaxed);
        emit("done", json!({ "ok": ok, "errors": errors }));
        Ok(())
    })
}

async fn connect_on(addr: SocketAddr, number: u64) -> Vec<String> {
    let mut errors = Vec::new();
    while !ENDED.load(Ordering::Relaxed) {
        match timeout(LIMIT, exchange(addr, number)).await {
            Ok(Ok(())) => {
                if OK.fetch_add(1, Ordering::Relaxed) + 1 == GOING {
                    emit("going", json!({}));
                }
            }
            Ok(Err((call, error))) => errors.push(format!("{call} {}", error_name(&error))),
            Err(_) => errors.push("no answer in time".to_owned()),
        }
    }
    errors
}

async fn exchange(addr: SocketAddr, number: u64) -> Result<(), (&'static str, io::Error)> {
    let at = |call| move |error| (call, error);
    let mut stream = TcpStream::connect(addr).await.map_err(at("connect"))?;
    let sent = number.to_be_bytes();
    stream.write_all(&sent).await.map_err(at("write"))?;
    let mut received = [0; 8];
    let read = stream.read_exact(&mut received).await;
    read.map_err(at("read"))?;
    if received == sent {
        Ok(())
    } else {
        Err(("read", io::ErrorKind::InvalidData.into()))
    }
}

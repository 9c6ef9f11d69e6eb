//! `stress ADDR`: several connections to an echo server, each with content of its own, sent and received at once.

use std::{io, net::SocketAddr, time::Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::emit;

#[derive(clap::Args)]
pub struct Args {
    addr: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// Bytes of each connection, in each direction.
    #[arg(long)]
    bytes: usize,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..args.connections {
            tasks.spawn(exchange(args.addr, number, args.bytes));
        }
        let (mut ok, mut failed) = (0, 0);
        while let Some(result) = tasks.join_next().await {
            match result? {
                Ok(()) => ok += 1,
                Err(error) => {
                    eprintln!("stress: {error}");
                    failed += 1;
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        emit(
            "stressed",
            json!({ "ok": ok, "failed": failed, "seconds": seconds }),
        );
        Ok(())
    })
}

async fn exchange(addr: SocketAddr, number: usize, bytes: usize) -> io::Result<()> {
    let stream = TcpStream::connect(addr).await?;
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let mut at = 0;
        while at < bytes {
            // Pieces of many sizes, so that no boundary of a buffer is always the same.
            let part = (at * 7 + 13).rem_euclid(50_000).max(1).min(bytes - at);
            let block: Vec<u8> = (at..at + part)
                .map(|position| content(number, position))
                .collect();
            writer.write_all(&block).await?;
            at += part;
        }
        writer.shutdown().await?;
        Ok::<_, io::Error>(writer)
    });
    let mut buffer = vec![0; 65536];
    let mut at = 0;
    loop {
        let n = reader.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        if let Some(wrong) = (0..n).find(|i| buffer[*i] != content(number, at + i)) {
            return Err(io::Error::other(format!(
                "connection {number}: wrong byte at {}",
                at + wrong
            )));
        }
        at += n;
    }
    sending.await.map_err(io::Error::other)??;
    if at == bytes {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "connection {number}: {at} of {bytes} bytes"
        )))
    }
}

/// The byte at a position: differs between connections and has no short period.
fn content(number: usize, position: usize) -> u8 {
    ((position.wrapping_mul(2_654_435_761) >> 13) ^ number.wrapping_mul(97)) as u8
}

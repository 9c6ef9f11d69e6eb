//! `ping ADDR`: how long 64 bytes take to an echo server and back, on one connection.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use serde_json::json;

use crate::emit;

#[derive(clap::Args)]
pub struct Args {
    addr: SocketAddr,
    #[arg(long, default_value_t = 1000)]
    count: usize,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.count > 0, "--count 0 measures nothing");
    let mut stream = TcpStream::connect(args.addr)?;
    stream.set_nodelay(true)?;
    let (text, mut back) = ([b'p'; 64], [0; 64]);
    let mut micros = Vec::with_capacity(args.count);
    // The first tenth warms up.
    for round in 0..args.count + args.count / 10 {
        let started = Instant::now();
        stream.write_all(&text)?;
        stream.read_exact(&mut back)?;
        if round >= args.count / 10 {
            micros.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    emit(
        "pinged",
        json!({ "p50": at(0.5), "p99": at(0.99), "count": micros.len() }),
    );
    Ok(())
}

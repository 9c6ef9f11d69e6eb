//! `talk ADDR`: one connection for as long as standard input is open.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use serde_json::json;

use crate::{emit, error_name, failure};

#[derive(clap::Args)]
pub struct Args {
    addr: SocketAddr,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let stream = match TcpStream::connect(args.addr) {
        Ok(stream) => stream,
        Err(error) => {
            emit("error", failure("connect", &error));
            return Ok(());
        }
    };
    // The connection may be reset already: reading will tell.
    let _ = stream.set_nodelay(true);
    let peer = stream
        .peer_addr()
        .map_or_else(|error| error_name(&error), |peer| peer.to_string());
    emit("connected", json!({ "peername": peer }));
    let reader = stream.try_clone()?;
    let receiving = thread::spawn(move || receive(reader));
    for line in io::stdin().lines().map_while(Result::ok) {
        // The receiver says why, if this fails.
        let _ = (&stream).write_all(format!("{line}\n").as_bytes());
    }
    let _ = stream.shutdown(Shutdown::Write);
    receiving.join().expect("it does not panic");
    Ok(())
}

fn receive(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return emit("eof", json!({})),
            Ok(_) => emit("received", json!({ "text": line.trim_end() })),
            Err(error) => return emit("error", failure("read", &error)),
        }
    }
}

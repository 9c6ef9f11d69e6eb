//! `serve`: a server that treats each connection in one way, and says who connected.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::json;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{emit, error_name};

#[derive(clap::Args)]
pub struct Args {
    /// Address to listen on; may be repeated. `[::]:PORT` takes IPv4 too.
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Listen on each port FROM-TO of this address: `IP,FROM-TO`.
    #[arg(long)]
    range: Option<Range>,
    /// echo | greet | count | send:BYTES | source | sink | hold | reset | reset-at-end | wait-at-end |
    /// original-destination
    #[arg(long, default_value = "echo")]
    mode: Mode,
    /// No event per connection.
    #[arg(long)]
    quiet: bool,
    #[arg(long, default_value_t = 4096)]
    backlog: i32,
}

/// What is done with each connection.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Send back what comes; close when the peer has.
    Echo,
    /// Send `hello PEER` first, then echo.
    Greet,
    /// Read to the end, then say how many bytes there were: needs half-close in the direction of the server.
    Count,
    /// Send so many bytes and half-close, then read to the end: needs half-close in the direction of the client.
    Send(usize),
    /// Send as fast as the peer takes.
    Source,
    /// Read and forget.
    Sink,
    /// Neither read nor write until the peer is gone.
    Hold,
    /// Reset the connection when the first byte has come.
    Reset,
    /// Read to the end, then reset the connection.
    ResetAtEnd,
    /// Read to the end, then wait for the peer to break the connection.
    WaitAtEnd,
    /// Say what `SO_ORIGINAL_DST` answers, as any transparent proxy asks it.
    OriginalDestination,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    ip: IpAddr,
    from: u16,
    to: u16,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut addrs = args.listen;
        if let Some(Range { ip, from, to }) = args.range {
            addrs.extend((from..=to).map(|port| SocketAddr::new(ip, port)));
        }
        if addrs.is_empty() {
            bail!("give --listen or --range");
        }
        for addr in &addrs {
            let listener =
                listen(*addr, args.backlog).with_context(|| format!("listen on {addr}"))?;
            tokio::spawn(accept(listener, args.mode, args.quiet));
        }
        emit(
            "listening",
            json!({ "addr": addrs[0].to_string(), "count": addrs.len() }),
        );
        std::future::pending::<anyhow::Result<()>>().await
    })
}

fn listen(addr: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, mode: Mode, quiet: bool) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = canonical(peer);
        if !quiet {
            let local = stream.local_addr().map(canonical);
            let local = local.map_or_else(|error| error.to_string(), |local| local.to_string());
            emit(
                "accepted",
                json!({ "peer": peer.to_string(), "local": local }),
            );
        }
        tokio::spawn(async move {
            let mut bytes = 0;
            let result = treat(stream, peer, mode, &mut bytes).await;
            if !quiet {
                let how = result.map_or_else(|error| error_name(&error), |()| "eof".to_owned());
                emit(
                    "closed",
                    json!({ "peer": peer.to_string(), "bytes": bytes, "how": how }),
                );
            }
        });
    }
}

/// `bytes` counts what was read.
async fn treat(
    mut stream: TcpStream,
    peer: SocketAddr,
    mode: Mode,
    bytes: &mut usize,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match mode {
        Mode::Echo => echo(&mut stream, bytes).await?,
        Mode::Greet => {
            stream
                .write_all(format!("hello {peer}\n").as_bytes())
                .await?;
            echo(&mut stream, bytes).await?;
        }
        Mode::Count => {
            drain(&mut stream, bytes).await?;
            stream.write_all(format!("{bytes}\n").as_bytes()).await?;
        }
        Mode::Send(total) => {
            let block = vec![b'x'; total.min(65536)];
            let mut left = total;
            while left > 0 {
                let part = left.min(block.len());
                stream.write_all(&block[..part]).await?;
                left -= part;
            }
            stream.shutdown().await?;
            drain(&mut stream, bytes).await?;
        }
        Mode::Source => {
            let block = vec![b'x'; 65536];
            loop {
                stream.write_all(&block).await?;
            }
        }
        Mode::Sink => drain(&mut stream, bytes).await?,
        Mode::Hold => {
            // Errors and hang-ups only: unread data must stay where it is.
            stream.ready(tokio::io::Interest::ERROR).await?;
        }
        Mode::ResetAtEnd => {
            drain(&mut stream, bytes).await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        Mode::WaitAtEnd => {
            drain(&mut stream, bytes).await?;
            emit("ended", json!({ "peer": peer.to_string() }));
            stream.ready(tokio::io::Interest::ERROR).await?;
            return stream.take_error()?.map_or(Ok(()), Err);
        }
        Mode::OriginalDestination => {
            let socket = SockRef::from(&stream);
            let v4 = peer.is_ipv4();
            let answer = if v4 {
                socket.original_dst_v4()
            } else {
                socket.original_dst_v6()
            };
            let text = match answer.map(|addr| addr.as_socket()) {
                Ok(Some(addr)) => format!("original destination {addr}\n"),
                Ok(None) => "no socket address\n".to_owned(),
                Err(error) => format!("{}\n", error_name(&error)),
            };
            stream.write_all(text.as_bytes()).await?;
        }
        Mode::Reset => {
            *bytes += stream.read(&mut [0; 1]).await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
    }
    stream.shutdown().await
}

async fn echo(stream: &mut TcpStream, bytes: &mut usize) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        *bytes += n;
        stream.write_all(&buffer[..n]).await?;
        if n == buffer.len() && n < 262_144 {
            buffer.resize(n * 4, 0);
        }
    }
}

async fn drain(stream: &mut TcpStream, bytes: &mut usize) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => *bytes += n,
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(':') {
            Some(("send", count)) => {
                Self::Send(count.parse().map_err(|_| format!("bad count {count}"))?)
            }
            None => match text {
                "echo" => Self::Echo,
                "greet" => Self::Greet,
                "count" => Self::Count,
                "source" => Self::Source,
                "sink" => Self::Sink,
                "hold" => Self::Hold,
                "reset" => Self::Reset,
                "reset-at-end" => Self::ResetAtEnd,
                "wait-at-end" => Self::WaitAtEnd,
                "original-destination" => Self::OriginalDestination,
                other => return Err(format!("unknown mode {other}")),
            },
            Some(_) => return Err(format!("unknown mode {text}")),
        })
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (ip, ports) = text.split_once(',')?;
            let (from, to) = ports.split_once('-')?;
            Some(Self {
                ip: ip.parse().ok()?,
                from: from.parse().ok()?,
                to: to.parse().ok()?,
            })
        };
        parse().ok_or_else(|| format!("not IP,FROM-TO: {text}"))
    }
}

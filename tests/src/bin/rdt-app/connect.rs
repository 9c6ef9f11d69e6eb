//! `connect ADDR STEP…`: one connection, made with exact options and used step by step. The first failing step is reported
//! as an `error` event and ends the program, with status 0: the test judges.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::libc;
use redirect_tests::sys;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{emit, error_name, failure};

#[derive(clap::Args)]
pub struct Args {
    /// `[::ffff:1.2.3.4]:80` makes an IPv6 socket that connects to a v4-mapped address.
    addr: SocketAddr,
    /// send:TEXT | send-bytes:N | recv-line | recv-bytes:N | recv-all | shutdown | reset | wait | names |
    /// disconnect | connect:ADDR
    steps: Vec<Step>,
    /// Connect by `sendto` with MSG_FASTOPEN and this text, without waiting for the handshake.
    #[arg(long)]
    fastopen: Option<String>,
    /// Connect without blocking, then poll.
    #[arg(long)]
    nonblocking: bool,
    /// Bind to this address (port 0: any) before connecting.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Set SO_REUSEADDR before binding.
    #[arg(long)]
    reuse: bool,
    /// Set SO_BINDTODEVICE.
    #[arg(long)]
    device: Option<String>,
    /// Set IP_TRANSPARENT, so that any address can be bound.
    #[arg(long)]
    transparent: bool,
    /// Set SO_MARK.
    #[arg(long)]
    mark: Option<u32>,
    /// Move to this cgroup when the socket is made, which stays of the former one: as if it had been passed in.
    #[arg(long)]
    join: Option<PathBuf>,
    /// Ask for Multipath TCP.
    #[arg(long)]
    mptcp: bool,
    /// Set SO_RCVBUF before connecting.
    #[arg(long)]
    receive_buffer: Option<usize>,
    /// Give up reading, and connecting without blocking, after this many seconds.
    #[arg(long, default_value_t = 15.0)]
    timeout: f64,
}

/// `NAME` or `NAME:ARGUMENT`.
#[derive(Clone, Debug)]
struct Step {
    name: String,
    argument: Option<String>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    match Connection::open(&args).and_then(|connection| connection.follow(&args.steps)) {
        Ok(()) => emit("done", json!({})),
        Err((call, error)) => {
            let mut fields = failure(&call, &error);
            fields["micros"] = micros(started).into();
            emit("error", fields);
        }
    }
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

type Failed = (String, io::Error);

struct Connection {
    socket: Socket,
    reader: BufReader<Socket>,
    nonblocking: bool,
    patience: Duration,
}

impl Connection {
    fn open(args: &Args) -> Result<Self, Failed> {
        let of = |call: &'static str| move |error| (call.to_owned(), error);
        let protocol = if args.mptcp {
            Protocol::from(libc::IPPROTO_MPTCP)
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::for_address(args.addr), Type::STREAM, Some(protocol))
            .map_err(of("socket"))?;
        if let Some(cgroup) = &args.join {
            let pid = std::process::id().to_string();
            fs::write(cgroup.join("cgroup.procs"), pid).map_err(of("cgroup.procs"))?;
        }
        if let Some(device) = &args.device {
            socket
                .bind_device(Some(device.as_bytes()))
                .map_err(of("SO_BINDTODEVICE"))?;
        }
        if let Some(mark) = args.mark {
            socket.set_mark(mark).map_err(of("SO_MARK"))?;
        }
        if let Some(size) = args.receive_buffer {
            socket.set_recv_buffer_size(size).map_err(of("SO_RCVBUF"))?;
        }
        if args.transparent {
            // The level SOL_IP serves IPv6 sockets too.
            socket
                .set_ip_transparent_v4(true)
                .map_err(of("IP_TRANSPARENT"))?;
        }
        if let Some(mark) = args.mark {
            socket.set_mark(mark).map_err(of("SO_MARK"))?;
        }
        if args.reuse {
            socket.set_reuse_address(true).map_err(of("SO_REUSEADDR"))?;
        }
        if let Some(bind) = args.bind {
            socket.bind(&bind.into()).map_err(of("bind"))?;
        }
        let timeout = Duration::from_secs_f64(args.timeout);
        socket
            .set_read_timeout(Some(timeout))
            .map_err(of("SO_RCVTIMEO"))?;
        socket.set_tcp_nodelay(true).map_err(of("TCP_NODELAY"))?;
        let reader = BufReader::new(socket.try_clone().map_err(of("dup"))?);
        let connection = Self {
            socket,
            reader,
            nonblocking: args.nonblocking,
            patience: timeout,
        };
        connection.connect(args.addr, args.fastopen.as_deref())?;
        Ok(connection)
    }

    fn connect(&self, addr: SocketAddr, fastopen: Option<&str>) -> Result<(), Failed> {
        let started = Instant::now();
        let result = match fastopen {
            Some(text) => self
                .socket
                .send_to_with_flags(text.as_bytes(), &addr.into(), libc::MSG_FASTOPEN)
                .map(|_| ()),
            // Sets O_NONBLOCK, connects, polls, and asks SO_ERROR.
            None if self.nonblocking => self.socket.connect_timeout(&addr.into(), self.patience),
            None => self.socket.connect(&addr.into()),
        };
        result.map_err(|error| ("connect".to_owned(), error))?;
        let mut names = self.names();
        names["micros"] = Value::from(micros(started));
        emit("connected", names);
        Ok(())
    }

    fn names(&self) -> Value {
        let show = |addr: io::Result<socket2::SockAddr>| match addr.map(|addr| addr.as_socket()) {
            Ok(Some(addr)) => addr.to_string(),
            Ok(None) => "none".to_owned(),
            Err(error) => error_name(&error),
        };
        json!({ "peername": show(self.socket.peer_addr()), "sockname": show(self.socket.local_addr()) })
    }

    fn follow(mut self, steps: &[Step]) -> Result<(), Failed> {
        for step in steps {
            self.perform(step)
                .map_err(|error| (step.name.clone(), error))??;
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step) -> io::Result<Result<(), Failed>> {
        match step.name.as_str() {
            "send" => (&self.socket).write_all(step.text()?.replace("\\n", "\n").as_bytes())?,
            "send-bytes" => self.send_bytes(step.number()?)?,
            "recv-line" => {
                let mut line = String::new();
                if self.reader.read_line(&mut line)? == 0 {
                    emit("eof", json!({}));
                } else {
                    emit(
                        "received",
                        json!({ "text": line.trim_end(), "bytes": line.len() }),
                    );
                }
            }
            "recv-bytes" => self.receive(Some(step.number()?))?,
            "recv-all" => self.receive(None)?,
            "shutdown" => self.socket.shutdown(Shutdown::Write)?,
            "reset" => {
                self.socket.set_linger(Some(Duration::ZERO))?;
                // The reader's duplicate would keep the connection open.
                self.reader = BufReader::new(Socket::new(Domain::IPV4, Type::STREAM, None)?);
                self.socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            }
            "wait" => {
                emit("waiting", json!({}));
                io::stdin().read_line(&mut String::new())?;
            }
            "names" => emit("names", self.names()),
            "disconnect" => sys::disconnect(&self.socket)?,
            "connect" => {
                let addr = step.text()?.parse().map_err(io::Error::other)?;
                return Ok(self.connect(addr, None));
            }
            other => return Err(io::Error::other(format!("unknown step {other}"))),
        }
        Ok(Ok(()))
    }

    fn send_bytes(&self, total: u64) -> io::Result<()> {
        let started = Instant::now();
        let block = vec![b'x'; 65536];
        let mut left = total;
        while left > 0 {
            let part = left.min(block.len() as u64) as usize;
            (&self.socket).write_all(&block[..part])?;
            left -= part as u64;
        }
        emit(
            "sent",
            json!({ "bytes": total, "seconds": started.elapsed().as_secs_f64() }),
        );
        Ok(())
    }

    /// Reads so many bytes, or to the end; an early end is an `eof` event as well.
    fn receive(&mut self, total: Option<u64>) -> io::Result<()> {
        let started = Instant::now();
        let (mut bytes, mut text) = (0u64, Vec::new());
        let mut buffer = vec![0; 262_144];
        let mut ended = false;
        while total.is_none_or(|total| bytes < total) {
            let limit = total.map_or(buffer.len(), |total| {
                (total - bytes).min(buffer.len() as u64) as usize
            });
            let n = self.reader.read(&mut buffer[..limit])?;
            if n == 0 {
                ended = true;
                break;
            }
            bytes += n as u64;
            text.extend_from_slice(&buffer[..n.min(256_usize.saturating_sub(text.len()))]);
        }
        let text = String::from_utf8_lossy(&text);
        let seconds = started.elapsed().as_secs_f64();
        emit(
            "received",
            json!({ "bytes": bytes, "text": text.trim_end(), "seconds": seconds }),
        );
        if ended {
            emit("eof", json!({}));
        }
        Ok(())
    }
}

impl Step {
    fn text(&self) -> io::Result<&str> {
        self.argument
            .as_deref()
            .ok_or_else(|| io::Error::other(format!("{} needs an argument", self.name)))
    }

    fn number(&self) -> io::Result<u64> {
        self.text()?.parse().map_err(io::Error::other)
    }
}

impl FromStr for Step {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            name: name.to_owned(),
            argument,
        })
    }
}

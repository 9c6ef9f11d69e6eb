//! `dns-ask NAME`: DNS queries as resolvers of many kinds send them. One event per answer.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{emit, failure};

#[derive(clap::Args)]
pub struct Args {
    name: String,
    /// Servers, all asked at once from one socket that is not connected; without one, the C library resolves the name.
    #[arg(long)]
    server: Vec<SocketAddr>,
    #[arg(long = "type", default_value = "A")]
    kind: RecordType,
    /// Ask IPv4 servers from an IPv6 socket.
    #[arg(long)]
    mapped: bool,
    /// Connect the socket to each server before asking it.
    #[arg(long)]
    connected: bool,
    /// Ask over TCP, with so many queries on the way at once.
    #[arg(long)]
    pipelined: Option<u16>,
    /// Bytes to send as they are, in hexadecimal digits, in place of a query.
    #[arg(long)]
    raw: Option<String>,
    #[arg(long, default_value_t = 10.0)]
    timeout: f64,
    /// Set SO_BINDTODEVICE.
    #[arg(long)]
    device: Option<String>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let result = match (&args.server[..], args.pipelined) {
        ([], _) => look_up(&args.name),
        ([server, ..], Some(queries)) => pipeline(&args, *server, queries),
        (servers, None) => datagrams(&args, servers),
    };
    match result {
        Ok(()) => emit("done", json!({})),
        Err(error) => emit("error", failure("ask", &error)),
    }
    Ok(())
}

fn look_up(name: &str) -> io::Result<()> {
    let mut found: Vec<_> = (name, 80)
        .to_socket_addrs()?
        .map(|addr| addr.ip().to_string())
        .collect();
    found.sort();
    found.dedup();
    emit("resolved", json!({ "addresses": found }));
    Ok(())
}

fn query(args: &Args, id: u16) -> io::Result<Vec<u8>> {
    if let Some(raw) = &args.raw {
        let digits = |at: usize| u8::from_str_radix(&raw[at..at + 2], 16).map_err(io::Error::other);
        return (0..raw.len()).step_by(2).map(digits).collect();
    }
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(&args.name).map_err(io::Error::other)?;
    message.add_query(Query::query(name, args.kind));
    message.to_vec().map_err(io::Error::other)
}

fn datagrams(args: &Args, servers: &[SocketAddr]) -> io::Result<()> {
    let v6 = args.mapped || servers[0].is_ipv6();
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_read_timeout(Some(Duration::from_secs_f64(args.timeout)))?;
    if let Some(device) = &args.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    let socket = UdpSocket::from(socket);
    let spelled = |server: &SocketAddr| match server.ip() {
        IpAddr::V4(ip) if v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), server.port()),
        _ => *server,
    };
    for (id, server) in (1..).zip(servers) {
        let server = spelled(server);
        if args.connected {
            socket.connect(server)?;
            socket.send(&query(args, id)?)?;
            emit(
                "connected",
                json!({ "peername": socket.peer_addr()?.to_string() }),
            );
            answer(&socket)?;
        } else {
            socket.send_to(&query(args, id)?, server)?;
        }
    }
    if !args.connected {
        for _ in servers {
            answer(&socket)?;
        }
    }
    Ok(())
}

fn answer(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let (bytes, from) = socket.recv_from(&mut buffer)?;
    show(&buffer[..bytes], Some(from.to_string()));
    Ok(())
}

fn pipeline(args: &Args, server: SocketAddr, queries: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs_f64(args.timeout)))?;
    let mut all = Vec::new();
    for id in 0..queries {
        let query = query(args, id)?;
        all.extend((query.len() as u16).to_be_bytes());
        all.extend(query);
    }
    stream.write_all(&all)?;
    let mut seen = HashMap::new();
    for _ in 0..queries {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        let id = Message::from_vec(&answer)
            .map(|message| message.metadata.id)
            .map_err(io::Error::other)?;
        *seen.entry(id).or_insert(0) += 1;
        show(&answer, Some(stream.peer_addr()?.to_string()));
    }
    emit("pipelined", json!({ "ids": seen.len() }));
    Ok(())
}

fn show(bytes: &[u8], from: Option<String>) {
    let Ok(message) = Message::from_vec(bytes) else {
        return emit("answer", json!({ "malformed": true, "from": from }));
    };
    let data = |data: &RData| match data {
        RData::A(ip) => ip.0.to_string(),
        RData::AAAA(ip) => ip.0.to_string(),
        RData::TXT(text) => text.to_string(),
        other => other.to_string(),
    };
    let question = message.queries.first().map(|query| query.name().to_ascii());
    emit(
        "answer",
        json!({
            "from": from,
            "id": message.metadata.id,
            "rcode": message.metadata.response_code.to_string(),
            "code": message.metadata.response_code.low(),
            "question": question,
            "data": message.answers.iter().map(|record| data(&record.data)).collect::<Vec<_>>(),
            "ttl": message.answers.first().map(|record| record.ttl),
        }),
    );
}

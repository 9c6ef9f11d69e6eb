//! DNS queries, timed; and a resolver that answers each of them at once.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{apps::me, load::output, samples::median};
use crate::{Pod, Process};

/// Queries under way at once where their rate is measured.
pub const IN_FLIGHT: usize = 32;
/// A service that the mesh knows, and its address.
pub const SERVICE: &str = "web.default.svc.cluster.local";
pub const SERVICE_VIP: &str = "10.96.0.20";
/// A name with a star has another label in each query, so that no cache knows it.
const OTHER: &str = "*.example.test";
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What `helper ask` found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    pub per_second: f64,
    /// In microseconds.
    pub p50: f64,
    pub unanswered: usize,
}

/// The pod with the resolver that apps ask.
pub struct Resolver {
    pod: Pod,
    _process: Process,
}

impl Resolver {
    pub fn start(pod: Pod) -> Result<Self> {
        let mut command = pod.command(me()?);
        command.args(["helper", "resolve", "0.0.0.0:53"]);
        let process = Process::spawn("resolver", command);
        process.wait_line("line that says that it answers", |line| {
            line.contains("answering").then_some(())
        });
        Ok(Self {
            pod,
            _process: process,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.pod.at(53)
    }
}

/// Asks from `pod` for so many seconds.
pub fn ask(
    pod: &Pod,
    server: SocketAddr,
    known: bool,
    in_flight: usize,
    seconds: u32,
) -> Result<Asked> {
    let name = if known { SERVICE } else { OTHER };
    let mut command = pod.command(me()?);
    command.args(["helper", "ask", &server.to_string(), name]);
    command.args([seconds.to_string(), in_flight.to_string()]);
    let asked: Asked =
        serde_json::from_str(&output(&mut command)?).context("odd result of the helper")?;
    ensure!(
        asked.unanswered == 0,
        "{} queries for {name} had no answer",
        asked.unanswered
    );
    Ok(asked)
}

/// `helper ask`: one connected socket per query under way, as resolvers of C libraries have it.
pub fn ask_here(server: SocketAddr, name: &str, seconds: u32, in_flight: usize) -> Result<Asked> {
    let mut sockets = Vec::new();
    for _ in 0..in_flight {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server).context("connect")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        sockets.push((socket, Instant::now()));
    }
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds.into());
    let (mut times, mut unanswered, mut number) = (Vec::new(), 0, 0_u32);
    let mut send = |socket: &UdpSocket| {
        number += 1;
        // Before: the answer may be there when `send` returns.
        let sent = Instant::now();
        socket.send(&query(name, number)).map(|_| sent)
    };
    for (socket, sent) in &mut sockets {
        *sent = send(socket)?;
    }
    let mut buffer = [0; 1500];
    // In turn: the others' answers wait in their sockets.
    while Instant::now() < until {
        for (socket, sent) in &mut sockets {
            match socket.recv(&mut buffer) {
                Ok(bytes) => {
                    ensure!(has_an_answer(&buffer[..bytes]), "{name} has no address");
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                }
                Err(_) => unanswered += 1,
            }
            *sent = send(socket)?;
        }
    }
    Ok(Asked {
        per_second: times.len() as f64 / started.elapsed().as_secs_f64(),
        p50: median(&times).context("no query was answered")?,
        unanswered,
    })
}

/// `helper resolve`: the same address for every name.
pub fn resolve_here(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    println!("answering");
    let mut buffer = [0; 1500];
    loop {
        let (bytes, from) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = answer(&buffer[..bytes]) {
            // The next query, if this one cannot be answered.
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// RFC 1035 4.1: header, one question for an A record.
fn query(name: &str, number: u32) -> Vec<u8> {
    let id = (number as u16).to_be_bytes();
    let mut query = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let label = label.replace('*', &format!("n{number}"));
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn has_an_answer(message: &[u8]) -> bool {
    message.len() > 12 && message[2] & 0x80 != 0 && message[3] & 0xf == 0 && message[6..8] != [0, 0]
}

/// The question again, and one A record whose name points to it.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = query.get(12..end + 5)?;
    let mut answer = vec![query[0], query[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    answer.extend(question);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
    answer.extend(ANSWER.octets());
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_answered() {
        let query = query(OTHER, 7);
        assert!(!has_an_answer(&query));
        let answer = answer(&query).expect("it is well formed");
        assert!(has_an_answer(&answer));
        assert_eq!(answer[..2], query[..2]);
        assert!(answer.ends_with(&ANSWER.octets()));
        assert_eq!(super::answer(&query[..14]), None);
    }
}

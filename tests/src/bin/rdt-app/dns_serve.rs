//! `dns-serve`: a DNS server for the zone `test`, in which names say how they are answered. One event per query.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::Context;
use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, MX, SOA, SRV, TXT},
    },
};
use serde_json::json;

use crate::emit;

#[derive(clap::Args)]
pub struct Args {
    /// By UDP and TCP; may be repeated. Of a host with several addresses, each by itself, so that answers come from the one that
    /// was asked.
    #[arg(long, default_value = "[::]:53")]
    listen: Vec<SocketAddr>,
    /// What TXT of `whoami.test` says.
    #[arg(long, default_value = "server")]
    name: String,
    /// Time to live of positive answers, in seconds.
    #[arg(long, default_value_t = 60)]
    ttl: u32,
}

struct Server {
    name: String,
    ttl: u32,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let server = Arc::new(Server {
        name: args.name,
        ttl: args.ttl,
    });
    let mut serving = Vec::new();
    for addr in &args.listen {
        let udp = UdpSocket::bind(addr).with_context(|| format!("bind {addr}"))?;
        let tcp = TcpListener::bind(addr).with_context(|| format!("listen on {addr}"))?;
        let (by_udp, by_tcp) = (server.clone(), server.clone());
        serving.push(thread::spawn(move || by_udp.datagrams(&udp)));
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let server = by_tcp.clone();
                thread::spawn(move || server.connection(stream));
            }
        });
    }
    emit("listening", json!({ "count": args.listen.len() }));
    for thread in serving {
        thread.join().expect("it does not panic")?;
    }
    Ok(())
}

impl Server {
    fn datagrams(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let (bytes, from) = socket.recv_from(&mut buffer)?;
            for answer in self.answers(&buffer[..bytes], from, false) {
                socket.send_to(&answer, from)?;
            }
        }
    }

    fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let from = stream.peer_addr()?;
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut query)?;
            for answer in self.answers(&query, from, true) {
                let length = u16::try_from(answer.len()).expect("short");
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
            }
        }
    }

    /// What is sent, one after the other.
    fn answers(&self, bytes: &[u8], from: SocketAddr, tcp: bool) -> Vec<Vec<u8>> {
        let Ok(query) = Message::from_vec(bytes) else {
            emit("malformed", json!({ "bytes": bytes.len() }));
            return Vec::new();
        };
        let question = query.queries[0].clone();
        let spelled = question.name().to_ascii();
        let edns = query.edns.as_ref();
        emit(
            "query",
            json!({
                "name": spelled, "type": question.query_type().to_string(), "tcp": tcp, "id": query.metadata.id,
                "from": SocketAddr::new(from.ip().to_canonical(), from.port()).to_string(),
                "payload": edns.map(Edns::max_payload), "dnssec": edns.map(|edns| edns.flags().dnssec_ok),
                "options": edns.map(|edns| edns.options().as_ref().len()),
            }),
        );
        let name = spelled.to_ascii_lowercase();
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        if let Some(asked) = edns {
            let mut own = Edns::new();
            own.set_max_payload(1232)
                .set_dnssec_ok(asked.flags().dnssec_ok);
            answer.set_edns(own);
        }
        match self.records(&name, question.query_type()) {
            Some(records) if records.is_empty() => _ = answer.add_authority(start()),
            Some(records) => {
                let owner = question.name();
                let records = records
                    .into_iter()
                    .map(|data| Record::from_rdata(owner.clone(), self.ttl, data));
                records.for_each(|record| _ = answer.add_answer(record));
            }
            None => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(start());
            }
        }
        if name.starts_with("refused.") {
            answer.metadata.response_code = ResponseCode::Refused;
        }
        let limit = edns.map_or(512, |edns| edns.max_payload().max(512)).into();
        let mut bytes = answer.to_vec().expect("it can be written");
        if !tcp && bytes.len() > limit {
            bytes = answer.truncate().to_vec().expect("it can be written");
        }
        let forged = |id: u16| {
            let mut forged = bytes.clone();
            forged[..2].copy_from_slice(&id.to_be_bytes());
            *forged.last_mut().expect("not empty") ^= 0xff;
            forged
        };
        match name.split('.').next() {
            Some("silent") => Vec::new(),
            Some("garbage") => vec![vec![0xff; 40]],
            Some("forged") => vec![forged(query.metadata.id ^ 1), bytes],
            Some("cut") => vec![bytes[..bytes.len() - 3].to_vec()],
            _ => vec![bytes],
        }
    }

    /// `None`: there is no such name.
    fn records(&self, name: &str, kind: RecordType) -> Option<Vec<RData>> {
        let text = |text: &str| RData::TXT(TXT::new(vec![text.to_owned()]));
        let target = || Name::from_ascii("a.test.").expect("a name");
        let first = name.strip_suffix(".test.")?;
        if first.ends_with("missing") {
            return None;
        }
        Some(match kind {
            RecordType::A => vec![RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))],
            RecordType::AAAA if first == "v4only" => Vec::new(),
            RecordType::AAAA => vec![RData::AAAA(AAAA(Ipv6Addr::new(
                0x2001, 0xdb8, 0, 0, 0, 0, 0, 1,
            )))],
            RecordType::TXT if first == "whoami" => vec![text(&self.name)],
            RecordType::TXT if first == "big" => (0..30)
                .map(|number| text(&format!("{number:0100}")))
                .collect(),
            RecordType::TXT => vec![text("text")],
            RecordType::SRV => vec![RData::SRV(SRV::new(1, 2, 8080, target()))],
            RecordType::MX => vec![RData::MX(MX::new(10, target()))],
            _ => Vec::new(),
        })
    }
}

fn start() -> Record {
    let zone = Name::from_ascii("test.").expect("a name");
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 20);
    Record::from_rdata(zone, 300, RData::SOA(soa))
}

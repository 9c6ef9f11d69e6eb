//! The answers that are ours: what the mesh knows, and that something went wrong. Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, Query as Question, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA},
    },
};

use super::{
    names::Found,
    query::{Asked, Query},
    wire::{self, Header},
};

/// What a server of today announces for UDP (DNS flag day 2020).
const MAX_PAYLOAD: u16 = 1232;

/// An answer with the addresses of the queried family, `first` of them first; none if the name has only others. `None`: a name
/// that cannot be put into a message.
pub fn found(
    query: &Query<'_>,
    asked: &Asked,
    found: &Found,
    ttl: u32,
    first: usize,
    limit: usize,
) -> Option<Vec<u8>> {
    let mut message = response(query, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let mut owner = asked.name.clone();
    if let Some(canonical) = &found.canonical {
        let canonical = name(canonical)?;
        let alias = RData::CNAME(CNAME(canonical.clone()));
        message.add_answer(Record::from_rdata(owner, ttl, alias));
        owner = canonical;
    }
    let mut records: Vec<_> = found
        .addresses
        .iter()
        .filter_map(|ip| match (ip, asked.record_type) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        })
        .collect();
    if records.is_empty() {
        message.add_authority(Record::from_rdata(owner.clone(), ttl, start(&owner, ttl)));
    } else {
        let middle = first % records.len();
        records.rotate_left(middle);
    }
    for data in records {
        message.add_answer(Record::from_rdata(owner.clone(), ttl, data));
    }
    encode(query, &message, limit)
}

/// For how long it holds that there is nothing (RFC 2308). We are no zone: each name stands for one of its own.
fn start(owner: &Name, ttl: u32) -> RData {
    let seconds = i32::try_from(ttl).unwrap_or(i32::MAX);
    RData::SOA(SOA::new(
        owner.clone(),
        Name::root(),
        1,
        seconds,
        seconds,
        seconds,
        ttl,
    ))
}

/// An answer that says that there is none.
pub fn failure(query: &Query<'_>, code: ResponseCode) -> Option<Vec<u8>> {
    encode(query, &response(query, code), usize::MAX)
}

/// For a message that could not be read: nothing of it but the header comes back.
pub fn malformed(header: &Header) -> Vec<u8> {
    const RD: u16 = 1 << 8;
    const QR: u16 = 1 << 15;
    const OPCODE: u16 = 0xf << 11;
    let flags = QR | header.flags & (OPCODE | RD) | u16::from(ResponseCode::FormErr);
    let mut bytes = Vec::with_capacity(wire::HEADER);
    bytes.extend(header.id.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.resize(wire::HEADER, 0);
    bytes
}

fn response(query: &Query<'_>, code: ResponseCode) -> Message {
    const RD: u16 = 1 << 8;
    const CD: u16 = 1 << 4;
    let mut message = Message::response(query.header.id, OpCode::from_u8(query.header.opcode()));
    message.metadata.recursion_desired = query.header.flags & RD != 0;
    message.metadata.checking_disabled = query.header.flags & CD != 0;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    if let Some(asked) = &query.asked {
        let mut question = Question::query(asked.name.clone(), asked.record_type);
        question.set_query_class(asked.class);
        message.add_query(question);
    }
    if let Some(edns) = query.edns {
        let mut own = Edns::new();
        own.set_max_payload(MAX_PAYLOAD);
        own.set_dnssec_ok(edns.dnssec_ok);
        message.set_edns(own);
    }
    message
}

fn encode(query: &Query<'_>, message: &Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > limit {
        bytes = message.truncate().to_vec().ok()?;
    }
    // Spelled as it was asked: clients check the case of letters that they chose at random.
    wire::readdress(&mut bytes, query.header.id, query.question);
    Some(bytes)
}

fn name(hostname: &str) -> Option<Name> {
    let mut name = Name::from_ascii(hostname).ok()?;
    name.set_fqdn(true);
    Some(name)
}

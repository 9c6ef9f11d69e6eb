//! Between packets and what they mean. What is on the wire is not known beyond this file.

use std::{io, os::fd::OwnedFd};

use prost::Message;

use super::{
    Workload,
    message::{
        Ack, AddWorkload, Answer, DelWorkload, KeepWorkload, Payload, SnapshotSent, Version,
        WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello,
    },
    packet::{MAX_PACKET, Packet},
};
use crate::{pod::PodUid, sys::netns::Netns};

/// What an agent asks of a proxy, as the proxy receives it.
#[derive(Debug)]
pub enum Request {
    Add(PodUid, Workload, Netns),
    Keep(PodUid),
    Del(PodUid),
    SnapshotSent,
}

/// The packet was not understood; nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("the packet is longer than {MAX_PACKET} bytes")]
    TooLong,
    #[error("the packet is no such message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("the message is of a kind that is not known")]
    Kind,
    #[error("the message names no pod")]
    NoUid,
    #[error("the message says nothing of the pod's workload")]
    NoWorkload,
    #[error(
        "the pod's network namespace has to come as one descriptor beside the message, not {0}"
    )]
    Descriptors(usize),
    #[error("a descriptor came beside a message that has none")]
    Unexpected,
    #[error("the descriptor is no network namespace: {0}")]
    NoNetns(#[source] io::Error),
    #[error("the proxy speaks version {0} of the protocol, and only version 1 is known")]
    Version(i32),
}

pub fn hello() -> Vec<u8> {
    let version = Version::V1.into();
    ZdsHello { version }.encode_to_vec()
}

pub fn read_hello(packet: &Packet) -> Result<(), ConvertError> {
    let hello = ZdsHello::decode(message(packet)?)?;
    match hello.version() {
        Version::V1 => Ok(()),
        Version::NotUsed => Err(ConvertError::Version(hello.version)),
    }
}

/// To be sent with the pod's namespace.
pub fn add(uid: &PodUid, workload: &Workload) -> Result<Vec<u8>, ConvertError> {
    let workload = workload.clone();
    request(Payload::Add(AddWorkload {
        uid: uid.to_string(),
        workload_info: Some(WorkloadInfo {
            name: workload.name,
            namespace: workload.namespace,
            service_account: workload.service_account,
        }),
    }))
}

pub fn keep(uid: &PodUid) -> Result<Vec<u8>, ConvertError> {
    let uid = uid.to_string();
    request(Payload::Keep(KeepWorkload { uid }))
}

pub fn del(uid: &PodUid) -> Result<Vec<u8>, ConvertError> {
    let uid = uid.to_string();
    request(Payload::Del(DelWorkload { uid }))
}

pub fn snapshot_sent() -> Result<Vec<u8>, ConvertError> {
    request(Payload::SnapshotSent(SnapshotSent {}))
}

fn request(payload: Payload) -> Result<Vec<u8>, ConvertError> {
    let payload = Some(payload);
    let bytes = WorkloadRequest { payload }.encode_to_vec();
    match bytes.len() > MAX_PACKET {
        true => Err(ConvertError::TooLong),
        false => Ok(bytes),
    }
}

pub fn read_request(packet: Packet) -> Result<Request, ConvertError> {
    let request = WorkloadRequest::decode(message(&packet)?)?;
    let payload = request.payload.ok_or(ConvertError::Kind)?;
    if !matches!(payload, Payload::Add(_)) && packet.descriptors() > 0 {
        return Err(ConvertError::Unexpected);
    }
    Ok(match payload {
        Payload::Add(add) => {
            let netns = netns(packet)?;
            let uid = uid(add.uid)?;
            let workload = add.workload_info.ok_or(ConvertError::NoWorkload)?;
            let workload = Workload {
                name: workload.name,
                namespace: workload.namespace,
                service_account: workload.service_account,
            };
            Request::Add(uid, workload, netns)
        }
        Payload::Keep(keep) => Request::Keep(uid(keep.uid)?),
        Payload::Del(del) => Request::Del(uid(del.uid)?),
        Payload::SnapshotSent(_) => Request::SnapshotSent,
    })
}

/// What a proxy answers; a reason that is too long for a packet is cut.
pub fn ack(result: Result<(), String>) -> Vec<u8> {
    // The message around it takes at most six bytes: a tag of one and a length of two, twice.
    const LONGEST: usize = MAX_PACKET - 6;
    let mut error = result.err().unwrap_or_default();
    error.truncate(error.floor_char_boundary(LONGEST));
    let payload = Some(Answer::Ack(Ack { error }));
    WorkloadResponse { payload }.encode_to_vec()
}

/// The proxy's answer, with its own reason if it could not do what was asked.
pub fn read_ack(packet: &Packet) -> Result<Result<(), String>, ConvertError> {
    let response = WorkloadResponse::decode(message(packet)?)?;
    match response.payload.ok_or(ConvertError::Kind)? {
        Answer::Ack(Ack { error }) if error.is_empty() => Ok(Ok(())),
        Answer::Ack(Ack { error }) => Ok(Err(error)),
    }
}

fn message(packet: &Packet) -> Result<&[u8], ConvertError> {
    match packet.is_cut {
        true => Err(ConvertError::TooLong),
        false => Ok(&packet.bytes),
    }
}

fn uid(uid: String) -> Result<PodUid, ConvertError> {
    match uid.is_empty() {
        true => Err(ConvertError::NoUid),
        false => Ok(PodUid::new(uid)),
    }
}

fn netns(packet: Packet) -> Result<Netns, ConvertError> {
    let count = packet.descriptors();
    let one: Result<[OwnedFd; 1], _> = packet.fds.try_into();
    match one {
        Ok([fd]) if count == 1 => Netns::of(fd).map_err(ConvertError::NoNetns),
        _ => Err(ConvertError::Descriptors(count)),
    }
}

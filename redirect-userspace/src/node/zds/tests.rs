//! What is on the wire, byte for byte, and what cannot be there.

use std::{fs::File, os::fd::OwnedFd};

use super::{
    Workload,
    convert::{self, ConvertError, Request},
    packet::{MAX_PACKET, Packet},
};
use crate::pod::PodUid;

fn uid() -> PodUid {
    PodUid::new("u-1")
}

fn workload() -> Workload {
    Workload {
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
    }
}

const ADD: &[u8] = b"\x0a\x16\x0a\x03u-1\x12\x0f\x0a\x03web\x12\x04shop\x1a\x02sa";
/// Its pod has the field number 2.
const DEL: &[u8] = b"\x12\x05\x12\x03u-1";
const KEEP: &[u8] = b"\x2a\x05\x0a\x03u-1";
const SNAPSHOT_SENT: &[u8] = b"\x1a\x00";

fn packet(bytes: &[u8], fds: Vec<OwnedFd>) -> Packet {
    Packet {
        bytes: bytes.to_vec(),
        fds,
        ..Packet::default()
    }
}

fn netns() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

#[test]
fn each_message_has_the_bytes_that_the_other_side_expects() {
    let long = "x".repeat(2000);
    let cut = convert::ack(Err(long));
    assert_eq!(cut.len(), MAX_PACKET);
    for (what, bytes, expected) in [
        ("hello", convert::hello(), &b"\x08\x01"[..]),
        ("add", convert::add(&uid(), &workload()).unwrap(), ADD),
        ("del", convert::del(&uid()).unwrap(), DEL),
        ("keep", convert::keep(&uid()).unwrap(), KEEP),
        (
            "snapshot sent",
            convert::snapshot_sent().unwrap(),
            SNAPSHOT_SENT,
        ),
        ("ack", convert::ack(Ok(())), b"\x0a\x00"),
        (
            "an error",
            convert::ack(Err("no".into())),
            b"\x0a\x04\x0a\x02no",
        ),
    ] {
        assert_eq!(bytes, expected, "{what}");
    }
}

#[test]
fn what_comes_is_understood() {
    let read = |bytes, fds| convert::read_request(packet(bytes, fds)).unwrap();
    match read(ADD, vec![netns()]) {
        Request::Add(found, of, netns) => {
            assert_eq!((found, of), (uid(), workload()));
            let own = crate::sys::netns::Netns::current().unwrap();
            assert_eq!(netns.inode(), own.inode());
            assert!(netns.path().starts_with("/proc/self/fd"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(read(DEL, vec![]), Request::Del(found) if found == uid()));
    assert!(matches!(read(KEEP, vec![]), Request::Keep(found) if found == uid()));
    assert!(matches!(read(SNAPSHOT_SENT, vec![]), Request::SnapshotSent));
    // A field that is not known, from a newer version, is passed over.
    let newer = [DEL, b"\x3a\x01x"].concat();
    assert!(matches!(read(&newer, vec![]), Request::Del(_)));
    let ack = |bytes| convert::read_ack(&packet(bytes, vec![])).unwrap();
    assert_eq!(ack(b"\x0a\x00"), Ok(()));
    assert_eq!(ack(b"\x0a\x04\x0a\x02no"), Err("no".to_owned()));
    convert::read_hello(&packet(b"\x08\x01", vec![])).unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    for (what, bytes, fds, reason) in [
        (
            "no descriptor",
            ADD,
            vec![],
            "one descriptor beside the message, not 0",
        ),
        ("two", ADD, vec![netns(), netns()], "not 2"),
        (
            "another kind of file",
            ADD,
            vec![null()],
            "no network namespace",
        ),
        (
            "a descriptor too many",
            DEL,
            vec![netns()],
            "a message that has none",
        ),
        ("cut", &ADD[..20], vec![netns()], "no such message"),
        (
            "no protobuf",
            b"\xff\xff\xff\xff",
            vec![],
            "no such message",
        ),
        (
            "no text",
            b"\x12\x04\x12\x02\xff\xfe",
            vec![],
            "no such message",
        ),
        (
            "another kind",
            b"\x3a\x00",
            vec![],
            "a kind that is not known",
        ),
        ("no pod", b"\x12\x00", vec![], "names no pod"),
        (
            "a pod in another's field",
            b"\x12\x05\x0a\x03u-1",
            vec![],
            "names no pod",
        ),
        (
            "no workload",
            b"\x0a\x05\x0a\x03u-1",
            vec![netns()],
            "says nothing of the pod's workload",
        ),
    ] {
        let error = convert::read_request(packet(bytes, fds)).unwrap_err();
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
}

#[test]
fn what_does_not_fit_a_packet_is_no_packet() {
    let cut = Packet {
        is_cut: true,
        ..packet(SNAPSHOT_SENT, vec![])
    };
    assert!(matches!(
        convert::read_request(cut),
        Err(ConvertError::TooLong)
    ));
    let many = Packet {
        has_more_fds: true,
        ..packet(ADD, vec![netns()])
    };
    assert!(matches!(
        convert::read_request(many),
        Err(ConvertError::Descriptors(2))
    ));
    let long = PodUid::new("u".repeat(MAX_PACKET));
    assert!(matches!(
        convert::add(&long, &workload()),
        Err(ConvertError::TooLong)
    ));
}

#[test]
fn a_hello_of_another_version_is_refused() {
    for (bytes, reason) in [
        (&b"\x08\x02"[..], "version 2"),
        (b"", "version 0"),
        (b"\x0a\x00", "no such message"),
    ] {
        let error = convert::read_hello(&packet(bytes, vec![])).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

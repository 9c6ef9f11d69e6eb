//! Tests of what two daemons say to each other, without daemons.

use std::{net::UdpSocket, os::fd::AsRawFd};

use super::{super::instance::Instance, *};

fn way() -> Way {
    Way {
        backend: "ebpf".into(),
        mode: "shared".into(),
        bpffs: "/sys/fs/bpf".into(),
    }
}

fn listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

fn estate() -> (Estate, u16) {
    let listeners = Listeners {
        outbound: listener(),
        inbound_plaintext: listener(),
        hbone: listener(),
    };
    let port = listeners.hbone.local_addr().unwrap().port();
    let sockets = dns::Sockets {
        udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
        tcp: listener(),
    };
    let estate = Estate {
        sites: [(4711, listeners)].into(),
        dns: [(PodUid::new("default/web"), sockets)].into(),
    };
    (estate, port)
}

/// A daemon that hands over as `answer` says; tells what came of it.
async fn predecessor(
    instance: &Instance,
    answer: impl FnOnce() -> Option<Estate>,
) -> Result<Successor, HandoverError> {
    let cgroup = Some("/sys/fs/cgroup/a".into());
    let mut handover = Handover::listen(instance, way(), cgroup).unwrap();
    let mut answer = Some(answer);
    loop {
        match handover.next().await {
            Event::Asked(to) => {
                if let Some(estate) = answer.take().and_then(|answer| answer()) {
                    let _ = to.send(estate);
                } else {
                    drop(to);
                    return Err(HandoverError::Silent);
                }
            }
            Event::Failed(error) => return Err(error),
            Event::Ready(successor) => return Ok(successor),
        }
    }
}

#[tokio::test]
async fn sockets_and_lock_are_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let old = Instance::claim(dir.path()).unwrap();
    let (estate, port) = estate();
    let give = async {
        let successor = predecessor(&old, || Some(estate)).await.unwrap();
        successor.release().await;
        drop(old);
    };
    let take = async {
        let (instance, predecessor) = claim(dir.path(), true).await.unwrap();
        let mut predecessor = predecessor.unwrap();
        predecessor.check(&way()).unwrap();
        assert_eq!(
            predecessor.cgroup.as_deref(),
            Some(Path::new("/sys/fs/cgroup/a"))
        );
        let sockets = predecessor.sockets();
        let hbone = &sockets.sites[&4711].hbone;
        assert_eq!(hbone.local_addr().unwrap().port(), port);
        assert!(sockets.dns[&PodUid::new("default/web")].udp.as_raw_fd() > 2);
        let draining = predecessor.dismiss().await.unwrap();
        draining.ended().await;
        instance
    };
    let ((), instance) = tokio::join!(give, take);
    // The predecessor's lock lives on with its successor.
    let other = Instance::claim(dir.path()).err().unwrap().to_string();
    assert!(other.contains("--take-over"), "{other}");
    drop(instance);
    drop(Instance::claim(dir.path()).unwrap());
}

#[tokio::test]
async fn a_second_daemon_is_refused_unless_it_is_to_take_over() {
    let dir = tempfile::tempdir().unwrap();
    let old = Instance::claim(dir.path()).unwrap();
    let refused = claim(dir.path(), false).await.err().unwrap().to_string();
    assert!(refused.contains("another daemon (pid"), "{refused}");
    // Nothing listens: the daemon is from before there were take-overs, or is starting.
    let refused = claim(dir.path(), true).await.err().unwrap().to_string();
    assert!(refused.contains("reach the running daemon"), "{refused}");
    drop(old);
    let (_, predecessor) = claim(dir.path(), true).await.unwrap();
    assert!(predecessor.is_none());
}

#[tokio::test]
async fn a_daemon_that_cannot_hand_over_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let old = Instance::claim(dir.path()).unwrap();
    let (outcome, refused) = tokio::join!(predecessor(&old, || None), claim(dir.path(), true));
    assert!(outcome.is_err());
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("does not hand over"), "{refused}");
}

#[tokio::test]
async fn a_successor_that_ends_too_early_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let old = Instance::claim(dir.path()).unwrap();
    let take = async { drop(claim(dir.path(), true).await.unwrap()) };
    let (outcome, ()) = tokio::join!(predecessor(&old, || Some(Estate::default())), take);
    assert!(matches!(outcome.err().unwrap(), HandoverError::Ended));
}

#[tokio::test]
async fn what_is_not_understood_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let old = Instance::claim(dir.path()).unwrap();
    let ask = async {
        for packet in [
            &b"{}"[..],
            b"nonsense",
            br#"{"say":"ready"}"#,
            &[b'x'; 20_000],
        ] {
            let stream = UnixSeqpacket::connect(socket_path(dir.path()))
                .await
                .unwrap();
            stream.send(packet).await.unwrap();
            let answer = stream.recv(&mut [0; 100]).await;
            assert_eq!(answer.map_or(0, |info| info.bytes_read()), 0, "{packet:?}");
        }
        let stream = UnixSeqpacket::connect(socket_path(dir.path()))
            .await
            .unwrap();
        send(&stream, &Message::TakeOver { protocol: 99 }, &[])
            .await
            .unwrap();
        let (Message::Refused { reason }, _) = receive(&stream).await.unwrap() else {
            panic!("not refused");
        };
        assert!(reason.contains("version 1 and not 99"), "{reason}");
        drop(claim(dir.path(), true).await.unwrap());
    };
    let (outcome, ()) = tokio::join!(predecessor(&old, || Some(Estate::default())), ask);
    assert!(matches!(outcome.err().unwrap(), HandoverError::Ended));
}

#[test]
fn another_way_of_capture_is_not_taken_over() {
    let other = Way {
        backend: "nftables".into(),
        ..way()
    };
    assert_ne!(other, way());
    assert_eq!(way().text(), "ebpf in mode shared with /sys/fs/bpf");
}

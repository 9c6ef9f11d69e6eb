//! Tables of what may leave a captured pod.

use super::{Content, Sender, Socket, judge, rules, tcp_flags::*};
use crate::{Reason, Verdict};

const FIN: u8 = 1;

fn tcp(flags: u8) -> Content {
    Content::Tcp {
        flags,
        has_data: false,
    }
}

fn data(flags: u8) -> Content {
    Content::Tcp {
        flags,
        has_data: true,
    }
}

const ALL: [Sender; 9] = [
    Sender::Forwarded,
    Sender::Kernel,
    Sender::Half,
    Sender::Listener,
    Sender::Known,
    Sender::Uncaptured,
    Sender::RawTcp,
    Sender::Packet,
    Sender::Other,
];

/// Who may send each kind of segment where the pod has no options.
#[test]
fn who_may_send_which_segment() {
    use Sender::{Half, Kernel, Known, Listener, RawTcp, Uncaptured};
    for (name, content, may) in [
        ("SYN", tcp(SYN), &[Known][..]),
        ("SYN with data", data(SYN), &[Known]),
        ("SYN+ACK", tcp(SYN | ACK), &[Known, Half, Kernel, Listener]),
        ("SYN+ACK with data", data(SYN | ACK), &[Known]),
        ("SYN+RST", tcp(SYN | RST), &[Known]),
        ("ACK", tcp(ACK), &[Known, Half, Kernel, RawTcp]),
        ("FIN", tcp(FIN | ACK), &[Known, Half, Kernel, RawTcp]),
        ("data", data(ACK), &[Known]),
        (
            "reset",
            tcp(RST | ACK),
            &[Known, Half, Kernel, RawTcp, Listener, Uncaptured],
        ),
        ("reset with data", data(RST), &[Known]),
        ("later fragment", Content::TcpFragment, &[Known]),
    ] {
        for sender in ALL {
            let (verdict, _) = judge(0, sender, content);
            let expected = may.contains(&sender);
            assert_eq!(
                verdict == Verdict::Pass,
                expected,
                "{name} of {sender:?}: {verdict:?}"
            );
        }
    }
}

#[test]
fn reasons_of_refused_segments() {
    for (sender, reason) in [
        (Sender::Forwarded, Reason::Forwarded),
        (Sender::Kernel, Reason::NoSocket),
        (Sender::Uncaptured, Reason::Uncaptured),
        (Sender::RawTcp, Reason::RawSocket),
        (Sender::Packet, Reason::RawSocket),
        (Sender::Other, Reason::RawSocket),
    ] {
        assert_eq!(judge(0, sender, tcp(SYN)), (Verdict::Refuse, reason));
    }
}

#[test]
fn options_and_other_protocols() {
    use Content::{Frame, Malformed, Other, Sctp, Tunnel, Udp};
    use rules::{ALLOW_DNS, ALLOW_FORWARDING, REFUSE_SCTP, REFUSE_UDP};
    let (pass, refuse) = (Verdict::Pass, Verdict::Refuse);
    let udp = Udp { dst_port: 4789 };
    let dns = Udp { dst_port: 53 };
    for (rules, sender, content, verdict, reason) in [
        (
            ALLOW_FORWARDING,
            Sender::Forwarded,
            tcp(SYN),
            pass,
            Reason::Forwarded,
        ),
        (
            ALLOW_FORWARDING,
            Sender::Forwarded,
            Tunnel,
            pass,
            Reason::Forwarded,
        ),
        (
            ALLOW_FORWARDING,
            Sender::Kernel,
            tcp(SYN),
            refuse,
            Reason::NoSocket,
        ),
        (
            ALLOW_FORWARDING,
            Sender::Packet,
            tcp(SYN),
            refuse,
            Reason::RawSocket,
        ),
        (0, Sender::Forwarded, Tunnel, refuse, Reason::Forwarded),
        (0, Sender::Other, Tunnel, refuse, Reason::Encapsulated),
        (0, Sender::Known, Tunnel, refuse, Reason::Encapsulated),
        (0, Sender::Other, udp, pass, Reason::NotTcp),
        (REFUSE_UDP, Sender::Other, udp, refuse, Reason::Udp),
        (REFUSE_UDP, Sender::Packet, udp, refuse, Reason::Udp),
        (
            REFUSE_UDP | ALLOW_FORWARDING,
            Sender::Forwarded,
            udp,
            refuse,
            Reason::Udp,
        ),
        (REFUSE_UDP, Sender::Other, dns, refuse, Reason::Udp),
        (
            REFUSE_UDP | ALLOW_DNS,
            Sender::Other,
            dns,
            pass,
            Reason::NotTcp,
        ),
        (0, Sender::Other, Sctp, pass, Reason::NotTcp),
        (REFUSE_SCTP, Sender::Other, Sctp, refuse, Reason::Sctp),
        (u32::MAX, Sender::Packet, Other, pass, Reason::NotTcp),
        (0, Sender::Kernel, Malformed, refuse, Reason::Malformed),
        (0, Sender::Packet, Frame, refuse, Reason::Encapsulated),
        (0, Sender::Kernel, Frame, pass, Reason::NotTcp),
    ] {
        assert_eq!(
            judge(rules, sender, content),
            (verdict, reason),
            "{content:?} of {sender:?} with {rules:#x}"
        );
    }
}

#[test]
fn kinds_of_sockets() {
    let socket = |family, kind, protocol, state, is_known| Socket {
        family,
        kind,
        protocol,
        state,
        is_known,
    };
    for (socket, sender) in [
        (socket(2, 1, 6, 1, true), Sender::Known),
        (socket(10, 1, 6, 1, false), Sender::Uncaptured),
        (socket(2, 1, 6, 2, false), Sender::Uncaptured),
        (socket(2, 1, 6, 10, false), Sender::Listener),
        (socket(2, 3, 6, 7, false), Sender::RawTcp),
        (socket(2, 3, 255, 7, false), Sender::Other),
        (socket(2, 2, 17, 7, false), Sender::Other),
        // AF_PACKET may name any protocol; a mark on it, or on a raw socket, means nothing.
        (socket(17, 3, 6, 1, true), Sender::Packet),
        (socket(17, 2, 0, 1, false), Sender::Packet),
        (socket(2, 3, 6, 1, true), Sender::RawTcp),
    ] {
        assert_eq!(socket.sender(), sender, "{socket:?}");
    }
}

#[test]
fn protocols_and_frames() {
    for (protocol, content) in [
        (1, Content::Other),
        (58, Content::Other),
        (4, Content::Tunnel),
        (41, Content::Tunnel),
        (47, Content::Tunnel),
        (132, Content::Sctp),
        (112, Content::Other),
    ] {
        assert_eq!(Content::of_protocol(protocol), content, "{protocol}");
    }
    for (ether_type, content) in [
        (0x0806, Content::Other),
        (0x8100, Content::Frame),
        (0x8847, Content::Frame),
        (0x0026, Content::Frame),
    ] {
        assert_eq!(Content::of_frame(ether_type), content, "{ether_type:#x}");
    }
}

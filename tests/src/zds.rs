//! ZDS as it is on the wire: the socket of either side, and the few messages, independent of the daemon's own code for them.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
            SockType, UnixAddr, accept4, bind, connect, listen, recvmsg, sendmsg, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::{sys, wait::stretched};

/// A connection.
#[derive(Debug)]
pub struct ZdsSocket(OwnedFd);

/// Where an agent listens.
#[derive(Debug)]
pub struct ZdsListener(OwnedFd);

pub const HELLO: &[u8] = b"\x08\x01";
pub const ACK: &[u8] = b"\x0a\x00";
pub const SNAPSHOT_SENT: &[u8] = b"\x1a\x00";

impl ZdsListener {
    #[track_caller]
    pub fn bind(path: &Path) -> Self {
        // What a killed one left.
        _ = std::fs::remove_file(path);
        let fd = seqpacket();
        let address = UnixAddr::new(path).expect("a short path");
        bind(fd.as_raw_fd(), &address).expect("bind");
        listen(&fd, Backlog::new(8).expect("few")).expect("listen");
        limit(&fd, Duration::from_secs(20));
        Self(fd)
    }

    /// The next proxy, which has to come within the limit.
    #[track_caller]
    pub fn accept(&self) -> ZdsSocket {
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("a proxy connects");
        let fd = sys::own(fd);
        limit(&fd, Duration::from_secs(10));
        ZdsSocket(fd)
    }
}

impl ZdsSocket {
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = seqpacket();
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        limit(&fd, Duration::from_secs(10));
        Ok(Self(fd))
    }

    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, control, flags, None)?;
        Ok(())
    }

    /// The next packet and its descriptors; an empty one is the end. An error if none comes in time.
    pub fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 4096];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let (length, fds) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg::<UnixAddr>(
                self.0.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    fds.extend(raw.into_iter().map(sys::own));
                }
            }
            (message.bytes, fds)
        };
        bytes.truncate(length);
        Ok((bytes, fds))
    }

    /// The next packet, without descriptors.
    #[track_caller]
    pub fn packet(&self) -> Vec<u8> {
        let (bytes, fds) = self.receive().expect("a packet");
        assert!(fds.is_empty(), "descriptors beside {bytes:?}");
        bytes
    }

    /// Asks a proxy; gives its answer.
    #[track_caller]
    pub fn ask(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        self.send(bytes, fds).expect("send");
        read_ack(&self.packet())
    }

    /// Whether nothing comes for a while; what does come stays to be received.
    pub fn is_quiet(&self, limit: Duration) -> bool {
        let limit = PollTimeout::try_from(stretched(limit)).expect("a short time");
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, limit).expect("poll") == 0
    }

    /// Whether the other side closes the connection.
    pub fn is_closed(&self) -> bool {
        match self.receive() {
            Ok((bytes, _)) => bytes.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Vec<u8> {
    let info = [
        field(1, name.as_bytes()),
        field(2, namespace.as_bytes()),
        field(3, service_account.as_bytes()),
    ]
    .concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

pub fn del(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

pub fn keep(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

pub fn refusal(reason: &str) -> Vec<u8> {
    field(1, &field(1, reason.as_bytes()))
}

pub fn read_ack(bytes: &[u8]) -> Result<(), String> {
    match fields(bytes).first() {
        Some((1, ack)) => match fields(ack).first() {
            None => Ok(()),
            Some((_, error)) => Err(String::from_utf8_lossy(error).into_owned()),
        },
        _ => panic!("no answer: {bytes:?}"),
    }
}

/// A field of bytes, shorter than 128 or with a length of two bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let mut all = vec![number << 3 | 2];
    match length {
        0..128 => all.push(length as u8),
        _ => all.extend([length as u8 | 0x80, (length >> 7) as u8]),
    }
    all.extend(bytes);
    all
}

/// The fields of a message that has only such.
pub fn fields(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [tag, rest @ ..] = bytes {
        let (length, rest) = match rest {
            [low, high, rest @ ..] if low & 0x80 != 0 => {
                (usize::from(low & 0x7f) | usize::from(*high) << 7, rest)
            }
            [length, rest @ ..] => (usize::from(*length), rest),
            [] => panic!("a field without a length"),
        };
        found.push((tag >> 3, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    found
}

/// A descriptor of the namespace, as an agent has it.
pub fn netns_fd(netns: &redirect::sys::netns::Netns) -> File {
    File::open(netns.path()).expect("the namespace is there")
}

fn seqpacket() -> OwnedFd {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket")
}

fn limit(fd: &impl AsFd, limit: Duration) {
    let limit = stretched(limit);
    let limit = TimeVal::new(
        limit.as_secs().cast_signed(),
        i64::from(limit.subsec_micros()),
    );
    setsockopt(&fd.as_fd(), sockopt::ReceiveTimeout, &limit).expect("a timeout");
}

//! Packets of the socket: one message each, and at most a descriptor beside it.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use tokio_seqpacket::{
    UnixSeqpacket,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

/// Both peers read into a buffer of this size.
pub const MAX_PACKET: usize = 1024;

/// What was received.
#[derive(Debug, Default)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// There was more in the packet than it may have.
    pub is_cut: bool,
    /// There were more descriptors than these; the kernel has closed them.
    pub has_more_fds: bool,
}

impl Packet {
    /// How many came; of too many, not the exact number.
    pub fn descriptors(&self) -> usize {
        self.fds.len() + usize::from(self.has_more_fds)
    }
}

/// A connection to the other side.
#[derive(Debug)]
pub struct Peer {
    socket: UnixSeqpacket,
}

/// Room for a control message with some descriptors, so that too many are counted and closed here; `cmsghdr` is aligned so.
#[repr(align(8))]
struct Control([u8; 64]);

impl Peer {
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(UnixSeqpacket::connect(path).await?.into())
    }

    /// The user that the other side's process ran as when it connected.
    pub fn uid(&self) -> io::Result<u32> {
        self.socket.peer_cred().map(|peer| peer.uid())
    }

    pub async fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut control = Control([0; 64]);
        let mut control = AncillaryMessageWriter::new(&mut control.0);
        if let Some(fd) = fd {
            control
                .add_fds([fd])
                .map_err(|_| io::ErrorKind::InvalidInput)?;
        }
        self.socket
            .send_with_ancillary(bytes, &mut control)
            .await
            .map(drop)
    }

    /// The next packet; `None`: the other side has closed.
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut control = Control([0; 64]);
        let (info, control) = self
            .socket
            .recv_with_ancillary(&mut bytes, &mut control.0)
            .await?;
        let mut packet = Packet {
            is_cut: info.truncated(),
            has_more_fds: info.ancillary_truncated(),
            ..Packet::default()
        };
        for message in control.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(fds) = message {
                packet.fds.extend(fds);
            }
        }
        bytes.truncate(info.bytes_read());
        packet.bytes = bytes;
        // No message is empty: each has a payload.
        let is_end = packet.bytes.is_empty() && packet.descriptors() == 0;
        Ok((!is_end).then_some(packet))
    }
}

impl From<UnixSeqpacket> for Peer {
    fn from(socket: UnixSeqpacket) -> Self {
        Self { socket }
    }
}

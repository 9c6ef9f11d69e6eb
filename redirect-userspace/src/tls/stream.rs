//! A secured TCP connection as a byte stream.
//!
//! Writes are sealed into one staging buffer and leave on flush, so that many small frames share a system call. Reads take as
//! much as the socket has and open records in place. A stream that is idle owns no buffer.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{
    AlertDescription, ContentType, HandshakeType, client::ClientConnectionData,
    kernel::KernelConnection, server::ServerConnectionData,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    handshake::Leftover,
    inbox::Inbox,
    outbox::Outbox,
    record::{MAX_CONTENT, OVERHEAD, Opener, REKEY_AFTER, Sealer},
};

/// A slice shorter than this is copied together with its neighbours rather than given a record of its own.
const GATHER_BELOW: usize = 4096;

/// A TLS 1.3 connection over TCP.
pub struct TlsStream {
    tcp: TcpStream,
    keys: KeySchedule,
    opener: Opener,
    sealer: Sealer,
    inbox: Inbox,
    outbox: Outbox,
    /// A post-handshake message that a record ended in the middle of.
    handshake: Vec<u8>,
    /// The peer's close_notify was seen.
    read_closed: bool,
    /// Our close_notify was staged.
    write_closed: bool,
    /// The peer asked for a KeyUpdate; it goes out before the next application data (RFC 8446 section 4.6.3).
    rekey_due: bool,
}

/// rustls' key schedule, which yields the next key after a KeyUpdate.
pub enum KeySchedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl TlsStream {
    pub(super) fn new(
        tcp: TcpStream,
        opener: Opener,
        sealer: Sealer,
        keys: KeySchedule,
        leftover: Leftover,
    ) -> Self {
        Self {
            tcp,
            keys,
            opener,
            sealer,
            inbox: Inbox::new(leftover),
            outbox: Outbox::default(),
            handshake: Vec::new(),
            read_closed: false,
            write_closed: false,
            rekey_due: false,
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Opens the next whole record in the inbox and deals with what is not application data. False: none is complete.
    fn open_next(&mut self) -> io::Result<bool> {
        let Some(record) = self.inbox.next_record()? else {
            return Ok(false);
        };
        let buffer = self
            .inbox
            .buffer
            .as_mut()
            .expect("a record lies in the buffer");
        let start = record.start;
        let (content_type, content) = self.opener.open(&mut buffer[record])?;
        let content = start + content.start..start + content.end;
        match content_type {
            ContentType::ApplicationData => self.inbox.opened = content,
            ContentType::Alert => self.alert(content)?,
            ContentType::Handshake => {
                self.handshake.extend_from_slice(&buffer[content]);
                self.post_handshake()?;
            }
            other => return Err(invalid(format!("a record of type {other:?}"))),
        }
        Ok(true)
    }

    fn alert(&mut self, content: Range<usize>) -> io::Result<()> {
        let buffer = self
            .inbox
            .buffer
            .as_ref()
            .expect("the alert lies in the buffer");
        let [_level, description] = buffer[content] else {
            return Err(invalid("a malformed alert".into()));
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => {
                self.read_closed = true;
                Ok(())
            }
            fatal => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                format!("TLS: the peer sent alert {fatal:?}"),
            )),
        }
    }

    /// RFC 8446 section 4.6: session tickets are ignored (resumption is off), key updates followed.
    fn post_handshake(&mut self) -> io::Result<()> {
        while let [kind, a, b, c, rest @ ..] = &self.handshake[..] {
            let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if len > MAX_CONTENT {
                return Err(invalid(format!("a handshake message of {len} bytes")));
            }
            let Some(body) = rest.get(..len) else {
                return Ok(());
            };
            match HandshakeType::from(*kind) {
                HandshakeType::NewSessionTicket => {}
                HandshakeType::KeyUpdate => {
                    let requested = match body {
                        [0] => false,
                        [1] => true,
                        _ => return Err(invalid("a malformed KeyUpdate".into())),
                    };
                    let (sequence, secrets) = self.keys.update_rx()?;
                    self.opener = Opener::new(sequence, &secrets).map_err(io::Error::other)?;
                    self.rekey_due |= requested;
                }
                other => {
                    return Err(invalid(format!(
                        "handshake message {other:?} after the handshake"
                    )));
                }
            }
            self.handshake.drain(..4 + len);
        }
        Ok(())
    }

    /// Replaces the key that we seal with, telling the peer in the last record under the old one.
    fn rekey(&mut self) -> io::Result<()> {
        const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
        self.outbox
            .stage(&mut self.sealer, ContentType::Handshake, &[&KEY_UPDATE]);
        let (sequence, secrets) = self.keys.update_tx()?;
        self.sealer = Sealer::new(sequence, &secrets).map_err(io::Error::other)?;
        self.rekey_due = false;
        Ok(())
    }

    /// Seals as much of `slices` as the outbox has room for; returns the bytes taken.
    fn stage(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.rekey_due || self.sealer.sequence() >= REKEY_AFTER {
            if self.outbox.room() < 2 * OVERHEAD {
                return Ok(0);
            }
            self.rekey()?;
        }
        let mut taken = 0;
        let mut slices = slices
            .iter()
            .map(|slice| &**slice)
            .filter(|slice| !slice.is_empty())
            .peekable();
        while let Some(mut slice) = slices.next() {
            // Short neighbours share a record: a frame header and its payload are one, not two.
            let mut gathered: [&[u8]; 16] = [&[]; 16];
            let (mut count, mut length) = (0, 0);
            while count < 15
                && length + slice.len() <= MAX_CONTENT
                && (slice.len() < GATHER_BELOW || count > 0)
            {
                let Some(following) = slices.peek() else {
                    break;
                };
                if length + slice.len() + following.len() > MAX_CONTENT {
                    break;
                }
                gathered[count] = slice;
                count += 1;
                length += slice.len();
                slice = slices.next().expect("peeked");
            }
            if count > 0 {
                gathered[count] = slice;
                length += slice.len();
                if self.outbox.room() < OVERHEAD + length {
                    return Ok(taken);
                }
                self.outbox.stage(
                    &mut self.sealer,
                    ContentType::ApplicationData,
                    &gathered[..=count],
                );
                taken += length;
                continue;
            }
            for content in slice.chunks(MAX_CONTENT) {
                if self.outbox.room() < OVERHEAD + content.len() {
                    return Ok(taken);
                }
                self.outbox
                    .stage(&mut self.sealer, ContentType::ApplicationData, &[content]);
                taken += content.len();
            }
        }
        Ok(taken)
    }
}

impl KeySchedule {
    fn update_rx(&mut self) -> io::Result<(u64, rustls::ConnectionTrafficSecrets)> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
        .map_err(io::Error::other)
    }

    fn update_tx(&mut self) -> io::Result<(u64, rustls::ConnectionTrafficSecrets)> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
        .map_err(io::Error::other)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            if !this.inbox.opened.is_empty() {
                let buffer = this
                    .inbox
                    .buffer
                    .as_ref()
                    .expect("opened bytes lie in the buffer");
                let n = this.inbox.opened.len().min(out.remaining());
                let start = this.inbox.opened.start;
                out.put_slice(&buffer[start..start + n]);
                this.inbox.opened.start += n;
            }
            if out.remaining() == 0 || this.read_closed {
                return Poll::Ready(Ok(()));
            }
            if this.open_next()? {
                continue;
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.inbox.poll_fill(&mut this.tcp, cx))? == 0 {
                // Without a close_notify the peer was cut off; HTTP/2 above knows which streams that truncates.
                this.read_closed = true;
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        loop {
            let taken = this.stage(slices)?;
            if taken > 0 || slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(taken));
            }
            ready!(this.outbox.poll_flush(&mut this.tcp, cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outbox.poll_flush(&mut this.tcp, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        const CLOSE_NOTIFY: [u8; 2] = [1, 0];
        let this = self.get_mut();
        if !this.write_closed {
            if this.outbox.room() < OVERHEAD + CLOSE_NOTIFY.len() {
                ready!(this.outbox.poll_flush(&mut this.tcp, cx))?;
            }
            this.outbox
                .stage(&mut this.sealer, ContentType::Alert, &[&CLOSE_NOTIFY]);
            this.write_closed = true;
        }
        ready!(this.outbox.poll_flush(&mut this.tcp, cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("TLS: the peer sent {what}"),
    )
}

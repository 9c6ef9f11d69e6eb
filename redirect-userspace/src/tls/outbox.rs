//! What is sealed and waits for the socket.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::ContentType;
use tokio::{io::AsyncWrite, net::TcpStream};

use super::record::Sealer;
use crate::buffer::{self, Buffer};

/// Sealed bytes that wait for the socket.
#[derive(Default)]
pub struct Outbox {
    buffer: Option<Buffer>,
    pending: Range<usize>,
}

impl Outbox {
    pub fn room(&self) -> usize {
        buffer::CAPACITY - self.pending.end
    }

    pub fn stage(&mut self, sealer: &mut Sealer, content_type: ContentType, parts: &[&[u8]]) {
        let buffer = self.buffer.get_or_insert_with(Buffer::take);
        self.pending.end += sealer.seal(content_type, parts, &mut buffer[self.pending.end..]);
    }

    pub fn poll_flush(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(buffer) = &self.buffer {
            if self.pending.is_empty() {
                self.pending = 0..0;
                self.buffer = None;
                break;
            }
            let n = ready!(Pin::new(&mut *tcp).poll_write(cx, &buffer[self.pending.clone()]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.start += n;
        }
        Poll::Ready(Ok(()))
    }
}

//! What came from the socket and has not been taken yet.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::{handshake::Leftover, record::record_len};
use crate::buffer::Buffer;

/// Bytes from the socket: `opened` has been decrypted and not yet taken, `sealed` not yet decrypted.
#[derive(Default)]
pub struct Inbox {
    pub buffer: Option<Buffer>,
    pub opened: Range<usize>,
    pub sealed: Range<usize>,
    /// The start of a record whose rest has not arrived, kept here while `buffer` is with the pool.
    partial: Vec<u8>,
}

impl Inbox {
    /// Begins with what the handshake read too much.
    pub fn new(leftover: Leftover) -> Self {
        let Leftover {
            plaintext,
            ciphertext,
        } = leftover;
        if plaintext.is_empty() {
            return Self {
                partial: ciphertext,
                ..Self::default()
            };
        }
        let mut buffer = Buffer::take();
        let end = plaintext.len() + ciphertext.len();
        buffer[..plaintext.len()].copy_from_slice(&plaintext);
        buffer[plaintext.len()..end].copy_from_slice(&ciphertext);
        Self {
            buffer: Some(buffer),
            opened: 0..plaintext.len(),
            sealed: plaintext.len()..end,
            partial: Vec::new(),
        }
    }

    /// Takes the next whole record off the sealed bytes.
    pub fn next_record(&mut self) -> io::Result<Option<Range<usize>>> {
        if self.buffer.is_none() && !self.partial.is_empty() {
            self.restore();
        }
        let Some(buffer) = &self.buffer else {
            return Ok(None);
        };
        match record_len(&buffer[self.sealed.clone()])? {
            Some(len) if len <= self.sealed.len() => {
                let record = self.sealed.start..self.sealed.start + len;
                self.sealed.start = record.end;
                Ok(Some(record))
            }
            _ => Ok(None),
        }
    }

    /// Reads once from the socket behind the sealed bytes; `Ok(0)` is the end of the stream.
    pub fn poll_fill(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.restore();
        let buffer = self.buffer.as_mut().expect("restored");
        if self.sealed.start > 0 {
            buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let mut space = ReadBuf::new(&mut buffer[self.sealed.end..]);
        let polled = Pin::new(tcp).poll_read(cx, &mut space);
        let n = space.filled().len();
        self.sealed.end += n;
        if self.sealed.is_empty() || polled.is_pending() {
            self.release();
        }
        polled.map_ok(|()| n)
    }

    fn restore(&mut self) {
        if self.buffer.is_none() {
            let mut buffer = Buffer::take();
            buffer[..self.partial.len()].copy_from_slice(&self.partial);
            self.sealed = 0..self.partial.len();
            self.opened = 0..0;
            self.partial = Vec::new();
            self.buffer = Some(buffer);
        }
    }

    /// Gives the buffer back while the socket is empty, keeping the start of an incomplete record aside.
    fn release(&mut self) {
        debug_assert!(self.opened.is_empty());
        if let Some(buffer) = self.buffer.take() {
            self.partial = buffer[self.sealed.clone()].to_vec();
            self.sealed = 0..0;
        }
    }
}

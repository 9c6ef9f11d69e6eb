//! Carries bytes between an app's TCP connection and the other end, in both directions, until both ended or one broke.
//!
//! Nothing is allocated for a connection that waits: buffers come from the worker's pool when bytes are there. An end of
//! data is passed on as such in each direction, a reset as a reset.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use crate::{
    buffer::Buffer,
    hbone::{Stream, client::Slot},
    sys::socket::{self, ResetOnDrop},
    telemetry::Traffic,
};

/// Most bytes that one read takes from an app.
const READ_LIMIT: usize = 1 << 20;

/// Chunks of a stream that one write to an app may gather.
const GATHER: usize = 16;

/// Which side broke a connection, and how.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("app connection: {0}")]
    App(#[source] io::Error),
    #[error("other end: {0}")]
    Peer(#[source] io::Error),
    #[error("stream: {0}")]
    Stream(#[from] h2::Error),
    #[error("stream: reset by the peer: {0}")]
    Reset(h2::Reason),
    #[error("denied since the policies changed: {0}")]
    Denied(String),
}

/// Copies between `tcp` and an HBONE stream. `slot` learns when the peer's window holds the stream up.
pub async fn hbone(
    tcp: ResetOnDrop,
    stream: Stream,
    slot: Option<&Slot>,
    traffic: &Traffic,
) -> Result<(), CopyError> {
    let Stream { send, recv } = stream;
    let mut up = ToStream {
        tcp: &tcp,
        send,
        slot,
        held_up: false,
        ended: false,
    };
    let mut down = FromStream {
        recv,
        tcp: &tcp,
        chunks: VecDeque::new(),
        ended: false,
        done: false,
    };
    let mut broken: Option<Broken<'_>> = None;
    let result = poll_fn(|cx| {
        // Both directions are polled: an error in either ends the connection, and each keeps its own waker.
        let down_done = down.poll(cx, traffic)?.is_ready();
        let up_done = up.poll(cx, traffic)?.is_ready();
        if up_done && down_done {
            return Poll::Ready(Ok(()));
        }
        if down_done {
            // Nobody reads the stream any more, so its reset has to be asked for.
            if let Poll::Ready(reason) = up.send.poll_reset(cx) {
                return Poll::Ready(Err(reason.map_or_else(CopyError::Stream, CopyError::Reset)));
            }
        }
        if up_done || up.held_up {
            // Nobody reads from the app now, so its reset has to be watched for.
            if poll_broken(&mut broken, &tcp, cx).is_ready() {
                return Poll::Ready(Err(CopyError::App(io::ErrorKind::ConnectionReset.into())));
            }
        }
        Poll::Pending
    })
    .await;
    match &result {
        Ok(()) => {
            drop(broken);
            tcp.finish();
        }
        Err(CopyError::App(_) | CopyError::Peer(_)) => up.send.send_reset(h2::Reason::CANCEL),
        // The stream is over; dropping `tcp` tells the app.
        Err(CopyError::Stream(_) | CopyError::Reset(_) | CopyError::Denied(_)) => {}
    }
    result
}

/// Resolves when the connection was reset.
type Broken<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

/// App to tunnel.
struct ToStream<'a> {
    tcp: &'a TcpStream,
    send: h2::SendStream<Bytes>,
    slot: Option<&'a Slot>,
    /// The app has data and the peer has no room for it.
    held_up: bool,
    ended: bool,
}

impl ToStream<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), CopyError>> {
        while !self.ended {
            // Capacity is asked for only when there is something to send: what an idle stream holds, others lack.
            ready!(self.tcp.poll_read_ready(cx)).map_err(CopyError::App)?;
            let capacity = ready!(self.poll_capacity(cx))?;
            let mut buffer = Buffer::take();
            let read = socket::poll_read(self.tcp, cx, &mut buffer[..capacity.min(READ_LIMIT)]);
            match read {
                Poll::Pending => {
                    self.send.reserve_capacity(0);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(CopyError::App(error))),
                Poll::Ready(Ok(0)) => {
                    self.send.send_data(Bytes::new(), true)?;
                    self.ended = true;
                }
                Poll::Ready(Ok(n)) => {
                    self.send.send_data(buffer.into_bytes(n), false)?;
                    traffic.from_app(n);
                }
            }
            self.send.reserve_capacity(0);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, CopyError>> {
        self.send.reserve_capacity(READ_LIMIT);
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                if std::mem::take(&mut self.held_up)
                    && let Some(slot) = self.slot
                {
                    slot.proceeds();
                }
                return Poll::Ready(Ok(capacity));
            }
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => {
                    let reason = ready!(self.send.poll_reset(cx))?;
                    return Poll::Ready(Err(CopyError::Reset(reason)));
                }
                Poll::Pending => {
                    self.held_up = true;
                    if let Some(slot) = self.slot {
                        slot.waits();
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Tunnel to app.
struct FromStream<'a> {
    recv: h2::RecvStream,
    tcp: &'a TcpStream,
    chunks: VecDeque<Bytes>,
    /// The stream has no more data.
    ended: bool,
    /// The app was told so.
    done: bool,
}

impl FromStream<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), CopyError>> {
        while !self.done {
            while !self.ended && self.chunks.len() < GATHER {
                match self.recv.poll_data(cx) {
                    Poll::Ready(Some(chunk)) => self
                        .chunks
                        .extend(Some(chunk?).filter(|chunk| !chunk.is_empty())),
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending => break,
                }
            }
            if self.chunks.is_empty() {
                if !self.ended {
                    return Poll::Pending;
                }
                socket::shutdown(self.tcp).map_err(CopyError::App)?;
                self.done = true;
                break;
            }
            let mut slices = [IoSlice::new(&[]); GATHER];
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(chunk);
            }
            let n = ready!(socket::poll_write(
                self.tcp,
                cx,
                &slices[..self.chunks.len()]
            ))
            .map_err(CopyError::App)?;
            self.advance(n);
            // Only what the app took is given back to the sender: a stalled app stops its own stream and no other.
            self.recv.flow_control().release_capacity(n)?;
            traffic.to_app(n);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(chunk) = self.chunks.front_mut() {
            if n < chunk.len() {
                chunk.advance(n);
                return;
            }
            n -= chunk.len();
            self.chunks.pop_front();
        }
        self.chunks = VecDeque::new();
    }
}

/// Copies between an app and a destination outside the mesh.
pub async fn passthrough(
    app: ResetOnDrop,
    peer: ResetOnDrop,
    traffic: &Traffic,
) -> Result<(), CopyError> {
    let mut up = Pipe::new(&app, &peer);
    let mut down = Pipe::new(&peer, &app);
    let (mut app_broken, mut peer_broken): (Option<Broken<'_>>, Option<Broken<'_>>) = (None, None);
    let result = poll_fn(|cx| {
        let up_done = up
            .poll(cx, |n| traffic.from_app(n))
            .map_err(|end| end.or(CopyError::App, CopyError::Peer))?
            .is_ready();
        let down_done = down
            .poll(cx, |n| traffic.to_app(n))
            .map_err(|end| end.or(CopyError::Peer, CopyError::App))?
            .is_ready();
        if up_done && down_done {
            return Poll::Ready(Ok(()));
        }
        // Nobody reads from these now, so their reset has to be watched for.
        if up.is_deaf() && poll_broken(&mut app_broken, &app, cx).is_ready() {
            return Poll::Ready(Err(CopyError::App(io::ErrorKind::ConnectionReset.into())));
        }
        if down.is_deaf() && poll_broken(&mut peer_broken, &peer, cx).is_ready() {
            return Poll::Ready(Err(CopyError::Peer(io::ErrorKind::ConnectionReset.into())));
        }
        Poll::Pending
    })
    .await;
    drop((app_broken, peer_broken));
    if result.is_ok() {
        app.finish();
        peer.finish();
    }
    result
}

fn poll_broken<'a>(
    broken: &mut Option<Broken<'a>>,
    tcp: &'a TcpStream,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let broken = broken.get_or_insert_with(|| Box::pin(tcp.ready(Interest::ERROR)));
    broken.as_mut().poll(cx).map(|_| ())
}

/// One direction between two TCP connections.
struct Pipe<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    buffer: Option<Buffer>,
    pending: Range<usize>,
    done: bool,
}

/// Which end of a pipe failed.
enum PipeError {
    Read(io::Error),
    Write(io::Error),
}

impl PipeError {
    fn or(
        self,
        read: impl FnOnce(io::Error) -> CopyError,
        write: impl FnOnce(io::Error) -> CopyError,
    ) -> CopyError {
        match self {
            Self::Read(error) => read(error),
            Self::Write(error) => write(error),
        }
    }
}

impl<'a> Pipe<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self {
            from,
            to,
            buffer: None,
            pending: 0..0,
            done: false,
        }
    }

    /// Whether it reads nothing now: its source has ended, or its destination takes nothing.
    fn is_deaf(&self) -> bool {
        self.done || !self.pending.is_empty()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut carried: impl FnMut(usize),
    ) -> Poll<Result<(), PipeError>> {
        while !self.done {
            if let Some(buffer) = self.buffer.as_ref().filter(|_| !self.pending.is_empty()) {
                let slice = IoSlice::new(&buffer[self.pending.clone()]);
                let n =
                    ready!(socket::poll_write(self.to, cx, &[slice])).map_err(PipeError::Write)?;
                self.pending.start += n;
                carried(n);
                continue;
            }
            let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
            let n = ready!(socket::poll_read(self.from, cx, &mut buffer[..READ_LIMIT]))
                .map_err(PipeError::Read)?;
            if n == 0 {
                socket::shutdown(self.to).map_err(PipeError::Write)?;
                self.done = true;
            }
            self.pending = 0..n;
            self.buffer = Some(buffer).filter(|_| n > 0);
        }
        Poll::Ready(Ok(()))
    }
}

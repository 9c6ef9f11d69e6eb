//! One tunnel to a peer, as its client.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    HboneError, MAX_FRAME, MAX_HEADER_LIST, MAX_SEND_BUFFER, Stream, connection_window, keepalive,
};
use crate::config::HboneConfig;

/// A stream that could send nothing for this long counts as stalled.
const STALLED_AFTER: Duration = Duration::from_millis(250);

/// With this many stalled streams the peer's connection window may be exhausted: new streams go elsewhere.
const STALLED_LIMIT: usize = 2;

/// An open tunnel. Dropping it lets the streams in it finish and then closes it.
pub struct Tunnel {
    peer: SocketAddr,
    requests: SendRequest<Bytes>,
    use_: Rc<Use>,
    max_streams: usize,
    /// After this, neither side's certificate may speak for new streams.
    not_after: SystemTime,
    /// Fingerprint of the roots that the peer was verified against.
    roots: [u8; 32],
}

/// How a tunnel is used now; shared with its streams and its driver.
#[derive(Default)]
struct Use {
    streams: Cell<usize>,
    closed: Cell<bool>,
    /// When streams, by an id of ours, began to wait for the peer's window.
    waiting: RefCell<HashMap<usize, Instant>>,
    next_id: Cell<usize>,
    idle_since: Cell<Option<Instant>>,
}

/// What a tunnel may be trusted for, decided when it was secured.
pub struct Validity {
    pub not_after: SystemTime,
    pub roots: [u8; 32],
}

/// What counts when a tunnel is asked to take another stream.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    pub now: SystemTime,
    /// Fingerprint of the roots that are trusted now.
    pub roots: [u8; 32],
}

/// What a CONNECT carries besides its authority.
pub struct ConnectHeaders {
    pub baggage: HeaderValue,
    pub forwarded: HeaderValue,
    pub traceparent: HeaderValue,
}

/// A place among a tunnel's streams; dropping it frees the place.
pub struct Slot {
    use_: Rc<Use>,
    id: usize,
}

impl Tunnel {
    /// Speaks HTTP/2 on a secured connection. The tunnel lives on the current worker until it is dropped or breaks;
    /// `open` is dropped when it is closed.
    pub async fn open<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        secured: T,
        peer: SocketAddr,
        config: &HboneConfig,
        validity: Validity,
        open: impl Sized + 'static,
    ) -> Result<Self, HboneError> {
        let (requests, mut connection) = Builder::new()
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(connection_window(
                config,
                config.max_streams_per_tunnel,
            ))
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_max_send_streams(config.max_streams_per_tunnel as usize)
            .enable_push(false)
            .handshake(secured)
            .await
            .map_err(|error| HboneError::Http2 {
                peer,
                error: Arc::new(error),
            })?;
        let use_ = Rc::new(Use {
            idle_since: Cell::new(Some(Instant::now())),
            ..Use::default()
        });
        let ping_pong = connection.ping_pong().expect("taken once");
        let keepalive =
            keepalive::until_silent(ping_pong, config.ping_interval, config.ping_timeout);
        let ended = use_.clone();
        tokio::task::spawn_local(async move {
            let _open = open;
            tokio::select! {
                result = connection => match result {
                    Ok(()) => tracing::debug!(%peer, "tunnel closed"),
                    Err(error) => tracing::info!(%peer, %error, "tunnel broke"),
                },
                () = keepalive => tracing::info!(%peer, "tunnel closed: the peer does not answer PING"),
            }
            ended.closed.set(true);
        });
        let max_streams = config.max_streams_per_tunnel as usize;
        Ok(Self {
            peer,
            requests,
            use_,
            max_streams,
            not_after: validity.not_after,
            roots: validity.roots,
        })
    }

    /// Whether a new stream may go here.
    pub fn accepts(&self, trust: &Trust) -> bool {
        let room = self
            .max_streams
            .min(self.requests.current_max_send_streams());
        self.usable(trust) && self.use_.streams.get() < room && self.use_.stalled() < STALLED_LIMIT
    }

    /// Whether the tunnel may ever take a stream again.
    pub fn usable(&self, trust: &Trust) -> bool {
        !self.use_.closed.get() && trust.now < self.not_after && trust.roots == self.roots
    }

    /// Whether no stream has used the tunnel for `limit`.
    pub fn idle_for(&self, limit: Duration) -> bool {
        self.use_
            .idle_since
            .get()
            .is_some_and(|since| since.elapsed() >= limit)
    }

    /// Takes a place; the caller has seen that the tunnel accepts.
    pub fn slot(&self) -> Slot {
        self.use_.streams.set(self.use_.streams.get() + 1);
        self.use_.idle_since.set(None);
        let id = self.use_.next_id.get();
        self.use_.next_id.set(id.wrapping_add(1));
        Slot {
            use_: self.use_.clone(),
            id,
        }
    }

    /// Asks the peer to connect to `authority`; the stream carries bytes once the peer answered 200.
    ///
    /// An error for which [`is_unprocessed`] holds may be retried on another tunnel.
    pub async fn connect(
        &self,
        authority: SocketAddr,
        headers: ConnectHeaders,
    ) -> Result<Stream, HboneError> {
        let peer = self.peer;
        let http2 = |error| HboneError::Http2 {
            peer,
            error: Arc::new(error),
        };
        let mut requests = self
            .requests
            .clone()
            .ready()
            .await
            .inspect_err(|_| self.use_.closed.set(true))
            .map_err(http2)?;
        let (response, send) = requests
            .send_request(connect_request(authority, headers), false)
            .map_err(http2)?;
        let response = response.await.map_err(http2)?;
        if response.status() != StatusCode::OK {
            return Err(HboneError::Status {
                peer,
                status: response.status(),
                authority: authority.to_string(),
            });
        }
        Ok(Stream {
            send,
            recv: response.into_body(),
        })
    }
}

/// RFC 9113 section 8.5: CONNECT has neither scheme nor path.
fn connect_request(authority: SocketAddr, headers: ConnectHeaders) -> Request<()> {
    let authority = http::uri::Authority::try_from(authority.to_string())
        .expect("a socket address is an authority");
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from(authority);
    let map = request.headers_mut();
    if !headers.baggage.is_empty() {
        map.insert("baggage", headers.baggage);
    }
    map.insert("forwarded", headers.forwarded);
    map.insert("traceparent", headers.traceparent);
    request
}

/// Whether the peer said that it did not begin with the request (RFC 9113 section 8.7), or is going away.
pub fn is_unprocessed(error: &HboneError) -> bool {
    match error {
        HboneError::Http2 { error, .. } => {
            error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
        }
        _ => false,
    }
}

impl Slot {
    /// The stream wants to send and the peer has given no window.
    pub fn waits(&self) {
        self.use_
            .waiting
            .borrow_mut()
            .entry(self.id)
            .or_insert_with(Instant::now);
    }

    /// The stream could send again.
    pub fn proceeds(&self) {
        self.use_.waiting.borrow_mut().remove(&self.id);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.proceeds();
        let streams = self.use_.streams.get() - 1;
        self.use_.streams.set(streams);
        if streams == 0 {
            self.use_.idle_since.set(Some(Instant::now()));
        }
    }
}

impl Use {
    fn stalled(&self) -> usize {
        self.waiting
            .borrow()
            .values()
            .filter(|since| since.elapsed() > STALLED_AFTER)
            .count()
    }
}

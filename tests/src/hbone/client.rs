//! A client of inbound HBONE, on tokio-rustls and h2.

use std::{fmt, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, Response};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;

use super::Credentials;

pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

const LIMIT: Duration = Duration::from_secs(10);

/// Connects, and completes the TLS handshake. In TLS 1.3 the server judges the client's certificate after this: read to
/// learn the judgement.
pub async fn handshake(addr: SocketAddr, credentials: &Credentials) -> io::Result<TlsStream> {
    let tcp = timeout(LIMIT, TcpStream::connect(addr)).await??;
    tcp.set_nodelay(true)?;
    let connector = TlsConnector::from(credentials.client_config());
    timeout(
        LIMIT,
        connector.connect(ServerName::IpAddress(addr.ip().into()), tcp),
    )
    .await?
}

/// One HTTP/2 connection.
pub struct Tunnel {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A CONNECT that was answered with 200.
pub struct Stream {
    pub send: SendStream<Bytes>,
    pub receive: RecvStream,
    pub response: Response<()>,
}

/// Why a CONNECT did not work.
#[derive(Debug)]
pub enum Rejected {
    Status(u16),
    Http2(h2::Error),
    Timeout,
}

impl Tunnel {
    /// Must run on the thread whose namespace is meant, see [`super::run_in`].
    pub async fn open(addr: SocketAddr, credentials: &Credentials) -> io::Result<Self> {
        let tls = handshake(addr, credentials).await?;
        Self::over(tls, h2::client::Builder::new()).await
    }

    pub async fn over(tls: TlsStream, builder: h2::client::Builder) -> io::Result<Self> {
        let (requests, connection) = timeout(LIMIT, builder.handshake(tls))
            .await?
            .map_err(io::Error::other)?;
        let mut tunnel = Self {
            requests,
            connection: tokio::spawn(connection),
        };
        // Waits for the server's SETTINGS: what it thinks of our certificate is known then.
        tunnel.requests = timeout(LIMIT, tunnel.requests.clone().ready())
            .await?
            .map_err(io::Error::other)?;
        Ok(tunnel)
    }

    /// CONNECT to `authority`, as the daemon's own client does it.
    pub async fn connect(&mut self, authority: &str) -> Result<Stream, Rejected> {
        let request = Request::builder().method(Method::CONNECT).uri(authority);
        self.request(request.body(()).map_err(|_| Rejected::Status(0))?)
            .await
    }

    pub async fn request(&mut self, request: Request<()>) -> Result<Stream, Rejected> {
        let exchange = async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, send) = requests.send_request(request, false)?;
            let (head, receive) = response.await?.into_parts();
            Ok(Stream {
                send,
                receive,
                response: Response::from_parts(head, ()),
            })
        };
        let stream = timeout(LIMIT, exchange)
            .await
            .map_err(|_| Rejected::Timeout)?
            .map_err(Rejected::Http2)?;
        match stream.response.status().as_u16() {
            200 => Ok(stream),
            other => Err(Rejected::Status(other)),
        }
    }

    /// Waits until the server ends the connection; its error, if it was not a clean end.
    pub async fn closed(self) -> Result<Result<(), h2::Error>, tokio::time::error::Elapsed> {
        let Self {
            requests,
            connection,
        } = self;
        let ended = timeout(LIMIT, connection).await;
        drop(requests);
        Ok(ended?.expect("the connection's task does not panic"))
    }

    /// Whether the connection still stands.
    pub fn is_open(&self) -> bool {
        !self.connection.is_finished()
    }
}

impl Stream {
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<(), h2::Error> {
        let mut data = data.into();
        while !data.is_empty() {
            self.send.reserve_capacity(data.len());
            let ready = std::future::poll_fn(|context| self.send.poll_capacity(context)).await;
            let Some(capacity) = ready.transpose()? else {
                break;
            };
            self.send
                .send_data(data.split_to(capacity.min(data.len())), false)?;
        }
        Ok(())
    }

    pub fn finish(&mut self) -> Result<(), h2::Error> {
        self.send.send_data(Bytes::new(), true)
    }

    /// The next piece of data; `None` at the end.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, Rejected> {
        let data = timeout(LIMIT, self.receive.data())
            .await
            .map_err(|_| Rejected::Timeout)?;
        let data = data.transpose().map_err(Rejected::Http2)?;
        if let Some(data) = &data {
            let _ = self.receive.flow_control().release_capacity(data.len());
        }
        Ok(data)
    }

    /// Text up to and without the next line feed.
    pub async fn receive_line(&mut self) -> Result<String, Rejected> {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            match self.receive().await? {
                Some(data) => text.extend_from_slice(&data),
                None => break,
            }
        }
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }
}

impl Rejected {
    /// The status of the answer; 0 if there was none.
    pub fn status(&self) -> u16 {
        match self {
            Self::Status(status) => *status,
            Self::Http2(_) | Self::Timeout => 0,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Http2(error) => write!(f, "HTTP/2: {error}"),
            Self::Timeout => write!(f, "no answer within {LIMIT:?}"),
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("response", &self.response)
            .finish_non_exhaustive()
    }
}

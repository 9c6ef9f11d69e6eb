//! Asks the server that the app addressed, from the pod's network namespace, in the way that the app did: a query by UDP by
//! UDP, one by TCP by TCP. What the app sent goes out as it is, but for an id of our own.
//!
//! Only what can be an answer to this query is one (RFC 5452, section 9.1): from the server to the random port that asked,
//! with the random id, and with the same question.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

use super::{
    query::Query,
    wire::{self, Lifetimes, Malformed},
};
use crate::sys::{
    datagram,
    netns::Netns,
    socket::{self, ClientOptions},
};

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("ask {server} by {transport}: {source}")]
    Io {
        server: SocketAddr,
        transport: &'static str,
        source: io::Error,
    },
    #[error("{server} did not answer by {transport} within {limit:?}")]
    Timeout {
        server: SocketAddr,
        transport: &'static str,
        limit: Duration,
    },
    #[error("{server} answered by TCP with something else than the answer: {cause}")]
    Unfit { server: SocketAddr, cause: Unfit },
    #[error("no random number: the query is not sent with a guessable id")]
    NoRandom,
}

impl ForwardError {
    /// For the metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                "refused"
            }
            Self::Io { .. } => "io",
            Self::Timeout { .. } => "timeout",
            Self::Unfit { .. } => "unfit",
            Self::NoRandom => "no_random",
        }
    }
}

/// Why a message is not the answer to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it is a query")]
    Query,
    #[error("it has another id")]
    Id,
    #[error("it answers another kind of message")]
    Opcode,
    #[error("it answers another question")]
    Question,
}

/// Where queries go out, and for how long they are waited for.
pub struct Way<'a> {
    pub netns: &'a Netns,
    /// The app's own address, which servers may know it by.
    pub source: Option<IpAddr>,
    /// Of the packets (`SO_MARK`).
    pub mark: Option<u32>,
    pub limit: Duration,
}

/// An answer, with the id and the spelling of the query that it belongs to.
pub struct Answer {
    pub bytes: Vec<u8>,
    pub lifetimes: Lifetimes,
}

/// Asks by UDP.
pub async fn by_udp(
    way: &Way<'_>,
    server: SocketAddr,
    query: &Query<'_>,
) -> Result<Answer, ForwardError> {
    let transport = "UDP";
    let (sent, id) = with_own_id(query)?;
    let exchange = async {
        let socket = datagram::client(way.netns, server, way.source, way.mark)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.send(&sent).await?;
        // More than any server sends to one who did not announce that much.
        let mut buffer = vec![0; query.max_datagram().max(4096)];
        loop {
            let bytes = socket.recv(&mut buffer).await?;
            // A guess of somebody else's must not end the wait for the answer.
            if let Ok(answer) = accept(query, id, &buffer[..bytes]) {
                return Ok(answer);
            }
        }
    };
    match timeout(way.limit, exchange).await {
        Ok(result) => result.map_err(|source| ForwardError::Io {
            server,
            transport,
            source,
        }),
        Err(_) => Err(ForwardError::Timeout {
            server,
            transport,
            limit: way.limit,
        }),
    }
}

/// Asks by TCP, on a connection of its own.
pub async fn by_tcp(
    way: &Way<'_>,
    server: SocketAddr,
    query: &Query<'_>,
) -> Result<Answer, ForwardError> {
    let transport = "TCP";
    let (sent, id) = with_own_id(query)?;
    let exchange = async {
        let options = ClientOptions {
            bind: way.source.filter(|ip| ip.is_ipv4() == server.is_ipv4()),
            mark: way.mark,
            ..ClientOptions::default()
        };
        let socket = socket::client(way.netns, server, options)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let mut stream = socket.connect(server).await?;
        // A query came in a frame or a datagram, so its length fits.
        let mut framed = (sent.len() as u16).to_be_bytes().to_vec();
        framed.extend(&sent);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let answer = match timeout(way.limit, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => {
            return Err(ForwardError::Io {
                server,
                transport,
                source,
            });
        }
        Err(_) => {
            return Err(ForwardError::Timeout {
                server,
                transport,
                limit: way.limit,
            });
        }
    };
    accept(query, id, &answer).map_err(|cause| ForwardError::Unfit { server, cause })
}

fn with_own_id(query: &Query<'_>) -> Result<(Vec<u8>, u16), ForwardError> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| ForwardError::NoRandom)?;
    let id = u16::from_be_bytes(id);
    let mut bytes = query.bytes.to_vec();
    wire::readdress(&mut bytes, id, None);
    Ok((bytes, id))
}

/// Checks what came, and makes it the answer to the app's query.
pub fn accept(query: &Query<'_>, id: u16, message: &[u8]) -> Result<Answer, Unfit> {
    // Without the question, a server can only say that it did not understand.
    let lifetimes = wire::lifetimes(message)?;
    let header = wire::header(message).ok_or(Unfit::Query)?;
    if !header.is_response() {
        return Err(Unfit::Query);
    }
    if header.id != id {
        return Err(Unfit::Id);
    }
    if header.opcode() != query.header.opcode() {
        return Err(Unfit::Opcode);
    }
    let has_question = header.counts[0] != 0;
    let same = match query.question {
        Some(asked) if has_question => wire::same_question(asked, wire::question(message)?),
        Some(_) => header.rcode() != wire::NO_ERROR,
        None => !has_question,
    };
    if !same {
        return Err(Unfit::Question);
    }
    let mut bytes = message.to_vec();
    let spelling = query.question.filter(|_| has_question);
    wire::readdress(&mut bytes, query.header.id, spelling);
    Ok(Answer { bytes, lifetimes })
}

//! The TLS handshake, driven over rustls' unbuffered API so that no byte beyond it is lost or copied into rustls.

use std::sync::Arc;

use rustls::{
    ClientConfig, ExtractedSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    TlsError,
    record::{Opener, Sealer},
    stream::{KeySchedule, TlsStream},
};

/// A handshake's flights together are a few KiB of certificates; a peer that sends more is not shaking hands.
const MAX_HANDSHAKE: usize = 256 * 1024;

/// A secured connection, and what the peer proved itself with.
pub struct Established {
    pub stream: TlsStream,
    /// The peer's chain, leaf first, already verified by the configuration's verifier.
    pub peer_certificates: Vec<CertificateDer<'static>>,
}

/// Shakes hands as the client. The verifier in `config` decides whom to trust; no server name is sent.
pub async fn connect(tcp: TcpStream, config: Arc<ClientConfig>) -> Result<Established, TlsError> {
    // rustls wants a name even where the verifier ignores it; an IP address is never sent as SNI (RFC 6066 section 3).
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let mut connection = UnbufferedClientConnection::new(config, name)?;
    let (tcp, leftover) = drive(tcp, &mut connection).await?;
    let peer_certificates = peer_certificates(connection.peer_certificates());
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    let stream = secured(tcp, &secrets, KeySchedule::Client(kernel), leftover)?;
    Ok(Established {
        stream,
        peer_certificates,
    })
}

/// Shakes hands as the server.
pub async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> Result<Established, TlsError> {
    let mut connection = UnbufferedServerConnection::new(config)?;
    let (tcp, leftover) = drive(tcp, &mut connection).await?;
    let peer_certificates = peer_certificates(connection.peer_certificates());
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    let stream = secured(tcp, &secrets, KeySchedule::Server(kernel), leftover)?;
    Ok(Established {
        stream,
        peer_certificates,
    })
}

fn secured(
    tcp: TcpStream,
    secrets: &ExtractedSecrets,
    keys: KeySchedule,
    leftover: Leftover,
) -> Result<TlsStream, TlsError> {
    let opener = Opener::new(secrets.rx.0, &secrets.rx.1)?;
    let sealer = Sealer::new(secrets.tx.0, &secrets.tx.1)?;
    Ok(TlsStream::new(tcp, opener, sealer, keys, leftover))
}

fn peer_certificates(chain: Option<&[CertificateDer<'static>]>) -> Vec<CertificateDer<'static>> {
    chain.unwrap_or_default().to_vec()
}

/// Bytes that arrived during the handshake but lie behind it.
#[derive(Default)]
pub struct Leftover {
    /// Application data that rustls already decrypted: it came in the same read as the last flight.
    pub plaintext: Vec<u8>,
    /// Records that nobody opened yet.
    pub ciphertext: Vec<u8>,
}

/// The two sides of rustls' unbuffered API share their states, but not a trait.
trait Side {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// What to do after one step of the state machine.
enum Next {
    Again,
    Transmit,
    Read,
    Done,
}

async fn drive<S: Side>(
    mut tcp: TcpStream,
    side: &mut S,
) -> Result<(TcpStream, Leftover), TlsError> {
    let (mut incoming, mut outgoing, mut plaintext) = (Vec::new(), Vec::new(), Vec::new());
    let mut received = 0;
    loop {
        match step(side, &mut incoming, &mut outgoing, &mut plaintext) {
            Ok(Next::Again) => {}
            Ok(Next::Transmit) => {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Ok(Next::Read) => {
                if received > MAX_HANDSHAKE {
                    return Err(TlsError::TooLong(received));
                }
                incoming.reserve(4096);
                let n = tcp.read_buf(&mut incoming).await?;
                if n == 0 {
                    return Err(TlsError::Closed);
                }
                received += n;
            }
            Ok(Next::Done) => {
                return Ok((
                    tcp,
                    Leftover {
                        plaintext,
                        ciphertext: incoming,
                    },
                ));
            }
            Err(error) => {
                // rustls may have queued an alert that tells the peer why, which one more step hands out before it looks at
                // any input; it must not be driven beyond that. Losing the alert only makes the peer's error less clear.
                let _ = step(side, &mut incoming, &mut outgoing, &mut plaintext);
                let _ = tcp.write_all(&outgoing).await;
                return Err(error);
            }
        }
    }
}

fn step<S: Side>(
    side: &mut S,
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    plaintext: &mut Vec<u8>,
) -> Result<Next, TlsError> {
    let UnbufferedStatus { discard, state } = side.process(incoming);
    let mut consumed = discard;
    let state = match state {
        Ok(state) => state,
        Err(error) => {
            incoming.drain(..consumed);
            return Err(error.into());
        }
    };
    let next = match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let start = outgoing.len();
            let needed = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
                // An empty flight or one that was encoded already has nothing to add.
                Ok(_) | Err(_) => 0,
            };
            outgoing.resize(start + needed, 0);
            let written = data
                .encode(&mut outgoing[start..])
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            outgoing.truncate(start + written);
            Next::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Next::Transmit
        }
        ConnectionState::ReadTraffic(mut data) => {
            while let Some(record) = data.next_record() {
                let record = record?;
                consumed += record.discard;
                plaintext.extend_from_slice(record.payload);
            }
            Next::Again
        }
        ConnectionState::BlockedHandshake => Next::Read,
        ConnectionState::WriteTraffic(_) => Next::Done,
        ConnectionState::PeerClosed | ConnectionState::Closed => return Err(TlsError::Closed),
        other => {
            return Err(TlsError::Rustls(rustls::Error::General(format!(
                "unexpected state {other:?}"
            ))));
        }
    };
    incoming.drain(..consumed);
    Ok(next)
}

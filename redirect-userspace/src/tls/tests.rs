//! Against rustls' own record layer as the peer, over real sockets.

use std::{
    io::{Read, Write},
    net::TcpListener as StdListener,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{TlsError, accept, connect};

const NAME: &str = "peer.test";

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned(), "0.0.0.0".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..rustls::crypto::aws_lc_rs::default_provider()
    });
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(server), Arc::new(client))
}

/// Runs `peer` against a blocking socket in a thread, `ours` against the other end on a runtime.
fn pair<P, T>(
    peer: impl FnOnce(std::net::TcpStream) -> P + Send,
    ours: impl AsyncFnOnce(TcpStream) -> T,
) -> (P, T)
where
    P: Send,
{
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let peer = scope.spawn(move || peer(std::net::TcpStream::connect(address).unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ours = runtime.block_on(async move {
            let (socket, _) = listener.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            ours(TcpStream::from_std(socket).unwrap()).await
        });
        (peer.join().unwrap(), ours)
    })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 257) as u8).collect()
}

#[test]
fn a_server_echoes_to_a_stock_client_through_key_updates() {
    let (server, client) = configs();
    let sent = pattern(3_000_000);
    let expected = sent.clone();
    let (received, ()) = pair(
        |socket| {
            let connection =
                ClientConnection::new(client, ServerName::try_from(NAME).unwrap()).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            let mut received = vec![0; sent.len()];
            for (chunk, back) in sent.chunks(100_000).zip(received.chunks_mut(100_000)) {
                stream.write_all(chunk).unwrap();
                stream.read_exact(back).unwrap();
                // Asks the other side to update its key too.
                stream.conn.refresh_traffic_keys().unwrap();
            }
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            received
        },
        async |socket| {
            let mut stream = accept(socket, server).await.unwrap().stream;
            let mut buffer = vec![0; 70_000];
            loop {
                let n = stream.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break;
                }
                stream.write_all(&buffer[..n]).await.unwrap();
                stream.flush().await.unwrap();
            }
        },
    );
    assert!(received == expected);
}

#[test]
fn a_client_gathers_small_writes_and_reads_to_the_close_notify() {
    let (server, client) = configs();
    let (received, ()) = pair(
        |socket| {
            let mut stream = StreamOwned::new(ServerConnection::new(server).unwrap(), socket);
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(b"bye").unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            received
        },
        async |socket| {
            let mut stream = connect(socket, client).await.unwrap().stream;
            let payload = pattern(50_000);
            let slices = [&b"head"[..], &payload[..500], &payload[500..], b"tail"]
                .map(std::io::IoSlice::new);
            let n = stream.write_vectored(&slices).await.unwrap();
            assert_eq!(n, 50_008, "one call takes all that the buffer has room for");
            stream.flush().await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"bye");
        },
    );
    assert_eq!(
        (&received[..4], &received[received.len() - 4..]),
        (&b"head"[..], &b"tail"[..])
    );
    assert!(received[4..50_004] == pattern(50_000)[..]);
}

#[test]
fn data_in_the_same_packets_as_the_handshake_is_not_lost() {
    let (server, client) = configs();
    let (_, first) = pair(
        |socket| {
            let mut connection =
                ClientConnection::new(client, ServerName::try_from(NAME).unwrap()).unwrap();
            let mut socket = socket;
            while connection.is_handshaking() {
                if connection.wants_write() {
                    connection.write_tls(&mut socket).unwrap();
                } else {
                    connection.read_tls(&mut socket).unwrap();
                    connection.process_new_packets().unwrap();
                }
            }
            // The Finished is still unsent: data joins it.
            connection.writer().write_all(&pattern(40_000)).unwrap();
            let mut flight = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut flight).unwrap();
            }
            socket.write_all(&flight).unwrap();
            socket.read_exact(&mut [0]).unwrap_err();
        },
        async |socket| {
            let mut stream = accept(socket, server).await.unwrap().stream;
            let mut first = vec![0; 40_000];
            stream.read_exact(&mut first).await.unwrap();
            first
        },
    );
    assert!(first == pattern(40_000));
}

#[test]
fn what_is_not_tls_is_refused() {
    let (server, _) = configs();
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 0],
        &[],
    ] {
        let ((), result) = pair(
            |mut socket| {
                socket.write_all(garbage).unwrap();
                socket.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = socket.read_to_end(&mut Vec::new());
            },
            async |socket| accept(socket, server.clone()).await.map(drop),
        );
        assert!(
            matches!(result, Err(TlsError::Rustls(_) | TlsError::Closed)),
            "{garbage:?}: {result:?}"
        );
    }
}

#[test]
fn a_record_that_was_tampered_with_breaks_the_stream() {
    let (server, client) = configs();
    let ((), error) = pair(
        |socket| {
            let connection =
                ClientConnection::new(client, ServerName::try_from(NAME).unwrap()).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            stream.write_all(b"good").unwrap();
            stream.flush().unwrap();
            let mut record = Vec::new();
            stream.conn.writer().write_all(b"evil").unwrap();
            stream.conn.write_tls(&mut record).unwrap();
            *record.last_mut().unwrap() ^= 1;
            stream.sock.write_all(&record).unwrap();
            let _ = stream.sock.read_to_end(&mut Vec::new());
        },
        async |socket| {
            let mut stream = accept(socket, server).await.unwrap().stream;
            let mut good = [0; 4];
            stream.read_exact(&mut good).await.unwrap();
            assert_eq!(&good, b"good");
            stream.read(&mut good).await.unwrap_err()
        },
    );
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

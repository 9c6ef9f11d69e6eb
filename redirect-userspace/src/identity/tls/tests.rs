//! Real handshakes, in memory.

use std::{io, sync::atomic::Ordering, time::Duration};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::{
    ClientConnection, ProtocolVersion, ServerConnection,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{PrivateKeyDer, UnixTime},
};

use super::*;
use crate::identity::testing::{FakeSource, HOUR, Leaf, TestCa, id, set_validity, start};

struct Side {
    source: Arc<FakeSource>,
    store: Arc<IdentityStore>,
    tls: TlsConfigs,
}

/// One daemon with certificates for default/client and default/server.
async fn side(ca: TestCa) -> Side {
    let source = FakeSource::new(ca);
    let store = IdentityStore::new(source.clone(), source.clock.clone()).unwrap();
    for account in ["client", "server"] {
        store.prepare(&id("default", account)).await.unwrap();
    }
    let tls = TlsConfigs::new(store.clone(), "cluster.local");
    Side { source, store, tls }
}

fn accepted(names: &[&str]) -> Arc<[Arc<str>]> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

impl Side {
    fn client(&self) -> Arc<ClientConfig> {
        self.tls
            .client(&id("default", "client"), &accepted(&[SERVER]))
            .unwrap()
    }

    fn server(&self) -> Arc<ServerConfig> {
        self.tls.server(&id("default", "server")).unwrap()
    }
}

/// Which side found fault, and with what.
#[derive(Debug, PartialEq)]
enum Fault {
    Client(&'static str),
    Server(&'static str),
}

type Pair = (ClientConnection, ServerConnection);

fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Pair, Fault> {
    let mut client = ClientConnection::new(client, TlsConfigs::server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        carry(|out| client.write_tls(out), |bytes| server.read_tls(bytes));
        server
            .process_new_packets()
            .map_err(|e| Fault::Server(handshake_reason(&e)))?;
        carry(|out| server.write_tls(out), |bytes| client.read_tls(bytes));
        client
            .process_new_packets()
            .map_err(|e| Fault::Client(handshake_reason(&e)))?;
    }
    Ok((client, server))
}

fn carry(
    mut write: impl FnMut(&mut dyn io::Write) -> io::Result<usize>,
    mut read: impl FnMut(&mut dyn io::Read) -> io::Result<usize>,
) {
    let mut wire = Vec::new();
    while write(&mut wire).unwrap() > 0 {}
    let mut wire = wire.as_slice();
    while !wire.is_empty() {
        read(&mut wire).unwrap();
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let side = side(TestCa::new("root")).await;
    let (client, server) = handshake(side.client(), side.server()).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    assert_eq!(server.server_name(), None);
    let at_client = peer(client.peer_certificates().unwrap()).unwrap();
    assert_eq!(
        (&*at_client.uri, at_client.not_after),
        (SERVER, start() + HOUR)
    );
    assert_eq!(at_client.identity, Some(id("default", "server")));
    assert_eq!(
        &*peer(server.peer_certificates().unwrap()).unwrap().uri,
        CLIENT
    );
    // The record layer takes over from here.
    client.dangerous_extract_secrets().unwrap();
    server.dangerous_extract_secrets().unwrap();
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let side = side(TestCa::new("root")).await;
    for names in [
        &[CLIENT][..],
        &[],
        &["spiffe://cluster.local/ns/default/sa/serve"],
        &["*"],
    ] {
        let client = side
            .tls
            .client(&id("default", "client"), &accepted(names))
            .unwrap();
        let fault = handshake(client, side.server()).unwrap_err();
        assert_eq!(fault, Fault::Client("identity_mismatch"), "{names:?}");
    }
    let one_of_two = side
        .tls
        .client(&id("default", "client"), &accepted(&[CLIENT, SERVER]))
        .unwrap();
    handshake(one_of_two, side.server()).unwrap();
}

type Change = fn(&mut CertificateParams);

const BAD_LEAVES: [(&[&str], Change, &str); 7] = [
    (
        &[SERVER],
        |params| set_validity(params, start() - 2 * HOUR, start() - HOUR),
        "expired",
    ),
    (
        &[SERVER],
        |params| set_validity(params, start() + HOUR, start() + 2 * HOUR),
        "not_valid_yet",
    ),
    (&[], |_| {}, "no_spiffe_san"),
    (
        &["https://cluster.local/ns/default/sa/server"],
        |_| {},
        "no_spiffe_san",
    ),
    (&[SERVER, CLIENT], |_| {}, "several_uris"),
    (
        &[SERVER],
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        "wrong_purpose",
    ),
    (
        &["spiffe://Cluster.local/ns/default/sa/server"],
        |_| {},
        "no_spiffe_san",
    ),
];

#[tokio::test]
async fn a_server_with_a_bad_certificate_is_refused() {
    let ca = TestCa::new("root");
    let leaves = BAD_LEAVES.map(|(uris, change, _)| ca.leaf(uris, start(), change));
    let side = side(ca).await;
    for (leaf, (uris, _, reason)) in leaves.into_iter().zip(BAD_LEAVES) {
        let fault = handshake(side.client(), lax_server(leaf)).unwrap_err();
        assert_eq!(fault, Fault::Client(reason), "{uris:?}");
    }
}

#[tokio::test]
async fn a_client_with_a_bad_certificate_is_refused() {
    let ca = TestCa::new("root");
    let foreign = ca.leaf(
        &["spiffe://example.org/ns/default/sa/client"],
        start(),
        |_| {},
    );
    let leaves = BAD_LEAVES.map(|(uris, change, _)| ca.leaf(uris, start(), change));
    let side = side(ca).await;
    for (leaf, (uris, _, reason)) in leaves.into_iter().zip(BAD_LEAVES) {
        let fault = handshake(lax_client(Some(leaf)), side.server()).unwrap_err();
        assert_eq!(fault, Fault::Server(reason), "{uris:?}");
    }
    let fault = handshake(lax_client(Some(foreign)), side.server()).unwrap_err();
    assert_eq!(fault, Fault::Server("wrong_trust_domain"));
    let fault = handshake(lax_client(None), side.server()).unwrap_err();
    assert_eq!(fault, Fault::Server("no_certificate"));
}

#[tokio::test]
async fn a_peer_of_another_root_is_refused_by_both_sides() {
    let (side, other) = (
        side(TestCa::new("root")).await,
        side(TestCa::new("other root")).await,
    );
    assert_eq!(
        handshake(side.client(), other.server()).unwrap_err(),
        Fault::Client("unknown_issuer")
    );
    let stranger = TestCa::new("third root").leaf(&[CLIENT], start(), |_| {});
    assert_eq!(
        handshake(lax_client(Some(stranger)), side.server()).unwrap_err(),
        Fault::Server("unknown_issuer")
    );
}

#[tokio::test]
async fn old_tls_and_other_protocols_are_refused() {
    let side = side(TestCa::new("root")).await;
    let mut old = lax_client(Some(TestCa::new("any").leaf(&[CLIENT], start(), |_| {})));
    Arc::get_mut(&mut old).unwrap().alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_eq!(
        handshake(old, side.server()).unwrap_err(),
        Fault::Server("no_common_alpn")
    );

    let mut server = ServerConnection::new(side.server()).unwrap();
    // A TLS 1.2 ClientHello: no supported_versions extension.
    let hello = tls12_client_hello();
    server.read_tls(&mut hello.as_slice()).unwrap();
    let error = server.process_new_packets().unwrap_err();
    assert_eq!(handshake_reason(&error), "incompatible");

    let mut server = ServerConnection::new(side.server()).unwrap();
    server
        .read_tls(&mut &b"GET / HTTP/1.1\r\n\r\n"[..])
        .unwrap();
    assert_eq!(
        handshake_reason(&server.process_new_packets().unwrap_err()),
        "not_tls"
    );
}

#[tokio::test]
async fn the_clock_is_ours() {
    let side = side(TestCa::new("root")).await;
    let (client, server) = (side.client(), side.server());
    side.source.clock.advance(HOUR);
    // Both certificates are past their time now, so neither is presented any more.
    handshake(client, server).unwrap_err();
    side.store.round().await;
    handshake(side.client(), side.server()).unwrap();
}

#[tokio::test]
async fn a_configuration_presents_the_renewed_certificate() {
    let side = side(TestCa::new("root")).await;
    let (client, server) = (side.client(), side.server());
    let leaf = |pair: &Pair| pair.0.peer_certificates().unwrap()[0].to_vec();
    let before = leaf(&handshake(client.clone(), server.clone()).unwrap());
    side.source.clock.advance(HOUR / 2);
    side.store.round().await;
    let after = leaf(&handshake(client.clone(), server).unwrap());
    assert_ne!(before, after);
    assert!(
        Arc::ptr_eq(&client, &side.client()),
        "the configuration itself need not change"
    );
}

#[tokio::test]
async fn a_removed_root_is_no_longer_trusted() {
    let side = side(TestCa::new("root")).await;
    let (old_client, pair) = (
        side.client(),
        handshake(side.client(), side.server()).unwrap(),
    );
    let chain = pair.0.peer_certificates().unwrap();
    assert!(still_trusted(chain, &side.store.roots(), start()));
    side.source.replace_ca(TestCa::new("new root"));
    side.store.round().await;
    assert!(!still_trusted(chain, &side.store.roots(), start()));
    assert_eq!(
        handshake(old_client, side.server()).unwrap_err(),
        Fault::Client("unknown_issuer")
    );
    handshake(side.client(), side.server()).unwrap();
    assert_eq!(side.source.issued.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn no_configuration_without_a_certificate() {
    let side = side(TestCa::new("root")).await;
    let stranger = id("default", "stranger");
    assert!(matches!(
        side.tls.server(&stranger),
        Err(IdentityError::NotPrepared(_))
    ));
    assert!(matches!(
        side.tls.client(&stranger, &accepted(&[SERVER])),
        Err(IdentityError::NotPrepared(_))
    ));
}

#[test]
fn only_aes_gcm_is_offered() {
    let names: Vec<_> = provider()
        .cipher_suites
        .iter()
        .map(|suite| suite.suite())
        .collect();
    use rustls::CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    assert_eq!(names, [TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256]);
}

#[test]
fn tunnels_outlive_no_certificate() {
    let (chain, _) = TestCa::new("root").leaf(&[SERVER], start(), |_| {});
    assert_eq!(
        peer(&chain)
            .unwrap()
            .not_after
            .duration_since(start())
            .unwrap(),
        Duration::from_secs(3600)
    );
    assert_eq!(peer(&[]), Err(PeerError::NoCertificate));
    assert!(matches!(
        peer(&[CertificateDer::from(vec![1, 2, 3])]),
        Err(PeerError::Encoding(_))
    ));
}

/// A peer that is not us: it presents what it is given, and checks nothing.
fn lax_server(leaf: Leaf) -> Arc<ServerConfig> {
    let (chain, key) = leaf;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn lax_client(leaf: Option<Leaf>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match leaf {
        Some((chain, key)) => with_cert(builder, chain, key),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn with_cert(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> ClientConfig {
    builder.with_client_auth_cert(chain, key).unwrap()
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// RFC 5246, section 7.4.1.2, in one record, with the extensions that TLS 1.2 clients send.
fn tls12_client_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    body.extend([0, 2, 0xc0, 0x2b, 1, 0]);
    // signature_algorithms, supported_groups, ec_point_formats.
    let extensions = [
        0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0,
    ];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut record = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

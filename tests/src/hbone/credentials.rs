//! Certificates of any kind, signed by the testbed's development root or by a stranger's.

use std::{fs, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

/// Signs whatever is asked for.
pub struct Forge {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// What a leaf says. The default is valid from 2020 to 2099 for client and server.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// URI names, most often one SPIFFE identity.
    pub uris: Vec<String>,
    /// Years of 1 January of the first and of the end of validity.
    pub valid: (i32, i32),
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

/// A leaf with its key, and the root that its peer is expected to have.
#[derive(Debug)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    root: CertificateDer<'static>,
}

impl Forge {
    /// Uses the root that `redirect ca init DIR` made.
    pub fn of(dir: &Path) -> Self {
        let read = |name: &str| {
            fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("read {name}: {e}"))
        };
        let key = KeyPair::from_pem(&read("root-key.pem")).expect("a private key");
        let pem = read("roots.pem");
        let root =
            <CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes());
        Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key).expect("a root"),
            root: root.expect("a root"),
        }
    }

    /// A root that nobody knows.
    pub fn stranger() -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("sign").der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    /// Valid credentials of `spiffe://cluster.local/ns/default/sa/NAME`.
    pub fn identity(&self, name: &str) -> Credentials {
        self.leaf(&Leaf::new(&format!(
            "spiffe://cluster.local/ns/default/sa/{name}"
        )))
    }

    pub fn leaf(&self, leaf: &Leaf) -> Credentials {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        let uri = |uri: &String| SanType::URI(uri.as_str().try_into().expect("ASCII"));
        params.subject_alt_names = leaf.uris.iter().map(uri).collect();
        params.not_before = date_time_ymd(leaf.valid.0, 1, 1);
        params.not_after = date_time_ymd(leaf.valid.1, 1, 1);
        params.extended_key_usages.clone_from(&leaf.usages);
        let certificate = params.signed_by(&key, &self.issuer).expect("sign");
        Credentials {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            root: self.root.clone(),
        }
    }
}

impl Leaf {
    pub fn new(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            valid: (2020, 2099),
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        }
    }
}

impl Credentials {
    /// As a client that takes any server for its peer: what the server thinks is the question.
    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3 is in the provider")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key belongs to the certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Arc::new(config)
    }

    /// As a server that wants a client certificate of the same root.
    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let verifier: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("a verifier");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3 is in the provider")
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key belongs to the certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
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
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

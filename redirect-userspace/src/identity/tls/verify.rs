//! Checking a peer's certificate: its chain, its time, its purpose, then its SPIFFE name.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::provider;
use crate::identity::{
    Identity, Roots, certificate::LeafInfo, clock::unix_time, spiffe::trust_domain_of,
};

/// Who is at the other end of a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The SPIFFE URI as the certificate has it.
    pub uri: Arc<str>,
    /// The same, where it has Istio's form.
    pub identity: Option<Identity>,
    /// No new stream after this.
    pub not_after: SystemTime,
}

/// Reads the name of a peer whose chain the handshake has verified; leaf first.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, PeerError> {
    let leaf = LeafInfo::read(chain.first().ok_or(PeerError::NoCertificate)?)
        .map_err(|e| PeerError::Encoding(e.to_string()))?;
    let uri = spiffe_uri(&leaf)?;
    Ok(Peer {
        uri: uri.into(),
        identity: Identity::parse(uri).ok(),
        not_after: leaf.not_after,
    })
}

/// Why a peer with a good chain is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the peer has no certificate")]
    NoCertificate,
    #[error("the peer's certificate is malformed: {0}")]
    Encoding(String),
    #[error("the peer's certificate has no SPIFFE URI")]
    NoSpiffeSan,
    #[error("the peer's certificate has several URIs, which SPIFFE forbids: {}", .0.join(", "))]
    SeveralUris(Vec<String>),
    #[error("the peer is {uri}, which is not in the trust domain {trust_domain}")]
    WrongTrustDomain { uri: String, trust_domain: String },
    #[error("the peer is {uri}, expected {}", accepted.join(" or "))]
    IdentityMismatch { uri: String, accepted: Vec<String> },
}

impl PeerError {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Encoding(_) => "bad_encoding",
            Self::NoSpiffeSan => "no_spiffe_san",
            Self::SeveralUris(_) => "several_uris",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::IdentityMismatch { .. } => "identity_mismatch",
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// A short name, for metrics, of why a handshake failed.
pub fn handshake_reason(error: &Error) -> &'static str {
    use CertificateError as C;
    match error {
        Error::InvalidCertificate(C::Other(OtherError(inner))) => inner
            .downcast_ref::<PeerError>()
            .map_or("bad_certificate", PeerError::reason),
        Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => "expired",
        Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => "not_valid_yet",
        Error::InvalidCertificate(C::UnknownIssuer) => "unknown_issuer",
        Error::InvalidCertificate(C::BadSignature) => "bad_signature",
        Error::InvalidCertificate(C::InvalidPurpose | C::InvalidPurposeContext { .. }) => {
            "wrong_purpose"
        }
        Error::InvalidCertificate(C::BadEncoding) => "bad_encoding",
        Error::InvalidCertificate(_) => "bad_certificate",
        Error::NoCertificatesPresented => "no_certificate",
        Error::PeerIncompatible(_) => "incompatible",
        Error::NoApplicationProtocol => "no_common_alpn",
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => "peer_says_expired",
            AlertDescription::UnknownCA => "peer_says_unknown_issuer",
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::AccessDenied => "peer_refused_certificate",
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
                "peer_incompatible"
            }
            _ => "peer_alert",
        },
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. } => "not_tls",
        _ => "tls",
    }
}

/// Checks our own leaf as a peer would; the error is text for an operator.
pub fn check_own_chain(
    chain: &[CertificateDer<'_>],
    roots: &Roots,
    now: SystemTime,
) -> Result<(), String> {
    check_chain(chain, roots, now).map_err(|error| match handshake_reason(&error) {
        "expired" => "is past its time".to_owned(),
        "not_valid_yet" => "is not valid yet; is the clock right?".to_owned(),
        "unknown_issuer" => "is not signed by any certificate in roots.pem".to_owned(),
        "wrong_purpose" => "is not for TLS servers (extended key usage)".to_owned(),
        _ => error.to_string(),
    })
}

pub(super) fn check_chain(
    chain: &[CertificateDer<'_>],
    roots: &Roots,
    now: SystemTime,
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    check_server_chain(leaf, intermediates, roots, unix_time(now))
}

fn check_server_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), Error> {
    let leaf = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots.store, intermediates, now, algorithms)
}

/// The one URI name of a certificate, which must be SPIFFE's (X.509-SVID specification, section 2).
fn spiffe_uri(leaf: &LeafInfo) -> Result<&str, PeerError> {
    match leaf.uris.as_slice() {
        [] => Err(PeerError::NoSpiffeSan),
        [uri] if trust_domain_of(uri).is_some() => Ok(uri),
        [_] => Err(PeerError::NoSpiffeSan),
        uris => Err(PeerError::SeveralUris(uris.to_vec())),
    }
}

/// Our side is the client: the server must prove to be exactly one of `accepted`.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub roots: Arc<Roots>,
    pub accepted: Arc<[Arc<str>]>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_server_chain(end_entity, intermediates, &self.roots, now)?;
        let leaf = read_leaf(end_entity)?;
        let uri = spiffe_uri(&leaf)?;
        if !self.accepted.iter().any(|accepted| **accepted == *uri) {
            let accepted = self.accepted.iter().map(|uri| uri.to_string()).collect();
            return Err(PeerError::IdentityMismatch {
                uri: uri.to_owned(),
                accepted,
            }
            .into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Our side is the server: any client of our trust domain may connect, policy decides later.
pub(super) struct ClientVerifier {
    /// Of rustls: chain, time and purpose.
    pub chain: Arc<dyn ClientCertVerifier>,
    pub trust_domain: Arc<str>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let leaf = read_leaf(end_entity)?;
        let uri = spiffe_uri(&leaf)?;
        if trust_domain_of(uri) != Some(&*self.trust_domain) {
            let trust_domain = self.trust_domain.to_string();
            return Err(PeerError::WrongTrustDomain {
                uri: uri.to_owned(),
                trust_domain,
            }
            .into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

fn read_leaf(der: &CertificateDer<'_>) -> Result<LeafInfo, Error> {
    LeafInfo::read(der).map_err(|e| PeerError::Encoding(e.to_string()).into())
}

/// Our configurations offer nothing else, so rustls never asks.
fn only_tls13() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

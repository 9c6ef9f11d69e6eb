//! Certificates and roots in memory, checked when they are made.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::Identity;

/// A leaf that proves an identity, with its key. Cloning is cheap.
#[derive(Clone)]
pub struct Certificate {
    pub identity: Identity,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub serial: Arc<str>,
    /// Chain (leaf first) and signing key, as rustls wants them.
    pub certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// Takes a chain (leaf first, PEM order) and the leaf's key, and checks that they belong together and to `identity`.
    pub fn new(
        identity: &Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, BadCertificate> {
        let leaf = LeafInfo::read(chain.first().ok_or(BadCertificate::Empty)?)?;
        if !leaf.for_both_sides {
            return Err(BadCertificate::Purpose);
        }
        let expected = identity.to_string();
        if leaf.uris.len() != 1 || leaf.uris[0] != expected {
            return Err(BadCertificate::Identity {
                expected,
                found: leaf.uris,
            });
        }
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_| BadCertificate::KeyType)?;
        let certified = CertifiedKey::new(chain, signer);
        certified
            .keys_match()
            .map_err(|_| BadCertificate::KeyMismatch)?;
        Ok(Self {
            identity: identity.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial.into(),
            certified: Arc::new(certified),
        })
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Leaves out the key.
        f.debug_struct("Certificate")
            .field("identity", &self.identity.to_string())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What peers' chains must end in.
#[derive(Clone, Debug)]
pub struct Roots {
    pub store: Arc<RootCertStore>,
    pub certs: Arc<[CertificateDer<'static>]>,
    /// SHA-256 over the certificates: equal roots, equal fingerprint.
    pub fingerprint: [u8; 32],
}

impl Roots {
    pub fn new(certs: Vec<CertificateDer<'static>>) -> Result<Self, BadCertificate> {
        if certs.is_empty() {
            return Err(BadCertificate::Empty);
        }
        let mut store = RootCertStore::empty();
        let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for cert in &certs {
            let (_, parsed) = X509Certificate::from_der(cert)
                .map_err(|e| BadCertificate::Encoding(e.to_string()))?;
            if !parsed.is_ca() {
                return Err(BadCertificate::NotAuthority(parsed.subject().to_string()));
            }
            store
                .add(cert.clone())
                .map_err(|e| BadCertificate::Encoding(e.to_string()))?;
            digest.update(cert);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.finish().as_ref());
        Ok(Self {
            store: Arc::new(store),
            certs: certs.into(),
            fingerprint,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    #[error("holds no certificate")]
    Empty,
    #[error("is not a certificate: {0}")]
    Encoding(String),
    #[error("{0} is not a certificate authority, so it cannot be a root")]
    NotAuthority(String),
    #[error("the private key is of a kind that TLS 1.3 cannot use; ECDSA P-256 is the usual one")]
    KeyType,
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("must be for TLS servers and for TLS clients (extended key usage)")]
    Purpose,
    #[error(
        "names {}, but must name exactly {expected} as its one URI",
        quoted(found)
    )]
    Identity {
        expected: String,
        found: Vec<String>,
    },
}

fn quoted(names: &[String]) -> String {
    if names.is_empty() {
        "no URI".to_owned()
    } else {
        names.join(", ")
    }
}

/// What we read of a leaf, ours or a peer's.
pub(super) struct LeafInfo {
    pub uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub serial: String,
    /// Its extended key usages, if it has any, permit to be server and client.
    pub for_both_sides: bool,
}

impl LeafInfo {
    pub(super) fn read(der: &[u8]) -> Result<Self, BadCertificate> {
        let encoding = |e: &dyn fmt::Display| BadCertificate::Encoding(e.to_string());
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| encoding(&e))?;
        let names = cert.subject_alternative_name().map_err(|e| encoding(&e))?;
        let uris = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        let purposes = cert
            .extended_key_usage()
            .map_err(|e| encoding(&e))?
            .map(|extension| extension.value);
        let validity = cert.validity();
        Ok(Self {
            for_both_sides: purposes
                .is_none_or(|found| found.any || (found.server_auth && found.client_auth)),
            uris,
            not_before: system_time(validity.not_before),
            // RFC 5280 counts the last second in, we do not.
            not_after: system_time(validity.not_after),
            serial: cert
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        })
    }
}

fn system_time(at: ASN1Time) -> SystemTime {
    let seconds = at.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if seconds < 0 {
        epoch.checked_sub(distance)
    } else {
        epoch.checked_add(distance)
    }
    .unwrap_or(epoch)
}

//! Who a workload is: a SPIFFE identity, and the certificate that proves it.
//!
//! [`source`] gives certificates (a development root, files), [`store`] keeps and renews them, [`tls`] makes TLS
//! configurations of them and checks the peer's.

pub mod certificate;
pub mod clock;
pub mod dev_ca;
pub mod files;
pub mod source;
pub mod spiffe;
pub mod store;
#[cfg(test)]
pub mod testing;
pub mod tls;

pub use certificate::{Certificate, Roots};
pub use clock::{Clock, SystemClock};
pub use source::CertificateSource;
pub use spiffe::{Identity, InvalidName};
pub use store::IdentityStore;

use std::{io, path::PathBuf};

/// Why there is no certificate, or why one cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{call} {}: {source}{hint}", path.display())]
    File {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
        hint: &'static str,
    },
    #[error("{}: {what}", path.display())]
    BadFile { path: PathBuf, what: String },
    #[error("{} exists already; choose another directory, or remove the old authority first", .0.display())]
    Exists(PathBuf),
    #[error("{0} has no certificate yet")]
    NotPrepared(Identity),
    #[error("the certificate of {0} is past its time and could not be renewed")]
    Expired(Identity),
    #[error("{0}")]
    Issue(String),
    #[error("TLS configuration for {identity}: {source}")]
    Tls {
        identity: Identity,
        source: rustls::Error,
    },
}

impl IdentityError {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::BadFile { .. } => "bad_file",
            Self::Exists(_) => "exists",
            Self::NotPrepared(_) => "not_prepared",
            Self::Expired(_) => "expired",
            Self::Issue(_) => "issue",
            Self::Tls { .. } => "tls",
        }
    }
}

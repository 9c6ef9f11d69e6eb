//! Where certificates come from.

use std::{future::Future, pin::Pin, sync::Arc};

use super::{Certificate, Clock, Identity, IdentityError, Roots, dev_ca::DevCa, files::Files};
use crate::{config::IdentityConfig, document::Revision};

pub type Issuing<'a> =
    Pin<Box<dyn Future<Output = Result<Certificate, IdentityError>> + Send + 'a>>;

/// Gives certificates for identities, and the roots that peers are checked against.
pub trait CertificateSource: Send + Sync {
    /// A certificate that is valid now, checked against `roots` and the identity.
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a>;

    /// Reads the roots afresh.
    fn roots(&self) -> Result<Roots, IdentityError>;

    /// Cheap to ask often: when it differs from before, `roots` gives something new.
    fn roots_revision(&self) -> Revision;

    /// `Some`: the certificate is new exactly when this differs from before. `None`: ask for one at half of its life.
    fn revision(&self, identity: &Identity) -> Option<Revision>;

    /// Whether this process holds the key that signs for every workload of the mesh.
    fn is_dev_ca(&self) -> bool {
        false
    }

    /// A short name for logs.
    fn name(&self) -> &'static str;
}

/// The source that the configuration names.
pub fn from_config(
    config: &IdentityConfig,
    trust_domain: &str,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn CertificateSource>, IdentityError> {
    Ok(match config {
        IdentityConfig::DevCa { dir, ttl } => {
            Arc::new(DevCa::open(dir, trust_domain, *ttl, clock)?)
        }
        IdentityConfig::Files { dir } => Arc::new(Files::new(dir, clock)),
    })
}

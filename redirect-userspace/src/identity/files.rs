//! Certificates as files, written by whoever: `roots.pem`, and `NAMESPACE/SERVICE_ACCOUNT/{cert,key}.pem`.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{
    Certificate, Clock, Identity, IdentityError, Roots, certificate::BadCertificate,
    source::CertificateSource, source::Issuing, tls::check_own_chain,
};
use crate::document::{Revision, revision_of};

#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
}

impl Files {
    pub fn new(dir: &Path, clock: Arc<dyn Clock>) -> Self {
        Self {
            dir: dir.to_owned(),
            clock,
        }
    }

    fn read(&self, identity: &Identity) -> Result<Certificate, IdentityError> {
        let (cert_path, key_path) = leaf_paths(&self.dir, identity);
        let chain = read_certs(&cert_path)?;
        let key = read_key(&key_path)?;
        let certificate = Certificate::new(identity, chain, key).map_err(|bad| match bad {
            BadCertificate::KeyMismatch => IdentityError::BadFile {
                path: key_path,
                what: format!("the private key does not belong to {}", cert_path.display()),
            },
            BadCertificate::KeyType => IdentityError::BadFile {
                path: key_path,
                what: bad.to_string(),
            },
            _ => IdentityError::BadFile {
                path: cert_path.clone(),
                what: bad.to_string(),
            },
        })?;
        check_own_chain(certificate.chain(), &self.roots()?, self.clock.now()).map_err(|what| {
            IdentityError::BadFile {
                path: cert_path,
                what,
            }
        })?;
        Ok(certificate)
    }
}

impl CertificateSource for Files {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async move { self.read(identity) })
    }

    fn roots(&self) -> Result<Roots, IdentityError> {
        read_roots(&roots_path(&self.dir))
    }

    fn roots_revision(&self) -> Revision {
        revision_of(&[&roots_path(&self.dir)])
    }

    fn revision(&self, identity: &Identity) -> Option<Revision> {
        let (cert, key) = leaf_paths(&self.dir, identity);
        Some(revision_of(&[&cert, &key]))
    }

    fn name(&self) -> &'static str {
        "files"
    }
}

pub fn roots_path(dir: &Path) -> PathBuf {
    dir.join("roots.pem")
}

/// Certificate chain and key. Safe as paths: [`Identity`] parts have no slash and are neither `.` nor `..`.
pub fn leaf_paths(dir: &Path, identity: &Identity) -> (PathBuf, PathBuf) {
    let dir = dir
        .join(&*identity.namespace)
        .join(&*identity.service_account);
    (dir.join("cert.pem"), dir.join("key.pem"))
}

pub fn read_roots(path: &Path) -> Result<Roots, IdentityError> {
    Roots::new(read_certs(path)?).map_err(|bad| IdentityError::BadFile {
        path: path.to_owned(),
        what: bad.to_string(),
    })
}

pub fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read(path)?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| pem_error(path, &e))?;
    if certs.is_empty() {
        return Err(IdentityError::BadFile {
            path: path.to_owned(),
            what: BadCertificate::Empty.to_string(),
        });
    }
    Ok(certs)
}

pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| match e {
        pem::Error::NoItemsFound => IdentityError::BadFile {
            path: path.to_owned(),
            what: "holds no private key".to_owned(),
        },
        e => pem_error(path, &e),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => {
                "; `redirect ca init` and `redirect ca issue` write such files"
            }
            _ => "",
        };
        IdentityError::File {
            call: "read",
            path: path.to_owned(),
            source,
            hint,
        }
    })
}

fn pem_error(path: &Path, error: &pem::Error) -> IdentityError {
    IdentityError::BadFile {
        path: path.to_owned(),
        what: format!("is not PEM: {error}"),
    }
}

//! The development authority: a root key in a directory, and leaves signed with it.
//!
//! Whoever holds the root key can name itself anything in the mesh, so this is for development and tests only.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    Certificate, Clock, Identity, IdentityError, Roots,
    certificate::LeafInfo,
    files::{leaf_paths, read_certs, read_roots, roots_path},
    source::{CertificateSource, Issuing},
    spiffe::check_trust_domain,
    tls::check_own_chain,
};
use crate::document::{Revision, revision_of};

/// A leaf is valid from this long before it is made, for peers whose clock is late.
const BACKDATE: Duration = Duration::from_secs(120);
/// 31 December 9998.
const LAST_MOMENT: Duration = Duration::from_secs(253_370_678_400);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

pub struct DevCa {
    dir: PathBuf,
    trust_domain: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
}

impl DevCa {
    /// Checks that `dir` holds an authority for the trust domain. The files are read again at each use: a replaced root
    /// takes effect without a restart.
    pub fn open(
        dir: &Path,
        trust_domain: &str,
        ttl: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, IdentityError> {
        let ca = Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.to_owned(),
            ttl,
            clock,
        };
        ca.signer()?;
        ca.roots()?;
        Ok(ca)
    }

    /// Makes a directory with a new root: `roots.pem` and `root-key.pem`. Refuses to overwrite.
    pub fn init(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<(), IdentityError> {
        check_trust_domain(trust_domain).map_err(|e| IdentityError::Issue(e.to_string()))?;
        make_private_dir(dir)?;
        for path in [key_path(dir), roots_path(dir)] {
            if path.symlink_metadata().is_ok() {
                return Err(IdentityError::Exists(path));
            }
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(issue_error)?;
        let mut params = CertificateParams::default();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) =
            (epoch + before(now), epoch + after(now, ROOT_LIFE));
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, trust_domain);
        params.distinguished_name.push(
            DnType::CommonName,
            format!("redirect development root of {trust_domain}"),
        );
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).map_err(issue_error)?;
        // The key first: a directory with roots and without a key would look like the output of `ca issue`.
        write_new(&key_path(dir), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&roots_path(dir), root.pem().as_bytes(), 0o644)
    }

    /// Signs a leaf with a fresh key.
    pub fn sign(
        &self,
        identity: &Identity,
    ) -> Result<(rcgen::Certificate, KeyPair), IdentityError> {
        if *identity.trust_domain != *self.trust_domain {
            return Err(IdentityError::Issue(format!(
                "{identity} is not in the trust domain {} of {}",
                self.trust_domain,
                self.dir.display()
            )));
        }
        let issuer = self.signer()?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(issue_error)?;
        let now = self.clock.now();
        let mut params = CertificateParams::default();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + before(now), epoch + after(now, self.ttl));
        params.serial_number = Some(serial()?);
        // SPIFFE asks for nothing in the subject; the empty subject makes rcgen mark the SAN critical (RFC 5280, 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &issuer).map_err(issue_error)?;
        Ok((leaf, key))
    }

    /// Writes `roots.pem` and `NAMESPACE/SERVICE_ACCOUNT/{cert,key}.pem` below `out`, for the source `files`. An earlier leaf
    /// of the same name is replaced, key first, each by a rename.
    pub fn write_leaf(&self, identity: &Identity, out: &Path) -> Result<(), IdentityError> {
        let (leaf, key) = self.sign(identity)?;
        let (cert_path, key_path) = leaf_paths(out, identity);
        make_private_dir(
            key_path
                .parent()
                .expect("leaf_paths puts the files in a directory"),
        )?;
        let roots_from = roots_path(&self.dir);
        let roots =
            fs::read(&roots_from).map_err(|source| file_error("read", &roots_from, source))?;
        replace(&roots_path(out), &roots, 0o644)?;
        replace(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        replace(&cert_path, leaf.pem().as_bytes(), 0o644)
    }

    fn signer(&self) -> Result<Issuer<'static, KeyPair>, IdentityError> {
        let key_path = key_path(&self.dir);
        let bad = |path: &Path, what: String| IdentityError::BadFile {
            path: path.to_owned(),
            what,
        };
        let file = |call, path: &Path, source, hint| IdentityError::File {
            call,
            path: path.to_owned(),
            source,
            hint,
        };
        let mode = fs::metadata(&key_path)
            .map_err(|e| {
                file(
                    "stat",
                    &key_path,
                    e,
                    "; `redirect ca init` makes an authority",
                )
            })?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(bad(
                &key_path,
                format!(
                    "mode {:03o} lets others read the root key; chmod 600 it",
                    mode & 0o777
                ),
            ));
        }
        let pem = fs::read_to_string(&key_path).map_err(|e| file("read", &key_path, e, ""))?;
        let key = KeyPair::from_pem(&pem)
            .map_err(|e| bad(&key_path, format!("is not a private key: {e}")))?;
        let roots_path = roots_path(&self.dir);
        let root = &read_certs(&roots_path)?[0];
        let info = LeafInfo::read(root).map_err(|e| bad(&roots_path, e.to_string()))?;
        // webpki takes roots as trusted whatever their dates; other peers do not.
        let now = self.clock.now();
        if now < info.not_before || now >= info.not_after {
            let what = "the root is past its time, or not valid yet; make another".to_owned();
            return Err(bad(&roots_path, what));
        }
        let named = format!("spiffe://{}", self.trust_domain);
        if !info.uris.is_empty() && !info.uris.contains(&named) {
            let what = format!(
                "is the root of {}, but the trust domain is {}",
                info.uris.join(", "),
                self.trust_domain
            );
            return Err(bad(&roots_path, what));
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(root)
            .map_err(|e| bad(&roots_path, e.to_string()))?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(bad(
                &key_path,
                format!(
                    "is not the key of the first certificate in {}",
                    roots_path.display()
                ),
            ));
        }
        Issuer::from_ca_cert_der(root, key).map_err(issue_error)
    }
}

impl CertificateSource for DevCa {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async move {
            let (leaf, key) = self.sign(identity)?;
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let certificate = Certificate::new(identity, vec![leaf.into()], key)
                .map_err(|e| IdentityError::Issue(e.to_string()))?;
            check_own_chain(certificate.chain(), &self.roots()?, self.clock.now())
                .map_err(|what| bad_root(&self.dir, &what))?;
            Ok(certificate)
        })
    }

    fn roots(&self) -> Result<Roots, IdentityError> {
        read_roots(&roots_path(&self.dir))
    }

    fn roots_revision(&self) -> Revision {
        revision_of(&[&roots_path(&self.dir), &key_path(&self.dir)])
    }

    fn revision(&self, _: &Identity) -> Option<Revision> {
        None
    }

    fn is_dev_ca(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "devCa"
    }
}

/// The leaf was made just now: what is wrong with its chain is wrong with the root.
fn bad_root(dir: &Path, what: &str) -> IdentityError {
    IdentityError::BadFile {
        path: roots_path(dir),
        what: format!("a certificate signed with this root {what}"),
    }
}

fn key_path(dir: &Path) -> PathBuf {
    dir.join("root-key.pem")
}

/// 16 random bytes, positive and at most 20 bytes long as RFC 5280, section 4.1.2.2 asks.
fn serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| IdentityError::Issue("no random bytes".to_owned()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn uri(uri: &str) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(uri.try_into().map_err(issue_error)?))
}

fn issue_error(error: rcgen::Error) -> IdentityError {
    IdentityError::Issue(format!("signing a certificate: {error}"))
}

fn file_error(call: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File {
        call,
        path: path.to_owned(),
        source,
        hint: "",
    }
}

/// Seconds since 1970 from which a certificate made `now` is valid.
fn before(now: SystemTime) -> Duration {
    since_epoch(now).saturating_sub(BACKDATE)
}

/// Seconds since 1970 until which it is. X.509 ends in the year 9999, and rcgen panics beyond.
fn after(now: SystemTime, life: Duration) -> Duration {
    (since_epoch(now) + life).min(LAST_MOMENT)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .min(LAST_MOMENT)
}

/// Makes the directory and its missing parents with mode 0700; one that exists keeps its mode.
fn make_private_dir(dir: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| file_error("mkdir", dir, source))
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut file: File = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(IdentityError::Exists(path.to_owned()));
        }
        opened => opened.map_err(|source| file_error("create", path, source))?,
    };
    // `mode` above is subject to the umask, which must not make a key wider, and may not make a root unreadable.
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(|source| file_error("chmod", path, source))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|source| file_error("write", path, source))
}

/// Readers see the old content or the new, never a part.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    let staged = path.with_extension("pem.new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error("unlink", &staged, error));
        }
        _ => {}
    }
    write_new(&staged, content, mode)?;
    fs::rename(&staged, path).map_err(|source| file_error("rename", path, source))
}

//! An authority in memory that also signs what a real one should not, and a certificate source that tests steer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    Certificate, CertificateSource, Clock, Identity, IdentityError, Roots, clock::fake::FakeClock,
    source::Issuing,
};
use crate::document::Revision;

/// 2026-01-01, when these tests play.
pub fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn id(namespace: &str, account: &str) -> Identity {
    Identity::new("cluster.local", namespace, account).unwrap()
}

pub type Leaf = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn roots(&self) -> Roots {
        Roots::new(vec![self.0.der().clone()]).unwrap()
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs with these URIs, valid for an hour from `at`, for both purposes, as changed by `change`.
    pub fn leaf(
        &self,
        uris: &[&str],
        at: SystemTime,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Leaf {
        let (cert, key) = self.leaf_pem(uris, at, change);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![cert.der().clone()], key)
    }

    pub fn leaf_pem(
        &self,
        uris: &[&str],
        at: SystemTime,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = Default::default();
        set_validity(&mut params, at, at + HOUR);
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

pub fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    (params.not_before, params.not_after) = (epoch + since(from), epoch + since(until));
}

/// Signs with a [`TestCa`] for an hour from the fake clock's now.
pub struct FakeSource {
    pub clock: Arc<FakeClock>,
    ca: Mutex<Arc<TestCa>>,
    roots_revision: AtomicU64,
    pub failing: AtomicBool,
    pub issued: AtomicU64,
    pub ttl: Mutex<Duration>,
}

impl FakeSource {
    pub fn new(ca: TestCa) -> Arc<Self> {
        Arc::new(Self {
            clock: FakeClock::new(start()),
            ca: Mutex::new(Arc::new(ca)),
            roots_revision: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            issued: AtomicU64::new(0),
            ttl: Mutex::new(HOUR),
        })
    }

    pub fn replace_ca(&self, ca: TestCa) {
        *self.ca.lock().unwrap() = Arc::new(ca);
        self.roots_revision.fetch_add(1, Ordering::Relaxed);
    }

    fn ca(&self) -> Arc<TestCa> {
        self.ca.lock().unwrap().clone()
    }
}

impl CertificateSource for FakeSource {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async move {
            if self.failing.load(Ordering::Relaxed) {
                return Err(IdentityError::Issue("told to fail".to_owned()));
            }
            self.issued.fetch_add(1, Ordering::Relaxed);
            let (now, ttl) = (self.clock.now(), *self.ttl.lock().unwrap());
            let (chain, key) = self.ca().leaf(&[&identity.to_string()], now, |params| {
                set_validity(params, now - Duration::from_secs(60), now + ttl);
            });
            Ok(Certificate::new(identity, chain, key).unwrap())
        })
    }

    fn roots(&self) -> Result<Roots, IdentityError> {
        Ok(self.ca().roots())
    }

    fn roots_revision(&self) -> Revision {
        self.roots_revision.load(Ordering::Relaxed)
    }

    fn revision(&self, _: &Identity) -> Option<Revision> {
        None
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

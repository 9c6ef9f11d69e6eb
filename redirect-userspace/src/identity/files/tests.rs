use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};

use super::*;
use crate::identity::{
    IdentityStore,
    clock::fake::FakeClock,
    testing::{HOUR, TestCa, id, set_validity, start},
};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

struct Fixture {
    dir: tempfile::TempDir,
    ca: TestCa,
    clock: Arc<FakeClock>,
}

impl Fixture {
    fn new() -> Self {
        let (dir, ca) = (tempfile::tempdir().unwrap(), TestCa::new("root"));
        fs::write(roots_path(dir.path()), ca.pem()).unwrap();
        Self {
            dir,
            ca,
            clock: FakeClock::new(start()),
        }
    }

    fn write(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        write(self.dir.path(), &self.ca, uris, change);
    }

    fn files(&self) -> Files {
        Files::new(self.dir.path(), self.clock.clone())
    }

    async fn error(&self) -> String {
        let error = self
            .files()
            .issue(&id("default", "client"))
            .await
            .unwrap_err()
            .to_string();
        error.replace(&*self.dir.path().to_string_lossy(), "DIR")
    }
}

fn write(dir: &Path, ca: &TestCa, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) {
    let (cert, key) = ca.leaf_pem(uris, start(), change);
    let (cert_path, key_path) = leaf_paths(dir, &id("default", "client"));
    fs::create_dir_all(cert_path.parent().unwrap()).unwrap();
    fs::write(key_path, key.serialize_pem()).unwrap();
    fs::write(cert_path, cert.pem()).unwrap();
}

#[tokio::test]
async fn bad_files_are_named_with_what_is_wrong() {
    let f = Fixture::new();
    let cert = "DIR/default/client/cert.pem";
    let (cert_path, key_path) = leaf_paths(f.dir.path(), &id("default", "client"));
    assert!(
        f.error()
            .await
            .starts_with(&format!("read {cert}: No such file")),
        "{}",
        f.error().await
    );

    f.write(&[CLIENT], |params| {
        set_validity(params, start() - 2 * HOUR, start() - HOUR)
    });
    assert_eq!(f.error().await, format!("{cert}: is past its time"));
    f.write(&[CLIENT], |params| {
        set_validity(params, start() + HOUR, start() + 2 * HOUR)
    });
    assert_eq!(
        f.error().await,
        format!("{cert}: is not valid yet; is the clock right?")
    );
    f.write(&[CLIENT], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
    });
    assert_eq!(
        f.error().await,
        format!("{cert}: must be for TLS servers and for TLS clients (extended key usage)")
    );
    f.write(&[], |_| {});
    assert_eq!(
        f.error().await,
        format!("{cert}: names no URI, but must name exactly {CLIENT} as its one URI")
    );
    let other = "spiffe://cluster.local/ns/default/sa/other";
    f.write(&[other], |_| {});
    assert_eq!(
        f.error().await,
        format!("{cert}: names {other}, but must name exactly {CLIENT} as its one URI")
    );
    let foreign = "spiffe://example.org/ns/default/sa/client";
    f.write(&[foreign], |_| {});
    assert!(f.error().await.contains(foreign));
    write(f.dir.path(), &TestCa::new("another"), &[CLIENT], |_| {});
    assert_eq!(
        f.error().await,
        format!("{cert}: is not signed by any certificate in roots.pem")
    );

    f.write(&[CLIENT], |_| {});
    let good = fs::read(&cert_path).unwrap();
    f.files().issue(&id("default", "client")).await.unwrap();
    f.write(&[CLIENT], |_| {});
    fs::write(&cert_path, &good).unwrap();
    let key = "DIR/default/client/key.pem";
    assert_eq!(
        f.error().await,
        format!("{key}: the private key does not belong to {cert}")
    );
    fs::write(&key_path, &good).unwrap();
    assert_eq!(f.error().await, format!("{key}: holds no private key"));
    fs::write(&cert_path, "rubbish").unwrap();
    assert_eq!(f.error().await, format!("{cert}: holds no certificate"));
    f.write(&[CLIENT], |_| {});
    fs::write(
        &cert_path,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert!(
        f.error()
            .await
            .starts_with(&format!("{cert}: is not a certificate: ")),
        "{}",
        f.error().await
    );
}

#[tokio::test]
async fn a_leaf_is_no_root() {
    let f = Fixture::new();
    let (leaf, _) = f.ca.leaf_pem(&[CLIENT], start(), |_| {});
    fs::write(roots_path(f.dir.path()), leaf.pem()).unwrap();
    let error = f.files().roots().unwrap_err().to_string();
    assert!(error.contains("is not a certificate authority"), "{error}");
}

#[tokio::test]
async fn a_replaced_certificate_is_taken_and_a_bad_one_is_not() {
    let f = Fixture::new();
    f.write(&[CLIENT], |_| {});
    let store = IdentityStore::new(Arc::new(f.files()), f.clock.clone()).unwrap();
    let client = id("default", "client");
    let first = store.prepare(&client).await.unwrap();
    // Half of its life is past, but there is nothing newer.
    f.clock.advance(HOUR / 2);
    store.round().await;
    assert_eq!(store.stats().renewals, 0);

    f.write(&["spiffe://cluster.local/ns/default/sa/other"], |_| {});
    store.round().await;
    assert_eq!(
        (
            store.get(&client).unwrap().serial.clone(),
            store.stats().failures
        ),
        (first.serial.clone(), 1)
    );

    f.write(&[CLIENT], |_| {});
    store.round().await;
    assert_ne!(store.get(&client).unwrap().serial, first.serial);
}

#[tokio::test]
async fn bad_roots_leave_the_old_ones() {
    let f = Fixture::new();
    f.write(&[CLIENT], |_| {});
    let store = IdentityStore::new(Arc::new(f.files()), f.clock.clone()).unwrap();
    let before = store.roots().fingerprint;
    fs::write(roots_path(f.dir.path()), "rubbish").unwrap();
    store.round().await;
    assert_eq!(
        (store.roots().fingerprint, store.stats().failures),
        (before, 1)
    );
    let both = format!("{}{}", f.ca.pem(), TestCa::new("next").pem());
    fs::write(roots_path(f.dir.path()), both).unwrap();
    store.round().await;
    assert_eq!(store.roots().certs.len(), 2);
}

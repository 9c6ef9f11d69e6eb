use super::*;
use crate::identity::{
    SystemClock,
    clock::fake::FakeClock,
    files::Files,
    testing::{HOUR, id, start},
};

fn ca(dir: &Path) -> (DevCa, Arc<FakeClock>) {
    DevCa::init(dir, "cluster.local", start()).unwrap();
    let clock = FakeClock::new(start());
    (
        DevCa::open(dir, "cluster.local", HOUR, clock.clone()).unwrap(),
        clock,
    )
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_key_is_private_and_nothing_is_overwritten() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ca");
    ca(&dir);
    assert_eq!(
        (mode(&dir), mode(&key_path(&dir)), mode(&roots_path(&dir))),
        (0o700, 0o600, 0o644)
    );
    let before = fs::read(key_path(&dir)).unwrap();
    assert!(matches!(
        DevCa::init(&dir, "cluster.local", start()),
        Err(IdentityError::Exists(_))
    ));
    fs::remove_file(roots_path(&dir)).unwrap();
    assert!(matches!(
        DevCa::init(&dir, "cluster.local", start()),
        Err(IdentityError::Exists(_))
    ));
    assert_eq!(fs::read(key_path(&dir)).unwrap(), before);
}

#[tokio::test]
async fn leaves_are_backdated_and_end_after_their_time() {
    let temporary = tempfile::tempdir().unwrap();
    let (ca, clock) = ca(temporary.path());
    let leaf = ca.issue(&id("default", "client")).await.unwrap();
    assert_eq!(
        (leaf.not_before, leaf.not_after),
        (start() - BACKDATE, start() + HOUR)
    );
    clock.advance(HOUR);
    let next = ca.issue(&id("default", "client")).await.unwrap();
    assert_ne!(next.serial, leaf.serial);
    assert!(next.is_valid_at(start() + HOUR));
}

#[tokio::test]
async fn it_signs_for_its_own_trust_domain_only() {
    let temporary = tempfile::tempdir().unwrap();
    let (ca, clock) = ca(temporary.path());
    let foreign = Identity::new("example.org", "default", "client").unwrap();
    let error = ca.issue(&foreign).await.unwrap_err().to_string();
    assert!(
        error.contains("is not in the trust domain cluster.local"),
        "{error}"
    );
    let error = DevCa::open(temporary.path(), "example.org", HOUR, clock)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.ends_with(
            "is the root of spiffe://cluster.local, but the trust domain is example.org"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_expired_root_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let (ca, clock) = ca(temporary.path());
    clock.advance(ROOT_LIFE + HOUR);
    let error = ca
        .issue(&id("default", "client"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("roots.pem") && error.contains("the root is past its time"),
        "{error}"
    );
}

#[test]
fn a_key_that_others_can_read_or_that_is_not_the_roots_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ca");
    ca(&dir);
    let open = || {
        DevCa::open(&dir, "cluster.local", HOUR, Arc::new(SystemClock))
            .err()
            .unwrap()
            .to_string()
    };
    let chmod =
        |mode| fs::set_permissions(key_path(&dir), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o640);
    assert!(
        open().contains("mode 640 lets others read the root key"),
        "{}",
        open()
    );
    chmod(0o600);

    let other = temporary.path().join("other");
    ca(&other);
    fs::copy(key_path(&other), key_path(&dir)).unwrap();
    assert!(
        open().contains("is not the key of the first certificate in"),
        "{}",
        open()
    );
    fs::write(key_path(&dir), "rubbish").unwrap();
    assert!(open().contains("is not a private key"), "{}", open());
    fs::remove_file(key_path(&dir)).unwrap();
    assert!(
        open().contains("`redirect ca init` makes an authority"),
        "{}",
        open()
    );
}

#[tokio::test]
async fn what_it_writes_the_files_source_reads() {
    let temporary = tempfile::tempdir().unwrap();
    let (ca, clock) = ca(&temporary.path().join("ca"));
    let out = temporary.path().join("out");
    let client = id("default", "client");
    ca.write_leaf(&client, &out).unwrap();
    let files = Files::new(&out, clock);
    let first = files.issue(&client).await.unwrap();
    let (_, key) = leaf_paths(&out, &client);
    assert_eq!(mode(&key), 0o600);
    assert_eq!(
        files.roots().unwrap().fingerprint,
        ca.roots().unwrap().fingerprint
    );

    let revision = files.revision(&client);
    ca.write_leaf(&client, &out).unwrap();
    assert_ne!(files.revision(&client), revision);
    assert_ne!(files.issue(&client).await.unwrap().serial, first.serial);
}

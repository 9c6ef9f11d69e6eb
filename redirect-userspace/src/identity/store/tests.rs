use super::*;
use crate::identity::testing::{FakeSource, HOUR, TestCa, id};

fn store() -> (Arc<FakeSource>, Arc<IdentityStore>) {
    let source = FakeSource::new(TestCa::new("root"));
    let store = IdentityStore::new(source.clone(), source.clock.clone()).unwrap();
    (source, store)
}

#[tokio::test]
async fn a_certificate_is_issued_once_and_renewed_at_half_of_its_life() {
    let (source, store) = store();
    let client = id("default", "client");
    assert!(matches!(
        store.get(&client),
        Err(IdentityError::NotPrepared(_))
    ));
    let first = store.prepare(&client).await.unwrap();
    store.prepare(&client).await.unwrap();
    assert_eq!(source.issued.load(Ordering::Relaxed), 1);

    source.clock.advance(HOUR / 2 - Duration::from_secs(1));
    store.round().await;
    assert_eq!(store.get(&client).unwrap().serial, first.serial);

    source.clock.advance(Duration::from_secs(1));
    store.round().await;
    assert_ne!(store.get(&client).unwrap().serial, first.serial);
    assert_eq!(
        store.stats(),
        IdentityStats {
            renewals: 1,
            failures: 0
        }
    );
}

#[tokio::test]
async fn a_failing_source_leaves_the_old_certificate_until_it_ends() {
    let (source, store) = store();
    let client = id("default", "client");
    let first = store.prepare(&client).await.unwrap();
    source.failing.store(true, Ordering::Relaxed);

    source.clock.advance(HOUR / 2);
    store.round().await;
    assert_eq!(store.get(&client).unwrap().serial, first.serial);
    assert_eq!(store.stats().failures, 1);
    // The next try waits, though the certificate is due.
    store.round().await;
    assert_eq!(store.stats().failures, 1);

    source.clock.advance(HOUR / 2);
    assert!(matches!(store.get(&client), Err(IdentityError::Expired(_))));
}

#[tokio::test]
async fn after_a_failure_it_is_tried_again() {
    let (source, store) = store();
    let client = id("default", "client");
    source.failing.store(true, Ordering::Relaxed);
    store.prepare(&client).await.unwrap_err();
    source.failing.store(false, Ordering::Relaxed);
    // The delay is a fraction of a second of real time.
    let renewing = tokio::spawn(store.clone().run());
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.get(&client).is_err() {
        assert!(Instant::now() < deadline, "not tried again");
        tokio::task::yield_now().await;
    }
    renewing.abort();
}

#[tokio::test]
async fn a_clock_that_jumps_back_gets_a_certificate_that_is_valid_there() {
    let (source, store) = store();
    let client = id("default", "client");
    let first = store.prepare(&client).await.unwrap();
    let then = source.clock.now() - Duration::from_secs(24 * 3600);
    source.clock.set(then);
    store.round().await;
    let second = store.get(&client).unwrap();
    assert_ne!(second.serial, first.serial);
    assert!(second.is_valid_at(then));
}

#[tokio::test]
async fn a_clock_that_jumps_past_the_end_gets_a_new_certificate() {
    let (source, store) = store();
    let client = id("default", "client");
    store.prepare(&client).await.unwrap();
    source.clock.advance(HOUR * 1000);
    assert!(matches!(store.get(&client), Err(IdentityError::Expired(_))));
    store.round().await;
    assert!(store.get(&client).unwrap().is_valid_at(source.clock.now()));
}

#[tokio::test]
async fn the_next_look_is_soon_for_a_short_life_and_never_later_than_a_second() {
    let (source, store) = store();
    store.prepare(&id("default", "long")).await.unwrap();
    assert_eq!(store.round().await, LOOK);
    *source.ttl.lock().unwrap() = Duration::from_secs(1);
    store.prepare(&id("default", "short")).await.unwrap();
    assert!(store.round().await <= Duration::from_millis(500));
}

#[tokio::test]
async fn new_roots_are_taken_and_certificates_issued_anew() {
    let (source, store) = store();
    let client = id("default", "client");
    let first = store.prepare(&client).await.unwrap();
    let mut watch = store.watch_roots();
    let old = store.roots();
    source.replace_ca(TestCa::new("another root"));
    store.round().await;
    assert_ne!(store.roots().fingerprint, old.fingerprint);
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), store.roots().fingerprint);
    assert_ne!(store.get(&client).unwrap().serial, first.serial);
}

#[tokio::test]
async fn what_is_forgotten_is_not_renewed() {
    let (source, store) = store();
    let client = id("default", "client");
    store.prepare(&client).await.unwrap();
    store.forget(&client);
    source.clock.advance(HOUR);
    store.round().await;
    assert!(matches!(
        store.get(&client),
        Err(IdentityError::NotPrepared(_))
    ));
    assert_eq!(source.issued.load(Ordering::Relaxed), 1);
}

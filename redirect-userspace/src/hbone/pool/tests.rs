//! The pool's decisions, against h2 servers in memory.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Response};

use super::*;
use crate::{config::HboneConfig, hbone::client::Validity};

const ROOTS: [u8; 32] = [1; 32];
const OTHER_ROOTS: [u8; 32] = [2; 32];

/// What the next server does with its first request.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Accepts,
    GoesAway,
}

/// Connects to servers in memory that answer 200 and keep the streams open.
#[derive(Clone)]
struct Fake {
    config: HboneConfig,
    made: Rc<Cell<usize>>,
    servers: Rc<RefCell<Vec<Server>>>,
    fails: bool,
    trust: Rc<Cell<Trust>>,
    not_after: SystemTime,
}

impl Fake {
    fn new(max_streams: u32) -> Self {
        let config = HboneConfig {
            stream_window: 65_536,
            max_streams_per_tunnel: max_streams,
            max_tunnels_per_peer: 2,
            max_inbound_tunnels: 1,
            max_handshakes_per_source: 1,
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(3600),
            ping_timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(3600),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        Self {
            config,
            made: Rc::default(),
            servers: Rc::default(),
            fails: false,
            trust: Rc::new(Cell::new(Trust { now, roots: ROOTS })),
            not_after: now + Duration::from_secs(10),
        }
    }
}

impl Connector for Fake {
    fn connect(&self, key: &PoolKey) -> impl Future<Output = Result<Tunnel, HboneError>> + 'static {
        self.made.set(self.made.get() + 1);
        let (this, peer) = (self.clone(), key.peer);
        let server = self.servers.borrow_mut().pop().unwrap_or(Server::Accepts);
        let (ours, theirs) = tokio::io::duplex(65_536);
        tokio::task::spawn_local(serve(theirs, server));
        async move {
            if this.fails {
                return Err(HboneError::Timeout {
                    peer,
                    limit: this.config.handshake_timeout,
                });
            }
            let validity = Validity {
                not_after: this.not_after,
                roots: this.trust.get().roots,
            };
            Tunnel::open(ours, peer, &this.config, validity, ()).await
        }
    }

    fn trust(&self) -> Trust {
        self.trust.get()
    }
}

async fn serve(io: tokio::io::DuplexStream, server: Server) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if server == Server::GoesAway {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            connection.graceful_shutdown();
            continue;
        }
        held.push((
            request,
            respond.send_response(Response::new(()), false).unwrap(),
        ));
    }
}

fn key() -> PoolKey {
    PoolKey {
        pod: PodUid::new("default/a"),
        source_ip: "10.0.0.1".parse().unwrap(),
        source: Identity::new("cluster.local", "default", "a").unwrap(),
        accepted: Arc::new(["spiffe://cluster.local/ns/default/sa/b".into()]),
        peer: "10.0.0.2:15008".parse().unwrap(),
    }
}

fn headers() -> ConnectHeaders {
    let empty = HeaderValue::from_static("x");
    ConnectHeaders {
        baggage: empty.clone(),
        forwarded: empty.clone(),
        traceparent: empty,
    }
}

async fn open(pool: &Pool<Fake>, key: &PoolKey) -> Result<(Stream, Slot), HboneError> {
    pool.open(key, "10.0.0.2:80".parse().unwrap(), headers)
        .await
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    runtime.block_on(test);
}

#[test]
fn streams_share_a_tunnel_until_it_is_full_and_tunnels_have_a_limit() {
    run(async {
        let fake = Fake::new(2);
        let pool = Pool::new(fake.clone(), 2);
        let key = key();
        let together = tokio::join!(
            open(&pool, &key),
            open(&pool, &key),
            open(&pool, &key),
            open(&pool, &key)
        );
        assert!(
            together.0.is_ok() && together.1.is_ok() && together.2.is_ok() && together.3.is_ok()
        );
        assert_eq!(
            fake.made.get(),
            2,
            "callers at the same time wait for one tunnel"
        );
        let error = open(&pool, &key).await.err().unwrap();
        assert_eq!(error.reason(), "tunnel_limit");
        drop(together.0);
        assert!(
            open(&pool, &key).await.is_ok(),
            "an ended stream frees its place"
        );
        assert_eq!(fake.made.get(), 2);
    });
}

#[test]
fn identities_addresses_and_pods_never_share() {
    run(async {
        let fake = Fake::new(10);
        let pool = Pool::new(fake.clone(), 2);
        let mut held = vec![open(&pool, &key()).await.unwrap()];
        let others: [fn(&mut PoolKey); 5] = [
            |key| key.pod = PodUid::new("default/other"),
            |key| key.source_ip = "10.0.0.9".parse().unwrap(),
            |key| key.source = Identity::new("cluster.local", "default", "other").unwrap(),
            |key| key.accepted = Arc::new(["spiffe://cluster.local/ns/default/sa/other".into()]),
            |key| key.peer = "10.0.0.3:15008".parse().unwrap(),
        ];
        for (index, change) in others.iter().enumerate() {
            let mut key = key();
            change(&mut key);
            held.push(open(&pool, &key).await.unwrap());
            assert_eq!(fake.made.get(), index + 2);
        }
    });
}

#[test]
fn an_expired_certificate_or_another_root_takes_no_new_streams() {
    run(async {
        let fake = Fake::new(10);
        let pool = Pool::new(fake.clone(), 2);
        let (mut first, _slot) = open(&pool, &key()).await.unwrap();
        fake.trust.set(Trust {
            now: fake.not_after,
            roots: ROOTS,
        });
        // Made under the same clock, the next tunnel is as expired.
        assert_eq!(
            open(&pool, &key()).await.err().unwrap().reason(),
            "peer_distrusted"
        );
        assert_eq!(fake.made.get(), 2);
        first
            .send
            .send_data(Bytes::from_static(b"goes on"), false)
            .expect("an open stream goes on");

        let fake = Fake::new(10);
        let pool = Pool::new(fake.clone(), 2);
        let _held = open(&pool, &key()).await.unwrap();
        fake.trust.set(Trust {
            now: fake.trust.get().now,
            roots: OTHER_ROOTS,
        });
        let _other = open(&pool, &key()).await.unwrap();
        assert_eq!(fake.made.get(), 2);
    });
}

#[test]
fn a_request_that_the_peer_did_not_begin_goes_to_another_tunnel_once() {
    run(async {
        let fake = Fake::new(10);
        fake.servers.borrow_mut().push(Server::GoesAway);
        let pool = Pool::new(fake.clone(), 2);
        assert!(open(&pool, &key()).await.is_ok());
        assert_eq!(fake.made.get(), 2);

        let fake = Fake::new(10);
        fake.servers
            .borrow_mut()
            .extend([Server::GoesAway, Server::GoesAway]);
        let pool = Pool::new(fake.clone(), 2);
        assert_eq!(
            open(&pool, &key()).await.err().unwrap().reason(),
            "peer_http2"
        );
    });
}

#[test]
fn those_who_wait_share_a_failure_and_the_next_tries_again() {
    run(async {
        let fake = Fake {
            fails: true,
            ..Fake::new(10)
        };
        let pool = Pool::new(fake.clone(), 2);
        let key = key();
        let both = tokio::join!(open(&pool, &key), open(&pool, &key));
        assert!(both.0.is_err() && both.1.is_err());
        assert_eq!(fake.made.get(), 1);
        assert!(open(&pool, &key).await.is_err());
        assert_eq!(fake.made.get(), 2);
    });
}

#[test]
fn idle_tunnels_are_swept_and_busy_ones_are_not() {
    run(async {
        let fake = Fake::new(10);
        let pool = Pool::new(fake.clone(), 2);
        let held = open(&pool, &key()).await.unwrap();
        pool.sweep(Duration::ZERO);
        assert_eq!(pool.len(), 1);
        drop(held);
        pool.sweep(Duration::ZERO);
        assert!(pool.is_empty());
    });
}

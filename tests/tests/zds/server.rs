//! The agent's side, with proxies that are played by the test.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt, unix::fs::PermissionsExt},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use redirect::{
    node::zds::{Workload, server::Server},
    pod::PodUid,
    sys::netns::Netns,
};
use redirect_tests::{
    Testbed, eventually,
    process::PATIENCE,
    zds::{ACK, HELLO, SNAPSHOT_SENT, ZdsSocket, add, del, keep, refusal},
};

use crate::background::Background;

/// A server that runs on a thread of its own.
struct Stage {
    server: Server,
    path: PathBuf,
    background: Background,
    bed: Testbed,
}

impl Stage {
    fn new() -> Self {
        let bed = Testbed::new();
        let path = bed.directory().join("zds/ztunnel.sock");
        let background = Background::start();
        let server = {
            let _inside = background.handle().enter();
            Server::start(&path).expect("listen")
        };
        Self {
            server,
            path,
            background,
            bed,
        }
    }

    /// Adds the pod on a thread; its result comes by the receiver.
    fn add(&self, uid: &str, netns: &Netns) -> mpsc::Receiver<Result<(), String>> {
        let (sender, receiver) = mpsc::channel();
        let (server, uid, netns) = (self.server.clone(), PodUid::new(uid), netns.clone());
        self.background.handle().spawn(async move {
            let added = server.add(&uid, workload(), netns).await;
            _ = sender.send(added.map_err(|error| error.to_string()));
        });
        receiver
    }

    fn remove(&self, uid: &str) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel();
        let (server, uid) = (self.server.clone(), PodUid::new(uid));
        self.background.handle().spawn(async move {
            server.remove(&uid).await;
            _ = sender.send(());
        });
        receiver
    }

    /// A proxy that has said hello.
    fn proxy(&self) -> ZdsSocket {
        let proxy = ZdsSocket::connect(&self.path).expect("connect");
        proxy.send(HELLO, &[]).expect("say hello");
        proxy
    }

    fn carried(&self, uid: &str) -> Result<(), String> {
        let carried = self.server.carried(&PodUid::new(uid));
        carried.map_err(|error| error.to_string())
    }
}

fn workload() -> Workload {
    Workload {
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
    }
}

fn added(uid: &str) -> Vec<u8> {
    add(uid, "web", "shop", "sa")
}

/// The next packet has to be this one, with the namespace as its only descriptor.
#[track_caller]
fn expect_add(proxy: &ZdsSocket, uid: &str, netns: &Netns) {
    let (bytes, fds) = proxy.receive().expect("a packet");
    assert_eq!(bytes, added(uid));
    let [fd]: [OwnedFd; 1] = fds.try_into().expect("one descriptor");
    let inode = fs::File::from(fd).metadata().expect("its inode").ino();
    assert_eq!(inode, netns.inode());
}

fn said<T>(receiver: &mpsc::Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("an answer")
}

#[test]
fn a_proxy_is_told_of_all_pods_then_that_these_were_all_then_of_changes() {
    let stage = Stage::new();
    let node = stage.bed.node("a");
    let (one, two) = (node.pod("one"), node.pod("two"));
    let mode = fs::metadata(&stage.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let nobody = said(&stage.add("1", one.netns())).unwrap_err();
    assert!(nobody.contains("no proxy is connected"), "{nobody}");
    let proxy = stage.proxy();
    expect_add(&proxy, "1", one.netns());
    assert!(stage.carried("1").is_err());
    // One request at a time: the next waits for the answer.
    let second = stage.add("2", two.netns());
    assert!(proxy.is_quiet(Duration::from_millis(100)));
    proxy.send(ACK, &[]).unwrap();
    expect_add(&proxy, "2", two.netns());
    proxy.send(&refusal("no certificate"), &[]).unwrap();
    let refused = said(&second).unwrap_err();
    assert!(refused.contains("no certificate"), "{refused}");
    assert_eq!(stage.carried("1"), Ok(()));
    assert!(stage.carried("2").unwrap_err().contains("no certificate"));
    // Until all is known, it keeps what it has.
    assert!(proxy.is_quiet(Duration::from_millis(100)));
    let kept = ["1", "3"].map(PodUid::new).to_vec();
    stage.server.complete(|| kept);
    assert_eq!(proxy.packet(), keep("3"));
    proxy.send(ACK, &[]).unwrap();
    assert_eq!(proxy.packet(), SNAPSHOT_SENT);
    proxy.send(ACK, &[]).unwrap();
    // What is carried already is not told again; what was refused is.
    assert_eq!(said(&stage.add("1", one.netns())), Ok(()));
    let second = stage.add("2", two.netns());
    expect_add(&proxy, "2", two.netns());
    proxy.send(ACK, &[]).unwrap();
    assert_eq!(said(&second), Ok(()));
    let gone = stage.remove("1");
    assert_eq!(proxy.packet(), del("1"));
    proxy.send(ACK, &[]).unwrap();
    said(&gone);
}

#[test]
fn what_is_new_goes_to_the_newest_proxy_and_what_ends_to_all() {
    let stage = Stage::new();
    let node = stage.bed.node("a");
    let (one, two) = (node.pod("one"), node.pod("two"));
    stage.server.complete(Vec::new);
    let old = stage.proxy();
    assert_eq!(old.packet(), SNAPSHOT_SENT);
    old.send(ACK, &[]).unwrap();
    let first = stage.add("1", one.netns());
    expect_add(&old, "1", one.netns());
    old.send(ACK, &[]).unwrap();
    assert_eq!(said(&first), Ok(()));

    let new = stage.proxy();
    expect_add(&new, "1", one.netns());
    new.send(ACK, &[]).unwrap();
    assert_eq!(new.packet(), SNAPSHOT_SENT);
    new.send(ACK, &[]).unwrap();
    let second = stage.add("2", two.netns());
    expect_add(&new, "2", two.netns());
    new.send(ACK, &[]).unwrap();
    assert_eq!(said(&second), Ok(()));
    assert!(old.is_quiet(Duration::from_millis(100)));
    let gone = stage.remove("1");
    for proxy in [&old, &new] {
        assert_eq!(proxy.packet(), del("1"));
        proxy.send(ACK, &[]).unwrap();
    }
    said(&gone);

    // The new one fails: the old one is to carry what only the other did.
    drop(new);
    expect_add(&old, "2", two.netns());
    assert!(stage.carried("2").is_err());
    old.send(ACK, &[]).unwrap();
    eventually("it is carried", PATIENCE, || stage.carried("2"));
    drop(old);
    eventually("nobody carries it", PATIENCE, || match stage.carried("2") {
        Err(reason) if reason.contains("no proxy") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_proxy_that_does_not_keep_to_the_protocol_is_cut_off() {
    let stage = Stage::new();
    let pod = stage.bed.node("a").pod("one");
    for (what, hello) in [
        ("another version", &b"\x08\x02"[..]),
        ("no hello", ACK),
        ("too long", &[b'x'; 2000]),
    ] {
        let proxy = ZdsSocket::connect(&stage.path).unwrap();
        proxy.send(hello, &[]).unwrap();
        assert!(proxy.is_closed(), "{what}");
    }
    stage.server.complete(Vec::new);
    let proxy = stage.proxy();
    assert_eq!(proxy.packet(), SNAPSHOT_SENT);
    proxy.send(b"\xff\xff", &[]).unwrap();
    assert!(proxy.is_closed(), "an answer that is none");
    let proxy = stage.proxy();
    assert_eq!(proxy.packet(), SNAPSHOT_SENT);
    proxy.send(ACK, &[]).unwrap();
    proxy.send(ACK, &[]).unwrap();
    assert!(proxy.is_closed(), "an answer to nothing");

    // One that leaves while it is asked, and one that comes after it.
    let proxy = stage.proxy();
    assert_eq!(proxy.packet(), SNAPSHOT_SENT);
    proxy.send(ACK, &[]).unwrap();
    let first = stage.add("1", pod.netns());
    expect_add(&proxy, "1", pod.netns());
    drop(proxy);
    assert!(said(&first).unwrap_err().contains("left"));
    let proxy = stage.proxy();
    expect_add(&proxy, "1", pod.netns());
}

#[test]
fn a_proxy_that_says_nothing_holds_nobody_up_for_long() {
    let stage = Stage::new();
    let pod = stage.bed.node("a").pod("one");
    let mute = ZdsSocket::connect(&stage.path).unwrap();
    let slow = stage.proxy();
    let good = thread::spawn({
        let path = stage.path.clone();
        move || {
            // Its own time to answer runs beside that of the mute one.
            assert!(mute.is_closed());
            ZdsSocket::connect(&path).is_ok()
        }
    });
    eventually("it is connected", PATIENCE, || match stage.carried("1") {
        Err(reason) if reason.contains("not been told") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let first = stage.add("1", pod.netns());
    expect_add(&slow, "1", pod.netns());
    assert!(said(&first).unwrap_err().contains("left"));
    assert!(slow.is_closed());
    assert!(good.join().expect("no panic"));
}

#[test]
fn the_socket_takes_the_place_of_an_older_one_and_of_nothing_else() {
    let stage = Stage::new();
    let _inside = stage.background.handle().enter();
    let again = Server::start(&stage.path).expect("in place of the first");
    again.complete(Vec::new);
    assert_eq!(stage.proxy().packet(), SNAPSHOT_SENT);
    let file = stage.bed.directory().join("file");
    fs::write(&file, "precious").unwrap();
    let error = Server::start(&file).err().expect("an error").to_string();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

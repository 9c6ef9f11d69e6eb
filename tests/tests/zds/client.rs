//! The proxy's side, with an agent that is played by the test, and a task that only notes what it is told.

use std::{
    collections::BTreeSet,
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use redirect::{
    capture::Applied,
    node::{
        agent::{Agent, AgentError, Order},
        source::Source,
        zds::client::{Setting, run},
    },
    pod::{Pod, PodOptions, PodUid},
};
use redirect_tests::{
    Testbed,
    process::PATIENCE,
    zds::{HELLO, SNAPSHOT_SENT, ZdsListener, ZdsSocket, add, del, field, keep, netns_fd},
};

use crate::background::Background;

struct Stage {
    listener: ZdsListener,
    told: mpsc::Receiver<Told>,
    /// Whether pods cannot be carried.
    refuses: Arc<AtomicBool>,
    _background: Background,
    bed: Testbed,
}

#[derive(Debug)]
enum Told {
    Add(Box<Pod>),
    Remove(PodUid),
    Replace(Vec<Pod>),
}

impl Stage {
    fn new() -> Self {
        let bed = Testbed::new();
        let socket = bed.directory().join("ztunnel.sock");
        let listener = ZdsListener::bind(&socket);
        let background = Background::start();
        let (agent, mut orders) = Agent::new();
        let (sender, told) = mpsc::channel();
        let refuses = Arc::new(AtomicBool::new(false));
        let refusing = refuses.clone();
        background.handle().spawn(async move {
            while let Some(order) = orders.recv().await {
                let told = match order {
                    Order::Add(Source::Zds, pod, reply) => {
                        let uid = pod.uid.clone();
                        let reason = "no room".to_owned();
                        _ = reply.send(match refusing.load(Ordering::Relaxed) {
                            true => Err(AgentError::Pod { uid, reason }),
                            false => Ok(Applied::Attached),
                        });
                        Told::Add(pod)
                    }
                    Order::Remove(Source::Zds, uid, reply) => {
                        _ = reply.send(Ok(()));
                        Told::Remove(uid)
                    }
                    Order::Replace(Source::Zds, pods, reply) => {
                        _ = reply.send(());
                        Told::Replace(pods)
                    }
                    other => panic!("{other:?}"),
                };
                _ = sender.send(told);
            }
        });
        background.handle().spawn(run(
            agent,
            Setting {
                socket,
                trust_domain: "cluster.local".to_owned(),
                options: PodOptions::default(),
            },
        ));
        Self {
            listener,
            told,
            refuses,
            _background: background,
            bed,
        }
    }

    /// The proxy's next connection, after its hello.
    #[track_caller]
    fn accept(&self) -> ZdsSocket {
        let proxy = self.listener.accept();
        assert_eq!(proxy.packet(), HELLO);
        proxy
    }

    #[track_caller]
    fn told(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("an order")
    }

    #[track_caller]
    fn told_add(&self) -> Pod {
        match self.told() {
            Told::Add(pod) => *pod,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn told_replace(&self) -> BTreeSet<String> {
        match self.told() {
            Told::Replace(pods) => pods.iter().map(|pod| pod.uid.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn is_told_nothing(&self) -> bool {
        self.told.try_recv().is_err()
    }
}

fn named(uid: &str) -> Vec<u8> {
    add(uid, "web", "shop", "sa")
}

#[track_caller]
fn send_add(proxy: &ZdsSocket, uid: &str, pod: &redirect_tests::Pod) -> Result<(), String> {
    proxy.ask(&named(uid), &[netns_fd(pod.netns()).as_fd()])
}

fn inode(pod: &Pod) -> u64 {
    fs::metadata(&pod.netns).expect("its namespace").ino()
}

fn set(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(ToString::to_string).collect()
}

#[test]
fn a_pod_is_what_the_agent_says_of_it_and_what_its_namespace_does() {
    let stage = Stage::new();
    let pod = stage.bed.node("a").pod("one");
    let proxy = stage.accept();
    assert_eq!(send_add(&proxy, "1", &pod), Ok(()));
    let told = stage.told_add();
    assert_eq!(inode(&told), pod.netns().inode());
    assert_eq!(
        told.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/sa"
    );
    assert_eq!(
        (told.name.as_str(), told.namespace.as_str()),
        ("web", "shop")
    );
    let ips: BTreeSet<_> = told.ips.into_iter().collect();
    assert_eq!(ips, BTreeSet::from([pod.ipv4(), pod.ipv6()]));
    stage.refuses.store(true, Ordering::Relaxed);
    let refused = send_add(&proxy, "2", &pod).unwrap_err();
    assert!(refused.contains("no room"), "{refused}");
}

#[test]
fn what_cannot_be_is_answered_with_its_reason_and_changes_nothing() {
    let stage = Stage::new();
    let pod = stage.bed.node("a").pod("one");
    let proxy = stage.accept();
    let (netns, file) = (netns_fd(pod.netns()), fs::File::open("/dev/null").unwrap());
    let (netns, file) = (netns.as_fd(), file.as_fd());
    let whole = named("1");
    let no_info = field(1, &field(1, b"1"));
    let bad_name = add("1", "web", "shop", "a/b");
    let long = add(&"u".repeat(1500), "web", "shop", "sa");
    for (what, bytes, fds, reason) in [
        ("no descriptor", &whole[..], &[][..], "not 0"),
        ("two", &whole, &[netns, netns], "not 2"),
        ("very many", &whole, &[netns; 40], "one descriptor"),
        (
            "another kind of file",
            &whole,
            &[file],
            "no network namespace",
        ),
        ("cut", &whole[..10], &[netns], "no such message"),
        ("no protobuf", b"\xff\xff\xff", &[], "no such message"),
        ("too long", &long, &[netns], "longer than 1024 bytes"),
        (
            "no workload",
            &no_info,
            &[netns],
            "nothing of the pod's workload",
        ),
        (
            "a descriptor beside another",
            SNAPSHOT_SENT,
            &[netns],
            "a message that has none",
        ),
        ("no identity", &bad_name, &[netns], "service account"),
    ] {
        let answer = proxy.ask(bytes, fds).unwrap_err();
        assert!(answer.contains(reason), "{what}: {answer}");
        assert!(stage.is_told_nothing(), "{what}");
    }
    // The connection is as good as before.
    assert_eq!(proxy.ask(&whole, &[netns]), Ok(()));
    stage.told_add();
    assert_eq!(proxy.ask(SNAPSHOT_SENT, &[]), Ok(()));
    assert_eq!(stage.told_replace(), set(&["1"]));
    let twice = proxy.ask(SNAPSHOT_SENT, &[]).unwrap_err();
    assert!(twice.contains("twice"), "{twice}");
    let late = proxy.ask(&keep("1"), &[]).unwrap_err();
    assert!(late.contains("after the snapshot"), "{late}");
}

#[test]
fn what_a_later_snapshot_does_not_name_goes() {
    let stage = Stage::new();
    let node = stage.bed.node("a");
    let (one, two, three) = (node.pod("one"), node.pod("two"), node.pod("three"));
    let proxy = stage.accept();
    for (uid, pod) in [("1", &one), ("2", &two), ("3", &three)] {
        assert_eq!(send_add(&proxy, uid, pod), Ok(()));
        stage.told_add();
    }
    assert_eq!(proxy.ask(SNAPSHOT_SENT, &[]), Ok(()));
    assert_eq!(stage.told_replace(), set(&["1", "2", "3"]));

    drop(proxy);
    let proxy = stage.accept();
    // Disconnected, nothing goes; nor while the agent names its pods.
    assert!(stage.is_told_nothing());
    assert_eq!(proxy.ask(&keep("2"), &[]), Ok(()));
    assert_eq!(send_add(&proxy, "3", &three), Ok(()));
    stage.told_add();
    assert_eq!(proxy.ask(&del("3"), &[]), Ok(()));
    // One that it keeps and that we do not have is no mistake.
    assert_eq!(proxy.ask(&keep("4"), &[]), Ok(()));
    assert!(stage.is_told_nothing());
    assert_eq!(proxy.ask(SNAPSHOT_SENT, &[]), Ok(()));
    assert_eq!(stage.told_replace(), set(&["2"]));
    assert_eq!(proxy.ask(&del("2"), &[]), Ok(()));
    assert!(matches!(stage.told(), Told::Remove(uid) if uid.as_str() == "2"));
    assert_eq!(proxy.ask(&del("2"), &[]), Ok(()));
    assert!(stage.is_told_nothing());
}

#[test]
fn a_sandbox_that_was_made_anew_is_another_and_the_same_one_is_not() {
    let stage = Stage::new();
    let node = stage.bed.node("a");
    let (first, second) = (node.pod("first"), node.pod("second"));
    let proxy = stage.accept();
    assert_eq!(proxy.ask(SNAPSHOT_SENT, &[]), Ok(()));
    assert_eq!(stage.told_replace(), set(&[]));
    assert_eq!(send_add(&proxy, "1", &first), Ok(()));
    let told = stage.told_add();
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    for _ in 0..50 {
        assert_eq!(send_add(&proxy, "1", &first), Ok(()));
        assert_eq!(stage.told_add(), told);
    }
    // Other tests of this process open some, too.
    assert!(fds() < before + 40, "descriptors of one namespace pile up");
    assert_eq!(send_add(&proxy, "1", &second), Ok(()));
    let moved = stage.told_add();
    assert_ne!(moved.netns, told.netns);
    assert_eq!(inode(&moved), second.netns().inode());
}

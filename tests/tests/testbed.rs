//! The testbed itself, without a daemon: pods reach each other, processes are where they should be, nothing stays.

use std::{
    fs,
    time::{Duration, Instant},
};

use redirect_tests::{
    Testbed, Wall, cgroup,
    exchange::{greeted, greeter, refused},
    leftovers, namespace,
};

#[test]
fn pods_reach_each_other_within_and_across_nodes() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let (client, near, far) = (a.pod("client"), a.pod("near"), b.pod("far"));
    for server in [&near, &far] {
        let app = server.app(["serve", "--listen", "[::]:8080", "--mode", "greet"]);
        app.event("listening");
        for (from, to) in [
            (client.ipv4(), server.at(8080)),
            (client.ipv6(), server.at6(8080)),
        ] {
            let started = Instant::now();
            let app = client.app([
                "connect",
                &to.to_string(),
                "recv-line",
                "send:ping\\n",
                "recv-line",
            ]);
            let connected = app.event("connected");
            assert_eq!(connected.addr("peername"), to);
            assert_eq!(connected.addr("sockname").ip(), from);
            assert!(app.event("received").text().starts_with("hello "));
            assert_eq!(app.event("received").text(), "ping");
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "took {:?}",
                started.elapsed()
            );
        }
        assert_eq!(app.event("accepted").addr("peer").ip(), client.ipv4());
        assert_eq!(app.event("accepted").addr("peer").ip(), client.ipv6());
    }
}

#[test]
fn a_process_is_in_its_pods_cgroup_and_namespace() {
    let bed = Testbed::new();
    let pod = bed.node("a").pod("p");
    let app = pod.app(["serve", "--listen", "0.0.0.0:80"]);
    app.event("listening");
    assert_eq!(
        cgroup::pids(&pod.container("app")).expect("readable"),
        [app.pid().cast_signed()]
    );
    let link = fs::read_link(format!("/proc/{}/ns/net", app.pid())).expect("readable");
    assert_eq!(
        link.to_string_lossy(),
        format!("net:[{}]", pod.netns().inode())
    );
}

#[test]
fn a_failed_connect_is_an_event() {
    let bed = Testbed::new();
    let (client, server) = {
        let node = bed.node("a");
        (node.pod("client"), node.pod("server"))
    };
    let app = client.app(["connect", &server.at(9).to_string()]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
}

#[test]
fn nothing_stays_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let bed = Testbed::new();
        let node = bed.node("a");
        let pod = node.pod("p");
        node.daemon().mount_bpffs();
        let app = pod.app(["serve", "--listen", "0.0.0.0:80"]);
        app.event("listening");
        sender
            .send((bed.id().clone(), app.pid()))
            .expect("the test waits");
        panic!("on purpose");
    });
    let (id, pid) = receiver.recv().expect("sent before the panic");
    thread.join().expect_err("it panicked");
    assert!(
        !fs::exists(format!("/proc/{pid}")).expect("proc"),
        "process {pid} is still there"
    );
    assert!(!leftovers::cgroup_root(&id).exists());
    assert!(!leftovers::directory(&id).exists());
    assert!(
        !namespace::names()
            .iter()
            .any(|name| name.starts_with(id.as_str()))
    );
    assert!(
        !redirect::sys::mountinfo::read()
            .expect("proc")
            .contains(&format!("{id}/"))
    );
}

#[test]
fn the_wall_lets_only_hbone_through_and_counts_the_rest() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let wall = Wall::around(&a);
    let (client, server, near) = (a.pod("client"), b.pod("server"), a.pod("near"));
    let hbone = greeter(&server, 15008);
    let (_plain, _near) = (greeter(&server, 8080), greeter(&near, 8080));
    for dst in [
        server.at(15008),
        server.at6(15008),
        near.at(8080),
        near.at6(8080),
    ] {
        greeted(&client, dst, &[]);
    }
    assert_eq!(hbone.events("accepted").len(), 2);
    assert_eq!(wall.leaked(), 0);
    for dst in [server.at(8080), server.at6(8080)] {
        refused(&client, dst);
    }
    assert!(wall.leaked() >= 2);
}

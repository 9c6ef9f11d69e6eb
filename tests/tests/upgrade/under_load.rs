//! New connections all the while, and old ones that stay.

use std::{fs, process::Command, thread, time::Duration};

use redirect_tests::{
    Process,
    exchange::{Held, greeted, nginx},
    way::{Backend, Mode},
};

use super::stage::{ECHO, GREETER, Load, mesh, take_over, wait_settled};

#[track_caller]
fn nothing_is_refused(backend: Backend, mode: Mode) {
    let (mut mesh, _servers) = mesh(backend, mode, "30s");
    let (v4, v6) = (mesh.server.at(ECHO), mesh.server.at6(ECHO));
    let mut held: Vec<_> = [mesh.server.at(GREETER), mesh.server.at6(GREETER)]
        .map(|dst| Held::open(&mesh.client, dst))
        .into();
    let load = Load::start(&mesh.client, &[v4, v6]);
    let mut drained = Vec::new();
    for generation in [2, 3] {
        let mut old_a = take_over(&mut mesh.daemon_a, generation);
        let mut old_b = take_over(&mut mesh.daemon_b, generation);
        for (number, connection) in held.iter_mut().enumerate() {
            let echoed = connection.echo(&format!("generation {generation}"));
            echoed.unwrap_or_else(|error| panic!("connection {number} is cut: {error}"));
        }
        assert!(old_a.try_wait().is_none(), "it ended with connections open");
        // What a daemon carries ends with it at the latest: the third takes over when the first is gone.
        held.drain(..).for_each(Held::close);
        wait_settled(&mut old_a, &mesh.daemon_a);
        wait_settled(&mut old_b, &mesh.daemon_b);
        drained.extend([old_a, old_b]);
        held = vec![Held::open(&mesh.client, mesh.server.at(GREETER))];
    }
    let (ok, errors) = load.end();
    assert_eq!(errors, "{}", "beside {ok} connections without an error");
    greeted(&mesh.client, mesh.server.at(GREETER), &[]);
    greeted(&mesh.client, mesh.server.at6(GREETER), &[]);
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn nothing_is_refused_ebpf_shared() {
    nothing_is_refused(Backend::Ebpf, Mode::Shared);
}

#[test]
fn nothing_is_refused_ebpf_dedicated() {
    nothing_is_refused(Backend::Ebpf, Mode::Dedicated);
}

#[test]
fn nothing_is_refused_ebpf_node() {
    nothing_is_refused(Backend::Ebpf, Mode::Node);
}

#[test]
fn nothing_is_refused_nftables_shared() {
    nothing_is_refused(Backend::Nftables, Mode::Shared);
}

#[test]
fn nothing_is_refused_nftables_dedicated() {
    nothing_is_refused(Backend::Nftables, Mode::Dedicated);
}

#[test]
fn nothing_is_refused_nftables_node() {
    nothing_is_refused(Backend::Nftables, Mode::Node);
}

#[test]
fn nothing_is_refused_iptables_nft_shared() {
    nothing_is_refused(Backend::IptablesNft, Mode::Shared);
}

#[test]
fn nothing_is_refused_iptables_legacy_shared() {
    nothing_is_refused(Backend::IptablesLegacy, Mode::Shared);
}

/// Requests of a real client to a real server, on connections that are kept and on new ones.
#[test]
fn wrk_has_no_error() {
    let (mut mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "30s");
    let root = mesh.bed.directory().join("www");
    fs::create_dir(&root).expect("make a directory");
    fs::write(root.join("index.html"), "hello\n").expect("write a page");
    let _nginx = nginx(&mesh.server, 80, &root);
    let url = format!("http://{}/", mesh.server.ipv4());
    let wrk = |more: &[&str]| -> Command {
        let mut command = mesh.client.command("wrk");
        command.args(["-t1", "-c8", "-d8s", "--timeout", "5s"]);
        command.args(more).arg(&url);
        command
    };
    let kept = Process::spawn("wrk", wrk(&[]));
    let new = Process::spawn("wrk that closes", wrk(&["-H", "Connection: close"]));
    // It says nothing while it runs.
    thread::sleep(Duration::from_secs(1));
    let mut old_a = take_over(&mut mesh.daemon_a, 2);
    let mut old_b = take_over(&mut mesh.daemon_b, 2);
    for mut wrk in [kept, new] {
        let status = wrk.wait_for(Duration::from_secs(30));
        let said = wrk.stdout().join("\n");
        assert!(status.success(), "{said}");
        for error in ["Socket errors", "Non-2xx"] {
            assert!(!said.contains(error), "{}: {said}", wrk.name());
        }
        let requests = said
            .lines()
            .find_map(|line| line.split_once(" requests in"));
        let requests = requests.expect("a count").0.trim().parse::<u64>();
        assert!(requests.expect("a number") > 1000, "{said}");
    }
    wait_settled(&mut old_a, &mesh.daemon_a);
    wait_settled(&mut old_b, &mesh.daemon_b);
}

#[test]
fn the_drain_limit_cuts_what_stays() {
    let (mut mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "3s");
    let mut held = Held::open(&mesh.client, mesh.server.at(GREETER));
    let mut old = take_over(&mut mesh.daemon_a, 2);
    held.echo("still here").expect("it may go on");
    wait_settled(&mut old, &mesh.daemon_a);
    let cut = held.echo("too late").expect_err("the limit is over");
    assert!(cut.contains("ECONNRESET") || cut.contains("EPIPE"), "{cut}");
    greeted(&mesh.client, mesh.server.at(GREETER), &[]);
}

//! Workload data: read again when it changes, held for, and where its routes lead.

use std::{
    fs,
    time::{Duration, Instant},
};

use redirect_tests::{
    App, Mesh, Pod, Testbed, eventually,
    exchange::{Held, greeted, greeter, refused},
    wait_until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

/// Whether a greeter answers at `dst`.
fn answers(client: &Pod, dst: std::net::SocketAddr) -> Result<String, String> {
    let app = client.app(["connect", &dst.to_string(), "recv-line"]);
    let event = loop {
        let event = app.next_event();
        if event.name() != "connected" {
            break event;
        }
    };
    match event.name() {
        "received" => Ok(event.text().to_owned()),
        _ => Err(event.json().to_string()),
    }
}

#[test]
fn a_changed_file_is_read_again_and_open_connections_stay() {
    let mesh = Mesh::start();
    let (_greeter, late) = (greeter(&mesh.server, 8080), mesh.b.pod("late"));
    let mut held = Held::open(&mesh.client, mesh.server.at(8080));
    let _late_greeter = greeter(&late, 8080);
    // Not in the mesh: passed through, and stopped by the wall.
    answers(&mesh.client, late.at(8080)).expect_err("nothing but HBONE passes the wall");

    // A service appears whose address leads to the server.
    mesh.workloads
        .clone()
        .service("shop", &["10.96.0.10"], 80, &[&mesh.server], 8080)
        .write();
    let vip = "10.96.0.10:80".parse().expect("an address");
    eventually("the service is known", SOON, || answers(&mesh.client, vip));
    // And goes again.
    mesh.workloads.write();
    eventually("the service is gone", SOON, || {
        match answers(&mesh.client, vip) {
            Ok(text) => Err(text),
            Err(_) => Ok::<(), String>(()),
        }
    });
    held.echo("all the while")
        .expect("an open connection stays");
}

#[test]
fn a_bad_file_is_reported_and_the_old_data_stays() {
    let mesh = Mesh::start();
    let _greeter = greeter(&mesh.server, 8080);
    for bad in [
        "workloads: [",
        "",
        "workloads:\n- {name: x, namespace: y, workloadIps: [10.0.0.300]}\n",
        "workloads:\n- {name: x, namespace: y, surprise: 1}\n",
        "services: 7\n",
    ] {
        let lines = mesh.daemon_a.process().line_count();
        mesh.workloads.write_text(bad);
        mesh.daemon_a
            .wait_log_from(lines, "report of the bad file", |line| {
                line.contains("workloads.yaml")
            });
        greeted(&mesh.client, mesh.server.at(8080), &[]);
    }
    assert_eq!(mesh.wall.leaked(), 0);
    // A good one counts again.
    mesh.workloads
        .clone()
        .service("shop", &["10.96.0.10"], 80, &[&mesh.server], 8080)
        .write();
    eventually("the service is known", SOON, || {
        answers(&mesh.client, "10.96.0.10:80".parse().expect("an address"))
    });
}

#[test]
fn outbound_is_held_until_the_first_data_and_refused_after_the_limit() {
    let mesh = Mesh::builder()
        .config_a(json!({ "proxy": { "hold": "3s" } }))
        .start();
    let _greeter = greeter(&mesh.server, 8080);
    let spec = mesh.daemon_a.spec().clone();
    let Mesh {
        daemon_a,
        daemon_b: _b,
        client,
        server,
        workloads,
        wall,
        bed: _bed,
        ..
    } = mesh;
    drop(daemon_a);
    fs::remove_file(workloads.path()).expect("there is a workload file");
    let daemon_a = spec.start();

    let started = Instant::now();
    refused(&client, server.at(8080));
    let waited = started.elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(8)).contains(&waited),
        "refused after {waited:?}"
    );
    daemon_a.wait_failed("outbound", "workloads_not_ready", 1);

    let app = client.app(["connect", &server.at(8080).to_string(), "recv-line"]);
    app.event("connected");
    workloads.write();
    assert!(
        app.event("received").text().starts_with("hello "),
        "the held connection goes on"
    );
    assert_eq!(wall.leaked(), 0);
}

/// Two servers behind one service, besides the usual mesh.
struct Shop {
    mesh: Mesh,
    servers: Vec<(Pod, App)>,
    _daemon: redirect_tests::Daemon,
}

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

impl Shop {
    /// `health` of the second server.
    fn open(health: &str) -> Self {
        let mesh = Mesh::start();
        // A node of its own, so that its daemon is started with the pod that it captures.
        let c = mesh.bed.node("c");
        let second = c.pod("second");
        let daemon = c.daemon().capture(&second).start();
        let servers: Vec<_> = [&mesh.server, &second]
            .into_iter()
            .map(|pod| {
                let app = pod.app(["serve", "--listen", "[::]:8080", "--listen", "[::]:8081"]);
                app.event("listening");
                (pod.clone(), app)
            })
            .collect();
        let both = [&mesh.server, &second];
        mesh.workloads
            .clone()
            .add(&second, json!({ "protocol": "HBONE", "status": health }))
            .service("shop", &["10.96.0.10", "fd00:96::10"], 80, &both, 8080)
            .service("store", &["10.96.0.11"], 80, &both, 8081)
            .write();
        let shop = Self {
            mesh,
            servers,
            _daemon: daemon,
        };
        eventually("the service is known", SOON, || shop.connect(1, &VIPS[..1]));
        shop
    }

    /// So many connections, one after the other, to `addrs` in turn; gives how many each server accepted.
    fn connect(&self, count: usize, addrs: &[&str]) -> Result<Vec<usize>, String> {
        let before = self.counts();
        let number = count.to_string();
        let options = ["many", "--parallel", "1", "--count", &number];
        let app = self.mesh.client.app([&options[..], addrs].concat());
        let held = app.event("held");
        if held.u64("ok") != count as u64 || held.u64("wrongPeers") != 0 {
            return Err(held.json().to_string());
        }
        let counts = self.counts();
        Ok(counts
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect())
    }

    fn counts(&self) -> Vec<usize> {
        self.servers
            .iter()
            .map(|(_, app)| app.events("accepted").len())
            .collect()
    }
}

#[test]
fn services_are_spread_evenly_over_their_workloads() {
    let shop = Shop::open("Healthy");
    // Also when connections alternate between services: no rhythm of the app may lead each to one server only.
    shop.connect(200, &["10.96.0.10:80", "10.96.0.11:80"])
        .expect("all work");
    for port in [8080, 8081] {
        let counts = shop.servers.iter().map(|(_, app)| {
            app.events("accepted")
                .iter()
                .filter(|event| event.addr("local").port() == port)
                .count()
        });
        let counts: Vec<usize> = counts.collect();
        assert!(
            (100..=101).contains(&counts.iter().sum::<usize>()),
            "port {port}: {counts:?}"
        );
        assert!(
            counts.iter().all(|count| (30..=70).contains(count)),
            "port {port} spread as {counts:?}"
        );
    }
    shop.connect(40, &["[fd00:96::10]:80"]).expect("all work");
    for (_, app) in &shop.servers {
        let v6 = app
            .events("accepted")
            .iter()
            .filter(|event| event.addr("local").is_ipv6())
            .count();
        assert!((8..=32).contains(&v6), "{v6} of 40 over IPv6");
    }
}

#[test]
fn unhealthy_workloads_are_left_out() {
    let shop = Shop::open("Unhealthy");
    assert_eq!(shop.connect(20, &VIPS), Ok(vec![20, 0]));
    // By its own address it is reached all the same.
    let own = shop.servers[1].0.at(8080).to_string();
    assert_eq!(shop.connect(1, &[&own]), Ok(vec![0, 1]));
}

#[test]
fn a_service_without_healthy_workloads_or_without_the_port_is_refused() {
    let mesh = Mesh::start();
    let _greeter = greeter(&mesh.server, 8080);
    let vip = "10.96.0.10:80".parse().expect("an address");
    let service = |health: &str| {
        mesh.bed
            .workloads()
            .hbone(&mesh.client)
            .add(
                &mesh.server,
                json!({ "protocol": "HBONE", "status": health }),
            )
            .service("shop", &["10.96.0.10"], 80, &[&mesh.server], 8080)
    };
    service("Healthy").write();
    eventually("the service is known", SOON, || answers(&mesh.client, vip));
    refused(&mesh.client, "10.96.0.10:81".parse().expect("an address"));
    mesh.daemon_a
        .wait_failed("outbound", "unknown_service_port", 1);
    service("Unhealthy").write();
    let gone = wait_until(SOON, || answers(&mesh.client, vip).is_err());
    assert!(gone, "an unhealthy workload is still used");
    mesh.daemon_a
        .wait_failed("outbound", "no_healthy_endpoint", 1);
}

#[test]
fn a_workload_without_hbone_is_reached_in_plaintext() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, plain) = (node.pod("client"), node.pod("plain"));
    bed.workloads()
        .hbone(&client)
        .tcp(&plain)
        .service("shop", &["10.96.0.10"], 80, &[&plain], 8080)
        .write();
    let _daemon = node.daemon().capture(&client).start();
    let server = greeter(&plain, 8080);
    for dst in [
        plain.at(8080),
        plain.at6(8080),
        "10.96.0.10:80".parse().expect("an address"),
    ] {
        greeted(&client, dst, &[]);
        let peer = server.event("accepted").addr("peer").ip();
        assert!([client.ipv4(), client.ipv6()].contains(&peer), "{peer}");
    }
}

#[test]
fn what_is_known_as_hbone_is_never_tried_in_plaintext() {
    let mesh = Mesh::start();
    // Its daemon is gone and capture with it: the app itself would answer a plaintext connection.
    let _greeter = greeter(&mesh.server, 8080);
    let Mesh {
        mut daemon_b,
        client,
        server,
        wall,
        daemon_a,
        bed: _bed,
        ..
    } = mesh;
    daemon_b.sigkill();
    for dst in [server.at(8080), server.at6(8080)] {
        for _ in 0..3 {
            refused(&client, dst);
        }
    }
    daemon_a.wait_failed("outbound", "peer_connect", 6);
    assert_eq!(wall.leaked(), 0);
}

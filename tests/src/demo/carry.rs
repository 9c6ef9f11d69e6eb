//! Steps about what is carried between the nodes.

use std::{fs, time::Instant};

use super::{
    Lines, pcap,
    stage::{PORT, Stage, VIP, field, line, outbound_line},
};
use crate::{Process, exchange::greeted, hbone, sockets::established};

const SECRET: &str = "the-password-is-open-sesame";

pub fn client_is_known(stage: &mut Stage) -> Lines {
    let asked = stage.web.at(PORT).to_string();
    let app = stage.client.app(["connect", &asked, "recv-line"]);
    let own = app.event("connected").addr("sockname");
    let seen = app.event("received").text().to_owned();
    assert!(
        seen.contains(&stage.client.ipv4().to_string()),
        "the server said {seen}"
    );
    let outbound = outbound_line(stage, own);
    let trace = field(&outbound, "trace_id");
    // The other side's line of the same connection is found by nothing but the trace id.
    let inbound = stage
        .daemon_b
        .wait_log("line of the access log with this trace id", |line| {
            line.contains("connection closed") && line.contains(trace)
        });
    assert!(inbound.contains("direction=\"inbound\""), "{inbound}");
    assert_eq!(field(&inbound, "src.identity"), stage.client.identity());
    vec![
        line("the server said", format!("\"{seen}\"")),
        line("daemon b verified", field(&inbound, "src.identity")),
        line(
            "both logs have",
            format!("trace id {}", field(&inbound, "trace_id")),
        ),
    ]
}

pub fn only_tls_between_nodes(stage: &mut Stage) -> Lines {
    let between = stage.bed.directory().join("between.pcap");
    let inside = stage.bed.directory().join("inside.pcap");
    let dump = |name: &str,
                mut command: std::process::Command,
                interface: &str,
                file: &std::path::Path| {
        command
            .args([
                "-i",
                interface,
                "-s",
                "0",
                "-U",
                "-Z",
                "root",
                "--immediate-mode",
                "-w",
            ])
            .arg(file)
            .arg("tcp");
        let dump = Process::spawn(name, command);
        dump.wait_line("listening line", |line| {
            line.contains("listening on").then_some(())
        });
        dump
    };
    let link = stage.a.link_to(&stage.b);
    let mut dump_between = dump(
        "tcpdump between the nodes",
        stage.a.command("tcpdump"),
        &link,
        &between,
    );
    let mut dump_inside = dump(
        "tcpdump in the server's pod",
        stage.web.outside_command("tcpdump"),
        "lo",
        &inside,
    );
    // A new source, so that the tunnel's handshake is seen too.
    let text = format!("send:{SECRET}\\n");
    let app = stage.batch.app([
        "connect",
        &stage.web.at(PORT).to_string(),
        "recv-line",
        &text,
        "recv-line",
    ]);
    app.event("received");
    assert_eq!(app.event("received").text(), SECRET);
    app.event("done");
    let found = |file: &std::path::Path| pcap::read(&fs::read(file).expect("tcpdump wrote it"));
    // The control: the same search finds the text where it is in plaintext.
    crate::eventually(
        "tcpdump has written the text",
        crate::process::PATIENCE,
        || {
            if found(&inside).contains(SECRET) {
                Ok(())
            } else {
                Err("not yet")
            }
        },
    );
    for dump in [&mut dump_between, &mut dump_inside] {
        dump.signal(nix::sys::signal::Signal::SIGINT);
        dump.wait();
    }
    let capture = found(&between);
    assert!(capture.packets > 0, "no packets seen");
    assert_eq!(
        capture.packets,
        capture.of_port(hbone::PORT),
        "packets of other ports: {:?}",
        capture.ports
    );
    assert!(
        capture.handshakes >= 2,
        "{} TLS handshake records",
        capture.handshakes
    );
    assert!(!capture.contains(SECRET), "the text is there in plaintext");
    vec![
        line("the app sent", format!("\"{SECRET}\"")),
        line(
            "between the nodes",
            format!("{} packets, all of port {}", capture.packets, hbone::PORT),
        ),
        line(
            "in them",
            format!(
                "{} TLS handshake records, {} of data",
                capture.handshakes, capture.data
            ),
        ),
        line(
            "the text",
            "does not appear in them; it does on loopback in the server's pod".to_owned(),
        ),
    ]
}

pub fn ipv6(stage: &mut Stage) -> Lines {
    let asked = stage.web.at6(PORT);
    let app = stage
        .client
        .app(["connect", &asked.to_string(), "recv-line", "names"]);
    let seen = app.event("received").text().to_owned();
    assert!(
        seen.contains(&stage.client.ipv6().to_string()),
        "the server said {seen}"
    );
    assert_eq!(app.event("names").addr("peername"), asked, "getpeername");
    let mapped = format!("[::ffff:{}]:{PORT}", stage.web.ipv4())
        .parse()
        .expect("an address");
    let connected = greeted(&stage.client, mapped, &[]);
    assert_eq!(connected.addr("peername"), mapped, "getpeername");
    vec![
        line("the app asked for", asked.to_string()),
        line("the server said", format!("\"{seen}\"")),
        line("v4-mapped too", format!("getpeername() {mapped}")),
    ]
}

pub fn service(stage: &mut Stage) -> Lines {
    let vip = VIP.parse().expect("an address");
    let counts = || [&stage.web_app, &stage.api_app].map(|app| app.events("accepted").len());
    let before = counts();
    for _ in 0..20 {
        let connected = greeted(&stage.client, vip, &[]);
        assert_eq!(connected.addr("peername"), vip, "getpeername");
    }
    let after = counts();
    let (web, api) = (after[0] - before[0], after[1] - before[1]);
    assert_eq!(web + api, 20);
    assert!(web >= 4 && api >= 4, "web {web}, api {api}");
    vec![
        line("the app asked for", format!("{VIP}, 20 times")),
        line("it reached", format!("web {web} times, api {api} times")),
        line("getpeername()", VIP),
    ]
}

pub fn curl_and_nginx(stage: &mut Stage) -> Lines {
    let dir = stage.bed.directory().join("www");
    fs::create_dir(&dir).expect("make the web root");
    let content: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("file"), &content).expect("write the content");
    let _nginx = crate::exchange::nginx(&stage.api, 8090, &dir);
    let received = stage.bed.directory().join("received");
    let mut curl = stage.client.command("curl");
    curl.args([
        "-sS",
        "--max-time",
        "30",
        "-w",
        "%{http_code} %{remote_ip} %{time_connect} %{time_total}",
        "-o",
    ]);
    curl.arg(&received)
        .arg(format!("http://{}/file", stage.api.at(8090)));
    let output = curl
        .output()
        .expect("curl is installed (`cargo xtask setup`)");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: Vec<&str> = told.split(' ').collect();
    assert_eq!(
        told[..2],
        ["200", &stage.api.ipv4().to_string()],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        fs::read(&received).expect("curl wrote it") == content,
        "the content differs"
    );
    vec![
        line("curl says", format!("status {}, from {}", told[0], told[1])),
        line(
            "8 MB arrived whole",
            format!("connected after {} s, done after {} s", told[2], told[3]),
        ),
    ]
}

pub fn shared_tunnel(stage: &mut Stage) -> Lines {
    let echo = stage.web.app(["serve", "--quiet", "--listen", "[::]:8081"]);
    echo.event("listening");
    let dst = stage.web.at(8081).to_string();
    let started = Instant::now();
    let app = stage
        .client
        .app(["many", "--count", "90", "--parallel", "8", &dst]);
    let held = app.event("held");
    let took = started.elapsed();
    assert_eq!(held.u64("ok"), 90, "{held:?}");
    let tunnels = established(stage.client.netns(), hbone::PORT);
    // To two pods, over two families, and one more where a tunnel was full for a moment.
    assert!((1..=6).contains(&tunnels), "{tunnels} tunnels");
    vec![
        line(
            "90 connections",
            format!(
                "open at once, made in {:.0} ms",
                took.as_secs_f64() * 1000.0
            ),
        ),
        line(
            "tunnels of the client",
            format!("{tunnels}, to both servers and over both families"),
        ),
    ]
}

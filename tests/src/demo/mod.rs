//! The body of `cargo xtask demo`: a connection's whole way on two nodes, each step verified and measured.

mod capture;
mod carry;
mod fail;
mod interrupt;
mod pcap;
mod show;
mod speed;
mod stage;
mod ways;

use std::process::ExitCode;

use self::{interrupt::Interrupt, show::Show, stage::Stage};

/// One thing that the demo shows: it panics if what it sees is not so, and else gives the lines to print.
type Step = (&'static str, fn(&mut Stage) -> Lines);

/// A label and what was seen, each.
type Lines = Vec<(String, String)>;

const STEPS: &[Step] = &[
    (
        "Two nodes with two pods each, all captured",
        stage::captured,
    ),
    (
        "The app's connection is steered by eBPF, and the proxy knows where it wanted to go",
        capture::steered,
    ),
    (
        "The app sees the connection that it asked for",
        capture::names,
    ),
    (
        "The server sees its client: the address, and by TLS the identity",
        carry::client_is_known,
    ),
    (
        "Between the nodes there is nothing but TLS to port 15008",
        carry::only_tls_between_nodes,
    ),
    ("IPv6 is carried as well", carry::ipv6),
    (
        "A service's address leads to its workloads in turn",
        carry::service,
    ),
    (
        "Unmodified curl and nginx talk through the mesh",
        carry::curl_and_nginx,
    ),
    ("Many connections share one tunnel", carry::shared_tunnel),
    (
        "The same call from a pod that nftables captures",
        ways::by_netfilter,
    ),
    ("A refusal arrives as one", fail::refusal),
    (
        "A client in plaintext is denied by policy",
        ways::plaintext_denied,
    ),
    (
        "Another trust domain's certificate gets nowhere",
        fail::wrong_trust_domain,
    ),
    (
        "Nothing leaks while a daemon is dead, and the next one takes over",
        fail::dead_daemon,
    ),
    ("Throughput beside a direct connection", speed::throughput),
    ("Latency beside a direct connection", speed::latency),
    (
        "Told to, the daemons let go and leave nothing in the kernel",
        fail::let_go,
    ),
];

/// Runs the demo; success only if every step was verified.
pub fn run() -> ExitCode {
    let interrupt = Interrupt::install();
    show::quiet_panics();
    let mut show = Show::new();
    show.title("redirect: eBPF capture and HBONE over mutual TLS, live");
    let stage = show::attempt(|| Stage::set(&interrupt));
    let mut stage = match stage {
        Ok(stage) => stage,
        Err(why) => {
            show.failed("Two nodes and their daemons", &why);
            return show.end(interrupt.caught());
        }
    };
    for (title, step) in STEPS {
        if interrupt.caught() {
            break;
        }
        match show::attempt(|| step(&mut stage)) {
            Ok(lines) => show.passed(title, &lines),
            Err(_) if interrupt.caught() => break,
            Err(why) => {
                show.failed(title, &why);
                show.log("daemon a", &stage.daemon_a.process().transcript(8));
                show.log("daemon b", &stage.daemon_b.process().transcript(8));
            }
        }
    }
    // Everything goes with the stage, before the last line says how it was.
    if let Err(why) = show::attempt(|| drop(stage)) {
        show.failed("Cleaning up", &why);
    }
    show.end(interrupt.caught())
}

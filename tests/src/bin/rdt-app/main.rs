//! What runs inside pods: small clients and servers with exact socket behaviour. One JSON event per line on standard output.

mod attack;
mod capture_and_panic;
mod ceaseless;
mod connect;
mod dns_ask;
mod dns_serve;
mod enter;
mod hand_over;
mod many;
mod ping;
mod serve;
mod stress;
mod talk;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_tests::{Testbed, leftovers};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Clients and servers of redirect's testbed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send bytes by a raw or packet socket.
    Attack(attack::Args),
    /// Join a cgroup and a network namespace, then become another program.
    Enter(enter::Args),
    /// Make a listener and give it away on standard input.
    HandOver(hand_over::Args),
    /// Listen and treat each connection in one way.
    Serve(serve::Args),
    /// One connection, made and used step by step.
    Connect(connect::Args),
    /// Connections without a pause, each echoed on and closed.
    Ceaseless(ceaseless::Args),
    /// Many connections at once, each echoed on and held.
    Many(many::Args),
    /// One connection that sends each line of standard input and shows each line that comes.
    Talk(talk::Args),
    /// Round trips of few bytes, timed.
    Ping(ping::Args),
    /// Several connections that check each byte of what an echo server returns.
    Stress(stress::Args),
    /// DNS queries as resolvers of many kinds send them.
    DnsAsk(dns_ask::Args),
    /// A DNS server whose names say how they are answered.
    DnsServe(dns_serve::Args),
    /// List what dead testbeds left; fails if there is anything.
    Leftovers,
    /// Capture the pods of a configuration as the daemon does, and panic.
    CaptureAndPanic(capture_and_panic::Args),
    /// Make a testbed, print its id and wait to be killed.
    LeaveATestbed,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Enter(_)) {
        allow_many_files();
    }
    let result = match command {
        Command::Attack(args) => attack::run(args),
        Command::Enter(args) => enter::run(args),
        Command::HandOver(args) => hand_over::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Connect(args) => connect::run(args),
        Command::Ceaseless(args) => ceaseless::run(args),
        Command::Many(args) => many::run(args),
        Command::Talk(args) => talk::run(args),
        Command::Ping(args) => ping::run(args),
        Command::Stress(args) => stress::run(args),
        Command::DnsAsk(args) => dns_ask::run(args),
        Command::DnsServe(args) => dns_serve::run(args),
        Command::Leftovers => leftovers(),
        Command::CaptureAndPanic(args) => capture_and_panic::run(args),
        Command::LeaveATestbed => leave_a_testbed(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdt-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Thousands of connections need more files than the usual soft limit. Not for `enter`: other programs' limits are theirs.
fn allow_many_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it fails, the connections that do not fit are reported one by one.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn leftovers() -> anyhow::Result<()> {
    let mut found = leftovers::stale();
    found.extend(leftovers::orphan_programs());
    found.extend(leftovers::in_own_namespace());
    found.iter().for_each(|line| println!("{line}"));
    anyhow::ensure!(
        found.is_empty(),
        "{} leftovers of dead testbeds",
        found.len()
    );
    Ok(())
}

fn leave_a_testbed() -> anyhow::Result<()> {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("p");
    node.daemon().mount_bpffs();
    let app = pod.app(["serve", "--listen", "0.0.0.0:80"]);
    app.event("listening");
    println!("{}", bed.id());
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Prints one event.
fn emit(event: &str, mut fields: Value) {
    fields["event"] = Value::from(event);
    println!("{fields}");
}

/// The fields that describe a failed call.
fn failure(call: &str, error: &io::Error) -> Value {
    json!({ "call": call, "errno": error.raw_os_error().unwrap_or(0), "name": error_name(error), "text": error.to_string() })
}

/// `ECONNREFUSED` and the like.
fn error_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        None => format!("{:?}", error.kind()),
    }
}

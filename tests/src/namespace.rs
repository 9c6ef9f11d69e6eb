//! Named network namespaces, and iproute2 run inside them.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use redirect::sys::netns::Netns;

/// Where iproute2 keeps named namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// The names of all named namespaces of the machine.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}

/// Makes and opens a namespace whose loopback is up and whose IPv6 addresses work at once.
pub fn create(name: &str) -> Netns {
    ip(None, &format!("netns add {name}\n"));
    let netns = Netns::open(&path(name)).expect("the namespace was made a moment ago");
    ip(Some(&netns), "link set lo up\n");
    for (key, value) in [
        // Duplicate address detection would keep new addresses tentative for a second.
        ("net.ipv6.conf.all.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
    ] {
        sysctl(&netns, key, value);
    }
    netns
}

/// Removes a named namespace; one that is gone already is no error.
pub fn delete(name: &str) -> Result<(), String> {
    if !path(name).exists() {
        return Ok(());
    }
    let output = Command::new("ip")
        .args(["netns", "del", name])
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Runs `ip -batch` with `lines`, inside `netns` if one is given.
#[track_caller]
pub fn ip(netns: Option<&Netns>, lines: &str) {
    match netns {
        Some(netns) => run_with_input(netns, "ip", &["-batch", "-"], lines),
        None => run("ip", &["-batch", "-"], lines),
    }
}

/// Runs a program inside `netns`, with `input` on its standard input; panics if it fails.
#[track_caller]
pub fn run_with_input(netns: &Netns, program: &str, args: &[&str], input: &str) {
    // The panic of a thread inside would not name the caller.
    let failed = netns
        .run(|| output(program, args, input))
        .expect("the namespace can be entered");
    succeed(program, args, input, failed);
}

#[track_caller]
fn run(program: &str, args: &[&str], input: &str) {
    succeed(program, args, input, output(program, args, input));
}

fn output(program: &str, args: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())?;
    child.wait_with_output()
}

#[track_caller]
fn succeed(program: &str, args: &[&str], input: &str, output: io::Result<Output>) {
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}: is it installed (`cargo xtask setup`)?"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?} failed: {}\n{input}",
        errors.trim()
    );
}

/// Sets a `net.*` sysctl of `netns`.
#[track_caller]
pub fn sysctl(netns: &Netns, key: &str, value: &str) {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let written = netns
        .run(|| fs::write(&path, value))
        .expect("the namespace can be entered");
    written.unwrap_or_else(|error| panic!("write {value} to {path}: {error}"));
}

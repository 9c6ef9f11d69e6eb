//! Named network namespaces, and iproute2 run inside them.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
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
    let run = || {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("iproute2 is installed (`cargo xtask setup`)");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(lines.as_bytes())
            .expect("ip reads its commands");
        child.wait_with_output().expect("ip was started")
    };
    let output = match netns {
        Some(netns) => netns.run(run).expect("the namespace can be entered"),
        None => run(),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "ip -batch failed: {}\n{lines}",
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

//! What the kernel says of a namespace's TCP sockets and counters.

use std::fs;

use redirect::sys::netns::Netns;

/// Connections in `netns` that are established from or to `port`.
pub fn established(netns: &Netns, port: u16) -> usize {
    // Fields of proc(5) net/tcp: number, local, remote, state. 01 is ESTABLISHED.
    let text = proc_net(netns, "tcp") + &proc_net(netns, "tcp6");
    let end = format!(":{port:04X}");
    text.lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|f| f.len() > 3 && f[3] == "01" && (f[1].ends_with(&end) || f[2].ends_with(&end)))
        .count()
}

/// A counter of net/netstat, such as `TcpExt` `SyncookiesRecv`.
pub fn netstat(netns: &Netns, group: &str, name: &str) -> u64 {
    let text = proc_net(netns, "netstat");
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, values) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let at = names.split_ascii_whitespace().position(|n| n == name);
    at.and_then(|at| values.split_ascii_whitespace().nth(at)?.parse().ok())
        .unwrap_or_else(|| panic!("no {group} {name} in netstat"))
}

/// `/proc/net` is the process's namespace, not the thread's.
fn proc_net(netns: &Netns, file: &str) -> String {
    let path = format!("/proc/thread-self/net/{file}");
    netns
        .run(|| fs::read_to_string(&path))
        .expect("the namespace can be entered")
        .unwrap_or_else(|error| panic!("read {path}: {error}"))
}

//! Rules that were applied by hand, with traffic: a proxy of the test's own asks for original destinations.

use std::net::SocketAddr;

use redirect_tests::{
    Pod, Testbed,
    exchange::{greeter, serve},
};

use crate::{
    stage::{TOOLS, apply, connect},
    state,
};

/// The same from a process of another user, or in another container.
fn connect_by(pod: &Pod, container: &str, user: &str, dst: SocketAddr) -> String {
    let mut command = pod.command_in(container, "setpriv");
    command.args(["--reuid", user, "--clear-groups", "timeout", "10"]);
    // Programs of the system: another user may not be able to read the test's own.
    let script = r#"exec 3<>"/dev/tcp/$0/$1" && read -r line <&3 && echo "$line""#;
    let (ip, port) = (dst.ip().to_string(), dst.port().to_string());
    command.args(["bash", "-c", script, &ip, &port]);
    let output = command.output().expect("setpriv and bash are installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn both_directions_are_captured_and_what_passes_passes() {
    for tool in TOOLS {
        for dedicated in [true, false] {
            let bed = Testbed::new();
            let node = bed.node("a");
            let (pod, other) = (node.pod("pod"), node.pod("other"));
            let exempt = pod.container("proxy");
            std::fs::create_dir_all(&exempt).expect("make the proxy's cgroup");
            let exempt = exempt.to_string_lossy();
            let flags: &[&str] = match dedicated {
                true => &["--mode", "dedicated"],
                false => &["--capture-inbound", "--exempt-cgroup", &exempt],
            };
            apply(pod.netns(), tool, flags);
            let told = format!("{tool}, dedicated: {dedicated}");
            let _outbound = serve(&pod, 15001, "original-destination");
            let _inbound = serve(&pod, 15006, "original-destination");
            let (_app, _server) = (greeter(&pod, 8080), greeter(&other, 8080));
            let (_hbone, _metrics) = (greeter(&pod, 15008), greeter(&pod, 15020));
            for (theirs, ours) in [
                (other.at(8080), pod.at(8080)),
                (other.at6(8080), pod.at6(8080)),
            ] {
                let captured = |dst: SocketAddr| format!("original destination {dst}");
                assert_eq!(connect(&pod, theirs), captured(theirs), "{told}");
                assert_eq!(connect(&other, ours), captured(ours), "{told}");
                // The app itself, by its pod's address.
                assert!(connect(&pod, ours).starts_with("hello "), "{told}");
                let hbone = SocketAddr::new(ours.ip(), 15008);
                assert!(connect(&other, hbone).starts_with("hello "), "{told}");
                // Only a proxy in the pod serves metrics there.
                let metrics = connect(&other, SocketAddr::new(ours.ip(), 15020));
                assert_eq!(metrics.starts_with("hello "), dedicated, "{told}");
                // The proxy's own, and those of its neighbours.
                for (container, user) in [("proxy", "0"), ("app", "1337"), ("app", "1338")] {
                    let answer = connect_by(&pod, container, user, theirs);
                    let passes = match dedicated {
                        true => user == "1337",
                        false => container == "proxy",
                    };
                    assert_eq!(
                        answer.starts_with("hello "),
                        passes,
                        "{told}: user {user} in {container} was told {answer:?}"
                    );
                }
            }
            assert_eq!(state::tools_in_use(pod.netns()), [tool]);
        }
    }
}

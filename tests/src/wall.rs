//! A packet filter between nodes that lets only HBONE through: what leaks in plaintext is refused and counted.

use std::process::Command;

use crate::{hbone, testbed::Node};

/// The filter of one node. It goes with the node's namespace.
#[derive(Clone, Debug)]
pub struct Wall {
    node: Node,
}

impl Wall {
    /// From now on `node` forwards, of TCP, only what comes from or goes to port 15008.
    pub fn around(node: &Node) -> Self {
        let wall = Self { node: node.clone() };
        let port = hbone::PORT;
        // Two rules that accept, not one with two `!=`: nft 1.0 merges these into one comparison of both ports, which
        // then holds if either differs. Only links between nodes: where br_netfilter is loaded, pods of one node pass
        // this hook too.
        wall.nft(&format!(
            "table inet wall {{
                counter leaked {{ }}
                chain forward {{
                    type filter hook forward priority 0;
                    tcp sport {port} accept
                    tcp dport {port} accept
                    oifname \"to-*\" meta l4proto tcp counter name leaked reject with tcp reset
                    iifname \"to-*\" meta l4proto tcp counter name leaked reject with tcp reset
                }}
            }}"
        ));
        wall
    }

    /// Packets that were no HBONE, until now.
    pub fn leaked(&self) -> u64 {
        let listing = self.nft("list counter inet wall leaked");
        let packets = listing
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1);
        packets
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no packet count in {listing}"))
    }

    /// Lets everything through again.
    pub fn remove(self) {
        self.nft("delete table inet wall");
    }

    fn nft(&self, commands: &str) -> String {
        let run = || {
            Command::new("nft")
                .arg(commands)
                .output()
                .expect("nft is installed (`cargo xtask setup`)")
        };
        let output = self
            .node
            .netns()
            .run(run)
            .expect("the namespace can be entered");
        assert!(
            output.status.success(),
            "nft {commands}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

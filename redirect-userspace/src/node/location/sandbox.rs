//! Sandboxes that have a network stack of their own: what happens in the pod's namespace and cgroup is not what the app does.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    Gvisor,
    Kata,
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gvisor => "gVisor",
            Self::Kata => "Kata Containers or another virtual machine",
        })
    }
}

/// Knows them by the first word of a process's command line and by the file that it runs. Pure.
///
/// gVisor's processes run a copy of `runsc` that is called `exe`, and say in their command line what they are.
pub fn of(command: &str, executable: &str) -> Option<Sandbox> {
    let is = |name: &str| {
        let name = name.rsplit('/').next().unwrap_or(name);
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        match name {
            "runsc" | "runsc-sandbox" | "runsc-gofer" => Some(Sandbox::Gvisor),
            "cloud-hypervisor" | "firecracker" | "stratovirt" | "virtiofsd" | "dragonball" => {
                Some(Sandbox::Kata)
            }
            _ if name.starts_with("qemu-system-") || name.starts_with("qemu-kvm") => {
                Some(Sandbox::Kata)
            }
            _ if name.starts_with("containerd-shim-kata") => Some(Sandbox::Kata),
            _ => None,
        }
    };
    is(command).or_else(|| is(executable))
}

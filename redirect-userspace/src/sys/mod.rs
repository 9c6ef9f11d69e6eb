//! The only place of `unsafe` in the daemon: namespaces, socket options, cgroups, bpffs.

pub mod bpf;
pub mod bpf_probe;
pub mod bpffs;
pub mod cgroup;
pub mod datagram;
pub mod inotify;
pub mod interfaces;
pub mod memory;
pub mod mountinfo;
pub mod netns;
pub mod socket;
pub mod sysctl;

//! Types and decisions shared by the eBPF programs and the daemon.
#![cfg_attr(target_arch = "bpf", no_std)]

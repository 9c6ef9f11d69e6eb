//! The eBPF programs of redirect, one file per family of hooks.
//!
//! `connect` steers a captured connect to the proxy and remembers where it was meant to go; `pod_socket` publishes that under
//! the connection's tuple; `proxy_socket` moves it to the socket that the proxy accepts; `getsockopt` and the daemon (through
//! the socket's storage) read it there; `peername` shows the app the destination that it asked for. `dns` does for datagrams
//! to DNS servers what all of these do for connections. `guard` drops what leaves the pod without having been captured or, as
//! `known` says, let pass.
//!
//! `sk_lookup` gives the proxy what arrives for a pod, except what `proxy_socket` and `prober` have registered to pass.
//! `bind` and `setsockopt` keep processes of a pod from taking the proxy's ports and marks.
//!
//! Only `ctx` touches raw contexts. On the host this crate is empty, so that tests and lints of the workspace pass over it.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod bind;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod content;
#[cfg(target_arch = "bpf")]
mod ctx;
#[cfg(target_arch = "bpf")]
mod dns;
#[cfg(target_arch = "bpf")]
mod getsockopt;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod known;
#[cfg(target_arch = "bpf")]
mod lookups;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod node;
#[cfg(target_arch = "bpf")]
mod passing;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod pod_socket;
#[cfg(target_arch = "bpf")]
mod prober;
#[cfg(target_arch = "bpf")]
mod proxy_socket;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
mod setsockopt;
#[cfg(target_arch = "bpf")]
mod sk_lookup;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Never reached: the verifier would refuse the loop. The language wants it to be there.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel asks for a licence that it is compatible with; the programs are under Apache-2.0 or GPL-2.0.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

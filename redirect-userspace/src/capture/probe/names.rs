//! Names of what programs need, and what it is for: the words of `redirect check`.

use aya::maps::MapType;
use aya_obj::generated::{bpf_attach_type as attach, bpf_func_id as func};

use crate::{
    capture::ebpf::needs::{CGROUP_SKB, SCHED_CLS, SK_LOOKUP, SOCK_ADDR, SOCK_OPS, SOCKOPT},
    sys::bpf_probe::Kind,
};

/// A hook's name and purpose.
pub fn hook(kind: Kind) -> (String, &'static str) {
    let of_type = program_type(kind.program_type);
    let found = HOOKS
        .iter()
        .find(|(program_type, attach_type, ..)| {
            *program_type == kind.program_type
                && (*attach_type as u32 == kind.attach_type || kind.attach_type == 0)
        })
        .map(|(_, _, name, purpose)| ((*name).to_owned(), *purpose));
    found.unwrap_or_else(|| (format!("{of_type} {}", kind.attach_type), "capture"))
}

/// The name of a program type.
pub fn program_type(number: u32) -> String {
    let name = match number {
        SOCK_ADDR => "sock_addr",
        SOCK_OPS => "sock_ops",
        SOCKOPT => "sockopt",
        SK_LOOKUP => "sk_lookup",
        CGROUP_SKB => "cgroup_skb",
        SCHED_CLS => "sched_cls",
        other => return format!("program type {other}"),
    };
    name.to_owned()
}

const HOOKS: &[(u32, attach, &str, &str)] = &[
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET4_CONNECT,
        "connect4",
        "outbound, IPv4",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET6_CONNECT,
        "connect6",
        "outbound, IPv6",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET4_GETPEERNAME,
        "getpeername4",
        "the app sees its destination",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET6_GETPEERNAME,
        "getpeername6",
        "the app sees its destination",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET4_BIND,
        "bind4",
        "our ports stay ours",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_INET6_BIND,
        "bind6",
        "our ports stay ours",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_UDP4_SENDMSG,
        "sendmsg4",
        "UDP and DNS, IPv4",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_UDP6_SENDMSG,
        "sendmsg6",
        "UDP and DNS, IPv6",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_UDP4_RECVMSG,
        "recvmsg4",
        "DNS answers, IPv4",
    ),
    (
        SOCK_ADDR,
        attach::BPF_CGROUP_UDP6_RECVMSG,
        "recvmsg6",
        "DNS answers, IPv6",
    ),
    (
        SOCK_OPS,
        attach::BPF_CGROUP_SOCK_OPS,
        "sock_ops",
        "original destinations",
    ),
    (
        SOCKOPT,
        attach::BPF_CGROUP_GETSOCKOPT,
        "getsockopt",
        "SO_ORIGINAL_DST for any proxy",
    ),
    (
        SOCKOPT,
        attach::BPF_CGROUP_SETSOCKOPT,
        "setsockopt",
        "our marks stay ours",
    ),
    (
        CGROUP_SKB,
        attach::BPF_CGROUP_INET_EGRESS,
        "cgroup_skb egress",
        "refusing UDP and SCTP",
    ),
    (
        CGROUP_SKB,
        attach::BPF_CGROUP_INET_INGRESS,
        "cgroup_skb ingress",
        "refusing UDP and SCTP",
    ),
    (SK_LOOKUP, attach::BPF_SK_LOOKUP, "sk_lookup", "inbound"),
    (
        SCHED_CLS,
        attach::BPF_TCX_EGRESS,
        "sched_cls",
        "leak guard, node mode",
    ),
];

/// A helper's name, without the `bpf_` (and `get_`) that they share, and what it is called for.
pub fn helper(number: u32) -> (String, &'static str) {
    let found = HELPERS.iter().find(|(id, ..)| *id as u32 == number);
    let found = found.map(|(_, name, purpose)| ((*name).to_owned(), *purpose));
    found.unwrap_or_else(|| (format!("helper {number}"), "the programs"))
}

const HELPERS: &[(func, &str, &str)] = &[
    (
        func::BPF_FUNC_map_lookup_elem,
        "map_lookup_elem",
        "what is known of a pod",
    ),
    (
        func::BPF_FUNC_map_update_elem,
        "map_update_elem",
        "original destinations",
    ),
    (
        func::BPF_FUNC_map_delete_elem,
        "map_delete_elem",
        "original destinations",
    ),
    (func::BPF_FUNC_ktime_get_ns, "ktime_get_ns", "events"),
    (
        func::BPF_FUNC_ktime_get_boot_ns,
        "ktime_get_boot_ns",
        "events",
    ),
    (
        func::BPF_FUNC_get_prandom_u32,
        "prandom_u32",
        "spreading over addresses",
    ),
    (
        func::BPF_FUNC_get_smp_processor_id,
        "smp_processor_id",
        "the programs' log",
    ),
    (
        func::BPF_FUNC_get_current_pid_tgid,
        "current_pid_tgid",
        "events",
    ),
    (func::BPF_FUNC_get_current_comm, "current_comm", "events"),
    (
        func::BPF_FUNC_get_current_cgroup_id,
        "current_cgroup_id",
        "who connects",
    ),
    (
        func::BPF_FUNC_get_current_ancestor_cgroup_id,
        "current_ancestor_cgroup_id",
        "exempt cgroups",
    ),
    (
        func::BPF_FUNC_get_netns_cookie,
        "netns_cookie",
        "which pod a socket is in",
    ),
    (
        func::BPF_FUNC_get_socket_cookie,
        "socket_cookie",
        "which socket it is",
    ),
    (
        func::BPF_FUNC_sk_storage_get,
        "sk_storage_get",
        "original destinations",
    ),
    (
        func::BPF_FUNC_sk_storage_delete,
        "sk_storage_delete",
        "original destinations",
    ),
    (
        func::BPF_FUNC_sock_ops_cb_flags_set,
        "sock_ops_cb_flags_set",
        "a connect's end",
    ),
    (func::BPF_FUNC_bind, "bind", "the pod's address as source"),
    (func::BPF_FUNC_getsockopt, "getsockopt", "what a socket is"),
    (func::BPF_FUNC_setsockopt, "setsockopt", "what a socket is"),
    (
        func::BPF_FUNC_set_retval,
        "set_retval",
        "the kernel's own errno",
    ),
    (
        func::BPF_FUNC_get_retval,
        "get_retval",
        "the kernel's own errno",
    ),
    (func::BPF_FUNC_ringbuf_output, "ringbuf_output", "events"),
    (func::BPF_FUNC_ringbuf_reserve, "ringbuf_reserve", "events"),
    (func::BPF_FUNC_ringbuf_submit, "ringbuf_submit", "events"),
    (func::BPF_FUNC_ringbuf_discard, "ringbuf_discard", "events"),
    (
        func::BPF_FUNC_skb_cgroup_id,
        "skb_cgroup_id",
        "leak guard: whose packet",
    ),
    (
        func::BPF_FUNC_skb_ancestor_cgroup_id,
        "skb_ancestor_cgroup_id",
        "leak guard: whose packet",
    ),
    (func::BPF_FUNC_sk_cgroup_id, "sk_cgroup_id", "whose socket"),
    (
        func::BPF_FUNC_sk_ancestor_cgroup_id,
        "sk_ancestor_cgroup_id",
        "whose socket",
    ),
    (
        func::BPF_FUNC_skb_load_bytes,
        "skb_load_bytes",
        "what a packet is",
    ),
    (
        func::BPF_FUNC_skb_change_tail,
        "skb_change_tail",
        "mode node: resets",
    ),
    (
        func::BPF_FUNC_skb_change_type,
        "skb_change_type",
        "mode node: what is given to the proxy",
    ),
    (func::BPF_FUNC_skb_store_bytes, "skb_store_bytes", "resets"),
    (
        func::BPF_FUNC_skb_pull_data,
        "skb_pull_data",
        "what a packet is",
    ),
    (func::BPF_FUNC_l3_csum_replace, "l3_csum_replace", "resets"),
    (func::BPF_FUNC_l4_csum_replace, "l4_csum_replace", "resets"),
    (func::BPF_FUNC_redirect, "redirect", "resets"),
    (
        func::BPF_FUNC_sk_lookup_tcp,
        "sk_lookup_tcp",
        "which socket a packet is for",
    ),
    (
        func::BPF_FUNC_skc_lookup_tcp,
        "skc_lookup_tcp",
        "which socket a packet is for",
    ),
    (
        func::BPF_FUNC_sk_release,
        "sk_release",
        "which socket a packet is for",
    ),
    (func::BPF_FUNC_sk_assign, "sk_assign", "inbound"),
    (func::BPF_FUNC_sk_fullsock, "sk_fullsock", "whose socket"),
];

/// Helpers that a program calls only if the kernel has them, and what is lost otherwise.
pub fn lost_without(helper: u32) -> Option<&'static str> {
    let found = OPTIONAL_HELPERS.iter().find(|(id, _)| *id as u32 == helper);
    found.map(|(_, lost)| *lost)
}

const OPTIONAL_HELPERS: &[(func, &str)] = &[(
    func::BPF_FUNC_set_retval,
    "some failures get another errno than the kernel's own",
)];

/// A map type by its number, its name and its purpose; `None` for one that the real load alone can tell of.
pub fn map(number: u32) -> Option<(MapType, &'static str, &'static str)> {
    let mut known = MAPS.iter().copied();
    known.find(|(map, ..)| *map as u32 == number)
}

const MAPS: &[(MapType, &str, &str)] = &[
    (MapType::Hash, "hash", "pods, connects under way"),
    (MapType::LruHash, "lru_hash", "flows that may be forgotten"),
    (MapType::Array, "array", "settings"),
    (MapType::PerCpuArray, "percpu_array", "counters"),
    (MapType::LpmTrie, "lpm_trie", "excluded networks"),
    (MapType::SkStorage, "sk_storage", "original destinations"),
    (
        MapType::SockMap,
        "sockmap",
        "inbound: the proxy's listeners",
    ),
    (
        MapType::SockHash,
        "sockhash",
        "inbound: the proxy's listeners",
    ),
    (MapType::RingBuf, "ringbuf", "events"),
];

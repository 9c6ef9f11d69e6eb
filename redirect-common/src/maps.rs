//! Keys and values of the maps. Padding is explicit, since the kernel compares keys byte for byte.

use core::mem::offset_of;

use crate::Addr;

/// How many pods a node can capture. Pod numbers are below this.
pub const MAX_PODS: u32 = 4096;
/// How many captured connects of a node may be between `connect()` and accept.
pub const MAX_FLOWS: u32 = 16_384;
/// What a daemon sets as [`Settings::max_flows_per_pod`].
pub const MAX_FLOWS_PER_POD: u32 = 4_096;
pub const MAX_OWN_ADDRESSES: u32 = 16_384;
/// Of all pods and all [`List`]s together.
pub const MAX_PORTS: u32 = 65_536;
/// Of all pods and all [`List`]s together.
pub const MAX_NETS: u32 = 65_536;
/// Addresses at which pods of a node are reached.
pub const MAX_INBOUND_ADDRESSES: u32 = 16_384;
/// How many connections that capture shall let pass may be between SYN and handshake.
pub const MAX_PASSING: u32 = 65_536;
/// How many of these the connections to one pod may take.
pub const MAX_PASSING_PER_POD: u32 = 4_096;
/// How many of the proxy's own connections to apps are remembered as having found no place among those.
pub const MAX_BARRED: u32 = 1_024;
pub const MAX_EXEMPT_CGROUPS: u32 = 16_384;
pub const MAX_SHARERS: u32 = MAX_PODS;
pub const MAX_SERVICES: u32 = 16_384;
/// DNS servers that the pods of a node ask over UDP. One pod has at most twice [`SLOTS`](crate::dns::SLOTS).
pub const MAX_DNS_SERVERS: u32 = 131_072;
/// Cgroups of proxies: one, but for the moment in which one daemon takes over from another.
pub const MAX_PROXIES: u32 = 64;
/// Size of the ring buffer of events, in bytes.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// Derives what every type here has.
macro_rules! map_types {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty,)* } size $size:literal;)*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[cfg_attr(not(target_arch = "bpf"), derive(bytemuck::Pod, bytemuck::Zeroable))]
            pub struct $name { $($(#[$doc])* pub $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

map_types! {
    /// `rdr_pods`, keyed by network namespace cookie: what the programs know of a captured pod.
    pub struct PodEntry {
        /// The pod's IPv4 address as v4-mapped, or `::` if it has none: source of redirected connects.
        pub v4: Addr,
        /// The pod's IPv6 address, or `::`.
        pub v6: Addr,
        /// Below [`MAX_PODS`]; indexes `rdr_pending` and starts the keys of the pod's lists.
        pub pod: u32,
        /// See [`pod_flags`].
        pub flags: u32,
        /// Where the proxy listens, in host byte order.
        pub outbound_port: u16,
        /// Where the proxy answers DNS queries, in host byte order; 0 if they are not captured.
        pub dns_port: u16,
    } size 44;

    /// Key of `rdr_own`: an address of the pod, beyond those in its [`PodEntry`].
    pub struct OwnKey {
        pub pod: u32,
        pub addr: Addr,
    } size 20;

    /// Key of `rdr_ports`.
    pub struct PortKey {
        pub pod: u32,
        /// In host byte order.
        pub port: u16,
        /// A [`List`].
        pub list: u16,
    } size 8;

    /// Key of `rdr_nets` behind the prefix length, which counts the bits of `pod` and `list` too: 32 more than the network's
    /// own.
    pub struct NetKey {
        /// The pod's number: [`MAX_PODS`] is far below 65,536.
        pub pod: u16,
        /// A [`List`].
        pub list: u16,
        pub addr: Addr,
    } size 20;

    /// Value of `rdr_inbound`, keyed by an address at which a pod is reached.
    pub struct InboundEntry {
        /// Of the namespace that has the address.
        pub netns_cookie: u64,
        /// The pod's number.
        pub pod: u32,
        /// See [`inbound_flags`].
        pub flags: u32,
    } size 16;

    /// Key of `rdr_pass` and `rdr_barred`: a connection to a pod as the pod's namespace sees it. The destination tells pods apart.
    pub struct PassKey {
        pub src: Addr,
        pub dst: Addr,
        /// In host byte order.
        pub src_port: u16,
        /// In host byte order.
        pub dst_port: u16,
    } size 36;

    /// Value of `rdr_pass`: a connection that capture lets pass.
    pub struct PassEntry {
        /// Cookie of the connecting socket: only its end may remove what it registered.
        pub owner: u64,
        /// The number of the pod that it goes to.
        pub pod: u32,
        /// A [`Caller`].
        pub caller: u32,
    } size 16;

    /// Key of `rdr_xcgroups`.
    pub struct CgroupKey {
        /// The cgroup v2 id: the inode of its directory.
        pub cgroup: u64,
        pub pod: u32,
        pub padding: u32,
    } size 16;

    /// Key of `rdr_sharers`: a workload that shares its network namespace with others. The value is its [`PodEntry`].
    pub struct SharerKey {
        pub netns_cookie: u64,
        /// The cgroup v2 id of the workload's cgroup.
        pub cgroup: u64,
    } size 16;

    /// Key of `rdr_services`: what such a workload serves. The value is the workload's number.
    pub struct ServiceKey {
        pub addr: Addr,
        /// In host byte order.
        pub port: u16,
        pub padding: u16,
    } size 20;

    /// Key of `rdr_flows`: a connection as both of its ends see it.
    pub struct FlowKey {
        pub netns_cookie: u64,
        pub src: Addr,
        pub dst: Addr,
        /// In host byte order.
        pub src_port: u16,
        /// In host byte order.
        pub dst_port: u16,
        pub padding: u32,
    } size 48;

    /// Value of `rdr_client`, `rdr_accepted` (both storage of sockets) and `rdr_flows`: where a connection was meant to go.
    pub struct OrigDstEntry {
        /// IPv4 as v4-mapped.
        pub addr: Addr,
        /// The cgroup v2 id of the task that called `connect()`.
        pub cgroup: u64,
        pub netns_cookie: u64,
        /// Cookie of the connecting socket: only its end may remove what it published.
        pub owner: u64,
        /// The pod's number.
        pub pod: u32,
        /// In host byte order.
        pub port: u16,
        /// Where it was sent instead, in host byte order.
        pub target_port: u16,
    } size 48;

    /// The only value of `rdr_node`: what mode `node` has made on the node.
    pub struct NodeEntry {
        /// The index of the interface where packets are delivered to the proxy.
        pub device: u32,
        /// Not 0: `net.ipv4.tcp_early_demux` was on before.
        pub early_demux: u32,
    } size 8;

    /// Key of `rdr_dns`: the local address that stands for a DNS server, in one namespace.
    pub struct DnsKey {
        pub netns_cookie: u64,
        pub target: Addr,
    } size 24;

    /// Value of `rdr_dns`: the DNS server that an app asks over UDP.
    pub struct DnsEntry {
        pub addr: Addr,
        /// Not given to another server before: nanoseconds of CLOCK_MONOTONIC.
        pub held_until: u64,
        /// In host byte order.
        pub port: u16,
        pub padding: [u16; 3],
    } size 32;

    /// The only value of `rdr_settings`.
    pub struct Settings {
        /// Not zero: one event per decision.
        pub events: u32,
        /// How many connects of one pod may be under way, so that it cannot take all of `rdr_flows`.
        pub max_flows_per_pod: u32,
    } size 8;
}

const _: () = assert!(offset_of!(PodEntry, pod) == 32 && offset_of!(PodEntry, outbound_port) == 40);
const _: () = assert!(offset_of!(FlowKey, dst) == 24 && offset_of!(FlowKey, src_port) == 40);
const _: () =
    assert!(offset_of!(OrigDstEntry, owner) == 32 && offset_of!(OrigDstEntry, port) == 44);

const _: () = assert!(MAX_PODS <= 1 << 16 && offset_of!(NetKey, addr) == 4);
const _: () = assert!(offset_of!(InboundEntry, pod) == 8 && offset_of!(PassKey, src_port) == 32);

impl NetKey {
    /// The bits of a whole key: what a lookup asks for.
    pub const BITS: u32 = 32 + 128;
}

/// Ports and networks that a pod's options name: one map has all lists of all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum List {
    /// Destinations that outbound capture leaves alone.
    ExcludedOutbound,
    /// Destinations that alone it captures.
    IncludedOutbound,
    /// Own ports, and sources, that inbound capture leaves alone.
    ExcludedInbound,
    /// Own ports, and sources, that alone it captures.
    IncludedInbound,
    /// Own ports that may be probed.
    Probed,
}

/// Who makes a connection that inbound capture lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Caller {
    /// The proxy, to an app.
    Proxy,
    /// Kubelet, or who else probes.
    Prober,
}

/// The proxy's sockets of a pod, which arriving packets can be steered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketKind {
    Outbound,
    InboundPlaintext,
    Hbone,
    DnsTcp,
    DnsUdp,
}

impl SocketKind {
    /// How many each pod has place for.
    pub const PLACES: u32 = 8;

    /// The key in `rdr_sockets`.
    #[inline(always)]
    pub const fn place(self, pod: u32) -> u32 {
        pod * Self::PLACES + self as u32
    }
}

/// Bits of [`PodEntry::flags`]: what a pod does not use costs it nothing.
pub mod pod_flags {
    /// The pod has entries in `rdr_own`.
    pub const MORE_ADDRESSES: u32 = 1 << 0;
    /// The pod has ports, or networks, in [`List::ExcludedOutbound`](super::List).
    pub const EXCLUDED_PORTS: u32 = 1 << 1;
    pub const EXCLUDED_NETS: u32 = 1 << 2;
    pub const EXEMPT_CGROUPS: u32 = 1 << 3;
    /// 169.254.169.254 is captured too.
    pub const CAPTURE_METADATA: u32 = 1 << 4;
    /// The pod has ports, or networks, in [`List::IncludedOutbound`](super::List).
    pub const INCLUDED_PORTS: u32 = 1 << 5;
    pub const INCLUDED_NETS: u32 = 1 << 6;
    /// While no proxy listens, connections go on without one.
    pub const PASS_ON_FAILURE: u32 = 1 << 7;
    /// The proxy is a process of the pod itself, in an exempt cgroup.
    pub const DEDICATED: u32 = 1 << 8;
    /// A guard is on the pod's interfaces: what is let pass has to be marked.
    pub const GUARDED: u32 = 1 << 16;
    /// Several workloads share the namespace: whose a connection is, the caller's cgroup says (`rdr_sharers`).
    pub const BY_CGROUP: u32 = 1 << 17;
}

/// Bits of [`InboundEntry::flags`].
pub mod inbound_flags {
    /// The pod has ports, or networks, in [`List::ExcludedInbound`](super::List).
    pub const EXCLUDED_PORTS: u32 = 1 << 0;
    pub const EXCLUDED_NETS: u32 = 1 << 1;
    /// The pod has ports, or networks, in [`List::IncludedInbound`](super::List).
    pub const INCLUDED_PORTS: u32 = 1 << 2;
    pub const INCLUDED_NETS: u32 = 1 << 3;
    /// Connections in plaintext are not captured.
    pub const BYPASS: u32 = 1 << 4;
    /// While no proxy listens, connections go on without one.
    pub const PASS_ON_FAILURE: u32 = 1 << 5;
    /// Only ports in [`List::Probed`](super::List) may be probed; otherwise all may.
    pub const PROBED_PORTS: u32 = 1 << 6;
    /// The proxy serves metrics and readiness inside the pod.
    pub const SERVES_ADMIN: u32 = 1 << 7;
    /// Workloads share the address: only what is in `rdr_services` is captured.
    pub const SHARED: u32 = 1 << 16;
}

/// Names of the maps, which are those of their pins.
pub mod names {
    pub const PODS: &str = "rdr_pods";
    pub const PENDING: &str = "rdr_pending";
    pub const OWN: &str = "rdr_own";
    pub const PORTS: &str = "rdr_ports";
    pub const NETS: &str = "rdr_nets";
    pub const EXEMPT_CGROUPS: &str = "rdr_xcgroups";
    pub const FLOWS: &str = "rdr_flows";
    pub const CLIENT: &str = "rdr_client";
    pub const ACCEPTED: &str = "rdr_accepted";
    pub const DNS: &str = "rdr_dns";
    pub const SETTINGS: &str = "rdr_settings";
    pub const COUNTERS: &str = "rdr_counters";
    pub const EVENTS: &str = "rdr_events";
    pub const INBOUND: &str = "rdr_inbound";
    pub const SOCKETS: &str = "rdr_sockets";
    pub const PASS: &str = "rdr_pass";
    pub const PASSING: &str = "rdr_passing";
    pub const BARRED: &str = "rdr_barred";
    pub const SHARERS: &str = "rdr_sharers";
    pub const SERVICES: &str = "rdr_services";
    pub const PROXIES: &str = "rdr_proxies";
    pub const KNOWN: &str = "rdr_known";

    pub const NODE: &str = "rdr_node";
    pub const NODE_PODS: &str = "rdr_node_pods";

    pub const ALL: [&str; 24] = [
        PODS,
        PENDING,
        OWN,
        PORTS,
        NETS,
        EXEMPT_CGROUPS,
        FLOWS,
        CLIENT,
        ACCEPTED,
        DNS,
        SETTINGS,
        COUNTERS,
        EVENTS,
        INBOUND,
        SOCKETS,
        PASS,
        PASSING,
        BARRED,
        SHARERS,
        SERVICES,
        PROXIES,
        KNOWN,
        NODE,
        NODE_PODS,
    ];
}

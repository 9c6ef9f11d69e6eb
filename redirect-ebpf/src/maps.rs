//! Every map. Their names are those of `redirect_common::maps::names`; the daemon pins all of them.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_EXIST, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockMap},
    helpers::generated::{
        bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
    },
    macros::btf_map,
};
use redirect_common::{
    Addr, counter,
    maps::{
        CgroupKey, DnsEntry, DnsKey, EVENTS_BYTES, FlowKey, InboundEntry, MAX_BARRED,
        MAX_DNS_SERVERS, MAX_EXEMPT_CGROUPS, MAX_FLOWS, MAX_INBOUND_ADDRESSES, MAX_NETS,
        MAX_OWN_ADDRESSES, MAX_PASSING, MAX_PASSING_PER_POD, MAX_PODS, MAX_PORTS, MAX_PROXIES,
        MAX_SERVICES, MAX_SHARERS, NetKey, NodeEntry, OrigDstEntry, OwnKey, PassEntry, PassKey,
        PodEntry, PortKey, ServiceKey, Settings, SharerKey, SocketKind,
    },
};

/// BPF_F_NO_PREALLOC: memory for what is there, not for what may be.
const ON_DEMAND: usize = 1;

/// Captured pods by the cookie of their network namespace.
#[btf_map(name = "rdr_pods")]
pub static PODS: HashMap<u64, PodEntry, { MAX_PODS as usize }> = HashMap::new();

/// How many entries of `rdr_flows` each pod holds, by the pod's number.
#[btf_map(name = "rdr_pending")]
static PENDING: Array<i64, { MAX_PODS as usize }> = Array::new();

#[btf_map(name = "rdr_own")]
pub static OWN: HashMap<OwnKey, u8, { MAX_OWN_ADDRESSES as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "rdr_ports")]
pub static PORTS: HashMap<PortKey, u8, { MAX_PORTS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "rdr_nets")]
pub static NETS: LpmTrie<NetKey, u8, { MAX_NETS as usize }> = LpmTrie::new();

#[btf_map(name = "rdr_xcgroups")]
pub static EXEMPT_CGROUPS: HashMap<CgroupKey, u8, { MAX_EXEMPT_CGROUPS as usize }, ON_DEMAND> =
    HashMap::new();

/// Workloads that share a network namespace.
#[btf_map(name = "rdr_sharers")]
pub static SHARERS: HashMap<SharerKey, PodEntry, { MAX_SHARERS as usize }, ON_DEMAND> =
    HashMap::new();

/// What these serve, with their numbers.
#[btf_map(name = "rdr_services")]
pub static SERVICES: HashMap<ServiceKey, u32, { MAX_SERVICES as usize }, ON_DEMAND> =
    HashMap::new();

/// Connects between `connect()` and accept. Not an LRU map: one pod must not push out what another waits for.
#[btf_map(name = "rdr_flows")]
static FLOWS: HashMap<FlowKey, OrigDstEntry, { MAX_FLOWS as usize }> = HashMap::new();

/// Where a captured socket was meant to go, on the socket itself.
#[btf_map(name = "rdr_client")]
pub static CLIENT: SkStorage<OrigDstEntry> = SkStorage::new();

/// The same on the socket that the proxy accepted.
#[btf_map(name = "rdr_accepted")]
pub static ACCEPTED: SkStorage<OrigDstEntry> = SkStorage::new();

/// DNS servers that pods ask over UDP.
#[btf_map(name = "rdr_dns")]
static DNS: HashMap<DnsKey, DnsEntry, { MAX_DNS_SERVERS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "rdr_settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "rdr_counters")]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNTERS as usize }> = PerCpuArray::new();

/// Entries are `redirect_common::event::Event`. Without a value type in the definition, libbpf can load the object too.
#[btf_map(name = "rdr_events")]
pub static EVENTS: RingBuf<(), { EVENTS_BYTES as usize }> = RingBuf::new();

/// Pods by the addresses at which they are reached.
#[btf_map(name = "rdr_inbound")]
pub static INBOUND: HashMap<Addr, InboundEntry, { MAX_INBOUND_ADDRESSES as usize }, ON_DEMAND> =
    HashMap::new();

/// The proxy's sockets, at the places that `SocketKind::place` gives. A socket that is closed is gone from here.
#[btf_map(name = "rdr_sockets")]
pub static SOCKETS: SockMap<{ (MAX_PODS * SocketKind::PLACES) as usize }> = SockMap::new();

/// Connections that inbound capture lets pass, from before their SYN to the end of the handshake. Not an LRU map, as `FLOWS`.
#[btf_map(name = "rdr_pass")]
static PASS: HashMap<PassKey, PassEntry, { MAX_PASSING as usize }, ON_DEMAND> = HashMap::new();

/// How many of these go to each pod, by the pod's number.
#[btf_map(name = "rdr_passing")]
static PASSING: Array<i64, { MAX_PODS as usize }> = Array::new();

/// Connections of the proxy that found no place there. They must not be captured, and there is always room for one more.
#[btf_map(name = "rdr_barred")]
pub static BARRED: LruHashMap<PassKey, u8, { MAX_BARRED as usize }> = LruHashMap::new();

/// Cgroups whose processes are proxies of ours.
#[btf_map(name = "rdr_proxies")]
pub static PROXIES: HashMap<u64, u8, { MAX_PROXIES as usize }> = HashMap::new();

/// On sockets whose connections capture let pass.
#[btf_map(name = "rdr_known")]
pub static KNOWN: SkStorage<u32> = SkStorage::new();

/// What mode `node` has made on the node.
#[btf_map(name = "rdr_node")]
pub static NODE: Array<NodeEntry, 1> = Array::new();

/// Keys in `rdr_pods` by the index of the node's interface that leads to the pod.
#[btf_map(name = "rdr_node_pods")]
pub static NODE_PODS: HashMap<u32, u64, { MAX_PODS as usize }, ON_DEMAND> = HashMap::new();

#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// The value on `socket`, if it has one.
#[inline(always)]
pub fn on_socket(
    map: &'static SkStorage<OrigDstEntry>,
    socket: *mut bpf_sock,
) -> Option<&'static OrigDstEntry> {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: map and socket are what the kernel gave; the storage lives as long as the socket, which outlives the program.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0)
            .cast::<OrigDstEntry>()
            .as_ref()
    }
}

/// Puts `entry` on `socket`, over what may be there. False if there is no memory for it.
#[inline(always)]
pub fn put_on_socket(
    map: &'static SkStorage<OrigDstEntry>,
    socket: *mut bpf_sock,
    entry: &OrigDstEntry,
) -> bool {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    let value = core::ptr::from_ref(entry).cast_mut();
    // SAFETY: as in `on_socket`; the helper copies `entry` into new storage.
    let stored = unsafe {
        bpf_sk_storage_get(
            map,
            socket.cast(),
            value.cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    if stored.is_null() {
        return false;
    }
    // Storage that was there already keeps its old value. Word by word, since the compiler makes a call of a copy.
    for word in 0..size_of::<OrigDstEntry>() / size_of::<u64>() {
        // SAFETY: both are such entries; the socket is locked, so nobody else writes.
        unsafe {
            let value = core::ptr::from_ref(entry)
                .cast::<u64>()
                .add(word)
                .read_volatile();
            stored.cast::<u64>().add(word).write_volatile(value);
        }
    }
    true
}

#[inline(always)]
pub fn remove_from_socket(map: &'static SkStorage<OrigDstEntry>, socket: *mut bpf_sock) {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: map and socket are what the kernel gave.
    unsafe { bpf_sk_storage_delete(map, socket.cast()) };
}

/// The proxy's socket for the pod, with a reference; null if there is none.
#[inline(always)]
pub fn listener(kind: SocketKind, pod: u32) -> *mut bpf_sock {
    let place = kind.place(pod);
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    // SAFETY: the map and a key of its size.
    unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(&place).cast()).cast() }
}

/// Whether the proxy has this socket for the pod.
#[inline(always)]
pub fn is_listening(kind: SocketKind, pod: u32) -> bool {
    let place = kind.place(pod);
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    // SAFETY: the map and a key of its size. What a sockmap gives is referenced, and released at once.
    unsafe {
        let socket = bpf_map_lookup_elem(map, core::ptr::from_ref(&place).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// Why a flow was not published.
pub enum NotPublished {
    Limit,
    Full,
}

/// Publishes where the connection `key` was meant to go.
#[inline(always)]
pub fn publish(key: &FlowKey, entry: &OrigDstEntry) -> Result<(), NotPublished> {
    let pending = pending(entry.pod).ok_or(NotPublished::Limit)?;
    let limit = settings().map_or(0, |settings| settings.max_flows_per_pod);
    if pending.get() >= i64::from(limit) {
        return Err(NotPublished::Limit);
    }
    if FLOWS.insert(key, entry, BPF_NOEXIST.into()).is_ok() {
        pending.add(1);
        return Ok(());
    }
    // Left over from a connection whose end we were not told of: the tuple is ours now, for the kernel gives a tuple to one
    // socket at a time. It was counted when it came.
    FLOWS
        .insert(key, entry, BPF_EXIST.into())
        .map_err(|_| NotPublished::Full)
}

#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<&'static OrigDstEntry> {
    // SAFETY: the entry of a tuple is removed by one of its two ends, one of which is running this.
    unsafe { FLOWS.get(key) }
}

/// Removes what was published for `key` by a socket of the pod with the number `pod`.
#[inline(always)]
pub fn unpublish(key: &FlowKey, pod: u32) -> bool {
    let removed = FLOWS.remove(key).is_ok();
    if removed && let Some(pending) = pending(pod) {
        pending.add(-1);
    }
    removed
}

/// A DNS server in the map, which other CPUs may read and change meanwhile.
pub struct DnsServer(NonNull<DnsEntry>);

impl DnsServer {
    #[inline(always)]
    pub fn entry(&self) -> &DnsEntry {
        // SAFETY: a value of a hash map stays readable while the program runs. What another CPU may change in place is the
        // time alone, and any of its values will do.
        unsafe { self.0.as_ref() }
    }

    /// Keeps the address for the server until this time.
    #[inline(always)]
    pub fn hold(&self, until: u64) {
        // SAFETY: as in `entry`; one aligned word.
        unsafe {
            let held = &raw mut (*self.0.as_ptr()).held_until;
            if held.read_volatile() < until {
                held.write_volatile(until);
            }
        }
    }
}

#[inline(always)]
pub fn dns_server(key: &DnsKey) -> Option<DnsServer> {
    DNS.get_ptr_mut(key).and_then(NonNull::new).map(DnsServer)
}

/// False if there is one, or no room.
#[inline(always)]
pub fn add_dns_server(key: &DnsKey, entry: &DnsEntry) -> bool {
    DNS.insert(key, entry, BPF_NOEXIST.into()).is_ok()
}

/// Puts a server in the place of one that is not asked any more.
#[inline(always)]
pub fn replace_dns_server(key: &DnsKey, entry: &DnsEntry) -> bool {
    DNS.insert(key, entry, BPF_EXIST.into()).is_ok()
}

/// Registers a connection to pass inbound capture.
#[inline(always)]
pub fn let_pass(key: &PassKey, entry: &PassEntry) -> Result<(), NotPublished> {
    let passing = passing(entry.pod).ok_or(NotPublished::Limit)?;
    if passing.get() >= i64::from(MAX_PASSING_PER_POD) {
        return Err(NotPublished::Limit);
    }
    if PASS.insert(key, entry, BPF_NOEXIST.into()).is_ok() {
        passing.add(1);
        return Ok(());
    }
    // Left over, as in `publish`.
    PASS.insert(key, entry, BPF_EXIST.into())
        .map_err(|_| NotPublished::Full)
}

#[inline(always)]
pub fn passing_flow(key: &PassKey) -> Option<&'static PassEntry> {
    // SAFETY: an entry that is removed meanwhile is that of a connection whose handshake is over.
    unsafe { PASS.get(key) }
}

/// Removes what the socket `owner` registered.
#[inline(always)]
pub fn stop_passing(key: &PassKey, owner: u64) {
    let Some(entry) = passing_flow(key).filter(|entry| entry.owner == owner) else {
        return;
    };
    let pod = entry.pod;
    if PASS.remove(key).is_ok()
        && let Some(passing) = passing(pod)
    {
        passing.add(-1);
    }
}

#[inline(always)]
fn pending(pod: u32) -> Option<Count> {
    PENDING.get_ptr_mut(pod).and_then(NonNull::new).map(Count)
}

#[inline(always)]
fn passing(pod: u32) -> Option<Count> {
    PASSING.get_ptr_mut(pod).and_then(NonNull::new).map(Count)
}

/// A counter that all CPUs change. `core` has no atomic addition for BPF.
struct Count(NonNull<i64>);

impl Count {
    #[inline(always)]
    fn get(&self) -> i64 {
        // SAFETY: a value of an array map, which is aligned and stays where it is.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn add(&self, number: i64) {
        // SAFETY: as in `get`; the instruction is an atomic addition (BPF_ATOMIC | BPF_ADD).
        unsafe {
            asm!("lock *(u64 *)({counter} + 0) += {number}", counter = in(reg) self.0.as_ptr(), number = in(reg) number)
        };
    }
}

//! What the decisions ask beyond a pod's entry, answered from the maps.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_current_cgroup_id, generated::bpf_get_current_ancestor_cgroup_id},
};
use redirect_common::{
    Addr, Reason,
    decide::{Decision, Lists, Lookups},
    inbound,
    maps::{
        CgroupKey, FlowKey, InboundEntry, List, NetKey, OwnKey, PassEntry, PassKey, PodEntry,
        PortKey, ServiceKey, SharerKey, SocketKind, pod_flags,
    },
};

use crate::maps::{
    self, BARRED, EXEMPT_CGROUPS, INBOUND, NETS, OWN, PODS, PORTS, SERVICES, SHARERS,
};

/// How deep in the hierarchy an exempt cgroup is found: `kubepods/burstable/podX/container/…` needs 5.
const MAX_CGROUP_DEPTH: i32 = 16;

pub struct Maps;

/// The pod that makes calls in a namespace: the one that has it, or the workload in whose cgroup the caller is.
#[inline(always)]
pub fn calling_pod(netns_cookie: u64) -> Result<&'static PodEntry, Decision> {
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let pod = unsafe { PODS.get(netns_cookie) };
    let pod = pod.ok_or(Decision::Pass(Reason::ForeignNetns))?;
    if pod.flags & pod_flags::BY_CGROUP == 0 {
        return Ok(pod);
    }
    sharer(netns_cookie).ok_or(Decision::Refuse(Reason::UnknownCaller))
}

#[inline(always)]
fn sharer(netns_cookie: u64) -> Option<&'static PodEntry> {
    // SAFETY: a helper without arguments.
    let mut cgroup = unsafe { bpf_get_current_cgroup_id() };
    let mut level = 0;
    loop {
        let key = SharerKey {
            netns_cookie,
            cgroup,
        };
        // SAFETY: as in `calling_pod`.
        if let Some(pod) = unsafe { SHARERS.get(key) } {
            return Some(pod);
        }
        level += 1;
        if level > MAX_CGROUP_DEPTH {
            return None;
        }
        // SAFETY: a helper that takes a number; 0 means that there is no such level.
        cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return None;
        }
    }
}

impl Lists for Maps {
    #[inline(always)]
    fn has_port(&self, list: List, pod: u32, port: u16) -> bool {
        let list = list as u16;
        // SAFETY: nothing is read through the reference.
        unsafe { PORTS.get(PortKey { pod, port, list }) }.is_some()
    }

    #[inline(always)]
    fn has_net(&self, list: List, pod: u32, addr: &Addr) -> bool {
        let key = NetKey {
            pod: pod as u16,
            list: list as u16,
            addr: *addr,
        };
        NETS.get(&Key::new(NetKey::BITS, key)).is_some()
    }
}

impl inbound::Lookups for Maps {
    #[inline(always)]
    fn pod_at(&self, addr: &Addr) -> Option<InboundEntry> {
        // SAFETY: entries are replaced as a whole, and only when a pod changes.
        unsafe { INBOUND.get(addr) }.copied()
    }

    #[inline(always)]
    fn passing(&self, flow: &PassKey) -> Option<PassEntry> {
        maps::passing_flow(flow).copied()
    }

    #[inline(always)]
    fn is_served(&self, addr: &Addr, port: u16) -> bool {
        let key = ServiceKey {
            addr: *addr,
            port,
            padding: 0,
        };
        // SAFETY: nothing is read through the reference.
        unsafe { SERVICES.get(key) }.is_some()
    }

    #[inline(always)]
    fn is_barred(&self, flow: &PassKey) -> bool {
        // SAFETY: nothing is read through the reference.
        unsafe { BARRED.get(flow) }.is_some()
    }

    #[inline(always)]
    fn is_redirected(&self, netns_cookie: u64, flow: &PassKey) -> bool {
        maps::flow(&FlowKey {
            netns_cookie,
            src: flow.src,
            dst: flow.dst,
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            padding: 0,
        })
        .is_some()
    }
}

impl Lookups for Maps {
    #[inline(always)]
    fn is_own(&self, pod: u32, addr: &Addr) -> bool {
        // SAFETY: nothing is read through the reference.
        unsafe { OWN.get(OwnKey { pod, addr: *addr }) }.is_some()
    }

    #[inline(always)]
    fn is_listening(&self, kind: SocketKind, pod: u32) -> bool {
        maps::is_listening(kind, pod)
    }

    #[inline(always)]
    fn is_exempt_caller(&self, pod: u32) -> bool {
        // SAFETY: a helper without arguments.
        let mut cgroup = unsafe { bpf_get_current_cgroup_id() };
        let mut level = 0;
        loop {
            // SAFETY: nothing is read through the reference.
            if unsafe {
                EXEMPT_CGROUPS.get(CgroupKey {
                    cgroup,
                    pod,
                    padding: 0,
                })
            }
            .is_some()
            {
                return true;
            }
            // Level 0 is the root, which is nobody's pod.
            level += 1;
            if level > MAX_CGROUP_DEPTH {
                return false;
            }
            // SAFETY: a helper that takes a number; 0 means that there is no such level.
            cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
            if cgroup == 0 {
                return false;
            }
        }
    }
}

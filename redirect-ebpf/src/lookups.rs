//! What the decision asks beyond the pod's entry, answered from the maps.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_current_cgroup_id, generated::bpf_get_current_ancestor_cgroup_id},
};
use redirect_common::{
    Addr,
    decide::Lookups,
    maps::{CgroupKey, NetKey, OwnKey, PortKey},
};

use crate::maps::{EXCLUDED_NETS, EXCLUDED_PORTS, EXEMPT_CGROUPS, OWN};

/// How deep in the hierarchy an exempt cgroup is found: `kubepods/burstable/podX/container/…` needs 5.
const MAX_CGROUP_DEPTH: i32 = 16;

pub struct Maps;

impl Lookups for Maps {
    #[inline(always)]
    fn is_own(&self, pod: u32, addr: &Addr) -> bool {
        // SAFETY: nothing is read through the reference.
        unsafe { OWN.get(OwnKey { pod, addr: *addr }) }.is_some()
    }

    #[inline(always)]
    fn is_excluded_port(&self, pod: u32, port: u16) -> bool {
        // SAFETY: nothing is read through the reference.
        unsafe {
            EXCLUDED_PORTS.get(PortKey {
                pod,
                port,
                padding: 0,
            })
        }
        .is_some()
    }

    #[inline(always)]
    fn is_excluded_net(&self, pod: u32, addr: &Addr) -> bool {
        EXCLUDED_NETS
            .get(&Key::new(NetKey::BITS, NetKey { pod, addr: *addr }))
            .is_some()
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

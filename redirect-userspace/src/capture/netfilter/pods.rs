//! The backend: captured pods with the rules that each of them has.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    NetfilterError, Tool, cgroup_path, clean, families,
    node::{NodeRules, Probers, Purpose},
    plan::{self, CgroupPath, Exemption, Needs, PROXY_UID, Plan},
    rules::Rules,
};
use crate::{
    capture::{Applied, Capture, CaptureError, Repair, Sockets, none::NoResolver},
    config::{Mode, ProberCgroups},
    orig_dst::OrigDstResolver,
    pod::{OnProxyFailure, Pod, PodUid},
    sys::netns::Netns,
};

/// How pods are captured.
#[derive(Clone, Debug)]
pub struct Setting {
    pub mode: Mode,
    /// The proxy's cgroup.
    pub proxy: PathBuf,
    /// With [`Mode::Dedicated`]: the proxy is known by this user, and not by its cgroup.
    pub exempt_uid: Option<u32>,
    /// Who probes pods. Without one, probes are captured as every other connection.
    pub probers: ProberCgroups,
    /// Whether the proxy serves DNS.
    pub dns: bool,
    /// With [`Mode::Shared`]: the proxy is another's, which marks its sockets as Istio's does, and is known by that.
    pub by_mark: bool,
}

/// Captures pods by rules in their namespaces, or in mode `node` in the node's.
pub struct NetfilterCapture {
    tool: Tool,
    mode: Mode,
    proxy: CgroupPath,
    /// That of the daemon from which this one takes over, while it runs.
    predecessor: Option<CgroupPath>,
    exempt_uid: Option<u32>,
    dns: bool,
    by_mark: bool,
    node: Option<NodeRules>,
    pods: BTreeMap<PodUid, Captured>,
}

struct Captured {
    pod: Pod,
    netns: Netns,
    /// In the pod's namespace.
    rules: Option<(Vec<Plan>, Rules)>,
}

impl NetfilterCapture {
    pub fn new(tool: Tool, setting: &Setting) -> Result<Self, CaptureError> {
        let purpose = match setting.mode {
            Mode::Shared => Some(Purpose::Probes(Probers::find(&setting.probers))),
            // A proxy in a pod has no way to the node's namespace.
            Mode::Dedicated => None,
            Mode::Node => Some(Purpose::Proxy { dns: setting.dns }),
        };
        let node = purpose.map(|purpose| NodeRules::open(tool, purpose));
        Ok(Self {
            tool,
            mode: setting.mode,
            proxy: cgroup_path(&setting.proxy)?,
            predecessor: None,
            exempt_uid: setting.exempt_uid,
            dns: setting.dns,
            by_mark: setting.by_mark,
            node: node.transpose()?,
            pods: BTreeMap::new(),
        })
    }

    fn plans(
        &self,
        pod: &Pod,
        netns: &Netns,
        exemption: Exemption,
    ) -> Result<Vec<Plan>, NetfilterError> {
        let exempt = pod.options.exempt_cgroups.iter();
        let exempt = exempt.map(|path| cgroup_path(path));
        let predecessor = self.predecessor.iter().cloned().map(Ok);
        let exempt = exempt.chain(predecessor);
        let probes = self.node.as_ref().is_some_and(NodeRules::has_probers);
        let needs = Needs::new(
            match self.mode {
                Mode::Dedicated => plan::Mode::Dedicated,
                Mode::Shared | Mode::Node => plan::Mode::Shared,
            },
            exemption,
            exempt.collect::<Result<_, _>>()?,
            &pod.options,
            probes,
        );
        let needs = Needs {
            capture_dns: needs.capture_dns && self.dns,
            ..needs
        };
        let families = families(netns)?;
        Ok(families.into_iter().map(|f| needs.plan(f)).collect())
    }

    /// By the proxy's cgroup, or by its mark if it is another's; in a pod, where that is wanted or the kernel cannot match it, by the user that it runs as.
    fn choose(&self, pod: &Pod, netns: &Netns) -> Result<(Vec<Plan>, Rules), NetfilterError> {
        if let (Mode::Dedicated, Some(uid)) = (self.mode, self.exempt_uid) {
            let plans = self.plans(pod, netns, Exemption::Uid(uid))?;
            let rules = Rules::choose(self.tool, netns, &plans)?;
            return Ok((plans, rules));
        }
        if self.by_mark {
            let plans = self.plans(pod, netns, Exemption::Mark)?;
            let rules = Rules::choose(self.tool, netns, &plans)?;
            return Ok((plans, rules));
        }
        let plans = self.plans(pod, netns, Exemption::Cgroup(self.proxy.clone()))?;
        match Rules::choose(self.tool, netns, &plans) {
            Ok(rules) => Ok((plans, rules)),
            Err(error) => {
                let may_be_user =
                    self.mode == Mode::Dedicated && nix::unistd::geteuid().as_raw() == PROXY_UID;
                if !may_be_user {
                    return Err(error);
                }
                let by_user = self.plans(pod, netns, Exemption::Uid(PROXY_UID))?;
                let rules = Rules::choose(self.tool, netns, &by_user).map_err(|_| error)?;
                tracing::warn!(pod = %pod.uid, "the kernel cannot match cgroups: user {PROXY_UID} is exempt, whoever takes that id");
                Ok((by_user, rules))
            }
        }
    }

    /// Makes all rules anew if somebody else probes pods now.
    fn renew_probers(&mut self) -> Result<(), CaptureError> {
        if !self.node.as_mut().is_some_and(NodeRules::renew) {
            return Ok(());
        }
        let node = self.update_node(None, None);
        let pods = self.renew_pods();
        CaptureError::collect([node, pods].into_iter().filter_map(Result::err).collect())?;
        tracing::info!("whoever probes pods is another one now: their rules were made anew");
        Ok(())
    }

    /// Makes the rules of all pods anew.
    fn renew_pods(&mut self) -> Result<(), CaptureError> {
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        let mut errors = Vec::new();
        for uid in uids {
            let Some(captured) = self.pods.remove(&uid) else {
                continue;
            };
            let Captured { pod, netns, rules } = captured;
            let renewed = self.choose(&pod, &netns).and_then(|(plans, rules)| {
                rules.apply_in(&netns, &plans)?;
                Ok((plans, rules))
            });
            let rules = match renewed {
                Ok(renewed) => Some(renewed),
                Err(error) => {
                    errors.push(error.into());
                    rules
                }
            };
            self.pods.insert(uid, Captured { pod, netns, rules });
        }
        CaptureError::collect(errors)
    }

    /// The node's rules for the captured pods, `added` included and `removed` not.
    fn update_node(
        &mut self,
        added: Option<&Pod>,
        removed: Option<&PodUid>,
    ) -> Result<(), CaptureError> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        let skipped = added.map(|pod| &pod.uid).or(removed);
        let others = self.pods.values().map(|captured| &captured.pod);
        let pods = others.filter(|pod| Some(&pod.uid) != skipped).chain(added);
        node.apply(pods)
    }

    /// By what the rules say, and no socket.
    fn redirect(&mut self, pod: &Pod, netns: &Netns) -> Result<Applied, CaptureError> {
        if pod.cgroup_only.is_some() {
            return Err(CaptureError::CgroupOnly);
        }
        let rules = match self.mode {
            Mode::Shared | Mode::Dedicated => Some(self.choose(pod, netns)?),
            Mode::Node => None,
        };
        // A probe that the pod does not know yet is captured; what is not a probe is never taken for one.
        self.update_node(Some(pod), None)?;
        let applied = match &rules {
            Some((plans, rules)) => rules.apply_in(netns, plans),
            None => Ok(Applied::Attached),
        };
        match applied {
            Ok(applied) => {
                let captured = Captured {
                    pod: pod.clone(),
                    netns: netns.clone(),
                    rules,
                };
                self.pods.insert(pod.uid.clone(), captured);
                Ok(applied)
            }
            Err(error) => {
                if !self.pods.contains_key(&pod.uid) {
                    // The error that is returned is the one to know of.
                    let _ = self.update_node(None, Some(&pod.uid));
                }
                Err(error.into())
            }
        }
    }
}

impl Capture for NetfilterCapture {
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        _: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        self.redirect(pod, netns)
    }

    fn apply_for_another(&mut self, pod: &Pod, netns: &Netns) -> Result<Applied, CaptureError> {
        self.redirect(pod, netns)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let Some(captured) = self.pods.remove(uid) else {
            return Ok(());
        };
        let node = self.update_node(None, Some(uid));
        let cleaned = match captured.rules {
            Some(_) => clean(&captured.netns).map(drop),
            None => Ok(()),
        };
        CaptureError::collect(
            [node, cleaned]
                .into_iter()
                .filter_map(Result::err)
                .collect(),
        )
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        let mut captured = Vec::new();
        for (uid, pod) in &self.pods {
            let in_force = match &pod.rules {
                Some((plans, rules)) => rules.differences_in(&pod.netns, plans)?.is_empty(),
                None => true,
            };
            captured.extend(in_force.then(|| uid.clone()));
        }
        Ok(captured)
    }

    fn faults(&self, uid: &PodUid) -> Result<Vec<String>, CaptureError> {
        let Some(captured) = self.pods.get(uid) else {
            return Ok(vec!["its capture was not applied".to_owned()]);
        };
        Ok(match &captured.rules {
            Some((plans, rules)) => rules.differences_in(&captured.netns, plans)?,
            None => Vec::new(),
        })
    }

    fn reassert(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        let probers = Repair::of("node", self.renew_probers().map(|()| Vec::new()));
        // What failed before is tried again.
        let is_pending = self.node.as_ref().is_some_and(NodeRules::is_pending);
        let pending = match is_pending && probers.is_none() {
            true => self.update_node(None, None).map(|()| Vec::new()),
            false => Ok(Vec::new()),
        };
        let pending = Repair::of("node", pending);
        let node = self.node.as_ref();
        let node = node.and_then(|node| Repair::of("node", node.reassert()));
        let pods = pods.iter().filter_map(|uid| {
            let captured = self.pods.get(uid)?;
            let (plans, rules) = captured.rules.as_ref()?;
            Repair::of(uid.as_str(), repair(rules, &captured.netns, plans))
        });
        probers
            .into_iter()
            .chain(pending)
            .chain(node)
            .chain(pods)
            .collect()
    }

    fn succeed(&mut self, predecessor: &Path) -> Result<(), CaptureError> {
        let predecessor = cgroup_path(predecessor)?;
        self.predecessor = (predecessor != self.proxy).then_some(predecessor);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), CaptureError> {
        match self.predecessor.take() {
            Some(_) if self.mode != Mode::Node => self.renew_pods(),
            _ => Ok(()),
        }
    }

    fn stand_down(&mut self) -> Result<(), CaptureError> {
        let passing: HashSet<PodUid> = self
            .pods
            .values()
            .filter(|captured| captured.pod.options.on_proxy_failure == OnProxyFailure::Pass)
            .map(|captured| captured.pod.uid.clone())
            .collect();
        let cleaned = passing.iter().map(|uid| self.clean(uid));
        CaptureError::collect(cleaned.filter_map(Result::err).collect())
    }

    fn resolver(&self) -> Arc<dyn OrigDstResolver> {
        // Conntrack is asked by the next of the chain.
        Arc::new(NoResolver)
    }

    fn name(&self) -> &'static str {
        match self.tool {
            Tool::Nftables => "nftables",
            Tool::Iptables | Tool::IptablesNft | Tool::IptablesLegacy => "iptables",
        }
    }
}

/// Makes `plans` true again in `netns`; tells in words what was not.
pub(super) fn repair(
    rules: &Rules,
    netns: &Netns,
    plans: &[Plan],
) -> Result<Vec<String>, CaptureError> {
    let differences = rules.differences_in(netns, plans)?;
    if !differences.is_empty() {
        rules.apply_in(netns, plans)?;
    }
    Ok(differences)
}

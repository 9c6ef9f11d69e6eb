//! The daemon: puts its parts together, captures the configured pods, and lets go in order.

mod agent;
pub mod handover;
mod instance;
mod own_cgroup;
pub mod pods;
mod record;
mod shift;
mod sources;
mod supervisor;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use redirect_common::ports;
use tokio::signal::unix::{SignalKind, signal};

pub use self::supervisor::Supervisor;
use self::{
    handover::{Event, Way},
    instance::Instance,
    pods::Pods,
    shift::{Shift, Turn},
};
use crate::{
    admin::{self, Readiness},
    capture,
    config::{Backend, Config},
    dns,
    identity::{self, IdentityStore, SystemClock, tls::TlsConfigs},
    node::{agent::Agent, remembered::Remembered, zds::server::Server},
    orig_dst::{Chain, Conntrack, SoOriginalDst},
    proxy::{Shared, Workers},
    telemetry::{self, Direction, Metrics},
    workload::{Defaults, WorkloadStore},
};

/// How long a daemon that is taken over from accepts what already began to connect to it, with one lost packet on the way.
const LATE_HANDSHAKES: Duration = Duration::from_secs(2);
/// How long a daemon that takes over waits for the first workload data.
const FIRST_WORKLOADS: Duration = Duration::from_secs(30);

/// How the daemon is started.
#[derive(Debug, Default)]
pub struct Start {
    /// From the daemon that has the state directory, if one has.
    pub take_over: bool,
    pub supervisor: Supervisor,
}

/// Runs until SIGTERM or SIGINT, or until another daemon has taken over; then drains.
pub fn run(mut config: Config, start: Start) -> anyhow::Result<()> {
    telemetry::log::start(&config.log).context("log.filter")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let claim = handover::claim(&config.state_dir, start.take_over);
    let (instance, predecessor) = runtime.block_on(claim)?;
    // Before any thread exists: threads started earlier would stay in the old cgroup.
    let cgroup = match config.capture.backend {
        Backend::None => None,
        Backend::Auto | Backend::Ebpf | Backend::Iptables | Backend::Nftables => {
            let configured = config.capture.cgroup.as_deref();
            let is_alone = predecessor.is_none();
            Some(own_cgroup::enter(&config.state_dir, configured, is_alone)?)
        }
    };
    config.capture = capture::choose_backend(config.capture)?;
    let (way, cgroup) = (Way::of(&config.capture), cgroup.as_deref());
    let shift = Shift::new(instance, predecessor, way, cgroup)?;
    runtime.block_on(daemon(config, cgroup, shift, &start.supervisor))
}

async fn daemon(
    config: Config,
    cgroup: Option<&Path>,
    mut shift: Shift,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let clock = Arc::new(SystemClock);
    let source =
        identity::source::from_config(&config.identity, &config.trust_domain, clock.clone())?;
    let identities = IdentityStore::new(source, clock)?;
    tokio::spawn(identities.clone().run());

    let workloads = WorkloadStore::new();
    let defaults = Defaults {
        trust_domain: config.trust_domain.clone(),
    };
    let kubernetes = sources::kubernetes(&config).await?;
    match (&config.workloads, &kubernetes) {
        (Some(file), _) => {
            tokio::spawn(workloads.clone().watch(file.clone(), defaults));
        }
        (None, Some(kubernetes)) => kubernetes.feed(workloads.clone()),
        (None, None) => unreachable!("the configuration names a file unless the API is asked"),
    }

    // Else connections would come to a daemon that holds or refuses them.
    if shift.is_taking_over() && workloads.wait_ready(FIRST_WORKLOADS).await.is_none() {
        anyhow::bail!("no workload data within {FIRST_WORKLOADS:?}: not taking over");
    }
    let mut capture = capture::open(&config.capture, cgroup)?;
    let mut metrics = Metrics::new(&config.node);
    metrics.register(capture.counters(), workloads.clone(), identities.clone());
    let metrics = Arc::new(metrics);
    metrics.dev_ca.set(identities.is_dev_ca().into());

    let readiness = Readiness::default();
    let admin = || admin::start(&config.admin, metrics.clone(), readiness.clone());
    // One daemon at a time can have these.
    let mut endpoints = match shift.is_taking_over() {
        true => None,
        false => Some(admin().await?),
    };
    capture.start();

    let orig_dst = Chain::new(
        vec![capture.resolver(), Arc::new(SoOriginalDst)],
        &ports::IN_POD,
    );
    let dns = Arc::new(dns::Shared {
        config: config.dns.clone(),
        network: config.network.clone(),
        workloads: workloads.clone(),
        orig_dst: orig_dst.clone(),
        servers: vec![capture.dns_servers(), Arc::new(Conntrack)],
        metrics: metrics.clone(),
    });
    let shared = Arc::new(Shared {
        proxy: config.proxy.clone(),
        hbone: config.hbone.clone(),
        network: config.network.clone(),
        cluster_id: config.cluster_id.clone(),
        orig_dst,
        workloads,
        tls: TlsConfigs::new(identities.clone(), &config.trust_domain),
        identities: identities.clone(),
        outbound: metrics.traffic(Direction::outbound),
        inbound: metrics.traffic(Direction::inbound),
        metrics: metrics.clone(),
        dns,
    });
    let workers = Workers::start(config.workers, &shared)?;
    let server = zds_server(&config)?;
    let mut pods = Pods::new(shared, capture, &config.capture, server, &config.state_dir);
    shift.prepare(&mut pods)?;
    let backend = pods.backend();
    let (agent, orders) = Agent::new();
    let sources = sources::of(&config);
    let enrolment = sources::enrolment(&config, kubernetes, &agent);
    let attachments = sources::attachments(&config)?;
    sources::follow_zds(&config, &agent);
    let (asked, pods_wanted) = (agent.clone(), config.pods.clone());
    let serve = || sources::serve_socket(&config, &asked, enrolment.clone(), attachments.clone());
    if !shift.is_taking_over() {
        serve()?;
    }
    let parts = agent::Parts {
        agent,
        orders,
        pods,
        workers,
        identities,
        metrics: metrics.clone(),
        remembered: Remembered::open(
            &config.state_dir,
            &config.trust_domain,
            config.capture.mode,
            &sources,
        ),
        sources,
        drain: config.proxy.drain,
        verify_interval: config.capture.verify_interval,
    };
    let (running, mut first_round) = agent::start(parts, pods_wanted);

    let (mut is_ready, mut successor) = (false, None);
    loop {
        tokio::select! {
            Ok(round) = &mut first_round, if !is_ready => {
                is_ready = true;
                shift.begin(round.captured, round.failed).await?;
                if endpoints.is_none() {
                    endpoints = Some(admin().await?);
                    serve()?;
                }
                if matches!(config.capture.backend, Backend::Iptables | Backend::Nftables) {
                    remove_programs(&config.capture.bpffs, round.failed);
                }
                readiness.set(true);
                supervisor.ready();
                tracing::info!(
                    target: "redirect",
                    pods = round.captured, failed = round.failed, node = config.node, workers = config.workers, backend, "ready"
                );
            }
            turn = shift.next() => match turn {
                Turn::Alone => {
                    tracing::info!(target: "redirect", "the daemon before this one has ended");
                    running.settle();
                }
                Turn::Asked(Event::Asked(answer)) => {
                    tracing::info!(target: "redirect", "another daemon is taking over");
                    match running.pause().await {
                        // It may have gone meanwhile, which the next event says.
                        Ok(estate) => _ = answer.send(estate),
                        Err(error) => {
                            tracing::error!(%error, "cannot hand over");
                            running.resume();
                        }
                    }
                }
                Turn::Asked(Event::Failed(error)) => {
                    tracing::error!(target: "redirect", %error, "the other daemon did not take over: this one goes on");
                    running.resume();
                }
                Turn::Asked(Event::Ready(next)) => {
                    tracing::info!(target: "redirect", limit = ?config.proxy.drain, "another daemon has taken over: draining");
                    successor = Some(next);
                    break;
                }
            },
            _ = terminate.recv() => {
                tracing::info!(target: "redirect", limit = ?config.proxy.drain, "SIGTERM: draining");
                break;
            }
            _ = interrupt.recv() => {
                tracing::info!(target: "redirect", limit = ?config.proxy.drain, "SIGINT: draining");
                break;
            }
            _ = hangup.recv() => {
                tracing::info!(target: "redirect", "SIGHUP: looking after the capture of all pods");
                running.look_after_all();
            }
        }
    }
    readiness.set(false);
    let (mut pods, workers) = running.end().await.context("end the agent's task")?;
    match &successor {
        None => {
            supervisor.stopping();
            pods.stand_down();
        }
        Some(successor) => {
            if let Some(endpoints) = endpoints {
                endpoints.close().await;
            }
            shift.end(successor).await;
            if let Err(error) = workers.leave_dns().await {
                tracing::error!(%error, "DNS queries are received here still");
            }
            tokio::time::sleep(LATE_HANDSHAKES).await;
        }
    }
    pods.close_listeners();
    // Certificates, workload data and metrics go on while connections finish; a second signal ends the wait.
    let drained = tokio::task::spawn_blocking(move || workers.drain());
    tokio::select! {
        result = drained => result.context("drain the workers")?,
        _ = terminate.recv() => tracing::warn!(target: "redirect", "second signal: not waiting any longer"),
        _ = interrupt.recv() => tracing::warn!(target: "redirect", "second signal: not waiting any longer"),
    }
    if successor.is_some() {
        // It has the pods.
    } else if config.capture.detach_on_exit {
        pods.clean_all();
        drop(pods);
        capture::uninstall(&config.capture.bpffs).context("remove the pinned programs and maps")?;
    } else if config.capture.backend != Backend::None {
        tracing::info!(target: "redirect", pods = pods.count(), "capture stays: connections of these pods are refused until a daemon runs again; `redirect uninstall` lets go");
    }
    tracing::info!(target: "redirect", "stopped");
    Ok(())
}

/// Where another's proxy is driven, if one is.
fn zds_server(config: &Config) -> anyhow::Result<Option<Server>> {
    let path = config.agent.zds.serve.as_deref();
    path.map(Server::start)
        .transpose()
        .context("agent.zds.serve")
}

/// Removes what an earlier daemon with the eBPF backend pinned, once all pods are captured by other means: its programs would
/// go on to steer connections to us, and could not tell us where to.
fn remove_programs(bpffs: &Path, failed: usize) {
    if failed > 0 {
        tracing::warn!(
            failed,
            "programs of an earlier daemon, if any, stay: without them the pods that could not be captured would speak in plaintext; repair these pods and start again"
        );
        return;
    }
    match capture::uninstall(bpffs) {
        Ok(0) => {}
        Ok(pins) => tracing::info!(pins, "removed the programs of an earlier daemon"),
        Err(error) => tracing::error!(%error, "cannot remove the programs of an earlier daemon"),
    }
}

/// Lets go of everything that a daemon with these directories left on the node, whether it runs or not.
pub fn uninstall(bpffs: &Path, state_dir: &Path) -> anyhow::Result<usize> {
    let _instance = Instance::claim(state_dir).context("stop the daemon first")?;
    let capture = capture::uninstall(bpffs).context("remove the pinned programs and maps");
    let pods = pods::clean_recorded(state_dir).context("clean up in the pods' namespaces");
    let cgroup = own_cgroup::remove(state_dir);
    drop(_instance);
    let socket = handover::remove(state_dir).context("remove the socket for take-overs");
    let instance = instance::remove(state_dir).context("remove the state directory");
    let removed = capture?;
    pods.and(cgroup).and(socket).and(instance)?;
    Ok(removed)
}

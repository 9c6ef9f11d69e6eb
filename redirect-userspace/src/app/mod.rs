//! The daemon: puts its parts together, captures the configured pods, and lets go in order.

pub mod handover;
mod instance;
mod own_cgroup;
pub mod pods;
mod record;
mod supervisor;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use redirect_common::ports;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use self::{
    handover::{Event, Handover, Predecessor, Way},
    instance::Instance,
    pods::Pods,
};
pub use self::supervisor::Supervisor;
use crate::{
    admin::{self, Readiness},
    capture,
    config::{Backend, Config},
    dns,
    identity::{self, IdentityStore, SystemClock, tls::TlsConfigs},
    orig_dst::{Chain, Conntrack, SoOriginalDst},
    proxy::{Shared, Workers},
    telemetry::{self, Direction, Metrics},
    workload::{Defaults, WorkloadStore},
};

/// Pods whose capture is looked after in one turn: each costs some milliseconds where rules have to be listed.
const VERIFIED_AT_ONCE: usize = 8;

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
    let (instance, predecessor) = runtime.block_on(handover::claim(&config.state_dir, start.take_over))?;
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
    runtime.block_on(daemon(
        config,
        cgroup.as_deref(),
        instance,
        predecessor,
        &start.supervisor,
    ))
}

async fn daemon(
    config: Config,
    cgroup: Option<&Path>,
    instance: Instance,
    mut predecessor: Option<Predecessor>,
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
    tokio::spawn(workloads.clone().watch(config.workloads.clone(), defaults));

    let way = Way::of(&config.capture);
    if let Some(predecessor) = &predecessor {
        predecessor.check(&way)?;
        // Else connections would come to a daemon that holds or refuses them.
        if workloads.wait_ready(FIRST_WORKLOADS).await.is_none() {
            anyhow::bail!("no workload data within {FIRST_WORKLOADS:?}: not taking over");
        }
    }
    let mut capture = capture::open(&config.capture, cgroup)?;
    let mut metrics = Metrics::new(&config.node);
    metrics.register(capture.counters(), workloads.clone(), identities.clone());
    let metrics = Arc::new(metrics);
    metrics.dev_ca.set(identities.is_dev_ca().into());

    let readiness = Readiness::default();
    let admin = || admin::start(&config.admin, metrics.clone(), readiness.clone());
    let mut endpoints = match predecessor {
        None => admin().await?,
        Some(_) => admin::Endpoints::default(),
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
        identities,
        outbound: metrics.traffic(Direction::outbound),
        inbound: metrics.traffic(Direction::inbound),
        metrics: metrics.clone(),
        dns,
    });
    let workers = Workers::start(config.workers, &shared)?;
    let mut pods = Pods::new(shared, capture, config.capture.mode, &config.state_dir);
    match &mut predecessor {
        None => {
            pods.settle();
            pods.remove_stale(&config.pods);
        }
        Some(predecessor) => {
            let sockets = predecessor.sockets();
            pods.succeed(predecessor.cgroup.as_deref(), sockets)?;
        }
    }
    let failed = pods.add_all(config.pods.clone(), &workers).await;
    pods.forget_inherited();
    let mut draining = None;
    if let Some(predecessor) = predecessor {
        if failed > 0 && pods.count() == 0 {
            anyhow::bail!("no pod could be captured: not taking over");
        }
        draining = Some(predecessor.dismiss().await?);
        endpoints = admin().await?;
        pods.remove_stale(&config.pods);
    }
    instance.sign()?;
    let mut handover = Handover::listen(&instance, way, cgroup.map(Path::to_owned))?;
    if matches!(
        config.capture.backend,
        Backend::Iptables | Backend::Nftables
    ) {
        remove_programs(&config.capture.bpffs, failed);
    }
    metrics.pods.set(pods.count() as i64);
    metrics.pods_failed.set(failed as i64);
    readiness.set(true);
    supervisor.ready();
    tracing::info!(
        target: "redirect",
        pods = pods.count(), failed, node = config.node, workers = config.workers, backend = pods.backend(), "ready"
    );

    let interval = config.capture.verify_interval;
    let mut verify = tokio::time::interval_at(Instant::now() + interval, interval);
    verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_handing_over, mut successor) = (false, None);
    loop {
        let ended = async {
            match &draining {
                Some(draining) => draining.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {
                draining = None;
                pods.settle();
                if let Some(own) = cgroup {
                    own_cgroup::remove_others(&config.state_dir, own)?;
                }
                tracing::info!(target: "redirect", "the daemon before this one has ended");
            }
            event = handover.next() => match event {
                // Without an answer it is refused.
                Event::Asked(_) if draining.is_some() => {}
                Event::Asked(answer) => {
                    tracing::info!(target: "redirect", "another daemon is taking over");
                    is_handing_over = true;
                    // It may have gone meanwhile, which the next event says.
                    let _ = answer.send(pods.estate()?);
                }
                Event::Failed(error) => {
                    tracing::error!(target: "redirect", %error, "the other daemon did not take over: this one goes on");
                    is_handing_over = false;
                    pods.resume();
                }
                Event::Ready(next) => {
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
                pods.reassert(usize::MAX);
            }
            _ = verify.tick(), if !is_handing_over => pods.reassert(VERIFIED_AT_ONCE),
        }
    }
    readiness.set(false);
    if successor.is_none() {
        supervisor.stopping();
    }
    match &successor {
        Some(successor) => {
            // The successor has it, and if that one fails another daemon may start beside what is left of this one.
            drop(instance);
            endpoints.close().await;
            successor.release().await;
            workers.leave_dns().await?;
            tokio::time::sleep(LATE_HANDSHAKES).await;
        }
        None => pods.stand_down(),
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
        tracing::info!(target: "redirect", "all connections of before have ended");
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

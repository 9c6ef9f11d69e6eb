//! Worker threads: each owns a runtime, a tunnel pool, and the connections that it accepted.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::LocalOptions,
    sync::{Notify, mpsc, watch},
};

use super::{
    Listeners, PodContext, Shared, connector::TunnelConnector, inbound, listener::accept_loop,
    outbound,
};
use crate::{hbone::pool::Pool, pod::PodUid, sys::memory};

/// Destinations that are counted; forgetting them all now and then only starts the counts again.
const MAX_PICKS: usize = 4096;

/// Fewer tasks than this leave nothing behind that is worth the work.
const SHRINK_FROM: usize = 256;

/// How often idle tunnels are looked for, and memory to give back.
const SWEEP: Duration = Duration::from_secs(5);

/// All worker threads of the daemon.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    commands: Vec<mpsc::UnboundedSender<Command>>,
    drain: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    #[error("start worker thread {index}: {source}")]
    Spawn { index: usize, source: io::Error },
    #[error("clone the listeners of pod {pod}: {source}")]
    Clone { pod: PodUid, source: io::Error },
    #[error("worker thread {0} has ended")]
    Ended(usize),
}

enum Command {
    Add(Arc<PodContext>, Listeners),
    Remove(PodUid),
}

impl Workers {
    pub fn start(count: NonZeroUsize, shared: &Arc<Shared>) -> Result<Self, WorkersError> {
        let drain = watch::Sender::new(false);
        let (mut threads, mut commands) = (Vec::new(), Vec::new());
        for index in 0..count.get() {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (shared, drain) = (shared.clone(), drain.subscribe());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(shared, receiver, drain))
                .map_err(|source| WorkersError::Spawn { index, source })?;
            threads.push(thread);
            commands.push(sender);
        }
        Ok(Self {
            threads,
            commands,
            drain,
        })
    }

    /// Starts to accept the pod's connections, on every worker.
    pub fn add(&self, context: Arc<PodContext>, listeners: &Listeners) -> Result<(), WorkersError> {
        for (index, worker) in self.commands.iter().enumerate() {
            let listeners = listeners
                .try_clone()
                .map_err(|source| WorkersError::Clone {
                    pod: context.pod.uid.clone(),
                    source,
                })?;
            worker
                .send(Command::Add(context.clone(), listeners))
                .map_err(|_| WorkersError::Ended(index))?;
        }
        Ok(())
    }

    /// Stops accepting for the pod. Its established connections go on.
    pub fn remove(&self, pod: &PodUid) {
        for worker in &self.commands {
            // A worker that has ended accepts nothing anyway.
            let _ = worker.send(Command::Remove(pod.clone()));
        }
    }

    /// Stops accepting, lets connections finish until the configured limit, and ends the threads.
    pub fn drain(self) {
        self.drain.send_replace(true);
        drop(self.commands);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// What the connections of one worker share.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub pool: Pool<TunnelConnector>,
    pub drain: watch::Receiver<bool>,
    /// Connections so far by destination, to spread them over the endpoints of a service.
    picks: RefCell<HashMap<SocketAddr, u64>>,
    alive: Cell<usize>,
    /// Most tasks at a time since memory was last given back.
    peak: Cell<usize>,
    ended: Notify,
}

impl Worker {
    /// Counts the connections to one destination. A counter for all would tie services together: an app that calls two in
    /// turn would always meet the same endpoint of each.
    pub fn pick(&self, destination: SocketAddr) -> u64 {
        let mut picks = self.picks.borrow_mut();
        if picks.len() >= MAX_PICKS {
            picks.clear();
        }
        let pick = picks.entry(destination).or_default();
        *pick = pick.wrapping_add(1);
        *pick
    }

    /// Runs `task` as one that a drain waits for.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.alive.set(self.alive.get() + 1);
        self.peak.set(self.peak.get().max(self.alive.get()));
        let alive = Alive(self.clone());
        tokio::task::spawn_local(async move {
            let _alive = alive;
            task.await;
        });
    }

    /// After most connections have ended, gives back what they used: the allocator keeps it, and a burst would be paid for
    /// ever after.
    fn shrink(&self) {
        let (alive, peak) = (self.alive.get(), self.peak.get());
        if peak >= SHRINK_FROM && alive < peak / 2 {
            memory::release_unused();
            self.peak.set(alive);
        }
    }

    async fn all_ended(&self) {
        while self.alive.get() > 0 {
            self.ended.notified().await;
        }
    }
}

/// A guard, so that a task that panics counts as ended too.
struct Alive(Rc<Worker>);

impl Drop for Alive {
    fn drop(&mut self) {
        let alive = self.0.alive.get() - 1;
        self.0.alive.set(alive);
        if alive == 0 {
            self.0.ended.notify_one();
        }
    }
}

fn run(
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    drain: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "start the runtime of a worker");
            return;
        }
    };
    // Not a `LocalSet`: its wake-ups go through the runtime's, which costs a write to an eventfd for each turn of the loop.
    runtime.block_on(serve(shared, commands, drain));
    // Dropping the runtime ends what the drain limit cut off; the sockets close with it.
}

async fn serve(
    shared: Arc<Shared>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    mut drain: watch::Receiver<bool>,
) {
    let pods: Rc<RefCell<HashMap<PodUid, RunningPod>>> = Rc::default();
    let connector = TunnelConnector::new(shared.clone(), pods.clone());
    let worker = Rc::new(Worker {
        pool: Pool::new(connector, shared.hbone.max_tunnels_per_peer),
        shared,
        drain: drain.clone(),
        picks: RefCell::default(),
        alive: Cell::new(0),
        peak: Cell::new(0),
        ended: Notify::new(),
    });
    let mut sweep = tokio::time::interval(SWEEP.min(worker.shared.hbone.idle_timeout));
    loop {
        tokio::select! {
            biased;
            _ = drain.wait_for(|&drain| drain) => break,
            command = commands.recv() => match command {
                Some(Command::Add(context, listeners)) => {
                    if let Some(running) = start_pod(&worker, context, listeners) {
                        pods.borrow_mut().insert(running.context.pod.uid.clone(), running);
                    }
                }
                Some(Command::Remove(uid)) => {
                    pods.borrow_mut().remove(&uid);
                    worker.pool.remove(&uid);
                }
                None => break,
            },
            _ = sweep.tick() => {
                worker.pool.sweep(worker.shared.hbone.idle_timeout);
                worker.shrink();
            }
        }
    }
    for pod in pods.borrow().values() {
        pod.stop.send_replace(true);
    }
    let limit = worker.shared.proxy.drain;
    if tokio::time::timeout(limit, worker.all_ended())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = worker.alive.get(),
            ?limit,
            "drain limit reached, cutting what is left"
        );
    }
}

/// A pod that this worker accepts for.
pub struct RunningPod {
    pub context: Arc<PodContext>,
    /// Dropped with the pod, which stops its accept loops.
    stop: watch::Sender<bool>,
}

impl Drop for RunningPod {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn start_pod(
    worker: &Rc<Worker>,
    context: Arc<PodContext>,
    listeners: Listeners,
) -> Option<RunningPod> {
    let register = |listener| TcpListener::from_std(listener);
    let (outbound, hbone) = match (register(listeners.outbound), register(listeners.hbone)) {
        (Ok(outbound), Ok(hbone)) => (outbound, hbone),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(pod = %context.pod.uid, %error, "register the pod's listeners with the runtime");
            return None;
        }
    };
    let stop = watch::Sender::new(false);
    let (at, pod) = (worker.clone(), context.clone());
    let outbound = accept_loop(
        outbound,
        context.clone(),
        stop.subscribe(),
        move |stream, client| {
            outbound::accepted(&at, &pod, stream, client);
        },
    );
    tokio::task::spawn_local(outbound);
    let inbound = inbound::Acceptor::new(worker.clone(), context.clone());
    let hbone = accept_loop(
        hbone,
        context.clone(),
        stop.subscribe(),
        move |stream, client| inbound.accepted(stream, client),
    );
    tokio::task::spawn_local(hbone);
    Some(RunningPod { context, stop })
}

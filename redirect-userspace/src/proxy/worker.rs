//! Worker threads: each owns a runtime, a tunnel pool, and the connections that it accepted. They are told of sites and pods.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    ops::Range,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::LocalOptions,
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
};

use super::{
    Listeners, PodContext, Shared,
    connector::TunnelConnector,
    site::{SiteId, Tenancy},
    sites::{Pods, Sites},
};
use crate::{dns, hbone::pool::Pool, pod::PodUid, sys::memory};

/// Destinations that are counted; forgetting them all now and then only starts the counts again.
const MAX_PICKS: usize = 4096;

/// Fewer tasks than this leave nothing behind that is worth the work.
const SHRINK_FROM: usize = 256;

/// How often idle tunnels are looked for, and memory to give back.
const SWEEP: Duration = Duration::from_secs(5);

/// All worker threads of the daemon.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    commands: Vec<mpsc::UnboundedSender<Told>>,
    drain: watch::Sender<bool>,
    /// Pods whose DNS queries are answered, so far: each worker serves some.
    dns: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    #[error("start worker thread {index}: {source}")]
    Spawn { index: usize, source: io::Error },
    #[error("clone the listeners: {0}")]
    Clone(#[source] io::Error),
    #[error("register the listeners with a worker's runtime: {0}")]
    Register(#[source] io::Error),
    #[error("worker thread {0} has ended")]
    Ended(usize),
}

/// When connections are taken from listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Now,
    /// At [`Workers::accept_all`]: another daemon accepts on the same sockets, and knows all pods.
    Later,
}

/// What a worker is told; it answers when it is done.
pub(super) enum Command {
    Open(SiteId, Tenancy, Listeners, Accept),
    AcceptAll,
    Join(SiteId, Arc<PodContext>),
    Rejoin(SiteId, Arc<PodContext>, Duration),
    Leave(SiteId, PodUid, Duration),
    Close(SiteId),
    ServeDns(Arc<PodContext>, dns::Sockets),
    LeaveDns,
    EndDns(PodUid),
}

type Told = (Command, oneshot::Sender<io::Result<()>>);

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
            dns: AtomicUsize::new(0),
        })
    }

    /// Starts to accept on the listeners, on every worker, now or later. Until pods join, connections are reset.
    pub async fn open(
        &self,
        site: SiteId,
        tenancy: Tenancy,
        listeners: &Listeners,
        accept: Accept,
    ) -> Result<(), WorkersError> {
        let clones: Result<Vec<_>, _> = self
            .commands
            .iter()
            .map(|_| listeners.try_clone())
            .collect();
        let mut clones = clones.map_err(WorkersError::Clone)?.into_iter();
        self.tell(|| Some(Command::Open(site, tenancy, clones.next()?, accept)))
            .await
    }

    /// Starts to accept wherever that was left for later.
    pub async fn accept_all(&self) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::AcceptAll)).await
    }

    /// From now on the pod's connections are carried.
    pub async fn join(&self, site: SiteId, context: &Arc<PodContext>) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::Join(site, context.clone())))
            .await
    }

    /// From now on the pod is what `context` says, without a moment in which its connections would not be carried. Those that
    /// stand may go on for as long as `drain`, and are then reset.
    pub async fn rejoin(
        &self,
        site: SiteId,
        context: &Arc<PodContext>,
        drain: Duration,
    ) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::Rejoin(site, context.clone(), drain)))
            .await
    }

    /// Takes no more connections of the pod. Those that stand may go on for as long as `drain`, and are then reset.
    pub async fn leave(
        &self,
        site: SiteId,
        pod: &PodUid,
        drain: Duration,
    ) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::Leave(site, pod.clone(), drain)))
            .await
    }

    /// Closes every worker's clones of the listeners.
    pub async fn close(&self, site: SiteId) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::Close(site))).await
    }

    /// Answers the pod's DNS queries until it leaves: on one worker, which so has all that the pod's cache knows.
    pub async fn serve_dns(
        &self,
        context: &Arc<PodContext>,
        sockets: dns::Sockets,
    ) -> Result<(), WorkersError> {
        let turn = self.dns.fetch_add(1, Ordering::Relaxed) % self.commands.len();
        let mut command = Some(Command::ServeDns(context.clone(), sockets));
        self.tell_some(turn..turn + 1, || command.take()).await
    }

    /// Leaves new DNS queries to another daemon that has the same sockets. Those that were received are answered.
    pub async fn leave_dns(&self) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::LeaveDns)).await
    }

    /// Answers the pod's DNS queries no longer.
    pub async fn end_dns(&self, pod: &PodUid) -> Result<(), WorkersError> {
        self.tell(|| Some(Command::EndDns(pod.clone()))).await
    }

    /// Tells each worker a command, and waits until all have done it.
    async fn tell(&self, command: impl FnMut() -> Option<Command>) -> Result<(), WorkersError> {
        self.tell_some(0..self.commands.len(), command).await
    }

    async fn tell_some(
        &self,
        workers: Range<usize>,
        mut command: impl FnMut() -> Option<Command>,
    ) -> Result<(), WorkersError> {
        let mut answers = Vec::new();
        for index in workers {
            let worker = &self.commands[index];
            let (answer, answered) = oneshot::channel();
            let Some(command) = command() else { break };
            worker
                .send((command, answer))
                .map_err(|_| WorkersError::Ended(index))?;
            answers.push((index, answered));
        }
        for (index, answer) in answers {
            answer
                .await
                .map_err(|_| WorkersError::Ended(index))?
                .map_err(WorkersError::Register)?;
        }
        Ok(())
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
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        self.alive.set(self.alive.get() + 1);
        self.peak.set(self.peak.get().max(self.alive.get()));
        let alive = Alive(self.clone());
        tokio::task::spawn_local(async move {
            let _alive = alive;
            task.await;
        })
        .abort_handle()
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

fn run(shared: Arc<Shared>, commands: mpsc::UnboundedReceiver<Told>, drain: watch::Receiver<bool>) {
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
    mut commands: mpsc::UnboundedReceiver<Told>,
    mut drain: watch::Receiver<bool>,
) {
    let pods = Pods::default();
    let connector = TunnelConnector::new(shared.clone(), pods.clone());
    let worker = Rc::new(Worker {
        pool: Pool::new(connector, shared.hbone.max_tunnels_per_peer),
        shared,
        picks: RefCell::default(),
        alive: Cell::new(0),
        peak: Cell::new(0),
        ended: Notify::new(),
    });
    let mut sites = Sites::new(&worker, &pods);
    let mut sweep = tokio::time::interval(SWEEP.min(worker.shared.hbone.idle_timeout));
    loop {
        tokio::select! {
            biased;
            _ = drain.wait_for(|&drain| drain) => break,
            command = commands.recv() => match command {
                Some((command, answer)) => sites.obey_and_answer(command, answer),
                None => break,
            },
            _ = sweep.tick() => {
                worker.pool.sweep(worker.shared.hbone.idle_timeout);
                worker.shrink();
            }
        }
    }
    // Stops the accept loops; the pods stay, for connections that are being opened, and DNS goes on for those that stand.
    sites.close_all();
    for pod in pods.borrow().values() {
        pod.stop();
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

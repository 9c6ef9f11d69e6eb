//! The sites that one worker accepts on, and the pods that it carries connections for: what it does when it is told.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

use super::{
    Listeners, inbound, inbound_plaintext,
    listener::accept_loop,
    outbound,
    running_pod::RunningPod,
    site::{Members, SiteId, Tenancy},
    worker::{Accept, Command, Worker},
};
use crate::{dns, pod::PodUid};

/// The pods that a worker carries connections for.
pub type Pods = Rc<RefCell<HashMap<PodUid, Rc<RunningPod>>>>;

/// What a worker accepts on.
pub struct Sites {
    worker: Rc<Worker>,
    pods: Pods,
    open: HashMap<SiteId, OpenSite>,
    /// Pods whose DNS queries this worker answers; dropping the sender ends that.
    dns: HashMap<PodUid, Stop>,
}

/// Stops tasks that have a socket of their own; closed when they have ended.
type Stop = watch::Sender<bool>;

impl Sites {
    pub fn new(worker: &Rc<Worker>, pods: &Pods) -> Self {
        Self {
            worker: worker.clone(),
            pods: pods.clone(),
            open: HashMap::new(),
            dns: HashMap::new(),
        }
    }

    /// Stops all accept loops.
    pub fn close_all(&mut self) {
        self.open.clear();
    }

    /// Answers when all sockets that were to be closed are closed, so that who asked can listen there again.
    pub(super) fn obey_and_answer(
        &mut self,
        command: Command,
        answer: oneshot::Sender<io::Result<()>>,
    ) {
        let obeyed = self.obey(command);
        tokio::task::spawn_local(async move {
            let result = match obeyed {
                Ok(ending) => {
                    for stop in ending {
                        stop.send_replace(true);
                        stop.closed().await;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            // Who does not wait for the answer does not need it.
            _ = answer.send(result);
        });
    }

    /// Gives what is to end before this is done.
    fn obey(&mut self, command: Command) -> io::Result<Vec<Stop>> {
        let mut ending = Vec::new();
        match command {
            Command::Open(id, tenancy, listeners, accept) => {
                let site = OpenSite::open(&self.worker, tenancy, listeners, accept)?;
                self.open.insert(id, site);
            }
            Command::AcceptAll => self.open.values_mut().for_each(|site| site.waits = None),
            Command::Join(id, context) => {
                let site = self.open.get(&id).ok_or(io::ErrorKind::NotFound)?;
                let pod = Rc::new(RunningPod::new(context));
                self.pods
                    .borrow_mut()
                    .insert(pod.context.pod.uid.clone(), pod.clone());
                site.members.borrow_mut().join(pod);
            }
            Command::Rejoin(id, context, drain) => {
                let former = self.pods.borrow_mut().remove(&context.pod.uid);
                if let Some(pod) = former {
                    pod.stop();
                    tokio::task::spawn_local(end(pod, drain));
                }
                // A tunnel of before might bear another identity.
                self.worker.pool.remove(&context.pod.uid);
                return self.obey(Command::Join(id, context));
            }
            Command::Leave(id, uid, drain) => {
                ending.extend(self.dns.remove(&uid));
                if let Some(site) = self.open.get(&id) {
                    site.members.borrow_mut().leave(&uid);
                }
                if let Some(pod) = self.pods.borrow_mut().remove(&uid) {
                    pod.stop();
                    tokio::task::spawn_local(end(pod, drain));
                }
                self.worker.pool.remove(&uid);
            }
            Command::Close(id) => ending.extend(self.open.remove(&id).map(|site| site.stop)),
            Command::LeaveDns => ending.extend(self.dns.drain().map(|(_, stop)| stop)),
            Command::EndDns(uid) => ending.extend(self.dns.remove(&uid)),
            Command::ServeDns(context, sockets) => {
                let stop = watch::Sender::new(false);
                let client = dns::Client {
                    pod: context.pod.uid.clone(),
                    namespace: context.pod.namespace.clone(),
                    ips: context.pod.ips.clone(),
                    netns: context.netns.clone(),
                    mark: context.standpoint.own_mark(),
                };
                dns::serve(&self.worker.shared.dns, client, sockets, stop.subscribe())?;
                self.dns.insert(context.pod.uid.clone(), stop);
            }
        }
        Ok(ending)
    }
}

/// Ends what is left of a pod's connections when they have had their time.
async fn end(pod: Rc<RunningPod>, drain: Duration) {
    if !drain.is_zero() {
        // Whether or not all have ended by then: what is left is cut.
        _ = tokio::time::timeout(drain, pod.all_ended()).await;
    }
    let connections = pod.cut();
    if connections > 0 {
        tracing::info!(pod = %pod.context.pod.uid, connections, "the pod has left: connections cut");
    }
}

/// Members of a site as one worker knows them.
pub type SiteMembers = Rc<RefCell<Members<RunningPod>>>;

/// Listeners that this worker accepts on.
struct OpenSite {
    members: SiteMembers,
    /// Dropped with the site, which stops its accept loops.
    stop: Stop,
    /// Dropped when its accept loops are to begin.
    waits: Option<watch::Sender<()>>,
}

impl OpenSite {
    fn open(
        worker: &Rc<Worker>,
        tenancy: Tenancy,
        listeners: Listeners,
        accept: Accept,
    ) -> io::Result<Self> {
        let outbound = TcpListener::from_std(listeners.outbound)?;
        let plaintext = TcpListener::from_std(listeners.inbound_plaintext)?;
        let hbone = TcpListener::from_std(listeners.hbone)?;
        let members: SiteMembers = Rc::new(RefCell::new(Members::new(tenancy)));
        let stop = watch::Sender::new(false);
        let waits = (accept == Accept::Later).then(|| watch::Sender::new(()));
        let accept = |listener, handle: fn(&Rc<Worker>, &SiteMembers, TcpStream, SocketAddr)| {
            let (worker, members) = (worker.clone(), members.clone());
            let accepting = accept_loop(listener, stop.subscribe(), move |stream, client| {
                handle(&worker, &members, stream, client);
            });
            let (mut stop, waits) = (
                stop.subscribe(),
                waits.as_ref().map(watch::Sender::subscribe),
            );
            tokio::task::spawn_local(async move {
                if let Some(mut waits) = waits {
                    tokio::select! {
                        biased;
                        _ = stop.changed() => return,
                        // Its sender is gone.
                        _ = waits.changed() => {}
                    }
                }
                drop(stop);
                accepting.await;
            });
        };
        accept(outbound, outbound::accepted);
        accept(plaintext, inbound_plaintext::accepted);
        accept(hbone, inbound::accepted);
        Ok(Self {
            members,
            stop,
            waits,
        })
    }
}

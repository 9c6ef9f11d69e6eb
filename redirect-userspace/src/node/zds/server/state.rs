//! Which pods there are, who is connected, and who is told what.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::super::Workload;
use crate::{pod::PodUid, sys::netns::Netns};

#[derive(Default)]
pub struct State {
    pods: BTreeMap<PodUid, Served>,
    /// The newest is the last.
    peers: Vec<Connected>,
    next: PeerId,
}

struct Served {
    workload: Workload,
    netns: Netns,
    /// By the newest proxy, as it said.
    carried: Result<(), String>,
}

struct Connected {
    id: PeerId,
    orders: mpsc::UnboundedSender<Order>,
}

pub type PeerId = u64;

/// What a proxy is to be told.
pub struct Order {
    pub wish: Wish,
    pub reply: oneshot::Sender<Result<(), String>>,
}

#[derive(Clone)]
pub enum Wish {
    Add(PodUid, Workload, Netns),
    Del(PodUid),
}

/// What became of a wish to add a pod.
pub enum Answer {
    /// It is carried as this already.
    Known,
    /// It will be told to the next proxy that connects.
    Nobody,
    Awaited(oneshot::Receiver<Result<(), String>>),
}

impl State {
    pub fn add(&mut self, uid: &PodUid, workload: Workload, netns: Netns) -> Answer {
        if self.carries(uid, &workload, &netns) {
            return Answer::Known;
        }
        let wish = Wish::Add(uid.clone(), workload.clone(), netns.clone());
        let served = Served {
            workload,
            netns,
            carried: Err("it has not answered yet".to_owned()),
        };
        self.pods.insert(uid.clone(), served);
        match self.peers.last() {
            Some(newest) => Answer::Awaited(newest.order(wish)),
            None => Answer::Nobody,
        }
    }

    pub fn remove(&mut self, uid: &PodUid) -> Vec<oneshot::Receiver<Result<(), String>>> {
        self.pods.remove(uid);
        let del = |peer: &Connected| peer.order(Wish::Del(uid.clone()));
        self.peers.iter().map(del).collect()
    }

    pub fn carries(&self, uid: &PodUid, workload: &Workload, netns: &Netns) -> bool {
        let same = |served: &Served| {
            served.netns.inode() == netns.inode()
                && served.workload == *workload
                && served.carried.is_ok()
        };
        self.pods.get(uid).is_some_and(same)
    }

    pub fn has(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid)
    }

    pub fn has_peer(&self) -> bool {
        !self.peers.is_empty()
    }

    pub fn carried(&self, uid: &PodUid) -> Result<(), String> {
        match self.pods.get(uid) {
            Some(served) => served.carried.clone(),
            None => Err("it has not been told of it".to_owned()),
        }
    }

    /// A proxy that is the newest from now on, and what it is to be told: all pods first.
    pub fn connect(&mut self) -> (PeerId, mpsc::UnboundedReceiver<Order>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        self.next += 1;
        let id = self.next;
        self.peers.push(Connected { id, orders });
        self.tell_all();
        (id, receiver)
    }

    /// A proxy has left. If it was the newest, the one that is so now carries all pods.
    pub fn disconnect(&mut self, id: PeerId) {
        let was_newest = self.is_newest(id);
        self.peers.retain(|peer| peer.id != id);
        if was_newest {
            self.tell_all();
        }
    }

    /// What a proxy said when it was told of a pod.
    pub fn answered(&mut self, id: PeerId, wish: &Wish, result: &Result<(), String>) {
        let newest = self.is_newest(id);
        if let Wish::Add(uid, workload, netns) = wish
            && let Some(served) = self.pods.get_mut(uid)
            && newest
            && served.netns.inode() == netns.inode()
            && served.workload == *workload
        {
            served.carried = result.clone();
        }
    }

    fn is_newest(&self, id: PeerId) -> bool {
        self.peers.last().is_some_and(|newest| newest.id == id)
    }

    fn tell_all(&mut self) {
        for (uid, served) in &mut self.pods {
            let wish = Wish::Add(uid.clone(), served.workload.clone(), served.netns.clone());
            served.carried = match self.peers.last() {
                Some(newest) => {
                    // Nobody waits for this answer; it is remembered.
                    drop(newest.order(wish));
                    Err("it has not answered yet".to_owned())
                }
                None => Err("it has left".to_owned()),
            };
        }
    }
}

impl Connected {
    /// The answer comes when it has been told, or never if it leaves before.
    fn order(&self, wish: Wish) -> oneshot::Receiver<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        // If it has left already, the reply is dropped.
        _ = self.orders.send(Order { wish, reply });
        answer
    }
}

//! A pod on one worker: its connections there, and their end when the pod leaves.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Deref,
    rc::Rc,
    sync::Arc,
};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{PodContext, limits::Limits, worker::Worker};
use crate::pod::Pod;

pub struct RunningPod {
    pub context: Arc<PodContext>,
    pub limits: Rc<Limits>,
    /// Turns true when the pod leaves: its tunnels take no new streams then.
    stop: watch::Sender<bool>,
    connections: RefCell<HashMap<u64, AbortHandle>>,
    next: Cell<u64>,
    ended: Notify,
}

impl Deref for RunningPod {
    type Target = PodContext;

    fn deref(&self) -> &PodContext {
        &self.context
    }
}

impl AsRef<Pod> for RunningPod {
    fn as_ref(&self) -> &Pod {
        &self.context.pod
    }
}

impl RunningPod {
    pub fn new(context: Arc<PodContext>) -> Self {
        Self {
            context,
            limits: Rc::default(),
            stop: watch::Sender::new(false),
            connections: RefCell::default(),
            next: Cell::new(0),
            ended: Notify::new(),
        }
    }

    /// Runs `task` as one that a drain of the worker waits for, and that ends with the pod.
    pub fn spawn(self: &Rc<Self>, worker: &Rc<Worker>, task: impl Future<Output = ()> + 'static) {
        let key = self.next.get();
        self.next.set(key.wrapping_add(1));
        let connection = Connection {
            pod: self.clone(),
            key,
        };
        let handle = worker.spawn(async move {
            let _connection = connection;
            task.await;
        });
        // Not too late: the task runs on this thread, after us.
        self.connections.borrow_mut().insert(key, handle);
    }

    /// Says when the pod leaves, or the daemon ends.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until there are no connections any more.
    pub async fn all_ended(&self) {
        while !self.connections.borrow().is_empty() {
            self.ended.notified().await;
        }
    }

    /// Ends all connections, with resets.
    pub fn cut(&self) -> usize {
        let connections: Vec<_> = self.connections.borrow().values().cloned().collect();
        connections.iter().for_each(AbortHandle::abort);
        connections.len()
    }
}

/// A connection's place among those of its pod.
struct Connection {
    pod: Rc<RunningPod>,
    key: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut connections = self.pod.connections.borrow_mut();
        connections.remove(&self.key);
        if connections.is_empty() {
            self.pod.ended.notify_one();
        }
    }
}

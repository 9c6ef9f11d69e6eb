//! The task while another daemon takes over: it changes nothing about pods, so that the other one's view stays true.

use std::io;

use tokio::sync::oneshot;

use super::{Running, Task};
use crate::app::handover::Estate;

/// What the task is told about other daemons.
pub enum Other {
    /// One takes over: give the sockets, and do nothing until further notice.
    Asks(oneshot::Sender<io::Result<Estate>>),
    /// It has failed.
    Failed,
    /// The one before this has ended.
    Ended,
}

impl Running {
    /// Pauses the task. Orders wait; if the other daemon becomes ready, they are refused as those to a daemon that ends.
    pub async fn pause(&self) -> anyhow::Result<Estate> {
        let (answer, estate) = oneshot::channel();
        self.tell(Other::Asks(answer));
        Ok(estate.await??)
    }

    /// Makes good what the other daemon did, and goes on.
    pub fn resume(&self) {
        self.tell(Other::Failed);
    }

    /// What was done for another daemon goes.
    pub fn settle(&self) {
        self.tell(Other::Ended);
    }

    fn tell(&self, what: Other) {
        // The task ends only when it is told to.
        _ = self.others.send(what);
    }
}

impl Task {
    pub(super) async fn other(&mut self, what: Other) {
        match what {
            Other::Asks(answer) => {
                self.is_paused = true;
                _ = answer.send(self.parts.pods.estate());
            }
            Other::Failed => {
                self.is_paused = false;
                self.parts.pods.resume();
            }
            Other::Ended => {
                self.parts.pods.settle();
                // What is not wanted any more was kept for that one, which would have gone on if this one had failed.
                self.settle_all().await;
            }
        }
    }
}

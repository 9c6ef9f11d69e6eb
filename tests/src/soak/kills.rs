//! The daemon killed at random moments while pods come and go: afterwards what is wanted is what is captured, and nothing is left.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use redirect::{
    cni::protocol::Request,
    node::socket::{ClientError, ask},
};

use super::{
    figure::Figures,
    stage::{Stage, entry, uid},
};

/// Longest time in milliseconds until a daemon is killed, from its start or since it is ready.
const LONGEST: u64 = 400;

pub fn run(stage: &mut Stage, kills: usize, figures: &mut Figures) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let wanted = Mutex::new(BTreeSet::new());
    let mut random = Random(0x5eed_5eed);
    let (socket, pods) = (stage.socket(), stage.pods.clone());
    let mut done = 0;
    thread::scope(|scope| {
        let churner = scope.spawn(|| {
            let mut random = Random(0xc0ff_ee00);
            let mut requests = 0_usize;
            while !is_over.load(Ordering::Relaxed) {
                let pod = &pods[random.below(pods.len() as u64) as usize];
                let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
                let is_wanted = wanted.contains(&uid(pod));
                let request = match is_wanted {
                    true => Request::PodRemove { uid: uid(pod) },
                    false => Request::PodAdd { pod: entry(pod) },
                };
                // Asked again until it is answered, as a container runtime does: only then is it known what the daemon did.
                match (until_answered(&socket, &request, &is_over), is_wanted) {
                    (Some(()), true) => _ = wanted.remove(&uid(pod)),
                    (Some(()), false) => _ = wanted.insert(uid(pod)),
                    (None, _) => {
                        // Nobody answered before the end: it may be or not.
                        wanted.remove(&uid(pod));
                        return (requests, Some(uid(pod)));
                    }
                }
                requests += 1;
            }
            (requests, None)
        });
        for kill in 0..kills {
            // While it starts, and while it works.
            if kill % 2 == 1 {
                stage.daemon.wait_ready();
            }
            thread::sleep(Duration::from_millis(random.below(LONGEST)));
            stage.daemon.sigkill();
            stage.daemon = stage.daemon.spec().spawn();
            done = kill + 1;
        }
        is_over.store(true, Ordering::Relaxed);
        let (requests, open) = churner.join().expect("the churner does not panic");
        figures.add("requests answered between the kills", requests as f64, "");
        if let Some(open) = open {
            // Whatever became of it: now it is not wanted.
            stage.daemon.wait_ready();
            _ = ask(&socket, &Request::PodRemove { uid: open });
        }
    });
    figures.add("daemons killed", done as f64, "");
    stage.daemon.wait_ready();
    let wanted = wanted.into_inner().unwrap_or_else(PoisonError::into_inner);
    stage.verify(&wanted)?;
    println!("soak: {} pods are wanted, and captured", wanted.len());
    for uid in &wanted {
        ask(&socket, &Request::PodRemove { uid: uid.clone() })?;
    }
    stage.verify(&BTreeSet::new())?;
    ensure!(done == kills, "{done} of {kills} kills");
    Ok(())
}

/// `None`: it is over. What was done before the daemon died is done, and said to be so the second time.
fn until_answered(socket: &std::path::Path, request: &Request, is_over: &AtomicBool) -> Option<()> {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        match ask(socket, request) {
            Ok(_) => return Some(()),
            Err(ClientError::Failed { error, .. }) if error.contains("nobody wants it") => {
                return Some(());
            }
            Err(_) if is_over.load(Ordering::Relaxed) => return None,
            Err(error) if Instant::now() > limit => panic!("for a minute: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Marsaglia's xorshift: moments, not secrets.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

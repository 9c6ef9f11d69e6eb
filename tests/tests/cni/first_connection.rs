//! No pod has a connection that is not captured: not the very first one either.

use std::{sync::Arc, thread};

use super::stage::{Fate, Stage};

/// Pods that start one after another in each of a few runtimes at once.
const RUNTIMES: usize = 4;
const PODS: usize = 200;

#[test]
fn an_app_that_connects_in_its_first_instruction_is_captured() {
    let (stage, daemon) = Stage::with_daemon();
    let stage = Arc::new(stage);
    // The server's events are in one list: who asks it whom it saw must be the only one who connects meanwhile.
    let turn = Arc::new(std::sync::Mutex::new(()));
    let runtimes: Vec<_> = (0..RUNTIMES)
        .map(|runtime| {
            let (stage, turn) = (Arc::clone(&stage), Arc::clone(&turn));
            thread::spawn(move || {
                for number in 0..PODS / RUNTIMES {
                    let sandbox = stage.chain.sandbox(&format!("pod-{runtime}-{number}"));
                    stage.chain.add(&sandbox).expect("add");
                    {
                        let _mine = turn.lock();
                        let fate = stage.fate(&sandbox);
                        assert_eq!(fate, Fate::Captured, "{}", sandbox.name);
                    }
                    stage.chain.del(&sandbox).expect("del");
                    sandbox.remove();
                }
            })
        })
        .collect();
    for runtime in runtimes {
        runtime.join().expect("a runtime");
    }
    assert_eq!(daemon.readiness(), 200);
}

//! What capture adds to the start of a pod: CNI's ADD, through a chain with our plugin and one without.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{Options, quiet::Quiet, stage::end_on_signal};
use crate::{
    Testbed,
    cni::{Answer, Chain, Failure, OURS, Sandbox},
};

/// Pods that are there at once, as on a full node.
const FULL: usize = 100;
const PODS: usize = 200;
/// What the issue allows our plugin, from its start to its exit.
const P50: Duration = Duration::from_millis(30);
const P99: Duration = Duration::from_millis(100);

/// How long each pod took.
#[derive(Default)]
struct Times {
    /// Our plugin, from its start to its exit.
    ours: Vec<Duration>,
    /// All plugins of the chain that has it.
    with: Vec<Duration>,
    /// All plugins of the chain that has it not.
    without: Vec<Duration>,
}

pub fn run(options: &Options, quiet: &mut Quiet) -> Result<Value> {
    println!("bench: pods through CNI");
    let bed = Testbed::new();
    end_on_signal(&bed);
    let (captured, plain) = (bed.node("a"), bed.node("b"));
    bed.workloads().write();
    let agent = json!({ "cni": { "enroll": true }, "host": { "cgroup": captured.cgroup() } });
    let spec = captured.daemon().config(json!({ "agent": agent }));
    let _daemon = spec.start();
    let (with, without) = (Chain::new(&captured), Chain::new(&plain));
    with.install(&spec.state_dir().join("agent.sock"));
    let pods = if options.quick { 10 } else { PODS };
    let times = quiet.run(|| measure(&with, &without, pods))?;
    print(&times);
    Ok(json(&times))
}

/// Pods one after another, in turn on the one node and on the other.
fn measure(with: &Chain, without: &Chain, pods: usize) -> Result<Times> {
    let mut times = Times::default();
    let mut there: Vec<(&Chain, Sandbox)> = Vec::new();
    for number in 0..pods {
        if number % FULL == 0 {
            remove(&mut there)?;
        }
        for chain in [with, without] {
            let sandbox = chain.sandbox(&format!("pod{number}"));
            let answers = chain.add(&sandbox).map_err(failed)?;
            let all = answers.iter().map(|answer| answer.took).sum();
            match answers.last() {
                Some(Answer { plugin, took, .. }) if plugin == OURS => {
                    times.ours.push(*took);
                    times.with.push(all);
                }
                _ => times.without.push(all),
            }
            there.push((chain, sandbox));
        }
    }
    remove(&mut there)?;
    ensure!(
        times.ours.len() == pods && times.without.len() == pods,
        "our plugin was in the wrong chain"
    );
    Ok(times)
}

fn remove(there: &mut Vec<(&Chain, Sandbox)>) -> Result<()> {
    for (chain, sandbox) in there.drain(..) {
        chain.del(&sandbox).map_err(failed)?;
        sandbox.remove();
    }
    Ok(())
}

fn failed(failure: Failure) -> anyhow::Error {
    let Failure {
        plugin,
        msg,
        details,
        ..
    } = failure;
    anyhow!("{plugin}: {msg} ({details})")
}

/// The time that this share of the pods took at most.
fn at_most(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted[index.clamp(1, sorted.len()) - 1]
}

fn print(times: &Times) {
    println!("\nADD of {} pods, milliseconds\n", times.ours.len());
    println!("{:<38}{:>10}{:>10}", "", "p50", "p99");
    for (title, times) in [
        ("redirect-cni, start to exit", &times.ours),
        ("the chain with it", &times.with),
        ("the chain without it", &times.without),
    ] {
        let ms = |share| at_most(times, share).as_secs_f64() * 1e3;
        println!("{title:<38}{:>10.1}{:>10.1}", ms(0.5), ms(0.99));
    }
    let kept = met(times);
    println!(
        "{}: p50 under {} ms, p99 under {} ms",
        if kept { "ok" } else { "MISS" },
        P50.as_millis(),
        P99.as_millis()
    );
}

fn met(times: &Times) -> bool {
    at_most(&times.ours, 0.5) < P50 && at_most(&times.ours, 0.99) < P99
}

fn json(times: &Times) -> Value {
    let figures = |times: &[Duration]| {
        let ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        json!({
            "p50_ms": at_most(times, 0.5).as_secs_f64() * 1e3,
            "p99_ms": at_most(times, 0.99).as_secs_f64() * 1e3,
            "values_ms": ms,
        })
    };
    json!({
        "plugin": figures(&times.ours),
        "chain_with": figures(&times.with),
        "chain_without": figures(&times.without),
        "met": met(times),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_pods() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        for (share, expected) in [(0.5, 100), (0.99, 198), (1.0, 200), (0.0, 1)] {
            assert_eq!(at_most(&times, share), Duration::from_millis(expected));
        }
    }
}

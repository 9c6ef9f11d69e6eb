//! `cargo xtask test-k8s`: a real Kubernetes of two nodes on this machine, and redirect on it as its users install it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{
    program,
    setup::{self, Need},
};

mod certs;
mod cgroups;
mod cluster;
mod images;
mod kubectl;
mod machine;
mod report;
mod source;
mod steps;
mod wait;

use cluster::Cluster;
use report::Report;

#[derive(clap::Args)]
pub struct Args {
    /// Leave the cluster running, and say how to look at it
    #[arg(long)]
    keep: bool,
    /// Only remove clusters that were kept, or whose test was killed
    #[arg(long)]
    remove: bool,
    /// Where Kubernetes is kept [default: $XDG_CACHE_HOME/redirect/kubernetes]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Debian's source of Kubernetes, unpacked, to build from if the cache has no programs
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "nodes are made of namespaces, cgroups and mounts: run this as root"
    );
    for name in cluster::sweep()? {
        println!("removed {name}, which an earlier run left");
    }
    if args.remove {
        return Ok(());
    }
    setup::ensure(&[Need::BpfToolchain, Need::Testbed, Need::Kubernetes])?;
    let cache = match &args.cache {
        Some(cache) => cache.clone(),
        None => program::cache("kubernetes")?,
    };
    let programs = source::kubernetes(&cache, args.source.as_deref())?;
    images::build_basic()?;
    let started = Instant::now();
    let cluster = Cluster::start(&programs)?;
    println!("started in {:.1} s", started.elapsed().as_secs_f32());
    let mut report = Report::new();
    steps::plain::show(&mut report, &cluster);
    if args.keep {
        println!("{}", cluster.how_to_look());
    } else {
        report.step("the machine is as before", || {
            cluster.stop().map(|()| "no process, mount, cgroup or folder of it is left".to_owned())
        });
    }
    report.end()
}

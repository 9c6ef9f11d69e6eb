//! `cargo xtask test-k8s`: a real Kubernetes of two nodes on this machine, and redirect on it as its users install it.

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    ebpf, program,
    setup::{self, Need},
};

mod certs;
mod cgroups;
mod chart;
mod cluster;
mod images;
mod kubectl;
mod machine;
mod report;
mod source;
mod steps;
mod wait;
mod wire;

use chart::Chart;
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
    /// Only the cluster, without redirect
    #[arg(long)]
    bare: bool,
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
        None => setup::cache()?.join("kubernetes"),
    };
    let programs = source::kubernetes(&cache, args.source.as_deref())?;
    ebpf::build()?;
    program::succeed(
        Command::new("cargo")
            .current_dir(ebpf::workspace())
            .args(["build", "--bins", "--package", "redirect-userspace"])
            .args(["--package", "redirect-tests"]),
    )?;
    images::build_basic()?;
    let mesh = match args.bare {
        true => None,
        false => Some(Mesh::build(&cache)?),
    };

    let started = Instant::now();
    let cluster = Cluster::start(&programs, args.keep)?;
    println!(
        "cluster started in {:.0} s",
        started.elapsed().as_secs_f32()
    );
    let mut report = Report::new();
    steps::plain::show(&mut report, &cluster);
    if let Some(mesh) = mesh {
        mesh.show(&mut report, &cluster)?;
    }
    if args.keep {
        println!("{}", cluster.how_to_look());
    } else {
        report.step("the machine is as before", || {
            cluster.stop()?;
            Ok("no process, mount, cgroup or folder of the cluster is left".to_owned())
        });
    }
    report.end()
}

/// What is needed besides the cluster.
struct Mesh {
    image: PathBuf,
    helm: PathBuf,
    redirect: PathBuf,
}

impl Mesh {
    fn build(cache: &std::path::Path) -> Result<Self> {
        let built = ebpf::target_dir().join("debug");
        let debian = source::debian(cache)?;
        Ok(Self {
            image: images::build_daemon(cache, &debian, &built)?,
            helm: setup::helm::provide()?,
            redirect: built.join("redirect"),
        })
    }

    fn show(&self, report: &mut Report, cluster: &Cluster) -> Result<()> {
        let before = steps::removal::Before::look(cluster)?;
        let chart = Chart::new(cluster, &self.helm)?;
        // What builds upon a step that failed would only fail too, after minutes of waiting.
        let captured = steps::install::show(report, &chart, &self.image, &self.redirect)
            && steps::capture::show(report, &chart);
        if captured {
            steps::lifecycle::show(report, &chart);
        } else {
            report.not_shown("pods come and go, daemons are rolled, agents die");
        }
        steps::removal::show(report, &chart, &before, captured);
        Ok(())
    }
}

//! `capture-and-panic CONFIG`: what unwinding does to the pins, shown with the daemon's own parts.

use std::{collections::BTreeMap, os::fd::AsFd, path::PathBuf};

use redirect::{
    capture::{self, Sockets},
    config::{Config, Flags, Host},
    proxy::{Listeners, standpoint::Standpoint},
    sys::{cgroup, netns::Netns},
};

#[derive(clap::Args)]
pub struct Args {
    config: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let host = Host {
        environment: BTreeMap::new(),
        hostname: "node".to_owned(),
        cores: 1,
    };
    let flags = Flags {
        dev_ca: true,
        ..Flags::default()
    };
    let config = Config::load(&args.config, &host, &flags)?;
    let cgroup = cgroup::own(config.capture.cgroup.as_deref())?.path;
    let mut capture = capture::open(&config.capture, Some(&cgroup))?;
    for pod in &config.pods {
        let netns = Netns::open(&pod.netns)?;
        let listeners =
            Listeners::open(&netns, Standpoint::Inside, true).map_err(|(_, error)| error)?;
        let sockets = Sockets {
            outbound: listeners.outbound.as_fd(),
            inbound_plaintext: listeners.inbound_plaintext.as_fd(),
            dns: None,
            hbone: listeners.hbone.as_fd(),
        };
        capture.apply(pod, &netns, &sockets)?;
    }
    println!("captured");
    panic!("on purpose, with {} pods captured", config.pods.len());
}

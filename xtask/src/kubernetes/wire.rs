//! What goes over the wire between the nodes, seen where no node has a say: at the switch.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{cluster::Cluster, machine::Machine, wait};
use crate::program::output;

/// A running capture of the TCP of pods that enters or leaves a node.
pub struct Wire<'a> {
    switch: &'a Machine,
    tcpdump: Child,
    packets: PathBuf,
}

/// What was seen.
pub struct Seen {
    /// One line for each packet, by tcpdump.
    pub lines: Vec<String>,
    pub bytes: Vec<u8>,
}

impl<'a> Wire<'a> {
    pub fn watch(cluster: &'a Cluster, node: &str) -> Result<Self> {
        let packets = cluster.folder.join("packets.pcap");
        let log = cluster.folder.join("tcpdump.log");
        let mut command = cluster.control.on_network("tcpdump");
        command.args(["-i", node, "--immediate-mode", "-U", "-Z", "root", "-w"]);
        command.arg(&packets).arg("tcp and net 10.244.0.0/16");
        command.stdin(Stdio::null()).stderr(File::create(&log)?);
        let tcpdump = command.spawn().context("run tcpdump")?;
        wait::until("tcpdump listens", 10, || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("listening on"))
        })?;
        Ok(Self {
            switch: &cluster.control,
            tcpdump,
            packets,
        })
    }

    pub fn stop(mut self) -> Result<Seen> {
        // By this signal it writes what it has.
        kill(Pid::from_raw(self.tcpdump.id().try_into()?), Signal::SIGINT)?;
        self.tcpdump.wait()?;
        let mut read = self.switch.on_network("tcpdump");
        read.args(["-nn", "-r"]).arg(&self.packets);
        let lines = output(&mut read)?;
        Ok(Seen {
            lines: lines.lines().map(str::to_owned).collect(),
            bytes: fs::read(&self.packets)?,
        })
    }
}

impl Seen {
    /// Packets that are neither from nor to this port.
    pub fn not_of_port(&self, port: u16) -> Vec<&String> {
        let end = format!(".{port}");
        let lines = self.lines.iter();
        lines
            .filter(|line| {
                let mut words = line.split(' ');
                !words.any(|word| word.trim_end_matches(':').ends_with(&end))
            })
            .collect()
    }

    pub fn has(&self, text: &str) -> bool {
        let mut places = self.bytes.windows(text.len());
        places.any(|place| place == text.as_bytes())
    }
}

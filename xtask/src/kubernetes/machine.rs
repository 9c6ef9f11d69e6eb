//! A machine of the cluster: namespaces of every kind, cgroups of its own, and programs that run in them. When its first
//! process is killed, the kernel ends all others and takes the mounts and links along.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{cgroups::Cgroups, wait};

const NODE: &str = include_str!("node.sh");
const ENTER: &str = include_str!("enter.sh");

pub struct Machine {
    pub name: String,
    folder: PathBuf,
    /// `unshare`, whose end is the machine's.
    outer: Child,
    /// The machine's first process, by the pid that this machine knows it by.
    init: i32,
    /// What `nsenter` was started as: they end with the machine.
    programs: Vec<Child>,
}

impl Machine {
    /// `cluster` is the name of the cgroup above all machines of this cluster; folders that are `shown` have the same path there.
    pub fn start(cluster: &str, name: &str, folder: &Path, shown: &[&Path]) -> Result<Self> {
        fs::create_dir_all(folder.join("shared"))
            .with_context(|| format!("create {}", folder.display()))?;
        fs::create_dir_all(folder.join("logs"))?;
        fs::write(folder.join("node.sh"), NODE)?;
        fs::write(folder.join("shared/enter.sh"), ENTER)?;
        let cgroups = Cgroups::create(&format!("{cluster}/{name}"))?;
        let shown: Vec<String> = shown
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let script = format!(
            "set -eu\n{}exec unshare --net --mount --pid --ipc --uts --cgroup --fork --kill-child \
             sh {folder}/node.sh {name} {folder} {shown}\n",
            cgroups.enter(),
            folder = folder.display(),
            shown = shown.join(" "),
        );
        let log = folder.join("logs/machine");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            // Ctrl-C is for the test, which then removes the cluster in order.
            .process_group(0);
        let mut outer = command.spawn().context("start a machine")?;
        let ready = folder.join("shared/ready");
        let failed = |outer: &mut Child| outer.try_wait().is_ok_and(|ended| ended.is_some());
        wait::until(&format!("{name} has its file systems"), 30, || {
            ready.exists() || failed(&mut outer)
        })?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        anyhow::ensure!(ready.exists(), "{name} did not start: {}", said().trim());
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let children = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        let init = children.trim().parse().context("unshare has one child")?;
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            outer,
            init,
            programs: Vec::new(),
        })
    }

    pub fn init(&self) -> i32 {
        self.init
    }

    /// A file that both this machine and that one see: here, and there.
    pub fn shared(&self, name: &str) -> (PathBuf, PathBuf) {
        (
            self.folder.join("shared").join(name),
            Path::new("/run/node").join(name),
        )
    }

    /// A command that will run in all of the machine's namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--", program]);
        command
    }

    /// A command of this machine, in that one's network.
    pub fn on_network(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.arg("--net").arg("--").arg(program);
        command
    }

    /// A shell's lines, in all of the machine's namespaces.
    pub fn shell(&self, lines: &str) -> Result<String> {
        crate::program::output(self.command("sh").args(["-euc", lines]))
            .with_context(|| format!("on {}", self.name))
    }

    /// Starts a program that goes on as long as the machine, in a cgroup of its name, with its output in a log.
    pub fn run(&mut self, name: &str, program: &Path, args: &[String]) -> Result<()> {
        let log = self.log(name);
        let mut command = self.command("sh");
        command.args(["/run/node/enter.sh", name]);
        command.arg(program).args(args);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .process_group(0);
        self.programs.push(
            command
                .spawn()
                .with_context(|| format!("start {name} on {}", self.name))?,
        );
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(name)
    }

    /// The end of a program's log.
    pub fn said(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends everything that runs there.
    pub fn stop(&mut self) {
        // `--kill-child`: the first process ends with `unshare`, and all of its namespace with it.
        _ = self.outer.kill();
        _ = self.outer.wait();
        for program in &mut self.programs {
            _ = program.wait();
        }
    }
}

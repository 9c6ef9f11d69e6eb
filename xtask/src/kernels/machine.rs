//! A small machine under QEMU, and what its self-test said.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How the self-test marks its lines; the console has others, too.
const MARK: &str = "rdt-kernel: ";

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    kernel: Option<String>,
    backend: Option<String>,
    because: String,
    missing: Vec<String>,
    passed: u32,
    failed: Vec<String>,
    /// The self-test came to its end.
    ended: bool,
    seconds: u64,
    console: Vec<String>,
}

/// Boots and waits until the machine switches itself off, for `limit` at most.
pub fn boot(vmlinuz: &Path, image: &Path, limit: Duration, show: bool) -> Result<Outcome> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated everywhere: what a host's KVM lets a small machine see differs, and some refuse it half-way.
    qemu.args(["-accel", "tcg,thread=multi"]);
    qemu.args([
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
        "-nographic",
        "-no-reboot",
    ]);
    qemu.args(["-nic", "none", "-kernel"]).arg(vmlinuz);
    qemu.arg("-initrd").arg(image);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let started = Instant::now();
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu-system-x86_64")?;
    let stdout = child.stdout.take().context("qemu's output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut outcome = Outcome::default();
    loop {
        let left = limit.saturating_sub(started.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if show {
                    println!("    | {line}");
                }
                outcome.note(&line);
            }
            Err(_) => break,
        }
    }
    stop(&mut child);
    outcome.seconds = started.elapsed().as_secs();
    Ok(outcome)
}

/// It has switched itself off, or time is over.
fn stop(child: &mut Child) {
    if !matches!(child.try_wait(), Ok(Some(_))) {
        let _ = child.kill();
    }
    let _ = child.wait();
}

impl Outcome {
    fn note(&mut self, line: &str) {
        self.console.push(line.to_owned());
        let Some(at) = line.find(MARK) else {
            return;
        };
        let told = &line[at + MARK.len()..];
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        match word {
            // `#1 SMP Debian 5.10.262-1 (2026-01-01)`
            "kernel" => {
                let version = rest.split("Debian ").nth(1).unwrap_or(rest);
                let version = version.split(['-', ' ']).next().unwrap_or(version);
                self.kernel = Some(version.to_owned());
            }
            "ok" => self.passed += 1,
            "FAILED" => self.failed.push(rest.to_owned()),
            "missing" => {
                let (name, _) = rest.split_once(" | ").unwrap_or((rest, ""));
                self.missing.push(name.to_owned());
            }
            "end" => self.ended = true,
            _ => {
                if let Some((backend, because)) = told
                    .strip_prefix("backend=")
                    .and_then(|told| told.split_once(" because="))
                {
                    self.backend = Some(backend.to_owned());
                    because.clone_into(&mut self.because);
                }
            }
        }
    }

    /// What is not as it should be; nothing if the kernel passed.
    pub fn faults(&self, backends: &[&str], missing: &[&str]) -> Vec<String> {
        let mut faults: Vec<String> = self
            .failed
            .iter()
            .map(|check| format!("failed: {check}"))
            .collect();
        if !self.ended {
            faults.push("the self-test did not come to its end".to_owned());
        }
        if self.ended && self.passed == 0 {
            faults.push("no check passed".to_owned());
        }
        let backend = self.backend.as_deref().unwrap_or("none");
        if !backends.contains(&backend) {
            faults.push(format!("chose {backend}, not {}", backends.join(" or ")));
        }
        let told = |name: &&&str| !self.missing.iter().any(|told| told == **name);
        let untold = missing.iter().filter(told);
        faults
            .extend(untold.map(|name| format!("`redirect check` does not name {name} as missing")));
        faults
    }

    pub fn line(&self, release: &str) -> String {
        let kernel = self.kernel.as_deref().unwrap_or(release);
        let backend = self.backend.as_deref().unwrap_or("none");
        let because = match self.because.is_empty() {
            true => String::new(),
            false => format!("  ({})", self.because),
        };
        let failed = match self.failed.len() {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        format!(
            "{kernel}  backend {backend}{because}  {} checks passed{failed}  {} s",
            self.passed, self.seconds
        )
    }

    /// The last lines of the console.
    pub fn tail(&self, lines: usize) -> String {
        let skip = self.console.len().saturating_sub(lines);
        let shown = self.console.iter().skip(skip);
        shown.map(|line| format!("    | {line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        lines.iter().for_each(|line| outcome.note(line));
        outcome
    }

    const GOOD: [&str; 7] = [
        "SeaBIOS",
        "\u{1b}crdt-kernel: kernel #1 SMP Debian 5.10.262-1 (2026-01-01)",
        "rdt-kernel: backend=iptables because=no netns_cookie in sock_ops",
        "rdt-kernel: missing netns_cookie in sock_ops | unknown to the kernel",
        "rdt-kernel: ok outbound",
        "rdt-kernel: ok inbound",
        "rdt-kernel: end passed=2 failed=0",
    ];

    #[test]
    fn a_kernel_that_passed() {
        let outcome = outcome(&GOOD);
        assert_eq!(
            outcome.line("5.10"),
            "5.10.262  backend iptables  (no netns_cookie in sock_ops)  2 checks passed  0 s"
        );
        let missing = ["netns_cookie in sock_ops"];
        assert!(
            outcome
                .faults(&["iptables", "nftables"], &missing)
                .is_empty()
        );
    }

    #[test]
    fn what_is_not_as_it_should_be() {
        for (lines, expected) in [
            (&GOOD[..6], "the self-test did not come to its end"),
            (
                &GOOD[..3],
                "`redirect check` does not name netns_cookie in sock_ops as missing",
            ),
            (&["rdt-kernel: FAILED inbound"], "failed: inbound"),
            (&["rdt-kernel: end passed=0 failed=0"], "no check passed"),
            (&["rdt-kernel: backend= because="], "chose , not iptables"),
            (&[], "chose none, not iptables"),
        ] {
            let faults = outcome(lines).faults(&["iptables"], &["netns_cookie in sock_ops"]);
            assert!(faults.iter().any(|fault| fault == expected), "{faults:?}");
        }
        let faults = outcome(&GOOD).faults(&["ebpf"], &[]);
        assert_eq!(faults, ["chose iptables, not ebpf"]);
    }
}

//! Netfilter's programs: where they are, and running them.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use nix::sys::stat::{major, minor};

/// Of iptables-legacy, for all network namespaces.
const LOCK: &str = "/run/xtables.lock";
/// Searched in this order. Not `PATH`: who runs rules as root runs no program of a directory that others may choose.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("{command} failed: {message}{hint}")]
    Failed {
        command: String,
        message: String,
        hint: String,
    },
}

/// The file of a program.
pub fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// Runs `program` in the calling thread's network namespace, with `input`; gives its standard output.
pub fn run(program: &Path, args: &[&str], input: &str) -> Result<String, ToolError> {
    let name = program.file_name().unwrap_or(program.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let failed = |source| ToolError::Run {
        program: name.clone(),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        // Its messages are read for their meaning.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("piped above");
    let output = thread::scope(|scope| {
        scope.spawn(move || match stdin.write_all(input.as_bytes()) {
            // It gave up before it read all: its exit status says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        });
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ToolError::Failed {
        command: std::iter::once(name.as_str())
            .chain(args.iter().copied())
            .collect::<Vec<_>>()
            .join(" "),
        hint: hint(&message),
        message: match message.is_empty() {
            true => output.status.to_string(),
            false => message.replace('\n', "; "),
        },
    })
}

/// What an operator can do.
fn hint(message: &str) -> String {
    let lower = message.to_lowercase();
    let says = |words: &str| lower.contains(words);
    if says("xtables lock") {
        return match lock_holder() {
            Some(holder) => format!("; another program holds {LOCK}: {holder}"),
            None => format!("; another program holds {LOCK}: see `fuser {LOCK}`"),
        };
    }
    let hint = if says("permission denied") || says("not permitted") {
        "; run as root, or with CAP_NET_ADMIN in the pod's namespace"
    } else if says("cgroup") {
        "; the kernel may lack the match for cgroups (xt_cgroup, nft_socket), or the cgroup is gone"
    } else if says("no chain/target/match") || says("not supported") || says("does not exist") {
        "; the kernel may lack a module of netfilter (nat, REDIRECT, owner, mark, cgroup)"
    } else {
        ""
    };
    hint.to_owned()
}

/// Process id and name of who holds the lock of iptables-legacy now, if that can be seen from here.
fn lock_holder() -> Option<String> {
    let lock = fs::metadata(LOCK).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let device = (major(lock.dev()), minor(lock.dev()));
    let pid = holder(&locks, device, lock.ino())?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", name.trim()))
}

/// Who holds a lock on the whole file, from the text of /proc/locks (proc(5)).
fn holder(locks: &str, (major, minor): (u64, u64), inode: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // One that waits has an arrow in front: `1: -> FLOCK …`.
        match words[..] {
            [_, "FLOCK", _, "WRITE", pid, of, ..] if of == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_errors_are_told() {
        let shell = find("sh").expect("every system has a shell");
        assert_eq!(run(&shell, &["-c", "cat"], "in").unwrap(), "in");
        let error = run(&shell, &["-c", "echo no such cgroup >&2; exit 3"], "unread").unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("sh -c "), "{told}");
        assert!(
            told.contains("no such cgroup; the kernel may lack"),
            "{told}"
        );
        let error = run(&shell, &["-c", "exit 3"], "").unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(find("no-such-program-of-netfilter").is_none());
    }

    #[test]
    fn the_holder_of_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:19:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 00:19:78 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 13 00:19:77 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 14 00:19:77 0 EOF\n";
        assert_eq!(holder(locks, (0, 0x19), 77), Some(13));
        assert_eq!(holder(locks, (0, 0x19), 79), None);
        assert_eq!(holder("", (0, 0x19), 77), None);
    }

    #[test]
    fn a_large_input_that_nobody_reads_blocks_nothing() {
        let shell = find("sh").expect("every system has a shell");
        assert!(run(&shell, &["-c", "exit 0"], &"x".repeat(1 << 20)).is_ok());
    }
}

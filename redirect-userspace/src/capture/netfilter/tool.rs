//! Netfilter's programs: where they are, and running them.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

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
        hint: &'static str,
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
fn hint(message: &str) -> &'static str {
    let lower = message.to_lowercase();
    let says = |words: &str| lower.contains(words);
    if says("xtables lock") {
        "; another program holds /run/xtables.lock: see `fuser /run/xtables.lock`"
    } else if says("permission denied") || says("not permitted") {
        "; run as root, or with CAP_NET_ADMIN in the pod's namespace"
    } else if says("cgroup") {
        "; the kernel may lack the match for cgroups (xt_cgroup, nft_socket), or the cgroup is gone"
    } else if says("no chain/target/match") || says("not supported") || says("does not exist") {
        "; the kernel may lack a module of netfilter (nat, REDIRECT, owner, mark, cgroup)"
    } else {
        ""
    }
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
    fn a_large_input_that_nobody_reads_blocks_nothing() {
        let shell = find("sh").expect("every system has a shell");
        assert!(run(&shell, &["-c", "exit 0"], &"x".repeat(1 << 20)).is_ok());
    }
}

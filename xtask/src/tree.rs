//! Trees of files for machines and images that have nothing of their own: programs with what they are linked to.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::program::output;

/// With the folders above `to`, and what `from` points to if it is a link.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The files of the libraries of a program, and its loader.
pub fn libraries(program: &Path) -> Result<BTreeSet<String>> {
    Ok(named(&output(Command::new("ldd").arg(program))?))
}

/// The files that ldd names: `NAME => PATH (ADDRESS)`, or the loader's `PATH (ADDRESS)`.
fn named(ldd: &str) -> BTreeSet<String> {
    let words = ldd.lines().filter_map(|line| {
        let line = line.split(" => ").last()?.trim();
        line.split(' ').next()
    });
    words
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_files() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x00007f)\n";
        assert!(named(text).iter().eq(["/lib/libc.so.6", "/lib64/ld.so.2"]));
        assert!(named("\tnot a dynamic executable\n").is_empty());
    }
}

//! The file system of the small machine, as an initramfs: the kernel's modules, our programs, and those of this machine that
//! they run, with their libraries.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::packages::Kernel;
use crate::{
    program::output,
    setup::find_program,
    tree::{copy, libraries as libraries_of},
};

/// Modules whose path contains one of these, with all that they need.
const MODULES: [&str; 8] = [
    "/net/netfilter/",
    "/net/ipv4/netfilter/",
    "/net/ipv6/netfilter/",
    "/net/bridge/",
    "/net/veth.ko",
    "/net/sched/sch_ingress.ko",
    "/net/sched/cls_bpf.ko",
    "/net/ipv4/tcp_diag.ko",
];

/// Each program, and the names under which it is called besides its own.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("ip", &[]),
    ("tc", &[]),
    ("ss", &[]),
    ("bpftool", &[]),
    ("nft", &[]),
    (
        "xtables-nft-multi",
        &[
            "iptables",
            "iptables-save",
            "iptables-restore",
            "iptables-nft",
            "iptables-nft-save",
            "iptables-nft-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
            "ip6tables-nft",
            "ip6tables-nft-save",
            "ip6tables-nft-restore",
        ],
    ),
    (
        "xtables-legacy-multi",
        &[
            "iptables-legacy",
            "iptables-legacy-save",
            "iptables-legacy-restore",
            "ip6tables-legacy",
            "ip6tables-legacy-save",
            "ip6tables-legacy-restore",
        ],
    ),
];

/// Extensions of iptables are loaded by name.
const EXTENSIONS: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib64/xtables",
    "/usr/lib/xtables",
];

/// PID 1. Whatever becomes of the self-test, the machine is switched off.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/usr/sbin:/bin RDT_SLOWNESS=6
busybox mount -t proc none /proc
busybox --install -s /bin
busybox mount -t sysfs none /sys
busybox mount -t devtmpfs none /dev
busybox mount -t tmpfs none /run
busybox mount -t tmpfs none /tmp
busybox mount -t cgroup2 none /sys/fs/cgroup
busybox mount -t bpf none /sys/fs/bpf
ip link set lo up
echo "rdt-kernel: kernel $(busybox uname -v)"
rdt-kernel
busybox poweroff -f
"#;

/// Packs it into `folder`; gives the image's path.
pub fn pack(folder: &Path, kernel: &Kernel, programs: &[PathBuf]) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    for below in [
        "bin", "sbin", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp",
    ] {
        fs::create_dir_all(root.join(below))
            .with_context(|| format!("create {}", root.display()))?;
    }
    modules(&root, &kernel.modules).context("the kernel's modules")?;
    for program in programs {
        copy(program, &root.join("bin").join(name(program)))?;
    }
    installed(&root).context("programs of this machine")?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    archive(&root, &folder.join("image.cpio"))
}

fn modules(root: &Path, modules: &Path) -> Result<()> {
    let list = modules.join("modules.dep");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let to = root.join("lib/modules").join(name(modules));
    for module in needed(&text, &MODULES) {
        copy(&modules.join(&module), &to.join(&module))?;
    }
    for list in [
        "modules.dep",
        "modules.alias",
        "modules.symbols",
        "modules.builtin",
    ] {
        if modules.join(list).exists() {
            copy(&modules.join(list), &to.join(list))?;
        }
    }
    Ok(())
}

/// From the text of modules.dep (`MODULE: MODULE…`, with all that are needed indirectly, too), those that contain one of
/// `wanted`, and what they need.
fn needed(text: &str, wanted: &[&str]) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let lines = lines.filter(|(module, _)| wanted.iter().any(|part| module.contains(part)));
    lines
        .flat_map(|(module, needs)| std::iter::once(module).chain(needs.split_whitespace()))
        .map(str::to_owned)
        .collect()
}

fn installed(root: &Path) -> Result<()> {
    let find = |name: &str| find_program(name).with_context(|| format!("no program {name}"));
    copy(&find("busybox")?, &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    let mut libraries = BTreeSet::new();
    for (program, names) in PROGRAMS {
        let path = fs::canonicalize(find(program)?)?;
        copy(&path, &root.join("usr/sbin").join(program))?;
        libraries.extend(libraries_of(&path)?);
        for name in names {
            symlink(program, root.join("usr/sbin").join(name))?;
        }
    }
    for library in libraries {
        copy(
            Path::new(&library),
            &root.join(library.trim_start_matches('/')),
        )?;
    }
    let extensions = EXTENSIONS
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists());
    let extensions = extensions.context("no folder of iptables' extensions")?;
    for entry in fs::read_dir(extensions)? {
        let path = entry?.path();
        copy(&path, &root.join(path.strip_prefix("/")?))?;
    }
    Ok(())
}

/// In the format that the kernel unpacks. Not compressed: that would cost more time than it saves.
fn archive(root: &Path, image: &Path) -> Result<PathBuf> {
    let names = output(Command::new("find").current_dir(root).arg("."))?;
    let list = image.with_extension("list");
    fs::write(&list, names)?;
    let mut cpio = Command::new("busybox");
    cpio.current_dir(root).args(["cpio", "-o", "-H", "newc"]);
    cpio.stdin(File::open(&list)?).stdout(File::create(image)?);
    let status = cpio
        .stderr(Stdio::null())
        .status()
        .context("run busybox cpio")?;
    ensure!(status.success(), "busybox cpio: {status}");
    Ok(image.to_owned())
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let text = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                    kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n\
                    kernel/fs/ext4.ko: kernel/lib/crc16.ko\n\
                    kernel/drivers/net/veth.ko:\n";
        let found: Vec<String> = needed(text, &MODULES).into_iter().collect();
        let expected = [
            "kernel/drivers/net/veth.ko",
            "kernel/net/802/stp.ko",
            "kernel/net/bridge/bridge.ko",
            "kernel/net/llc/llc.ko",
        ];
        assert_eq!(found, expected);
    }
}

//! Images for the cluster's containerd, which can pull none: archives in the format of `docker save`, made by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{machine::Machine, source::renew};
use crate::{
    ebpf,
    program::output,
    setup::find_program,
    tree::{copy, libraries},
};

pub const PAUSE: &str = "redirect.test/pause:1";
pub const APP: &str = "redirect.test/app:1";
/// The chart gets it in two parts.
pub const DAEMON_REPOSITORY: &str = "redirect.test/redirect";
pub const DAEMON_TAG: &str = "test";
const DAEMON: &str = "redirect.test/redirect:test";
/// What the Dockerfile begins with, under the name that it has there.
const BASE: &str = "docker.io/library/debian:bookworm-slim";

/// What each node needs from the start: the sandbox's image, and the apps'.
pub fn import_basic(node: &Machine) -> Result<()> {
    let work = ebpf::target_dir().join("kubernetes");
    import(node, &work.join("pause.tar"))?;
    import(node, &work.join("app.tar"))
}

/// Loads an archive into a node's containerd.
pub fn import(node: &Machine, archive: &Path) -> Result<()> {
    let name = archive.file_name().context("an archive has a name")?;
    let (here, there) = node.shared(&name.to_string_lossy());
    fs::copy(archive, &here).with_context(|| format!("copy {}", archive.display()))?;
    let mut ctr = node.command("ctr");
    ctr.args(["--namespace=k8s.io", "images", "import"]);
    output(ctr.arg(there))?;
    fs::remove_file(here)?;
    Ok(())
}

/// Makes the archives of [`PAUSE`] and [`APP`] in `target/kubernetes`.
pub fn build_basic() -> Result<()> {
    let work = ebpf::target_dir().join("kubernetes");
    fs::create_dir_all(&work)?;
    let busybox = find_program("busybox").context("no program busybox")?;
    let root = work.join("root");
    renew(&root)?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for name in ["sh", "sleep", "wget", "httpd", "cat", "mkdir", "rm"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    let wait = "trap exit TERM INT; while :; do sleep 3600 & wait; done";
    archive(
        &root,
        &work.join("pause.tar"),
        PAUSE,
        &["/bin/sh", "-c", wait],
    )?;
    let app = ebpf::target_dir().join("debug/rdt-app");
    copy(&app, &root.join("bin/rdt-app"))?;
    for library in libraries(&app)? {
        copy(
            Path::new(&library),
            &root.join(library.trim_start_matches('/')),
        )?;
    }
    archive(&root, &work.join("app.tar"), APP, &["/bin/sh", "-c", wait])?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// One layer of `root`, with a configuration and a manifest.
fn archive(root: &Path, path: &Path, name: &str, entrypoint: &[&str]) -> Result<()> {
    let staged = path.with_extension("new");
    renew(&staged)?;
    let layer = staged.join("layer.tar");
    let tar = |from: &Path, to: &Path, what: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "-C"]).arg(from);
        output(tar.arg("-cf").arg(to).args(what))
    };
    tar(root, &layer, &["."])?;
    let sum = output(Command::new("sha256sum").arg(&layer))?;
    let sum = sum.split(' ').next().unwrap_or_default();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin:/usr/bin:/usr/local/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    fs::write(staged.join("config.json"), config.to_string())?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(staged.join("manifest.json"), manifest.to_string())?;
    tar(
        &staged,
        path,
        &["manifest.json", "config.json", "layer.tar"],
    )?;
    fs::remove_dir_all(&staged)?;
    Ok(())
}

/// The daemon's image: what `deploy/Dockerfile` says, on a base that nobody had to pull, with the programs of `built`.
pub fn build_daemon(cache: &Path, debian: &Path, built: &Path) -> Result<PathBuf> {
    let work = ebpf::target_dir().join("kubernetes");
    let context = work.join("context");
    renew(&context)?;
    for program in ["redirect", "redirect-cni"] {
        copy(&built.join(program), &context.join("out").join(program))?;
    }
    let file = ebpf::workspace().join("deploy/Dockerfile");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let runtime = runtime_stage(&text)
        .with_context(|| format!("{} has no stage `runtime`", file.display()))?;
    let file = work.join("Dockerfile");
    fs::write(&file, runtime)?;
    let buildah = Buildah::new(cache);
    if buildah.run(&["inspect", "--type=image", BASE]).is_err() {
        let container = buildah.run(&["from", "scratch"])?;
        let container = container.trim();
        let debian = debian.display().to_string();
        buildah.run(&["add", "--quiet", container, &debian, "/"])?;
        buildah.run(&["commit", "--quiet", "--rm", container, BASE])?;
    }
    buildah.run(&[
        "build",
        "--isolation=chroot",
        "--pull=never",
        "--layers",
        &format!("--build-context=build={}", context.display()),
        &format!("--file={}", file.display()),
        &format!("--tag={DAEMON}"),
        &context.display().to_string(),
    ])?;
    let archive = work.join("redirect.tar");
    if archive.exists() {
        fs::remove_file(&archive)?;
    }
    buildah.run(&[
        "push",
        "--quiet",
        DAEMON,
        &format!("docker-archive:{}:{DAEMON}", archive.display()),
    ])?;
    fs::remove_dir_all(&context)?;
    Ok(archive)
}

/// From the line that begins the stage `runtime` on.
fn runtime_stage(dockerfile: &str) -> Option<&str> {
    let end = dockerfile.find(" AS runtime")?;
    let start = dockerfile[..end].rfind("FROM ")?;
    Some(&dockerfile[start..])
}

/// buildah with a store of its own, without what the kernel would have to mount.
struct Buildah {
    options: Vec<String>,
}

impl Buildah {
    fn new(cache: &Path) -> Self {
        let option = |name: &str, value: PathBuf| format!("--{name}={}", value.display());
        Self {
            options: vec![
                option("root", cache.join("images")),
                option("runroot", cache.join("images.run")),
                "--storage-driver=vfs".to_owned(),
            ],
        }
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        output(Command::new("buildah").args(&self.options).args(args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_that_is_run() {
        let text = "# x\nFROM a AS build\nRUN b\n\nFROM c:1 AS runtime\nCOPY --from=build d e\n";
        let expected = "FROM c:1 AS runtime\nCOPY --from=build d e\n";
        assert_eq!(runtime_stage(text), Some(expected));
        assert_eq!(runtime_stage("FROM a AS build\n"), None);
    }
}

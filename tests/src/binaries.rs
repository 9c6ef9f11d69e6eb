//! Where the programs under test are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The daemon and command line: `$REDIRECT_BIN`, else beside the running test or binary in cargo's target directory.
pub fn redirect_binary() -> PathBuf {
    find("redirect", "REDIRECT_BIN", "redirect-userspace")
}

/// The CNI plugin: `$REDIRECT_CNI_BIN`, else beside the running test or binary.
pub fn cni_binary() -> PathBuf {
    find("redirect-cni", "REDIRECT_CNI_BIN", "redirect-userspace")
}

/// The multi-call helper that runs inside pods: `$RDT_APP_BIN`, else beside the running test or binary.
pub fn app_binary() -> PathBuf {
    find("rdt-app", "RDT_APP_BIN", "redirect-tests")
}

#[track_caller]
fn find(name: &str, variable: &str, package: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "${variable} names {}, which is no file",
            path.display()
        );
        return path;
    }
    let me = env::current_exe().expect("a running program has a path");
    // target/PROFILE/deps/TEST-HASH for a test, target/PROFILE/NAME for a binary.
    let found = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir: &Path| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no binary `{name}` beside {}: run `cargo build -p {package}` first, or set {variable}",
            me.display()
        )
    })
}

//! Embeds the eBPF object where it was built before; without it the daemon builds too, without the eBPF backend.

use std::{env, fs, path::PathBuf};

const VARIABLE: &str = "REDIRECT_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("redirect-bpf.o");
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::copy(&object, &out) {
        Ok(_) => println!("cargo::rustc-cfg=have_ebpf_object"),
        Err(error) if env::var_os(VARIABLE).is_some() => {
            panic!("{VARIABLE}={}: {error}", object.display())
        }
        Err(_) => {}
    }
}

/// What `cargo xtask build-ebpf` wrote for the byte order of the machine that the daemon is built for.
fn object() -> PathBuf {
    if let Some(path) = env::var_os(VARIABLE) {
        return path.into();
    }
    let order = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join("..").join(dir),
        None => root.join("../target"),
    };
    target.join(format!("ebpf/redirect-{order}.o"))
}

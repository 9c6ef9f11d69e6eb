//! The eBPF programs of redirect.
fn main() {}

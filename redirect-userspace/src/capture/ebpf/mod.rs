//! eBPF.

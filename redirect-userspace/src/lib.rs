//! The node daemon of redirect: captures pods and plain cgroups, and carries their connections over HBONE.
//!
//! `cli` → `app` (composition root) → `capture` | `proxy` | `admin`. `proxy` never names `capture`, nor the reverse: they
//! meet through `orig_dst` and `pod`.

pub mod admin;
pub mod app;
pub mod buffer;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod config;
pub mod dns;
pub mod document;
pub mod hbone;
pub mod identity;
pub mod node;
pub mod orig_dst;
pub mod pod;
pub mod policy;
pub mod proxy;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod workload;

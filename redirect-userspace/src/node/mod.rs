//! The node agent: which pods are to be captured here, where they are, and that they are.
//!
//! [`source`]s say which pods are wanted: the configuration, the command line, the CNI plugin, Kubernetes, a ZDS peer. The
//! [`agent`] has the list of them all, compares it with what the kernel holds, and does what is missing. Pods that sources know by
//! name only are found by [`location`].
//!
//! ```text
//! config ─┐
//! socket ─┤ (redirect pod …, redirect-cni)
//! kubernetes ─┤──▶ Agent ──▶ reconcile (pure) ──▶ app::pods ──▶ capture, proxy
//! zds ────┘                    ▲ what the kernel holds
//! ```

pub mod agent;
pub mod attachments;
pub mod by_cni;
pub mod kubernetes;
pub mod location;
pub mod reconcile;
pub mod remembered;
pub mod requests;
pub mod socket;
pub mod source;
pub mod wishes;
pub mod zds;

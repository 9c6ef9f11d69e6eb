//! Container Network Interface: the plugin that tells the agent of each pod, and its installation on a node.
//!
//! [`plugin`] is what a container runtime runs for each pod, and [`protocol`] what it says to the agent. [`conflist`] edits network
//! configurations as text, [`install`] puts plugin and configuration in place and keeps them there.

pub mod conflist;
pub mod install;
pub mod plugin;
pub mod protocol;

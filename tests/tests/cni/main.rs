//! The CNI plugin in a chain of Debian's, its installer, and where pods are found: as a container runtime and kubelet do it.

mod chain;
mod first_connection;
mod installer;
mod location;
mod plugin;
mod stage;

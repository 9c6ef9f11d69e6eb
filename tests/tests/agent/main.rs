//! The node agent: pods come and go while the daemon runs, and what is wanted is what the kernel holds.

mod clients;
mod cni;
mod pods;
mod repairs;
mod stage;

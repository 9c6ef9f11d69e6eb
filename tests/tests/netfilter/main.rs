//! Capture by netfilter: the rules of each tool, and the daemon that uses them.

mod broken;
mod capture;
mod forms;
mod inbound;
mod node;
mod repair;
mod rules;
mod stage;
mod state;

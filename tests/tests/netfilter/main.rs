//! The netfilter backends, with the real programs: rules on the command line, and capture by the daemon.

mod capture;
mod forms;
mod rules;
mod state;

//! The Kubernetes API as the source of pods and of the mesh: against a fake API that pages, forgets, fails and comes back.

mod daemon;
mod faults;
mod mesh;
mod pods;
mod stage;

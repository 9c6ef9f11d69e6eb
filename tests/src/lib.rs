//! Testbed of nodes and pods: network namespaces, veths, bridges and child cgroups, with the real daemon and real apps.
//!
//! ```no_run
//! use redirect_tests::Testbed;
//!
//! let bed = Testbed::new();
//! let (a, b) = (bed.node("a"), bed.node("b"));
//! let (client, server) = (a.pod("client"), b.pod("server"));
//! bed.workloads().hbone(&client).hbone(&server).write();
//! let _daemon_a = a.daemon().capture(&client).start();
//! let _daemon_b = b.daemon().capture(&server).start();
//! let echo = server.app(["serve", "--listen", "[::]:8080"]);
//! echo.event("listening");
//! let app = client.app(["connect", &server.at(8080).to_string(), "send:hello\n", "recv-line"]);
//! assert_eq!(app.event("received").text(), "hello");
//! ```
//!
//! Everything has a name that starts with the [`RunId`] of its testbed, is removed when the [`Testbed`] is dropped (also
//! by a panic), and is swept by the next test process when its maker was killed. Only what is below those names is ever
//! touched. Nothing here needs addresses or interfaces of the machine itself.

pub mod bench;
mod binaries;
pub mod cgroup;
pub mod cni;
mod daemon;
pub mod demo;
pub mod exchange;
pub mod hbone;
mod http;
pub mod kubernetes;
pub mod leftovers;
mod mesh;
mod metrics;
pub mod namespace;
pub mod process;
mod run_id;
pub mod soak;
pub mod sockets;
pub mod state;
pub mod sys;
mod testbed;
mod wait;
mod wall;
pub mod way;
mod workloads;
pub mod zds;

pub use binaries::{app_binary, cni_binary, redirect_binary};
pub use daemon::{Daemon, DaemonSpec};
pub use http::{Response, get};
pub use mesh::{Mesh, MeshBuilder};
pub use metrics::Metrics;
pub use process::{App, Event, PATIENCE, Process};
pub use run_id::RunId;
pub use testbed::{Node, Pod, Testbed};
pub use wait::{eventually, wait_until};
pub use wall::Wall;
pub use workloads::Workloads;

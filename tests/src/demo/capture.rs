//! Steps about capture in the client's pod.

use super::{
    Lines,
    stage::{PORT, Stage, field, line, outbound_line},
};

/// Asked for X, steered to Y by eBPF, recovered as X by the proxy: three witnesses.
pub fn steered(stage: &mut Stage) -> Lines {
    let asked = stage.web.at(PORT);
    let from = stage.daemon_a.process().line_count();
    let app = stage
        .client
        .app(["connect", &asked.to_string(), "recv-line"]);
    let own = app.event("connected").addr("sockname");
    app.event("received");
    let event = stage
        .daemon_a
        .wait_log_from(from, "event of the connect hook", |line| {
            line.contains("redirect::capture::event")
                && line.contains("captured")
                && line.contains(&format!("dst={asked}"))
        });
    let to = field(&event, "to");
    assert!(
        to.starts_with("127.") && to.ends_with(":15001"),
        "steered to {to}"
    );
    let access = outbound_line(stage, own);
    assert_eq!(
        field(&access, "dst.addr"),
        asked.to_string(),
        "recovered by the proxy"
    );
    vec![
        line("the app asked for", asked.to_string()),
        line(
            "eBPF steered it to",
            format!(
                "{to} (hook {}, pid {})",
                field(&event, "hook"),
                field(&event, "pid")
            ),
        ),
        line("the proxy recovered", field(&access, "dst.addr")),
        line(
            "and sent it by",
            format!("HBONE to {}", field(&access, "dst.hbone_addr")),
        ),
    ]
}

pub fn names(stage: &mut Stage) -> Lines {
    let asked = stage.web.at(PORT);
    let app = stage
        .client
        .app(["connect", &asked.to_string(), "recv-line", "names"]);
    let micros = app.event("connected").u64("micros");
    let names = app.event("names");
    assert_eq!(names.addr("peername"), asked, "getpeername");
    assert_eq!(
        names.addr("sockname").ip(),
        stage.client.ipv4(),
        "getsockname"
    );
    vec![
        line("connect()", format!("took {micros} µs")),
        line(
            "getpeername()",
            format!("{}, what it asked for", names.str("peername")),
        ),
        line(
            "getsockname()",
            format!("{}, the pod's own address", names.str("sockname")),
        ),
    ]
}

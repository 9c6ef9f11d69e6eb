//! Steps that measure, beside a direct connection between the same pods.

use serde_json::Value;

use super::{
    Lines,
    stage::{DIRECT, PING_PORT, Stage, line},
};
use crate::{App, Process, app_binary};

/// `false`: by a process of the pod that is in an exempt cgroup.
const WAYS: [(&str, bool); 2] = [("direct, in plaintext", false), ("through the mesh", true)];

pub fn throughput(stage: &mut Stage) -> Lines {
    let mut lines = Vec::new();
    for streams in ["1", "8"] {
        let mut rates = Vec::new();
        for (way, captured) in WAYS {
            let cpu = stage.daemon_a.cpu() + stage.daemon_b.cpu();
            let mut server = stage.web.command("iperf3");
            server.args(["-s", "-1", "--forceflush"]);
            let server = Process::spawn("iperf3 server", server);
            server.wait_line("listening line", |line| {
                line.contains("listening").then_some(())
            });
            let program = "iperf3";
            let mut client = if captured {
                stage.client.command(program)
            } else {
                stage.client.command_in(DIRECT, program)
            };
            client.args([
                "-c",
                &stage.web.ipv4().to_string(),
                "-t",
                "3",
                "-P",
                streams,
                "-J",
            ]);
            let output = client
                .output()
                .expect("iperf3 is installed (`cargo xtask setup`)");
            let result: Value = serde_json::from_slice(&output.stdout).expect("JSON of iperf3");
            assert_eq!(result.get("error"), None);
            let end = &result["end"]["sum_received"];
            let (bits, bytes) = (number(&end["bits_per_second"]), number(&end["bytes"]));
            let cpu = (stage.daemon_a.cpu() + stage.daemon_b.cpu() - cpu).as_secs_f64();
            let cost = if captured {
                format!(", {:.2} s of proxy CPU per GB", cpu / (bytes / 1e9))
            } else {
                String::new()
            };
            assert!(
                !captured || cpu > 0.1,
                "the daemons did nothing: this was not captured"
            );
            rates.push(bits);
            let word = if streams == "1" { "stream " } else { "streams" };
            lines.push(line(
                &format!("{streams} {word} {way}"),
                format!("{:6.2} Gbit/s{cost}", bits / 1e9),
            ));
        }
        assert!(rates[1] > 1e8, "{} bit/s through the mesh", rates[1]);
        lines.push(line("ratio", format!("{:6.2}", rates[1] / rates[0])));
    }
    lines
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a figure of iperf3")
}

pub fn latency(stage: &mut Stage) -> Lines {
    let echo = stage
        .web
        .app(["serve", "--quiet", "--listen", &format!("[::]:{PING_PORT}")]);
    echo.event("listening");
    let dst = stage.web.at(PING_PORT).to_string();
    let mut lines = Vec::new();
    let mut medians = Vec::new();
    for (way, captured) in WAYS {
        let mut command = if captured {
            stage.client.command(app_binary())
        } else {
            stage.client.command_in(DIRECT, app_binary())
        };
        command.args(["ping", &dst, "--count", "5000"]);
        let app = App::new(Process::spawn("ping", command));
        let result = app.event("pinged");
        let (p50, p99) = (result.f64("p50"), result.f64("p99"));
        medians.push(p50);
        lines.push(line(
            way,
            format!("p50 {p50:6.1} µs, p99 {p99:6.1} µs, 64 bytes there and back"),
        ));
    }
    assert!(medians[1] < 5_000.0, "p50 of {} µs", medians[1]);
    lines.push(line(
        "ratio of p50",
        format!("    {:6.2}", medians[1] / medians[0]),
    ));
    lines
}

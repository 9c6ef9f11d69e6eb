//! Programs of Debian, as they are.

use redirect_tests::{Mesh, Process, exchange::nginx};

#[test]
fn unmodified_programs() {
    let mesh = Mesh::start();
    let dir = mesh.bed.directory().join("www");
    std::fs::create_dir(&dir).expect("make the web root");
    let content: Vec<u8> = (0..4_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.join("big"), &content).expect("write the content");
    let _nginx = nginx(&mesh.server, 8080, &dir);
    for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
        let received = mesh.bed.directory().join("received");
        let mut curl = mesh.client.command("curl");
        curl.args([
            "-sS",
            "--max-time",
            "30",
            "-w",
            "%{http_code} %{remote_ip} %{remote_port}",
            "-o",
        ]);
        curl.arg(&received).arg(format!("http://{dst}/big"));
        let output = curl
            .output()
            .expect("curl is installed (`cargo xtask setup`)");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            told,
            format!("200 {} 8080", dst.ip()),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            std::fs::read(&received).expect("curl wrote it") == content,
            "the content differs"
        );
    }
    for (direction, option) in [("to the server", None), ("from the server", Some("-R"))] {
        let mut server = mesh.server.command("iperf3");
        server.args(["-s", "-1", "--forceflush"]);
        let server = Process::spawn("iperf3 server", server);
        server.wait_line("listening line", |line| {
            line.contains("listening").then_some(())
        });
        let mut client = mesh.client.command("iperf3");
        client
            .args([
                "-c",
                &mesh.server.ipv4().to_string(),
                "-t",
                "2",
                "-P",
                "8",
                "-J",
            ])
            .args(option);
        let output = client
            .output()
            .expect("iperf3 is installed (`cargo xtask setup`)");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(result.get("error"), None, "{direction}");
        let bits = result["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .expect("a figure");
        assert!(bits > 1e8, "{direction}: {bits} bit/s");
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

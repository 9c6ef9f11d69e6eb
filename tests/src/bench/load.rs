//! Loads on a way from client to server, and reading what their programs say.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    apps::{App, me},
    cpu,
    figure::{Figure, Group},
    helper::Churned,
    samples::Part,
    stage::{Proxies, Stage, Variant},
};

/// Connections that `churn` has under way at a time.
pub(super) const CHURNING: usize = 16;

#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// iperf3 with so many streams.
    Bulk(u32),
    /// wrk with so many keep-alive connections.
    Requests(u32),
    /// New connections, one after the other.
    Churn,
}

impl Load {
    pub const ALL: [Self; 5] = [
        Self::Bulk(1),
        Self::Bulk(8),
        Self::Requests(1),
        Self::Requests(32),
        Self::Churn,
    ];

    pub fn group(self) -> Group {
        match self {
            Self::Bulk(_) => Group::Throughput,
            Self::Requests(_) => Group::Requests,
            Self::Churn => Group::Connections,
        }
    }

    fn app(self) -> App {
        match self {
            Self::Bulk(_) => App::Iperf,
            Self::Requests(_) => App::Http,
            Self::Churn => App::Echo,
        }
    }

    pub fn run(self, stage: &Stage, variant: Variant, seconds: u32) -> Result<Part> {
        let used = Used::until_now(stage.proxies(variant, self.app()))?;
        let part = Part::default();
        match self {
            Self::Bulk(streams) => {
                let (bits, bytes) = bulk(stage, variant, streams, seconds)?;
                let figure = if streams == 1 {
                    Figure::Throughput1
                } else {
                    Figure::Throughput8
                };
                let part = part.with(figure, bits / 1e9);
                // CPU per GB of one stream: eight share reads and writes, but also fight for the processors.
                let figures = (Figure::CpuPerGbOutbound, Figure::CpuPerGbInbound);
                if streams == 1 {
                    used.per(bytes / 1e9, figures, part)
                } else {
                    Ok(part)
                }
            }
            Self::Requests(connections) => {
                let found = requests(stage, variant, connections, seconds)?;
                let (rps, p50, p99) = match connections {
                    1 => (Figure::Rps1, Figure::P50Of1, Figure::P99Of1),
                    _ => (Figure::Rps32, Figure::P50Of32, Figure::P99Of32),
                };
                Ok(part
                    .with(rps, found.per_second)
                    .with(p50, found.p50)
                    .with(p99, found.p99))
            }
            Self::Churn => {
                let churned = churn(stage, variant, seconds)?;
                let connections = churned.connections as f64;
                let part = part.with(Figure::NewConnections, connections / churned.seconds);
                let figures = (
                    Figure::CpuPerConnectionOutbound,
                    Figure::CpuPerConnectionInbound,
                );
                used.per(connections / 1e6, figures, part)
            }
        }
    }
}

/// CPU time of a variant's proxies at a moment.
struct Used(Option<(Proxies, f64, f64)>);

impl Used {
    fn until_now(proxies: Option<Proxies>) -> Result<Self> {
        let Some(proxies) = proxies else {
            return Ok(Self(None));
        };
        let seconds = |pid| cpu::time(pid).map(|time| time.as_secs_f64());
        Ok(Self(Some((
            proxies,
            seconds(proxies.outbound)?,
            seconds(proxies.inbound)?,
        ))))
    }

    /// Adds what was used since then, per `amount`, as the two figures.
    fn per(&self, amount: f64, figures: (Figure, Figure), part: Part) -> Result<Part> {
        let (Some((proxies, outbound, inbound)), Self(Some((_, new_outbound, new_inbound)))) = (
            self.0,
            Self::until_now(self.0.map(|(proxies, ..)| proxies))?,
        ) else {
            return Ok(part);
        };
        ensure!(
            amount > 0.0,
            "nothing was carried, with proxies {proxies:?}"
        );
        Ok(part
            .with(figures.0, (new_outbound - outbound) / amount)
            .with(figures.1, (new_inbound - inbound) / amount))
    }
}

/// Bits per second and bytes, as the receiver counted them.
fn bulk(stage: &Stage, variant: Variant, streams: u32, seconds: u32) -> Result<(f64, f64)> {
    let to = stage.dial(variant, App::Iperf);
    let mut command = stage.ends(variant).client.command("iperf3");
    command.args([
        "--json",
        "--client",
        &to.ip().to_string(),
        "--port",
        &to.port().to_string(),
    ]);
    command.args([
        "--parallel",
        &streams.to_string(),
        "--time",
        &seconds.to_string(),
    ]);
    read_iperf(&output(&mut command)?).with_context(|| format!("iperf3 over {}", variant.title()))
}

fn read_iperf(text: &str) -> Result<(f64, f64)> {
    let report: Value = serde_json::from_str(text).context("iperf3 wrote no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("{error}");
    }
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .context("no bits_per_second")?;
    Ok((bits, received["bytes"].as_f64().context("no bytes")?))
}

struct Requests {
    per_second: f64,
    /// In microseconds.
    p50: f64,
    p99: f64,
}

fn requests(stage: &Stage, variant: Variant, connections: u32, seconds: u32) -> Result<Requests> {
    let mut command = stage.ends(variant).client.command("wrk");
    command.args([
        "--threads",
        "1",
        "--latency",
        "--connections",
        &connections.to_string(),
    ]);
    command.args([
        "--duration",
        &format!("{seconds}s"),
        &format!("http://{}/", stage.dial(variant, App::Http)),
    ]);
    read_wrk(&output(&mut command)?).with_context(|| format!("wrk over {}", variant.title()))
}

fn read_wrk(text: &str) -> Result<Requests> {
    if let Some(errors) = text
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx"))
    {
        bail!("{}", errors.trim());
    }
    let after = |label: &str| {
        let found = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(label));
        found
            .map(str::trim)
            .with_context(|| format!("no `{label}` in what wrk wrote:\n{text}"))
    };
    Ok(Requests {
        per_second: after("Requests/sec:")?.parse().context("Requests/sec")?,
        p50: microseconds(after("50%")?)?,
        p99: microseconds(after("99%")?)?,
    })
}

fn microseconds(text: &str) -> Result<f64> {
    let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap_or(text.len()));
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => bail!("`{text}` is no time of wrk's"),
    };
    Ok(number
        .parse::<f64>()
        .with_context(|| format!("`{text}` is no time of wrk's"))?
        * factor)
}

fn churn(stage: &Stage, variant: Variant, seconds: u32) -> Result<Churned> {
    let churned = helper(stage, variant, seconds)?;
    ensure!(
        churned.failed == 0,
        "{} of {} connections failed over {}",
        churned.failed,
        churned.connections,
        variant.title()
    );
    Ok(churned)
}

fn helper(stage: &Stage, variant: Variant, seconds: u32) -> Result<Churned> {
    let to: SocketAddr = stage.dial(variant, App::Echo);
    let mut command = stage.ends(variant).client.command(me()?);
    command.args([
        "helper",
        "churn",
        &to.to_string(),
        &seconds.to_string(),
        &CHURNING.to_string(),
    ]);
    serde_json::from_str(&output(&mut command)?).context("odd result of the helper")
}

/// Standard output of a program that succeeds. iperf3 and wrk report some failures only there.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://10.0.0.1:80/
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    81.66us   31.41us   1.31ms   99.50%
    Req/Sec    12.25k   388.21    12.97k    66.67%
  Latency Distribution
     50%   79.00us
     75%   82.00us
     90%   91.00us
     99%    1.30ms
  25578 requests in 2.10s, 3.88MB read
Requests/sec:  12180.57
Transfer/sec:      1.85MB
";

    #[test]
    fn reads_wrk() {
        let found = read_wrk(WRK).unwrap();
        assert_eq!(
            (found.per_second, found.p50, found.p99),
            (12180.57, 79.0, 1300.0)
        );
        assert!(read_wrk("Socket errors: connect 0, read 3, write 0, timeout 0").is_err());
        assert!(read_wrk("").is_err());
    }

    #[test]
    fn reads_iperf() {
        let text = r#"{"end": {"sum_received": {"bits_per_second": 8e9, "bytes": 2e9}}}"#;
        assert_eq!(read_iperf(text).unwrap(), (8e9, 2e9));
        assert!(read_iperf(r#"{"error": "unable to connect"}"#).is_err());
    }

    #[test]
    fn knows_the_units_of_wrk() {
        for (text, want) in [("79.00us", 79.0), ("1.5ms", 1500.0), ("2.00s", 2e6)] {
            assert_eq!(microseconds(text).unwrap(), want);
        }
        assert!(microseconds("3m").is_err());
    }
}

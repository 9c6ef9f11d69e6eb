//! Memory of the proxies at rest and with idle connections, and what the kernel holds beside.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};

use super::{
    apps::{App, me},
    cpu,
    figure::Figure,
    helper::Held,
    samples::{Part, Samples},
    stage::{Stage, Variant},
};
use crate::Process;

/// Resident memory before any traffic.
pub fn idle(stage: &Stage, variants: &[Variant], samples: &mut Samples) -> Result<()> {
    for variant in variants {
        if let Some(proxies) = stage.proxies(*variant, App::Echo) {
            Part::default()
                .with(
                    Figure::IdleOutbound,
                    cpu::resident(proxies.outbound)? as f64 / 1e6,
                )
                .with(
                    Figure::IdleInbound,
                    cpu::resident(proxies.inbound)? as f64 / 1e6,
                )
                .add_to(samples, *variant);
        }
    }
    Ok(())
}

/// KiB for each of `count` connections that were used once and then left alone.
pub fn held(stage: &Stage, variant: Variant, count: usize) -> Result<Part> {
    let proxies = stage
        .proxies(variant, App::Echo)
        .context("a variant with proxies")?;
    let sizes = || {
        Ok::<_, anyhow::Error>((
            cpu::resident(proxies.outbound)?,
            cpu::resident(proxies.inbound)?,
            kernel()?,
        ))
    };
    let before = sizes()?;
    let mut command = stage.ends(variant).client.command(me()?);
    let address = stage.dial(variant, App::Echo).to_string();
    command.args(["helper", "hold", &address, &count.to_string()]);
    let holder = Process::spawn(
        format!("{count} connections over {}", variant.title()),
        command,
    );
    let limit = Duration::from_secs(60);
    let parse = |line: &str| serde_json::from_str::<Held>(line).ok();
    holder.wait_line_from(0, "word that all connections stand", limit, parse);
    // Buffers that are given back when idle are given back by then.
    thread::sleep(Duration::from_secs(2));
    let after = sizes()?;
    let each = |before: u64, after: u64| (after as f64 - before as f64) / 1024.0 / count as f64;
    let figures = if count >= 5_000 {
        [
            Figure::PerConnectionOutbound5000,
            Figure::PerConnectionInbound5000,
            Figure::KernelPerConnection5000,
        ]
    } else {
        [
            Figure::PerConnectionOutbound1000,
            Figure::PerConnectionInbound1000,
            Figure::KernelPerConnection1000,
        ]
    };
    Ok(Part::default()
        .with(figures[0], each(before.0, after.0))
        .with(figures[1], each(before.1, after.1))
        .with(figures[2], each(before.2, after.2)))
}

/// Bytes in slabs (socket structures, of client and server too) and in TCP's buffers, of the whole machine.
fn kernel() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let slab = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("Slab:"))
        .context("odd /proc/meminfo")?;
    let slab: u64 = slab
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("odd /proc/meminfo")?;
    let sockstat =
        fs::read_to_string("/proc/net/sockstat").context("cannot read /proc/net/sockstat")?;
    let tcp = sockstat
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .context("odd /proc/net/sockstat")?;
    // The last word is the memory of all namespaces, in pages.
    let pages: u64 = tcp
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .context("odd /proc/net/sockstat")?;
    Ok(slab * 1024 + pages * 4096)
}

//! Memory of the proxies at rest and with idle connections, and what the kernel holds beside.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};

use super::{
    apps::{App, me},
    cpu,
    figure::Figure,
    helper::Held,
    samples::{Part, Samples},
    stage::{Proxies, Stage, Variant},
};
use crate::Process;

/// Measures each variant's proxies before they have carried anything else: what an allocator keeps from earlier loads would
/// hide what connections need. `counts` go up.
pub fn measure(
    stage: &Stage,
    variants: &[Variant],
    counts: &[usize],
    samples: &mut Samples,
) -> Result<()> {
    for variant in variants.iter().copied() {
        let Some(proxies) = stage.proxies(variant, App::Echo) else {
            continue;
        };
        let rest = Resident::now(proxies)?;
        Part::default()
            .with(Figure::IdleOutbound, rest.outbound as f64 / 1e6)
            .with(Figure::IdleInbound, rest.inbound as f64 / 1e6)
            .add_to(samples, variant);
        for count in counts {
            println!("bench: {count} idle connections over {}", variant.title());
            held(stage, variant, proxies, &rest, *count)?.add_to(samples, variant);
        }
    }
    Ok(())
}

/// Resident memory of both proxies, in bytes.
struct Resident {
    outbound: u64,
    inbound: u64,
}

impl Resident {
    fn now(proxies: Proxies) -> Result<Self> {
        Ok(Self {
            outbound: cpu::resident(proxies.outbound)?,
            inbound: cpu::resident(proxies.inbound)?,
        })
    }
}

/// KiB for each of `count` connections that were used once and then left alone, compared with the proxies at rest.
fn held(
    stage: &Stage,
    variant: Variant,
    proxies: Proxies,
    rest: &Resident,
    count: usize,
) -> Result<Part> {
    let kernel_before = kernel()?;
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
    let now = Resident::now(proxies)?;
    let kernel_now = kernel()?;
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
        .with(figures[0], each(rest.outbound, now.outbound))
        .with(figures[1], each(rest.inbound, now.inbound))
        .with(figures[2], each(kernel_before, kernel_now)))
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

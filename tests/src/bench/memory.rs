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
    let kernel_before = settled()?;
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

/// What a TCP connection consists of in the kernel; the whole machine's slab memory would count what others do meanwhile.
const SLABS: [&str; 7] = [
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "eventpoll_epi",
    "skbuff_head_cache",
    "skbuff_small_head",
];

/// Bytes in sockets, those of client and server too, and in TCP's buffers.
fn kernel() -> Result<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let sockets: u64 = slabs.lines().filter_map(in_use).sum();
    let sockstat =
        fs::read_to_string("/proc/net/sockstat").context("cannot read /proc/net/sockstat")?;
    let tcp = sockstat
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .context("odd /proc/net/sockstat")?;
    // The last word is the memory of all namespaces, in pages.
    let pages = tcp.rsplit(' ').next().unwrap_or_default();
    let pages: u64 = pages.parse().context("odd /proc/net/sockstat")?;
    Ok(sockets + pages * 4096)
}

/// [`kernel`], once it does not shrink any more: sockets of the last run are freed late.
fn settled() -> Result<u64> {
    let mut last = kernel()?;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(500));
        let now = kernel()?;
        if now + last / 100 >= last {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Bytes of one line of slabinfo(5), if it is one of [`SLABS`]: name, objects in use, all objects, size of one.
fn in_use(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    SLABS.contains(&fields.next()?).then_some(())?;
    let (active, _all) = (fields.next()?, fields.next()?);
    Some(active.parse::<u64>().ok()? * fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_slabs_of_sockets_only() {
        for (line, want) in [
            (
                "TCP                 80    130   2368   13    8 : tunables",
                Some(80 * 2368),
            ),
            (
                "TCPv6                0      0   2496   13    8 : tunables",
                Some(0),
            ),
            (
                "dentry          100000 100000    192   21    1 : tunables",
                None,
            ),
            ("# name            <active_objs> <num_objs> <objsize>", None),
            ("slabinfo - version: 2.1", None),
        ] {
            assert_eq!(in_use(line), want, "{line}");
        }
    }
}

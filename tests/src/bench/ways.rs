//! The ways of capture beside each other: what each costs a new connection, and whether conntrack remembers any.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Options,
    apps::{App, echo, me},
    connect::{Stopped, Timer},
    dns::{self, Resolver},
    figure::Group,
    helper::Churned,
    load::{CHURNING, output},
    quiet::Quiet,
    samples::{median, spread},
    stage::{Ends, Running, end_on_signal, tune},
};
use crate::{
    Pod, Process, Testbed,
    way::{Backend, Mode},
};

/// Connects of one turn, few enough for the accept queue of a daemon that is stopped meanwhile.
const TURN: usize = 25;
const TURNS: usize = 20;

/// Without a proxy, or captured by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    Direct,
    By(Backend),
}

impl Column {
    const ALL: [Self; 5] = [
        Self::Direct,
        Self::By(Backend::Ebpf),
        Self::By(Backend::IptablesNft),
        Self::By(Backend::IptablesLegacy),
        Self::By(Backend::Nftables),
    ];
    /// Those that DNS is measured over.
    const DNS: [Self; 2] = [Self::Direct, Self::By(Backend::Ebpf)];

    fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::By(backend) => backend.name(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Connect,
    NewConnections,
    ConntrackEntries,
    DnsKnownP50,
    DnsKnownRate,
    DnsOtherP50,
    DnsOtherRate,
}

impl Row {
    fn title(self) -> &'static str {
        match self {
            Self::Connect => "connect() (µs)",
            Self::NewConnections => "new connections (/s)",
            Self::ConntrackEntries => "conntrack entries in the client's pod",
            Self::DnsKnownP50 => "DNS, a service's name: p50 (µs)",
            Self::DnsKnownRate => "DNS, a service's name (queries/s)",
            Self::DnsOtherP50 => "DNS, another name: p50 (µs)",
            Self::DnsOtherRate => "DNS, another name (queries/s)",
        }
    }

    /// Of which eBPF's is held against the other backends', and whether less is better.
    fn compared(self) -> Option<bool> {
        match self {
            Self::Connect => Some(true),
            Self::NewConnections => Some(false),
            _ => None,
        }
    }
}

/// Everything that was measured, by row and column.
#[derive(Default)]
pub struct Found(BTreeMap<(Row, Column), Vec<f64>>);

/// Measures in rounds, each with every column in turn; prints the table, and gives it as JSON.
pub fn run(options: &Options, quiet: &mut Quiet) -> Result<Value> {
    let stage = Stage::start(options)?;
    let mut found = Found::default();
    for round in 0..options.rounds() {
        println!(
            "bench: ways of capture, round {} of {}",
            round + 1,
            options.rounds()
        );
        if options.wants(Group::Backends) {
            for (column, value) in quiet.run(|| stage.connects(round))? {
                found.add(Row::Connect, column, value);
            }
            for column in turns(&Column::ALL, round) {
                let rate = quiet.run(|| stage.churn(column, options.seconds()))?;
                found.add(Row::NewConnections, column, rate);
                found.add(Row::ConntrackEntries, column, stage.conntrack(column)?);
            }
        }
        if options.wants(Group::Dns) {
            for column in turns(&Column::DNS, round) {
                let ends = stage.ends(column);
                let ask = |known, in_flight| {
                    let to = stage.resolver.address();
                    dns::ask(&ends.client, to, known, in_flight, options.seconds())
                };
                for (known, p50, rate) in [
                    (true, Row::DnsKnownP50, Row::DnsKnownRate),
                    (false, Row::DnsOtherP50, Row::DnsOtherRate),
                ] {
                    found.add(p50, column, quiet.run(|| ask(known, 1))?.p50);
                    found.add(
                        rate,
                        column,
                        quiet.run(|| ask(known, dns::IN_FLIGHT))?.per_second,
                    );
                }
            }
        }
    }
    found.print();
    Ok(found.json())
}

fn turns(columns: &[Column], round: usize) -> impl Iterator<Item = Column> {
    let first = round % columns.len();
    columns[first..].iter().chain(&columns[..first]).copied()
}

/// Two nodes per backend, since a node has one daemon; on the first two also a pair of pods that nobody captures.
struct Stage {
    plain: Ends,
    by: Vec<(Backend, Ends, Running, Running)>,
    resolver: Resolver,
    _echoes: Vec<Process>,
    // Last, so that it outlives what runs in it.
    _bed: Testbed,
}

impl Stage {
    fn start(options: &Options) -> Result<Self> {
        println!("bench: setting the stage for the ways of capture");
        let bed = Testbed::new();
        end_on_signal(&bed);
        let nodes: Vec<_> = (0..Backend::ALL.len())
            .map(|number| {
                (
                    bed.node(&format!("a{number}")),
                    bed.node(&format!("b{number}")),
                )
            })
            .collect();
        let (a, b) = &nodes[0];
        let plain = Ends {
            client: a.pod("plain-client"),
            server: b.pod("plain-server"),
        };
        let resolver = b.pod("resolver");
        let ends = nodes.iter().enumerate().map(|(number, (a, b))| Ends {
            client: a.pod(&format!("client{number}")),
            server: b.pod(&format!("server{number}")),
        });
        let ends: Vec<_> = ends.collect();
        let mut workloads = bed.workloads();
        for Ends { client, server } in &ends {
            workloads = workloads.hbone(client).hbone(server);
        }
        workloads
            .service("web", &[dns::SERVICE_VIP], 80, &[&ends[0].server], 80)
            .write();
        let mut echoes = Vec::new();
        for Ends { client, server } in ends.iter().chain([&plain]) {
            [client, server].into_iter().for_each(tune);
            echoes.push(echo(server, App::Echo.port())?);
        }
        let mut by = Vec::new();
        for ((backend, ends), (a, b)) in Backend::ALL.into_iter().zip(ends).zip(&nodes) {
            let daemon = |node: &crate::Node, pod: &Pod| {
                let spec = node.daemon().capture(pod).config(backend.config());
                let spec = spec.config(Mode::Shared.config());
                Running::start(
                    &spec.config(json!({ "workers": options.workers })),
                    node,
                    false,
                )
            };
            let (outbound, inbound) = (daemon(a, &ends.client)?, daemon(b, &ends.server)?);
            by.push((backend, ends, outbound, inbound));
        }
        Ok(Self {
            plain,
            by,
            resolver: Resolver::start(resolver)?,
            _echoes: echoes,
            _bed: bed,
        })
    }

    fn of(&self, column: Column) -> Option<&(Backend, Ends, Running, Running)> {
        self.by
            .iter()
            .find(|(backend, ..)| column == Column::By(*backend))
    }

    fn ends(&self, column: Column) -> &Ends {
        self.of(column).map_or(&self.plain, |(_, ends, ..)| ends)
    }

    /// The median of each column. The daemon in question is stopped meanwhile, so that the kernel's part is measured and not
    /// how processes share the processors; its queue holds the connections.
    fn connects(&self, round: usize) -> Result<Vec<(Column, f64)>> {
        let mut timers = Vec::new();
        for column in turns(&Column::ALL, round) {
            let ends = self.ends(column);
            let timer = Timer::start(ends.client.command(me()?), ends.server.at(App::Echo.port()))?;
            timers.push((column, timer, Vec::new()));
        }
        for _ in 0..TURNS {
            for (column, timer, times) in &mut timers {
                let daemon = self.of(*column).map(|(_, _, outbound, _)| outbound.pid());
                let _stopped = daemon.map(Stopped::new).transpose()?;
                times.extend(timer.time(TURN)?);
            }
        }
        let medians = timers.iter().map(|(column, _, times)| {
            Ok((*column, median(times).context("no connect was timed")?))
        });
        medians.collect()
    }

    fn churn(&self, column: Column, seconds: u32) -> Result<f64> {
        let ends = self.ends(column);
        let mut command = ends.client.command(me()?);
        let to = ends.server.at(App::Echo.port()).to_string();
        command.args([
            "helper",
            "churn",
            &to,
            &seconds.to_string(),
            &CHURNING.to_string(),
        ]);
        let churned: Churned =
            serde_json::from_str(&output(&mut command)?).context("odd result of the helper")?;
        let (failed, all) = (churned.failed, churned.connections);
        ensure!(
            failed == 0,
            "{failed} of {all} connections failed, {}",
            column.title()
        );
        Ok(all as f64 / churned.seconds)
    }

    fn conntrack(&self, column: Column) -> Result<f64> {
        let count = || output(Command::new("conntrack").arg("-C"));
        let count = self.ends(column).client.netns().run(count)??;
        count.trim().parse().context("conntrack -C wrote no number")
    }
}

impl Found {
    fn add(&mut self, row: Row, column: Column, value: f64) {
        self.0.entry((row, column)).or_default().push(value);
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.0.keys().map(|(row, _)| *row).collect();
        rows.dedup();
        rows
    }

    fn median(&self, row: Row, column: Column) -> Option<f64> {
        median(self.0.get(&(row, column))?)
    }

    fn spread(&self, row: Row, column: Column) -> Option<f64> {
        spread(self.0.get(&(row, column))?)
    }

    /// The backends than which eBPF is slower by more than the rounds differ; `None` where nothing is compared.
    fn slower_than(&self, row: Row) -> Option<Vec<Backend>> {
        let less_is_better = row.compared()?;
        let ebpf = Column::By(Backend::Ebpf);
        let own = self.median(row, ebpf)?;
        let others = Backend::ALL
            .into_iter()
            .filter(|backend| backend.is_netfilter());
        let slower = others.filter(|backend| {
            let other = Column::By(*backend);
            let Some(theirs) = self.median(row, other) else {
                return false;
            };
            let spread = |column| self.spread(row, column).unwrap_or(0.0);
            let room = 1.0 + spread(ebpf).max(spread(other));
            match less_is_better {
                true => own > theirs * room,
                false => own * room < theirs,
            }
        });
        Some(slower.collect())
    }

    fn print(&self) {
        println!("\nways of capture: medians, ± half of the range over the rounds\n");
        let heads = Column::ALL.map(|column| format!("{:>18}", column.title()));
        println!("{:<38}{}", "", heads.concat());
        for row in self.rows() {
            let cells = Column::ALL.map(|column| {
                let Some(median) = self.median(row, column) else {
                    return format!("{:>18}", "");
                };
                let number = format!("{median:.*}", if median < 1000.0 { 1 } else { 0 });
                match self.spread(row, column) {
                    Some(spread) if spread > 0.0 => {
                        format!("{:>18}", format!("{number} ±{:>3.0} %", spread * 100.0))
                    }
                    _ => format!("{number:>18}"),
                }
            });
            let verdict = self.slower_than(row).map(|slower| match &slower[..] {
                [] => "  ok: eBPF is not slower than the others".to_owned(),
                slower => {
                    let names: Vec<_> = slower.iter().map(|backend| backend.name()).collect();
                    format!("  MISS: eBPF is slower than {}", names.join(", "))
                }
            });
            println!(
                "{:<38}{}{}",
                row.title(),
                cells.concat(),
                verdict.unwrap_or_default()
            );
        }
    }

    fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|row| {
            let columns = Column::ALL.into_iter().filter_map(|column| {
                let values = self.0.get(&(row, column))?;
                let value =
                    json!({ "median": median(values), "spread": spread(values), "values": values });
                Some((column.title().to_owned(), value))
            });
            let columns: serde_json::Map<_, _> = columns.collect();
            let slower = self
                .slower_than(row)
                .map(|slower| slower.into_iter().map(Backend::name).collect::<Vec<_>>());
            json!({ "figure": row.title(), "columns": columns, "ebpf_slower_than": slower })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_means_by_more_than_the_rounds_differ() {
        let ebpf = Column::By(Backend::Ebpf);
        let nft = Column::By(Backend::Nftables);
        for (own, theirs, slower) in [
            (&[100.0, 110.0, 120.0][..], &[105.0, 105.0][..], false),
            (&[110.0, 110.0, 110.0], &[105.0, 105.0], true),
            (&[90.0], &[105.0], false),
        ] {
            let mut found = Found::default();
            own.iter()
                .for_each(|value| found.add(Row::Connect, ebpf, *value));
            theirs
                .iter()
                .for_each(|value| found.add(Row::Connect, nft, *value));
            let expected = slower.then_some(Backend::Nftables);
            let expected: Vec<_> = expected.into_iter().collect();
            assert_eq!(
                found.slower_than(Row::Connect),
                Some(expected),
                "{own:?} {theirs:?}"
            );
            // Of rates, more is better.
            let mut found = Found::default();
            own.iter()
                .for_each(|value| found.add(Row::NewConnections, nft, *value));
            theirs
                .iter()
                .for_each(|value| found.add(Row::NewConnections, ebpf, *value));
            assert_eq!(
                found
                    .slower_than(Row::NewConnections)
                    .map(|s| !s.is_empty()),
                Some(slower)
            );
        }
    }
}

//! What the contract says, one function per sentence: each panics if it does not hold.

mod dns;
mod ends;
mod inbound;
mod outbound;
mod probe;
mod untouched;

use crate::{
    matrix::Family,
    stage::{Phase, Stage},
};

pub struct Check {
    pub name: &'static str,
    pub phase: Phase,
    pub run: Run,
}

type Run = fn(&Stage, Family);

/// In the order of the table; a phase's checks are made family by family.
pub const ALL: &[Check] = &[
    captured("outbound by HBONE", outbound::by_hbone),
    captured("outbound passed through", outbound::passed_through),
    captured("names as without capture", outbound::names),
    captured("client's address kept", outbound::client_address),
    captured("refusal arrives as one", outbound::refusal),
    captured("proxy not captured", outbound::proxy_itself),
    captured("inbound captured", inbound::captured),
    captured("inbound to no app", inbound::to_no_app),
    captured("inbound denied by policy", inbound::denied),
    captured("our ports from outside", inbound::our_ports),
    captured("listeners", inbound::listeners),
    captured("excluded inbound port", inbound::excluded_port),
    captured("excluded inbound CIDR", inbound::excluded_cidr),
    captured("probe", probe::reaches_the_app),
    captured("probe of another port", probe::of_another_port),
    captured("probe by somebody else", probe::by_somebody_else),
    captured("DNS: a service", dns::of_the_mesh),
    captured("DNS: another name", dns::forwarded),
    captured("DNS over TCP", dns::over_tcp),
    captured("loopback", untouched::loopback),
    captured("self by pod's address", untouched::own_address),
    captured("excluded port", untouched::excluded_port),
    captured("excluded CIDR", untouched::excluded_cidr),
    captured("metadata address", untouched::metadata),
    captured("no conntrack", untouched::conntrack),
    dead("dead: outbound refused", ends::outbound_refused),
    dead("dead: inbound refused", ends::inbound_refused),
    dead("dead: DNS unanswered", dns::unanswered),
    dead("dead: exclusions hold", untouched::excluded_port),
    again("next daemon goes on", outbound::by_hbone),
    again("next daemon, inbound", inbound::captured),
    again("nothing leaked", ends::nothing_leaked),
    cleaned("cleaned: direct", ends::direct),
    cleaned("cleaned: DNS is direct", dns::direct),
    cleaned("cleaned: as before", ends::as_before),
];

const fn captured(name: &'static str, run: Run) -> Check {
    let phase = Phase::Captured;
    Check { name, phase, run }
}

const fn dead(name: &'static str, run: Run) -> Check {
    let phase = Phase::Dead;
    Check { name, phase, run }
}

const fn again(name: &'static str, run: Run) -> Check {
    let phase = Phase::Again;
    Check { name, phase, run }
}

const fn cleaned(name: &'static str, run: Run) -> Check {
    let phase = Phase::Cleaned;
    Check { name, phase, run }
}

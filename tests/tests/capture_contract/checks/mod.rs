//! What the contract says, one function per sentence: each panics if it does not hold.

mod ends;
mod inbound;
mod outbound;
mod untouched;

use crate::{
    matrix::Family,
    stage::{Phase, Stage},
};

pub struct Check {
    pub name: &'static str,
    pub phase: Phase,
    pub run: fn(&Stage, Family),
}

const fn check(name: &'static str, phase: Phase, run: fn(&Stage, Family)) -> Check {
    Check { name, phase, run }
}

/// In the order of the table; a phase's checks are made family by family.
pub const ALL: &[Check] = &[
    check("outbound by HBONE", Phase::Captured, outbound::by_hbone),
    check(
        "outbound passed through",
        Phase::Captured,
        outbound::passed_through,
    ),
    check("names as without capture", Phase::Captured, outbound::names),
    check(
        "client's address kept",
        Phase::Captured,
        outbound::client_address,
    ),
    check("refusal arrives as one", Phase::Captured, outbound::refusal),
    check(
        "proxy not captured",
        Phase::Captured,
        outbound::proxy_itself,
    ),
    check("inbound captured", Phase::Captured, inbound::captured),
    check("inbound to no app", Phase::Captured, inbound::to_no_app),
    check("inbound denied by policy", Phase::Captured, inbound::denied),
    check(
        "our ports from outside",
        Phase::Captured,
        inbound::our_ports,
    ),
    check("listeners", Phase::Captured, inbound::listeners),
    check(
        "excluded inbound port",
        Phase::Captured,
        inbound::excluded_port,
    ),
    check(
        "excluded inbound CIDR",
        Phase::Captured,
        inbound::excluded_cidr,
    ),
    check("loopback", Phase::Captured, untouched::loopback),
    check(
        "self by pod's address",
        Phase::Captured,
        untouched::own_address,
    ),
    check("excluded port", Phase::Captured, untouched::excluded_port),
    check("excluded CIDR", Phase::Captured, untouched::excluded_cidr),
    check("metadata address", Phase::Captured, untouched::metadata),
    check("no conntrack", Phase::Captured, untouched::conntrack),
    check(
        "dead: outbound refused",
        Phase::Dead,
        ends::outbound_refused,
    ),
    check("dead: inbound refused", Phase::Dead, ends::inbound_refused),
    check(
        "dead: exclusions hold",
        Phase::Dead,
        untouched::excluded_port,
    ),
    check("next daemon goes on", Phase::Again, outbound::by_hbone),
    check("nothing leaked", Phase::Again, ends::nothing_leaked),
    check("cleaned: direct", Phase::Cleaned, ends::direct),
    check("cleaned: as before", Phase::Cleaned, ends::as_before),
];

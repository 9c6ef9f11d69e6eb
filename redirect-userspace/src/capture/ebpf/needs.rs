//! What the embedded programs need of a kernel, read from the object itself: so no list can fall behind them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::{Object, ProgramSection, generated::bpf_attach_type};

use crate::sys::bpf_probe::Kind;

/// `BPF_JMP | BPF_CALL`, and who is called: 0 for a helper.
const CALL: u8 = 0x85;
const HELPER: u8 = 0;

/// `enum bpf_prog_type`.
pub const SCHED_CLS: u32 = 3;
pub const CGROUP_SKB: u32 = 8;
pub const SOCK_OPS: u32 = 13;
pub const SOCK_ADDR: u32 = 18;
pub const SOCKOPT: u32 = 25;
pub const SK_LOOKUP: u32 = 30;

/// What must be there for the object to be loaded, beyond what only the verifier knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The hooks, each with the numbers of the helpers that are called there.
    pub hooks: BTreeMap<Kind, BTreeSet<u32>>,
    /// `enum bpf_map_type`.
    pub maps: BTreeSet<u32>,
}

/// The needs of `object`, an ELF file.
pub fn of(object: &[u8]) -> Result<Needs, String> {
    let mut object = Object::parse(object).map_err(|error| error.to_string())?;
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    // Puts the functions that a program calls behind its own instructions.
    object
        .relocate_calls(&sections)
        .map_err(|error| error.to_string())?;
    let mut needs = Needs::default();
    for (name, program) in &object.programs {
        let kind = kind(&program.section)
            .ok_or_else(|| format!("program {name} is of a type that is not known here"))?;
        let function = object.functions.get(&program.function_key());
        let instructions = function.map(|function| function.instructions.as_slice());
        let calls = instructions
            .unwrap_or_default()
            .iter()
            .filter(|instruction| instruction.code == CALL && instruction.src_reg() == HELPER);
        needs
            .hooks
            .entry(kind)
            .or_default()
            .extend(calls.map(|call| call.imm.cast_unsigned()));
    }
    needs.maps = object.maps.values().map(|map| map.map_type()).collect();
    Ok(needs)
}

fn kind(section: &ProgramSection) -> Option<Kind> {
    let number = |attach_type: bpf_attach_type| attach_type as u32;
    let (program_type, attach_type) = match section {
        ProgramSection::CgroupSockAddr { attach_type } => {
            (SOCK_ADDR, number((*attach_type).into()))
        }
        ProgramSection::CgroupSockopt { attach_type } => (SOCKOPT, number((*attach_type).into())),
        ProgramSection::SockOps => (SOCK_OPS, 0),
        ProgramSection::SkLookup => (SK_LOOKUP, number(bpf_attach_type::BPF_SK_LOOKUP)),
        ProgramSection::CgroupSkb { attach_type } => (
            CGROUP_SKB,
            attach_type.map_or(0, |hook| number(hook.into())),
        ),
        ProgramSection::SchedClassifier => (SCHED_CLS, 0),
        _ => return None,
    };
    Some(Kind {
        program_type,
        attach_type,
    })
}

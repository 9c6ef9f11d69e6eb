//! Trying what the kernel's BPF takes: programs of a few instructions, loaded, linked and forgotten.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::libc;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

/// `BPF_ALU64 | BPF_MOV | BPF_K`, `BPF_JMP | BPF_CALL`, `BPF_JMP | BPF_EXIT`, `BPF_LDX | BPF_MEM | BPF_W`.
const MOV: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD: u8 = 0x61;

/// Long enough for the few lines that the verifier has to say about three instructions.
const LOG: usize = 16 * 1024;

/// As often as libbpf tries.
const ATTEMPTS: u32 = 5;

/// Where a program would run: `enum bpf_prog_type` and `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    pub program_type: u32,
    /// 0 for types that are loaded without one.
    pub attach_type: u32,
}

/// What the program does beyond returning 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Nothing,
    /// Calls this helper, with arguments that it would not take.
    Call(u32),
    /// Reads four bytes of its context.
    Read(i16),
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", if log.is_empty() { String::new() } else { format!(": {log}") })]
pub struct Refused {
    pub error: io::Error,
    /// The verifier's words, if it came to that.
    pub log: String,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}
const _: () = assert!(offset_of!(Load, expected_attach_type) == 68 && size_of::<Load>() == 72);

/// The start of it for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads a program.
pub fn load(kind: Kind, does: Does) -> Result<OwnedFd, Refused> {
    let instruction = |code, registers, offset, immediate| Instruction {
        code,
        registers,
        offset,
        immediate,
    };
    // r0 = *(u32 *)(r1 + offset): the two halves of the byte are in the machine's order.
    let from_context = if cfg!(target_endian = "big") {
        0x01
    } else {
        0x10
    };
    let first = match does {
        Does::Nothing => None,
        Does::Call(helper) => Some(instruction(CALL, 0, 0, helper.cast_signed())),
        Does::Read(offset) => Some(instruction(LOAD, from_context, offset, 0)),
    };
    let ending = [instruction(MOV, 0, 0, 1), instruction(EXIT, 0, 0, 0)];
    let program: Vec<Instruction> = first.into_iter().chain(ending).collect();
    let mut log = vec![0_u8; LOG];
    let attr = Load {
        program_type: kind.program_type,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        expected_attach_type: kind.attach_type,
        ..Load::default()
    };
    // SAFETY: the instructions, the licence and the log outlive the call and are as long as it is told.
    let load = || unsafe { bpf(BPF_PROG_LOAD, &attr) };
    let mut result = load();
    for _ in 1..ATTEMPTS {
        // The verifier lets go when a signal waits for this thread; the next attempt is another matter.
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => result = load(),
            _ => break,
        }
    }
    result.map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        Refused {
            error,
            log: String::from_utf8_lossy(&log[..end]).trim().to_owned(),
        }
    })
}

/// Links a program to what `target` names (a cgroup's or namespace's descriptor, or an interface's index) until it is closed.
pub fn link(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }
}

/// # Safety
///
/// Addresses in `attr` are valid for what `command` does with them, and `command` gives a new descriptor.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads no further than the size it is told, and takes what is missing as zero.
    match unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel just gave this descriptor to us alone.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    }
}

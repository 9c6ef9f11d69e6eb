//! The embedded object: its programs, loaded into the kernel, and its maps, pinned.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::Map,
    programs::{Program, ProgramError, ProgramFd, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use redirect_common::maps::names;

use super::{super::CaptureError, node, pins::Pins};
use crate::sys::bpf;

/// The programs with their maps.
pub struct Object {
    ebpf: Ebpf,
    programs: Arc<Programs>,
}

/// Descriptors of the loaded programs, by their names.
pub struct Programs(HashMap<String, ProgramFd>);

impl Object {
    /// Loads all programs that pods' own cgroups and namespaces need. Maps that are pinned already are used on.
    pub fn load(pins: &Pins) -> Result<Self, CaptureError> {
        let is_of_pods = |name: &str| !SINGLES.contains(&name) && !node::PROGRAMS.contains(&name);
        Self::load_with(Some(pins), VerifierLogLevel::DISABLE, is_of_pods)
    }

    /// Loads these programs alone.
    pub fn load_only(pins: &Pins, programs: &[&str]) -> Result<Self, CaptureError> {
        Self::load_with(Some(pins), VerifierLogLevel::DISABLE, |name| {
            programs.contains(&name)
        })
    }

    /// Loads all programs with maps of their own and forgets them, with the verifier's words if it refuses one.
    pub fn try_load() -> Result<(), CaptureError> {
        Self::load_with(None, VerifierLogLevel::default(), |_| true).map(drop)
    }

    fn load_with(
        pins: Option<&Pins>,
        log: VerifierLogLevel,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, CaptureError> {
        let has_set_retval = u8::from(has_set_retval());
        let log_level = if is_logging() { AYA_DEBUG } else { 0 };
        let mut loader = loader();
        loader.verifier_log_level(log);
        loader.override_global("RDR_HAS_SET_RETVAL", &has_set_retval, true);
        loader.override_global("AYA_LOG_LEVEL", &log_level, true);
        let mut ebpf = open(&mut loader, pins)?;
        let mut programs = HashMap::new();
        for (name, program) in ebpf.programs_mut() {
            if !wanted(name) {
                continue;
            }
            let descriptor = load(program)
                .map_err(|error| CaptureError::kernel("load the eBPF program", name, &error))?;
            programs.insert(name.to_owned(), descriptor);
        }
        let programs = Arc::new(Programs(programs));
        Ok(Self { ebpf, programs })
    }

    /// A map, to be taken once.
    pub fn map(&mut self, name: &'static str) -> Result<Map, CaptureError> {
        self.ebpf
            .take_map(name)
            .ok_or_else(|| CaptureError::Kernel {
                call: "find",
                object: format!("map {name}"),
                cause: "it is not in the eBPF object".into(),
                hint: "; the programs were built from other sources than the daemon",
            })
    }

    pub fn programs(&self) -> &Arc<Programs> {
        &self.programs
    }

    /// Passes on what the programs log, if they do. Inside the daemon's runtime.
    pub fn start_log(&mut self) {
        if !is_logging() {
            return;
        }
        let logger = match aya_log::EbpfLogger::init(&mut self.ebpf) {
            Ok(logger) => logger,
            Err(error) => return tracing::warn!(%error, "the programs' log is not shown"),
        };
        tokio::spawn(async move {
            let Ok(mut logger) = bpf::await_log(logger) else {
                return;
            };
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
    }
}

impl Programs {
    pub fn get(&self, name: &'static str) -> Result<BorrowedFd<'_>, CaptureError> {
        let program = self.0.get(name).ok_or_else(|| missing(name))?;
        Ok(program.as_fd())
    }
}

/// Programs that are loaded by themselves, once for each value of their constant that is in use.
const SINGLES: [&str; 2] = ["rdr_guard", "rdr_refuse"];

/// One program with a value of its constant.
pub struct Single(ProgramFd);

impl Single {
    /// Loads the program `name` with `value` for its constant. It shares the pinned maps with all others.
    pub fn load(
        pins: &Pins,
        name: &'static str,
        constant: &'static str,
        value: u32,
    ) -> Result<Self, CaptureError> {
        let mut loader = loader();
        loader.override_global(constant, &value, true);
        let mut ebpf = open(&mut loader, Some(pins))?;
        let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        load(program)
            .map(Self)
            .map_err(|error| CaptureError::kernel("load the eBPF program", name, &error))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn loader<'a>() -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    // No relocation needs the kernel's own BTF, and parsing it takes memory and time.
    loader
        .btf(None)
        .verifier_log_level(VerifierLogLevel::DISABLE);
    loader
}

/// Reads the object, with maps that are pinned where they belong.
fn open(loader: &mut EbpfLoader<'_>, pins: Option<&Pins>) -> Result<Ebpf, CaptureError> {
    let bytes = embedded().ok_or(CaptureError::NotInBuild)?;
    if let Some(pins) = pins {
        for name in names::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader
        .load(bytes)
        .map_err(|error| CaptureError::kernel("load", "the eBPF object", &error))
}

fn missing(name: &'static str) -> CaptureError {
    CaptureError::Kernel {
        call: "find",
        object: format!("program {name}"),
        cause: "it is not in the eBPF object".into(),
        hint: "; the programs were built from other sources than the daemon",
    }
}

fn load(program: &mut Program) -> Result<ProgramFd, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }?;
    Ok(program.fd()?.try_clone()?)
}

/// `aya_log_common::Level::Debug`.
const AYA_DEBUG: u8 = 4;

/// Whether the daemon's log shows what the programs log. Decided when they are loaded: otherwise they hold no code for it.
fn is_logging() -> bool {
    tracing::enabled!(target: "redirect_ebpf", tracing::Level::DEBUG)
}

/// Linux 5.18; without it, a getsockopt with a bad length gets the kernel's own answer instead of EINVAL, and an app that binds
/// a port of ours gets EPERM instead of EADDRINUSE.
fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockopt, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

#[cfg(have_ebpf_object)]
pub fn embedded() -> Option<&'static [u8]> {
    Some(aya::include_bytes_aligned!(concat!(
        env!("OUT_DIR"),
        "/redirect-bpf.o"
    )))
}

#[cfg(not(have_ebpf_object))]
pub fn embedded() -> Option<&'static [u8]> {
    None
}

//! What is in a BPF object: each program's section, instructions and stack use.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use object::{File, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// The kernel's limit on a program's stack, calls included (`MAX_BPF_STACK`).
const STACK_LIMIT: u32 = 512;

pub fn print(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let functions =
        functions(&bytes).with_context(|| format!("cannot read {} as ELF", path.display()))?;
    println!(
        "{:<28} {:<24} {:>12} {:>14}",
        "program", "section", "instructions", "stack (of 512)"
    );
    for function in functions {
        println!(
            "{:<28} {:<24} {:>12} {:>14}",
            function.name, function.section, function.instructions, function.stack
        );
        if function.stack > STACK_LIMIT {
            println!(
                "  warning: {} uses more stack than the kernel allows",
                function.name
            );
        }
    }
    Ok(())
}

struct Function {
    name: String,
    section: String,
    instructions: usize,
    stack: u32,
}

fn functions(bytes: &[u8]) -> Result<Vec<Function>> {
    let file = File::parse(bytes)?;
    let mut functions = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        if section.kind() != SectionKind::Text {
            continue;
        }
        let start = (symbol.address() - section.address()) as usize;
        let code = section
            .data()?
            .get(start..start + symbol.size() as usize)
            .context("symbol outside of its section")?;
        functions.push(Function {
            name: last_segment(symbol.name()?).to_owned(),
            section: section.name()?.to_owned(),
            instructions: code.len() / 8,
            stack: stack_use(code, file.is_little_endian()),
        });
    }
    functions.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
    Ok(functions)
}

/// `log_decision` of `_RNvNtCsdQVd9EnBCLK_13redirect_ebpf7account12log_decision`, and other names as they are.
///
/// A mangled path ends in its last segment behind that one's length (rustc book, "v0 Symbol Format").
fn last_segment(symbol: &str) -> &str {
    let digits = |at: usize| symbol[at..].bytes().take_while(u8::is_ascii_digit).count();
    symbol
        .strip_prefix("_R")
        .and_then(|_| {
            (2..symbol.len()).find_map(|at| {
                let segment = at + digits(at);
                let len: usize = symbol.get(at..segment)?.parse().ok()?;
                (len > 0 && segment + len == symbol.len()).then(|| &symbol[segment..])
            })
        })
        .unwrap_or(symbol)
}

/// The deepest offset from the frame pointer (r10) that `code` uses or passes on.
///
/// Registers that were copied from r10 are followed until they are written again; branches are not followed, which the
/// code that LLVM makes does not need: it adds the offset right behind the copy.
fn stack_use(code: &[u8], little_endian: bool) -> u32 {
    const FRAME_POINTER: usize = 10;
    let mut copies: [Option<i64>; 11] = [None; 11];
    copies[FRAME_POINTER] = Some(0);
    let mut deepest = 0;
    for instruction in code.chunks_exact(8) {
        let registers = if little_endian {
            instruction[1]
        } else {
            instruction[1].rotate_left(4)
        };
        let (dst, src) = (
            usize::from(registers & 15).min(10),
            usize::from(registers >> 4).min(10),
        );
        let word = |bytes: [u8; 4]| {
            if little_endian {
                i32::from_le_bytes(bytes)
            } else {
                i32::from_be_bytes(bytes)
            }
        };
        let half = |bytes: [u8; 2]| {
            if little_endian {
                i16::from_le_bytes(bytes)
            } else {
                i16::from_be_bytes(bytes)
            }
        };
        let offset = i64::from(half([instruction[2], instruction[3]]));
        let immediate = i64::from(word([
            instruction[4],
            instruction[5],
            instruction[6],
            instruction[7],
        ]));
        let touched = match instruction[0] {
            0xbf => {
                copies[dst] = copies[src];
                copies[dst]
            }
            0x07 => {
                copies[dst] = copies[dst].map(|at| at + immediate);
                copies[dst]
            }
            // Class LDX reads through src; ST and STX write through dst.
            opcode if opcode & 7 == 1 => {
                let at = copies[src].map(|at| at + offset);
                copies[dst] = None;
                at
            }
            opcode if matches!(opcode & 7, 2 | 3) => copies[dst].map(|at| at + offset),
            opcode if matches!(opcode & 7, 0 | 4 | 7) => {
                copies[dst] = None;
                None
            }
            _ => None,
        };
        copies[FRAME_POINTER] = Some(0);
        deepest = deepest.min(touched.unwrap_or(0));
    }
    deepest.unsigned_abs() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepest_stack_slot() {
        // r2 = r10; r2 += -24; *(u64 *)(r10 - 8) = r1; exit
        let code: &[[u8; 8]] = &[
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xe8, 0xff, 0xff, 0xff],
            [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(stack_use(code.as_flattened(), true), 24);
    }

    #[test]
    fn names_of_functions() {
        let mangled = "_RNvNtCsdQVd9EnBCLK_13redirect_ebpf7account12log_decision";
        assert_eq!(last_segment(mangled), "log_decision");
        assert_eq!(last_segment("rdr_connect4"), "rdr_connect4");
        assert_eq!(last_segment("_Rx"), "_Rx");
    }

    #[test]
    fn a_register_that_was_overwritten_is_no_frame_pointer() {
        // r2 = r10; r2 = 0; r2 += -400; exit
        let code: &[[u8; 8]] = &[
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x02, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0x70, 0xfe, 0xff, 0xff],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(stack_use(code.as_flattened(), true), 0);
    }
}

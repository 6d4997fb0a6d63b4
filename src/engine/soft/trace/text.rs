//! Records of a trace as text: a line of its own for each block and event, registers that changed, instructions.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::{BlockRecord, Record};
use crate::engine::soft::cpu::CodeSize;
use crate::engine::soft::system::event::Event;

const NAMES: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rflags",
];
/// Registers on a line.
const COLUMNS: usize = 4;

/// Turns one record after the other into text.
#[derive(Default)]
pub(super) struct Printer {
    formatter: IntelFormatter,
    /// The registers of the last block.
    before: Option<[u64; 17]>,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("before", &self.before).finish_non_exhaustive()
    }
}

impl Printer {
    /// `record` as lines.
    pub(super) fn record(&mut self, record: &Record) -> String {
        match record {
            Record::Block(block) => self.block(block),
            Record::Event { count, what } => format!("@{count} {what}\n"),
        }
    }

    fn block(&mut self, block: &BlockRecord) -> String {
        let bits = bits(block.size);
        let mut text = format!("@{} {:016x} {bits}-bit ring {}\n", block.count, block.rip, block.ring);
        let before = self.before.replace(block.registers);
        let changed = |number: &usize| before.is_none_or(|before| before.get(*number) != block.registers.get(*number));
        let changed: Vec<_> = (0..NAMES.len()).filter(changed).collect();
        for line in changed.chunks(COLUMNS) {
            text.push(' ');
            for number in line {
                if let (Some(name), Some(value)) = (NAMES.get(*number), block.registers.get(*number)) {
                    // Writing to a string cannot fail.
                    let _ = write!(text, " {name} {value:016x}");
                }
            }
            text.push('\n');
        }
        let mut decoder = Decoder::with_ip(bits, &block.code, block.rip, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let _ = write!(text, "    {:016x} ", instruction.ip());
            self.formatter.format(&instruction, &mut text);
            text.push('\n');
        }
        text
    }
}

fn bits(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

/// What an event is called.
pub(super) fn event(event: Event) -> String {
    match event {
        Event::Interrupt(vector) => format!("interrupt {vector:#x}"),
        Event::Nmi => "NMI".into(),
        Event::Exception(fault) => {
            let error = fault.error.map_or_else(String::new, |error| format!(" error {error:#x}"));
            let address = if fault.address != 0 { format!(" address {:#x}", fault.address) } else { String::new() };
            format!("exception {}{error}{address}", fault.vector)
        }
    }
}

//! What was executed: blocks with the registers at their start, and the events between them. Made by `careful.rs`, written
//! as text (`text.rs`) when the CPU goes, or at once if all is wanted.
//!
//! A record is taken before its block is executed: how far a block that faulted got is told by the next record's count.

mod text;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;

use self::text::Printer;
use super::code::block::Block;
use super::cpu::{CodeSize, Cpu};
use super::system::event::Event;
use crate::engine::trace::{Keep, Trace};

/// Blocks shown at the end of a crash report.
const LAST_WORDS: usize = 4;

/// A moment of the guest's run.
#[derive(Debug, Clone)]
enum Record {
    Block(BlockRecord),
    /// An interrupt or exception after `count` instructions.
    Event { count: u64, what: String },
}

/// A block about to be executed.
#[derive(Debug, Clone, Default)]
struct BlockRecord {
    /// Instructions executed before.
    count: u64,
    rip: u64,
    size: CodeSize,
    /// Privilege level.
    ring: u8,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, RFLAGS.
    registers: [u64; 17],
    /// Its instructions.
    code: Vec<u8>,
}

/// Keeps what [`Trace`] asks for.
#[derive(Debug)]
pub(super) struct Tracer {
    keep: Keep,
    range: Range<u64>,
    /// `None` after an error.
    out: Option<BufWriter<File>>,
    ring: VecDeque<Record>,
    printer: Printer,
    sum: u64,
    /// The next sum is written when so many instructions were executed.
    next_sum: u64,
    count: u64,
}

impl Tracer {
    /// A trace that has nothing yet.
    pub(super) fn new(trace: Trace) -> Self {
        let Trace { file, keep, range } = trace;
        let next_sum = match keep {
            Keep::Sums(every) => every,
            Keep::Last(_) | Keep::All => u64::MAX,
        };
        let ring = VecDeque::new();
        let out = Some(BufWriter::with_capacity(1 << 16, file));
        Self { keep, range, out, ring, printer: Printer::default(), sum: 0, next_sum, count: 0 }
    }

    /// The full disk is told of once.
    fn write(&mut self, text: &str) {
        let written = self.out.as_mut().map(|out| out.write_all(text.as_bytes()));
        if let Some(Err(e)) = written {
            tracing::warn!("the trace ends here: {e}");
            self.out = None;
        }
    }

    /// A place in the ring whose memory can be used again.
    fn used(&mut self) -> BlockRecord {
        match self.keep {
            Keep::Last(most) if self.ring.len() >= most => match self.ring.pop_front() {
                Some(Record::Block(record)) => record,
                _ => BlockRecord::default(),
            },
            _ => BlockRecord::default(),
        }
    }

    fn keep(&mut self, record: Record) {
        if self.keep == Keep::All {
            let text = self.printer.record(&record);
            return self.write(&text);
        }
        self.ring.push_back(record);
    }

    /// Takes a block into the sum: every register, rotated so that their order counts.
    fn add_to_sum(&mut self, record: &BlockRecord, every: u64) {
        let values = record.registers.iter().chain([&record.rip, &record.count]);
        self.sum = values.fold(self.sum, |sum, value| (sum.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95));
        if record.count >= self.next_sum {
            self.next_sum = (record.count / every + 1).saturating_mul(every);
            self.write(&format!("@{} sum {:016x}\n", record.count, self.sum));
        }
    }

    /// The newest records as text.
    fn last_words(&self) -> String {
        let skipped = self.ring.len().saturating_sub(LAST_WORDS);
        let mut printer = Printer::default();
        self.ring.iter().skip(skipped).map(|record| printer.record(record)).collect()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Keep::Sums(_) = self.keep {
            self.write(&format!("@{} sum {:016x} end\n", self.count, self.sum));
        }
        for record in std::mem::take(&mut self.ring) {
            let text = self.printer.record(&record);
            self.write(&text);
        }
        if let Some(Err(e)) = self.out.as_mut().map(Write::flush) {
            tracing::warn!("the trace cannot be written: {e}");
        }
    }
}

impl Cpu {
    /// `block` is about to be executed; only its first instruction if `single`.
    pub(super) fn trace_block(&mut self, block: &Block, single: bool) {
        let Some(mut tracer) = self.tracer.take() else { return };
        tracer.count = self.instructions;
        if tracer.range.contains(&self.instructions) {
            let mut record = tracer.used();
            record.count = self.instructions;
            (record.rip, record.size, record.ring) = (self.rip, self.code_size, self.cpl);
            for (to, from) in record.registers.iter_mut().zip(self.regs.general().iter().chain([&self.rflags()])) {
                *to = *from;
            }
            if let Keep::Sums(every) = tracer.keep {
                tracer.add_to_sum(&record, every);
            } else {
                let last = if single { block.ops.first() } else { block.ops.last() };
                let bytes = self.bytes_of(block);
                let len = last.map_or(0, |op| op.next() as usize).min(bytes.len());
                record.code.clear();
                record.code.extend(bytes.iter().take(len));
                tracer.keep(Record::Block(record));
            }
        }
        self.tracer = Some(tracer);
    }

    /// An interrupt or exception is about to be delivered.
    #[cold]
    pub(super) fn trace_event(&mut self, event: Event) {
        let count = self.instructions;
        let Some(tracer) = self.tracer.as_mut().filter(|tracer| tracer.range.contains(&count)) else { return };
        if !matches!(tracer.keep, Keep::Sums(_)) {
            drop(tracer.used());
            tracer.keep(Record::Event { count, what: text::event(event) });
        }
    }

    /// The last blocks, for a crash report; nothing without a trace.
    pub(super) fn last_words(&self) -> String {
        self.tracer.as_ref().map_or_else(String::new, |tracer| tracer.last_words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::fault::Break;
    use crate::engine::soft::flags::rflags;
    use crate::engine::soft::testing::{self, CODE};
    use std::io::{Read, Seek};

    /// mov ecx, 3; l: dec ecx; jnz l; mov rax, [rcx + 0x40000000] (mapped by nothing)
    const GUEST: &[u8] = &[0xb9, 3, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x48, 0x8b, 0x81, 0, 0, 0, 0x40];

    /// The trace of [`GUEST`] up to its page fault, and what a crash report would say of it.
    fn traced(keep: Keep, range: Range<u64>) -> (String, String) {
        let mut file = tempfile::tempfile().unwrap();
        let mut cpu = testing::cpu(GUEST);
        cpu.system.rflags &= !rflags::IF;
        let trace = Trace { file: file.try_clone().unwrap(), keep, range };
        (cpu.tracer, cpu.careful) = (Some(Box::new(Tracer::new(trace))), true);
        let attention = cpu.shared.attention(0).clone();
        loop {
            match cpu.run_carefully(&attention, false) {
                Ok(()) => assert!(cpu.instructions < 100),
                step => break assert_eq!(step, Err(Break::Fault)),
            }
        }
        let fault = cpu.fault;
        cpu.trace_event(Event::Exception(fault));
        let words = cpu.last_words();
        drop(cpu);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        (text, words)
    }

    #[test]
    fn a_trace_of_a_tiny_guest() {
        let (all, words) = traced(Keep::All, 0..u64::MAX);
        assert_eq!(words, "", "what is written is not kept");
        let blocks: Vec<_> = all.lines().filter(|line| line.starts_with('@')).collect();
        let at = |count: u64, offset: u64| format!("@{count} {:016x} 64-bit ring 0", CODE + offset);
        assert_eq!(blocks[..4], [at(0, 0), at(3, 5), at(5, 5), at(7, 9)], "{all}");
        assert_eq!(blocks[4], "@7 exception 14 error 0x2 address 0x40000000".replace("0x2 ", "0x0 "));
        let first: Vec<_> = all.lines().skip(1).take(9).collect();
        assert!(first[0].starts_with("  rax 0000000000000000 rcx 0000000000000000"), "{all}");
        assert!(first[4].starts_with("  rflags 0000000000000"), "{all}");
        assert_eq!(first[5], format!("    {CODE:016x} mov ecx,3"));
        assert_eq!(first[6], format!("    {:016x} dec ecx", CODE + 5));
        assert_eq!(first[7], format!("    {:016x} jne {:016X}h", CODE + 7, CODE + 5).replace(" jne ", " jne short "));
        assert!(all.contains("\n  rcx 0000000000000002\n"), "only what changed: {all}");
        let (last, words) = traced(Keep::Last(100), 0..u64::MAX);
        assert_eq!(last, all, "the same, later");
        assert!(!words.is_empty() && words.lines().filter(|line| line.starts_with('@')).count() == LAST_WORDS);
    }

    #[test]
    fn only_the_last_blocks_and_only_a_range() {
        let heads = |(text, _): (String, String)| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix('@')?.split(' ').next().map(Into::into)).collect()
        };
        assert_eq!(heads(traced(Keep::Last(2), 0..u64::MAX)), ["7", "7"]);
        assert_eq!(heads(traced(Keep::All, 3..7)), ["3", "5"]);
        assert_eq!(heads(traced(Keep::Last(5), 5..6)), ["5"]);
    }

    #[test]
    fn sums_are_few_and_repeat() {
        let (first, _) = traced(Keep::Sums(4), 0..u64::MAX);
        let counts: Vec<_> = first.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(counts, ["@5", "@7"], "{first}");
        assert!(first.ends_with(" end\n"), "{first}");
        assert_eq!(first, traced(Keep::Sums(4), 0..u64::MAX).0);
        let other = |text: &str| text.lines().last().unwrap().to_string();
        assert_ne!(other(&first), other(&traced(Keep::Sums(4), 1..u64::MAX).0), "one block less");
    }
}

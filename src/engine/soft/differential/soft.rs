//! The software CPU's side: the same case, executed by `Cpu::step`.

use std::sync::Arc;

use super::case::{CODE, CODE_PAGES, Case, DATA, End, FILLER, Outcome, READABLE, WRITABLE, pattern};
use crate::arch::x86_64::level::CpuLevel;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::features::Features;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr0, cr4, efer};
use crate::engine::soft::cpuid::supported;
use crate::engine::soft::fault::Break;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::shared::Shared;
use crate::engine::soft::vector::Thunks;
use crate::host::cpu::HostCpu;
use crate::mem::{Backing, PAGE, Ram};

/// Page tables are the first pages of RAM.
const TABLES: u64 = 0;
/// Steps of one instruction: a REP may take many.
const STEPS: u32 = 100_000;

/// A software CPU that executes cases.
pub struct Soft {
    cpu: Cpu,
    ram: Ram,
    pattern: Box<[u8; READABLE]>,
    count: u64,
}

fn quad(ram: &Ram, at: u64, value: u64) {
    ram.write(at, &value.to_le_bytes()).unwrap();
}

/// Maps the pages of cases where they are, for privilege 3.
fn write_tables(ram: &Ram) {
    const USER: u64 = 7;
    let table = |number: u64| TABLES + number * PAGE;
    quad(ram, table(0), table(1) | USER);
    quad(ram, table(1) + 8, table(2) | USER);
    for (number, at, pages) in [(3, CODE, CODE_PAGES), (4, DATA, READABLE as u64 / PAGE)] {
        quad(ram, table(2) + (at >> 21 & 511) * 8, table(number) | USER);
        for page in 0..pages {
            let address = at + page * PAGE;
            let rights = if address == DATA + WRITABLE as u64 { USER & !2 } else { USER };
            // The host refuses to execute data.
            let no_execute = if at == DATA { 1 << 63 } else { 0 };
            quad(ram, table(number) + (address >> 12 & 511) * 8, address | rights | no_execute);
        }
    }
}

impl Soft {
    pub fn new() -> Self {
        let layout = [(0, 5 * PAGE), (CODE, CODE_PAGES * PAGE), (DATA, READABLE as u64)];
        let ram = Ram::new(&layout, Backing::Anonymous).unwrap();
        write_tables(&ram);
        let pattern = pattern();
        ram.write(DATA, &pattern[..]).unwrap();
        ram.write(CODE, &[FILLER; (CODE_PAGES * PAGE) as usize]).unwrap();
        let shared = Arc::new(Shared::new(&ram, 1, None));
        let mut cpu = Cpu::new(0, shared, Arc::new(Thunks::new().unwrap()));
        cpu.features = Features::of(&supported(CpuLevel::V3, &HostCpu::detect()));
        set_mode(&mut cpu);
        Self { cpu, ram, pattern, count: 0 }
    }

    /// Executes one case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let end = self.execute();
        self.outcome(case, end)
    }

    /// Executes a case of several instructions as whole blocks, up to the first byte of filler.
    pub fn run_block(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let end = self.execute_blocks();
        // What the next one jumps to must be filler.
        self.ram.write(case.start.rip, &[FILLER; 15]).unwrap();
        self.outcome(case, end)
    }

    fn outcome(&mut self, case: &Case, end: End) -> Outcome {
        let mut state = case.start.clone();
        let cpu = &mut self.cpu;
        state.vector = cpu.vector.area;
        state.gpr = *cpu.regs.general();
        (state.rip, state.rflags) = (cpu.rip, cpu.rflags());
        (state.fs, state.gs) = (cpu.segment(Seg::Fs).base, cpu.segment(Seg::Gs).base);
        let mut memory = Box::new([0; WRITABLE]);
        self.ram.read(DATA, &mut memory[..]).unwrap();
        Outcome { end, state, memory }
    }

    fn load(&mut self, case: &Case) {
        let start = &case.start;
        self.ram.write(DATA, &self.pattern[..WRITABLE]).unwrap();
        self.ram.write(DATA + u64::from(case.patch_at), case.patched()).unwrap();
        let mut code = [FILLER; 15];
        code[..case.code().len()].copy_from_slice(case.code());
        let room = ((CODE + CODE_PAGES * PAGE - start.rip) as usize).min(code.len());
        self.ram.write(start.rip, &code[..room]).unwrap();
        let first = 5;
        (0..CODE_PAGES as u32).for_each(|page| self.cpu.forget_code(first + page, u64::MAX));
        let cpu = &mut self.cpu;
        for (number, value) in (0..).zip(start.gpr) {
            cpu.regs.set64(RegAt::gpr(number), value);
        }
        cpu.rip = start.rip;
        cpu.vector.area = start.vector;
        for (seg, base) in [(Seg::Fs, start.fs), (Seg::Gs, start.gs)] {
            cpu.set_segment(seg, Segment { base, ..cpu.segment(seg) });
        }
        cpu.set_rflags(start.rflags);
        cpu.mode_changed();
        // Both ways to memory: translations at hand, and not.
        self.count += 1;
        if self.count.is_multiple_of(4) {
            cpu.tlb.flush();
        }
    }

    fn execute_blocks(&mut self) -> End {
        for _ in 0..STEPS {
            let cpu = &mut self.cpu;
            if cpu.load::<u8>(cpu.rip) == Ok(FILLER) {
                return End::Done;
            }
            let attention = cpu.shared.attention(0).clone();
            if cpu.run_carefully(&attention, false) == Err(Break::Fault) {
                // INT3, for which there is no handler, or another exception.
                let (at, fault) = (cpu.rip, cpu.fault);
                let filler = cpu.load::<u8>(at) == Ok(FILLER);
                return if filler { End::Done } else { End::Fault { vector: fault.vector, error: 0, address: 0 } };
            }
        }
        End::Lost("it does not end")
    }

    fn execute(&mut self) -> End {
        for _ in 0..STEPS {
            match self.cpu.step() {
                Ok(()) | Err(Break::Jump) => return End::Done,
                Err(Break::Again) => (),
                Err(Break::Leave) => return End::Lost("it leaves guest code"),
                Err(Break::Fault) => {
                    let fault = self.cpu.fault;
                    let address = if fault.vector == 14 { fault.address } else { 0 };
                    return End::Fault { vector: fault.vector, error: fault.error.unwrap_or(0), address };
                }
            }
        }
        End::Lost("it does not end")
    }
}

/// 64-bit mode at privilege 3, with the selectors that Linux uses.
fn set_mode(cpu: &mut Cpu) {
    let segment = |selector, kind, l| Segment {
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        dpl: 3,
        s: true,
        g: true,
        l,
        db: !l,
        ..Segment::default()
    };
    cpu.set_segment(Seg::Cs, segment(0x33, 11, true));
    cpu.set_segment(Seg::Ss, segment(0x2b, 3, false));
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.set_segment(seg, Segment { unusable: true, ..Segment::default() });
    }
    cpu.cpl = 3;
    cpu.system.cr0 = cr0::PG | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::WP | cr0::AM;
    cpu.system.cr3 = TABLES;
    cpu.system.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PGE;
    cpu.system.efer = efer::LMA | efer::LME | efer::NXE | efer::SCE;
    cpu.system.xcr0 = 7;
    cpu.mode_changed();
}

//! The software CPU: any bytes as guest code, from any registers, in every mode, on one CPU or two.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Input;
use crate::arch::x86_64::state::{CpuState, DescriptorTable, Registers, Segment};
use crate::engine::soft::SoftEngine;
use crate::engine::{CpuIo, Engine, IoAddr, Kicker, Vcpu, VmConfig};
use crate::mem::{Backing, PAGE, Ram};

/// How long a guest may go on: code that loops is no finding.
const TIME: Duration = Duration::from_millis(1);
const RAM: u64 = 1 << 20;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TABLES: u64 = 0x4000;
/// Code; exceptions come to one of its first bytes.
const CODE: u64 = 0x8000;
const STACK: u64 = 0x2_0000;
/// Bytes of code at most.
const LONGEST: usize = 4096;

/// Instructions to start from, so that noise soon does more than raise #UD.
pub fn seeds() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 6] = [
        &[0x0f, 0x01, 0xf8, 0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xd8, 0xf4], // swapgs, CR0, CR3, hlt
        &[0xf3, 0xa4, 0xf3, 0x48, 0xab, 0xf0, 0x48, 0x0f, 0xb1, 0x0b], // string instructions, lock cmpxchg
        &[0xc5, 0xfc, 0x58, 0xc1, 0x0f, 0xae, 0x27, 0xd9, 0xe8, 0xdb, 0x3f], // AVX, XSAVE, x87
        &[0x88, 0x05, 0xfa, 0xff, 0xff, 0xff, 0xeb, 0xf8],             // code that changes itself
        &[0x0f, 0x30, 0x0f, 0x32, 0xcd, 0x80, 0x48, 0xcf],             // MSRs, int, iretq
        &[0xea, 0, 0, 0, 0, 8, 0, 0x9a, 0, 0, 0, 0, 0x10, 0, 0xcb],    // far transfers
    ];
    let mut seeds = Vec::new();
    for mode in 0..8 {
        for code in codes {
            // Mode and flags, seventeen registers of three bytes, then code.
            let mut seed = vec![mode, 0];
            seed.extend([0u8; 3 * 17]);
            seed.extend(code);
            seeds.push(seed);
        }
    }
    seeds
}

/// Reads give what was asked for; writes go nowhere.
struct Nothing;

impl CpuIo for Nothing {
    fn read(&self, at: IoAddr, data: &mut [u8]) {
        assert!(data.len() <= 8, "accesses have at most 8 bytes");
        let (IoAddr::Port(_) | IoAddr::Mmio(_)) = at;
        data.fill(0x5a);
    }

    fn write(&self, at: IoAddr, data: &[u8]) {
        assert!(data.len() <= 8, "accesses have at most 8 bytes");
        // RAM is never a device.
        assert!(!matches!(at, IoAddr::Mmio(at) if at < RAM));
    }
}

fn engine() -> &'static SoftEngine {
    static ENGINE: OnceLock<SoftEngine> = OnceLock::new();
    ENGINE.get_or_init(|| SoftEngine::open().unwrap())
}

/// Runs one guest.
pub fn code(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (mode, flags) = (input.byte(), input.byte());
    let ram = Ram::new(&[(0, RAM)], Backing::Anonymous).unwrap();
    write_tables(&ram, flags & 1 != 0);
    let mut state = state(mode);
    state.regs = registers(&mut input);
    let code = input.bytes(LONGEST);
    ram.write(CODE, code).unwrap();
    // The same again elsewhere, for jumps that go astray.
    ram.write(0, code.get(..64).unwrap_or(code)).unwrap();
    let cpus = if flags & 2 != 0 { 2 } else { 1 };
    let vm = engine().create_vm(&ram, &VmConfig { cpus, ioapic_pins: 4, deterministic: None }).unwrap();
    let mut vcpus: Vec<_> = (0..cpus).map(|index| vm.create_vcpu(index).unwrap()).collect();
    for vcpu in &mut vcpus {
        vcpu.set_cpuid(&vm.supported_cpuid().unwrap()).unwrap();
        // Some states no CPU can be in; they are refused.
        if vcpu.set_state(&state).is_err() {
            return;
        }
    }
    run(vcpus);
}

/// Runs all CPUs until they end or their time is up.
fn run(mut vcpus: Vec<Box<dyn Vcpu>>) {
    let kickers: Vec<Arc<dyn Kicker>> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
    let (running, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(TIME) == Err(RecvTimeoutError::Timeout) {
                kickers.iter().for_each(|kicker| kicker.kick());
            }
        });
        for vcpu in &mut vcpus {
            let running = running.clone();
            scope.spawn(move || {
                vcpu.run(&Nothing).unwrap();
                vcpu.state().unwrap();
                drop(running);
            });
        }
        drop(running);
    });
}

/// Each from three bytes: a small number, an address in RAM, something near a limit, or noise.
fn registers(input: &mut Input<'_>) -> Registers {
    let mut next = || {
        let (kind, value) = (input.byte(), u64::from(input.u16()));
        match kind % 5 {
            0 => value,
            1 => STACK + value,
            2 => u64::MAX - value,
            3 => (1 << 47) - value,
            _ => value.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    };
    let mut regs = Registers {
        rax: next(),
        rbx: next(),
        rcx: next(),
        rdx: next(),
        rsi: next(),
        rdi: next(),
        rbp: next(),
        r8: next(),
        r9: next(),
        r10: next(),
        r11: next(),
        r12: next(),
        r13: next(),
        r14: next(),
        r15: next(),
        ..Registers::default()
    };
    regs.rip = CODE;
    regs.rsp = STACK.wrapping_add(next() & 0xfff);
    regs.rflags = 2 | next() & 0x24_4fd5;
    regs
}

fn state(mode: u8) -> CpuState {
    let mut state = CpuState::default();
    let long = mode % 4 < 2;
    let level = if mode & 1 != 0 && mode % 4 != 2 { 3 } else { 0 };
    let wide = mode % 4 != 3;
    let segment = |selector: u16, kind| Segment {
        limit: if wide { u32::MAX } else { 0xffff },
        selector: selector | u16::from(level),
        kind,
        present: true,
        dpl: level,
        s: true,
        g: wide,
        ..Segment::default()
    };
    let system = &mut state.system;
    let selectors = if level == 3 { (0x28, 0x20) } else { (8, 0x10) };
    system.cs = Segment { l: long, db: !long && wide, ..segment(selectors.0, 11) };
    let data = Segment { db: wide, ..segment(selectors.1, 3) };
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = Segment { base: TSS, limit: 0x67, selector: 0x30, kind: 11, present: true, ..Segment::default() };
    system.ldt = Segment { kind: 2, unusable: true, ..Segment::default() };
    system.gdt = DescriptorTable { base: GDT, limit: 0x57 };
    system.idt = DescriptorTable { base: IDT, limit: 0xfff };
    // 64-bit, 64-bit at privilege 3, 32-bit with paging, 16-bit real mode; with SMEP, SMAP and the like, or without.
    (system.cr0, system.cr4, system.efer) = match mode % 4 {
        0 | 1 => (0x8001_0033, 0x620, 0xd01),
        2 => (0x8001_0033, 0x620, 0x800),
        _ => (0x10, 0, 0),
    };
    if mode & 4 != 0 && mode % 4 < 2 {
        system.cr4 |= 0x35_0000;
        state.xcr0 = 7;
    }
    if mode % 4 == 3 {
        system.cs.selector = 0;
    }
    system.cr3 = if long { TABLES } else { TABLES + PAGE };
    system.apic_base = 0xfee0_0900;
    state
}

/// Descriptors for all modes; gates to the code's first bytes; pages one to one.
fn write_tables(ram: &Ram, interrupts_to_user: bool) {
    let quad = |at: u64, value: u64| ram.write(at, &value.to_le_bytes()).unwrap();
    let segments = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        TSS << 16 | 0x67 | 0x8b << 40,
        0,
        0x00cf_9b00_0000_ffff,
        0x000f_9b00_0000_ffff,
        0x000f_9300_0000_ffff,
    ];
    (0..).zip(segments).for_each(|(index, value)| quad(GDT + 8 * index, value));
    let level = if interrupts_to_user { 0x6000 } else { 0 };
    for vector in 0..256u64 {
        let entry = CODE + vector % 32;
        quad(IDT + vector * 16, entry | 8 << 16 | (0x8e00 | level) << 32 | (vector & 1) << 32);
        quad(IDT + vector * 16 + 8, 0);
    }
    quad(TSS + 4, STACK);
    quad(TSS + 0x24, STACK + PAGE);
    quad(TABLES, (TABLES + PAGE) | 7);
    quad(TABLES + PAGE, (TABLES + 2 * PAGE) | 7);
    (0..512).for_each(|page| quad(TABLES + 2 * PAGE + 8 * page, page << 21 | 0x87));
}

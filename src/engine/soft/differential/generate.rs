//! Makes cases: an instance of a template, registers and memory full of difficult values, and addresses that lead to
//! memory, into the next page, to read-only pages, or to nothing.

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedMemory};

use super::case::{CODE, CODE_PAGES, Case, DATA, FILLER, READABLE, State, WRITABLE};
use super::encoding::{Instance, Template, templates};
use super::random::Random;
use super::scope::{Scope, branches, scope};
use crate::mem::PAGE;

/// Where CODE ends.
const CODE_END: u64 = CODE + CODE_PAGES * PAGE;
/// Addresses that cases may reach: nothing but their own memory lies there on the host. All else below 4 GiB is avoided,
/// since it may be the test's own.
const FREE: std::ops::Range<u64> = 0x6000_0000..0x8000_0000;

/// Makes cases from a seed.
pub struct Generator {
    random: Random,
    templates: Vec<Template>,
    info: InstructionInfoFactory,
    bits: u32,
    wanted: Scope,
    fsgsbase: bool,
    avx: bool,
}

impl Generator {
    /// Cases of `bits`-bit code for instructions in `wanted`.
    pub fn new(seed: u64, wanted: Scope, avx: bool, fsgsbase: bool) -> Self {
        let bits = 64;
        let mut templates = templates(bits);
        templates.retain(|template| {
            let instance = template.plain(bits);
            scope(&instance.instruction, &instance.bytes) == wanted
        });
        Self { random: Random::new(seed), templates, info: InstructionInfoFactory::new(), bits, wanted, fsgsbase, avx }
    }

    /// Templates that cases are made of.
    pub fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// Keeps the templates that `wanted` says.
    pub fn retain(&mut self, wanted: impl Fn(&Template) -> bool) {
        self.templates.retain(wanted);
    }

    /// The next case. None only if there are no templates.
    pub fn case(&mut self) -> Option<Case> {
        if self.templates.is_empty() {
            return None;
        }
        loop {
            let template = self.random.pick(&self.templates);
            if let Some(case) = self.case_of(&template) {
                return Some(case);
            }
        }
    }

    /// A case of `template`, unless it came out as one that must not be run.
    pub fn case_of(&mut self, template: &Template) -> Option<Case> {
        let at = self.code_address();
        let instance = template.instance(self.bits, &mut self.random, at);
        let mut case = Case::new(&instance.bytes[..instance.instruction.len()]);
        case.start = self.state();
        case.start.rip = at;
        Filling { case: &mut case, random: &mut self.random, instance, used: used(&mut self.info, &instance) }.fill();
        self.may_run(&case).then_some(case)
    }

    fn code_address(&mut self) -> u64 {
        match self.random.below(16) {
            // Across the border of the pages.
            0 => CODE + PAGE - self.random.below(16),
            // Across the end.
            1 if self.random.one_in(4) => CODE_END - 1 - self.random.below(14),
            _ => CODE + 64 + self.random.below(PAGE - 256),
        }
    }

    fn state(&mut self) -> State {
        let random = &mut self.random;
        let mut state = State::new();
        state.gpr = [(); 16].map(|()| random.integer());
        // Status flags and DF; now and then ID and NT, which only PUSHF and POPF show.
        let seldom = if random.one_in(16) { random.u64() & 0x20_4000 } else { 0 };
        state.rflags = 0x202 | random.u64() & 0x8d5 | seldom | if random.one_in(4) { 0x400 } else { 0 };
        if self.fsgsbase {
            state.fs = random.pick(&[0, 0x10, 0x1_2340, DATA, DATA - 0x1234]);
            state.gs = random.pick(&[0, 0x21, 0x5555_0000, DATA + 7]);
        }
        self.vector(&mut state);
        state
    }

    fn vector(&mut self, state: &mut State) {
        let random = &mut self.random;
        random.fill(&mut state.vector[160..416]);
        if self.avx {
            random.fill(&mut state.vector[576..832]);
        }
        // MXCSR: exceptions masked, or some not; rounding, DAZ, FTZ, sticky flags.
        let mut mxcsr = 0x1f80u32;
        if random.one_in(3) {
            mxcsr = random.u64() as u32 & 0xe07f | 0x1f80;
        }
        if random.one_in(12) {
            mxcsr ^= random.u64() as u32 & 0x1f80;
        }
        state.vector[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        self.x87(state);
    }

    fn x87(&mut self, state: &mut State) {
        let random = &mut self.random;
        let mut control = 0x37fu16;
        if random.one_in(2) {
            control = random.u64() as u16 & 0xf00 | 0x7f;
        }
        if random.one_in(10) {
            control ^= random.u64() as u16 & 0x3f;
        }
        let mut status = random.u64() as u16 & 0x4700;
        if random.one_in(2) {
            status |= random.u64() as u16 & 0x3800;
        }
        if random.one_in(4) {
            status |= random.u64() as u16 & 0x7f;
        }
        // ES and B say whether an exception is pending that is not masked (SDM volume 1, 8.1.3.3).
        if random.one_in(3) {
            control |= status & 0x3f;
        }
        if status & !control & 0x3f != 0 {
            status |= 0x8080;
        }
        let tags = if random.one_in(3) { random.u64() as u8 } else { random.pick(&[0, 0xff, 0xff, 0x80]) };
        state.vector[0..2].copy_from_slice(&control.to_le_bytes());
        state.vector[2..4].copy_from_slice(&status.to_le_bytes());
        state.vector[4] = tags;
        for register in state.vector[32..160].chunks_mut(16) {
            let value = random.extended();
            register[..10].copy_from_slice(&value);
            if random.one_in(8) {
                random.fill(&mut register[..8]);
                (register[8], register[9]) = (0xff, 0xff);
            }
        }
    }

    /// Whether `case` stays within what is known and its own.
    fn may_run(&mut self, case: &Case) -> bool {
        let instruction = super::encoding::decode(self.bits, &case.bytes, case.start.rip);
        let crosses_end = case.start.rip + instruction.len() as u64 > CODE_END;
        if scope(&instruction, &case.bytes) != self.wanted && !crosses_end {
            return false;
        }
        if self.wanted == Scope::Hidden {
            return !crosses_end;
        }
        let code = CODE - 1024..CODE_END + 1024;
        let used = self.info.info(&instruction).used_memory().to_vec();
        let apart = used.iter().all(|memory| {
            (0..8).all(|element| {
                let Some(at) = address(memory, &case.start, element) else { return true };
                let writes = !matches!(memory.access(), OpAccess::Read | OpAccess::NoMemAccess | OpAccess::CondRead);
                let taken = at > u64::from(u32::MAX) || FREE.contains(&at);
                taken && !(code.contains(&at) && (writes || memory.memory_size().size() > 8))
            })
        });
        apart && (!branches(&instruction) || branch_ends(case, &instruction))
    }
}

/// Whether a branch, if it is taken, comes to filler, to nothing, or to the next instruction.
fn branch_ends(case: &Case, instruction: &Instruction) -> bool {
    let start = case.start.rip;
    let next = start + u64::from(case.len);
    let own = start.saturating_sub(16)..next + 6;
    let fine = |at: u64| {
        let free = FREE.contains(&at) && !(DATA..DATA + READABLE as u64).contains(&at);
        at == next || (!own.contains(&at) && (free || at > 1 << 60))
    };
    let indirect = instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect();
    if !indirect && instruction.mnemonic() != Mnemonic::Ret {
        return instruction.near_branch_target() == 0 || fine(instruction.near_branch_target());
    }
    // The target is a register, or what was put at the operand's address.
    let patch = case.patched().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let register = instruction.op0_register();
    if register.is_gpr64() { fine(case.start.gpr[register.number()]) } else { fine(patch) }
}

/// Memory that an instruction uses.
fn used(info: &mut InstructionInfoFactory, instance: &Instance) -> Vec<UsedMemory> {
    info.info(&instance.instruction).used_memory().to_vec()
}

/// The value of a register as addresses use it.
fn register(register: Register, state: &State, element: usize, size: usize) -> Option<u64> {
    if register.is_gpr64() {
        return Some(state.gpr[register.number()]);
    }
    if register.is_gpr32() {
        return Some(state.gpr[register.number()] & 0xffff_ffff);
    }
    if register.is_gpr16() {
        return Some(state.gpr[register.number()] & 0xffff);
    }
    if register.is_gpr8() {
        return Some(state.gpr[register.full_register().number()] & 0xff);
    }
    match register {
        Register::FS => Some(state.fs),
        Register::GS => Some(state.gs),
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        _ if register.is_vector_register() => {
            let at = element * size;
            let base = if at < 16 { 160 } else { 576 - 16 } + register.number() * 16;
            let lane = state.vector.get(base + at..base + at + size)?;
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(lane);
            Some(u64::from_le_bytes(bytes))
        }
        _ => None,
    }
}

/// Linear address of an operand, or of element `element` of a gather.
pub fn address(memory: &UsedMemory, state: &State, element: usize) -> Option<u64> {
    if memory.vsib_size() == 0 && element > 0 {
        return None;
    }
    memory.virtual_address(element, |which, element, size| register(which, state, element, size))
}

/// A case that is being made.
struct Filling<'a> {
    case: &'a mut Case,
    random: &'a mut Random,
    instance: Instance,
    used: Vec<UsedMemory>,
}

impl Filling<'_> {
    fn fill(&mut self) {
        self.before_addresses();
        let used = std::mem::take(&mut self.used);
        let mut first = None;
        for memory in &used {
            let size = memory.memory_size().size().max(1) as u64;
            let target = self.target(size);
            self.direct(memory, target);
            first = first.or(Some((*memory, size)));
        }
        if let Some((memory, size)) = first {
            // Where it really leads: another operand may have changed the register since.
            if let Some(at) = address(&memory, &self.case.start, 0) {
                self.content(at, size);
            }
        }
        self.after_addresses();
    }

    /// An address for an operand of `size` bytes.
    fn target(&mut self, size: u64) -> u64 {
        let random = &mut *self.random;
        let end = DATA + READABLE as u64;
        let read_only = DATA + WRITABLE as u64;
        match random.below(32) {
            0..=11 => DATA + 64 * random.below(WRITABLE as u64 / 64 - 16),
            12..=19 => DATA + random.below(WRITABLE as u64 - size.min(1024)),
            20..=22 => DATA + PAGE - random.below(size + 1),
            23 | 24 => read_only - random.below(size + 1),
            25 => read_only + random.below(PAGE - size.min(1024)),
            26 => end - random.below(size + 1),
            27 => DATA - random.below(size + 1),
            28 => end + random.below(2 * PAGE),
            29 => DATA + PAGE - size,
            30 => DATA + 16 * random.below(200),
            _ => {
                let wild = random.u64();
                let before = random.below(size + 1);
                let edges = [1 << 63, 1 << 47, 0xffff_8000_0000_0000, 0, 0xffff_8880_0000_0000, wild];
                random.pick(&edges).wrapping_sub(before)
            }
        }
    }

    /// Makes `memory` lead to `target`, if a register or a displacement can be set for that.
    fn direct(&mut self, memory: &UsedMemory, target: u64) {
        let state = &mut self.case.start;
        let segment = register(memory.segment(), state, 0, 0).unwrap_or(0);
        let wanted = target.wrapping_sub(segment);
        if memory.vsib_size() != 0 {
            return self.gather(memory, wanted);
        }
        // An index that is not the base is small, mostly.
        let index = memory.index();
        let apart = index.full_register() != memory.base().full_register();
        if apart && index.is_gpr() && !index.is_gpr8() && !self.random.one_in(8) {
            state.gpr[index.number()] = self.random.below(512).wrapping_sub(256);
        }
        let Some(now) = address(memory, state, 0) else { return };
        let now = now.wrapping_sub(segment);
        let base = memory.base();
        if base.is_gpr() {
            let own = if index.full_register() == base.full_register() { u64::from(memory.scale()) + 1 } else { 1 };
            let number = base.full_register().number();
            state.gpr[number] = state.gpr[number].wrapping_add(wanted.wrapping_sub(now) / own);
            // With a 32-bit address the upper half does not count.
            if base.is_gpr32() && self.random.one_in(2) {
                state.gpr[number] = state.gpr[number] & 0xffff_ffff | self.random.u64() << 32;
            }
        } else if let Some(at) = self.instance.disp32 {
            let old = u32::from_le_bytes(self.case.bytes[at..at + 4].try_into().unwrap_or_default());
            let disp = old.wrapping_add(wanted.wrapping_sub(now) as u32);
            self.case.bytes[at..at + 4].copy_from_slice(&disp.to_le_bytes());
        } else if memory.base() == Register::None && index == Register::None {
            self.absolute(target);
        }
    }

    /// Gathers: mostly small indices.
    fn gather(&mut self, memory: &UsedMemory, wanted: u64) {
        let size = memory.vsib_size() as usize;
        let number = memory.index().number();
        for at in (0..32).step_by(size) {
            let value =
                if self.random.one_in(24) { self.random.u64() } else { self.random.below(400).wrapping_sub(200) };
            let base = if at < 16 { 160 } else { 576 - 16 } + number * 16;
            self.case.start.vector[base + at..base + at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        if memory.base().is_gpr() {
            self.case.start.gpr[memory.base().number()] = wanted.wrapping_sub(memory.displacement());
        }
    }

    /// MOV with an absolute address of 64 bits.
    fn absolute(&mut self, target: u64) {
        if !matches!(self.instance.instruction.code(), Code::Mov_AL_moffs8 | Code::Mov_moffs8_AL)
            && !self.instance.instruction.op_kinds().any(|kind| kind == iced_x86::OpKind::Memory)
        {
            return;
        }
        let len = usize::from(self.case.len);
        let opcode = self.case.bytes[..len].iter().position(|byte| (0xa0..=0xa3).contains(byte));
        if let Some(at) = opcode {
            let room = len - at - 1;
            if room <= 8 {
                self.case.bytes[at + 1..len].copy_from_slice(&target.to_le_bytes()[..room]);
            }
        }
    }

    /// What is at the operand's address.
    fn content(&mut self, at: u64, size: u64) {
        let mut data = [0; 1024];
        let len = (size as usize).clamp(16, data.len());
        let instruction = &self.instance.instruction;
        let random = &mut *self.random;
        random.fill(&mut data[..len]);
        match instruction.mnemonic() {
            Mnemonic::Ret | Mnemonic::Jmp | Mnemonic::Call => {
                let target = if random.one_in(8) { random.u64() | 1 << 62 } else { CODE + random.below(2 * PAGE) };
                data[..8].copy_from_slice(&target.to_le_bytes());
            }
            // No traps: TF is for the guests.
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => data[1] &= !1,
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if random.one_in(2) => {
                let half = (size as usize / 2).clamp(4, 8);
                let (low, high) = (self.case.start.gpr[0], self.case.start.gpr[2]);
                data[..8].copy_from_slice(&low.to_le_bytes());
                if instruction.mnemonic() != Mnemonic::Cmpxchg {
                    data[half..half + 8].copy_from_slice(&high.to_le_bytes());
                }
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                random.fill(&mut data);
                image(random, &mut data);
                return self.case.set_patch(at, &data);
            }
            Mnemonic::Fld | Mnemonic::Fbld if size == 10 => data[..10].copy_from_slice(&random.extended()),
            Mnemonic::Fbld => (),
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if !random.one_in(8) => data[2..4].fill(0),
            Mnemonic::Frstor | Mnemonic::Fldenv => {
                random.fill(&mut data);
                return self.case.set_patch(at, &data[..128]);
            }
            _ => (),
        }
        self.case.set_patch(at, &data[..len]);
    }

    /// Operands that addresses depend on.
    fn before_addresses(&mut self) {
        let instruction = self.instance.instruction;
        let random = &mut *self.random;
        let gpr = &mut self.case.start.gpr;
        match instruction.mnemonic() {
            // The bit offset moves the address.
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc if !random.one_in(8) => {
                let register = instruction.op1_register();
                if register.is_gpr() {
                    gpr[register.number()] = random.below(2048).wrapping_sub(1024);
                }
            }
            Mnemonic::Enter => {
                gpr[5] = DATA + random.below(WRITABLE as u64);
            }
            _ => (),
        }
        if instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) {
            gpr[1] = if random.one_in(16) { 5000 + random.below(10_000) } else { random.below(40) };
            if random.one_in(2) {
                gpr[0] = 0;
            }
        }
        // Division that does not always overflow.
        if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && !random.one_in(4) {
            gpr[2] = if random.one_in(2) { 0 } else { gpr[2] >> random.below(64) };
            if random.one_in(2) {
                gpr[0] = gpr[0] << 48 >> 48;
            }
        }
    }

    fn after_addresses(&mut self) {
        let instruction = self.instance.instruction;
        let random = &mut *self.random;
        let state = &mut self.case.start;
        match instruction.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call if instruction.op0_register().is_gpr() => {
                state.gpr[instruction.op0_register().number()] = CODE + random.below(2 * PAGE);
            }
            // Components that the host has and the software CPU has not.
            Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                (state.gpr[0], state.gpr[2]) = (random.below(8), 0);
            }
            Mnemonic::Xsetbv => state.gpr[1] = random.below(2),
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase if random.one_in(2) => {
                let register = instruction.op0_register().full_register();
                state.gpr[register.number()] &= 0x7fff_ffff_ffff;
            }
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
                // All of what it pops is in the patch.
                let last = DATA + WRITABLE as u64 - 8;
                if !(DATA..=last).contains(&state.gpr[4]) {
                    state.gpr[4] = DATA + PAGE - 4;
                    self.case.set_patch(DATA + PAGE - 4, &[0x55; 8].map(|byte: u8| byte & random.u64() as u8 & 0xfe));
                }
            }
            _ => (),
        }
        if self.case.len < 15 {
            self.case.bytes[usize::from(self.case.len)..].fill(FILLER);
        }
    }
}

/// Turns noise into something that FXRSTOR and XRSTOR mostly accept.
fn image(random: &mut Random, data: &mut [u8; 1024]) {
    if !random.one_in(8) {
        data[26..28].fill(0);
        data[25] = 0x1f;
    }
    // Control word with all exceptions masked; status without summary.
    (data[0], data[3]) = (0x7f, data[3] & 0x7f);
    data[2] &= 0x7f;
    if !random.one_in(8) {
        data[512..576].fill(0);
        data[512] = random.below(8) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::differential::case::End;
    use crate::engine::soft::differential::host::Host;
    use iced_x86::{CpuidFeature, EncodingKind};
    use std::collections::{BTreeMap, HashSet};

    /// Not privileged, but without what Linux would have to switch on for them always an exception.
    const NEVER: &[Mnemonic] = {
        use Mnemonic::*;
        &[Clrssbsy, Incsspd, Incsspq, Rstorssp, Saveprevssp, Setssbsy, Wrssd, Wrssq, Ud2]
    };

    fn generator(host: &Host, seed: u64) -> Generator {
        Generator::new(seed, Scope::Compared, host.abilities.avx, host.abilities.fsgsbase)
    }

    /// What the host does with cases does not depend on anything but the case, and no case harms it.
    #[test]
    fn the_host_answers_twice_the_same() {
        let mut host = Host::new().unwrap();
        let mut generator = generator(&host, 1);
        let cases: Vec<_> = (0..20_000).map_while(|_| generator.case()).collect();
        let begin = std::time::Instant::now();
        let first = host.run(&cases).unwrap();
        println!("{} ns a case", begin.elapsed().as_nanos() / cases.len() as u128);
        let second = host.run(&cases).unwrap();
        let mut ends = BTreeMap::<String, u32>::new();
        for ((case, one), two) in cases.iter().zip(&first).zip(&second) {
            assert!(!matches!(one.end, End::Lost(_)), "{:x?}: {:?}", case.code(), one.end);
            let same = one.end == two.end && one.state == two.state && one.memory == two.memory;
            assert!(same, "{:x?}", case.code());
            let kind = match one.end {
                End::Fault { vector, .. } => format!("vector {vector}"),
                end => format!("{end:?}"),
            };
            *ends.entry(kind).or_default() += 1;
        }
        println!("{ends:?}");
        let done = ends.get("Done").copied().unwrap_or_default();
        assert!(done as usize > cases.len() / 2 && ends.len() > 5, "{ends:?}");
    }

    /// Whether the decoder would say of some encoding in 64-bit mode that it is `code`, and it would be compared.
    fn in_scope(code: Code) -> bool {
        use Code::*;
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let op_code = code.op_code();
        let kind = matches!(op_code.encoding(), EncodingKind::Legacy | EncodingKind::VEX) && !op_code.fwait();
        // Not instructions; what the decoder knows only on request; what loads segments, which `scope` sees by operands.
        let known = !matches!(code, INVALID | DeclareByte | DeclareWord | DeclareDword | DeclareQword | Zero_bytes)
            && !matches!(code, Feni | Fdisi | Movsxd_r16_rm16)
            && !code.cpuid_features().contains(&CpuidFeature::MPX)
            && !matches!(
                code,
                Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 | Popw_FS | Popq_FS | Popw_GS | Popq_GS
            );
        let prefixed = op_code.operand_size() == 16 && branches(&instruction);
        kind && known && op_code.mode64() && !prefixed && scope(&instruction, &[]) == Scope::Compared
    }

    /// Every instruction that is to be compared has a template, and a case that executes to its end.
    #[test]
    fn every_instruction_is_reached() {
        let mut host = Host::new().unwrap();
        let mut generator = generator(&host, 2);
        let known: HashSet<_> = generator.templates().iter().map(|template| template.code).collect();
        println!("{} instructions, {} templates", known.len(), generator.templates().len());
        let missing: Vec<_> = Code::values().filter(|code| in_scope(*code) && !known.contains(code)).collect();
        assert!(missing.is_empty(), "the decoder knows more: {missing:?}");
        let mut wrong = Vec::new();
        for template in generator.templates().to_vec() {
            let cases: Vec<_> = (0..64).filter_map(|_| generator.case_of(&template)).take(24).collect();
            assert!(!cases.is_empty(), "no case of {template:x?}");
            let done = host.run(&cases).unwrap().iter().filter(|out| out.end == End::Done).count();
            let instruction = template.plain(64).instruction;
            let never = instruction.is_privileged() || NEVER.contains(&instruction.mnemonic());
            if (done == 0) != never {
                wrong.push(format!("{:?} {:x?}: executed {done} times", template.code, cases[0].code()));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

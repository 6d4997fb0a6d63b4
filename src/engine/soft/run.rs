//! The run loop: finds blocks, executes them, and between them looks at what wants attention.

// UNSAFETY: follows the pointers between blocks and along their operations.
#![expect(unsafe_code)]

use super::attention::Attention;
use super::code::block::Block;
use super::code::op::Op;
use super::cpu::Cpu;
use super::fault::{Break, Step};
use super::flags::rflags;
use super::system::event::Event;
use crate::arch::x86_64::state::Activity;
use crate::engine::Exit;
use crate::engine::debug::Stop;

/// Blocks after which the time is looked at, for timers: some thousand instructions.
pub(super) const BLOCKS_PER_LOOK: u32 = 256;

/// How a block was left.
pub(super) enum Left {
    /// By its end: link 0 follows.
    Fell,
    /// By a jump: link 1 follows if the target is fixed.
    Jumped,
    /// Look at everything.
    Stop(Step),
}

impl Cpu {
    /// Runs guest code until there is a reason to leave it.
    pub(super) fn run(&mut self) -> Exit {
        let attention = self.shared.attention(self.index).clone();
        if let Some(event) = self.restored.take()
            && let Some(exit) = self.raise_event(event)
        {
            return exit;
        }
        loop {
            if let Some(exit) = self.attend(&attention) {
                return exit;
            }
            if self.system.activity != Activity::Running {
                if let Some(exit) = self.wait(&attention) {
                    return exit;
                }
                if self.debugger.wanted.step {
                    return Exit::Debug(Stop::Step);
                }
                continue;
            }
            let one = self.debugger.wanted.step;
            let stepping = one || self.shadow || self.system.rflags & rflags::TF != 0;
            let step = match stepping {
                _ if self.careful || self.armed.code || self.debugger.looks => self.run_carefully(&attention, stepping),
                true => self.step_armed(),
                false => self.run_blocks(&attention),
            };
            let (event, watched) = match step {
                Err(Break::Fault) => (Some(self.fault), None),
                _ => (self.take_met(), self.take_watched()),
            };
            if let Some(fault) = event
                && let Some(exit) = self.raise_event(Event::Exception(fault))
            {
                return exit;
            }
            match self.leave.take() {
                Some(Exit::Halted) => self.system.activity = Activity::Halted,
                Some(exit) => return exit,
                None => {}
            }
            if let Some(exit) = watched.or(one.then_some(Exit::Debug(Stop::Step))) {
                return exit;
            }
        }
    }

    /// Executes one instruction at `self.rip`. After a fault `self.rip` is still its address.
    pub(super) fn step(&mut self) -> Step {
        self.bury();
        let block = self.find_block()?;
        // SAFETY: `find_block` returned it just now.
        let block = unsafe { &*block };
        let Some(op) = block.ops.first() else { return Err(Break::Leave) };
        self.regs.set_block_ip(self.rip);
        (self.op, self.end) = (op, std::ptr::null());
        let step = (op.run)(self, op);
        self.vector.settle();
        match step {
            Ok(()) | Err(Break::Leave) => self.rip = self.wrapped(self.next_ip(op)),
            Err(Break::Jump) => {}
            Err(Break::Fault | Break::Again) => {
                if step == Err(Break::Fault) {
                    self.blame_stack(op);
                }
                // CALL has set its target by the time its push faults.
                self.rip = self.wrapped(self.this_ip(op));
                return step;
            }
        }
        self.instructions += 1;
        match step {
            Err(Break::Jump) => Ok(()),
            other => other,
        }
    }

    /// One instruction after which interrupts, and the trap of single-stepping, may come.
    pub(super) fn step_armed(&mut self) -> Step {
        let trap = self.system.rflags & rflags::TF != 0;
        let shadow = std::mem::take(&mut self.shadow);
        let step = self.step();
        if step == Err(Break::Fault) {
            return step;
        }
        let again = step == Err(Break::Again);
        if again && self.armed.code {
            // Its breakpoint was told before its first part.
            self.system.rflags |= rflags::RF;
        }
        self.shadow |= shadow && again && !trap;
        // What loads SS or sets IF just now holds the trap back as it does interrupts.
        if trap && !self.shadow {
            self.system.dr6 |= 1 << 14;
            self.fault = self.debug_exception();
            return Err(Break::Fault);
        }
        if again { Ok(()) } else { step }
    }

    /// Executes blocks until one is left in a way that needs a look at everything. `self.rip` is then the next instruction,
    /// or the one that faulted.
    pub(super) fn run_blocks(&mut self, attention: &Attention) -> Step {
        let step = self.follow_blocks(attention);
        self.vector.settle();
        step
    }

    fn follow_blocks(&mut self, attention: &Attention) -> Step {
        self.bury();
        let mut block = self.find_block()?;
        let mut budget = BLOCKS_PER_LOOK;
        loop {
            // SAFETY: blocks that links and the cache lead to live until `bury`; none is freed while this loop runs.
            let current = unsafe { &*block };
            let link = match self.execute(current) {
                Left::Fell => current.links.first(),
                Left::Jumped if current.direct => current.links.get(1),
                Left::Jumped => None,
                Left::Stop(step) => return step,
            };
            budget -= 1;
            if budget == 0 || attention.any() {
                return Ok(());
            }
            let linked = link.map_or(std::ptr::null(), std::cell::Cell::get);
            if !linked.is_null() {
                block = linked;
                continue;
            }
            let Some(next) = self.known_block(self.rip, self.jump_tag()) else {
                block = self.find_block()?;
                continue;
            };
            block = next;
            if let Some(link) = link.filter(|_| current.direct || current.falls) {
                self.connect(current, link, next);
            }
        }
    }

    /// Lets `link` of `block` lead to `next`, if that is within the same page, so that both come and go together.
    fn connect(&self, block: &Block, link: &std::cell::Cell<*const Block>, next: *const Block) {
        let falls = block.links.first().is_some_and(|first| std::ptr::eq(first, link));
        if if falls { block.falls } else { block.direct } {
            link.set(next);
        }
    }

    /// Executes the operations of a block.
    #[inline(always)]
    pub(super) fn execute(&mut self, block: &Block) -> Left {
        self.regs.set_block_ip(self.rip);
        let first = block.ops.as_ptr();
        first.expose_provenance();
        // SAFETY: one past the last operation.
        self.end = unsafe { first.add(block.ops.len()) };
        self.op = first;
        loop {
            // SAFETY: `self.op` is between the first operation and the last: a block has at least one, and the loop ends
            // where `self.end` says, or earlier.
            let current = unsafe { &*self.op };
            let step = (current.run)(self, current);
            // SAFETY: `self.op` is the operation that was executed last, perhaps a later one of the same block.
            let (last, before) = unsafe { (&*self.op, self.op.offset_from(first) as u64) };
            if let Err(how) = step {
                self.instructions += before;
                return self.left_early(block, last, how);
            }
            // SAFETY: at most one past the last operation.
            self.op = unsafe { self.op.add(1) };
            if self.op >= self.end {
                self.instructions += before + 1;
                self.rip = self.wrapped(self.next_ip(last));
                let whole = !self.end.is_null() && !block.system;
                return if whole { Left::Fell } else { Left::Stop(Ok(())) };
            }
        }
    }

    /// Goes on with the operation after `op`, if the block has one: handlers of frequent instructions end so instead of
    /// returning to [`Cpu::execute`]. Optimised, the call is a jump; otherwise calls nest as deep as a block is long.
    #[inline(always)]
    pub(super) fn next(&mut self, op: &Op) -> Step {
        let next = std::ptr::from_ref(op).addr() + size_of::<Op>();
        if next >= self.end.addr() {
            return Ok(());
        }
        self.op = std::ptr::with_exposed_provenance(next);
        // SAFETY: one of the operations of the block under way, which `execute` has exposed.
        let next = unsafe { &*self.op };
        (next.run)(self, next)
    }

    #[inline(always)]
    fn left_early(&mut self, block: &Block, op: &Op, how: Break) -> Left {
        match how {
            Break::Jump => {
                self.instructions += 1;
                if block.system || self.end.is_null() { Left::Stop(Ok(())) } else { Left::Jumped }
            }
            Break::Leave => {
                self.instructions += 1;
                self.rip = self.wrapped(self.next_ip(op));
                Left::Stop(Err(Break::Leave))
            }
            Break::Fault => {
                self.blame_stack(op);
                self.rip = self.wrapped(self.this_ip(op));
                Left::Stop(Err(Break::Fault))
            }
            Break::Again => {
                self.rip = self.wrapped(self.this_ip(op));
                Left::Stop(Ok(()))
            }
        }
    }

    /// An instruction pointer at the width of the code.
    #[inline(always)]
    fn wrapped(&self, ip: u64) -> u64 {
        if self.is_64() { ip } else { ip & self.ip_mask() }
    }

    #[cold]
    fn ip_mask(&self) -> u64 {
        if self.code_size == super::cpu::CodeSize::Bits32 { 0xffff_ffff } else { 0xffff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::fault::{self, Fault};
    use crate::engine::soft::registers::RegAt;
    use crate::engine::soft::testing::{self, CODE};

    /// Runs blocks until the CPU leaves guest code or faults.
    fn run(cpu: &mut Cpu) -> Step {
        let attention = cpu.shared.attention(0).clone();
        loop {
            match cpu.run_blocks(&attention) {
                Ok(()) if cpu.instructions < 10_000_000 => {}
                step => return step,
            }
        }
    }

    #[test]
    fn a_loop_adds_up_and_counts_its_instructions() {
        // mov ecx, 1000; xor eax, eax; l: add rax, rcx; dec rcx; jnz l; ud2
        let mut cpu = testing::cpu(&[
            0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0x0f, 0x0b,
        ]);
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        assert_eq!((cpu.fault.vector, cpu.rip), (fault::UD, CODE + 15));
        assert_eq!(cpu.regs.get64(RegAt::RAX), 500_500);
        assert_eq!(cpu.instructions, 2 + 3 * 1000);
    }

    #[test]
    fn code_that_changes_itself_is_decoded_again() {
        // mov byte [rip+1], 7; mov al, 1 (becomes mov al, 7); ud2
        let mut cpu = testing::cpu(&[0xc6, 0x05, 1, 0, 0, 0, 7, 0xb0, 1, 0x0f, 0x0b]);
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.rip), (7, CODE + 9));
    }

    #[test]
    fn an_instruction_on_two_pages_is_executed_and_noticed_when_it_changes() {
        let mut cpu = testing::cpu(&[]);
        let at = CODE + 0x1000 - 2;
        let write = |cpu: &mut Cpu, value: u8| cpu.write_bytes(at, &[0xb8, value, 0, 0, 0, 0x0f, 0x0b]).unwrap();
        for value in [5, 6] {
            write(&mut cpu, value);
            cpu.rip = at;
            assert_eq!(run(&mut cpu), Err(Break::Fault));
            assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.rip), (value.into(), at + 5));
        }
    }

    #[test]
    fn faults_leave_everything_as_it_was() {
        // push [0x40000000]: mapped by nothing
        let mut cpu = testing::cpu(&[0x48, 0x01, 0x04, 0x25, 0, 0, 0, 0x40, 0x0f, 0x0b]);
        let (sp, flags) = (cpu.rsp(), cpu.rflags());
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        assert_eq!(cpu.fault, Fault { vector: fault::PF, error: Some(2), address: 0x4000_0000 });
        assert_eq!((cpu.rsp(), cpu.rip, cpu.rflags()), (sp, CODE, flags));
    }

    #[test]
    fn a_page_is_watched_only_while_it_holds_decoded_code() {
        // mov al, 1; ud2
        let mut cpu = testing::cpu(&[0xb0, 1, 0x0f, 0x0b]);
        let page = (CODE >> 12) as u32;
        for value in 1..5u8 {
            assert!(!cpu.shared.has_code(page));
            cpu.rip = CODE;
            assert_eq!(run(&mut cpu), Err(Break::Fault));
            assert_eq!(cpu.regs.get::<u8>(RegAt::RAX), value);
            assert!(cpu.shared.has_code(page));
            cpu.store(CODE + 0x800, value).unwrap();
            assert!(cpu.shared.has_code(page), "no code there");
            cpu.store(CODE + 1, value + 1).unwrap();
        }
    }

    #[test]
    fn a_page_that_is_mostly_written_is_no_longer_taken_for_code() {
        let mut cpu = testing::cpu(&[0xb0, 1, 0x0f, 0x0b]);
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        let page = (CODE >> 12) as u32;
        let mut writes = 0u16;
        while cpu.shared.has_code(page) {
            writes += 1;
            cpu.store(CODE + 0x800, writes).unwrap();
            assert!(writes < 1000);
        }
        assert!(writes > 16, "code beside data is not decoded again all the time");
        cpu.rip = CODE;
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        assert_eq!((cpu.rip, cpu.load::<u16>(CODE + 0x800).unwrap()), (CODE + 2, writes));
    }

    #[test]
    fn what_a_device_writes_is_noticed_after_a_flush() {
        let mut cpu = testing::cpu(&[0xb0, 1, 0x0f, 0x0b]);
        for value in 1..5u8 {
            cpu.shared.ram.write(CODE + 1, &[value]).unwrap();
            cpu.tlb.flush();
            cpu.rip = CODE;
            assert_eq!(run(&mut cpu), Err(Break::Fault));
            assert_eq!(cpu.regs.get::<u8>(RegAt::RAX), value);
        }
    }

    #[test]
    fn repeated_copies_cross_pages() {
        // mov esi, 0x20ff0; mov edi, 0x22ffd; mov ecx, 0x2345; rep movsb; ud2
        let mut cpu = testing::cpu(&[
            0xbe, 0xf0, 0x0f, 2, 0, 0xbf, 0xfd, 0x2f, 2, 0, 0xb9, 0x45, 0x23, 0, 0, 0xf3, 0xa4, 0x0f, 0x0b,
        ]);
        for i in 0..0x2400u64 {
            cpu.store(0x2_0ff0 + i, (i * 7 % 251) as u8).unwrap();
        }
        assert_eq!(run(&mut cpu), Err(Break::Fault));
        assert_eq!(
            (cpu.fault.vector, cpu.regs.get64(RegAt::RCX), cpu.regs.get64(RegAt::RDI)),
            (fault::UD, 0, 0x2_5342)
        );
        // The areas overlap, so what was copied first may be copied again.
        assert_eq!(cpu.load::<u8>(0x2_2ffd).unwrap(), 0);
        assert_eq!(cpu.load::<u8>(0x2_2ffd + 0x2000).unwrap(), (0x2000u64 * 7 % 251) as u8);
    }
}

//! Which handler of this directory executes a decoded instruction. Called by the decoder, which has filled in the operands
//! that all instructions have in common.

use iced_x86::{Code, CodeSize, Instruction, OpKind, Register};

use super::tables::{self, question};
use super::{control, debug, flags, interrupt, io, iret, misc, ret, segment, syscall, transfer};
use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::{Addressing, Handler, Op, Seg};
use crate::engine::soft::fault;
use crate::engine::soft::registers::RegAt;

/// Handler, `Op::extra`, and whether others may follow.
type Choice = (Handler, u8, Lowered);

const INSIDE: Lowered = Lowered::Inside;
const END: Lowered = Lowered::System;

/// Chooses the handler, and sets what it needs.
pub(in crate::engine::soft) fn lower(insn: &Instruction, op: &mut Op) -> Lowered {
    let memory = insn.op_kinds().any(|kind| kind == OpKind::Memory);
    let chosen = segments(insn, memory)
        .or_else(|| descriptors(insn, memory))
        .or_else(|| transfers(insn, memory))
        .or_else(|| control(insn, memory))
        .or_else(|| miscellaneous(insn))
        .or_else(|| ports(insn));
    let Some((run, extra, lowered)) = chosen else { return Lowered::NotMine };
    (op.run, op.extra) = (run, extra);
    registers(insn, op);
    immediate(insn, op);
    if insn.is_string_instruction() {
        string_operand(insn, op);
    }
    lowered
}

/// General registers: the first and the second operand.
fn registers(insn: &Instruction, op: &mut Op) {
    let general = |number: u32| {
        let register = if insn.op_kind(number) == OpKind::Register { insn.op_register(number) } else { Register::None };
        register.is_gpr().then(|| RegAt::gpr(register.number() as u8))
    };
    if let Some(register) = (insn.op_count() > 0).then(|| general(0)).flatten() {
        op.dst = register;
        if insn.op_count() == 1 {
            op.src = register;
        }
    }
    if let Some(register) = (insn.op_count() > 1).then(|| general(1)).flatten() {
        op.src = register;
    }
}

fn immediate(insn: &Instruction, op: &mut Op) {
    use Code::*;
    op.imm = match insn.code() {
        Int3 => fault::BP.into(),
        Int_imm8 | In_AL_imm8 | In_AX_imm8 | In_EAX_imm8 | Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX => {
            insn.immediate8().into()
        }
        Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => insn.immediate16().into(),
        Jmp_ptr1616 | Call_ptr1616 => u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch16()),
        Jmp_ptr1632 | Call_ptr1632 => u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch32()),
        Lgdt_m1632_16 | Lidt_m1632_16 | Sgdt_m1632_16 | Sidt_m1632_16 => 0xff_ffff,
        Lgdt_m1632 | Lidt_m1632 | Sgdt_m1632 | Sidt_m1632 => 0xffff_ffff,
        Lgdt_m1664 | Lidt_m1664 | Sgdt_m1664 | Sidt_m1664 => u64::MAX,
        Stac => u64::MAX,
        _ => 0,
    };
}

/// INS and OUTS: the memory operand is a register alone.
fn string_operand(insn: &Instruction, op: &mut Op) {
    let flat = insn.code_size() == CodeSize::Code64;
    let wide = if flat { Addressing::Flat32 } else { Addressing::Segmented32 };
    for kind in insn.op_kinds() {
        let (base, addressing, register) = match kind {
            OpKind::MemoryESRDI => (RegAt::RDI, Addressing::Flat, Register::ES),
            OpKind::MemoryESEDI => (RegAt::RDI, wide, Register::ES),
            OpKind::MemoryESDI => (RegAt::RDI, Addressing::Segmented16, Register::ES),
            OpKind::MemorySegRSI => (RegAt::RSI, Addressing::Flat, insn.memory_segment()),
            OpKind::MemorySegESI => (RegAt::RSI, wide, insn.memory_segment()),
            OpKind::MemorySegSI => (RegAt::RSI, Addressing::Segmented16, insn.memory_segment()),
            _ => continue,
        };
        (op.base, op.addressing) = (base, addressing);
        (op.index, op.scale, op.disp) = (RegAt::ZERO, 0, 0);
        op.seg = match register {
            Register::FS => Seg::Fs,
            Register::GS => Seg::Gs,
            _ if flat => Seg::None,
            Register::ES => Seg::Es,
            Register::CS => Seg::Cs,
            Register::SS => Seg::Ss,
            _ => Seg::Ds,
        };
    }
}

/// The handler for a memory or for a register operand.
fn either(memory: bool, with_memory: Handler, with_register: Handler) -> Handler {
    if memory { with_memory } else { with_register }
}

/// Number of the special register (segment, control, debug) among the operands.
fn special(insn: &Instruction) -> u8 {
    let found = (0..insn.op_count())
        .filter(|number| insn.op_kind(*number) == OpKind::Register)
        .map(|number| insn.op_register(number))
        .find(|register| !register.is_gpr());
    found.map_or(u8::MAX, |register| register.number() as u8)
}

/// Segment registers.
fn segments(insn: &Instruction, memory: bool) -> Option<Choice> {
    use Code::*;
    let seg = special(insn);
    let choice: Choice = match insn.code() {
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 if seg == Seg::Cs as u8 => (interrupt::undefined, 0, END),
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => {
            (either(memory, segment::mov_to_seg_mem, segment::mov_to_seg_reg), seg, END)
        }
        Mov_rm16_Sreg => (either(memory, segment::mov_from_seg_mem, segment::mov_from_seg_reg::<u16>), seg, INSIDE),
        Mov_r32m16_Sreg => (either(memory, segment::mov_from_seg_mem, segment::mov_from_seg_reg::<u32>), seg, INSIDE),
        Mov_r64m16_Sreg => (either(memory, segment::mov_from_seg_mem, segment::mov_from_seg_reg::<u64>), seg, INSIDE),
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => (segment::pop_seg::<u16>, seg, END),
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => (segment::pop_seg::<u32>, seg, END),
        Popq_FS | Popq_GS => (segment::pop_seg::<u64>, seg, END),
        Les_r16_m1616 => (segment::load_far_pointer::<u16>, Seg::Es as u8, END),
        Les_r32_m1632 => (segment::load_far_pointer::<u32>, Seg::Es as u8, END),
        Lds_r16_m1616 => (segment::load_far_pointer::<u16>, Seg::Ds as u8, END),
        Lds_r32_m1632 => (segment::load_far_pointer::<u32>, Seg::Ds as u8, END),
        Lss_r16_m1616 => (segment::load_far_pointer::<u16>, Seg::Ss as u8, END),
        Lss_r32_m1632 => (segment::load_far_pointer::<u32>, Seg::Ss as u8, END),
        Lss_r64_m1664 => (segment::load_far_pointer::<u64>, Seg::Ss as u8, END),
        Lfs_r16_m1616 => (segment::load_far_pointer::<u16>, Seg::Fs as u8, END),
        Lfs_r32_m1632 => (segment::load_far_pointer::<u32>, Seg::Fs as u8, END),
        Lfs_r64_m1664 => (segment::load_far_pointer::<u64>, Seg::Fs as u8, END),
        Lgs_r16_m1616 => (segment::load_far_pointer::<u16>, Seg::Gs as u8, END),
        Lgs_r32_m1632 => (segment::load_far_pointer::<u32>, Seg::Gs as u8, END),
        Lgs_r64_m1664 => (segment::load_far_pointer::<u64>, Seg::Gs as u8, END),
        Rdfsbase_r32 => (segment::read_base::<u32>, Seg::Fs as u8, INSIDE),
        Rdfsbase_r64 => (segment::read_base::<u64>, Seg::Fs as u8, INSIDE),
        Rdgsbase_r32 => (segment::read_base::<u32>, Seg::Gs as u8, INSIDE),
        Rdgsbase_r64 => (segment::read_base::<u64>, Seg::Gs as u8, INSIDE),
        Wrfsbase_r32 => (segment::write_base::<u32>, Seg::Fs as u8, INSIDE),
        Wrfsbase_r64 => (segment::write_base::<u64>, Seg::Fs as u8, INSIDE),
        Wrgsbase_r32 => (segment::write_base::<u32>, Seg::Gs as u8, INSIDE),
        Wrgsbase_r64 => (segment::write_base::<u64>, Seg::Gs as u8, INSIDE),
        Swapgs => (syscall::swapgs, 0, INSIDE),
        _ => return None,
    };
    Some(choice)
}

/// Descriptor tables and descriptors.
fn descriptors(insn: &Instruction, memory: bool) -> Option<Choice> {
    use Code::*;
    let choice: Choice = match insn.code() {
        Lgdt_m1632_16 | Lgdt_m1632 | Lgdt_m1664 => (tables::load_table, tables::GDT, INSIDE),
        Lidt_m1632_16 | Lidt_m1632 | Lidt_m1664 => (tables::load_table, tables::IDT, INSIDE),
        Sgdt_m1632_16 | Sgdt_m1632 | Sgdt_m1664 => (tables::store_table, tables::GDT, INSIDE),
        Sidt_m1632_16 | Sidt_m1632 | Sidt_m1664 => (tables::store_table, tables::IDT, INSIDE),
        Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16 => {
            (either(memory, tables::load_task_mem, tables::load_task_reg), tables::LDT, INSIDE)
        }
        Ltr_rm16 | Ltr_r32m16 | Ltr_r64m16 => {
            (either(memory, tables::load_task_mem, tables::load_task_reg), tables::TASK, INSIDE)
        }
        Sldt_rm16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u16>), tables::LDT, INSIDE),
        Sldt_r32m16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u32>), tables::LDT, INSIDE),
        Sldt_r64m16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u64>), tables::LDT, INSIDE),
        Str_rm16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u16>), tables::TASK, INSIDE),
        Str_r32m16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u32>), tables::TASK, INSIDE),
        Str_r64m16 => (either(memory, tables::store_task_mem, tables::store_task_reg::<u64>), tables::TASK, INSIDE),
        Lar_r16_rm16 => (either(memory, tables::ask_mem::<u16>, tables::ask_reg::<u16>), question::RIGHTS, INSIDE),
        Lar_r32_r32m16 => (either(memory, tables::ask_mem::<u32>, tables::ask_reg::<u32>), question::RIGHTS, INSIDE),
        Lar_r64_r64m16 => (either(memory, tables::ask_mem::<u64>, tables::ask_reg::<u64>), question::RIGHTS, INSIDE),
        Lsl_r16_rm16 => (either(memory, tables::ask_mem::<u16>, tables::ask_reg::<u16>), question::LIMIT, INSIDE),
        Lsl_r32_r32m16 => (either(memory, tables::ask_mem::<u32>, tables::ask_reg::<u32>), question::LIMIT, INSIDE),
        Lsl_r64_r64m16 => (either(memory, tables::ask_mem::<u64>, tables::ask_reg::<u64>), question::LIMIT, INSIDE),
        Verr_rm16 | Verr_r32m16 | Verr_r64m16 => {
            (either(memory, tables::ask_mem::<u16>, tables::ask_reg::<u16>), question::READ, INSIDE)
        }
        Verw_rm16 | Verw_r32m16 | Verw_r64m16 => {
            (either(memory, tables::ask_mem::<u16>, tables::ask_reg::<u16>), question::WRITE, INSIDE)
        }
        Arpl_rm16_r16 | Arpl_r32m16_r32 => (either(memory, tables::arpl_mem, tables::arpl_reg), 0, INSIDE),
        _ => return None,
    };
    Some(choice)
}

/// Far transfers, system calls, software interrupts.
fn transfers(insn: &Instruction, memory: bool) -> Option<Choice> {
    use Code::*;
    let (handler, size): (Handler, u8) = match insn.code() {
        Jmp_ptr1616 => (transfer::jump_direct, 2),
        Jmp_ptr1632 => (transfer::jump_direct, 4),
        Call_ptr1616 => (transfer::call_direct, 2),
        Call_ptr1632 => (transfer::call_direct, 4),
        Jmp_m1616 => (transfer::jump_memory, 2),
        Jmp_m1632 => (transfer::jump_memory, 4),
        Jmp_m1664 => (transfer::jump_memory, 8),
        Call_m1616 => (transfer::call_memory, 2),
        Call_m1632 => (transfer::call_memory, 4),
        Call_m1664 => (transfer::call_memory, 8),
        Retfw | Retfw_imm16 => (ret::return_far, 2),
        Retfd | Retfd_imm16 => (ret::return_far, 4),
        Retfq | Retfq_imm16 => (ret::return_far, 8),
        Iretw => (iret::iret, 2),
        Iretd => (iret::iret, 4),
        Iretq => (iret::iret, 8),
        Syscall => (syscall::syscall, 0),
        Sysretd => (syscall::sysret, 4),
        Sysretq => (syscall::sysret, 8),
        Sysenter => (syscall::sysenter, 0),
        Sysexitd => (syscall::sysexit, 4),
        Sysexitq => (syscall::sysexit, 8),
        Int_imm8 | Int3 => (interrupt::int, 0),
        Into => (interrupt::into, 0),
        Int1 => (interrupt::int1, 0),
        Bound_r16_m1616 if memory => (interrupt::bound::<u16>, 0),
        Bound_r32_m3232 if memory => (interrupt::bound::<u32>, 0),
        Ud0 | Ud0_r16_rm16 | Ud0_r32_rm32 | Ud0_r64_rm64 | Ud1_r16_rm16 | Ud1_r32_rm32 | Ud1_r64_rm64 | Ud2
        | Monitorw | Monitord | Monitorq | Mwait => (interrupt::undefined, 0),
        _ => return None,
    };
    Some((handler, size, END))
}

/// Control and debug registers, flags.
fn control(insn: &Instruction, memory: bool) -> Option<Choice> {
    use Code::*;
    let choice: Choice = match insn.code() {
        Mov_r32_cr => (control::from_control::<u32>, special(insn), INSIDE),
        Mov_r64_cr => (control::from_control::<u64>, special(insn), INSIDE),
        Mov_cr_r32 => (control::to_control::<u32>, special(insn), END),
        Mov_cr_r64 => (control::to_control::<u64>, special(insn), END),
        Mov_r32_dr => (debug::from_debug::<u32>, special(insn), INSIDE),
        Mov_r64_dr => (debug::from_debug::<u64>, special(insn), INSIDE),
        Mov_dr_r32 => (debug::to_debug::<u32>, special(insn), END),
        Mov_dr_r64 => (debug::to_debug::<u64>, special(insn), END),
        Clts => (control::clts, 0, END),
        Smsw_rm16 => (either(memory, control::smsw_mem, control::smsw_reg::<u16>), 0, INSIDE),
        Smsw_r32m16 => (either(memory, control::smsw_mem, control::smsw_reg::<u32>), 0, INSIDE),
        Smsw_r64m16 => (either(memory, control::smsw_mem, control::smsw_reg::<u64>), 0, INSIDE),
        Lmsw_rm16 | Lmsw_r32m16 | Lmsw_r64m16 => (either(memory, control::lmsw_mem, control::lmsw_reg), 0, END),
        Invlpg_m => (control::invlpg, 0, END),
        Invd | Wbinvd | Wbnoinvd => (control::invalidate_caches, 0, INSIDE),
        Hlt => (flags::hlt, 0, END),
        Cli => (flags::cli, 0, INSIDE),
        Sti => (flags::sti, 0, END),
        Pushfw => (flags::pushf::<u16>, 0, INSIDE),
        Pushfd => (flags::pushf::<u32>, 0, INSIDE),
        Pushfq => (flags::pushf::<u64>, 0, INSIDE),
        Popfw => (flags::popf::<u16>, 0, END),
        Popfd => (flags::popf::<u32>, 0, END),
        Popfq => (flags::popf::<u64>, 0, END),
        Stac | Clac => (flags::set_access_check, 0, INSIDE),
        _ => return None,
    };
    Some(choice)
}

/// Identification, model-specific registers, time, randomness.
fn miscellaneous(insn: &Instruction) -> Option<Choice> {
    use Code::*;
    let choice: Choice = match insn.code() {
        Cpuid => (misc::cpuid, 0, INSIDE),
        Rdmsr => (misc::rdmsr, 0, INSIDE),
        Wrmsr => (misc::wrmsr, 0, END),
        Rdtsc => (misc::rdtsc, 0, INSIDE),
        Rdtscp => (misc::rdtscp, 0, INSIDE),
        Rdpmc => (misc::rdpmc, 0, INSIDE),
        Rdpid_r32 | Rdpid_r64 => (misc::rdpid, 0, INSIDE),
        Rdrand_r16 => (misc::random::<u16>, 0, INSIDE),
        Rdrand_r32 => (misc::random::<u32>, 0, INSIDE),
        Rdrand_r64 => (misc::random::<u64>, 0, INSIDE),
        Rdseed_r16 => (misc::random::<u16>, 0, INSIDE),
        Rdseed_r32 => (misc::random::<u32>, 0, INSIDE),
        Rdseed_r64 => (misc::random::<u64>, 0, INSIDE),
        Pause => (misc::pause, 0, INSIDE),
        _ => return None,
    };
    Some(choice)
}

/// Ports. A device may want the CPU's attention at once.
fn ports(insn: &Instruction) -> Option<Choice> {
    use Code::*;
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    let handler: Handler = match insn.code() {
        In_AL_imm8 => io::in_imm::<u8>,
        In_AX_imm8 => io::in_imm::<u16>,
        In_EAX_imm8 => io::in_imm::<u32>,
        In_AL_DX => io::in_dx::<u8>,
        In_AX_DX => io::in_dx::<u16>,
        In_EAX_DX => io::in_dx::<u32>,
        Out_imm8_AL => io::out_imm::<u8>,
        Out_imm8_AX => io::out_imm::<u16>,
        Out_imm8_EAX => io::out_imm::<u32>,
        Out_DX_AL => io::out_dx::<u8>,
        Out_DX_AX => io::out_dx::<u16>,
        Out_DX_EAX => io::out_dx::<u32>,
        Insb_m8_DX => either(repeated, io::rep_ins::<u8>, io::ins::<u8>),
        Insw_m16_DX => either(repeated, io::rep_ins::<u16>, io::ins::<u16>),
        Insd_m32_DX => either(repeated, io::rep_ins::<u32>, io::ins::<u32>),
        Outsb_DX_m8 => either(repeated, io::rep_outs::<u8>, io::outs::<u8>),
        Outsw_DX_m16 => either(repeated, io::rep_outs::<u16>, io::outs::<u16>),
        Outsd_DX_m32 => either(repeated, io::rep_outs::<u32>, io::outs::<u32>),
        _ => return None,
    };
    Some((handler, 0, END))
}

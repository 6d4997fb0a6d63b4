//! Tiny guests that go astray. Whatever a guest does to itself, belljar ends: with 121 and the registers where the CPU
//! cannot go on, by `--timeout` where it can, for ever. Never a panic, never a process that is stuck.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::tiny::{AT, kernel};
use common::{Outcome, Session};

/// The virtual CPU died.
const DIED: i32 = 121;
const TIMED_OUT: i32 = 124;
/// Seconds that a guest without end is given.
const PATIENCE: u64 = 2;
/// Far more than any of these needs, far less than a test's own limit.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `code` for `patience` seconds at most. It starts in 32-bit protected mode without paging, with interrupts off and no interrupt table.
fn run(code: &[u8], patience: u64) -> Option<Outcome> {
    let engine = common::engine()?;
    let dir = common::scratch();
    let path = dir.path().join("kernel");
    std::fs::write(&path, kernel(code)).unwrap();
    let mut command = Command::new(common::belljar());
    command.args(["boot", "--engine", engine, "--serial", "stdio", "--memory", "64M", "--timeout"]);
    command.arg(patience.to_string()).arg("--kernel").arg(&path);
    let start = Instant::now();
    let outcome = Session::start(command).finish(LIMIT);
    assert!(!outcome.errors.contains("panicked"), "{outcome}");
    if outcome.status.code() == Some(TIMED_OUT) {
        assert!(start.elapsed() >= Duration::from_secs(patience), "{outcome}");
    }
    Some(outcome)
}

fn ends(code: &[u8], status: i32, says: &str) {
    if let Some(outcome) = run(code, PATIENCE) {
        outcome.code(status).says(says);
        if status == DIED {
            outcome.says("rip ").says("cr3 ").says("\n  code ");
        }
    }
}

fn runs_for_ever(code: &[u8]) {
    ends(code, TIMED_OUT, "time limit");
}

/// Sends `text` to the serial port.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

/// `mov eax, at; jmp eax`.
fn jump(at: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(at.to_le_bytes());
    code.extend([0xff, 0xe0]);
    code
}

/// Stores `value` at `at`.
fn store(at: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xc7, 0x05];
    code.extend(at.to_le_bytes());
    code.extend(value.to_le_bytes());
    code
}

/// Loads an interrupt table with room for `vectors`, at `AT + 0x2000`, its description being in front of it.
fn interrupt_table(vectors: u32) -> Vec<u8> {
    let (table, description) = (AT + 0x2000, AT + 0x1ff0);
    let limit = (vectors * 8).saturating_sub(1) & 0xffff;
    let mut code = [store(description, limit | table << 16), store(description + 4, table >> 16)].concat();
    code.extend([0x0f, 0x01, 0x1d]); // lidt [description]
    code.extend(description.to_le_bytes());
    code
}

#[test]
fn a_triple_fault() {
    let Some(outcome) = run(&[print("on the way"), interrupt_table(0), vec![0xcc]].concat(), PATIENCE) else { return };
    outcome.code(DIED).says("triple fault").says("rip").shows("on the way");
}

#[test]
fn an_undefined_instruction_that_nobody_handles() {
    ends(&[interrupt_table(0), vec![0x0f, 0x0b]].concat(), DIED, "triple fault");
}

#[test]
fn a_jump_into_nothing() {
    // Neither RAM nor a device.
    ends(&[interrupt_table(0), jump(0xc000_0000)].concat(), DIED, "vCPU 0: ");
}

#[test]
fn a_jump_beyond_the_physical_memory() {
    ends(&[interrupt_table(0), jump(64 << 20)].concat(), DIED, "vCPU 0: ");
}

#[test]
fn code_out_of_the_registers_of_a_device() {
    // The I/O APIC, and the local APIC.
    for device in [0xfec0_0000, 0xfee0_0020] {
        ends(&[interrupt_table(0), jump(device)].concat(), DIED, "vCPU 0: ");
    }
}

#[test]
fn code_that_runs_out_of_its_memory() {
    // Instructions up to the last byte of RAM, and beyond; the last one is cut in two.
    let last = (64 << 20) - 4;
    let code = [interrupt_table(0), store(last, 0xb890_9090), jump(last)].concat();
    ends(&code, DIED, "vCPU 0: ");
}

#[test]
fn a_loop_with_interrupts_off() {
    runs_for_ever(&[0xfa, 0xeb, 0xfe]); // cli; jmp $
}

#[test]
fn a_loop_over_the_registers_of_a_device() {
    runs_for_ever(&[0xfa, 0xa1, 0x20, 0x00, 0xe0, 0xfe, 0xeb, 0xf9]); // cli; again: mov eax, [0xfee00020]; jmp again
}

#[test]
fn a_string_instruction_that_takes_hours() {
    // mov edi, 0xc0000000; or ecx, -1; cld; rep stosb: to where there is nothing, and beyond it to the devices.
    runs_for_ever(&[0xbf, 0x00, 0x00, 0x00, 0xc0, 0x83, 0xc9, 0xff, 0xfc, 0xf3, 0xaa, 0xeb, 0xfe]);
    // mov dx, 0x80; or ecx, -1; again: rep outsb; jmp again
    runs_for_ever(&[0x66, 0xba, 0x80, 0x00, 0x83, 0xc9, 0xff, 0xf3, 0x6e, 0xeb, 0xf9]);
}

#[test]
fn code_that_rewrites_itself_for_ever() {
    // again: inc dword [next + 1]; next: mov eax, imm32; jmp again
    let mut code = vec![0xff, 0x05];
    code.extend((AT + 7).to_le_bytes());
    code.extend([0xb8, 0, 0, 0, 0, 0xeb, 0xf3]);
    runs_for_ever(&code);
}

#[test]
fn an_exception_whose_handler_raises_it_again() {
    // The gate of #UD (vector 6) leads to a UD2. The stack begins anew each time, or it would run out of memory.
    let (handler, gate, stack) = (AT + 0x1000, AT + 0x2000 + 6 * 8, (AT + 0x8000).to_le_bytes());
    let ud2 = [&[0xbc][..], &stack, &[0x0f, 0x0b]].concat(); // mov esp, stack; ud2
    // A gate needs the selector of the code segment that runs: mov ax, cs; mov [gate + 2], ax.
    let selector = [&[0x8c, 0xc8, 0x66, 0xa3][..], &(gate + 2).to_le_bytes()].concat();
    let gate = [store(gate, handler & 0xffff), store(gate + 4, handler & 0xffff_0000 | 0x8e00), selector].concat();
    let mut code = [interrupt_table(32), gate, ud2.clone()].concat();
    code.resize(0x1000, 0x90);
    code.extend(ud2);
    runs_for_ever(&code);
}

#[test]
fn sleep_with_interrupts_off() {
    // What Linux does to halt: a machine with no CPU that can wake has ended. It is looked for once a second.
    let Some(outcome) = run(&[print("good night"), vec![0xfa, 0xf4, 0xeb, 0xfc]].concat(), 20) else { return };
    outcome.code(0).says("halted").shows("good night");
}

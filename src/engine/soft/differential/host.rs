//! The host CPU as the oracle: a child process loads a case's registers, jumps to its instruction, and stores what came
//! out. Signals tell exceptions. Whatever an instruction does, it does to the child, which may no longer make any system
//! call but read, write and exit; if it dies, the case says so and a new child goes on with the next one.

// UNSAFETY: forks, maps pages at fixed addresses, executes arbitrary instructions there, handles their signals.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::case::{
    CODE, CODE_PAGES, CONTROL, CONTROL_SIZE, Case, DATA, End, FILLER, Outcome, PATCH, READABLE, State, WRITABLE,
    pattern,
};
use super::trampoline::{Abilities, FAULT, IN, OUT, SIGNAL_STACK, TARGET, TEXT, Trampolines, assemble};
use crate::mem::PAGE;

/// Cases that are handed to the child at once.
pub const BATCH: usize = 256;
/// Milliseconds that a batch may take, on a machine that is busy with other things.
const PATIENCE: i32 = 10_000;
const CODE_SIZE: u64 = CODE_PAGES * PAGE;
/// What the child exits with where it cannot work at all.
const CANNOT_MAP: i32 = 90;
const CANNOT_LOAD: i32 = 91;
const CANNOT_SEAL: i32 = 92;

/// What a signal said.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Signal {
    number: u64,
    vector: u64,
    error: u64,
    address: u64,
    rip: u64,
}

const NO_SIGNAL: Signal = Signal { number: 0, vector: 0, error: 0, address: 0, rip: 0 };

/// One case in memory that both processes see.
#[repr(C, align(64))]
struct Slot {
    start: State,
    bytes: [u8; 15],
    len: u8,
    patch_at: u16,
    patch_len: u16,
    patch: [u8; PATCH],
    end: State,
    signal: Signal,
    memory: [u8; WRITABLE],
}

#[repr(C, align(4096))]
struct Shared {
    /// The case under way.
    current: AtomicU32,
    pattern: [u8; READABLE],
    slots: [Slot; BATCH],
}

/// A host CPU that executes cases. Use it on the thread that made it: the child dies with that thread.
#[derive(Debug)]
pub struct Host {
    shared: *mut Shared,
    child: Option<Child>,
    patience: i32,
    /// What it can do.
    pub abilities: Abilities,
    trampolines: Trampolines,
}

#[derive(Debug)]
struct Child {
    pid: libc::pid_t,
    socket: OwnedFd,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The host's abilities as far as cases need to know.
fn abilities() -> Abilities {
    // SAFETY: getauxval only reads. Bit 1 of AT_HWCAP2: the kernel allows RDFSBASE and WRFSBASE.
    let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
    Abilities { avx: std::arch::is_x86_feature_detected!("avx"), fsgsbase }
}

impl Host {
    /// Starts the first child.
    pub fn new() -> io::Result<Self> {
        let abilities = abilities();
        let trampolines = assemble(abilities).map_err(io::Error::other)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let shared = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0) };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shared = shared.cast::<Shared>();
        // SAFETY: the mapping was just made and nobody else knows it.
        unsafe { (&raw mut (*shared).pattern).write(*pattern()) };
        let mut host = Self { shared, child: None, patience: PATIENCE, abilities, trampolines };
        host.run(&[Case::new(&[0x90])])?;
        Ok(host)
    }

    /// Executes `cases`, each from its own state.
    pub fn run(&mut self, cases: &[Case]) -> io::Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(cases.len());
        for batch in cases.chunks(BATCH) {
            self.run_batch(batch, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn run_batch(&mut self, cases: &[Case], outcomes: &mut Vec<Outcome>) -> io::Result<()> {
        for (index, case) in cases.iter().enumerate() {
            // SAFETY: `index` is below BATCH; the child waits for a message, so nobody else accesses slots.
            let slot = unsafe { &mut (*self.shared).slots[index] };
            slot.start = case.start.clone();
            (slot.bytes, slot.len, slot.patch_at, slot.patch_len) =
                (case.bytes, case.len, case.patch_at, case.patch_len);
            slot.patch = case.patch;
        }
        let mut first = 0;
        while first < cases.len() {
            let lost = self.ask(first as u32, cases.len() as u32)?;
            // SAFETY: the child has answered or is dead.
            let current = unsafe { (*self.shared).current.load(Ordering::SeqCst) } as usize;
            let end = if lost.is_some() { current } else { cases.len() };
            for (index, case) in cases.iter().enumerate().take(end).skip(first) {
                // SAFETY: as above.
                outcomes.push(outcome(case, unsafe { &(*self.shared).slots[index] }));
            }
            if let (Some(why), Some(case)) = (lost, cases.get(end)) {
                let memory = Box::new([0; WRITABLE]);
                outcomes.push(Outcome { end: End::Lost(why), state: case.start.clone(), memory });
                first = end + 1;
            } else {
                first = end;
            }
        }
        Ok(())
    }

    /// Has the child execute cases `first` to `end`; if it did not come to the end, says why.
    fn ask(&mut self, first: u32, end: u32) -> io::Result<Option<&'static str>> {
        let child = match self.child.take() {
            Some(child) => child,
            None => self.start()?,
        };
        let (request, mut answer) = ([first, end], 0u32);
        let fd = child.socket.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: the buffers are as long as said.
        let (sent, ready, got) = unsafe {
            let sent = libc::write(fd, ptr::from_ref(&request).cast(), 8);
            let ready = libc::poll(&raw mut poll, 1, self.patience);
            (sent, ready, if ready > 0 { libc::read(fd, ptr::from_mut(&mut answer).cast(), 4) } else { 0 })
        };
        if sent == 8 && got == 4 {
            self.child = Some(child);
            return Ok(None);
        }
        match (ready, child.kill()) {
            (_, Some(CANNOT_MAP)) => Err(io::Error::other("the addresses of cases are taken")),
            (_, Some(CANNOT_LOAD)) => Ok(Some("its state cannot be loaded")),
            (_, Some(CANNOT_SEAL)) => Err(io::Error::other("seccomp refused")),
            (0, _) => Ok(Some("it does not end")),
            _ => Ok(Some("it kills its process")),
        }
    }

    fn start(&self) -> io::Result<Child> {
        let mut sockets = [0; 2];
        // SAFETY: `sockets` has room for two; both descriptors are new and owned here.
        let [ours, theirs] = unsafe {
            check(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, sockets.as_mut_ptr()))?;
            sockets.map(|fd| OwnedFd::from_raw_fd(fd))
        };
        // SAFETY: the child makes only system calls and touches only memory that exists already.
        let pid = check(unsafe { libc::fork() })?;
        if pid == 0 {
            // SAFETY: this is a new process with one thread; `shared` and `trampolines` are as in the parent.
            unsafe { serve(self.shared, &self.trampolines, theirs.as_raw_fd(), ours.as_raw_fd()) }
        }
        Ok(Child { pid, socket: ours })
    }
}

impl Child {
    /// Ends it; the status if it had ended by itself.
    fn kill(self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: `pid` is our child, not waited for yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, 0);
        }
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            child.kill();
        }
        // SAFETY: mapped by `new` with this size; the only other user was the child.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// What the registers and the signal, if there was one, mean.
fn outcome(case: &Case, slot: &Slot) -> Outcome {
    let start = case.start.rip;
    let next = start + u64::from(case.len);
    let signal = slot.signal;
    let within = |at: u64| (CODE..CODE + CODE_SIZE).contains(&at);
    let (rip, end) = match (signal.number, signal.vector) {
        (0, _) => (next, End::Done),
        // A branch came to the filler, or to where nothing is.
        (_, 3) if within(signal.rip - 1) && signal.rip - 1 != start => (signal.rip - 1, End::Done),
        (_, 14) if signal.rip == signal.address && signal.rip != start => (signal.rip, End::Done),
        // There was no room for the way back.
        (_, 14) if signal.rip == next && signal.address == CODE + CODE_SIZE => (signal.rip, End::Done),
        (_, vector) => {
            let address = if vector == 14 { signal.address } else { 0 };
            (signal.rip, End::Fault { vector: vector as u8, error: signal.error as u32, address })
        }
    };
    let mut state = slot.end.clone();
    state.rip = rip;
    Outcome { end, state, memory: Box::new(slot.memory) }
}

unsafe fn exit(status: i32) -> ! {
    // SAFETY: ends this process's only thread, the one way that the seal leaves.
    unsafe {
        libc::syscall(libc::SYS_exit, status);
        libc::abort()
    }
}

/// The child: executes cases until nobody asks any more.
unsafe fn serve(shared: *mut Shared, trampolines: &Trampolines, socket: i32, other: i32) -> ! {
    // SAFETY: system calls of a process that is this function's own; the fixed addresses are mapped before they are used.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(other);
        let data = libc::PROT_READ | libc::PROT_WRITE;
        let code = data | libc::PROT_EXEC;
        if !(map(CONTROL, CONTROL_SIZE, code) && map(CODE, CODE_SIZE, code) && map(DATA, READABLE as u64, data)) {
            exit(CANNOT_MAP);
        }
        let text = (CONTROL + TEXT) as *mut u8;
        ptr::copy_nonoverlapping(trampolines.text.as_ptr(), text, trampolines.text.len());
        ptr::write_bytes(CODE as *mut u8, FILLER, CODE_SIZE as usize);
        ptr::copy_nonoverlapping((&raw const (*shared).pattern).cast::<u8>(), DATA as *mut u8, READABLE);
        let read_only = (DATA + WRITABLE as u64) as *mut libc::c_void;
        libc::mprotect(read_only, READABLE - WRITABLE, libc::PROT_READ);
        handle_signals();
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) != 0 {
            exit(CANNOT_SEAL);
        }
        loop {
            let mut request = [0u32; 2];
            if libc::read(socket, request.as_mut_ptr().cast(), 8) != 8 {
                exit(0);
            }
            for index in request[0]..request[1] {
                (*shared).current.store(index, Ordering::SeqCst);
                let slot = (&raw mut (*shared).slots).cast::<Slot>().add(index as usize);
                execute(slot, (&raw const (*shared).pattern).cast(), trampolines);
            }
            libc::write(socket, request.as_ptr().cast(), 4);
        }
    }
}

unsafe fn map(at: u64, len: u64, protection: i32) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = at as *mut libc::c_void;
    // SAFETY: NOREPLACE: only where nothing is.
    unsafe { libc::mmap(at, len as usize, protection, flags, -1, 0) == at }
}

unsafe fn handle_signals() {
    // SAFETY: the stack lies in pages of this process that nothing else uses; `on_signal` is a handler with information.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: (CONTROL + SIGNAL_STACK) as *mut libc::c_void,
            ss_flags: 0,
            ss_size: (CONTROL_SIZE - SIGNAL_STACK) as usize,
        };
        libc::sigaltstack(&raw const stack, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        // The parent wants a handler of its own for none of these.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Writes down what happened and goes on at `leave`, whose address `FAULT` holds after the signal.
unsafe extern "C" fn on_signal(number: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a context; the control pages are mapped. AC is cleared before anything unaligned happens.
    unsafe {
        std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq");
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let get = |index: i32| registers[index as usize] as u64;
        let rip = get(libc::REG_RIP);
        let text = CONTROL + TEXT;
        if (text..text + PAGE).contains(&rip) {
            exit(CANNOT_LOAD);
        }
        let signal = Signal {
            number: number as u64,
            vector: get(libc::REG_TRAPNO),
            error: get(libc::REG_ERR),
            address: get(libc::REG_CR2),
            rip,
        };
        let fault = (CONTROL + FAULT) as *mut Signal;
        fault.write(signal);
        registers[libc::REG_RIP as usize] = fault.add(1).cast::<i64>().read();
    }
}

/// Executes one case.
unsafe fn execute(slot: *mut Slot, pattern: *const u8, trampolines: &Trampolines) {
    // SAFETY: all addresses are those that `serve` mapped, sizes those of the pages; what is executed is the case's matter.
    unsafe {
        let start = (*slot).start.rip;
        ptr::copy_nonoverlapping(pattern, DATA as *mut u8, WRITABLE);
        let patch = (&raw const (*slot).patch).cast::<u8>();
        let to = DATA as *mut u8;
        ptr::copy_nonoverlapping(patch, to.add(usize::from((*slot).patch_at)), usize::from((*slot).patch_len));
        let len = usize::from((*slot).len);
        let mut code = [FILLER; 20];
        ptr::copy_nonoverlapping((&raw const (*slot).bytes).cast(), code.as_mut_ptr(), len);
        let back = trampolines.leave.wrapping_sub(start + len as u64 + 5) as u32;
        code.as_mut_ptr().add(len).write(0xe9);
        code.as_mut_ptr().add(len + 1).cast::<u32>().write_unaligned(back);
        let room = (len + 5).min((CODE + CODE_SIZE - start) as usize);
        ptr::copy_nonoverlapping(code.as_ptr(), start as *mut u8, room);
        let fault = (CONTROL + FAULT) as *mut Signal;
        fault.write(NO_SIGNAL);
        fault.add(1).cast::<u64>().write(trampolines.leave);
        ptr::copy_nonoverlapping(&raw const (*slot).start, (CONTROL + IN) as *mut State, 1);
        ((CONTROL + TARGET) as *mut u64).write(start);
        let enter: extern "C" fn() = std::mem::transmute::<u64, extern "C" fn()>(trampolines.enter);
        enter();
        ptr::write_bytes(start as *mut u8, FILLER, room);
        ptr::copy_nonoverlapping((CONTROL + OUT) as *const State, &raw mut (*slot).end, 1);
        (*slot).signal = fault.read();
        ptr::copy_nonoverlapping(DATA as *const u8, (&raw mut (*slot).memory).cast(), WRITABLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn run(case: &Case) -> Outcome {
        Host::new().unwrap().run(std::slice::from_ref(case)).unwrap().remove(0)
    }

    #[test]
    fn known_results() {
        let mut case = Case::new(&[0x48, 0x01, 0xd8]); // add rax, rbx
        (case.start.gpr[0], case.start.gpr[3]) = (u64::MAX, 1);
        let out = run(&case);
        assert_eq!((out.end, out.state.rip, out.state.gpr[0]), (End::Done, CODE + 3, 0));
        assert_eq!(out.state.rflags, 0x257, "carry, parity, adjust, zero");
        assert_eq!(out.state.gpr[1..], case.start.gpr[1..]);
        let mut case = Case::new(&[0xff, 0x34, 0x24]); // push [rsp]
        case.start.gpr[4] = DATA + 0x100;
        case.set_patch(DATA + 0x100, &7u64.to_le_bytes());
        let out = run(&case);
        assert_eq!((out.end, out.state.gpr[4]), (End::Done, DATA + 0xf8));
        assert_eq!(out.memory[0xf8..0x100], 7u64.to_le_bytes());
        assert_eq!(out.memory[..0xf8], pattern()[..0xf8]);
        let mut case = Case::new(&[0xf3, 0x0f, 0x5e, 0xca]); // divss xmm1, xmm2
        case.start.vector[160 + 16..160 + 20].copy_from_slice(&1f32.to_le_bytes());
        case.start.vector[160 + 32..160 + 36].copy_from_slice(&3f32.to_le_bytes());
        let out = run(&case);
        assert_eq!(out.state.vector[176..180], (1f32 / 3f32).to_le_bytes());
        assert_eq!(out.state.vector[24], 0xa0, "inexact");
        let out = run(&Case::new(&[0xd9, 0xe8])); // fld1
        assert_eq!(out.state.vector[32..42], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        assert_eq!((out.state.vector[3], out.state.vector[4]), (0x38, 0x80), "top, tags");
    }

    #[test]
    fn exceptions_and_branches() {
        let mut host = Host::new().unwrap();
        host.patience = 1_000;
        let mut end = |bytes: &[u8], rbx: u64| {
            let mut case = Case::new(bytes);
            case.start.gpr[3] = rbx;
            case.start.gpr[0] = libc::SYS_getpid as u64;
            let out = host.run(&[case]).unwrap().remove(0);
            (out.end, out.state.rip - CODE)
        };
        let fault = |vector, error, address| End::Fault { vector, error, address };
        let above = DATA + READABLE as u64;
        assert_eq!(end(&[0x8b, 0x03], above - 2), (fault(14, 4, above), 0));
        assert_eq!(end(&[0x89, 0x03], DATA + WRITABLE as u64), (fault(14, 7, DATA + WRITABLE as u64), 0));
        assert_eq!(end(&[0x8b, 0x03], 1 << 63), (fault(13, 0, 0), 0));
        assert_eq!(end(&[0x0f, 0x0b], 0), (fault(6, 0, 0), 0));
        assert_eq!(end(&[0xf7, 0xf3], 0), (fault(0, 0, 0), 0));
        assert_eq!(end(&[0xf4], 0), (fault(13, 0, 0), 0), "hlt");
        assert_eq!(end(&[0x0f, 0x28, 0x03], DATA + 8), (fault(13, 0, 0), 0), "movaps unaligned");
        assert_eq!(end(&[0xeb, 0x20], 0), (End::Done, 0x22));
        assert_eq!(end(&[0xff, 0xe3], CODE + 0x800), (End::Done, 0x800));
        assert_eq!(end(&[0xff, 0xe3], DATA + READABLE as u64).0, End::Done);
        assert_eq!(end(&[0xeb, 0xfe], 0).0, End::Lost("it does not end"));
        assert_eq!(end(&[0x0f, 0x05], 0).0, End::Lost("it kills its process"), "a system call");
    }

    #[test]
    fn every_case_starts_from_its_own_state() {
        let mut host = Host::new().unwrap();
        let mut store = Case::new(&[0x48, 0x89, 0x03]); // mov [rbx], rax
        (store.start.gpr[0], store.start.gpr[3]) = (1, DATA);
        store.start.rflags |= 0x4_0000; // alignment checks
        store.start.gpr[3] = DATA + 1;
        let mut load = Case::new(&[0x64, 0x48, 0x8b, 0x03]); // mov rax, fs:[rbx]
        load.start.fs = DATA;
        let begin = Instant::now();
        let cases: Vec<_> = (0..2 * BATCH).map(|n| if n % 2 == 0 { store.clone() } else { load.clone() }).collect();
        let out = host.run(&cases).unwrap();
        println!("{} ns each", begin.elapsed().as_nanos() / cases.len() as u128);
        let first = u64::from_le_bytes(*pattern().first_chunk().unwrap());
        for pair in out.chunks(2) {
            assert_eq!(pair[0].end, End::Fault { vector: 17, error: 0, address: 0 });
            assert_eq!((pair[1].end, pair[1].state.gpr[0], pair[1].state.fs), (End::Done, first, DATA));
        }
    }
}

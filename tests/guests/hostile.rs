//! A guest that misuses every device it finds: random writes of all widths to all registers, and virtqueues that are
//! plausible enough for the handlers to run and wrong often enough to hurt. `tests/hostile.rs` compiles and boots it
//! (64-bit Linux entry, plain integer instructions, no interrupts). Command line: `hostile=SEED,ROUNDS[,wild]`.
//!
//! It must not fall over its own feet, so that what goes wrong is the VMM's doing: devices write only to the regions
//! below from [`USED`] on, never to code, page tables or descriptors; messages are never NMIs or INITs. `wild` lifts
//! that, and then the CPU may die. The ports that end the machine are always left alone.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::ptr::{read_volatile, write_volatile};

/// RAM: 64 MiB. Descriptor tables, available rings, indirect tables, used rings, buffers.
const DESCRIPTORS: u64 = 16 << 20;
const AVAILABLE: u64 = 18 << 20;
const INDIRECT: u64 = 20 << 20;
const USED: u64 = 22 << 20;
/// Numbers of pages that a balloon may take away: those from [`BUFFERS`] on. Their bytes are such that misaligned
/// numbers are no RAM.
const PAGES: u64 = 24 << 20;
const BUFFERS: u64 = 26 << 20;
const RAM_END: u64 = 64 << 20;
/// Space of one queue in each of these.
const STEP: u64 = 0x4000;

const MMIO_FIRST: u64 = 0xc000_0000;
const ECAM: u64 = 0xe000_0000;
const IOAPIC: u64 = 0xfec0_0000;
const SERIAL: u16 = 0x3f8;
const EXIT: u16 = 0xf4;

/// Device types that need to be treated as what they are.
const BALLOON: u64 = 5;
const VSOCK: u64 = 19;
const FS: u64 = 26;

const MAX_DEVICES: usize = 24;
const MAX_QUEUES: usize = 5;

#[unsafe(no_mangle)]
static mut STACK: [u8; 1 << 16] = [0; 1 << 16];

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("lea rsp, [rip + STACK + 65536]", "mov rdi, rsi", "call {main}", "2: hlt", "jmp 2b", main = sym main)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    end(99)
}

fn end(status: u8) -> ! {
    loop {
        out(EXIT, 1, status.into());
    }
}

fn out(port: u16, width: u32, value: u32) {
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}

fn input(port: u16, width: u32) {
    unsafe {
        match width {
            1 => asm!("in al, dx", in("dx") port, out("al") _),
            2 => asm!("in ax, dx", in("dx") port, out("ax") _),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _),
        }
    }
}

fn w(at: u64, width: u32, value: u64) {
    unsafe {
        match width {
            1 => asm!("mov byte ptr [{}], {}", in(reg) at, in(reg_byte) value as u8),
            2 => asm!("mov word ptr [{}], {:x}", in(reg) at, in(reg) value),
            4 => asm!("mov dword ptr [{}], {:e}", in(reg) at, in(reg) value),
            _ => asm!("mov qword ptr [{}], {}", in(reg) at, in(reg) value),
        }
    }
}

fn r(at: u64, width: u32) -> u64 {
    let mut value: u64 = 0;
    unsafe {
        match width {
            1 => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) at),
            2 => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) at),
            4 => asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) at),
            _ => asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) at),
        }
    }
    value
}

fn say(text: &str) {
    // 8 bits a character, no divisor, no loopback.
    out(SERIAL + 3, 1, 3);
    out(SERIAL + 4, 1, 0);
    text.bytes().for_each(|byte| out(SERIAL, 1, byte.into()));
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn width(&mut self) -> u32 {
        1 << self.below(4)
    }
    /// Numbers as they matter: mostly small, single bits, all ones, or anything.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.next() & 0xffff,
            5 => 0,
            _ => self.below(16),
        }
    }
}

#[derive(Clone, Copy)]
struct Queue {
    size: u64,
    next: u64,
    available: u16,
    used: u16,
}

/// A virtio device behind either transport.
#[derive(Clone, Copy)]
struct Device {
    number: u64,
    /// Device type.
    kind: u64,
    pci: bool,
    /// Registers: the page of virtio-mmio, or the common configuration.
    base: u64,
    /// Device-specific configuration.
    config: u64,
    notify: u64,
    notify_step: u64,
    /// Configuration space, for PCI.
    space: u64,
    bar: u64,
    /// Offset of the capability that reaches registers through configuration space.
    access: u64,
    queues: [Queue; MAX_QUEUES],
    count: usize,
}

struct Guest {
    random: Random,
    wild: bool,
    devices: [Device; MAX_DEVICES],
    count: usize,
    /// Next free byte of the indirect tables.
    indirect: u64,
    /// Requests that devices gave back: shows whether their handlers run at all.
    answered: u64,
}

static mut GUEST: Guest = {
    let queue = Queue { size: 0, next: 0, available: 0, used: 0 };
    let device = Device {
        number: 0,
        kind: 0,
        pci: false,
        base: 0,
        config: 0,
        notify: 0,
        notify_step: 0,
        space: 0,
        bar: 0,
        access: 0,
        queues: [queue; MAX_QUEUES],
        count: 0,
    };
    Guest { random: Random(0), wild: false, devices: [device; MAX_DEVICES], count: 0, indirect: 0, answered: 0 }
};

extern "C" fn main(boot_params: u64) -> ! {
    // The only code, on the only CPU.
    let guest = unsafe { &mut *(&raw mut GUEST) };
    let (seed, rounds) = guest.arguments(r(boot_params + 0x228, 4));
    guest.random.0 = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // From now on the guest's memory does not grow, so that the host's growth can be seen.
    (DESCRIPTORS..RAM_END).step_by(4096).for_each(|at| w(at, 8, 0));
    for at in (PAGES..PAGES + 0x2000).step_by(4) {
        w(at, 4, guest.random.below(0x26) << 8 | 0x1a10 | guest.random.below(16));
    }
    guest.discover();
    say(if guest.count > 0 { "hostile: found devices\n" } else { "hostile: found no devices\n" });
    for index in 0..guest.count {
        guest.set_up(index);
    }
    for _ in 0..rounds {
        guest.round();
    }
    say("\nhostile: done, answers: ");
    let mut digit = 1_000_000_000;
    while digit > 0 {
        out(SERIAL, 1, (guest.answered / digit % 10) as u32 + u32::from(b'0'));
        digit /= 10;
    }
    say("\n");
    end(0)
}

impl Guest {
    /// SEED, ROUNDS and whether all restraint is off.
    fn arguments(&mut self, line: u64) -> (u64, u64) {
        let byte = |at: u64| unsafe { read_volatile((line + at) as *const u8) };
        let mut at = 0;
        let wanted = b"hostile=";
        while !(0..wanted.len()).all(|i| byte(at + i as u64) == wanted[i]) {
            if byte(at) == 0 {
                end(98);
            }
            at += 1;
        }
        at += wanted.len() as u64;
        let mut numbers = [0u64; 2];
        for number in &mut numbers {
            while byte(at).is_ascii_digit() {
                *number = number.wrapping_mul(10).wrapping_add(u64::from(byte(at) - b'0'));
                at += 1;
            }
            at += 1;
        }
        self.wild = byte(at) == b'w';
        (numbers[0], numbers[1])
    }

    fn discover(&mut self) {
        for slot in 0..32 {
            let at = MMIO_FIRST + slot * 0x1000;
            if r(at, 4) == 0x7472_6976 && r(at + 8, 4) != 0 {
                self.add(Device {
                    kind: r(at + 8, 4),
                    base: at,
                    config: at + 0x100,
                    notify: at + 0x50,
                    ..self.devices[0]
                });
            }
        }
        for slot in 0..32 {
            let space = ECAM + slot * 0x8000;
            if r(space, 2) == 0x1af4 {
                self.discover_function(space);
            }
        }
    }

    fn discover_function(&mut self, space: u64) {
        let bar = r(space + 0x10, 4) & !0xf;
        let mut device = Device { kind: r(space + 2, 2) - 0x1040, pci: true, space, bar, ..self.devices[0] };
        w(space + 4, 2, 6);
        let mut at = r(space + 0x34, 1);
        while at != 0 {
            if r(space + at, 1) == 9 {
                let place = bar + r(space + at + 8, 4);
                match r(space + at + 3, 1) {
                    1 => device.base = place,
                    2 => (device.notify, device.notify_step) = (place, r(space + at + 16, 4)),
                    4 => device.config = place,
                    5 => device.access = at,
                    _ => {}
                }
            }
            at = r(space + at + 1, 1);
        }
        if device.base != 0 {
            self.add(device);
        }
    }

    fn add(&mut self, mut device: Device) {
        if self.count < MAX_DEVICES {
            device.number = self.count as u64;
            self.devices[self.count] = device;
            self.count += 1;
        }
    }

    fn round(&mut self) {
        let index = self.random.below(self.count.max(1) as u64) as usize;
        let any = self.count > 0;
        match self.random.below(16) {
            0 if any => self.set_up(index),
            1..=6 if any => self.traffic(index),
            7 | 8 if any => self.poke_registers(index),
            9 if any => self.poke_config(index),
            10 if any && self.devices[index].pci => self.poke_space(index),
            11 if any => self.look(index),
            12 => self.ioapic(),
            13 => self.port(),
            14 => self.elsewhere(),
            15 if any && self.random.one_in(3) => self.corrupt(index),
            _ => self.port(),
        }
    }

    /// An address where a device may write, or none at all.
    fn buffer(&mut self) -> u64 {
        match self.random.below(400) {
            0 => RAM_END - self.random.below(64),
            1 => RAM_END + self.random.value(),
            2 => u64::MAX - self.random.below(4096),
            3..10 if self.wild => self.random.value(),
            _ => BUFFERS + self.random.below(RAM_END - BUFFERS - (1 << 20)),
        }
    }

    /// Where queue `queue` of device `number` keeps its things in the region at `region`.
    fn place(region: u64, number: u64, queue: usize) -> u64 {
        region + (number * MAX_QUEUES as u64 + queue as u64) * STEP
    }

    fn status(device: &Device) -> u64 {
        if device.pci { device.base + 20 } else { device.base + 0x70 }
    }

    /// What a driver does until DRIVER_OK, with a mistake now and then.
    fn set_up(&mut self, index: usize) {
        let mut device = self.devices[index];
        let status_width = if device.pci { 1 } else { 4 };
        let status = Self::status(&device);
        if device.pci {
            w(device.space + 0x10, 4, device.bar);
            w(device.space + 4, 2, 6);
            let random = self.random.next();
            self.program_messages(&device, random);
        }
        w(status, status_width, 0);
        w(status, status_width, 1);
        w(status, status_width, 3);
        let (mut low, mut high) = (self.features(&device, 0), self.features(&device, 1));
        if self.random.one_in(2) {
            low &= self.random.next();
        }
        if self.random.one_in(32) {
            high ^= self.random.value();
        }
        self.accept(&device, 0, low);
        self.accept(&device, 1, high);
        w(status, status_width, 11);
        device.count = 0;
        for queue in 0..MAX_QUEUES {
            if !self.set_up_queue(&mut device, queue) {
                break;
            }
        }
        if !self.random.one_in(16) {
            w(status, status_width, 15);
        }
        self.devices[index] = device;
    }

    fn program_messages(&mut self, device: &Device, random: u64) {
        for vector in 0..4 {
            let at = device.bar + 0x800 + vector * 16;
            w(at, 4, 0xfee0_0000);
            w(at + 4, 4, 0);
            w(at + 8, 4, random & if self.wild { 0xffff } else { 0xff });
            w(at + 12, 4, random >> 32 & 1);
        }
        let mut at = r(device.space + 0x34, 1);
        while at != 0 {
            if r(device.space + at, 1) == 0x11 {
                w(device.space + at + 2, 2, if random >> 40 & 3 == 0 { 0xc000 } else { 0x8000 });
            }
            at = r(device.space + at + 1, 1);
        }
    }

    fn features(&mut self, device: &Device, word: u64) -> u64 {
        let (select, value) = if device.pci { (0, 4) } else { (0x14, 0x10) };
        w(device.base + select, 4, word);
        r(device.base + value, 4)
    }

    fn accept(&mut self, device: &Device, word: u64, value: u64) {
        let (select, at) = if device.pci { (8, 12) } else { (0x24, 0x20) };
        w(device.base + select, 4, word);
        w(device.base + at, 4, value);
    }

    fn set_up_queue(&mut self, device: &mut Device, queue: usize) -> bool {
        let (base, pci) = (device.base, device.pci);
        w(base + if pci { 22 } else { 0x30 }, if pci { 2 } else { 4 }, queue as u64);
        let most = if pci { r(base + 24, 2) } else { r(base + 0x34, 4) };
        if most == 0 {
            return false;
        }
        let size = if self.random.one_in(3) { 1 << self.random.below(8) } else { 256 }.min(most);
        let written = if self.random.one_in(64) { self.random.value() } else { size };
        w(base + if pci { 24 } else { 0x38 }, if pci { 2 } else { 4 }, written);
        let regions = [DESCRIPTORS, AVAILABLE, USED];
        for (i, region) in regions.into_iter().enumerate() {
            let at = Self::place(region, device.number, queue);
            let register = base + if pci { 32 + 8 * i as u64 } else { 0x80 + 0x10 * i as u64 };
            let high = if self.random.one_in(256) { self.random.value() } else { 0 };
            w(register, 4, at);
            w(register + 4, 4, high);
            (0..4).for_each(|word| w(at + 8 * word, 8, 0));
        }
        if pci {
            w(base + 26, 2, self.random.below(4));
        }
        if !self.random.one_in(32) {
            w(base + if pci { 28 } else { 0x44 }, if pci { 2 } else { 4 }, 1);
        }
        device.queues[queue] = Queue { size, next: 0, available: 0, used: 0 };
        device.count = queue + 1;
        true
    }

    /// A few requests, mostly well formed.
    fn traffic(&mut self, index: usize) {
        let mut device = self.devices[index];
        if device.count == 0 {
            return self.set_up(index);
        }
        let status = r(Self::status(&device), 1);
        if status & 0x40 != 0 || status & 4 == 0 {
            return self.set_up(index);
        }
        let queue = self.random.below(device.count as u64) as usize;
        let used = r(Self::place(USED, device.number, queue) + 2, 2) as u16;
        let more = used.wrapping_sub(device.queues[queue].used);
        device.queues[queue].used = used;
        if u64::from(more) <= device.queues[queue].size {
            self.answered += u64::from(more);
        }
        for _ in 0..1 + self.random.below(4) {
            let head = self.request(&mut device, queue);
            let ring = Self::place(AVAILABLE, device.number, queue);
            let state = &mut device.queues[queue];
            w(ring + 4 + 2 * (u64::from(state.available) % state.size), 2, head);
            state.available = state.available.wrapping_add(1);
            w(ring + 2, 2, state.available.into());
        }
        if self.random.one_in(4) {
            // Interrupts wanted, or from some entry on.
            let ring = Self::place(AVAILABLE, device.number, queue);
            w(ring, 2, self.random.below(2));
            w(ring + 4 + 2 * device.queues[queue].size, 2, self.random.next());
        }
        self.notify(&device, queue as u64);
        self.devices[index] = device;
    }

    fn notify(&mut self, device: &Device, queue: u64) {
        if device.pci {
            w(device.notify + queue * device.notify_step, 2, queue);
        } else {
            w(device.notify, 4, queue);
        }
    }

    /// A chain: a header of small numbers, data to read, room to write to. Returns its head.
    fn request(&mut self, device: &mut Device, queue: usize) -> u64 {
        let indirect = self.random.one_in(6);
        let outs = self.random.below(4);
        let ins = self.random.below(4).max(u64::from(outs == 0));
        let size = device.queues[queue].size;
        let count = (outs + ins).min(if indirect { 8 } else { size });
        let first = device.queues[queue].next;
        let table = Self::place(DESCRIPTORS, device.number, queue);
        if self.indirect + 0x100 > USED - INDIRECT - 0x1_0000 {
            self.indirect = 0;
        }
        let inner = INDIRECT + self.indirect;
        for i in 0..count {
            let write = i >= outs;
            let slot = if indirect { inner + 16 * i } else { table + 16 * ((first + i) % size) };
            let next = if i + 1 == count { 0 } else { 1 };
            let mut flags = next | if write { 2 } else { 0 };
            let mut follows = if indirect { i + 1 } else { (first + i + 1) % size };
            if self.random.one_in(200) {
                flags = self.random.value() & 0xffff;
            }
            if self.random.one_in(200) {
                follows = self.random.value();
            }
            let (at, len) = self.part(device.kind, i, write);
            self.describe(slot, at, len, flags, follows);
        }
        if !indirect {
            device.queues[queue].next = (first + count) % size;
            return first;
        }
        self.indirect += 0x80;
        let len = if self.random.one_in(50) { self.random.value() } else { 16 * count };
        self.describe(table + 16 * first, inner, len, 4, 0);
        device.queues[queue].next = (first + 1) % size;
        first
    }

    /// Address and length of the `i`th buffer; its content, if it is to be read.
    fn part(&mut self, kind: u64, i: u64, write: bool) -> (u64, u64) {
        if kind == BALLOON && !write && !self.wild {
            return (PAGES + self.random.below(0x1000), self.random.below(0x1000));
        }
        let at = self.buffer();
        let len = match self.random.below(40) {
            0 => self.random.value() & 0xffff_ffff,
            1..=4 => self.random.below(1 << 17),
            5..=8 => 1,
            9..=20 => 512 << self.random.below(4),
            _ if i == 0 => 16,
            _ => self.random.below(64),
        };
        if !write && (BUFFERS..RAM_END - 64).contains(&at) {
            for word in 0..8 {
                let value = self.random.value();
                w(at + 4 * word, 4, if self.random.one_in(4) { value } else { value & 15 });
            }
        }
        if kind == VSOCK && i == 0 && !write && (BUFFERS..RAM_END - 64).contains(&at) {
            return (at, self.packet(at));
        }
        if kind == FS && i == 0 && !write && (BUFFERS..RAM_END - 4096).contains(&at) {
            return (at, self.file_request(at));
        }
        (at, len)
    }

    /// A request to a shared directory, of a few nodes and handles; returns its length.
    fn file_request(&mut self, at: u64) -> u64 {
        // One in four begins a mount; nothing works before.
        let opcode = if self.random.one_in(4) { 26 } else { self.random.below(54) };
        let numbers = [0, opcode, 1, 0, self.random.below(8), 0, 0, 0, 0, 0];
        for (number, i) in numbers.into_iter().zip(0..) {
            w(at + 4 * i, 4, number);
        }
        w(at + 40, 4, if opcode == 26 { 7 } else { self.random.below(8) });
        w(at + 44, 4, if opcode == 26 { 38 } else { 0 });
        for i in 2..16 {
            let number = self.random.below(12);
            w(at + 40 + 4 * i, 4, number);
        }
        // A name, if what comes before it has this length.
        w(at + 40 + 4 * self.random.below(16), 4, 0x0065_6c69);
        40 + self.random.below(68)
    }

    /// A vsock packet, from the guest to a few ports of the host; returns its length.
    fn packet(&mut self, at: u64) -> u64 {
        let len = if self.random.one_in(2) { 0 } else { self.random.below(3000) };
        w(at, 8, 3);
        w(at + 8, 8, 2);
        w(at + 16, 4, self.random.below(6));
        w(at + 20, 4, self.random.below(4));
        w(at + 24, 4, len);
        w(at + 28, 2, 1);
        w(at + 30, 2, self.random.below(9));
        w(at + 32, 4, self.random.below(4));
        w(at + 36, 4, self.random.value());
        w(at + 40, 4, self.random.value());
        44 + len
    }

    fn describe(&self, slot: u64, at: u64, len: u64, flags: u64, next: u64) {
        w(slot, 8, at);
        w(slot + 8, 4, len);
        w(slot + 12, 2, flags);
        w(slot + 14, 2, next);
    }

    /// Changes rings behind the device's back.
    fn corrupt(&mut self, index: usize) {
        let device = self.devices[index];
        if device.count == 0 {
            return;
        }
        let queue = self.random.below(device.count as u64) as usize;
        let state = device.queues[queue];
        let value = self.random.value();
        // What a balloon reads from anywhere may name the pages of this code.
        let ways = if device.kind == BALLOON && !self.wild { 3 } else { 4 };
        match self.random.below(ways) {
            0 => w(Self::place(AVAILABLE, device.number, queue) + 2, 2, value),
            1 => w(Self::place(AVAILABLE, device.number, queue) + 4 + 2 * self.random.below(state.size), 2, value),
            2 => w(Self::place(USED, device.number, queue) + 2, 2, value),
            _ => {
                let slot = Self::place(DESCRIPTORS, device.number, queue) + 16 * self.random.below(state.size);
                let at = self.buffer();
                let (flags, next) = (self.random.below(8), self.random.value());
                self.describe(slot, at, value, flags, next);
            }
        }
        self.notify(&device, queue as u64);
    }

    /// Any write to any register, except for addresses of rings in RAM that devices must not write to.
    fn poke_registers(&mut self, index: usize) {
        let device = self.devices[index];
        let size = if device.pci { 0x2000 } else { 0x1000 };
        let offset = match self.random.below(3) {
            0 => self.random.below(size),
            1 if device.pci => 0x800 + self.random.below(0x80),
            _ => self.random.below(0x100),
        };
        let width = self.random.width();
        let value = self.random.value();
        if self.wild {
            return w(device.base + offset, width, value);
        }
        let end = offset + u64::from(width);
        let (first, last) = if device.pci { (32, 56) } else { (0x80, 0xb0) };
        if end > first && offset < last {
            let (register, high) = ((offset / 4 * 4).clamp(first, last - 4), offset & 4 != 0);
            // Aligned and beyond RAM, or where this region's things belong: a driver that confuses its queues.
            let any = self.random.value() | RAM_END;
            let region = if device.pci { (register - 32) / 8 } else { (register - 0x80) / 0x10 };
            let place = [DESCRIPTORS, AVAILABLE, USED][region.min(2) as usize];
            let known = Self::place(place, self.random.below(MAX_DEVICES as u64), 0);
            let safe = if high || self.random.one_in(2) { any } else { known };
            w(device.base + register, 4, safe);
        } else if device.pci && end > 0x800 && offset < 0xc00 {
            w(device.base + (offset & !3), 4, value & !0x700);
        } else {
            w(device.base + offset, width, value);
        }
    }

    fn poke_config(&mut self, index: usize) {
        let device = self.devices[index];
        if device.config != 0 {
            let (offset, width) = (self.random.below(64), self.random.width());
            w(device.config + offset, width, self.random.value());
            r(device.config + offset, width);
        }
    }

    /// Configuration space: anything; then mostly back to what works.
    fn poke_space(&mut self, index: usize) {
        let device = self.devices[index];
        let width = self.random.width();
        let value = self.random.value();
        let most = if self.random.one_in(4) { 4096 } else { 256 };
        let offset = self.random.below(most) & !(u64::from(width) - 1);
        let access = device.access..device.access + 20;
        let touches = offset + u64::from(width) > access.start && offset < access.end;
        if touches && !self.wild {
            // Registers that are no addresses of rings and no messages.
            let safe = [0, 4, 8, 12, 16, 18, 20, 22, 24, 0x100, 0x104, 0x1000, 0x1004, 0x1800, 0x1ffc];
            let register = safe[self.random.below(safe.len() as u64) as usize];
            w(device.space + access.start + 12, 4, 1 << self.random.below(2));
            w(device.space + access.start + 8, 4, register);
            w(device.space + access.start + 16, 4, value);
        } else {
            w(device.space + offset, width, value);
            r(device.space + offset, width);
        }
        if !self.random.one_in(8) {
            w(device.space + 0x10, 4, device.bar);
            w(device.space + 4, 2, 6);
        }
    }

    fn look(&mut self, index: usize) {
        let device = self.devices[index];
        let width = self.random.width();
        r(device.base + self.random.below(if device.pci { 0x2000 } else { 0x1000 }), width);
    }

    fn ioapic(&mut self) {
        let value = self.random.value();
        if self.wild {
            return w(IOAPIC + self.random.below(0x100), self.random.width(), value);
        }
        let select = if self.random.one_in(4) { self.random.next() } else { 0x10 + self.random.below(64) };
        w(IOAPIC, 4, select & 0xff);
        // Delivery mode: fixed.
        w(IOAPIC + 0x10, 4, value & !0x700);
        let (offset, width) = (self.random.below(0x1000), self.random.width());
        r(IOAPIC + offset, width);
    }

    fn port(&mut self) {
        const KNOWN: [u16; 15] =
            [0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x2f8, 0x2f9, 0x2fc, 0x70, 0x71, 0x61, 0xcf8, 0xcfc, 0x505];
        let port = match self.random.below(4) {
            0 => self.random.next() as u16,
            _ => KNOWN[self.random.below(KNOWN.len() as u64) as usize],
        };
        let width = 1 << self.random.below(3);
        let mut value = self.random.value() as u32;
        match port {
            0x64 | 0xf0..=0xf7 | 0x5fd..=0x603 => return,
            // Events of pvpanic.
            0x505 => value &= !7,
            _ => {}
        }
        if self.random.one_in(3) { input(port, width) } else { out(port, width, value) }
    }

    /// Where there may be nothing at all; not the local APIC.
    fn elsewhere(&mut self) {
        let at = match self.random.below(3) {
            0 => MMIO_FIRST + 32 * 0x1000 + self.random.below(0x20_0000),
            1 => 0xf000_0000 + self.random.below(0x0ec0_0000),
            _ => ECAM + 0x1000 + self.random.below(7) * 0x1000 + self.random.below(4096),
        };
        let width = self.random.width();
        if self.random.one_in(2) {
            w(at, width, self.random.value());
        } else {
            r(at, width);
        }
    }
}

/// The compiler may call these.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    (0..len).for_each(|i| unsafe { write_volatile(to.add(i), byte as u8) });
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    (0..len).for_each(|i| unsafe { write_volatile(to.add(i), read_volatile(from.add(i))) });
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    (0..len).map(|i| unsafe { i32::from(*a.add(i)) - i32::from(*b.add(i)) }).find(|d| *d != 0).unwrap_or(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (from as usize) < to as usize {
        (0..len).rev().for_each(|i| unsafe { write_volatile(to.add(i), read_volatile(from.add(i))) });
    } else {
        (0..len).for_each(|i| unsafe { write_volatile(to.add(i), read_volatile(from.add(i))) });
    }
    to
}

/// The core library was compiled for unwinding.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

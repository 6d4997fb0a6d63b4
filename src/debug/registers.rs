//! The registers that gdb sees of a CPU, in one list: their names and sizes are the target description, their values the
//! register packets (GDB manual, appendixes E and G).

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;

use gdbstub::arch::{Arch, RegId, Registers};

use crate::arch::x86_64::state::CpuState;

/// MSR of the other GS base.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// XSAVE area (SDM volume 1, 13.4): which components it holds, and what x87 and SSE are in it.
const XSTATE_BV: usize = 512;
const XSAVE: usize = 576;
const X87: u8 = 1;
const SSE: u8 = 2;
/// Where they are; x87 and SSE registers take 16 bytes each.
const ST: usize = 32;
const XMM: usize = 160;
const FCW_INIT: [u8; 2] = 0x37f_u16.to_le_bytes();
const MXCSR: Range<usize> = 24..28;
const MXCSR_INIT: [u8; 4] = 0x1f80_u32.to_le_bytes();

/// Features of the target description.
const CORE: &str = "org.gnu.gdb.i386.core";
const VECTORS: &str = "org.gnu.gdb.i386.sse";
const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
const SYSTEM: &str = "org.belljar.system";

/// Types that gdb does not know by itself.
const TYPES: &[(&str, &str)] = &[
    (
        CORE,
        r#"<flags id="i386_eflags" size="4"><field name="CF" start="0" end="0"/><field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/><field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/><field name="AC" start="18" end="18"/></flags>"#,
    ),
    (
        VECTORS,
        r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/><vector id="v2i64" type="int64" count="2"/><union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>"#,
    ),
];

/// Where a register's value is in a [`CpuState`].
enum Place {
    Quad(fn(&mut CpuState) -> &mut u64),
    /// A visible selector.
    Selector(fn(&mut CpuState) -> &mut u16),
    /// In the XSAVE area, as it is there.
    Xsave(Range<usize>),
    /// An MSR.
    Msr(u32),
}

/// A register as gdb knows it.
struct Register {
    name: String,
    bytes: usize,
    kind: &'static str,
    feature: &'static str,
    place: Place,
    /// Where it is among all of them in a packet.
    at: usize,
}

/// All registers, in gdb's order.
fn registers() -> &'static [Register] {
    static ALL: OnceLock<Vec<Register>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut at = 0;
        let mut all: Vec<_> = general().into_iter().chain(floating_point()).chain(system()).collect();
        for register in &mut all {
            register.at = at;
            at += register.bytes;
        }
        all
    })
}

fn register(feature: &'static str, name: &str, bytes: usize, kind: &'static str, place: Place) -> Register {
    Register { name: name.into(), bytes, kind, feature, place, at: 0 }
}

/// Where a register is in the state.
type Of<T> = fn(&mut CpuState) -> &mut T;

fn general() -> Vec<Register> {
    let quads: [(_, _, Of<u64>); 17] = [
        ("rax", "int64", |s| &mut s.regs.rax),
        ("rbx", "int64", |s| &mut s.regs.rbx),
        ("rcx", "int64", |s| &mut s.regs.rcx),
        ("rdx", "int64", |s| &mut s.regs.rdx),
        ("rsi", "int64", |s| &mut s.regs.rsi),
        ("rdi", "int64", |s| &mut s.regs.rdi),
        ("rbp", "data_ptr", |s| &mut s.regs.rbp),
        ("rsp", "data_ptr", |s| &mut s.regs.rsp),
        ("r8", "int64", |s| &mut s.regs.r8),
        ("r9", "int64", |s| &mut s.regs.r9),
        ("r10", "int64", |s| &mut s.regs.r10),
        ("r11", "int64", |s| &mut s.regs.r11),
        ("r12", "int64", |s| &mut s.regs.r12),
        ("r13", "int64", |s| &mut s.regs.r13),
        ("r14", "int64", |s| &mut s.regs.r14),
        ("r15", "int64", |s| &mut s.regs.r15),
        ("rip", "code_ptr", |s| &mut s.regs.rip),
    ];
    let selectors: [(_, Of<u16>); 6] = [
        ("cs", |s| &mut s.system.cs.selector),
        ("ss", |s| &mut s.system.ss.selector),
        ("ds", |s| &mut s.system.ds.selector),
        ("es", |s| &mut s.system.es.selector),
        ("fs", |s| &mut s.system.fs.selector),
        ("gs", |s| &mut s.system.gs.selector),
    ];
    let quads = quads.map(|(name, kind, place)| register(CORE, name, 8, kind, Place::Quad(place)));
    let flags = register(CORE, "eflags", 4, "i386_eflags", Place::Quad(|s| &mut s.regs.rflags));
    let selectors = selectors.map(|(name, place)| register(CORE, name, 4, "int32", Place::Selector(place)));
    quads.into_iter().chain([flags]).chain(selectors).collect()
}

fn floating_point() -> Vec<Register> {
    let stack = (0..8).map(|n| {
        let at = ST + 16 * n;
        register(CORE, &format!("st{n}"), 10, "i387_ext", Place::Xsave(at..at + 10))
    });
    // The tag word is the abridged one.
    let control = [
        ("fctrl", 0..2),
        ("fstat", 2..4),
        ("ftag", 4..5),
        ("fiseg", 12..14),
        ("fioff", 8..12),
        ("foseg", 20..22),
        ("fooff", 16..20),
        ("fop", 6..8),
    ];
    let control = control.map(|(name, at)| register(CORE, name, 4, "int", Place::Xsave(at)));
    let vectors = (0..16).map(|n| {
        let at = XMM + 16 * n;
        register(VECTORS, &format!("xmm{n}"), 16, "vec128", Place::Xsave(at..at + 16))
    });
    let mxcsr = register(VECTORS, "mxcsr", 4, "int", Place::Xsave(MXCSR));
    stack.chain(control).chain(vectors).chain([mxcsr]).collect()
}

fn system() -> Vec<Register> {
    let quads: [(_, _, Place); 9] = [
        (SEGMENTS, "fs_base", Place::Quad(|s| &mut s.system.fs.base)),
        (SEGMENTS, "gs_base", Place::Quad(|s| &mut s.system.gs.base)),
        (SYSTEM, "k_gs_base", Place::Msr(KERNEL_GS_BASE)),
        (SYSTEM, "cr0", Place::Quad(|s| &mut s.system.cr0)),
        (SYSTEM, "cr2", Place::Quad(|s| &mut s.system.cr2)),
        (SYSTEM, "cr3", Place::Quad(|s| &mut s.system.cr3)),
        (SYSTEM, "cr4", Place::Quad(|s| &mut s.system.cr4)),
        (SYSTEM, "cr8", Place::Quad(|s| &mut s.system.cr8)),
        (SYSTEM, "efer", Place::Quad(|s| &mut s.system.efer)),
    ];
    quads.into_iter().map(|(feature, name, place)| register(feature, name, 8, "int64", place)).collect()
}

impl Place {
    fn get(&self, state: &mut CpuState) -> Vec<u8> {
        match self {
            Self::Quad(place) => place(state).to_le_bytes().to_vec(),
            Self::Selector(place) => place(state).to_le_bytes().to_vec(),
            Self::Xsave(at) => state.xsave.get(at.clone()).unwrap_or_default().to_vec(),
            Self::Msr(index) => {
                let found = state.msrs.iter().find(|(found, _)| found == index);
                found.map_or(0, |(_, value)| *value).to_le_bytes().to_vec()
            }
        }
    }

    fn set(&self, state: &mut CpuState, from: &[u8]) {
        let number = from.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        match self {
            Self::Quad(place) => *place(state) = number,
            Self::Selector(place) => *place(state) = number as u16,
            Self::Xsave(at) => {
                let area = state.xsave.get_mut(at.clone()).into_iter().flatten();
                area.zip(from).for_each(|(to, from)| *to = *from);
            }
            Self::Msr(index) => {
                let found = state.msrs.iter_mut().find(|(found, _)| found == index);
                found.into_iter().for_each(|(_, value)| *value = number);
            }
        }
    }
}

/// Makes the XSAVE area one that holds x87 and SSE registers, whatever is in their reset state and missing.
fn complete_xsave(area: &mut Vec<u8>) {
    area.resize(area.len().max(XSAVE), 0);
    let held = area.get(XSTATE_BV).copied().unwrap_or(0);
    let mut put = |at: usize, bytes: &[u8]| area.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    if held & X87 == 0 {
        put(0, &[0; MXCSR.start]);
        put(0, &FCW_INIT);
        put(ST, &[0; XMM - ST]);
    }
    if held & SSE == 0 {
        put(XMM, &[0; 256]);
    }
    put(XSTATE_BV, &[held | X87 | SSE]);
    if area.get(MXCSR).is_some_and(|mxcsr| mxcsr == [0; 4]) && held & SSE == 0 {
        area.iter_mut().skip(MXCSR.start).zip(MXCSR_INIT).for_each(|(to, from)| *to = from);
    }
}

/// All registers of a CPU as in gdb's packets.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Image(Vec<u8>);

impl Image {
    /// Those of a CPU in this state.
    pub(super) fn of(state: &CpuState) -> Self {
        let mut state = state.clone();
        complete_xsave(&mut state.xsave);
        let values = registers().iter().flat_map(|register| {
            let mut value = register.place.get(&mut state);
            value.resize(register.bytes, 0);
            value
        });
        Self(values.collect())
    }

    /// Those of a CPU in this state, with the changes that this image has against it.
    pub(super) fn apply(&self, state: &mut CpuState) {
        let before = Self::of(state);
        for register in registers() {
            let range = register.at..register.at + register.bytes;
            if let (Some(new), Some(old)) = (self.0.get(range.clone()), before.0.get(range))
                && new != old
            {
                complete_xsave(&mut state.xsave);
                register.place.set(state, new);
            }
        }
    }

    /// The bytes of one register.
    pub(super) fn register(&self, number: Number) -> Option<&[u8]> {
        let register = registers().get(number.0)?;
        self.0.get(register.at..register.at + register.bytes)
    }

    /// The same, to be changed.
    pub(super) fn register_mut(&mut self, number: Number) -> Option<&mut [u8]> {
        let register = registers().get(number.0)?;
        self.0.get_mut(register.at..register.at + register.bytes)
    }
}

impl Registers for Image {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let rip = registers().iter().find(|register| register.name == "rip");
        let bytes = rip.and_then(|rip| self.0.get(rip.at..)?.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().copied().map(Some).for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let len = registers().iter().map(|register| register.bytes).sum();
        self.0 = bytes.get(..len).ok_or(())?.to_vec();
        Ok(())
    }
}

/// A register's number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number(usize);

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        registers().get(id).map(|register| (Self(id), NonZeroUsize::new(register.bytes)))
    }
}

/// An x86-64 CPU as gdb sees it.
#[derive(Debug)]
pub(super) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Image;
    type BreakpointKind = usize;
    type RegId = Number;

    fn target_description_xml() -> Option<&'static str> {
        static XML: OnceLock<String> = OnceLock::new();
        Some(XML.get_or_init(description))
    }
}

fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
         <architecture>i386:x86-64</architecture>",
    );
    for feature in registers().chunk_by(|a, b| a.feature == b.feature) {
        let Some(name) = feature.first().map(|register| register.feature) else { continue };
        let _ = write!(xml, "<feature name=\"{name}\">");
        TYPES.iter().filter(|(of, _)| *of == name).for_each(|(_, types)| xml.push_str(types));
        for Register { name, bytes, kind, .. } in feature {
            let _ = write!(xml, "<reg name=\"{name}\" bitsize=\"{}\" type=\"{kind}\"/>", bytes * 8);
        }
        xml.push_str("</feature>");
    }
    xml + "</target>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_round_trip() {
        let mut state = CpuState::default();
        (state.regs.rip, state.regs.rflags, state.system.cr3) = (0x1234, 0x246, 0x5000);
        (state.system.gs.selector, state.system.gs.base) = (0x18, 0xffff_8000_0000_0000);
        state.msrs = vec![(0x10, 5), (KERNEL_GS_BASE, 7)];
        let image = Image::of(&state);
        assert_eq!((image.pc(), image.0.len()), (0x1234, 0x218 + 9 * 8));
        let mut bytes = Vec::new();
        image.gdb_serialize(|byte| bytes.extend(byte));
        let mut same = Image::default();
        same.gdb_deserialize(&bytes).unwrap();
        assert_eq!(same, image);
        assert!(same.gdb_deserialize(&bytes[1..]).is_err());
        let unchanged = state.clone();
        same.apply(&mut state);
        assert_eq!(state, unchanged);
        let find = |name| Number(registers().iter().position(|register| register.name == name).unwrap());
        let mut changed = image.clone();
        changed.register_mut(find("k_gs_base")).unwrap().fill(1);
        changed.register_mut(find("xmm3")).unwrap().fill(2);
        changed.register_mut(find("gs")).unwrap()[..2].fill(3);
        changed.apply(&mut state);
        assert_eq!(state.msrs, [(0x10, 5), (KERNEL_GS_BASE, 0x0101_0101_0101_0101)]);
        assert_eq!((state.system.gs.selector, state.system.gs.base), (0x303, 0xffff_8000_0000_0000));
        assert_eq!((&state.xsave[XMM + 48..XMM + 64], state.xsave[XSTATE_BV]), (&[2; 16][..], 3));
        assert_eq!((&state.xsave[..2], &state.xsave[MXCSR]), (&FCW_INIT[..], &MXCSR_INIT[..]));
        // A selector has 16 bits, whatever gdb says.
        changed.register_mut(find("gs")).unwrap()[2..].fill(0);
        assert_eq!(Image::of(&state), changed);
    }

    #[test]
    fn the_description_names_each_register_once() {
        let xml = X86::target_description_xml().unwrap();
        assert_eq!(xml.matches("<reg ").count(), registers().len());
        assert_eq!(xml.matches("<feature ").count(), 4);
        assert!(xml.contains(r#"<reg name="rip" bitsize="64" type="code_ptr"/>"#));
        assert!(Number::from_raw_id(registers().len()).is_none());
    }
}

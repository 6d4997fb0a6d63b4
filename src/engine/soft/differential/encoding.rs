//! Encodings, tried out one by one: every opcode of every map with every prefix that selects among instructions, classified
//! by decoding (SDM volume 2, chapter 2 and appendix A). For each instruction that the decoder knows, one template for the
//! form with registers and one for the form with memory. Instances come from templates by filling in what is left open.

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};

use super::random::Random;

/// Opcode map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    One,
    F,
    F38,
    F3a,
    Vex(u8),
}

/// The ModRM byte of gathers: an index register follows.
const VSIB: u8 = 4;

/// What selects an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    pub code: Code,
    pub memory: bool,
    pub map: Map,
    /// 66, F3, F2 or none.
    pub prefix: Option<u8>,
    pub w: bool,
    pub l: bool,
    /// With the 67 prefix.
    pub address32: bool,
    /// With the 66 prefix beside F2 or F3.
    pub word: bool,
    pub opcode: u8,
    pub modrm: Option<u8>,
}

/// One instruction as bytes, and where operands that are addresses stand in it.
#[derive(Debug, Clone, Copy)]
pub struct Instance {
    pub bytes: [u8; 15],
    pub instruction: Instruction,
    /// Offset of a 32-bit displacement that can be set freely.
    pub disp32: Option<usize>,
}

/// Decodes in 64-bit mode or as 32-bit code, at address `at`.
pub fn decode(bits: u32, bytes: &[u8], at: u64) -> Instruction {
    Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE).decode()
}

/// Opcodes of the first two maps that have no ModRM byte.
fn has_modrm(map: Map, opcode: u8) -> bool {
    match map {
        Map::One => match opcode {
            0x00..=0x3f => opcode & 7 < 4,
            0x40..=0x61 | 0x64..=0x68 | 0x6a | 0x6c..=0x7f | 0x90..=0xbf | 0xc2 | 0xc3 | 0xc8..=0xcf => false,
            0xd4..=0xd7 | 0xe0..=0xef | 0xf0..=0xf5 | 0xf8..=0xfd => false,
            _ => true,
        },
        Map::F => !matches!(
            opcode,
            0x05..=0x0c | 0x0e | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf
        ),
        Map::Vex(1) => opcode != 0x77,
        Map::F38 | Map::F3a | Map::Vex(_) => true,
    }
}

/// Prefixes and escapes, which never start an instruction's own opcode.
fn is_opcode(bits: u32, map: Map, opcode: u8) -> bool {
    match (map, opcode) {
        (Map::One, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) => false,
        (Map::One, 0x40..=0x4f | 0x62 | 0xc4 | 0xc5) => bits != 64,
        (Map::F, 0x38 | 0x3a) => false,
        _ => true,
    }
}

impl Template {
    fn bytes(&self) -> Vec<u8> {
        // Gathers want three different registers.
        let vsib = self.modrm == Some(VSIB);
        let (vvvv, modrm): (u8, &[u8]) = if vsib { (1, &[VSIB, 0x11]) } else { (0, &[]) };
        self.assemble(&[], 0, vvvv, modrm, &[0; 10]).0
    }

    /// The bytes, with more prefixes, REX.RXB, VEX.vvvv, ModRM byte with what follows it, and the rest; and where the latter two start.
    fn assemble(&self, prefixes: &[u8], rxb: u8, vvvv: u8, modrm: &[u8], rest: &[u8]) -> (Vec<u8>, usize) {
        let mut bytes = prefixes.to_vec();
        if self.address32 {
            bytes.push(0x67);
        }
        if self.word {
            bytes.push(0x66);
        }
        match self.map {
            Map::Vex(map) => {
                let pp = match self.prefix {
                    None => 0,
                    Some(0x66) => 1,
                    Some(0xf3) => 2,
                    Some(_) => 3,
                };
                let last = (!vvvv & 15) << 3 | u8::from(self.l) << 2 | pp;
                // The short form, where it can say the same, is as good as the long one.
                if map == 1 && !self.w && rxb & 3 == 0 && !vvvv.is_multiple_of(3) {
                    bytes.extend([0xc5, (!rxb & 4) << 5 | last]);
                } else {
                    bytes.extend([0xc4, (!rxb & 7) << 5 | map, u8::from(self.w) << 7 | last]);
                }
            }
            map => {
                bytes.extend(self.prefix);
                if self.w || rxb != 0 {
                    bytes.push(0x40 | u8::from(self.w) << 3 | rxb);
                }
                match map {
                    Map::F => bytes.push(0x0f),
                    Map::F38 => bytes.extend([0x0f, 0x38]),
                    Map::F3a => bytes.extend([0x0f, 0x3a]),
                    _ => (),
                }
            }
        }
        bytes.push(self.opcode);
        let at = bytes.len();
        if modrm.is_empty() {
            bytes.extend(self.modrm);
        } else {
            bytes.extend(modrm);
        }
        bytes.extend(rest);
        bytes.truncate(15);
        (bytes, at)
    }

    /// The bytes without anything that is not needed, and what they are.
    pub fn plain(&self, bits: u32) -> Instance {
        let bytes = fill(&self.bytes());
        Instance { bytes, instruction: decode(bits, &bytes, super::case::CODE), disp32: None }
    }

    /// Prefixes that leave the instruction what it is, or make it invalid: then it is tried again without.
    fn prefixes(&self, random: &mut Random) -> Vec<u8> {
        let string = self.map == Map::One && matches!(self.opcode, 0xa4..=0xa7 | 0xaa..=0xaf);
        let mut prefixes = Vec::new();
        if string && !random.one_in(3) {
            prefixes.push(random.pick(&[0xf3, 0xf2]));
        }
        match random.below(16) {
            0 => prefixes.push(0x64),
            1 => prefixes.push(0x65),
            2 => prefixes.push(0x67),
            3 if self.memory => prefixes.push(0xf0),
            4 => prefixes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3])),
            5 => prefixes.extend([random.pick(&[0x64, 0x65, 0x2e]), random.pick(&[0x67, 0x3e, 0x64, 0x65])]),
            _ => (),
        }
        prefixes
    }

    /// A random instance at address `at`. Registers, addressing form and immediates are random.
    pub fn instance(&self, bits: u32, random: &mut Random, at: u64) -> Instance {
        for attempt in 0..24 {
            // Fields that turn out to be part of the opcode are left as they are.
            let fixed = attempt / 8;
            let rxb = if bits == 64 && attempt % 4 != 3 { random.below(8) as u8 } else { 0 };
            let vvvv = if attempt % 8 < 5 { random.below(if bits == 64 { 16 } else { 8 }) as u8 } else { 0 };
            let (modrm, disp) = match self.modrm {
                Some(modrm) if fixed < 2 || self.memory => operands(random, modrm, self.memory, fixed == 0),
                _ => (Vec::new(), None),
            };
            let mut rest = [0; 8];
            let immediate = random.integer();
            rest.copy_from_slice(&immediate.to_le_bytes());
            let prefixes = if attempt < 12 { self.prefixes(random) } else { Vec::new() };
            let (bytes, modrm_at) = self.assemble(&prefixes, rxb, vvvv, &modrm, &rest);
            let bytes = fill(&bytes);
            let instruction = decode(bits, &bytes, at);
            if instruction.code() == self.code && has_memory(&instruction) == self.memory {
                let whole = |at: &usize| at + 4 <= instruction.len();
                return Instance { bytes, instruction, disp32: disp.map(|disp| modrm_at + disp).filter(whole) };
            }
        }
        self.plain(bits)
    }
}

fn fill(bytes: &[u8]) -> [u8; 15] {
    let mut all = [super::case::FILLER; 15];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    all
}

/// A ModRM byte and what belongs to it, and where in it a displacement is that nothing is added to.
fn operands(random: &mut Random, modrm: u8, memory: bool, any_reg: bool) -> (Vec<u8>, Option<usize>) {
    let reg = if any_reg { (random.below(8) as u8) << 3 } else { modrm & 0x38 };
    if !memory {
        return (vec![0xc0 | reg | random.below(8) as u8], None);
    }
    let small = (random.below(256) as u32).wrapping_sub(128);
    let disp = if random.one_in(4) { random.u64() as u32 } else { small };
    let (mode, rm) = match random.below(16) {
        0 => (0, 5),
        1..=5 => (random.below(3) as u8, 4),
        _ => (random.below(3) as u8, random.below(8) as u8),
    };
    // One in sixteen is an address by itself, by way of a SIB byte.
    let alone = random.one_in(16);
    let (mode, rm) = if alone { (0, 4) } else { (mode, rm) };
    let sib = if alone { 0x25 } else { random.u64() as u8 };
    let mut bytes = vec![mode << 6 | reg | rm];
    if rm == 4 {
        bytes.push(sib);
    }
    let absolute = mode == 0 && (rm == 5 || rm == 4 && sib & 7 == 5);
    let at = bytes.len();
    match mode {
        1 => bytes.push(disp as u8),
        0 if !absolute => (),
        _ => bytes.extend(disp.to_le_bytes()),
    }
    (bytes, absolute.then_some(at))
}

/// Whether an operand is in memory by way of a ModRM byte.
pub fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// All templates for code of `bits` bits: one for each instruction and kind of operand.
pub fn templates(bits: u32) -> Vec<Template> {
    let mut found = HashMap::new();
    let mut list = Vec::new();
    let mut consider = |mut template: Template| {
        let bytes = fill(&template.bytes());
        let instruction = decode(bits, &bytes, super::case::CODE);
        if instruction.is_invalid() {
            return;
        }
        template.code = instruction.code();
        template.memory = has_memory(&instruction);
        found.entry((template.code, template.memory)).or_insert_with(|| list.push(template));
    };
    let legacy = [Map::One, Map::F, Map::F38, Map::F3a];
    let maps = legacy.into_iter().chain((1..=3).map(Map::Vex));
    for (map, opcode) in maps.flat_map(|map| (0..=255).map(move |opcode| (map, opcode))) {
        let vex = matches!(map, Map::Vex(_));
        if !is_opcode(bits, map, opcode) {
            continue;
        }
        for prefix in [None, Some(0x66), Some(0xf3), Some(0xf2)] {
            for choice in 0..16 {
                let [w, l, address32, word] = [1, 2, 4, 8].map(|bit| choice & bit != 0);
                let twice = word && (vex || map == Map::One || !matches!(prefix, Some(0xf2 | 0xf3)));
                if twice || (l && !vex) || (w && bits != 64 && !vex) || (address32 && (vex || bits != 64)) {
                    continue;
                }
                let code = Code::INVALID;
                let one = |modrm| Template { code, memory: false, map, prefix, w, l, address32, word, opcode, modrm };
                if !has_modrm(map, opcode) {
                    consider(one(None));
                    continue;
                }
                if address32 && !matches!((map, opcode), (Map::F, 0x01 | 0xc7)) {
                    continue;
                }
                let every = !vex && map != Map::F38 && map != Map::F3a;
                for modrm in 0..=255u8 {
                    let wanted = match modrm >> 6 {
                        0 => modrm & 7 == 0,
                        3 => every || modrm & 7 == 1,
                        _ => false,
                    };
                    if wanted {
                        consider(one(Some(modrm)));
                    }
                }
                if map == Map::Vex(2) {
                    consider(one(Some(VSIB)));
                }
            }
        }
    }
    list
}

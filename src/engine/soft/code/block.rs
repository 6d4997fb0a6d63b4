//! Blocks of operations, and the cache in which they are found again.
//!
//! A block lies within one page of RAM and is known by its place there, not by a linear address, so that it outlives
//! every change of translations. Blocks go when their bytes do: a write to a page with code takes the slow way and ends
//! up in [`Cpu::forget_code`]. Devices write to RAM without telling; their writes are noticed when a page is next looked
//! up for execution, because it is compared with the copy that its blocks were made from. An operating system cannot
//! execute what a device read into a page before it changed some translation.

// UNSAFETY: blocks refer to each other by pointers.
#![expect(unsafe_code)]

use std::cell::Cell;

use rustc_hash::FxHashMap;

use super::decode::Target;
use super::op::Op;
use crate::engine::Exit;
use crate::engine::soft::attention::CodeNews;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Break;
use crate::engine::soft::memory::host;
use crate::engine::soft::memory::tlb::CodeEntry;
use crate::engine::soft::memory::walk::Access;

pub(in crate::engine::soft) const PAGE: usize = 4096;
/// Bytes of which a write is noticed as one.
const PIECE: usize = PAGE / u64::BITS as usize;
/// Entries of the cache by linear address, a power of two. With 4096, a kernel and a program at work on many small files
/// missed it once in a hundred instructions.
const JUMPS: usize = 1 << 15;
/// Bytes of decoded code that one CPU keeps; Debian with systemd needs about half.
const MOST: usize = 192 << 20;
/// Writes beside the blocks of a page after which it is no longer taken for one with code: most likely it got another use.
const STRANGERS: u32 = 64;
/// Longest instruction (SDM volume 2, 2.3.11).
pub(in crate::engine::soft) const LONGEST: usize = 15;

/// A run of instructions that is entered only at its start.
#[derive(Debug)]
pub(in crate::engine::soft) struct Block {
    /// The instructions; never empty.
    pub(in crate::engine::soft) ops: Box<[Op]>,
    /// Blocks of the same page that follow when the last operation falls through, or jumps to its fixed target.
    pub(in crate::engine::soft) links: [Cell<*const Block>; 2],
    /// The last operation may change modes, interrupts or translations: the run loop looks at everything afterwards.
    pub(in crate::engine::soft) system: bool,
    /// The last operation jumps to a fixed target within the page.
    pub(in crate::engine::soft) direct: bool,
    /// The instruction after the last operation is in the same page.
    pub(in crate::engine::soft) falls: bool,
    /// Its place in RAM and the size of its code, as the cache knows it.
    pub(in crate::engine::soft) key: u64,
}

impl Block {
    /// Bytes that it takes, roughly.
    fn size(&self) -> usize {
        size_of::<Self>() + self.ops.len() * size_of::<Op>() + 32
    }
}

/// A page with decoded code.
#[derive(Debug)]
struct CodePage {
    /// Its content when its blocks were made.
    copy: Box<[u8; PAGE]>,
    /// Its blocks.
    keys: Vec<u64>,
    /// 64-byte pieces that blocks were made from.
    pieces: u64,
    /// Writes to other pieces.
    strangers: u32,
}

impl CodePage {
    /// Whether the pieces that blocks were made from still are what they were; the page is at `host`.
    fn is_current(&self, host: u64) -> bool {
        self.copy.chunks_exact(PIECE).enumerate().all(|(piece, bytes)| {
            let at = host + (piece * PIECE) as u64;
            let same = |(offset, word): (u64, &[u8])| {
                // SAFETY: within the page of RAM at `host`.
                unsafe { host::load::<u64>(at + offset * 8) }.to_le_bytes() == *word
            };
            self.pieces >> piece & 1 == 0 || (0..).zip(bytes.chunks_exact(8)).all(same)
        })
    }

    /// Blocks may be made from bytes that no block was made from before: the copy must be what the page holds.
    fn refresh(&mut self, host: u64) {
        // SAFETY: a whole page of RAM into a page of our own.
        unsafe { host::copy_out(host, self.copy.as_mut_ptr(), PAGE) };
    }
}

#[derive(Debug, Clone, Copy)]
struct Jump {
    at: u64,
    tag: u64,
    block: *const Block,
}

/// An instruction that lies on two pages, with the bytes it was decoded from.
#[derive(Debug)]
struct Crossing {
    bytes: [u8; LONGEST],
    block: Box<Block>,
}

/// All decoded code of one CPU.
#[derive(Debug)]
pub(in crate::engine::soft) struct CodeCache {
    blocks: FxHashMap<u64, Box<Block>>,
    pages: FxHashMap<u32, CodePage>,
    crossings: FxHashMap<u64, Crossing>,
    jumps: Box<[Jump]>,
    /// Blocks that were forgotten while one of them may be executed.
    #[allow(clippy::vec_box, reason = "whoever executes one must not see it move")]
    graveyard: Vec<Box<Block>>,
    /// Bytes that all of it takes, roughly.
    size: usize,
}

// SAFETY: the pointers lead to blocks that the cache itself owns, and only its owner uses them.
unsafe impl Send for CodeCache {}

impl Default for CodeCache {
    fn default() -> Self {
        let none = Jump { at: 0, tag: u64::MAX, block: std::ptr::null() };
        Self {
            blocks: FxHashMap::default(),
            pages: FxHashMap::default(),
            crossings: FxHashMap::default(),
            jumps: vec![none; JUMPS].into_boxed_slice(),
            graveyard: Vec::new(),
            size: 0,
        }
    }
}

impl Cpu {
    /// The block at `self.rip`. It stays valid until the next call of this or of [`Cpu::bury`].
    pub(in crate::engine::soft) fn find_block(&mut self) -> Result<*const Block, Break> {
        let (at, tag) = (self.rip, self.jump_tag());
        if let Some(block) = self.known_block(at, tag) {
            return Ok(block);
        }
        if self.code.size > MOST {
            self.forget_everything();
        }
        let linear = self.code_address(at)?;
        let entry = self.code_page(linear)?;
        let offset = linear as usize % PAGE;
        let key = u64::from(entry.page) << 14 | (offset as u64) << 2 | self.code_size as u64;
        if let Some(block) = self.code.blocks.get(&key) {
            let block: *const Block = &raw const **block;
            self.remember_jump(at, tag, block);
            return Ok(block);
        }
        self.watch_page(entry.page, entry.host);
        let target = Target { ip: at, size: self.code_size, features: self.features, thunks: &self.thunks };
        let Some(page) = self.code.pages.get_mut(&entry.page) else { return Err(self.gp(0)) };
        page.refresh(entry.host as u64);
        let Some(bytes) = page.copy.get(offset..) else { return Err(self.gp(0)) };
        let Some((mut block, len)) = super::decode::block(bytes, &target) else {
            return self.crossing(linear, key, entry);
        };
        block.key = key;
        let (first, last) = (offset / 64, (offset + len.max(1) - 1) / 64);
        page.pieces |= (u64::MAX >> (63 - (last - first))) << first;
        page.keys.push(key);
        self.code.size += block.size();
        let block = Box::new(block);
        let pointer: *const Block = &raw const *block;
        self.code.blocks.insert(key, block);
        self.remember_jump(at, tag, pointer);
        Ok(pointer)
    }

    /// What the translation of a linear code address depends on.
    #[inline(always)]
    pub(in crate::engine::soft) fn jump_tag(&self) -> u64 {
        self.tlb.epoch << 3 | u64::from(self.cpl == 3) << 2 | self.code_size as u64
    }

    /// The block at linear `at` if it was looked up under the same circumstances.
    #[inline(always)]
    pub(in crate::engine::soft) fn known_block(&self, at: u64, tag: u64) -> Option<*const Block> {
        let jump = self.code.jumps.get(jump_index(at))?;
        (jump.at == at && jump.tag == tag).then_some(jump.block)
    }

    fn remember_jump(&mut self, at: u64, tag: u64, block: *const Block) {
        if let Some(jump) = self.code.jumps.get_mut(jump_index(at)) {
            *jump = Jump { at, tag, block };
        }
    }

    /// The page of linear `at`, checked against the copy that its blocks were made from.
    fn code_page(&mut self, at: u64) -> Result<CodeEntry, Break> {
        if let Some(entry) = self.tlb.code(at) {
            return Ok(entry);
        }
        let mapping = self.translate(at, Access::Fetch)?;
        let Some(page) = self.shared.physical.page(mapping.physical) else {
            let report = self.crash_report(&format!("code outside of RAM, at guest-physical {:#x}", mapping.physical));
            return Err(self.leave(Exit::Crashed(report)));
        };
        if mapping.size > PAGE as u64 {
            self.tlb.used_large(at, mapping.size);
        }
        self.watch_page(page.index, page.host);
        self.tlb.fill_code(at, page.index, page.host, mapping.global);
        self.tlb.code(at).ok_or(Break::Fault)
    }

    /// From now on writes of CPUs to this page are noticed; what was written before makes its blocks go.
    fn watch_page(&mut self, index: u32, host: usize) {
        if let Some(known) = self.code.pages.get(&index) {
            if known.is_current(host as u64) {
                return;
            }
            self.forget_page(index);
        }
        self.shared.decodes(index, self.index);
        self.tlb.watch_writes(host);
        self.code.size += PAGE;
        let mut copy = Box::new([0; PAGE]);
        // SAFETY: `host` is a whole page of RAM.
        unsafe { host::copy_out(host as u64, copy.as_mut_ptr(), PAGE) };
        self.code.pages.insert(index, CodePage { copy, keys: Vec::new(), pieces: 0, strangers: 0 });
    }

    /// A block of the one instruction at linear `linear`, which lies on two pages.
    fn crossing(&mut self, linear: u64, key: u64, first: CodeEntry) -> Result<*const Block, Break> {
        let here = PAGE - linear as usize % PAGE;
        let mut bytes = [0; LONGEST];
        let next = linear.wrapping_add(here as u64);
        let second = self.code_page(if self.is_64() { next } else { next & 0xffff_ffff })?;
        // SAFETY: the last `here` bytes of one page of RAM and the first bytes of another; both parts fit into `bytes`,
        // since an instruction that needs a second page has fewer than 15 bytes on the first.
        unsafe {
            host::copy_out((first.host + PAGE - here) as u64, bytes.as_mut_ptr(), here.min(LONGEST));
            host::copy_out(second.host as u64, bytes.as_mut_ptr().add(here.min(LONGEST)), LONGEST.saturating_sub(here));
        }
        if let Some(known) = self.code.crossings.get(&key).filter(|known| known.bytes == bytes) {
            return Ok(&raw const *known.block);
        }
        let target = Target { ip: self.rip, size: self.code_size, features: self.features, thunks: &self.thunks };
        let block = Box::new(Block { key, ..super::decode::single(&bytes, &target) });
        let pointer: *const Block = &raw const *block;
        self.code.size += size_of::<Crossing>() + block.size();
        if let Some(old) = self.code.crossings.insert(key, Crossing { bytes, block }) {
            self.code.graveyard.push(old.block);
        }
        Ok(pointer)
    }

    /// Bytes of a page were written (a bit for each 64): blocks made of them are forgotten.
    pub(in crate::engine::soft) fn forget_code(&mut self, page: u32, pieces: u64) {
        let Some(known) = self.code.pages.get_mut(&page) else { return };
        known.strangers += 1;
        if known.pieces & pieces != 0 || known.strangers > STRANGERS {
            self.forget_page(page);
        }
    }

    /// This CPU wrote to pieces of a page with code.
    pub(in crate::engine::soft) fn code_written(&mut self, page: u32, pieces: u64) {
        self.forget_code(page, pieces);
        let news = CodeNews { written: pieces, ..CodeNews::default() };
        self.shared.wrote(page, news, self.index, self.code.pages.contains_key(&page));
    }

    /// A page has no decoded code any more, and need not be watched for this CPU.
    fn forget_page(&mut self, page: u32) {
        let Some(known) = self.code.pages.remove(&page) else { return };
        for key in known.keys {
            let block = self.code.blocks.remove(&key);
            self.code.size = self.code.size.saturating_sub(block.as_ref().map_or(0, |block| block.size()));
            self.code.graveyard.extend(block);
        }
        self.code.size = self.code.size.saturating_sub(PAGE);
        self.shared.forgets(page);
        // Nothing finds these blocks any more: jumps and code pages are looked up anew, the block under way ends.
        self.tlb.forget_code();
        self.end = std::ptr::null();
    }

    /// The bytes that `block` was made from, and perhaps more.
    pub(in crate::engine::soft) fn bytes_of(&self, block: &Block) -> &[u8] {
        let crossing = self.code.crossings.get(&block.key).filter(|known| std::ptr::eq(&raw const *known.block, block));
        if let Some(crossing) = crossing {
            return &crossing.bytes;
        }
        let page = self.code.pages.get(&((block.key >> 14) as u32));
        page.and_then(|page| page.copy.get((block.key >> 2) as usize % PAGE..)).unwrap_or_default()
    }

    /// The cache is full: a guest must not make it grow without bounds.
    fn forget_everything(&mut self) {
        let pages: Vec<u32> = self.code.pages.keys().copied().collect();
        pages.into_iter().for_each(|page| self.forget_page(page));
        self.code.graveyard.extend(self.code.crossings.drain().map(|(_, crossing)| crossing.block));
        self.code.size = 0;
    }

    /// Frees forgotten blocks; only while none is executed.
    pub(in crate::engine::soft) fn bury(&mut self) {
        self.code.graveyard.clear();
    }

    /// Acts on what other vCPUs say about code.
    pub(in crate::engine::soft) fn hear_news(&mut self) {
        for (page, news) in self.shared.attention(self.index).take_news() {
            let host = self.shared.physical.host_of(page).unwrap_or_default();
            if news.decoded {
                self.tlb.watch_writes(host);
                // This CPU may have written since the other one decoded.
                let doubt = CodeNews { doubtful: true, ..CodeNews::default() };
                self.shared.wrote(page, doubt, self.index, self.code.pages.contains_key(&page));
            }
            if news.written != 0 {
                self.forget_code(page, news.written);
            }
            let stale = |known: &CodePage| !known.is_current(host as u64);
            if news.doubtful && self.code.pages.get(&page).is_some_and(stale) {
                self.forget_page(page);
            }
        }
    }

    /// Called before an interrupt is sent to another CPU: what this CPU was told to notice is noticed before the other one
    /// can act on the interrupt, so that code written before it is seen there.
    pub(in crate::engine::soft) fn before_ipi(&mut self) {
        self.hear_news();
    }
}

/// Functions begin at multiples of sixteen and more, so the low bits alone would make them meet (Knuth's multiplicative
/// hash).
#[inline(always)]
fn jump_index(at: u64) -> usize {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - JUMPS.ilog2())) as usize
}

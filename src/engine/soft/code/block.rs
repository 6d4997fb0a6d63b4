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
/// Entries of the cache by linear address.
const JUMPS: usize = 4096;
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

/// A page with decoded code.
#[derive(Debug)]
struct CodePage {
    /// Its content when its blocks were made.
    copy: Box<[u8; PAGE]>,
    /// Its blocks.
    keys: Vec<u64>,
    /// 64-byte pieces that blocks were made from.
    pieces: u64,
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
    graveyard: Vec<Box<Block>>,
    /// Blocks decoded so far.
    pub(in crate::engine::soft) decoded: u64,
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
            decoded: 0,
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
        let linear = self.code_address(at)?;
        let entry = self.code_page(linear)?;
        let offset = linear as usize % PAGE;
        let key = u64::from(entry.page) << 14 | (offset as u64) << 2 | self.code_size as u64;
        if let Some(block) = self.code.blocks.get(&key) {
            let block: *const Block = &raw const **block;
            self.remember_jump(at, tag, block);
            return Ok(block);
        }
        let target = Target { ip: at, size: self.code_size, features: self.features, thunks: &self.thunks };
        let Some(page) = self.code.pages.get_mut(&entry.page) else { return Err(self.gp(0)) };
        let Some(bytes) = page.copy.get(offset..) else { return Err(self.gp(0)) };
        let Some((mut block, len)) = super::decode::block(bytes, &target) else {
            return self.crossing(linear, key, entry);
        };
        block.key = key;
        let (first, last) = (offset / 64, (offset + len.max(1) - 1) / 64);
        page.pieces |= (u64::MAX >> (63 - (last - first))) << first;
        page.keys.push(key);
        self.code.decoded += 1;
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
            return Err(
                self.leave(Exit::Crashed(format!("code outside of RAM, at guest-physical {:#x}", mapping.physical)))
            );
        };
        if mapping.size > PAGE as u64 {
            self.tlb.used_large(at, mapping.size);
        }
        self.watch_page(page.index, page.host);
        self.tlb.fill_code(at, page.index, page.host);
        self.tlb.code(at).ok_or(Break::Fault)
    }

    /// From now on writes of CPUs to this page are noticed; what was written before makes its blocks go.
    fn watch_page(&mut self, index: u32, host: usize) {
        self.shared.decodes(index, self.index);
        self.tlb.watch_writes(host);
        let mut now = Box::new([0; PAGE]);
        // SAFETY: `host` is a whole page of RAM.
        unsafe { host::copy_out(host as u64, now.as_mut_ptr(), PAGE) };
        if self.code.pages.get(&index).is_some_and(|page| page.copy != now) {
            self.forget_page(index);
        }
        self.code.pages.entry(index).or_insert_with(|| CodePage { copy: now, keys: Vec::new(), pieces: 0 });
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
        if let Some(old) = self.code.crossings.insert(key, Crossing { bytes, block }) {
            self.code.graveyard.push(old.block);
        }
        Ok(pointer)
    }

    /// Bytes of a page were written (a bit for each 64): blocks made of them are forgotten.
    pub(in crate::engine::soft) fn forget_code(&mut self, page: u32, pieces: u64) {
        if self.code.pages.get(&page).is_some_and(|known| known.pieces & pieces != 0) {
            self.forget_page(page);
        } else if let Some(known) = self.code.pages.get_mut(&page) {
            // The copy must stay what the page is, or the next look at it finds a difference.
            if let Some(host) = self.shared.physical.host_of(page) {
                // SAFETY: a whole page of RAM into a page that the cache owns.
                unsafe { host::copy_out(host as u64, known.copy.as_mut_ptr(), PAGE) };
            }
        }
    }

    fn forget_page(&mut self, page: u32) {
        let Some(known) = self.code.pages.remove(&page) else { return };
        for key in known.keys {
            self.code.graveyard.extend(self.code.blocks.remove(&key));
        }
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

    /// Frees forgotten blocks; only while none is executed.
    pub(in crate::engine::soft) fn bury(&mut self) {
        self.code.graveyard.clear();
    }

    /// Acts on what other vCPUs say about code.
    pub(in crate::engine::soft) fn hear_news(&mut self) {
        for news in self.shared.attention(self.index).take_news() {
            match news {
                CodeNews::Decoded { page, by } => {
                    if let Some(host) = self.shared.physical.host_of(page) {
                        self.tlb.watch_writes(host);
                    }
                    // This CPU may have written since the other one decoded.
                    self.shared.attention(by).tell(CodeNews::Written { page, pieces: u64::MAX });
                }
                CodeNews::Written { page, pieces } => self.forget_code(page, pieces),
            }
        }
    }

    /// Called before an interrupt is sent to another CPU: what this CPU was told to notice is noticed before the other one
    /// can act on the interrupt, so that code written before it is seen there.
    pub(in crate::engine::soft) fn before_ipi(&mut self) {
        self.hear_news();
    }
}

#[inline(always)]
fn jump_index(at: u64) -> usize {
    (at ^ at >> 12) as usize % JUMPS
}

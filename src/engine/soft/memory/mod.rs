//! Guest memory as instructions reach it: by linear address, through cached translations, to RAM or to devices.
//!
//! The fast way is a comparison and one host instruction. The slow way walks page tables, splits accesses that cross
//! pages, calls devices, and notices writes to pages that hold decoded code. An access either happens as a whole or raises
//! its exception with nothing written.

// UNSAFETY: accesses host addresses that translations lead to.
#![expect(unsafe_code)]

pub(super) mod host;
pub(super) mod physical;
pub(super) mod tlb;
pub(super) mod walk;

use std::sync::Mutex;

use self::walk::{Access, Mapping};
use super::cpu::Cpu;
use super::fault::{self, Break, Step};
use super::width::Width;
use crate::engine::{ExitCounters, IoAddr};

const PAGE: u64 = 4096;
/// The largest operand: a 512-bit register, or what FXSAVE stores.
const LARGEST: usize = 512;

/// Serialises locked accesses that cross a page, which no host instruction covers. They are atomic among themselves only.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Where one page's part of an access leads.
enum Place {
    /// Host address.
    Ram { host: u64, page: u32, code: bool },
    /// Guest-physical address of a device, or of nothing.
    Device(u64),
}

impl Cpu {
    /// Reads an operand.
    #[inline(always)]
    pub(super) fn load<T: Width>(&mut self, at: u64) -> Result<T, Break> {
        match self.tlb.read::<T>(at) {
            // SAFETY: the translation leads to `T::BYTES` bytes of one page of RAM, which `Shared` keeps mapped.
            Some(host) => Ok(unsafe { host::load(host) }),
            None => self.load_slow(at, T::BYTES).map(T::from_u64).ok_or(Break::Fault),
        }
    }

    /// Writes an operand.
    #[inline(always)]
    pub(super) fn store<T: Width>(&mut self, at: u64, value: T) -> Step {
        match self.tlb.write::<T>(at) {
            Some(host) => {
                // SAFETY: as in `load`.
                unsafe { host::store(host, value) };
                Ok(())
            }
            None => self.store_slow(at, value.to_u64(), T::BYTES),
        }
    }

    /// Reads an operand, writes what `change` makes of it, and returns the other thing that it makes. Faults as a write.
    #[inline(always)]
    pub(super) fn modify<T: Width, R>(&mut self, at: u64, change: impl FnOnce(T) -> (T, R)) -> Result<R, Break> {
        match self.tlb.write::<T>(at) {
            Some(host) => {
                // SAFETY: as in `load`.
                let (new, result) = change(unsafe { host::load(host) });
                // SAFETY: as in `load`.
                unsafe { host::store(host, new) };
                Ok(result)
            }
            None => {
                self.prepare_write(at, T::BYTES)?;
                let (new, result) = change(T::from_u64(self.load_slow(at, T::BYTES).ok_or(Break::Fault)?));
                self.store_slow(at, new.to_u64(), T::BYTES)?;
                Ok(result)
            }
        }
    }

    /// The same, atomically for all CPUs (LOCK). `change` may be called several times.
    pub(super) fn modify_locked<T: Width, R>(
        &mut self,
        at: u64,
        mut change: impl FnMut(T) -> (T, R),
    ) -> Result<R, Break> {
        if self.shared.cpus() == 1 {
            return self.modify(at, change);
        }
        let within = at & (PAGE - 1) <= PAGE - T::BYTES;
        let host = match self.tlb.write::<T>(at) {
            Some(host) => host,
            None => match self.place(at, Access::Write)? {
                Place::Ram { host, .. } if within => {
                    self.missed(at, T::BYTES, Access::Write)?;
                    host
                }
                _ => {
                    let _one = SPLIT_LOCK.lock();
                    return self.modify(at, change);
                }
            },
        };
        // SAFETY: as in `load`; `host` is within one page.
        let mut old = unsafe { host::load::<T>(host) };
        loop {
            let (new, result) = change(old);
            // SAFETY: as in `load`.
            let was = unsafe { host::compare_exchange(host, old, new) };
            if was == old {
                self.wrote_code(at, T::BYTES)?;
                return Ok(result);
            }
            old = was;
        }
    }

    /// CMPXCHG16B at linear `at`, a multiple of 16: puts `new` there if `old` is what is there; returns what was there.
    pub(super) fn compare_exchange_16(
        &mut self,
        at: u64,
        old: (u64, u64),
        new: (u64, u64),
    ) -> Result<(u64, u64), Break> {
        match self.place(at, Access::Write)? {
            Place::Ram { host, .. } => {
                self.missed(at, 16, Access::Write)?;
                // SAFETY: aligned to 16, so within one page of RAM; CPUID shows CX16 only if the host has it.
                let was = unsafe { host::compare_exchange_16(host, old, new) };
                self.wrote_code(at, 16)?;
                Ok(was)
            }
            Place::Device(_) => {
                let was = (self.load::<u64>(at)?, self.load::<u64>(at + 8)?);
                let (low, high) = if was == old { new } else { was };
                self.store(at, low)?;
                self.store(at + 8, high)?;
                Ok(was)
            }
        }
    }

    /// Reads up to 512 bytes.
    pub(super) fn read_bytes(&mut self, at: u64, data: &mut [u8]) -> Step {
        debug_assert!(data.len() <= LARGEST);
        if let Some(place) = self.cached(at, data.len(), Access::Read) {
            self.read_part(&place, data);
            return Ok(());
        }
        self.missed(at, data.len() as u64, Access::Read)?;
        let first = data.len().min((PAGE - at % PAGE) as usize);
        let (low, high) = data.split_at_mut(first);
        self.check_end(at, high.len())?;
        let places = (self.place(at, Access::Read)?, self.second(at, high.len(), Access::Read)?);
        self.read_part(&places.0, low);
        if let Some(place) = places.1 {
            self.read_part(&place, high);
        }
        Ok(())
    }

    /// Writes up to 512 bytes.
    pub(super) fn write_bytes(&mut self, at: u64, data: &[u8]) -> Step {
        debug_assert!(data.len() <= LARGEST);
        if let Some(place) = self.cached(at, data.len(), Access::Write) {
            self.write_part(&place, data);
            return Ok(());
        }
        self.missed(at, data.len() as u64, Access::Write)?;
        let first = data.len().min((PAGE - at % PAGE) as usize);
        let (low, high) = data.split_at(first);
        self.check_end(at, high.len())?;
        let places = (self.place(at, Access::Write)?, self.second(at, high.len(), Access::Write)?);
        self.write_part(&places.0, low);
        if let Some(place) = places.1 {
            self.write_part(&place, high);
        }
        Ok(())
    }

    /// Raises what a write of `len` bytes would raise.
    pub(super) fn prepare_write(&mut self, at: u64, len: u64) -> Step {
        let high = (at % PAGE + len).saturating_sub(PAGE) as usize;
        self.check_end(at, high)?;
        self.place(at, Access::Write)?;
        self.second(at, high, Access::Write)?;
        Ok(())
    }

    /// Host address and number of bytes up to the end of the page, if linear `at` is plain RAM: for REP MOVS and STOS.
    pub(super) fn host_run(&mut self, at: u64, access: Access) -> Result<Option<(u64, u64)>, Break> {
        let cached = if access == Access::Write { self.tlb.write::<u8>(at) } else { self.tlb.read::<u8>(at) };
        let host = match cached {
            Some(host) => Some(host),
            None => match self.place(at, access)? {
                // Whoever is watched goes element by element.
                Place::Ram { .. } if self.tlb.checks_alignment() || (self.armed.data && self.watches_page(at)) => None,
                Place::Ram { host, code, .. } if access != Access::Write || !code => Some(host),
                _ => None,
            },
        };
        Ok(host.map(|host| (host, PAGE - at % PAGE)))
    }

    /// None after a fault, which is all that may come of an access: unlike a `Result` it is returned in registers.
    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, at: u64, len: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        if let Some(data) = bytes.get_mut(..len as usize) {
            self.read_bytes(at, data).ok()?;
        }
        Some(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, at: u64, value: u64, len: u64) -> Step {
        match value.to_le_bytes().get(..len as usize) {
            Some(data) => self.write_bytes(at, data),
            None => Ok(()),
        }
    }

    /// Where an access within one page leads, if its translation is cached; writes then meet no decoded code.
    #[inline]
    fn cached(&self, at: u64, len: usize, access: Access) -> Option<Place> {
        let within = at % PAGE + len as u64 <= PAGE;
        let host = match access {
            _ if !within => None,
            Access::Write => self.tlb.write::<u8>(at),
            _ => self.tlb.read::<u8>(at),
        };
        host.map(|host| Place::Ram { host, page: 0, code: false })
    }

    /// An access that no cached translation was found for: it may have to be aligned (SDM volume 3, table 6-7), and there may
    /// be a breakpoint. If the access then faults, what was met is forgotten.
    #[inline(always)]
    fn missed(&mut self, at: u64, len: u64, access: Access) -> Step {
        if self.tlb.checks_alignment() {
            let unit = if len == 10 { 8 } else { len };
            if matches!(unit, 2 | 4 | 8 | 16) && at & (unit - 1) != 0 {
                return Err(self.raise(fault::AC, Some(0)));
            }
        }
        if self.armed.data {
            self.meets_data(at, len, access == Access::Write);
        }
        Ok(())
    }

    /// Translates and caches.
    fn place(&mut self, at: u64, access: Access) -> Result<Place, Break> {
        let Mapping { physical, writable, size, global } = self.translate(at, access)?;
        let Some(page) = self.shared.physical.page(physical) else { return Ok(Place::Device(physical)) };
        if size > PAGE {
            self.tlb.used_large(at, size);
        }
        let code = self.shared.has_code(page.index);
        if !self.armed.data || !self.watches_page(at) {
            self.tlb.fill(at, page.host, writable && !code, global);
        }
        Ok(Place::Ram { host: page.host as u64 + physical % PAGE, page: page.index, code })
    }

    /// An access that leaves canonical addresses by its last `high` bytes, those on the next page, fails before its first
    /// page is looked at.
    fn check_end(&mut self, at: u64, high: usize) -> Step {
        let next = (at | (PAGE - 1)).wrapping_add(1);
        let whole = high == 0 || !self.is_64() || Self::canonical(next);
        if whole { Ok(()) } else { Err(self.not_canonical(next)) }
    }

    /// The part of an access on the next page, if `len` bytes are left for it.
    fn second(&mut self, at: u64, len: usize, access: Access) -> Result<Option<Place>, Break> {
        if len == 0 {
            return Ok(None);
        }
        let next = (at | (PAGE - 1)).wrapping_add(1);
        let next = if self.is_64() { next } else { next & 0xffff_ffff };
        self.place(next, access).map(Some)
    }

    fn read_part(&mut self, place: &Place, data: &mut [u8]) {
        match *place {
            Place::Ram { host, .. } => match data.len() {
                // One instruction each, so that what other CPUs write is seen whole.
                // SAFETY: `place` leads to RAM, and the caller keeps within the page.
                8 => data.copy_from_slice(&unsafe { host::load::<u64>(host) }.to_le_bytes()),
                // SAFETY: as above.
                4 => data.copy_from_slice(&unsafe { host::load::<u32>(host) }.to_le_bytes()),
                // SAFETY: as above.
                2 => data.copy_from_slice(&unsafe { host::load::<u16>(host) }.to_le_bytes()),
                16 | 32 => {
                    for (offset, word) in (host..).step_by(8).zip(data.chunks_exact_mut(8)) {
                        // SAFETY: as above.
                        word.copy_from_slice(&unsafe { host::load::<u64>(offset) }.to_le_bytes());
                    }
                }
                // SAFETY: as above.
                len => unsafe { host::copy_out(host, data.as_mut_ptr(), len) },
            },
            Place::Device(physical) => self.device_read(physical, data),
        }
    }

    fn write_part(&mut self, place: &Place, data: &[u8]) {
        match *place {
            Place::Ram { host, page, code } => {
                match *data {
                    // SAFETY: `place` leads to RAM, and the caller keeps within the page.
                    [a, b, c, d, e, f, g, h] => unsafe {
                        host::store(host, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
                    },
                    // SAFETY: as above.
                    [a, b, c, d] => unsafe { host::store(host, u32::from_le_bytes([a, b, c, d])) },
                    // SAFETY: as above.
                    [a, b] => unsafe { host::store(host, u16::from_le_bytes([a, b])) },
                    // SAFETY: as above.
                    _ => unsafe { host::copy_in(data.as_ptr(), host, data.len()) },
                }
                if code {
                    self.code_written(page, pieces_of(host % PAGE, data.len() as u64));
                }
            }
            Place::Device(physical) => self.device_write(physical, data),
        }
    }

    /// After a locked write that went straight to RAM.
    fn wrote_code(&mut self, at: u64, len: u64) -> Step {
        if self.tlb.write::<u8>(at).is_none()
            && let Place::Ram { host, page, code: true } = self.place(at, Access::Write)?
        {
            self.code_written(page, pieces_of(host % PAGE, len));
        }
        Ok(())
    }

    /// Reads registers of a device in pieces that it can answer.
    fn device_read(&mut self, physical: u64, data: &mut [u8]) {
        let mut at = physical;
        for part in pieces(data.len()) {
            let Some(chunk) = data.get_mut((at - physical) as usize..).and_then(|rest| rest.get_mut(..part)) else {
                return;
            };
            if !self.local_apic_read(at, chunk) {
                match self.machine().get() {
                    Some(io) => io.read(IoAddr::Mmio(at), chunk),
                    None => chunk.fill(0xff),
                }
                ExitCounters::add(&self.counters.mmio_read, 1);
            }
            at += part as u64;
        }
    }

    fn device_write(&mut self, physical: u64, data: &[u8]) {
        let mut at = physical;
        for part in pieces(data.len()) {
            let Some(chunk) = data.get((at - physical) as usize..).and_then(|rest| rest.get(..part)) else { return };
            if !self.local_apic_write(at, chunk) && !self.shared.ring_doorbell(IoAddr::Mmio(at), chunk) {
                if let Some(io) = self.machine().get() {
                    io.write(IoAddr::Mmio(at), chunk);
                }
                ExitCounters::add(&self.counters.mmio_write, 1);
            }
            at += part as u64;
        }
    }
}

/// Pieces of 64 bytes that `len` bytes at `offset` within a page lie in, a bit each.
fn pieces_of(offset: u64, len: u64) -> u64 {
    let (first, last) = (offset / 64, (offset + len.max(1) - 1).min(PAGE - 1) / 64);
    (u64::MAX >> (63 - (last - first))) << first
}

/// Sizes of the accesses to a device that `len` bytes are made of: 8, 4, 2, 1.
fn pieces(len: usize) -> impl Iterator<Item = usize> {
    let mut left = len;
    std::iter::from_fn(move || {
        let part = [8, 4, 2, 1].into_iter().find(|part| *part <= left)?;
        left -= part;
        Some(part)
    })
}

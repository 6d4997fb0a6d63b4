//! The store of stubs, shared by all vCPUs of a VM.

// UNSAFETY: makes functions of addresses of code, and references of pointers that operations hold.
#![expect(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use iced_x86::{Instruction, InstructionInfoFactory};
use rustc_hash::FxHashMap;

use super::code_memory::CodeMemory;
use super::offer::Offer;
use super::stub::{Entry, Plan, Shape};
use crate::engine::soft::code::op::Op;

/// Why there are no stubs.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine::soft) enum Error {
    /// The host refused executable memory.
    #[error(
        "the software CPU needs executable memory, which this host refuses ({0}): allow it (SELinux execmem, sysctl \
         vm.memfd_noexec=0, no MemoryDenyWriteExecute), or use KVM"
    )]
    Refused(rustix::io::Errno),
}

/// A stub and what is to be known about it.
#[derive(Debug)]
pub(super) struct Thunk {
    pub(super) entry: Entry,
    pub(super) shape: Shape,
}

/// Which kind of stub executes an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// On XMM and YMM registers.
    Vector,
    /// On x87 or MMX registers.
    Legacy,
}

#[derive(Debug)]
struct Store {
    memory: CodeMemory,
    known: FxHashMap<(Kind, [u8; 16]), Box<Thunk>>,
    info: InstructionInfoFactory,
}

/// All stubs. Operations that were lowered with a store point into it, so whoever keeps operations keeps the store.
#[derive(Debug)]
pub(in crate::engine::soft) struct Thunks {
    store: Mutex<Store>,
    offer: Offer,
}

/// Bits of [`Op::imm`] with the address of the [`Thunk`]; above them four bits for each slot's register.
const ADDRESS: u64 = (1 << 48) - 1;

impl Thunks {
    /// A store without stubs, for all that this host can execute.
    pub(in crate::engine::soft) fn new() -> Result<Self, Error> {
        Self::with(Offer::of_host())
    }

    /// The same for less than the host can execute: the rest is invalid.
    pub(in crate::engine::soft) fn with(offer: Offer) -> Result<Self, Error> {
        let memory = CodeMemory::new().map_err(Error::Refused)?;
        let store = Store { memory, known: FxHashMap::default(), info: InstructionInfoFactory::new() };
        Ok(Self { store: Mutex::new(store), offer })
    }

    /// What is executed.
    pub(in crate::engine::soft) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Finds or makes the stub for `insn`, and fills in what [`Thunk::of`] and [`registers`] want. None if there is none.
    pub(super) fn prepare(&self, kind: Kind, insn: &Instruction, op: &mut Op) -> Option<Shape> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Store { memory, known, info } = &mut *store;
        let plan = match kind {
            Kind::Vector => Plan::vector(insn, info),
            Kind::Legacy => Plan::legacy(insn, info),
        }?;
        let key = (kind, plan.key()?);
        let thunk: &Thunk = match known.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let code = match kind {
                    Kind::Vector => plan.assemble_vector(),
                    Kind::Legacy => plan.assemble_legacy(),
                }?;
                let at = memory.add(&code)?;
                // SAFETY: a stub starts there, which `stub.rs` made with this calling convention, and it stays executable
                // as long as the store lives.
                let function = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Entry>(at.as_ptr()) };
                entry.insert(Box::new(Thunk { entry: function, shape: plan.shape }))
            }
        };
        let address = std::ptr::from_ref(thunk).expose_provenance() as u64;
        if address > ADDRESS {
            return None;
        }
        op.imm = address | u64::from(plan.registers) << 48;
        if plan.shape.side.gpr_read || plan.shape.side.gpr_write {
            op.dst = crate::engine::soft::registers::RegAt::gpr(plan.gpr);
        }
        Some(plan.shape)
    }
}

impl Thunk {
    /// The thunk of an operation that [`Thunks::prepare`] filled in.
    #[inline(always)]
    pub(super) fn of(op: &Op) -> &Thunk {
        let address = (op.imm & ADDRESS) as usize;
        // SAFETY: handlers that call this are only given to operations that `prepare` filled in; thunks are boxed, never
        // removed, and the store lives as long as the operations do (see `Thunks`).
        unsafe { &*std::ptr::with_exposed_provenance::<Thunk>(address) }
    }
}

/// Registers of the slots of an operation that [`Thunks::prepare`] filled in: four bits each.
#[inline(always)]
pub(super) fn registers(op: &Op) -> u64 {
    op.imm >> 48
}

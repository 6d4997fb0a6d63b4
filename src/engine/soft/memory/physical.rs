//! Guest-physical memory: where a page of RAM is on the host.

use crate::mem::{PAGE, Ram, Region};

/// A page of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) struct HostPage {
    /// Host address of its first byte.
    pub(in crate::engine::soft) host: usize,
    /// Its number among all pages of RAM.
    pub(in crate::engine::soft) index: u32,
}

/// The pieces of RAM, ascending.
#[derive(Debug)]
pub(in crate::engine::soft) struct Physical(Vec<(Region, u32)>);

impl Physical {
    pub(in crate::engine::soft) fn new(ram: &Ram) -> Self {
        let mut pages = 0;
        let pieces = ram.regions().map(|region| {
            let first = pages;
            pages += (region.len / PAGE) as u32;
            (region, first)
        });
        Self(pieces.collect())
    }

    /// Pages of RAM in all.
    pub(in crate::engine::soft) fn pages(&self) -> u32 {
        self.0.last().map_or(0, |(region, first)| first + (region.len / PAGE) as u32)
    }

    /// The page of RAM that holds guest-physical `at`; none if that is a device or nothing.
    #[inline]
    pub(in crate::engine::soft) fn page(&self, at: u64) -> Option<HostPage> {
        self.0.iter().find_map(|(region, first)| {
            let offset = at.checked_sub(region.start).filter(|offset| *offset < region.len)?;
            Some(HostPage {
                host: region.host + (offset & !(PAGE - 1)) as usize,
                index: first + (offset / PAGE) as u32,
            })
        })
    }

    /// Host address of page `index` of RAM.
    pub(in crate::engine::soft) fn host_of(&self, index: u32) -> Option<usize> {
        self.0.iter().find_map(|(region, first)| {
            let offset = u64::from(index.checked_sub(*first)?) * PAGE;
            (offset < region.len).then_some(region.host + offset as usize)
        })
    }
}

//! Device-specific configuration space (section 2.5): bytes that the device sets and the transport shows.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Largest configuration space, in bytes: what both transports have room for on the page that they show to the guest.
pub const MAX_LEN: usize = 0x700;

/// A transport that follows changes. Called on the thread that makes the change, one change at a time; must not
/// call back into the [`ConfigSpace`].
pub trait Listener: Send + Sync + Debug {
    /// The bytes are now these. `generation` is even and has grown by two.
    fn changed(&self, bytes: &[u8], generation: u32);
    /// The driver shall be told, if there is one.
    fn announce(&self);
}

/// The configuration of one device. Clones share it.
#[derive(Debug, Clone)]
pub struct ConfigSpace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    generation: u32,
    listener: Option<Weak<dyn Listener>>,
}

impl ConfigSpace {
    /// `len` bytes of zeros (at most [`MAX_LEN`]).
    pub fn new(len: usize) -> Self {
        Self(Arc::new(Mutex::new(State { bytes: vec![0; len.min(MAX_LEN)], generation: 0, listener: None })))
    }

    /// A configuration with this content.
    pub fn with(bytes: &[u8]) -> Self {
        let config = Self::new(bytes.len());
        config.set(0, bytes);
        config
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.state().bytes.len()
    }

    /// Whether the device has no configuration.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces bytes from `offset`; what does not fit is dropped. Does not tell the driver: see
    /// [`ConfigSpace::announce`].
    pub fn set(&self, offset: usize, data: &[u8]) {
        self.update(|bytes| {
            let room = bytes.get_mut(offset..).unwrap_or_default();
            room.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        });
    }

    /// Changes the bytes as one step: a driver sees all of it or nothing. Counts as a new generation.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state();
        change(&mut state.bytes);
        state.generation = state.generation.wrapping_add(2);
        if let Some(listener) = state.listener.as_ref().and_then(Weak::upgrade) {
            listener.changed(&state.bytes, state.generation);
        }
    }

    /// Tells the driver that something changed. From any thread; a handler can use `Queues::config_changed` as well.
    pub fn announce(&self) {
        let listener = self.state().listener.as_ref().and_then(Weak::upgrade);
        if let Some(listener) = listener {
            listener.announce();
        }
    }

    /// Fills `data` from `offset`; beyond the end there are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let state = self.state();
        let there = state.bytes.get(offset..).unwrap_or_default();
        let bytes = there.iter().copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    /// Grows with every change (section 2.5.1).
    pub fn generation(&self) -> u32 {
        self.state().generation
    }

    /// From now on `listener` hears of changes; it gets the present state at once.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        let mut state = self.state();
        if let Some(listener) = listener.upgrade() {
            listener.changed(&state.bytes, state.generation);
        }
        state.listener = Some(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct Hear {
        bytes: Mutex<Vec<u8>>,
        generation: AtomicU32,
        announced: AtomicU32,
    }
    impl Listener for Hear {
        fn changed(&self, bytes: &[u8], generation: u32) {
            *self.bytes.lock().unwrap() = bytes.to_vec();
            self.generation.store(generation, Ordering::Relaxed);
        }
        fn announce(&self) {
            self.announced.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn reads_and_changes_stay_within_the_bytes() {
        let config = ConfigSpace::with(&[1, 2, 3, 4]);
        let generation = config.generation();
        config.set(2, &[9, 9, 9]);
        config.set(usize::MAX, &[7]);
        assert_eq!(config.generation(), generation + 4);
        let mut data = [5; 4];
        config.read(1, &mut data);
        assert_eq!(data, [2, 9, 9, 0]);
        config.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
        assert_eq!(ConfigSpace::new(1 << 20).len(), MAX_LEN);
    }

    #[test]
    fn a_listener_follows_until_it_is_gone() {
        let config = ConfigSpace::new(2);
        let hear = Arc::new(Hear::default());
        let weak: Weak<dyn Listener> = Arc::downgrade(&(hear.clone() as Arc<dyn Listener>));
        config.listen(weak);
        config.clone().set(0, &[1]);
        config.announce();
        assert_eq!(*hear.bytes.lock().unwrap(), [1, 0]);
        assert_eq!(hear.generation.load(Ordering::Relaxed), config.generation());
        assert_eq!(hear.announced.load(Ordering::Relaxed), 1);
        drop(hear);
        config.set(0, &[2]);
        config.announce();
    }
}

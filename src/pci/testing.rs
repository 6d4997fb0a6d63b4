//! A message sink for tests.

use std::sync::{Arc, Mutex};

use crate::engine;
use crate::irq::{MsiMessage, MsiSink, MsiVector};

/// Records messages in order.
#[derive(Debug, Default, Clone)]
pub struct Sink(pub Arc<Mutex<Vec<MsiMessage>>>);

#[derive(Debug)]
struct Vector(Sink, Mutex<Option<MsiMessage>>);

impl MsiSink for Sink {
    fn vector(&self) -> Result<Arc<dyn MsiVector>, engine::Error> {
        Ok(Arc::new(Vector(self.clone(), Mutex::new(None))))
    }
    fn pin(&self, _: u32) -> Result<Arc<dyn MsiVector>, engine::Error> {
        self.vector()
    }
}

impl MsiVector for Vector {
    fn route(&self, message: Option<MsiMessage>) -> Result<(), engine::Error> {
        *self.1.lock().unwrap() = message;
        Ok(())
    }
    fn trigger(&self) {
        self.0.0.lock().unwrap().extend(*self.1.lock().unwrap());
    }
}

impl Sink {
    /// The messages so far; forgets them.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

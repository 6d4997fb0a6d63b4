//! Which engine runs a machine: KVM where a probe guest really runs on it, otherwise the software CPU. Called by the
//! builder, and by `belljar doctor`.

use crate::engine::kvm::KvmEngine;
use crate::engine::kvm::probe::Trouble;
use crate::engine::soft::SoftEngine;
use crate::engine::{Engine, Error, Result};
use crate::spec::EngineName;

/// An engine that was opened.
#[derive(Debug)]
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What the user should know about the choice, on one line: why it is not KVM, or why KVM will not do.
    pub notice: Option<String>,
}

/// Opens the engine that `name` asks for.
pub fn open(name: EngineName) -> Result<Chosen> {
    match name {
        EngineName::Kvm => {
            let engine = KvmEngine::open()?;
            // Who asks for KVM knows what for, and shall not wait for the probe's guest: only what can be seen is said.
            let notice =
                KvmEngine::is_paravirtual().then(|| format!("KVM: {}; using it all the same", Trouble::Paravirtual));
            Ok(Chosen { engine: Box::new(engine), notice })
        }
        EngineName::Soft => Ok(Chosen { engine: software()?, notice: None }),
        EngineName::Auto => match kvm() {
            Ok(engine) => Ok(Chosen { engine: Box::new(engine), notice: None }),
            Err(trouble) => instead(&trouble, software()),
        },
    }
}

/// KVM, if unmodified kernels run on it.
fn kvm() -> Result<KvmEngine, Trouble> {
    let engine = KvmEngine::open_or_say()?;
    engine.probe()?;
    Ok(engine)
}

/// The software CPU.
pub fn software() -> Result<Box<dyn Engine>> {
    Ok(Box::new(SoftEngine::open()?))
}

/// The software CPU instead of a KVM that is of no use.
fn instead(trouble: &Trouble, software: Result<Box<dyn Engine>>) -> Result<Chosen> {
    // Where the user can have KVM for a word, it is worth saying: it is many times faster.
    let remedy = match trouble {
        Trouble::Paravirtual => String::new(),
        other => format!(" ({})", other.remedy()),
    };
    match software {
        Ok(engine) => Ok(Chosen { engine, notice: Some(format!("KVM: {trouble}{remedy}; using the software CPU")) }),
        Err(e) => Err(Error::Unavailable(format!("KVM: {trouble}{remedy}; {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Vm, VmConfig};
    use crate::mem::Ram;
    use std::sync::Arc;

    #[derive(Debug)]
    struct Soft;
    impl Engine for Soft {
        fn name(&self) -> &'static str {
            "soft"
        }
        fn create_vm(&self, _: &Ram, _: &VmConfig) -> Result<Arc<dyn Vm>> {
            Err(Error::Unavailable("a test".into()))
        }
    }

    #[test]
    fn the_other_engine_is_taken_and_that_is_said() {
        let said = |trouble: &Trouble| instead(trouble, Ok(Box::new(Soft))).unwrap().notice.unwrap();
        assert_eq!(
            said(&Trouble::Paravirtual),
            "KVM: /dev/kvm is a paravirtual (PVM) host: it cannot run unmodified kernels; using the software CPU"
        );
        let denied = said(&Trouble::Denied);
        assert!(denied.starts_with("KVM: /dev/kvm: permission denied (add yourself to group kvm"), "{denied}");
        assert!(denied.ends_with("; using the software CPU"), "{denied}");
        let nothing = Err(Error::Unavailable("the software CPU needs an x86-64 host".into()));
        let error = instead(&Trouble::Missing, nothing).unwrap_err().to_string();
        assert!(error.contains("/dev/kvm does not exist") && error.ends_with("needs an x86-64 host"), "{error}");
    }

    /// Whatever this host has: what is chosen is said, and KVM is never chosen where the probe fails.
    #[test]
    fn the_choice_follows_the_probe() {
        let works = kvm().is_ok();
        match open(EngineName::Auto) {
            Ok(chosen) => {
                assert_eq!(chosen.engine.name() == "kvm", works);
                assert_eq!(chosen.notice.is_none(), works, "{chosen:?}");
            }
            Err(e) => assert!(!works && e.to_string().starts_with("KVM: /dev/kvm"), "{e}"),
        }
        match open(EngineName::Kvm) {
            Ok(chosen) => {
                assert_eq!(chosen.engine.name(), "kvm");
                assert_eq!(chosen.notice.is_some(), KvmEngine::is_paravirtual(), "{chosen:?}");
            }
            Err(e) => assert!(!works && e.to_string().starts_with("/dev/kvm"), "{e}"),
        }
    }
}

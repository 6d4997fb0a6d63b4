//! The kernel command line: default words for this machine, how the user extends or replaces them, and checks.
//! Words are documented in linux/Documentation/admin-guide/kernel-parameters.txt. Called while a machine is built.

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It contains a character that would end or break it.
    #[error("the kernel command line contains {0}, which the kernel would cut it at")]
    Character(&'static str),
    /// The kernel would cut it.
    #[error("the kernel command line has {len} bytes, but this kernel takes {max}; shorten it")]
    TooLong {
        /// Its length.
        len: usize,
        /// What the kernel takes.
        max: usize,
    },
}

/// What the default words depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine<'a> {
    /// Words that devices ask for, such as `console=ttyS0`.
    pub device_words: &'a [String],
    /// Number of UARTs.
    pub uarts: u32,
    /// The kernel is what is under test: only words that leave its behaviour alone.
    pub kernel_under_test: bool,
}

/// The words that a kernel gets unless the user replaces them.
pub fn default_words(machine: &Machine<'_>) -> Vec<String> {
    let mut words = machine.device_words.to_vec();
    let mut add = |word: &str| {
        if !words.iter().any(|have| have == word) {
            words.push(word.to_owned());
        }
    };
    // A panic ends the guest at once instead of leaving it hanging; the machine sees the reset.
    add("panic=-1");
    // The counter of every engine is stable: no watchdog against clocks that are not there, no probing of a PIT.
    add("tsc=reliable");
    add("no_timer_check");
    // Seed the random number generator from RDRAND, so that nothing waits for entropy.
    add("random.trust_cpu=on");
    // Ports that do not exist are not probed.
    add(&format!("8250.nr_uarts={}", machine.uarts));
    if !machine.kernel_under_test {
        // Self-tests of ciphers: over 10^9 instructions. Grace periods: milliseconds each during start-up.
        add("cryptomgr.notests=1");
        add("rcupdate.rcu_expedited=1");
    }
    words
}

/// The command line: `replace` instead of the default words if given, then what is to be appended.
pub fn compose(defaults: &[String], replace: Option<&str>, append: &[String]) -> Result<String, Error> {
    let mut words: Vec<&str> = match replace {
        Some(text) => vec![text],
        None => defaults.iter().map(String::as_str).collect(),
    };
    words.extend(append.iter().map(String::as_str));
    let line = words.iter().map(|w| w.trim()).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
    check_characters(&line)?;
    Ok(line)
}

/// Checks a command line against what a kernel takes: `max` bytes.
pub fn check(line: &str, max: usize) -> Result<(), Error> {
    check_characters(line)?;
    if line.len() > max {
        return Err(Error::TooLong { len: line.len(), max });
    }
    Ok(())
}

fn check_characters(line: &str) -> Result<(), Error> {
    match line.bytes().find(|b| matches!(b, 0 | b'\n' | b'\r')) {
        Some(0) => Err(Error::Character("a NUL byte")),
        Some(_) => Err(Error::Character("a line break")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn append_extends_and_cmdline_replaces() {
        let defaults = strings(&["console=hvc0", "panic=-1"]);
        let append = strings(&["quiet", " root=/dev/vda  rw ", ""]);
        let line = |replace| compose(&defaults, replace, &append).unwrap();
        assert_eq!(line(None), "console=hvc0 panic=-1 quiet root=/dev/vda  rw");
        assert_eq!(line(Some("debug")), "debug quiet root=/dev/vda  rw");
        assert_eq!(compose(&defaults, Some(""), &[]).unwrap(), "");
    }

    #[test]
    fn words_follow_the_machine() {
        let devices = strings(&["console=ttyS0"]);
        let machine = Machine { device_words: &devices, uarts: 1, kernel_under_test: false };
        let words = default_words(&machine);
        assert_eq!(words[0], "console=ttyS0");
        for word in ["panic=-1", "8250.nr_uarts=1", "cryptomgr.notests=1"] {
            assert!(words.iter().any(|w| w == word), "{word}");
        }
        assert_eq!(words.iter().filter(|w| w.starts_with("8250")).count(), 1);
        let test = Machine { kernel_under_test: true, ..Machine::default() };
        let words = default_words(&test).join(" ");
        assert!(!words.contains("cryptomgr") && !words.contains("expedited"));
        assert!(words.contains("8250.nr_uarts=0"));
    }

    #[test]
    fn what_the_kernel_would_cut_is_refused() {
        assert_eq!(compose(&[], Some("a\0b"), &[]), Err(Error::Character("a NUL byte")));
        assert_eq!(compose(&[], None, &strings(&["a\nb"])), Err(Error::Character("a line break")));
        assert_eq!(check(&"a".repeat(2048), 2047), Err(Error::TooLong { len: 2048, max: 2047 }));
        assert_eq!(check(&"a".repeat(2047), 2047), Ok(()));
    }
}

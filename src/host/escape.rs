//! Keys that are for belljar and not for the guest: Ctrl-A, then one more. Used where a terminal is the console.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// The keys, for `--help` and Ctrl-A h.
pub const HELP: &str = "Ctrl-A x  quit\nCtrl-A a  send Ctrl-A to the guest (or Ctrl-A twice)\nCtrl-A h  these keys";

/// What the user wants of belljar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// End the machine.
    Quit,
    /// Show the keys.
    Help,
}

/// Splits typed bytes into those for the guest and wishes.
#[derive(Debug, Default)]
pub struct EscapeKeys {
    prefixed: bool,
}

impl EscapeKeys {
    /// Appends what is for the guest to `guest`; returns the wishes in order. An unknown key after the prefix goes to
    /// the guest together with it.
    pub fn feed(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.prefixed) {
                match byte {
                    PREFIX => self.prefixed = true,
                    _ => guest.push(byte),
                }
                continue;
            }
            match byte {
                b'x' | b'X' => wishes.push(Wish::Quit),
                b'h' | b'H' | b'?' => wishes.push(Wish::Help),
                b'a' | b'A' | PREFIX => guest.push(PREFIX),
                _ => guest.extend([PREFIX, byte]),
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Wish>) {
        let (mut keys, mut guest, mut wishes) = (EscapeKeys::default(), Vec::new(), Vec::new());
        for piece in pieces {
            wishes.extend(keys.feed(piece, &mut guest));
        }
        (guest, wishes)
    }

    #[test]
    fn plain_keys_pass_and_ctrl_c_too() {
        assert_eq!(feed(&[b"ls\r\x03x\xff\0"]), (b"ls\r\x03x\xff\0".to_vec(), vec![]));
    }

    #[test]
    fn wishes_are_taken_out_even_when_split() {
        assert_eq!(feed(&[b"a\x01", b"hb\x01xc"]), (b"abc".to_vec(), vec![Wish::Help, Wish::Quit]));
    }

    #[test]
    fn the_prefix_itself_can_be_sent() {
        assert_eq!(feed(&[b"\x01\x01x\x01ax"]), (b"\x01x\x01x".to_vec(), vec![]));
        assert_eq!(feed(&[b"\x01\x1b[A"]), (b"\x01\x1b[A".to_vec(), vec![]), "other keys keep the prefix");
        assert_eq!(feed(&[b"\x01"]), (vec![], vec![]), "a lone prefix waits");
    }
}

//! Lines out of the bytes that a console prints, and what the kernel puts before its messages.

use memchr::memchr;

/// Bytes of one line that are looked at: a guest that prints no line ends must not fill the host's memory.
const LINE_LIMIT: usize = 16 << 10;

/// Makes lines out of pieces of output.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds output, and hands each line that it completes to `each`, without its end and without anything that does
    /// something to a terminal. Of overlong lines the beginning is handed on.
    pub fn add(&mut self, mut bytes: &[u8], mut each: impl FnMut(&str)) {
        while let Some(at) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(at);
            self.keep(line);
            each(&plain(&self.partial));
            self.partial.clear();
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.keep(bytes);
    }

    /// What stands at the end without an end of line.
    pub fn finish(&mut self, each: impl FnOnce(&str)) {
        if !self.partial.is_empty() {
            each(&plain(&std::mem::take(&mut self.partial)));
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }
}

/// As text, without control characters and without the sequences that steer terminals (ECMA-48).
pub fn plain(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let decoded = String::from_utf8_lossy(bytes);
    let mut characters = decoded.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.next() {
                // A control sequence ends with a byte from @ to ~.
                Some('[') => while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                // A command string ends with BEL or another escape.
                Some(']') => while characters.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            },
            '\t' => text.push('\t'),
            other if other.is_control() => {}
            other => text.push(other),
        }
    }
    text
}

/// What the kernel puts before a message: `<6>[    1.234567][   T12] `, each part only if configured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prefix<'a> {
    /// Log level, 0 to 7.
    pub level: Option<u8>,
    /// Seconds since the kernel started.
    pub time: Option<f64>,
    /// Thread (`T12`) or CPU (`C0`) that printed.
    pub caller: Option<&'a str>,
}

impl<'a> Prefix<'a> {
    /// Takes it off a line; what is left keeps its indentation.
    pub fn split(line: &'a str) -> (Self, &'a str) {
        let (mut prefix, mut rest) = (Self::default(), line);
        if let Some((level, after)) = rest.strip_prefix('<').and_then(|text| text.split_once('>'))
            && let Ok(level) = level.parse::<u16>()
        {
            // The facility is in the bits above.
            prefix.level = Some((level & 7) as u8);
            rest = after;
        }
        if let Some((inside, after)) = bracket(rest)
            && let Ok(time) = inside.trim().parse::<f64>()
            && inside.contains('.')
        {
            prefix.time = Some(time);
            rest = after;
        }
        if let Some((inside, after)) = bracket(rest)
            && let Some(number) = inside.trim().strip_prefix(['T', 'C'])
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            prefix.caller = Some(inside.trim());
            rest = after;
        }
        if prefix.time.is_some() || prefix.caller.is_some() {
            // One blank belongs to it.
            rest = rest.strip_prefix(' ').unwrap_or(rest);
        }
        (prefix, rest)
    }
}

/// What is between brackets at the beginning, and what comes after them.
fn bracket(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('[')?.split_once(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_plain() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in ["one\r\ntw", "o \u{1b}[31mred\u{1b}[0m\n", "\u{1b}]0;title\u{7}x\ty\n", "rest"] {
            lines.add(piece.as_bytes(), |line| seen.push(line.to_string()));
        }
        lines.finish(|line| seen.push(line.to_string()));
        assert_eq!(seen, ["one", "two red", "x\ty", "rest"]);
        lines.add(&[b'a'; 100_000], |_| panic!("no line"));
        lines.add(b"\n", |line| assert_eq!(line.len(), LINE_LIMIT));
        lines.finish(|_| panic!("nothing is left"));
    }

    #[test]
    fn the_kernels_prefix_is_taken_off() {
        let prefix = |line| Prefix::split(line);
        let all = Prefix { level: Some(6), time: Some(1.25), caller: Some("T12") };
        assert_eq!(prefix("<6>[    1.250000][   T12]     ok 1 a"), (all, "    ok 1 a"));
        assert_eq!(prefix("[    1.250000] x"), (Prefix { time: Some(1.25), ..Prefix::default() }, "x"));
        assert_eq!(prefix("[   C0] x"), (Prefix { caller: Some("C0"), ..Prefix::default() }, "x"));
        for line in ["ok 1 [a]", "[x] y", "[]", "<>", "[12] y", "# [1.5]", "<b>"] {
            assert_eq!(prefix(line), (Prefix::default(), line));
        }
    }
}

//! Releases of kernels, `6.12.1-rc2+deb12-amd64`: which of two is newer, and which texts are some.

use std::cmp::Ordering;

/// UTS_RELEASE is at most this long.
const MAX: usize = 64;

/// Whether `text` can be a release, and so a name of a file.
pub fn is_release(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-~:".contains(c);
    !text.is_empty() && text.len() <= MAX && text.starts_with(char::is_alphanumeric) && text.chars().all(allowed)
}

/// Whether `text` is a release and not only a name, as in `vmlinuz-linux`.
pub fn is_numbered(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && is_release(text)
}

/// Orders releases from old to new: numbers by value, what follows a release candidate's number later than it.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (Parts(a), Parts(b));
    loop {
        let (left, right) = (a.next(), b.next());
        let order = match (left, right) {
            (None, None) => return Ordering::Equal,
            (Some(part), None) => return if part.is_before_the_end() { Ordering::Less } else { Ordering::Greater },
            (None, Some(part)) => return if part.is_before_the_end() { Ordering::Greater } else { Ordering::Less },
            (Some(left), Some(right)) => left.cmp(&right),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Numbers and what is between them.
struct Parts<'a>(&'a str);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// Sorts before what other text may stand there: `-rc1` before `-1` and `.1`.
    Candidate,
    Text(&'a str),
    /// Without leading zeros: longer is larger.
    Number(usize, &'a str),
}

impl Part<'_> {
    fn is_before_the_end(&self) -> bool {
        matches!(self, Part::Candidate)
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let digit = self.0.chars().next()?.is_ascii_digit();
        let end = self.0.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(self.0.len());
        let (part, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(match part {
            _ if digit => {
                let number = part.trim_start_matches('0');
                Part::Number(number.len(), number)
            }
            "-rc" | "rc" | "~rc" | "~" => Part::Candidate,
            _ => Part::Text(part),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_greater() {
        let ordered = [
            "4.19.0-27-amd64",
            "5.4.1",
            "6.1.0-9-amd64",
            "6.1.0-18-amd64",
            "6.1.0-18-cloud-amd64",
            "6.2",
            "6.9.12",
            "6.12.0-rc1",
            "6.12.0-rc10",
            "6.12.0",
            "6.12.0-1",
            "6.12.117+deb12-cloud-amd64",
            "6.18.0",
            "10.0",
        ];
        for (index, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a} {b}");
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
        assert_eq!(compare("99999999999999999999999", "100000000000000000000000"), Ordering::Less);
    }

    #[test]
    fn a_release_is_a_file_name_and_no_path() {
        for good in ["6.1.0-18-amd64", "6.12.117+deb12-cloud-amd64", "5.14.0-362.el9.x86_64", "6.9_1"] {
            assert!(is_release(good), "{good}");
        }
        for bad in ["", ".", "..", "../6.1", "6.1/x", "-6.1", "6.1\n", "6 1", &"6".repeat(65)] {
            assert!(!is_release(bad), "{bad:?}");
        }
    }
}

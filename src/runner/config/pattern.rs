//! Patterns with `*` and `?` for names and ids, and names that are nearly right.

/// A pattern: `*` stands for any text, `?` for one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<char>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.chars().collect())
    }

    /// Whether a text has characters that stand for others.
    pub(super) fn is_wild(text: &str) -> bool {
        text.contains(['*', '?'])
    }

    /// Whether it is all of `text`. Time grows with the product of both lengths at most.
    pub(super) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut position) = (0, 0);
        // Where the last star is, and up to where it reaches.
        let mut star: Option<(usize, usize)> = None;
        while let Some(character) = text.get(position) {
            match self.0.get(at) {
                Some('*') => {
                    star = Some((at, position));
                    at += 1;
                }
                Some(wanted) if *wanted == '?' || wanted == character => {
                    at += 1;
                    position += 1;
                }
                _ => {
                    let Some((begin, reach)) = star else { return false };
                    star = Some((begin, reach + 1));
                    (at, position) = (begin + 1, reach + 1);
                }
            }
        }
        self.0.iter().skip(at).all(|character| *character == '*')
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|character| write!(f, "{character}"))
    }
}

/// `; did you mean X?` for the one of `known` that is near enough to `word`.
pub(super) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let limit = (word.chars().count() / 3).max(1);
    let distances = known.into_iter().map(|name| (strsim::damerau_levenshtein(word, name), name));
    match distances.min().filter(|(distance, _)| *distance <= limit) {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, yes, no) in [
            ("a*c", vec!["ac", "abc", "a/b/c"], vec!["abcd", "bac", ""]),
            ("*", vec!["", "x"], vec![]),
            ("6.?", vec!["6.1"], vec!["6.12", "6."]),
            ("*ab*ab", vec!["abab", "xabyabab"], vec!["ab", "aba"]),
            ("exact", vec!["exact"], vec!["exac", "exactly"]),
        ] {
            yes.iter().for_each(|text| assert!(Pattern::new(pattern).matches(text), "{pattern} {text}"));
            no.iter().for_each(|text| assert!(!Pattern::new(pattern).matches(text), "{pattern} {text}"));
        }
    }

    proptest! {
        #[test]
        fn patterns_are_like_regular_expressions(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let regex = format!("^{}$", pattern.replace('*', ".*").replace('?', "."));
            let expected = regex::Regex::new(&regex).unwrap().is_match(&text);
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), expected);
        }
    }

    #[test]
    fn the_nearest_name_is_offered_if_it_is_near() {
        assert_eq!(did_you_mean("comand", ["name", "command"]), "; did you mean `command`?");
        assert_eq!(did_you_mean("colour", ["name", "command"]), "");
    }
}

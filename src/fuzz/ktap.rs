//! What tests in a guest print.

use crate::runner::console::Lines;
use crate::runner::ktap::{End, Event, Parser};

/// The first byte chooses how it ends. Whatever it is, there is a bounded number of cases, each with a name, and those
/// that were told as they ended are among them.
pub(super) fn output(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let how = [End::Whole, End::Died, End::TimedOut][usize::from(how % 3)];
    let (mut parser, mut lines, mut told) = (Parser::new(), Lines::default(), 0);
    let mut read = |line: &str| {
        let events = parser.line(line, 1.0);
        told += events.iter().filter(|event| matches!(event, Event::Ended(_))).count();
        drop(parser.current());
    };
    lines.add(rest, &mut read);
    lines.finish(&mut read);
    let complete = parser.is_complete();
    let ktap = parser.finish(how);
    assert!(ktap.cases.len() <= 100_000 && ktap.problems.len() < 200);
    assert!(ktap.cases.iter().all(|case| (1..40).contains(&case.path.len()) && case.log.len() < 20_000));
    assert!(told <= ktap.cases.len() && (!complete || told == ktap.cases.len()));
    assert!(ktap.found || ktap.cases.is_empty());
    assert!(ktap.cases.iter().all(|case| case.status.is_good() || case.status <= ktap.status()));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "\0KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: s\n    1..2\n    # a: x\n    ok 1 a\n    not ok 2 b\nnot ok 1 s\n",
        "\u{1}[    1.000000][   T1] TAP version 14\n[    1.000000][   T1]     # Subtest: s\n[    1.000000][   T1]     ok 1 - a\n",
        "\u{2}TAP version 13\n1..9\n# selftests: a: b\nok 1 selftests: a: b # SKIP\nnot ok 2 c # TIMEOUT 45 seconds\n",
        "\0<6>[    1.000000] KTAP version 1\nTAP version 13\n<6>[    1.000000] 1..1\nok 1 a\n<6>[    1.000000] ok 1 b\n1..1\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

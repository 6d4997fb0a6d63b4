//! Places in a small kernel and a small module, which `fixtures/make.sh` makes of `bad.c` and `other.c`.

use std::path::{Path, PathBuf};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runner/symbols/fixtures").join(name)
}

fn symbols() -> Symbols {
    Symbols::of(&fixture("vmlinux"), &[fixture("bad.ko"), fixture("no-such.ko"), fixture("bad.c")]).unwrap()
}

#[test]
fn functions_in_traces_get_their_places() {
    let text =
        "RIP: 0010:unlink_it+0x10/0x30\nCall Trace:\n <TASK>\n unlink_it+0x10/0x30\n init_it+0x10/0x20\n? x+0x1/0x2\n";
    let expected = "RIP: 0010:unlink_it+0x10/0x30 (include/list.h:7 in list_remove, bad.c:16)\nCall Trace:\n <TASK>\n \
                    unlink_it+0x10/0x30 (bad.c:14)\n init_it+0x10/0x20 (bad.c:23)\n? x+0x1/0x2\n";
    assert_eq!(symbols().decode(text), expected);
}

#[test]
fn modules_are_known_by_their_names() {
    let decode = |text: &str| symbols().decode(text);
    assert_eq!(decode(" unlink_it+0x10/0x30 [bad]"), " unlink_it+0x10/0x30 [bad] (bad.c:14)");
    // In another section, which begins at 0, too.
    assert_eq!(decode(" init_it+0x10/0x20 [bad 0123abcd]"), " init_it+0x10/0x20 [bad 0123abcd] (bad.c:23)");
    for unknown in [" unlink_it+0x10/0x30 [other]", " unlink_it+0x10/0x30 [no_such]", " use_other+0x1/0x10 [bad]"] {
        assert_eq!(decode(unknown), unknown);
    }
    let mut alone = Symbols::of_modules(&[fixture("bad.ko")]);
    let text = " init_it+0x10/0x20\n init_it+0x10/0x20 [bad]";
    assert_eq!(alone.decode(text), format!("{text} (bad.c:23)"));
    assert_eq!(module_name(Path::new("/x/some-module.ko.xz")).as_deref(), Some("some_module"));
}

#[test]
fn of_functions_with_the_same_name_the_size_tells_which() {
    let mut symbols = symbols();
    let (one, other) = (symbols.decode("same+0x3/0x10"), symbols.decode("same+0x3/0x30"));
    assert_eq!(one, "same+0x3/0x10 (bad.c:9)");
    assert_eq!(other, "same+0x3/0x30 (other.c:6)");
    assert_eq!(symbols.decode("same+0x3/0x20"), "same+0x3/0x20");
}

#[test]
fn a_kernel_without_lines_is_an_error_that_says_how_to_get_them() {
    let none = std::env::temp_dir().join("no-such-vmlinux");
    assert!(matches!(Symbols::of(&none, &[]), Err(Error::Read { .. })));
    assert!(matches!(Symbols::of(&fixture("bad.c"), &[]), Err(Error::Format { .. })));
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("vmlinux");
    // Without its table of sections.
    let mut content = std::fs::read(fixture("vmlinux")).unwrap();
    content[40..48].fill(0);
    content[58..64].fill(0);
    std::fs::write(&bare, content).unwrap();
    let error = Symbols::of(&bare, &[]).unwrap_err();
    assert!(matches!(error, Error::NoLines { .. }) && error.to_string().contains("CONFIG_DEBUG_INFO"), "{error}");
}

#[test]
fn damaged_files_are_survived() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.ko");
    let good = std::fs::read(fixture("bad.ko")).unwrap();
    for step in 0..400 {
        let mut bad = good.clone();
        match step % 2 {
            0 => bad.truncate(good.len() * step / 400),
            _ => bad[good.len() * step / 400] ^= 0xff,
        }
        std::fs::write(&path, bad).unwrap();
        let mut symbols = Symbols::of(&fixture("vmlinux"), std::slice::from_ref(&path)).unwrap();
        let text = symbols.decode(" unlink_it+0x10/0x30 [bad]");
        assert!(text.starts_with(" unlink_it+0x10/0x30 [bad]"), "{text}");
        let _ = Symbols::of(&path, &[]);
    }
}

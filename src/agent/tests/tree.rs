//! Trees through the agent and back, and streams that mean harm.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{bench, run};
use crate::agent::protocol::tree;
use crate::agent::protocol::wire::Wire;

/// A directory with a bit of everything.
fn sample(at: &Path) {
    fs::create_dir_all(at.join("empty")).unwrap();
    fs::create_dir_all(at.join("sub/deep")).unwrap();
    fs::write(at.join("sub/deep/big"), vec![7; 300_000]).unwrap();
    fs::write(at.join("none"), "").unwrap();
    fs::write(at.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at.join("sub"), fs::Permissions::from_mode(0o550)).unwrap();
    symlink("../nowhere", at.join("link")).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(at.join("none")).unwrap().set_modified(old).unwrap();
    fs::File::open(at.join("sub")).unwrap().set_modified(old).unwrap();
}

fn check(at: &Path) {
    let about = |name: &str| fs::symlink_metadata(at.join(name)).unwrap();
    assert!(about("empty").is_dir() && fs::read_dir(at.join("empty")).unwrap().next().is_none());
    assert_eq!(fs::read(at.join("sub/deep/big")).unwrap(), vec![7; 300_000]);
    assert_eq!(about("none").len(), 0);
    assert_eq!((about("none").mtime(), about("none").mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((about("sub").mtime(), about("sub").mode() & 0o7777), (1_000_000_000, 0o550));
    assert_eq!(about("script").mode() & 0o7777, 0o751, "no special permissions");
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("../nowhere"));
}

#[test]
fn trees_go_in_and_come_back() {
    let (bench, dir) = (bench(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    sample(&at("source"));
    fs::create_dir(at("existing")).unwrap();
    bench.agent.copy_in(&at("source"), &at("new"), None).unwrap();
    bench.agent.copy_in(&at("source"), &at("existing"), None).unwrap();
    check(&at("new"));
    check(&at("existing/source"));
    bench.agent.copy_out(&at("new"), &at("back")).unwrap();
    check(&at("back"));
    // Single files, over one that is there; a link on the way is replaced, not written through.
    fs::write(at("victim"), "untouched").unwrap();
    symlink(at("victim"), at("existing/none")).unwrap();
    bench.agent.copy_out(&at("source/script"), &at("victim2")).unwrap();
    bench.agent.copy_in(&at("source/script"), &at("existing/none"), None).unwrap();
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(at("existing/none")).unwrap(), "#!/bin/sh\n");
    for name in ["source/sub", "new/sub", "back/sub", "existing/source/sub"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let text = |result: Result<(), crate::agent::Error>| result.unwrap_err().to_string();
    assert!(text(bench.agent.copy_out(&at("missing"), &at("x"))).contains("missing: No such file"));
    assert!(text(bench.agent.copy_in(&at("missing"), &at("x"), None)).contains("missing: No such file"));
    assert!(text(bench.agent.copy_in(&at("source"), &at("no/such/place"), None)).contains("in the guest: "));
    assert!(text(bench.agent.copy_out(&at("source"), &at("no/such/place"))).contains("cannot write to"));
    assert_eq!(run(&bench.agent, &["true"]).0, crate::agent::Outcome::Exited(0), "the agent goes on");
}

/// An entry as the wire has it.
fn entry(kind: u8, name: &str, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    if kind != 3 {
        bytes.extend_from_slice(&0o755u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 12]);
    }
    std::ffi::OsString::from(name).put(&mut bytes);
    bytes.extend_from_slice(rest);
    bytes
}

fn link(name: &str, target: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::ffi::OsString::from(target).put(&mut bytes);
    entry(3, name, &bytes)
}

#[test]
fn no_stream_escapes() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let file = |name: &str| entry(1, name, &[1, 0, 0, 0, b'x', 0, 0, 0, 0]);
    let target = outside.to_str().unwrap();
    let mut streams: Vec<Vec<u8>> = ["..", ".", "", "a/b", "../out/x", "a\0b"].map(file).to_vec();
    // A link that the stream made, then a directory, and a file, of the same name.
    streams.push([entry(2, "d", &[]), link("l", target), entry(2, "l", &[]), file("evil")].concat());
    streams.push([entry(2, "d", &[]), link("evil", &format!("{target}/evil")), entry(2, "evil", &[])].concat());
    // More ends than beginnings; a piece that is too large; no end.
    streams.push(vec![4, 4, 0]);
    streams.push(entry(1, "f", &[0xff; 4]));
    streams.push(entry(2, "d", &[4]));
    streams.push((0..300).flat_map(|_| entry(2, "d", &[])).collect());
    for stream in &streams {
        tree::unpack(&inside, &mut stream.as_slice()).unwrap_err();
    }
    // A file over a link replaces the link.
    let stream = [entry(2, "e", &[]), link("evil", &format!("{target}/evil")), file("evil"), vec![4, 0]].concat();
    tree::unpack(&inside, &mut stream.as_slice()).unwrap();
    assert!(fs::symlink_metadata(inside.join("e/evil")).unwrap().is_file());
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something got out");
}

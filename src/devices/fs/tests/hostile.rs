//! What no driver should ask for, and hosts on which things move meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// What must stay out of reach: a file beside the shared directory.
struct Trap {
    mount: Mount,
    outside: TempDir,
}

const SECRET: &str = "secret";

fn trap(options: &str) -> Trap {
    let outside = crate::fs::testing::scratch();
    fs::write(outside.path().join("file"), SECRET).unwrap();
    Trap { mount: Mount::new(options), outside }
}

#[test]
fn names_lead_nowhere_else() {
    let Trap { mut mount, outside } = trap(",mode=rw");
    let inside = mount.mkdir(ROOT, "dir", 0o700).unwrap().node;
    let (file, _) = mount.create(inside, "file", libc::O_RDWR, 0o600).unwrap();
    let absolute = format!("{}/file", outside.path().display());
    for name in ["", ".", "..", "/", "../x", "dir/file", "/etc/passwd", &absolute, "x/"] {
        for parent in [ROOT, inside] {
            assert_eq!(mount.lookup(parent, name), Err(libc::EINVAL), "{name}");
            assert_eq!(mount.create(parent, name, libc::O_RDWR, 0o600), Err(libc::EINVAL));
            assert_eq!(mount.mkdir(parent, name, 0o700), Err(libc::EINVAL));
            assert_eq!(mount.unlink(parent, name), Err(libc::EINVAL));
            assert_eq!(mount.call(Opcode::Rmdir, parent, &args![name]), Err(libc::EINVAL));
            assert_eq!(mount.rename((parent, name), (ROOT, "x"), 0), Err(libc::EINVAL));
            assert_eq!(mount.rename((inside, "file"), (parent, name), 0), Err(libc::EINVAL));
            assert_eq!(mount.call(Opcode::Link, parent, &args![file.node, name]), Err(libc::EINVAL));
            assert_eq!(mount.call(Opcode::Symlink, parent, &args![name, "x"]), Err(libc::EINVAL));
            let mknod = args![0o100_600u32, 0u32, 0u32, 0u32, name];
            assert_eq!(mount.call(Opcode::Mknod, parent, &mknod), Err(libc::EINVAL));
        }
    }
    let long = "x".repeat(256);
    assert_eq!(mount.lookup(ROOT, &long), Err(libc::ENAMETOOLONG));
    assert_eq!(mount.call(Opcode::Lookup, ROOT, b"no end"), Err(libc::EINVAL));
    // What is behind a NUL is not part of the name.
    assert_eq!(mount.call(Opcode::Lookup, ROOT, b"dir\0/../x\0").map(|bytes| Entry::parse(&bytes).node), Ok(inside));
}

#[test]
fn symbolic_links_are_followed_by_nobody_here() {
    let Trap { mut mount, outside } = trap(",mode=rw");
    symlink(outside.path(), mount.path("dir")).unwrap();
    symlink(outside.path().join("file"), mount.path("file")).unwrap();
    let (dir, file) = (mount.walk("dir"), mount.walk("file"));
    assert_eq!(mount.lookup(dir, "file"), Err(libc::ENOTDIR));
    assert_eq!(mount.opendir(dir), Err(libc::ENOTDIR));
    assert_eq!(mount.create(dir, "new", libc::O_RDWR, 0o600), Err(libc::ENOTDIR));
    assert_eq!(mount.open(file, libc::O_RDWR), Err(libc::ELOOP));
    // As a file to be made: the link is there, and it is one.
    assert_eq!(mount.create(ROOT, "file", libc::O_RDWR | libc::O_TRUNC, 0o600), Err(libc::ELOOP));
    let value = args![1u32, 0u32, "user.x", b"1".as_slice()];
    assert!(mount.call(Opcode::Setxattr, file, &value).is_err(), "links have no such attributes");
    let change = Change { valid: fattr::MTIME, mtime: (5, 0), ..Change::default() };
    mount.setattr(file, change).unwrap();
    let meta = fs::metadata(outside.path().join("file")).unwrap();
    assert_ne!(meta.mtime(), 5);
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), SECRET);
}

/// Something on the host turns a directory into a link and back while the guest works in it.
#[test]
fn a_directory_that_turns_into_a_link() {
    let Trap { mut mount, outside } = trap(",mode=rw");
    fs::create_dir(mount.path("dir")).unwrap();
    fs::write(mount.path("dir/file"), "fine").unwrap();
    symlink(outside.path(), mount.path("link")).unwrap();
    let (stop, dir) = (Arc::new(AtomicBool::new(false)), mount.dir.path().to_owned());
    let swapper = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    dir.join("dir"),
                    rustix::fs::CWD,
                    dir.join("link"),
                    exchange,
                )
                .unwrap();
            }
        })
    };
    let mut seen = [0; 2];
    for round in 0..3000 {
        let Ok(entry) = mount.lookup(ROOT, "dir") else { continue };
        let found = mount.lookup(entry.node, "file");
        let opened = found.and_then(|file| {
            assert_eq!(file.size, 4, "attributes from outside");
            mount.open(file.node, libc::O_RDWR)
        });
        if let Ok(handle) = opened {
            assert_eq!(mount.read(handle, 0, 100).unwrap(), b"fine");
            mount.release(handle).unwrap();
        }
        seen[usize::from(opened.is_ok())] += 1;
        if let Ok((_, handle)) = mount.create(entry.node, &format!("new{round}"), libc::O_RDWR, 0o600) {
            mount.release(handle).unwrap();
        }
        let _ = mount.unlink(entry.node, &format!("new{round}"));
        if round % 3 == 0 {
            mount.forget(entry.node, 1 << 40);
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    println!("of 3000 rounds {} saw the link, {} the directory", seen[0], seen[1]);
    assert!(seen[1] > 0);
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"], "made outside");
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), SECRET);
}

#[test]
fn a_directory_that_is_moved_away() {
    let Trap { mut mount, outside } = trap(",mode=rw");
    fs::create_dir_all(mount.path("a/b")).unwrap();
    fs::write(mount.path("a/b/file"), "x").unwrap();
    let (a, b) = (mount.walk("a"), mount.walk("a/b"));
    let file = mount.walk("a/b/file");
    fs::rename(mount.path("a"), outside.path().join("a")).unwrap();
    assert_eq!(mount.lookup(ROOT, "a"), Err(libc::ENOENT));
    // From there, there is no way up: `..` is no name, and what is not there by its name is stale.
    assert_eq!(mount.lookup(b, ".."), Err(libc::EINVAL));
    assert_eq!(mount.lookup(a, "file"), Err(libc::ENOENT));
    fs::remove_dir_all(outside.path().join("a")).unwrap();
    assert!(mount.open(file, libc::O_RDONLY).is_err());
    assert!(mount.create(b, "new", libc::O_RDWR, 0o600).is_err());
    // Another file under an old name is not the old file.
    fs::create_dir_all(mount.path("a/b")).unwrap();
    fs::write(mount.path("a/b/file"), "y").unwrap();
    assert_ne!(mount.walk("a/b/file"), file);
    assert!(mount.getattr(file).is_err());
}

#[test]
fn pipes_and_devices_of_the_host_are_never_opened() {
    let mut mount = Mount::new(",mode=rw");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, mount.path("pipe"), fifo, 0o600.into(), 0).unwrap();
    // Would wait for ever for somebody to write.
    assert_eq!(mount.create(ROOT, "pipe", libc::O_RDONLY, 0o600), Err(libc::ENXIO));
    let pipe = mount.walk("pipe");
    for change in [fattr::SIZE, fattr::SIZE | fattr::KILL_SUIDGID] {
        assert_eq!(mount.setattr(pipe, Change { valid: change, ..Change::default() }), Err(libc::EINVAL));
    }
    assert_eq!(mount.opendir(pipe), Err(libc::ENOTDIR));
    // It is a file when the guest looks, and a pipe when it opens it.
    fs::write(mount.path("file"), "x").unwrap();
    let file = mount.walk("file");
    fs::rename(mount.path("pipe"), mount.path("file")).unwrap();
    assert_eq!(mount.open(file, libc::O_RDONLY), Err(libc::ESTALE));
}

#[test]
fn numbers_that_were_never_given_out() {
    let mut mount = Mount::new(",mode=rw");
    fs::write(mount.path("file"), "x").unwrap();
    let file = mount.walk("file");
    let dir = mount.opendir(ROOT).unwrap();
    let handle = mount.open(file, libc::O_RDWR).unwrap();
    for node in [0, 99, u64::MAX, 1 << 63] {
        for opcode in (0..60).filter_map(Opcode::new) {
            // Those that are about no node in particular, or have no answer.
            let whole = matches!(opcode, Opcode::Init | Opcode::Destroy | Opcode::Syncfs);
            if !whole && !matches!(opcode, Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt) {
                assert!(mount.call(opcode, node, &[0xff; 200]).is_err(), "{opcode:?}");
                assert!(mount.call(opcode, node, &args![u64::MAX, u64::MAX, "x", "y"]).is_err(), "{opcode:?}");
            }
        }
        mount.forget(node, u64::MAX);
    }
    // A directory is no file, and the other way round.
    assert_eq!(mount.read(dir, 0, 10), Err(libc::EBADF));
    assert_eq!(mount.write(dir, 0, b"x"), Err(libc::EBADF));
    let readdir = args![handle, 0u64, 100u32, 0u32, 0u64, 0u32, 0u32];
    assert_eq!(mount.call(Opcode::Readdir, ROOT, &readdir), Err(libc::EBADF));
    assert!(mount.read(handle, u64::MAX, 10).is_err());
    assert!(mount.write(handle, u64::MAX, b"x").is_err());
    let far = args![dir, u64::MAX, 4096u32, 0u32, 0u64, 0u32, 0u32];
    let _ = mount.call(Opcode::Readdir, ROOT, &far);
    assert_eq!(mount.call(Opcode::Lookup, file, &args!["x"]), Err(libc::ENOTDIR));
}

#[test]
fn requests_cut_short_and_drawn_long() {
    let mut mount = Mount::new(",mode=rw");
    fs::write(mount.path("file"), "x").unwrap();
    let file = mount.walk("file");
    let handle = mount.open(file, libc::O_RDWR).unwrap();
    for opcode in 0..100u32 {
        if Opcode::new(opcode).is_some_and(|op| matches!(op, Opcode::Destroy | Opcode::Forget | Opcode::BatchForget)) {
            continue;
        }
        for len in [0, 1, 3, 4, 7, 8, 12, 15, 16, 17, 31] {
            let _ = mount.call_with_room(opcode, file, &vec![0; len], 8);
        }
    }
    mount.init();
    assert_eq!(mount.call(Opcode::Lookup, ROOT, &vec![b'x'; 200_000]), Err(libc::E2BIG));
    assert_eq!(mount.call_with_room(9999, ROOT, &[], 8), Err(libc::ENOSYS));
    let file = mount.walk("file");
    let handle = {
        let _ = handle;
        mount.open(file, libc::O_RDWR).unwrap()
    };
    // More data announced than sent, and less.
    let args = args![handle, 0u64, 1000u32, 0u32, 0u64, 0u32, 0u32, b"few".as_slice()];
    assert_eq!(mount.call(Opcode::Write, file, &args), Err(libc::EINVAL));
    let args = args![handle, 0u64, 2u32, 0u32, 0u64, 0u32, 0u32, b"few".as_slice()];
    assert_eq!(mount.call(Opcode::Write, file, &args), Ok(args![2u32, 0u32]));
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"fe");
    let args = args![handle, 0u64, u32::MAX, 0u32, 0u64, 0u32, 0u32];
    assert_eq!(
        mount.call_with_room(Opcode::Read as u32, file, &args, 8).unwrap(),
        b"fe",
        "no more than there is room for"
    );
    // No room for the answer: nobody gets one.
    let header = mount.header(Opcode::Getattr as u32, ROOT, 16);
    for room in [&[][..], &[1], &[15]] {
        assert_eq!(mount.kit.request(REQUESTS, &[&header, &[0; 16]], room).len, 0);
    }
    assert_eq!(mount.call_with_room(Opcode::Getattr as u32, ROOT, &[0; 16], 50), Err(libc::ERANGE));
    // No header: the device stops until it is reset.
    mount.kit.add(REQUESTS, &[Part::Out(&header[..39]), Part::In(100)]);
    mount.kit.notify(REQUESTS);
    mount.kit.wait_broken();
    mount.kit.reset();
    mount.kit.activate(0);
    mount.init();
    mount.walk("file");
}

#[test]
fn bounds_on_what_the_host_keeps() {
    let mut mount = Mount::new(",mode=rw");
    fs::write(mount.path("file"), "x").unwrap();
    let file = mount.walk("file");
    let opened = (0..100).map(|_| mount.open(file, libc::O_RDONLY)).collect::<Vec<_>>();
    assert_eq!(opened.iter().filter(|result| result.is_ok()).count(), 16);
    assert_eq!(opened[99], Err(libc::ENFILE));
    assert_eq!(mount.opendir(ROOT), Err(libc::ENFILE));
    assert_eq!(mount.create(ROOT, "new", libc::O_RDWR, 0o600), Err(libc::ENFILE));
    assert!(!mount.path("new").exists());
    opened.into_iter().flatten().for_each(|handle| drop(mount.release(handle).unwrap()));
    // Files without a name keep their descriptors: so many, and no more.
    for i in 0..100 {
        if let Ok((_, handle)) = mount.create(ROOT, "new", libc::O_RDWR, 0o600) {
            mount.release(handle).unwrap();
        }
        mount.unlink(ROOT, "new").unwrap_or_else(|e| panic!("{i}: {e}"));
    }
    let mut refused = 0;
    for _ in 0..20 {
        match mount.call(Opcode::Tmpfile, ROOT, &args![2u32, 0o600u32, 0u32, 0u32, "/"]) {
            Ok(bytes) => drop(mount.release(u64_at(&bytes, 128)).unwrap()),
            Err(e) => {
                assert_eq!(e, libc::ENFILE);
                refused += 1;
            }
        }
    }
    assert!(refused >= 12, "{refused}");
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let open = open.filter(|path| path.to_string_lossy().starts_with(mount.dir.path().to_str().unwrap())).count();
    assert!(open <= 40, "{open} descriptors are open");
    // The guest never forgets.
    let mut made = 0;
    while mount.mkdir(ROOT, &format!("d{made}"), 0o700).is_ok() {
        made += 1;
        assert!(made < 2000, "nodes without bound");
    }
    assert_eq!(mount.mkdir(ROOT, "one more", 0o700), Err(libc::ENOMEM));
    mount.init();
    mount.mkdir(ROOT, "and again", 0o700).unwrap();
}

#[test]
fn an_answer_is_not_late_when_many_wait() {
    let mut mount = Mount::new("");
    fs::write(mount.path("file"), "x").unwrap();
    mount.kit.reset();
    mount.kit.activate_on_loop(0);
    mount.init();
    let header = mount.header(Opcode::Lookup as u32, ROOT, 5);
    for _ in 0..100 {
        mount.kit.add_indirect(REQUESTS, &[Part::Out(&header), Part::Out(b"file\0"), Part::In(16), Part::In(128)]);
    }
    mount.kit.notify(REQUESTS);
    for _ in 0..100 {
        let used = mount.kit.used_within(REQUESTS, LIMIT).unwrap();
        assert_eq!(used.len, 144);
    }
    let node = mount.walk("file");
    mount.forget(node, 100);
    assert!(mount.getattr(node).is_ok(), "told 101 times");
    mount.forget(node, 1);
    assert_eq!(mount.getattr(node), Err(libc::ESTALE));
}

//! `guest-tool posix DIR`: what programs rely on in a file system, tried in DIR. Each line printed is `ok NAME` or
//! `not ok NAME: WHY`.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

unsafe extern "C" {
    fn mkfifo(path: *const c_char, mode: c_uint) -> c_int;
    fn mknod(path: *const c_char, mode: c_uint, device: u64) -> c_int;
    fn renameat2(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_uint) -> c_int;
    fn link(old: *const c_char, new: *const c_char) -> c_int;
    fn linkat(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_int) -> c_int;
    fn umask(mask: c_uint) -> c_uint;
    fn flock(fd: c_int, how: c_int) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fn copy_file_range(a: c_int, x: *mut i64, b: c_int, y: *mut i64, len: usize, flags: c_uint) -> isize;
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, len: usize, flags: c_int) -> c_int;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, len: usize) -> isize;
    fn mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn msync(at: *mut c_void, len: usize, flags: c_int) -> c_int;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    fn setgid(gid: c_uint) -> c_int;
    fn setuid(uid: c_uint) -> c_int;
    fn chdir(path: *const c_char) -> c_int;
    fn syncfs(fd: c_int) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn geteuid() -> c_uint;
}

const AT_FDCWD: c_int = -100;
const AT_SYMLINK_FOLLOW: c_int = 0x400;
const O_TMPFILE: c_int = 0o20_200_000;
const O_DIRECTORY: c_int = 0o200_000;
const O_NOFOLLOW: c_int = 0o400_000;
const O_EXCL: c_int = 0o200;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ELOOP: i32 = 40;

type Result = std::result::Result<(), String>;

/// Fails with the condition as it stands here.
macro_rules! check {
    ($condition:expr) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!("line {}: {}", line!(), stringify!($condition)));
        }
    };
}

/// What must go well.
macro_rules! must {
    ($call:expr) => {
        $call.map_err(|e| format!("line {}: {}: {e}", line!(), stringify!($call)))?
    };
}

/// What must fail with this error.
macro_rules! fails {
    ($call:expr, $error:expr) => {
        match $call {
            Ok(_) => return Err(format!("line {}: {} did not fail", line!(), stringify!($call))),
            Err(e) => {
                let e: io::Error = e;
                if e.raw_os_error() != Some($error) {
                    return Err(format!("line {}: {}: {e}, not {}", line!(), stringify!($call), stringify!($error)));
                }
            }
        }
    };
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default()
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).map_or(0, |meta| meta.mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Calls `work` in a process of user and group 1000, which must succeed.
fn as_user(work: impl FnOnce() -> Result) -> Result {
    // SAFETY: this program has one thread.
    unsafe {
        let child = fork();
        if child == 0 {
            let dropped = setgroups(0, std::ptr::null()) == 0 && setgid(1000) == 0 && setuid(1000) == 0;
            let result = if dropped { work() } else { Err("cannot become user 1000".into()) };
            if let Err(why) = &result {
                println!("# as user 1000: {why}");
            }
            _exit(result.is_err().into());
        }
        let mut status = 0;
        waitpid(child, &mut status, 0);
        if status == 0 { Ok(()) } else { Err("as user 1000, see above".into()) }
    }
}

fn exchange(old: &Path, new: &Path, flags: c_uint) -> io::Result<()> {
    // SAFETY: both are strings.
    done(unsafe { renameat2(AT_FDCWD, c(old).as_ptr(), AT_FDCWD, c(new).as_ptr(), flags) })
}

fn hard_link(old: &Path, new: &Path) -> io::Result<()> {
    // SAFETY: both are strings. Rust's own follows no links on some systems and does on others.
    done(unsafe { link(c(old).as_ptr(), c(new).as_ptr()) })
}

/// Every check, with a directory of its own.
const CHECKS: &[(&str, fn(&Path) -> Result)] = &[
    ("open", open),
    ("create", create),
    ("truncate", truncate),
    ("append", append),
    ("unlink", unlink),
    ("directories", directories),
    ("removed directory", removed_directory),
    ("rename", rename),
    ("rename of directories", rename_directories),
    ("renameat2", renameat2_flags),
    ("hard links", hard_links),
    ("symbolic links", symbolic_links),
    ("special files", special_files),
    ("names", odd_names),
    ("permissions", permissions),
    ("set-user-ID", set_user_id),
    ("sticky", sticky),
    ("set-group-ID", set_group_id),
    ("umask", masks),
    ("chown", owners),
    ("times", times),
    ("temporary files", temporary),
    ("holes", holes),
    ("copies", copies),
    ("extended attributes", attributes),
    ("memory", memory),
    ("locks", locks),
    ("many files", many),
    ("deep", deep),
    ("reading while writing", reading_while_writing),
    ("sync", sync),
];

/// Tries all of it in `dir`; the number of failures.
pub fn posix(dir: &str) -> io::Result<()> {
    let mut failed = 0;
    for (name, check) in CHECKS {
        let place = PathBuf::from(dir).join(name.replace(' ', "-"));
        fs::create_dir(&place)?;
        set_mode(&place, 0o777)?;
        // SAFETY: sets a number.
        unsafe { umask(0o022) };
        match check(&place) {
            Ok(()) => println!("ok {name}"),
            Err(why) => {
                println!("not ok {name}: {why}");
                failed += 1;
            }
        }
        std::env::set_current_dir("/")?;
        fs::remove_dir_all(&place)?;
    }
    println!("posix: {} of {} failed", failed, CHECKS.len());
    if failed == 0 { Ok(()) } else { Err(Error::other("see above")) }
}

fn open(dir: &Path) -> Result {
    let path = dir.join("file");
    fails!(File::open(&path), ENOENT);
    must!(fs::write(&path, "content"));
    fails!(File::open(path.join("x")), ENOTDIR);
    fails!(OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(&path), ENOTDIR);
    fails!(OpenOptions::new().write(true).open(dir), EISDIR);
    let mut file = must!(File::open(&path));
    let mut text = String::new();
    must!(file.read_to_string(&mut text));
    check!(text == "content");
    check!(file.write_at(b"x", 0).is_err());
    check!(must!(file.seek(SeekFrom::End(-3))) == 4);
    check!(must!(file.read_at(&mut [0; 10], 100)) == 0);
    let file = must!(OpenOptions::new().write(true).open(&path));
    check!(file.read_at(&mut [0; 1], 0).is_err());
    Ok(())
}

fn create(dir: &Path) -> Result {
    let path = dir.join("file");
    let new = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
    must!(new());
    check!(mode(&path) == 0o640);
    fails!(new(), EEXIST);
    // A mode that allows nothing still lets its maker write.
    let closed = dir.join("closed");
    let file = must!(OpenOptions::new().write(true).create_new(true).mode(0).open(&closed));
    must!((&file).write_all(b"x"));
    check!(mode(&closed) == 0 && must!(file.metadata()).len() == 1);
    as_user(|| {
        let file = must!(OpenOptions::new().write(true).create_new(true).mode(0o444).open(dir.join("read-only")));
        must!((&file).write_all(b"x"));
        fails!(OpenOptions::new().write(true).open(dir.join("read-only")), EACCES);
        Ok(())
    })?;
    let before = must!(fs::metadata(dir)).mtime_nsec();
    must!(fs::write(dir.join("another"), ""));
    check!(must!(fs::metadata(dir)).mtime_nsec() != before);
    Ok(())
}

fn truncate(dir: &Path) -> Result {
    let path = dir.join("file");
    must!(fs::write(&path, vec![7; 10_000]));
    let file = must!(OpenOptions::new().read(true).write(true).open(&path));
    must!(file.set_len(5000));
    must!(file.set_len(9000));
    let content = must!(fs::read(&path));
    check!(content.len() == 9000 && content[4999] == 7 && content[5000..].iter().all(|&byte| byte == 0));
    must!(file.write_at(b"end", 20_000));
    check!(must!(fs::metadata(&path)).len() == 20_003);
    let again = must!(OpenOptions::new().write(true).truncate(true).open(&path));
    check!(must!(file.metadata()).len() == 0 && must!(again.metadata()).len() == 0);
    check!(must!(file.read_at(&mut [0; 10], 0)) == 0);
    Ok(())
}

fn append(dir: &Path) -> Result {
    let path = dir.join("file");
    let mut ends = Vec::new();
    for _ in 0..3 {
        ends.push(must!(OpenOptions::new().append(true).create(true).open(&path)));
    }
    for round in 0..50u8 {
        for (mut end, i) in ends.iter().zip(0u8..) {
            must!(end.write_all(&[round, i]));
        }
    }
    let content = must!(fs::read(&path));
    let expected: Vec<u8> = (0..50).flat_map(|round| [round, 0, round, 1, round, 2]).collect();
    check!(content == expected);
    Ok(())
}

fn unlink(dir: &Path) -> Result {
    let path = dir.join("file");
    fails!(fs::remove_file(&path), ENOENT);
    let file = must!(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path));
    must!(fs::remove_file(&path));
    fails!(fs::metadata(&path), ENOENT);
    must!((&file).write_all(b"still there"));
    must!(set_mode(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), 0o600));
    must!(file.set_len(5));
    let meta = must!(file.metadata());
    check!(meta.nlink() == 0 && meta.len() == 5);
    must!(fs::write(&path, "another"));
    check!(must!(fs::metadata(&path)).ino() != meta.ino());
    let mut content = [0; 20];
    check!(must!(file.read_at(&mut content, 0)) == 5 && &content[..5] == b"still");
    fails!(fs::remove_file(dir.join("file/x")), ENOTDIR);
    fails!(fs::remove_file(dir), EISDIR);
    Ok(())
}

fn directories(dir: &Path) -> Result {
    let path = dir.join("dir");
    must!(fs::create_dir(&path));
    fails!(fs::create_dir(&path), EEXIST);
    check!(mode(&path) == 0o755 && must!(fs::metadata(&path)).nlink() == 2);
    must!(fs::create_dir(path.join("inner")));
    check!(must!(fs::metadata(&path)).nlink() == 3);
    must!(fs::write(path.join("file"), ""));
    check!(must!(names(&path)) == ["file", "inner"]);
    fails!(fs::remove_dir(&path), ENOTEMPTY);
    fails!(fs::remove_dir(path.join("file")), ENOTDIR);
    fails!(fs::create_dir(path.join("none/x")), ENOENT);
    must!(fs::remove_file(path.join("file")));
    must!(fs::remove_dir(path.join("inner")));
    check!(must!(fs::metadata(&path)).nlink() == 2 && must!(names(&path)).is_empty());
    must!(fs::remove_dir(&path));
    fails!(fs::metadata(&path), ENOENT);
    // Removing names while the directory is read loses none of the others.
    for i in 0..300 {
        must!(fs::write(dir.join(format!("n{i}")), ""));
    }
    let mut seen = 0;
    for entry in must!(fs::read_dir(dir)) {
        must!(fs::remove_file(must!(entry).path()));
        seen += 1;
    }
    check!(seen == 300 && must!(names(dir)).is_empty());
    Ok(())
}

fn removed_directory(dir: &Path) -> Result {
    let path = dir.join("dir");
    must!(fs::create_dir(&path));
    // SAFETY: a string.
    must!(done(unsafe { chdir(c(&path).as_ptr()) }));
    must!(fs::remove_dir(&path));
    fails!(fs::write("file", ""), ENOENT);
    fails!(fs::create_dir("dir"), ENOENT);
    check!(must!(fs::metadata(".")).is_dir());
    check!(must!(names(Path::new("."))).is_empty());
    Ok(())
}

fn rename(dir: &Path) -> Result {
    let (a, b) = (dir.join("a"), dir.join("b"));
    must!(fs::write(&a, "a"));
    must!(fs::write(&b, "b"));
    let (kept, replaced) = (must!(File::open(&a)), must!(File::open(&b)));
    let number = must!(kept.metadata()).ino();
    must!(fs::rename(&a, &b));
    fails!(fs::metadata(&a), ENOENT);
    check!(must!(fs::read(&b)) == b"a" && must!(fs::metadata(&b)).ino() == number);
    check!(must!(replaced.metadata()).nlink() == 0);
    let mut byte = [0];
    check!(must!(replaced.read_at(&mut byte, 0)) == 1 && byte == *b"b");
    fails!(fs::rename(&a, &b), ENOENT);
    must!(fs::rename(&b, &b));
    must!(hard_link(&b, &a));
    must!(fs::rename(&a, &b));
    check!(must!(names(dir)) == ["a", "b"]);
    fails!(fs::rename(&a, dir.join("none/a")), ENOENT);
    fails!(fs::rename(&a, dir.join("b/a")), ENOTDIR);
    Ok(())
}

fn rename_directories(dir: &Path) -> Result {
    let (a, b) = (dir.join("a"), dir.join("b"));
    must!(fs::create_dir_all(a.join("inner/deep")));
    must!(fs::create_dir_all(&b));
    must!(fs::write(a.join("inner/deep/file"), "x"));
    let file = must!(File::open(a.join("inner/deep/file")));
    must!(fs::rename(a.join("inner"), b.join("moved")));
    check!(must!(fs::read(b.join("moved/deep/file"))) == b"x");
    check!(must!(fs::metadata(&a)).nlink() == 2 && must!(fs::metadata(&b)).nlink() == 3);
    check!(must!(file.metadata()).nlink() == 1);
    fails!(fs::rename(&b, b.join("moved/itself")), EINVAL);
    must!(fs::rename(&a, b.join("a")));
    must!(fs::create_dir(&a));
    fails!(fs::rename(&a, &b), ENOTEMPTY);
    must!(fs::rename(&b, &a));
    must!(fs::write(&b, ""));
    fails!(fs::rename(&a, &b), ENOTDIR);
    fails!(fs::rename(&b, &a), EISDIR);
    Ok(())
}

fn renameat2_flags(dir: &Path) -> Result {
    let (a, b) = (dir.join("a"), dir.join("b"));
    must!(fs::write(&a, "a"));
    must!(fs::create_dir(&b));
    fails!(exchange(&a, &b, 1), EEXIST);
    must!(exchange(&a, &b, 2));
    check!(must!(fs::metadata(&a)).is_dir() && must!(fs::read(&b)) == b"a");
    fails!(exchange(&a, &dir.join("none"), 2), ENOENT);
    must!(exchange(&a, &dir.join("c"), 1));
    check!(must!(names(dir)) == ["b", "c"]);
    Ok(())
}

fn hard_links(dir: &Path) -> Result {
    let (a, b) = (dir.join("a"), dir.join("b"));
    must!(fs::write(&a, "x"));
    must!(hard_link(&a, &b));
    let (one, two) = (must!(fs::metadata(&a)), must!(fs::metadata(&b)));
    check!(one.ino() == two.ino() && one.nlink() == 2 && two.nlink() == 2);
    must!(fs::write(&b, "longer"));
    check!(must!(fs::read(&a)) == b"longer");
    must!(fs::remove_file(&a));
    check!(must!(fs::metadata(&b)).nlink() == 1 && must!(fs::read(&b)) == b"longer");
    fails!(hard_link(&b, &b), EEXIST);
    fails!(hard_link(&a, &b), ENOENT);
    fails!(hard_link(dir, &a), EPERM);
    must!(symlink("b", dir.join("s")));
    must!(hard_link(&dir.join("s"), &a));
    check!(must!(fs::symlink_metadata(&a)).is_symlink());
    Ok(())
}

fn symbolic_links(dir: &Path) -> Result {
    let link = dir.join("link");
    must!(symlink("file", &link));
    check!(must!(fs::read_link(&link)).as_os_str() == "file");
    check!(must!(fs::symlink_metadata(&link)).len() == 4);
    fails!(File::open(&link), ENOENT);
    must!(fs::write(&link, "through"));
    check!(must!(fs::read(dir.join("file"))) == b"through");
    fails!(OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(&link), ELOOP);
    fails!(symlink("x", &link), EEXIST);
    must!(symlink("loop", dir.join("loop")));
    fails!(fs::metadata(dir.join("loop")), ELOOP);
    let long = "x/".repeat(1000);
    must!(symlink(&long, dir.join("long")));
    check!(must!(fs::read_link(dir.join("long"))).as_os_str().len() == 2000);
    must!(symlink(dir, dir.join("self")));
    check!(must!(fs::read(dir.join("self/self/file"))) == b"through");
    must!(fs::remove_file(dir.join("self")));
    Ok(())
}

fn special_files(dir: &Path) -> Result {
    let pipe = dir.join("pipe");
    // SAFETY: a string.
    must!(done(unsafe { mkfifo(c(&pipe).as_ptr(), 0o600) }));
    check!(must!(fs::metadata(&pipe)).file_type().is_fifo());
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::write(pipe, "through the pipe"))
    };
    check!(must!(fs::read(&pipe)) == b"through the pipe");
    check!(writer.join().is_ok_and(|result| result.is_ok()));
    // Short names: the path of a socket has little room.
    must!(std::env::set_current_dir(dir));
    let listener = must!(UnixListener::bind("socket"));
    let client = std::os::unix::net::UnixStream::connect("socket");
    check!(client.is_ok() && listener.accept().is_ok());
    check!(must!(fs::metadata("socket")).file_type().is_socket());
    fails!(File::open("socket"), 6);
    // SAFETY: it only asks.
    if unsafe { geteuid() } == 0 {
        let null = dir.join("null");
        // SAFETY: a string.
        if unsafe { mknod(c(&null).as_ptr(), 0o020_666, 0x103) } == 0 {
            check!(must!(fs::metadata(&null)).rdev() == 0x103);
            must!(fs::write(&null, "swallowed"));
        }
    }
    Ok(())
}

fn odd_names(dir: &Path) -> Result {
    let long = "n".repeat(255);
    for name in ["a b", "-", "\u{e4}\u{1f600}", "new\nline", "...", &long, "\u{1}\u{7f}"] {
        must!(fs::write(dir.join(name), name));
        check!(must!(fs::read(dir.join(name))) == name.as_bytes());
    }
    check!(must!(names(dir)).len() == 7);
    fails!(fs::write(dir.join("n".repeat(256)), ""), ENAMETOOLONG);
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe no UTF-8");
    must!(fs::write(dir.join(bytes), ""));
    check!(must!(fs::metadata(dir.join(bytes))).len() == 0);
    Ok(())
}

fn permissions(dir: &Path) -> Result {
    let (file, closed) = (dir.join("file"), dir.join("closed"));
    must!(fs::write(&file, "x"));
    must!(set_mode(&file, 0o600));
    must!(fs::create_dir(&closed));
    must!(fs::write(closed.join("file"), "x"));
    must!(set_mode(&closed, 0o711));
    as_user(|| {
        fails!(File::open(&file), EACCES);
        fails!(set_mode(&file, 0o777), EPERM);
        fails!(fs::read_dir(&closed), EACCES);
        check!(File::open(closed.join("file")).is_ok());
        fails!(fs::write(closed.join("new"), ""), EACCES);
        fails!(fs::remove_file(closed.join("file")), EACCES);
        fails!(fs::rename(closed.join("file"), dir.join("stolen")), EACCES);
        Ok(())
    })?;
    must!(set_mode(&closed, 0o700));
    as_user(|| {
        fails!(fs::metadata(closed.join("file")), EACCES);
        Ok(())
    })
}

fn set_user_id(dir: &Path) -> Result {
    let file = dir.join("file");
    must!(fs::write(&file, "x"));
    must!(chown(&file, Some(1000), Some(1000)));
    must!(set_mode(&file, 0o6777));
    check!(mode(&file) == 0o6777);
    as_user(|| must!(fs::File::options().write(true).open(&file)).write_all(b"new").map_err(|e| e.to_string()))?;
    check!(mode(&file) == 0o777);
    must!(set_mode(&file, 0o6777));
    as_user(|| Ok(must!(must!(fs::File::options().write(true).open(&file)).set_len(0))))?;
    check!(mode(&file) == 0o777);
    must!(set_mode(&file, 0o6777));
    must!(chown(&file, Some(1000), None));
    check!(mode(&file) == 0o777);
    Ok(())
}

fn sticky(dir: &Path) -> Result {
    must!(set_mode(dir, 0o1777));
    must!(fs::write(dir.join("root's"), ""));
    as_user(|| {
        fails!(fs::remove_file(dir.join("root's")), EPERM);
        fails!(fs::rename(dir.join("root's"), dir.join("mine")), EPERM);
        must!(fs::write(dir.join("mine"), ""));
        Ok(must!(fs::remove_file(dir.join("mine"))))
    })?;
    must!(set_mode(dir, 0o777));
    as_user(|| Ok(must!(fs::remove_file(dir.join("root's")))))
}

fn set_group_id(dir: &Path) -> Result {
    must!(chown(dir, None, Some(2000)));
    must!(set_mode(dir, 0o2777));
    as_user(|| {
        must!(fs::write(dir.join("file"), ""));
        Ok(must!(fs::create_dir(dir.join("dir"))))
    })?;
    let owner = |name: &str| fs::metadata(dir.join(name)).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o7777));
    check!(must!(owner("file")) == (1000, 2000, 0o644));
    check!(must!(owner("dir")) == (1000, 2000, 0o2755));
    Ok(())
}

fn masks(dir: &Path) -> Result {
    for (mask, expected) in [(0, 0o666), (0o077, 0o600), (0o777, 0)] {
        // SAFETY: sets a number.
        unsafe { umask(mask) };
        let (file, inner) = (dir.join(format!("f{mask}")), dir.join(format!("d{mask}")));
        must!(OpenOptions::new().write(true).create_new(true).open(&file));
        must!(fs::create_dir(&inner));
        check!(mode(&file) == expected && mode(&inner) == 0o777 & !mask);
        // So that whoever must remove it can.
        must!(set_mode(&inner, 0o700));
    }
    Ok(())
}

fn owners(dir: &Path) -> Result {
    let (file, link) = (dir.join("file"), dir.join("link"));
    must!(fs::write(&file, ""));
    must!(symlink("file", &link));
    must!(lchown(&link, Some(5), Some(6)));
    must!(chown(&link, Some(1000), None));
    let owner = |path: &Path| fs::symlink_metadata(path).map(|meta: fs::Metadata| (meta.uid(), meta.gid()));
    check!(must!(owner(&file)) == (1000, 0) && must!(owner(&link)) == (5, 6));
    as_user(|| {
        fails!(chown(&file, Some(0), None), EPERM);
        fails!(chown(&file, None, Some(5)), EPERM);
        must!(chown(&file, None, Some(1000)));
        must!(fs::write(dir.join("theirs"), ""));
        check!(must!(owner(&dir.join("theirs"))) == (1000, 1000));
        Ok(())
    })?;
    check!(must!(owner(&file)) == (1000, 1000));
    Ok(())
}

fn times(dir: &Path) -> Result {
    let path = dir.join("file");
    must!(fs::write(&path, "x"));
    let file = must!(OpenOptions::new().read(true).write(true).open(&path));
    let exact = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_001, 123_456_789);
    must!(file.set_times(fs::FileTimes::new().set_modified(exact).set_accessed(SystemTime::UNIX_EPOCH)));
    let meta = must!(fs::metadata(&path));
    check!((meta.mtime(), meta.mtime_nsec(), meta.atime()) == (1_000_000_001, 123_456_789, 0));
    must!(file.write_at(b"y", 0));
    check!(must!(file.metadata()).mtime() > 1_000_000_001);
    let ctime = |meta: fs::Metadata| (meta.ctime(), meta.ctime_nsec());
    let before = ctime(must!(fs::metadata(&path)));
    std::thread::sleep(Duration::from_millis(20));
    must!(set_mode(&path, 0o600));
    check!(ctime(must!(fs::metadata(&path))) > before);
    as_user(|| {
        fails!(must!(File::open(dir)).set_modified(exact), EPERM);
        Ok(())
    })
}

fn temporary(dir: &Path) -> Result {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).mode(0o604).open(dir);
    let file = must!(open(O_TMPFILE));
    must!((&file).write_all(b"content"));
    check!(must!(names(dir)).is_empty() && must!(file.metadata()).nlink() == 0);
    let (from, to) = (PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), dir.join("named"));
    // SAFETY: both are strings.
    let link =
        |from, to| done(unsafe { linkat(AT_FDCWD, c(from).as_ptr(), AT_FDCWD, c(to).as_ptr(), AT_SYMLINK_FOLLOW) });
    must!(link(&from, &to));
    check!(must!(fs::read(&to)) == b"content" && mode(&to) == 0o604);
    let never = must!(open(O_TMPFILE | O_EXCL));
    fails!(link(&PathBuf::from(format!("/proc/self/fd/{}", never.as_raw_fd())), &dir.join("never")), ENOENT);
    Ok(())
}

fn holes(dir: &Path) -> Result {
    let path = dir.join("file");
    let file = must!(OpenOptions::new().read(true).write(true).create_new(true).open(&path));
    let fd = file.as_raw_fd();
    must!(file.write_at(&[1; 4096], 1 << 20));
    // SAFETY: plain numbers.
    unsafe {
        check!(lseek(fd, 0, SEEK_DATA) == 1 << 20);
        check!(lseek(fd, 1 << 20, SEEK_HOLE) == (1 << 20) + 4096);
        must!(done(fallocate(fd, 0, 0, 1 << 21)));
        check!(must!(file.metadata()).len() == 1 << 21);
        must!(done(fallocate(fd, 3, 1 << 20, 4096)));
        check!(must!(file.metadata()).len() == 1 << 21);
    }
    check!(must!(fs::read(&path)).iter().all(|&byte| byte == 0));
    Ok(())
}

fn copies(dir: &Path) -> Result {
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    must!(fs::write(dir.join("from"), &content));
    let (from, to) = (must!(File::open(dir.join("from"))), must!(File::create(dir.join("to"))));
    let (mut at, mut out) = (10i64, 5i64);
    // SAFETY: the offsets live through the call.
    let count = unsafe { copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut out, 50_000, 0) };
    check!(count == 50_000 && at == 50_010);
    check!(must!(fs::read(dir.join("to")))[5..] == content[10..50_010]);
    must!(fs::copy(dir.join("from"), dir.join("whole")));
    check!(must!(fs::read(dir.join("whole"))) == content);
    Ok(())
}

fn attributes(dir: &Path) -> Result {
    let path = dir.join("file");
    must!(fs::write(&path, ""));
    let mut value = [0u8; 16];
    // SAFETY: strings, and a buffer of the length that is given.
    unsafe {
        let set = setxattr(c(&path).as_ptr(), c"user.test".as_ptr(), c"value".as_ptr().cast(), 5, 0);
        if set < 0 && Error::last_os_error().raw_os_error() == Some(95) {
            println!("# extended attributes: the host has none here");
            return Ok(());
        }
        check!(set == 0);
        check!(getxattr(c(&path).as_ptr(), c"user.test".as_ptr(), value.as_mut_ptr().cast(), 16) == 5);
        check!(&value[..5] == b"value");
        check!(getxattr(c(&path).as_ptr(), c"user.none".as_ptr(), value.as_mut_ptr().cast(), 16) == -1);
    }
    Ok(())
}

fn memory(dir: &Path) -> Result {
    let path = dir.join("file");
    let file = must!(OpenOptions::new().read(true).write(true).create_new(true).open(&path));
    must!(file.set_len(8192));
    must!(file.write_at(b"before", 4096));
    // SAFETY: a mapping of the file's two pages, used within them.
    unsafe {
        let at = mmap(std::ptr::null_mut(), 8192, 3, 1, file.as_raw_fd(), 0).cast::<u8>();
        check!(at as isize != -1);
        check!(std::slice::from_raw_parts(at.add(4096), 6) == b"before");
        at.copy_from_nonoverlapping(b"mapped".as_ptr(), 6);
        must!(done(msync(at.cast(), 8192, 4)));
        let mut content = [0; 6];
        check!(must!(file.read_at(&mut content, 0)) == 6 && &content == b"mapped");
        must!(file.write_at(b"written", 100));
        check!(std::slice::from_raw_parts(at.add(100), 7) == b"written");
        // It stays when the name and the descriptor are gone.
        must!(fs::remove_file(&path));
        drop(file);
        at.copy_from_nonoverlapping(b"again!".as_ptr(), 6);
        must!(done(msync(at.cast(), 8192, 4)));
        must!(done(munmap(at.cast(), 8192)));
    }
    Ok(())
}

fn locks(dir: &Path) -> Result {
    let path = dir.join("file");
    must!(fs::write(&path, ""));
    let (one, two) = (must!(File::open(&path)), must!(File::open(&path)));
    // SAFETY: plain numbers.
    unsafe {
        must!(done(flock(one.as_raw_fd(), 2)));
        fails!(done(flock(two.as_raw_fd(), 2 | 4)), 11);
        must!(done(flock(one.as_raw_fd(), 8)));
        must!(done(flock(two.as_raw_fd(), 2 | 4)));
    }
    Ok(())
}

fn many(dir: &Path) -> Result {
    for i in 0..1500 {
        must!(fs::write(dir.join(format!("file{i}")), i.to_string()));
    }
    let found = must!(names(dir));
    check!(found.len() == 1500);
    let numbers: std::collections::BTreeSet<_> =
        must!(fs::read_dir(dir)).filter_map(|entry| Some(entry.ok()?.metadata().ok()?.ino())).collect();
    check!(numbers.len() == 1500);
    for i in (0..1500).step_by(7) {
        check!(must!(fs::read_to_string(dir.join(format!("file{i}")))) == i.to_string());
    }
    Ok(())
}

fn deep(dir: &Path) -> Result {
    let mut path = dir.to_owned();
    for i in 0..60 {
        path.push(format!("d{i}"));
        must!(fs::create_dir(&path));
    }
    must!(fs::write(path.join("file"), "deep"));
    must!(fs::rename(dir.join("d0"), dir.join("e0")));
    let moved = PathBuf::from(path.to_string_lossy().replacen("/d0/", "/e0/", 1));
    check!(must!(fs::read(moved.join("file"))) == b"deep");
    fails!(fs::metadata(path.join("file")), ENOENT);
    Ok(())
}

fn reading_while_writing(dir: &Path) -> Result {
    let path = dir.join("file");
    let writer = must!(File::create(&path));
    let reader = must!(File::open(&path));
    let mut content = Vec::new();
    for i in 0..200u32 {
        let piece = vec![i as u8; 997];
        must!((&writer).write_all(&piece));
        content.extend(piece);
        let mut last = [0; 10];
        check!(must!(reader.read_at(&mut last, content.len() as u64 - 10)) == 10 && last == [i as u8; 10]);
    }
    check!(must!(fs::read(&path)) == content);
    Ok(())
}

fn sync(dir: &Path) -> Result {
    let file = must!(File::create(dir.join("file")));
    must!((&file).write_all(b"x"));
    must!(file.sync_all());
    must!(file.sync_data());
    let directory = must!(File::open(dir));
    must!(directory.sync_all());
    // SAFETY: a descriptor.
    must!(done(unsafe { syncfs(directory.as_raw_fd()) }));
    Ok(())
}

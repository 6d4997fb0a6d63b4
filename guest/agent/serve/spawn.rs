//! Starting a command: pipes or a terminal, the user, the environment, and what exactly went wrong if it does not start.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::users::{self, User};
use crate::protocol::wire::Wire;
use crate::protocol::{Exec, Outcome, Task, tree};
use crate::sys;

/// As docker has it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Of copies.
const BUFFER: usize = 64 << 10;

/// A process that was made; whether it became the command is what `report` tells.
#[derive(Debug)]
pub struct Spawned {
    pub pid: i32,
    /// Ends when the command runs; has an [`Outcome`] before if it cannot.
    pub report: File,
    pub stdin: Option<File>,
    pub stdout: File,
    /// None on a terminal.
    pub stderr: Option<File>,
    pub terminal: bool,
}

/// The agent's ends of what the command has as 0, 1 and 2, and the command's.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    theirs: [OwnedFd; 3],
}

/// Makes a process for `exec`.
pub fn spawn(exec: &Exec) -> Result<Spawned, Outcome> {
    let failed = |what: &'static str| move |e: io::Error| Outcome::Failed(format!("cannot {what}: {}", reason(&e)));
    let user = users::find(exec.user.as_deref()).map_err(Outcome::Failed)?;
    let streams = streams(exec).map_err(failed("make pipes or a terminal for the command"))?;
    let (report, tell) = sys::pipe().map(|(r, w)| (File::from(r), File::from(w))).map_err(failed("make a pipe"))?;
    let stdio = streams.theirs.each_ref().map(AsRawFd::as_raw_fd);
    let user = &user;
    let child = move || begin(exec, user, stdio, tell);
    let pid = sys::spawn(child).map_err(failed("make a process"))?;
    for fd in [Some(&streams.stdout), streams.stdin.as_ref(), streams.stderr.as_ref()].into_iter().flatten() {
        sys::set_nonblocking(fd).map_err(failed("set up a pipe"))?;
    }
    sys::set_nonblocking(&report).map_err(failed("set up a pipe"))?;
    Ok(Spawned {
        pid,
        report,
        stdin: streams.stdin.map(File::from),
        stdout: streams.stdout.into(),
        stderr: streams.stderr.map(File::from),
        terminal: exec.terminal.is_some(),
    })
}

fn streams(exec: &Exec) -> io::Result<Streams> {
    if let Some(size) = exec.terminal {
        let (main, peer) = sys::pseudo_terminal(size.columns, size.rows)?;
        let theirs = [peer.try_clone()?, peer.try_clone()?, peer];
        return Ok(Streams { stdin: Some(main.try_clone()?), stdout: main, stderr: None, theirs });
    }
    let (stdin, read) = match exec.stdin {
        true => sys::pipe().map(|(read, write)| (Some(write), read))?,
        false => (None, File::open("/dev/null")?.into()),
    };
    let (stdout, write) = sys::pipe()?;
    let (stderr, errors) = sys::pipe()?;
    Ok(Streams { stdin, stdout, stderr: Some(stderr), theirs: [read, write, errors] })
}

/// The new process: becomes the command, or does what needs no program of its own. Returns its status.
fn begin(exec: &Exec, user: &User, stdio: [RawFd; 3], mut tell: File) -> u8 {
    let outcome = match (prepare(exec, user, stdio), &exec.task) {
        (Err(outcome), _) => outcome,
        (Ok(()), Task::Command(arguments)) => become_program(arguments, &environment(exec, user)),
        (Ok(()), task) => {
            // Also `tell`, and what else a new program would not have.
            sys::close_others();
            let copied = copy(task);
            return copied.inspect_err(|e| eprintln!("{e}")).is_err().into();
        }
    };
    let mut bytes = Vec::new();
    outcome.put(&mut bytes);
    // If that fails there is nobody to tell.
    let _ = tell.write_all(&bytes);
    127
}

fn prepare(exec: &Exec, user: &User, stdio: [RawFd; 3]) -> Result<(), Outcome> {
    let failed = |what: String| move |e: io::Error| Outcome::Failed(format!("cannot {what}: {}", reason(&e)));
    sys::begin_program(stdio, exec.terminal.is_some()).map_err(failed("give the command its streams".into()))?;
    // Only the agent is spared. Missing in a kernel that kills nobody, or without /proc.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    if exec.terminal.is_some() {
        // So that programs can open it again by name. Fails on the file systems of others.
        let _ = std::os::unix::fs::fchown(io::stdin(), Some(user.uid), None);
    }
    // An agent that is not root can only start what runs as itself.
    if sys::user() == 0 || user.uid != sys::user() {
        sys::become_user(user.uid, user.gid, &user.groups).map_err(failed(format!("become user {}", user.name)))?;
    }
    let cwd = exec.cwd.as_deref().unwrap_or(Path::new("/"));
    let entered = std::env::set_current_dir(cwd);
    let entered = if exec.cwd_or_root { entered.or_else(|_| std::env::set_current_dir("/")) } else { entered };
    entered.map_err(failed(format!("use {} as working directory", cwd.display())))
}

fn copy(task: &Task) -> Result<(), tree::Error> {
    let stream = |number| sys::inherited(number).map_err(tree::Error::from);
    match task {
        Task::Pack(path) => tree::pack(path, &mut BufWriter::with_capacity(BUFFER, File::from(stream(1)?))),
        Task::Unpack(path) => tree::unpack(path, &mut BufReader::with_capacity(BUFFER, File::from(stream(0)?))),
        Task::Command(_) => Ok(()),
    }
}

fn environment(exec: &Exec, user: &User) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> = Vec::new();
    if !exec.clear_env {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        environment.push(("PATH".into(), PATH.into()));
        environment.push(("HOSTNAME".into(), hostname.trim_end().into()));
        environment.push(("HOME".into(), user.home.clone().into()));
        environment.push(("USER".into(), user.name.clone().into()));
        if exec.terminal.is_some() {
            environment.push(("TERM".into(), "xterm".into()));
        }
    }
    for (name, value) in &exec.env {
        environment.retain(|(other, _)| other != name);
        environment.push((name.clone(), value.clone()));
    }
    environment
}

/// Looks for the program as execvp(3) does, and remembers why what was found could not be executed.
fn become_program(arguments: &[OsString], environment: &[(OsString, OsString)]) -> Outcome {
    let Some(program) = arguments.first().filter(|program| !program.is_empty()) else {
        return Outcome::NotFound("no command was given".into());
    };
    let path = environment.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(PATH), |(_, value)| value);
    let list = |texts: Vec<Vec<u8>>| -> Result<Vec<CString>, _> { texts.into_iter().map(CString::new).collect() };
    let variables = environment.iter().map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'='));
    let arguments = list(arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect());
    let (Ok(arguments), Ok(environment)) = (arguments, list(variables.collect())) else {
        return Outcome::Failed("arguments and environment must not contain zero bytes".into());
    };
    let candidates: Vec<Vec<u8>> = match program.as_bytes().contains(&b'/') {
        true => vec![program.as_bytes().to_vec()],
        false => path.as_bytes().split(|&byte| byte == b':').map(|dir| [dir, program.as_bytes()].join(&b'/')).collect(),
    };
    let mut found = None;
    for candidate in candidates {
        let Ok(file) = CString::new(candidate.clone()) else { continue };
        let error = sys::become_program(&file, &arguments, &environment);
        let candidate = OsString::from_vec(candidate);
        // In PATH a directory is none, but what may not even be looked at is remembered.
        let file = std::fs::metadata(&candidate).map(|about| !about.is_dir() || program.as_bytes().contains(&b'/'));
        if file.unwrap_or(error.kind() == io::ErrorKind::PermissionDenied) {
            found.get_or_insert((candidate, error));
        }
    }
    let program = program.to_string_lossy();
    match found {
        None if program.contains('/') => Outcome::NotFound(format!("{program}: no such file in the guest")),
        None => {
            Outcome::NotFound(format!("{program}: no such command in the guest's PATH ({})", path.to_string_lossy()))
        }
        Some((file, error)) => {
            let why = match error.raw_os_error() {
                Some(sys::ENOEXEC) => "neither a program nor a script with #! of this machine".into(),
                _ if error.kind() == io::ErrorKind::NotFound => {
                    "its interpreter or dynamic loader is missing in the guest".into()
                }
                _ if file.as_bytes().len() > 1 && std::fs::metadata(&file).is_ok_and(|file| file.is_dir()) => {
                    "it is a directory".into()
                }
                _ => reason(&error),
            };
            Outcome::NotExecutable(format!("{}: {why}", file.display()))
        }
    }
}

/// The system's reason without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}

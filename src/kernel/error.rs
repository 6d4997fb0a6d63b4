//! Why there is no kernel, or not all of it.

use std::io;
use std::path::PathBuf;

use crate::loader;

/// Something with kernels does not work. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("Cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("Cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Image(#[from] loader::Error),
    #[error(
        "No kernel here{passed_over}; give one with --kernel, or keep one: \
         apt-get download $(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: //p') && \
         belljar kernel add ./linux-image-*.deb"
    )]
    NoKernel {
        /// `; WHAT-IS-WRONG-WITH-ONE` for each that is installed.
        passed_over: String,
    },
    #[error(
        "No kernel {name}: it is neither a file or directory nor an installed release (/boot/vmlinuz-{name}) nor one of \
         belljar's own; belljar kernel list shows what there is"
    )]
    Unknown { name: String },
    #[error("No kernel in the directory {path}: {reason}")]
    Directory { path: PathBuf, reason: &'static str },
    #[error("No kernel in the package {path}: {reason}")]
    NotInPackage { path: PathBuf, reason: String },
    #[error("Cannot unpack {path}: the package is damaged or truncated")]
    Damaged { path: PathBuf, source: io::Error },
    #[error("Cannot unpack {path}: {reason}")]
    Package { path: PathBuf, reason: String },
    #[error(
        "{directory} has no modules of this kernel{release}: give a directory with lib/modules/RELEASE, that directory \
         itself, or the tree in which the kernel was built"
    )]
    NoModules {
        directory: PathBuf,
        /// ` (RELEASE)` or nothing.
        release: String,
    },
    #[error("Module {name}{by} is not in {root}: give the directory of all modules of this kernel with --modules")]
    NoModule {
        name: String,
        /// `, which X needs,` or nothing.
        by: String,
        root: PathBuf,
    },
    #[error("Cannot use module {path}: {reason}")]
    BadModule { path: PathBuf, reason: &'static str },
    #[error(
        "Cannot use module {path}: it is for kernel {module}, and this is {kernel}: give its own modules with --modules"
    )]
    OtherRelease { path: PathBuf, module: String, kernel: String },
    #[error("{0} is no package: several files make one kernel only if they are packages")]
    NotTogether(PathBuf),
    #[error("{name} is kept already: belljar kernel rm {name} removes it, --force replaces it")]
    Kept { name: String },
    #[error("No kernel {name} is kept here; belljar kernel list shows what there is")]
    NotKept { name: String },
    #[error("`{0}` cannot be the name of a kernel: letters, digits and . _ + - ~ make one; give --name")]
    Name(String),
    #[error("{0} does not say its release: give a name for it with --name")]
    Nameless(PathBuf),
    #[error("{path} is in use by another belljar, which adds or removes a kernel: try again when it is done")]
    Busy { path: PathBuf },
    #[error("No place to keep kernels: set {0} to a directory")]
    NoHome(&'static str),
}

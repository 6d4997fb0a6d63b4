//! What tests of shared directories need.

/// A directory on a file system with all that a file system has, which /tmp may lack.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("belljar-fs-").tempdir_in("/var/tmp").unwrap()
}

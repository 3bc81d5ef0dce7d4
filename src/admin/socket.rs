//! The control socket as a file: made private, put in place whole, and taken away at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::AdminError;

/// Removes the file of the control socket when dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nobody can be told any more; the next start replaces what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path`, in the place of a socket that a dead process left; never in the place of a live one.
pub(super) async fn claim(path: PathBuf) -> Result<(UnixListener, SocketFile), AdminError> {
    let failed = |error| AdminError::Socket(path.clone(), error);
    let wanted = path.clone();
    let listener = tokio::task::spawn_blocking(move || claim_blocking(&wanted))
        .await
        .map_err(|error| failed(io::Error::other(error)))??;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok((listener, SocketFile(path)))
}

fn claim_blocking(path: &Path) -> Result<StdListener, AdminError> {
    match std::fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NoSocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(AdminError::Socket(path.to_owned(), error)),
            Ok(_) => return Err(AdminError::InUse(path.to_owned())),
        },
    }
    bind_private(path).map_err(|error| AdminError::Socket(path.to_owned(), error))
}

/// Binds in a folder of our own (mode 0700) and renames, so that the socket is never there with the mode that the umask
/// happens to leave it.
fn bind_private(path: &Path) -> io::Result<StdListener> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The names are short: a socket's path has 108 octets at most.
    let folder = tempfile::Builder::new()
        .prefix(".")
        .rand_bytes(4)
        .tempdir_in(parent)?;
    let fresh = folder.path().join("s");
    let listener = StdListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

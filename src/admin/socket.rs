//! The file of the control socket: created private, put in place in one step, and removed at the end.

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
        // The error has no reader any more. The next start replaces a socket that is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path`. Replaces the socket of a dead process, but never the socket of a live one.
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

/// Binds in a private folder (mode 0700) and renames, so that the socket never exists at `path` with the wider mode that the
/// umask may give it.
fn bind_private(path: &Path) -> io::Result<StdListener> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The names are short, because a socket's path has at most 108 octets (unix(7)).
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

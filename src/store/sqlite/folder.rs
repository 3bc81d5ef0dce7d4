//! The folder of the store: its permissions and its locks.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::bodies::{failed, sync_folder};
use super::schema::DATABASE_FILE;
use crate::store::StoreError;

/// The relay holds this lock as long as it has the store open.
const RELAY_LOCK: &str = "relay.lock";
/// Tools that write body files hold this lock together.
pub(super) const BODIES_LOCK: &str = "bodies.lock";

/// Creates the folder and the database file with tight permissions, and takes the relay's lock.
pub(super) fn prepare_folder(folder: &Path) -> Result<File, StoreError> {
    make(folder).map_err(|error| failed(folder, &error))?;
    let path = folder.join(RELAY_LOCK);
    let lock = open_private(&path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::Broken(format!(
                "another relay uses {} (it holds {RELAY_LOCK} there); stop it, or give this one a store.path of its own",
                folder.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(&path, &error)),
    }
    // SQLite gives its other files the mode of this one.
    open_private(&folder.join(DATABASE_FILE))?;
    Ok(lock)
}

/// Creates the folder and its missing parents durably. If the name of a parent were not durable, a power cut would lose the
/// whole store.
fn make(folder: &Path) -> io::Result<()> {
    let missing = folder.ancestors().take_while(|above| !above.exists());
    let parents: Vec<&Path> = missing.filter_map(Path::parent).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    for parent in parents {
        match parent.as_os_str().is_empty() {
            true => sync_folder(Path::new("."))?,
            false => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// A tool does not create a store: the store would belong to the user of the tool, and would hide a wrong path.
pub(super) fn require_store(folder: &Path) -> Result<(), StoreError> {
    let file = folder.join(DATABASE_FILE);
    match file.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::Broken(format!(
            "there is no store in {}: check store.path, or start the relay once, which creates it",
            folder.display()
        ))),
        Err(error) => Err(failed(&file, &error)),
    }
}

/// Opens a file that only the relay's user can read, and creates it if it is missing.
pub(super) fn open_private(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed(path, &error))
}

/// Takes a lock that many processes can hold together; waits while a process holds it exclusively.
pub(super) fn lock_shared(path: &Path) -> Result<File, StoreError> {
    let file = open_private(path)?;
    file.lock_shared().map_err(|error| failed(path, &error))?;
    Ok(file)
}

//! Which configuration a command works with.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::config::{self, Config, Problems};

use super::exit::CliError;

/// Where packages put it.
const SYSTEM: &str = "/etc/spillway/spillway.toml";
/// Reading a configuration is done long before.
const CONFIG_READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Overrides [`SYSTEM`].
const VARIABLE: &str = "SPILLWAY_CONFIG";

/// The file: as given, else from the environment, else the system's if there is one; none means the built-in defaults.
pub(super) fn path(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = given {
        return Some(path.to_owned());
    }
    match std::env::var_os(VARIABLE) {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => Some(PathBuf::from(SYSTEM)).filter(|path| path.exists()),
    }
}

/// The configuration of [`path`].
pub(super) fn load(given: Option<&Path>) -> Result<Config, CliError> {
    Ok(read(path(given).as_deref())?)
}

/// Reads a configuration, and if that hangs says at which file, so that nobody has to guess what a command waits for.
pub(super) fn read(path: Option<&Path>) -> Result<Config, Problems> {
    let (done, reading) = sync_channel::<()>(0);
    let file = path.map_or_else(String::new, |path| path.display().to_string());
    std::thread::spawn(move || {
        if reading.recv_timeout(CONFIG_READ_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "spillway: still reading {file}, or a file that it names: is it a FIFO that nobody writes to, or on a mount \
                 whose server is gone?"
            );
        }
    });
    let config = config::load(path);
    drop(done);
    config
}

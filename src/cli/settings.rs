//! The configuration that a command works with.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::config::{self, Config, Problems};

use super::exit::CliError;

/// The configuration file of installed packages.
const SYSTEM_CONFIG_PATH: &str = "/etc/spillway/spillway.toml";
/// Time after which a command reports that it still reads its configuration: 3 s. A read that does not hang takes milliseconds.
const CONFIG_READ_TIMEOUT: Duration = Duration::from_secs(3);
/// The environment variable that overrides [`SYSTEM_CONFIG_PATH`].
const CONFIG_PATH_VARIABLE: &str = "SPILLWAY_CONFIG";

/// The configuration file: the given one, else that of the environment, else that of the system if it exists. `None` stands
/// for the built-in defaults.
pub(super) fn path(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = given {
        return Some(path.to_owned());
    }
    match std::env::var_os(CONFIG_PATH_VARIABLE) {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => Some(PathBuf::from(SYSTEM_CONFIG_PATH)).filter(|path| path.exists()),
    }
}

/// Loads the configuration of [`path`].
pub(super) fn load(given: Option<&Path>) -> Result<Config, CliError> {
    Ok(read(path(given).as_deref())?)
}

/// Reads a configuration. If the read hangs, a line on standard error names the file, so that the reason for the wait is known.
pub(super) fn read(path: Option<&Path>) -> Result<Config, Problems> {
    let (done, reading) = sync_channel::<()>(0);
    let file = path.map_or_else(String::new, |path| path.display().to_string());
    std::thread::spawn(move || {
        if reading.recv_timeout(CONFIG_READ_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "spillway: still reading {file}, or a file that it names: is it a FIFO without a writer, or on a mount whose \
                 server does not answer? Correct the path or repair the mount"
            );
        }
    });
    let config = config::load(path);
    drop(done);
    config
}

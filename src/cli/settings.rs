//! Which configuration a command works with.

use std::path::{Path, PathBuf};

use crate::config::{self, Config};

use super::exit::CliError;

/// Where packages put it.
const SYSTEM: &str = "/etc/spillway/spillway.toml";
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
    Ok(config::load(path(given).as_deref())?)
}

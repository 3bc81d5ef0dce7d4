//! Why a log records nothing, and what a person can do.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::ErrorCode;
use serde::{Deserialize, Serialize};

/// Why a log records nothing now. No mail is concerned, and the relay records again by itself when it can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTrouble {
    /// The log: `history` or `incidents`.
    pub log: String,
    /// Its file.
    pub file: PathBuf,
    /// When the relay noticed.
    pub since: Timestamp,
    /// The error.
    pub error: String,
    /// What a person can do.
    pub advice: String,
}

impl LogTrouble {
    /// One line for people, after the name of the log.
    pub fn text(&self) -> String {
        let file = self.file.display();
        format!(
            "{file} cannot be written: {}. Mail goes on without it",
            self.error
        )
    }
}

/// What a person can do about an error of the file of a log.
pub(super) fn advice(file: &Path, error: &rusqlite::Error) -> String {
    let file = file.display();
    let begin_anew = format!("move {file} away: the relay then makes a new one");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => format!("free room on the file system of {file}"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process has locked it: end that process (fuser {file} names it)")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => format!(
            "make {file} and its folder writable for the user of the relay (owner, mode, file system), or {begin_anew}"
        ),
        Some(ErrorCode::SystemIoFailure) => format!("look at the disk, or {begin_anew}"),
        _ => begin_anew,
    }
}

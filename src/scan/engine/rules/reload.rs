//! Reloads rule files that change while the relay runs.
//!
//! The engine checks names, sizes and modification times of the files at intervals. If they have changed, it compiles all
//! rules again, and the new rules replace the old ones if every file is good. If a file is not, the old rules stay in force.
//! The refusal is logged and counted, and is shown with the version of the rules until the file is corrected. The same bad
//! files are not compiled twice.
//!
//! Reading and compiling may take any time, or never end on a mount whose server is gone. They run on a thread that may
//! block, one load at a time, and hold nothing that scans need.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use super::{Rules, Set};
use crate::deadline::{Deadline, Elapsed};
use crate::scan::engine::BuildError;

/// Interval between two checks of the files. A check is cheap, and new rules count soon.
pub(super) const RULE_FILES_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Time after which a load is reported as late, because it may never end.
pub(super) const RULE_LOAD_LATE_AFTER: Duration = Duration::from_secs(60);
/// Characters of a refusal that are shown with the version.
const REFUSAL_CHARACTERS_SHOWN: usize = 160;

/// The sources of the rules.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) builtin: bool,
    paths: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// State of the files at the last compilation.
    files: Stamps,
    /// Why the present files are not in force; `None` if they are.
    refused: Option<String>,
    /// A load has run for longer than [`RULE_LOAD_LATE_AFTER`].
    is_late: bool,
}

/// State of the files that shows a change: path, size, time of the last change. The error is that of a folder or file that
/// cannot be read.
type Stamps = Result<Vec<(PathBuf, u64, Option<SystemTime>)>, BuildError>;

impl Sources {
    /// Reads the sources and compiles their rules. Blocks.
    pub(super) fn read(builtin: bool, paths: &[PathBuf]) -> Result<(Self, Set), BuildError> {
        let files = stamps(paths)?;
        let set = Set::compile(builtin, &names(&files))?;
        let state = State {
            files: Ok(files),
            refused: None,
            is_late: false,
        };
        let sources = Self {
            builtin,
            paths: paths.to_vec(),
            state: Mutex::new(state),
        };
        Ok((sources, set))
    }

    /// Compiles the present files, if they have changed since the last call; otherwise returns `None`. Blocks.
    pub(super) fn look(&self) -> Option<Result<Set, BuildError>> {
        // The state is read before the files: a change between the two is a change for the next call.
        let files = stamps(&self.paths);
        if files == self.state().files {
            return None;
        }
        // Compiling may take any time, so no lock is held.
        let found = files.as_ref().map_err(BuildError::clone);
        let set = found.and_then(|files| Set::compile(self.builtin, &names(files)));
        let mut state = self.state();
        state.files = files;
        state.refused = set.as_ref().err().map(BuildError::to_string);
        Some(set)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the rules in force. If newer files are not in force, the text says why.
    pub(super) fn version(&self, version: &str) -> String {
        let state = self.state();
        match &state.refused {
            _ if state.is_late => format!("{version}; newer files are still being read"),
            None => version.to_owned(),
            Some(why) => {
                let line = why.lines().next().unwrap_or_default();
                let line: String = line.chars().take(REFUSAL_CHARACTERS_SHOWN).collect();
                format!("{version}; newer files are refused: {line}")
            }
        }
    }
}

impl Rules {
    /// Loads rule files that have changed. Blocks.
    pub(super) fn refresh(&self) {
        let outcome = match self.sources.look() {
            None => return,
            Some(Ok(set)) => {
                tracing::info!(version = %set.version, "rule files have changed and are in force");
                self.set.store(Arc::new(set));
                "loaded"
            }
            Some(Err(error)) => {
                tracing::error!(%error, "rule files have changed and are refused; the old rules stay in force until the files are corrected");
                "refused"
            }
        };
        metrics::counter!("spillway_rule_loads_total", "outcome" => outcome).increment(1);
    }
}

/// Checks the files at intervals, until the engine is dropped.
pub(super) async fn keep_up(rules: Weak<Rules>) {
    loop {
        Deadline::after(RULE_FILES_CHECK_INTERVAL).wait().await;
        let Some(rules) = rules.upgrade() else {
            return;
        };
        let refreshing = rules.clone();
        let mut refreshed = tokio::task::spawn_blocking(move || refreshing.refresh());
        let ended = match Deadline::after(RULE_LOAD_LATE_AFTER)
            .run(&mut refreshed)
            .await
        {
            Ok(ended) => ended,
            Err(Elapsed) => {
                rules.sources.state().is_late = true;
                let seconds = RULE_LOAD_LATE_AFTER.as_secs();
                tracing::error!(
                    seconds,
                    "rule files are still being read; the old rules stay in force: check whether the files are on a mount whose server is gone"
                );
                metrics::counter!("spillway_rule_loads_total", "outcome" => "late").increment(1);
                let ended = refreshed.await;
                rules.sources.state().is_late = false;
                ended
            }
        };
        if ended.is_err() {
            tracing::error!(
                "the compiler of rules panicked, and rule files are not watched any more: correct the files and restart the relay"
            );
            return;
        }
    }
}

fn names(files: &[(PathBuf, u64, Option<SystemTime>)]) -> Vec<PathBuf> {
    files.iter().map(|(file, ..)| file.clone()).collect()
}

fn stamps(paths: &[PathBuf]) -> Stamps {
    let mut files = Vec::new();
    for path in paths {
        rule_files(path, &mut files)?;
    }
    let stamp = |file: PathBuf| {
        let metadata = std::fs::metadata(&file).map_err(|cause| unreadable(&file, &cause))?;
        Ok((file, metadata.len(), metadata.modified().ok()))
    };
    files.into_iter().map(stamp).collect()
}

fn unreadable(path: &Path, cause: &std::io::Error) -> BuildError {
    BuildError::Unreadable {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

/// Appends the file itself, or the rule files of the folder in the order of their names.
fn rule_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    let unreadable = |cause: std::io::Error| unreadable(path, &cause);
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let extension = file.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("yar" | "yara")) {
            found.push(file);
        }
    }
    if found.is_empty() {
        return Err(BuildError::EmptyFolder(path.to_owned()));
    }
    found.sort();
    files.append(&mut found);
    Ok(())
}

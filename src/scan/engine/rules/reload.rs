//! Rule files that change while the relay runs.
//!
//! Names, sizes and times of the files are looked at now and then. If they have changed, all rules are compiled anew, and
//! replace the old ones if every file is good. If one is not, nothing changes: that is logged and counted, and stands beside
//! the version of the rules until it is mended. The same bad files are not compiled twice.
//!
//! Reading and compiling may take any time, or never end on a mount whose server is gone. It is done on a thread that may
//! block, once at a time, and holds nothing that scans need.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use super::{Rules, Set};
use crate::deadline::{Deadline, Elapsed};
use crate::scan::engine::BuildError;

/// Between two looks at the files.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Reading and compiling that takes longer is told: nobody knows whether it ends.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Characters of a refusal that are shown beside the version.
const REFUSAL_CHARACTERS_SHOWN: usize = 160;

/// Where rules come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) builtin: bool,
    paths: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The files as they were when they were last compiled.
    files: Stamps,
    /// Why what is there now is not in force.
    refused: Option<String>,
    /// It has been read or compiled for longer than [`PATIENCE`].
    is_late: bool,
}

/// What tells whether files have changed: path, size, time of the last change. The error is that of a folder or file that
/// cannot be looked at.
type Stamps = Result<Vec<(PathBuf, u64, Option<SystemTime>)>, BuildError>;

impl Sources {
    /// The sources and their rules. Blocks.
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

    /// The rules as they are now, if they are not those of the last look. Blocks.
    pub(super) fn look(&self) -> Option<Result<Set, BuildError>> {
        // Before they are read: what changes meanwhile is a change for the next look.
        let files = stamps(&self.paths);
        if files == self.state().files {
            return None;
        }
        // Nothing is held meanwhile: this may take any time.
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

    /// The version of the rules in force, and why they are not the newest ones, if so.
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
    /// Takes up what has changed. Blocks.
    pub(super) fn refresh(&self) {
        let outcome = match self.sources.look() {
            None => return,
            Some(Ok(set)) => {
                tracing::info!(version = %set.version, "rule files have changed and are in force");
                self.set.store(Arc::new(set));
                "loaded"
            }
            Some(Err(error)) => {
                tracing::error!(%error, "rule files have changed and are refused; the old rules stay");
                "refused"
            }
        };
        metrics::counter!("spillway_rule_loads_total", "outcome" => outcome).increment(1);
    }
}

/// Looks at the files every now and then for as long as the engine is there.
pub(super) async fn keep_up(rules: Weak<Rules>) {
    loop {
        Deadline::after(EVERY).wait().await;
        let Some(rules) = rules.upgrade() else {
            return;
        };
        let refreshing = rules.clone();
        let mut refreshed = tokio::task::spawn_blocking(move || refreshing.refresh());
        let ended = match Deadline::after(PATIENCE).run(&mut refreshed).await {
            Ok(ended) => ended,
            Err(Elapsed) => {
                rules.sources.state().is_late = true;
                let seconds = PATIENCE.as_secs();
                tracing::error!(
                    seconds,
                    "rule files are still being read; the old rules stay: are they on a mount whose server is gone?"
                );
                metrics::counter!("spillway_rule_loads_total", "outcome" => "late").increment(1);
                let ended = refreshed.await;
                rules.sources.state().is_late = false;
                ended
            }
        };
        if ended.is_err() {
            tracing::error!("the compiler of rules has panicked; they are not watched any more");
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

/// The file itself, or the rule files of the folder in order of their names.
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

//! Warnings of `check-config` about settings of engines that contradict what was measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use jiff::Timestamp;

use super::measured::{configured, read_all};
use crate::config::Config;
use crate::measure::EngineTimes;
use crate::measure::proposal::{Known, Out, propose};
use crate::store::history;

/// Days that are looked at: a week, so that a Monday is among them.
const WARNING_DAYS: i64 = 7;
/// Longest time that the check of a configuration waits for the history: 5 s. Reading takes milliseconds.
const HISTORY_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What the measures say about a configuration.
pub(in crate::cli) struct Compared {
    /// The settings that contradict them.
    pub(in crate::cli) warnings: Vec<String>,
    /// Why the measures could not be read. That is no fault of the configuration.
    pub(in crate::cli) unread: Option<String>,
}

/// Compares the settings of engines with what was measured. Without a history there is nothing to compare. Blocks on the disk.
pub(in crate::cli) fn compare(config: &Config, now: Timestamp) -> Compared {
    let week = jiff::SignedDuration::from_hours(24 * WARNING_DAYS);
    let since = now.checked_sub(week).unwrap_or(Timestamp::MIN);
    match read(config.store.path.join(history::FILE_NAME), since) {
        Ok(engines) => Compared {
            warnings: warnings(config, &engines, now),
            unread: None,
        },
        Err(why) => Compared {
            warnings: Vec::new(),
            unread: Some(why),
        },
    }
}

fn warnings(
    config: &Config,
    engines: &BTreeMap<String, EngineTimes>,
    now: Timestamp,
) -> Vec<String> {
    let measured = config.engines.iter().filter_map(|settings| {
        let times = engines.get(&*settings.name)?;
        Some((settings, times))
    });
    let mut warnings = Vec::new();
    // Answers that found something late only speak against a shorter timeout, which is no contradiction.
    let known = Known {
        found_late: 0,
        out: Out::Unknown,
        now,
        began: None,
    };
    for (settings, times) in measured {
        let proposals = propose(&configured(settings), times, &known);
        for proposal in proposals
            .settings
            .iter()
            .filter(|proposal| proposal.contradicts)
        {
            let (engine, setting) = (&settings.name, proposal.setting);
            let proposed = proposal.proposed.as_deref().unwrap_or_default();
            warnings.push(format!(
                "engine {engine}: {setting} = {}, but in the last {WARNING_DAYS} days {}; propose {setting} = {proposed}; see: \
                 spillway engine show {engine} --since {WARNING_DAYS}d",
                proposal.configured, proposal.reason
            ));
        }
    }
    warnings
}

/// Reads in a thread of its own: a disk that hangs must not hang the check.
fn read(path: PathBuf, since: Timestamp) -> Result<BTreeMap<String, EngineTimes>, String> {
    let (done, result) = sync_channel(1);
    let name = path.display().to_string();
    std::thread::spawn(move || {
        // Nobody waits for the result after the timeout.
        let _ = done.send(read_now(&path, since));
    });
    result
        .recv_timeout(HISTORY_READ_TIMEOUT)
        .unwrap_or_else(|_| {
            let seconds = HISTORY_READ_TIMEOUT.as_secs();
            Err(format!("{name} was not read within {seconds} s"))
        })
}

fn read_now(path: &Path, since: Timestamp) -> Result<BTreeMap<String, EngineTimes>, String> {
    match File::open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let read = runtime.block_on(read_all(path, since));
    read.map_err(|error| error.to_string())
}

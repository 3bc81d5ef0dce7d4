//! Warnings of `check-config` about settings of engines that contradict what was measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use jiff::Timestamp;

use super::measured::{configured, read_all};
use crate::config::Config;
use crate::measure::EngineTimes;
use crate::measure::proposal::propose;
use crate::store::history;

/// Days that are looked at: a week, so that a Monday is among them.
const WARNING_DAYS: i64 = 7;
/// Longest time that the check of a configuration waits for the history: 5 s. Reading takes milliseconds.
const HISTORY_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The warnings. A history that is missing, belongs to another user, or cannot be read in time gives none: the configuration is
/// not at fault. Blocks on the disk.
pub(in crate::cli) fn warnings(config: &Config, now: Timestamp) -> Vec<String> {
    let week = jiff::SignedDuration::from_hours(24 * WARNING_DAYS);
    let Ok(since) = now.checked_sub(week) else {
        return Vec::new();
    };
    let engines = read(config.store.path.join(history::FILE_NAME), since);
    let known = config.engines.iter().filter_map(|settings| {
        let times = engines.get(&*settings.name)?;
        Some((settings, times))
    });
    let mut warnings = Vec::new();
    for (settings, times) in known {
        // Answers that found something late only speak against a shorter timeout, which is no contradiction.
        let proposals = propose(&configured(settings), times, 0, now);
        for proposal in proposals.iter().filter(|proposal| proposal.contradicts) {
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
fn read(path: PathBuf, since: Timestamp) -> BTreeMap<String, EngineTimes> {
    let (done, result) = sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let read = runtime.map(|runtime| runtime.block_on(read_all(&path, since)));
        // Nobody waits for the result after the timeout.
        let _ = done.send(read.ok().and_then(Result::ok).unwrap_or_default());
    });
    result
        .recv_timeout(HISTORY_READ_TIMEOUT)
        .unwrap_or_default()
}

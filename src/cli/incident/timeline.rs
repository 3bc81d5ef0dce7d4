//! The events of a story in order, with repetitions of small events folded into one line.

use jiff::Timestamp;

use crate::incident::{Incident, Kind, StoryState};

/// One line of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimelineEntry {
    /// The time of the first event.
    pub(super) first: Timestamp,
    /// The time of the last event.
    pub(super) last: Timestamp,
    pub(super) kind: Kind,
    /// The number of events.
    pub(super) count: u64,
    /// The summary of the first event. Untrusted.
    pub(super) summary: String,
}

impl TimelineEntry {
    /// The kind, with the number of events if there are several.
    pub(super) fn what(&self) -> String {
        match self.count {
            1 => self.kind.as_str().to_owned(),
            count => format!("{} x{count}", self.kind.as_str()),
        }
    }

    /// The time, or the first and the last one, as `time` writes them.
    pub(super) fn when(&self, time: impl Fn(Timestamp) -> String) -> String {
        let (first, last) = (time(self.first), time(self.last));
        match first == last {
            true => first,
            false => format!("{first}–{last}"),
        }
    }
}

/// The timeline of a story from its incidents in the log, the oldest first, and from the counts of those that are not there.
/// Between two events that change the state, all events of one small kind make one entry.
pub(super) fn timeline(state: &StoryState, told: &[Incident]) -> Vec<TimelineEntry> {
    let mut entries: Vec<TimelineEntry> = Vec::new();
    let mut since_change = 0;
    for incident in told {
        let is_small = is_small(incident.kind);
        let same = entries.iter_mut().skip(since_change);
        let same = same
            .filter(|entry| is_small && entry.kind == incident.kind)
            .last();
        if let Some(entry) = same {
            entry.count += 1;
            entry.last = entry.last.max(incident.at);
            continue;
        }
        entries.push(TimelineEntry {
            first: incident.at,
            last: incident.at,
            kind: incident.kind,
            count: 1,
            summary: incident.summary.clone(),
        });
        if !is_small {
            since_change = entries.len();
        }
    }
    let left_out = state.kinds.iter().filter_map(|known| {
        let here = told.iter().filter(|i| i.kind == known.kind).count() as u64;
        let count = known.count.saturating_sub(here);
        (count > 0).then(|| TimelineEntry {
            first: known.first,
            last: known.last,
            kind: known.kind,
            count,
            summary: "more of them, which are only counted".to_owned(),
        })
    });
    entries.extend(left_out);
    entries
}

/// Whether many events of the kind say no more than one.
fn is_small(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Strike
            | Kind::LateAnswer
            | Kind::ScanLost
            | Kind::ProbeFailed
            | Kind::BreakerProbing
            | Kind::InterceptorChanged
            | Kind::Drift
    )
}

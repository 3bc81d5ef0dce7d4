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
    /// The summary of the first event, or of the last one if it says how far something has come. Untrusted.
    pub(super) summary: String,
}

impl TimelineEntry {
    /// How often it happened and when last, as `time` writes it, to stand before the summary; empty if it happened once.
    pub(super) fn times(&self, time: impl Fn(Timestamp) -> String) -> String {
        match self.count {
            1 => String::new(),
            count => format!("{count} times, last at {}: ", time(self.last)),
        }
    }
}

/// The timeline of a story from its incidents in the log, the oldest first, and from the counts of those that are not there.
/// Between two events that change the state, all events of one small kind make one entry; equal events in a row do, too.
pub(super) fn timeline(state: &StoryState, told: &[Incident]) -> Vec<TimelineEntry> {
    let mut entries: Vec<TimelineEntry> = Vec::new();
    let mut since_change = 0;
    for incident in told {
        let is_small = is_small(incident.kind);
        let newest = entries.len().saturating_sub(1);
        let same = |(at, entry): &(usize, &mut TimelineEntry)| {
            let is_folded = match is_small {
                true => *at >= since_change,
                false => *at == newest && entry.summary == incident.summary,
            };
            is_folded && entry.kind == incident.kind
        };
        if let Some((_, entry)) = entries.iter_mut().enumerate().filter(same).last() {
            entry.count += 1;
            entry.last = entry.last.max(incident.at);
            if incident.kind == Kind::RecoveryEnded {
                entry.summary.clone_from(&incident.summary);
            }
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
            | Kind::RecoveryBegun
            | Kind::RecoveryEnded
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Subject;

    fn told(events: &[(Kind, &str)]) -> Vec<Incident> {
        let incident = |(n, (kind, summary)): (usize, &(Kind, &str))| {
            let mut incident = Incident::new(*kind, Subject::engine("clamd"), *summary);
            incident.at = Timestamp::from_second(n as i64).expect("a time");
            incident
        };
        events.iter().enumerate().map(incident).collect()
    }

    fn lines(events: &[(Kind, &str)]) -> Vec<String> {
        let told = told(events);
        let state = StoryState::of_one(&told[0]);
        let line = |entry: TimelineEntry| {
            let times = entry.times(|at| at.as_second().to_string());
            format!("{} {}{}", entry.kind.as_str(), times, entry.summary)
        };
        timeline(&state, &told).into_iter().map(line).collect()
    }

    /// What happens again and again is one line with its number: equal events in a row, and small ones between two changes of
    /// the state. What differs, and what another event separates, has a line of its own.
    #[test]
    fn repetitions_are_one_line() {
        use Kind::{BreakerClosed, BreakerOpened, NextHopDead, RecoveryBegun, RecoveryEnded};
        assert_eq!(
            lines(&[
                (NextHopDead, "no answer"),
                (NextHopDead, "no answer"),
                (NextHopDead, "no answer"),
                (NextHopDead, "it refuses"),
            ]),
            [
                "next-hop-dead 3 times, last at 2: no answer",
                "next-hop-dead it refuses"
            ]
        );
        assert_eq!(
            lines(&[
                (BreakerOpened, "down"),
                (BreakerClosed, "up"),
                (RecoveryBegun, "begun"),
                (RecoveryEnded, "some left"),
                (RecoveryBegun, "begun"),
                (RecoveryEnded, "all done"),
                (BreakerOpened, "down"),
            ]),
            [
                "breaker-opened down",
                "breaker-closed up",
                "recovery-begun 2 times, last at 4: begun",
                "recovery-ended 2 times, last at 5: all done",
                "breaker-opened down",
            ]
        );
    }
}

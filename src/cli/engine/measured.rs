//! What was measured of an engine: its distribution of scan times, and proposals for its settings. It is read from the history
//! file, so that it is there while the relay is down.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::super::exit::CliError;
use super::super::table::Column;
use super::super::terminal::{Terminal, pad, safe, wide};
use super::chart::{self, Mark};
use crate::config::Config;
use crate::measure::proposal::{
    Advice, Configured, Known, Outage, OutageKind, Proposal, grouped, propose, shown,
};
use crate::measure::{EngineTimes, Latencies, Measured, SizeClass};
use crate::scan;
use crate::store::decisions::Decisions;
use crate::store::{StoreError, history, late_scans, measures};

/// Width of the reasons of proposals on a terminal, at least.
const REASON_WIDTH_MIN: usize = 40;

/// What was measured of one engine.
pub(super) struct EngineMeasured {
    name: String,
    /// The start of the first period.
    since: Timestamp,
    began: Option<Timestamp>,
    times: EngineTimes,
    configured: Option<Configured>,
    outage: Option<Outage>,
    proposals: Vec<Proposal>,
}

/// The settings of an engine that proposals are about.
pub(super) fn configured(settings: &scan::Settings) -> Configured {
    Configured {
        timeout: settings.timeout,
        slow: settings.slow,
        stall_after: settings.slow.mul_f64(settings.guard.stall_factor),
        limit: settings.limit,
        wait: settings.wait,
        slots: settings.slots,
        replicas: settings.kind.replicas(),
    }
}

/// What was measured of all engines from the period of `since` on.
///
/// Cancel safety: safe.
pub(super) async fn read_all(
    path: &Path,
    since: Timestamp,
) -> Result<BTreeMap<String, EngineTimes>, StoreError> {
    let since = measures::period(since);
    let mut engines: BTreeMap<String, EngineTimes> = BTreeMap::new();
    for measured in [Measured::Scan, Measured::Wait, Measured::Missed] {
        for one in measures::read(path, measured, since, Timestamp::MAX).await? {
            let times = engines.entry(one.series.name.to_string()).or_default();
            times.add(one.period, &one.series, &one.latencies);
        }
    }
    Ok(engines)
}

/// When the relay that has run since `started` began to work in the period of `started`: if it ran in this period before, with the
/// first decision in it.
///
/// Cancel safety: safe.
pub(super) async fn began(path: &Path, started: Timestamp) -> Result<Timestamp, StoreError> {
    let mut decisions = Decisions::since(path, measures::period(started)).await?;
    let page = decisions.page().await?.unwrap_or_default();
    let first = page.first().map_or(started, |entry| entry.at);
    Ok(first.min(started))
}

impl EngineMeasured {
    /// Reads what was measured of an engine.
    pub(super) async fn read(
        name: &str,
        config: &Config,
        since: Timestamp,
        known: Known,
    ) -> Result<Self, StoreError> {
        let path = config.store.path.join(history::FILE_NAME);
        // What is shown is whole periods.
        let since = measures::period(since);
        let times = read_all(&path, since).await?.remove(name);
        let times = times.unwrap_or_default();
        let late = late_scans::read(&path, since, Timestamp::MAX).await?;
        let found = late.iter();
        let found = found.filter(|scan| *scan.engine == *name && scan.found == Some(true));
        let found = found.count() as u64;
        let settings = config.engines.iter().find(|engine| *engine.name == *name);
        let configured = settings.map(configured);
        let known = Known {
            found_late: found,
            ..known
        };
        let proposed = configured.map(|configured| propose(&configured, &times, &known));
        let (outage, proposals) = proposed.map_or((None, Vec::new()), |proposed| {
            (proposed.outage, proposed.settings.to_vec())
        });
        Ok(Self {
            name: name.to_owned(),
            since,
            began: known.began,
            times,
            configured,
            outage,
            proposals,
        })
    }

    /// Whether the engine is in the configuration, or something was measured of it.
    pub(super) fn is_known(&self) -> bool {
        self.configured.is_some() || self.times != EngineTimes::default()
    }

    /// Writes it for people.
    pub(super) fn show(&self, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        let sum = self.times.all();
        let answers = sum.answers();
        terminal.line("")?;
        let since = terminal.clock(self.since);
        if answers.is_empty() {
            terminal.line(format!("no scans since {since}"))?;
        } else {
            terminal.line(format!("{} scans since {since}", grouped(answers.count())))?;
            let marks = self.configured.map(|configured| {
                let (slow, timeout) = (configured.slow, configured.timeout);
                let mark = |name, at| Mark { name, at };
                [mark("slow", slow), mark("timeout", timeout)]
            });
            let marks: Vec<Mark> = marks.into_iter().flatten().collect();
            chart::draw(&answers, &marks, terminal)?;
            terminal.line("")?;
            self.show_sizes(&sum.scans, terminal)?;
        }
        terminal.line("")?;
        let missed = sum.missed.iter();
        let missed = missed.map(|(reason, l)| format!("{} {reason}", grouped(l.count())));
        let missed: Vec<String> = missed.collect();
        let within = |share| sum.waits.within(share).map(shown).unwrap_or_default();
        let waits = match sum.waits.is_empty() {
            true => String::new(),
            false => format!("50 % within {}, 99 % within {}", within(0.5), within(0.99)),
        };
        let busiest = self
            .times
            .busiest(terminal.now, self.began)
            .map(|(from, at_once)| {
                let slots = self.configured.map(|c| format!(" of {}", c.all_slots()));
                let (from, slots) = (terminal.clock(from), slots.unwrap_or_default());
                format!("from {from}: {at_once:.1}{slots} slots taken on average")
            });
        terminal.fields(&[
            ("missing answers", missed.join(", ")),
            ("waits for a slot", waits),
            ("busiest 10 minutes", busiest.unwrap_or_default()),
        ])?;
        if let Some(outage) = &self.outage {
            self.show_outage(outage, terminal)?;
        }
        self.show_proposals(terminal)
    }

    /// Says whether the engine is slow or dead, which threshold opened its breaker, and what to do.
    fn show_outage(&self, outage: &Outage, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        terminal.line("")?;
        let from = terminal.clock(outage.from);
        let (first, since) = match outage.since {
            Some(since) => (
                format!("down since {}: ", terminal.clock(since)),
                format!(" since {from}"),
            ),
            None => (format!("outage from {from}: "), String::new()),
        };
        // The count is of attempts: a message that waits is tried again and again.
        let missing = grouped(outage.missing);
        let missing =
            format!("{missing} attempts{since} got no answer (one message makes several)");
        terminal.wrapped(&first, "  ", &format!("{}; {missing}", outage.reason))?;
        terminal.wrapped("  ", "  ", &outage.threshold)?;
        let engine = safe(&self.name);
        let pass = format!("spillway engine drain {engine} --pass --for 1h --reason TEXT");
        let act = match outage.kind {
            OutageKind::Slow => format!(
                "write what is proposed below into a copy NEW of the configuration, see `spillway what-if --config NEW --slots`, \
                 and reload; or make the engine faster. If mail must not wait: `{pass}`"
            ),
            OutageKind::Failing | OutageKind::Dead => format!(
                "no threshold helps: repair the engine (`spillway engine test {engine}` probes it). If mail must not wait for that: \
                 `{pass}` delivers it without the engine; see docs/OPERATIONS.md"
            ),
        };
        terminal.wrapped("  do: ", "      ", &act)
    }

    fn show_sizes(
        &self,
        scans: &BTreeMap<SizeClass, Latencies>,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        let columns = [
            Column::whole("SIZE"),
            Column::whole("SCANS"),
            Column::whole("P50"),
            Column::whole("P99"),
            Column::whole("MAX"),
            Column::whole("LATE"),
        ];
        let row = |(size, latencies): (&SizeClass, &Latencies)| {
            let text = |duration: Option<Duration>| duration.map(shown).unwrap_or_default();
            let late = self.configured.map(|c| latencies.longer_than(c.timeout));
            vec![
                size.to_string(),
                grouped(latencies.count()),
                text(latencies.within(0.5)),
                text(latencies.within(0.99)),
                text(latencies.longest()),
                late.map(grouped).unwrap_or_default(),
            ]
        };
        terminal.table(&columns, scans.iter().map(row))
    }

    fn show_proposals(&self, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        if self.proposals.is_empty() {
            return Ok(());
        }
        terminal.line("")?;
        let name = |proposal: &Proposal| format!("{} = {}", proposal.setting, proposal.configured);
        let columns = self.proposals.iter().map(|p| name(p).len()).max();
        let columns = columns.unwrap_or_default();
        // Without a terminal, nothing is cut and nothing is wrapped.
        let room = terminal.width.map_or(usize::MAX, usize::from);
        let room = room.saturating_sub(columns + 2).max(REASON_WIDTH_MIN);
        for proposal in &self.proposals {
            let text = match (proposal.advice, &proposal.proposed) {
                (Advice::TooFew, _) => proposal.reason.clone(),
                (Advice::NoThresholdHelps, _) => format!("no threshold helps: {}", proposal.reason),
                (_, Some(value)) => format!("propose {value}: {}", proposal.reason),
                (_, None) => format!("keep: {}", proposal.reason),
            };
            let mut name = name(proposal);
            for line in wrapped(&safe(&text), room) {
                terminal.line(format!("{}  {line}", pad(&name, columns)))?;
                name.clear();
            }
        }
        Ok(())
    }

    /// The members for JSON output.
    pub(super) fn members(&self, now: Timestamp) -> Members {
        let sum = self.times.all();
        let answers = sum.answers();
        let late = |latencies: &Latencies| {
            let timeout = self.configured.map(|c| c.timeout);
            timeout.map(|timeout| latencies.longer_than(timeout))
        };
        let of_size = |(size, latencies): (&SizeClass, &Latencies)| OfSize {
            size: size.as_str(),
            late: late(latencies),
            durations: Durations::of(latencies),
        };
        let busiest = self
            .times
            .busiest(now, self.began)
            .map(|(from, at_once)| Busiest {
                from,
                scans_at_once: at_once,
                slots: self.configured.map(|c| c.all_slots()),
            });
        let step = |(upper, count): (Duration, u64)| Step {
            up_to_seconds: upper.as_secs_f64(),
            count,
        };
        let missed = sum.missed.iter();
        Members {
            measured: MeasuredJson {
                since: self.since,
                late: late(&answers),
                scans: Durations::of(&answers),
                steps: answers.steps().map(step).collect(),
                sizes: sum.scans.iter().map(of_size).collect(),
                waits: Durations::of(&sum.waits),
                missed: missed
                    .map(|(reason, l)| (reason.clone(), l.count()))
                    .collect(),
                busiest,
            },
            outage: self.outage.clone(),
            proposals: self.proposals.clone(),
        }
    }
}

/// Cuts a text at its spaces into lines of at most `room` columns; a longer word has a line of its own.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if wide(line) + 1 + wide(word) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The members of the JSON output that come from the history.
#[derive(Serialize)]
pub(super) struct Members {
    measured: MeasuredJson,
    outage: Option<Outage>,
    proposals: Vec<Proposal>,
}

#[derive(Serialize)]
struct MeasuredJson {
    since: Timestamp,
    scans: Durations,
    late: Option<u64>,
    steps: Vec<Step>,
    sizes: Vec<OfSize>,
    waits: Durations,
    missed: BTreeMap<String, u64>,
    busiest: Option<Busiest>,
}

#[derive(Serialize)]
struct Durations {
    count: u64,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
    max_seconds: Option<f64>,
}

impl Durations {
    fn of(latencies: &Latencies) -> Self {
        let seconds = |duration: Option<Duration>| duration.map(|d| d.as_secs_f64());
        Self {
            count: latencies.count(),
            p50_seconds: seconds(latencies.within(0.5)),
            p99_seconds: seconds(latencies.within(0.99)),
            max_seconds: seconds(latencies.longest()),
        }
    }
}

#[derive(Serialize)]
struct OfSize {
    size: &'static str,
    #[serde(flatten)]
    durations: Durations,
    late: Option<u64>,
}

#[derive(Serialize)]
struct Step {
    up_to_seconds: f64,
    count: u64,
}

#[derive(Serialize)]
struct Busiest {
    from: Timestamp,
    scans_at_once: f64,
    slots: Option<usize>,
}

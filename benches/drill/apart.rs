//! Known senders and strangers apart, and what follows when the event is over.

use std::time::Duration;

use crate::figures::{End, Ledger, Spread};
use crate::plan::{From, Kind, Planned};
use crate::run::GRACE;

/// What became of a message that engines suffered from.
#[derive(Debug, Clone)]
pub struct Culprit {
    pub kind: Kind,
    pub end: End,
    /// Why the relay still has it.
    pub why: String,
    /// How often the first engine was given it.
    pub scans: usize,
}

/// The figures of valid mail by who sent it and by when it came.
#[derive(Debug, Default)]
pub struct Apart {
    pub known: Group,
    pub strangers: Group,
    /// The document that was also sent beside a part that hangs.
    pub alone: Spread,
    /// Valid mail due in the event that its sender was told is delivered, in percent.
    pub in_session: f64,
    /// Valid mail due before the end of the event that was not delivered then.
    pub waiting: usize,
    /// Seconds from the end of the event to the first valid message that was delivered,
    pub first: Option<f64>,
    /// and until all that was due before is delivered; none if some was not.
    pub drained: Option<f64>,
    /// Valid mail due after the event.
    pub fresh: Spread,
    /// Messages that hang which the engine had not been given when the event was over.
    pub unscanned: usize,
    pub culprits: Vec<Culprit>,
    /// Copies that were delivered twice although no connection of their senders broke.
    pub doubled: usize,
}

/// Either kind of sender.
#[derive(Debug, Default)]
pub struct Group {
    pub calm: Spread,
    pub event: Spread,
    /// Due in the event, and put off with a 4yz or kept by the relay.
    pub deferred: usize,
    /// Seconds from the end of the event until what was due before is delivered; none if some was not.
    pub drained: Option<f64>,
}

/// Whether it was due so soon after the relay was killed that it does not count.
pub fn is_excused(killed: Option<Duration>, planned: &Planned) -> bool {
    killed.is_some_and(|at| planned.due + GRACE > at && planned.due < at + GRACE)
}

impl Apart {
    pub fn of(ledger: &Ledger<'_>) -> Self {
        let outcome = ledger.outcome;
        let phases = outcome.phases;
        let plan = || outcome.plan.iter().enumerate();
        let valid = |p: &Planned| p.kind.is_valid() && !is_excused(outcome.killed, p);
        let is_new = |p: &Planned| matches!(p.from, From::Fresh(_));
        let event = (phases.event_begins, phases.event_ends);
        let in_event = |p: &Planned| p.due >= event.0 && p.due < event.1;
        let group = |wanted: &dyn Fn(&Planned) -> bool| Group {
            calm: ledger.spread((phases.calm_begins, phases.event_begins), wanted),
            event: ledger.spread(event, wanted),
            deferred: plan()
                .filter(|(at, p)| wanted(p) && in_event(p) && ledger.is_put_off(*at))
                .count(),
            drained: drained(ledger, wanted),
        };
        let due: Vec<usize> = plan()
            .filter(|(_, p)| valid(p) && in_event(p))
            .map(|(at, _)| at)
            .collect();
        let told = |at: &&usize| outcome.told[**at].answered.is_some() && !ledger.is_put_off(**at);
        let waits = |(at, p): &(usize, &Planned)| {
            valid(p) && p.due < event.1 && ledger.arrived[*at].is_none_or(|came| came > event.1)
        };
        let after = |(at, p): (usize, &Planned)| {
            let came = ledger.arrived[at].filter(|came| valid(p) && *came > event.1)?;
            Some((came - event.1).as_secs_f64())
        };
        let scanned = |at: usize, by: Duration| {
            let scans = outcome.scans.iter();
            scans
                .filter(|scan| scan.message == Some(at) && scan.at < by)
                .count()
        };
        Self {
            known: group(&|p| valid(p) && !is_new(p)),
            strangers: group(&|p| valid(p) && is_new(p)),
            alone: ledger.spread(event, |p| p.kind == Kind::Alone),
            in_session: 100.0 * due.iter().filter(told).count() as f64 / due.len().max(1) as f64,
            waiting: plan().filter(waits).count(),
            first: plan().filter_map(after).min_by(f64::total_cmp),
            drained: drained(ledger, &valid),
            fresh: ledger.spread((event.1, phases.load_ends), valid),
            unscanned: plan()
                .filter(|(at, p)| p.kind == Kind::Hang && scanned(*at, event.1) == 0)
                .count(),
            culprits: plan()
                .filter(|(_, p)| p.kind.is_culprit())
                .map(|(at, p)| Culprit {
                    kind: p.kind,
                    end: ledger.end(at),
                    why: ledger.why(at),
                    scans: scanned(at, outcome.ended),
                })
                .collect(),
            doubled: plan()
                .filter(|(at, _)| ledger.end(*at) == End::Doubled && outcome.told[*at].broken == 0)
                .count(),
        }
    }

    /// Culprits that are not held.
    pub fn loose(&self) -> usize {
        let loose = self.culprits.iter().filter(|one| one.end != End::Held);
        loose.count()
    }

    /// The most scans that one culprit cost the first engine.
    pub fn most_scans(&self) -> usize {
        let scans = self.culprits.iter().map(|one| one.scans);
        scans.max().unwrap_or(0)
    }
}

/// Seconds from the end of the event until what is wanted of the mail due before has arrived.
fn drained(ledger: &Ledger<'_>, wanted: &dyn Fn(&Planned) -> bool) -> Option<f64> {
    let ends = ledger.outcome.phases.event_ends;
    let plan = ledger.outcome.plan.iter().enumerate();
    let due = plan.filter(|(_, p)| wanted(p) && p.due < ends);
    let mut last = ends;
    for (at, _) in due {
        last = last.max(ledger.arrived[at]?);
    }
    Some((last - ends).as_secs_f64())
}

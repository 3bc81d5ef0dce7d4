//! What a run amounts to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::apart::{Apart, is_excused};
use crate::engine::Scan;
use crate::plan::{From, Kind, Planned};
use crate::run::Outcome;
use crate::variant::{Event, Fault, Flood};

/// A distribution of delays, in seconds from when a message was due until it was at its next hop. What never came counts
/// with the time until the end of the run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut delays: Vec<f64>) -> Self {
        delays.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (delays.len() as f64 * q).ceil() as usize;
            delays.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self {
            count: delays.len(),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Where a message is at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Delivered,
    /// More than once.
    Doubled,
    Held,
    Pending,
    /// 5yz.
    Rejected,
    /// Its sender has no final answer: it still has it.
    Unsent,
    /// Accepted, and nowhere.
    Lost,
}

/// Seconds, one value each.
#[derive(Debug, Default)]
pub struct Series {
    /// The 99th percentile of the delay of valid mail due in that second.
    pub delay: Vec<f64>,
    /// The most valid mail that was due and not delivered in that second.
    pub backlog: Vec<usize>,
}

/// The figures of one run.
#[derive(Debug)]
pub struct Figures {
    /// Valid mail due in the calm, and during the event.
    pub calm: Spread,
    pub event: Spread,
    /// Mail that the event concerns itself (large messages, the newsletter, the greedy client, the other next hop).
    pub concerned: Spread,
    /// Valid messages due from the event on, the base of all shares.
    pub valid: usize,
    pub valid_ends: BTreeMap<End, usize>,
    pub ends: BTreeMap<End, usize>,
    /// Valid, delivered, and some engine's answer was missing.
    pub degraded: usize,
    /// Valid, and kept by the relay, or put off with a 4yz, before it was delivered.
    pub deferred: usize,
    pub flood_sent: usize,
    pub flood_delivered: usize,
    /// Scans, at the first engine, of what the event concerns.
    pub touched: usize,
    /// Seconds from the first of them until no more than [`LEAK`] of what came after it got there.
    pub contained: Option<f64>,
    /// The largest backlog of valid mail in the calm, and from the event on.
    pub calm_backlog: usize,
    pub backlog: usize,
    /// Seconds from the end of the event until the backlog is that of the calm again; none if it never was.
    pub recovery: Option<f64>,
    /// Seconds from the beginning of the event.
    pub first_hold: Option<f64>,
    pub breaker_opened: Option<f64>,
    pub breaker_closed: Option<f64>,
    /// Interceptors that hold.
    pub holds: usize,
    /// Refused MAIL commands for each message taken, at the next hop that is slow, while it was.
    pub refused_ratio: Option<f64>,
    /// Gray: messages delivered with a made-up answer; those of them that the engine was never asked about again; bad
    /// ones among them.
    pub silent: usize,
    pub not_rescanned: usize,
    pub malware_delivered: usize,
    /// Messages at the next hops that nobody sent through the relay.
    pub foreign: usize,
    /// How late this program itself was: messages sent after they were due, scans that ended after they should.
    pub late: Spread,
    pub overrun: Spread,
    pub apart: Apart,
    pub series: Series,
}

/// What still gets to the engine when a flood is contained.
const LEAK: f64 = 0.01;
/// The backlog is that of the calm again when it is for so long,
const STEADY: f64 = 2.0;
/// or no more than so many messages above its peak, at the usual rate: arrivals are random.
const GRAIN: f64 = 5.0;

/// Whether the event is about this message itself.
fn concerned(variant_event: Event, planned: &Planned) -> bool {
    match planned.kind {
        Kind::Large | Kind::Newsletter { .. } | Kind::Greedy { .. } | Kind::Alone => true,
        Kind::Valid => match variant_event {
            Event::NextHop(_) => planned.second_hop,
            // Nothing tells a stranger's letter from such a flood.
            Event::Flood(Flood::Mimic) => matches!(planned.from, From::Fresh(_)),
            _ => false,
        },
        Kind::Malware | Kind::Flood(_) | Kind::Hang | Kind::Killer | Kind::Beside => false,
    }
}

/// What became of each message.
pub struct Ledger<'a> {
    pub outcome: &'a Outcome,
    /// First arrival of each message, and how many arrivals.
    pub arrived: Vec<Option<Duration>>,
    times: Vec<u32>,
    missing: BTreeSet<usize>,
    foreign: usize,
}

impl<'a> Ledger<'a> {
    fn new(outcome: &'a Outcome) -> Self {
        let mut ledger = Self {
            outcome,
            arrived: vec![None; outcome.plan.len()],
            times: vec![0; outcome.plan.len()],
            missing: BTreeSet::new(),
            foreign: 0,
        };
        for arrival in outcome.hops.iter().flat_map(|hop| &hop.arrivals) {
            let Some(at) = arrival.message.filter(|at| *at < ledger.times.len()) else {
                ledger.foreign += 1;
                continue;
            };
            ledger.times[at] += 1;
            let first = ledger.arrived[at].unwrap_or(arrival.at).min(arrival.at);
            ledger.arrived[at] = Some(first);
            if !arrival.missing.is_empty() {
                ledger.missing.insert(at);
            }
        }
        ledger
    }

    fn delay(&self, at: usize) -> f64 {
        let end = self.arrived[at].unwrap_or(self.outcome.ended);
        end.saturating_sub(self.outcome.plan[at].due).as_secs_f64()
    }

    pub fn end(&self, at: usize) -> End {
        let told = &self.outcome.told[at];
        let books = &self.outcome.books;
        let known =
            |of: &BTreeMap<String, String>| told.id.as_ref().is_some_and(|id| of.contains_key(id));
        match self.times[at] {
            0 => {}
            1 if known(&books.held) || known(&books.pending) => return End::Doubled,
            1 => return End::Delivered,
            _ => return End::Doubled,
        }
        match told.answered {
            _ if known(&books.held) => End::Held,
            _ if known(&books.pending) => End::Pending,
            None => End::Unsent,
            Some(_) if told.rejected.is_some() => End::Rejected,
            Some(_) => End::Lost,
        }
    }

    /// Whether it was put off with a 4yz, or kept by the relay, before it was delivered.
    pub fn is_put_off(&self, at: usize) -> bool {
        let told = &self.outcome.told[at];
        told.kept || told.deferred > 0
    }

    /// Why the relay still has it; nothing if it does not.
    pub fn why(&self, at: usize) -> String {
        let books = &self.outcome.books;
        let id = self.outcome.told[at].id.as_ref();
        let why = id.and_then(|id| books.held.get(id).or_else(|| books.pending.get(id)));
        why.cloned().unwrap_or_default()
    }

    /// Delays of the messages due between two instants that are wanted.
    pub fn spread(
        &self,
        between: (Duration, Duration),
        wanted: impl Fn(&Planned) -> bool,
    ) -> Spread {
        let plan = self.outcome.plan.iter().enumerate();
        let due = plan.filter(|(_, p)| p.due >= between.0 && p.due < between.1 && wanted(p));
        Spread::of(due.map(|(at, _)| self.delay(at)).collect())
    }

    /// Instants at which the backlog of valid mail changes, and what it is then; with strangers, or without those whom
    /// the event concerns.
    fn backlog(&self, strangers: bool) -> Vec<(f64, usize)> {
        let mut changes = Vec::new();
        for (at, planned) in self.outcome.plan.iter().enumerate() {
            let counts = match (planned.kind, planned.from) {
                (Kind::Greedy { .. }, _) => false,
                (Kind::Large | Kind::Newsletter { .. }, _) => true,
                (Kind::Valid, From::Fresh(_)) if strangers && !planned.second_hop => true,
                (kind, _) => kind.is_valid() && !concerned(self.outcome.variant.event, planned),
            };
            if counts {
                changes.push((planned.due.as_secs_f64(), true));
                changes.extend(self.arrived[at].map(|arrived| (arrived.as_secs_f64(), false)));
            }
        }
        changes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut waiting = 0usize;
        let step = |(at, comes): (f64, bool)| {
            waiting = if comes {
                waiting + 1
            } else {
                waiting.saturating_sub(1)
            };
            (at, waiting)
        };
        changes.into_iter().map(step).collect()
    }
}

impl Figures {
    pub fn of(outcome: &Outcome) -> Self {
        let ledger = Ledger::new(outcome);
        let phases = outcome.phases;
        let event = outcome.variant.event;
        let ordinary = |p: &Planned| {
            p.kind.is_valid() && !concerned(event, p) && !is_excused(outcome.killed, p)
        };
        let (calm, during) = (
            (phases.calm_begins, phases.event_begins),
            (phases.event_begins, phases.event_ends),
        );
        let backlog = ledger.backlog(true);
        let most = |from: Duration, to: Duration| {
            let within =
                |(at, _): &&(f64, usize)| *at >= from.as_secs_f64() && *at < to.as_secs_f64();
            backlog
                .iter()
                .filter(within)
                .map(|(_, n)| *n)
                .max()
                .unwrap_or(0)
        };
        let calm_backlog = most(calm.0, calm.1);
        let touches = touches(outcome);
        let gray = Gray::of(&ledger);
        let mut figures = Self {
            calm: ledger.spread(calm, ordinary),
            event: ledger.spread(during, ordinary),
            concerned: ledger.spread(during, |p| concerned(event, p)),
            valid: 0,
            valid_ends: BTreeMap::new(),
            ends: BTreeMap::new(),
            degraded: 0,
            deferred: 0,
            flood_sent: 0,
            flood_delivered: 0,
            touched: touches.len(),
            contained: contained(outcome, &touches),
            calm_backlog,
            backlog: most(during.0, outcome.ended),
            recovery: recovery(
                &ledger.backlog(false),
                during.1.as_secs_f64(),
                outcome.ended.as_secs_f64(),
                calm_backlog + (GRAIN * outcome.times).ceil() as usize,
            ),
            first_hold: None,
            breaker_opened: None,
            breaker_closed: None,
            holds: 0,
            refused_ratio: refused_ratio(outcome),
            silent: gray.silent,
            not_rescanned: gray.not_rescanned,
            malware_delivered: gray.malware_delivered,
            foreign: ledger.foreign,
            late: Spread::of(
                outcome
                    .told
                    .iter()
                    .map(|told| told.late.as_secs_f64())
                    .collect(),
            ),
            overrun: Spread::of(outcome.overrun.iter().map(Duration::as_secs_f64).collect()),
            apart: Apart::of(&ledger),
            series: series(&ledger, &backlog),
        };
        figures.count(&ledger);
        figures.acts(outcome);
        figures
    }

    fn count(&mut self, ledger: &Ledger<'_>) {
        let outcome = ledger.outcome;
        for (at, planned) in outcome.plan.iter().enumerate() {
            let end = ledger.end(at);
            *self.ends.entry(end).or_default() += 1;
            if planned.kind.is_flood() {
                self.flood_sent += 1;
                self.flood_delivered += usize::from(ledger.times[at] > 0);
            }
            if !planned.kind.is_valid()
                || planned.due < outcome.phases.event_begins
                || is_excused(outcome.killed, planned)
            {
                continue;
            }
            self.valid += 1;
            *self.valid_ends.entry(end).or_default() += 1;
            self.degraded += usize::from(ledger.missing.contains(&at));
            self.deferred += usize::from(ledger.is_put_off(at));
        }
    }

    fn acts(&mut self, outcome: &Outcome) {
        let begins = outcome.began_at + outcome.phases.event_begins;
        let since = |at: jiff::Timestamp| at.duration_since(begins).as_secs_f64();
        let first = |wanted: &dyn Fn(&crate::relay::Incident) -> bool| {
            let after = outcome
                .books
                .incidents
                .iter()
                .find(|i| since(i.at) > 0.0 && wanted(i));
            after.map(|incident| since(incident.at))
        };
        let holds = |incident: &crate::relay::Incident| {
            incident.kind.starts_with("interceptor-")
                && incident.kind != "interceptor-lifted"
                && incident
                    .summary
                    .split(|c: char| !c.is_alphanumeric())
                    .any(|word| word == "hold" || word == "holds")
        };
        self.first_hold = first(&holds);
        self.breaker_opened = first(&|i| i.kind == "breaker-opened");
        self.breaker_closed = first(&|i| i.kind == "breaker-closed");
        self.holds = outcome.books.incidents.iter().filter(|i| holds(i)).count();
    }

    /// Messages, of all kinds, that ended so.
    pub fn ended(&self, end: End) -> usize {
        self.ends.get(&end).copied().unwrap_or(0)
    }

    /// Valid messages, due from the event on, that ended so.
    pub fn valid_ended(&self, end: End) -> usize {
        self.valid_ends.get(&end).copied().unwrap_or(0)
    }

    pub fn ratio(&self) -> f64 {
        self.event.p99 / self.calm.p99.max(1e-6)
    }

    /// A share of the valid mail from the event on, in percent.
    pub fn percent(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.valid.max(1) as f64
    }
}

/// Scans at the first engine of what the event is about, in their order.
fn touches(outcome: &Outcome) -> Vec<f64> {
    let (begins, ends) = (outcome.phases.event_begins, outcome.phases.event_ends);
    let is_meant = |scan: &&Scan| {
        let Some(planned) = scan.message.and_then(|at| outcome.plan.get(at)) else {
            return false;
        };
        match outcome.variant.event {
            Event::Flood(_) => planned.kind.is_flood(),
            Event::Fault(Fault::SlowLarge) => {
                scan.at >= begins && scan.at < ends && scan.octets >= 1 << 20
            }
            Event::Fault(_) => scan.at >= begins && scan.at < ends,
            Event::Newsletter { .. } => matches!(planned.kind, Kind::Newsletter { .. }),
            Event::Greedy { .. } => matches!(planned.kind, Kind::Greedy { .. }),
            Event::Drip { .. } | Event::Backlog { .. } | Event::Killer | Event::Beside => {
                planned.kind.is_culprit()
            }
            Event::Overload => scan.at >= begins && scan.at < ends,
            Event::NextHop(_) | Event::Away => false,
        }
    };
    let mut touches: Vec<f64> = outcome
        .scans
        .iter()
        .filter(is_meant)
        .map(|scan| scan.at.as_secs_f64())
        .collect();
    touches.sort_by(f64::total_cmp);
    touches
}

/// Whether the event's own mail comes at this instant.
fn arrives(outcome: &Outcome, planned: &Planned) -> bool {
    let in_event =
        planned.due >= outcome.phases.event_begins && planned.due < outcome.phases.event_ends;
    match outcome.variant.event {
        Event::Flood(_) => planned.kind.is_flood(),
        Event::Fault(Fault::SlowLarge) => in_event && planned.kind == Kind::Large,
        Event::Fault(_) => in_event,
        _ => false,
    }
}

/// From the first touch, or the beginning of a fault, until the touches that follow are few against what arrives.
fn contained(outcome: &Outcome, touches: &[f64]) -> Option<f64> {
    let leak = match outcome.variant.event {
        // A bypass is tested by a copy now and then: one in ten seconds, of one message a second.
        Event::Fault(Fault::SlowLarge) => 0.2,
        Event::Flood(_) | Event::Fault(_) => LEAK,
        _ => return None,
    };
    let due = outcome
        .plan
        .iter()
        .filter(|planned| arrives(outcome, planned));
    let due: Vec<f64> = due.map(|planned| planned.due.as_secs_f64()).collect();
    let first = *touches.first()?;
    let begins = match outcome.variant.event {
        Event::Flood(_) => first,
        _ => outcome.phases.event_begins.as_secs_f64(),
    };
    let few = |(at, touch): (usize, &f64)| {
        let follow = touches.len() - at - 1;
        let come = due.iter().filter(|due| *due > touch).count();
        (follow as f64 <= leak * come as f64).then_some(touch - begins)
    };
    touches.iter().enumerate().find_map(few)
}

/// Seconds after `event_ends` until the backlog is at most `calm` for a while.
fn recovery(backlog: &[(f64, usize)], event_ends: f64, ended: f64, calm: usize) -> Option<f64> {
    let before = backlog
        .iter()
        .rev()
        .find(|(at, _)| *at <= event_ends)
        .map_or(0, |(_, n)| *n);
    let mut since = (before <= calm).then_some(event_ends);
    for (at, waiting) in backlog.iter().filter(|(at, _)| *at > event_ends) {
        match since {
            Some(begun) if at - begun >= STEADY => return Some(begun - event_ends),
            Some(_) if *waiting > calm => since = None,
            None if *waiting <= calm => since = Some(*at),
            _ => {}
        }
    }
    since
        .filter(|begun| ended - begun >= STEADY)
        .map(|begun| begun - event_ends)
}

fn refused_ratio(outcome: &Outcome) -> Option<f64> {
    if !matches!(outcome.variant.event, Event::NextHop(_)) {
        return None;
    }
    let during =
        |at: &Duration| *at >= outcome.phases.event_begins && *at < outcome.phases.event_ends;
    let slow = &outcome.hops[1];
    let refused = slow.refused.iter().filter(|at| during(at)).count();
    let taken = slow
        .arrivals
        .iter()
        .filter(|arrival| during(&arrival.at))
        .count();
    Some(refused as f64 / taken.max(1) as f64)
}

/// Messages that got a made-up answer and were never really scanned, before or after.
pub fn not_rescanned(scans: &[Scan]) -> BTreeSet<usize> {
    let told = |gray: bool| {
        let scans = scans.iter().filter(move |scan| scan.gray == gray);
        scans
            .filter_map(|scan| scan.message)
            .collect::<BTreeSet<_>>()
    };
    told(true).difference(&told(false)).copied().collect()
}

struct Gray {
    silent: usize,
    not_rescanned: usize,
    malware_delivered: usize,
}

impl Gray {
    fn of(ledger: &Ledger<'_>) -> Self {
        let outcome = ledger.outcome;
        let gray = outcome
            .scans
            .iter()
            .filter(|scan| scan.gray)
            .filter_map(|scan| scan.message);
        let gray: BTreeSet<usize> = gray.collect();
        let came = |at: &usize| ledger.times.get(*at).is_some_and(|times| *times > 0);
        let bad = outcome
            .plan
            .iter()
            .enumerate()
            .filter(|(_, p)| p.kind == Kind::Malware);
        Self {
            silent: gray.iter().filter(|at| came(at)).count(),
            not_rescanned: not_rescanned(&outcome.scans)
                .iter()
                .filter(|at| came(at))
                .count(),
            malware_delivered: bad.filter(|(at, _)| came(at)).count(),
        }
    }
}

fn series(ledger: &Ledger<'_>, backlog: &[(f64, usize)]) -> Series {
    let outcome = ledger.outcome;
    let seconds = outcome.ended.as_secs() as usize + 1;
    let mut delays = vec![Vec::new(); seconds];
    let ordinary = |p: &Planned| p.kind.is_valid() && !concerned(outcome.variant.event, p);
    for (at, planned) in outcome.plan.iter().enumerate().filter(|(_, p)| ordinary(p)) {
        if let Some(second) = delays.get_mut(planned.due.as_secs() as usize) {
            second.push(ledger.delay(at));
        }
    }
    let mut most = vec![0; seconds];
    let mut changes = backlog.iter().peekable();
    let mut waiting = 0;
    for (second, most) in most.iter_mut().enumerate() {
        *most = waiting;
        while let Some((_, now)) = changes.next_if(|(at, _)| *at < (second + 1) as f64) {
            waiting = *now;
            *most = (*most).max(waiting);
        }
    }
    Series {
        delay: delays
            .into_iter()
            .map(|delays| Spread::of(delays).p99)
            .collect(),
        backlog: most,
    }
}

//! What the variants of the way back and the stranger must reach, and their lines of the report.

use crate::apart::{Apart, Culprit};
use crate::figures::{End, Figures, Spread};
use crate::options::USUAL_RATE;
use crate::report::{Check, at_most, brief, flood_checks, none, seconds, within};
use crate::run::Outcome;
use crate::scene::Senders;
use crate::variant::{Event, Fault, Flood};

/// Seconds for which a message that hangs keeps a slot (the default of `limit`).
const LIMIT: f64 = 150.0;
/// The share of the slots that strangers' messages may take while they hang.
const LENT: f64 = 2.0 / 3.0;
/// A known sender's p99 in the drip may be so much, in seconds, where the calm's is less than half of it.
const GRAIN: f64 = 0.25;

fn at_least(name: &'static str, is: f64, limit: f64, unit: &str) -> Check {
    Check {
        name,
        is: format!("{}{unit}", brief(is)),
        wanted: format!(">= {}{unit}", brief(limit)),
        met: is >= limit,
    }
}

fn ms(name: &'static str, is: f64, limit: f64) -> Check {
    at_most(name, is * 1000.0, limit * 1000.0, " ms")
}

/// The targets that apply.
pub fn checks(outcome: &Outcome, figures: &Figures) -> Vec<Check> {
    let apart = &figures.apart;
    let held = none("valid held at the end", figures.valid_ended(End::Held));
    let mut checks = match outcome.variant.event {
        Event::Drip { every } => drip_checks(outcome, apart, every.as_secs_f64()),
        Event::Backlog { hangs, .. } => backlog_checks(outcome, apart, hangs),
        Event::Away => away_checks(outcome, apart),
        Event::Killer => {
            // As many as can be in flight are halved until one is left, and once more at either end.
            let halvings = 2.0 * (outcome.variant.scene.slots as f64).log2() + 2.0;
            vec![
                none("culprit not held", apart.loose()),
                at_most(
                    "scans of the culprit",
                    apart.most_scans() as f64,
                    halvings.floor(),
                    "",
                ),
                none(
                    "innocents not delivered",
                    figures.valid - figures.valid_ended(End::Delivered),
                ),
            ]
        }
        Event::Overload => {
            let least = match outcome.variant.scene.strangers < 1.0 {
                true => 94.0,
                false => 98.0,
            };
            let (is, of) = (compared(outcome, figures), outcome.reference);
            let share = is.unwrap_or(0.0) / of.unwrap_or(f64::INFINITY);
            vec![at_least(
                "scans, of those of known senders alone",
                100.0 * share,
                least,
                " %",
            )]
        }
        Event::Beside => vec![at_most(
            "the document alone: max",
            apart.alone.max,
            3.0,
            " s",
        )],
        Event::Fault(Fault::Stutter) => vec![
            at_least("delivered in the session", apart.in_session, 40.0, " %"),
            within("the rest delivered", apart.drained, 30.0),
        ],
        Event::Fault(Fault::Hung) if outcome.times < 0.5 => {
            vec![at_most("valid max", figures.event.max, 2.5, " s")]
        }
        Event::Fault(Fault::Hung) => vec![
            ms("valid p99", figures.event.p99, 0.15),
            at_most("valid max", figures.event.max, 0.7, " s"),
        ],
        Event::Fault(Fault::SlowLarge) => vec![
            ms("other mail's p99", figures.event.p99, 0.25),
            at_most("other mail's max", figures.event.max, 5.0, " s"),
        ],
        Event::Flood(Flood::Words) => vec![
            none(
                "valid delivered without an engine's opinion",
                figures.degraded,
            ),
            none("flood delivered", figures.flood_delivered),
        ],
        Event::Flood(Flood::Mimic) => vec![
            at_most("known senders' p99", figures.event.p99, 2.0, " s"),
            none("flood delivered", figures.flood_delivered),
            at_most(
                "flood scans at the first engine",
                figures.touched as f64,
                16.0,
                "",
            ),
        ],
        Event::Flood(flood) => {
            let is_known = matches!(outcome.variant.scene.senders, Senders::OneDomain);
            let trials = f64::from(u8::from(is_known));
            flood_checks(flood, outcome.times, trials, figures)
        }
        Event::Fault(_) | Event::Newsletter { .. } | Event::NextHop(_) | Event::Greedy { .. } => {
            Vec::new()
        }
    };
    if !checks.iter().any(|check| check.name == held.name) {
        checks.push(held);
    }
    checks.extend([
        none("valid refused with 5yz", figures.valid_ended(End::Rejected)),
        none("lost", figures.ended(End::Lost)),
        none("duplicated", apart.doubled),
    ]);
    checks
}

/// What a run is compared by: seconds until all that was deferred is delivered, or scans a second.
pub fn compared(outcome: &Outcome, figures: &Figures) -> Option<f64> {
    let lasts = outcome.phases.event_ends - outcome.phases.event_begins;
    match outcome.variant.event {
        Event::Overload => Some(figures.touched as f64 / lasts.as_secs_f64()),
        _ => figures.apart.drained,
    }
}

fn drip_checks(outcome: &Outcome, apart: &Apart, every: f64) -> Vec<Check> {
    let scene = outcome.variant.scene;
    let lent = LENT * scene.slots as f64;
    let (known, strangers) = (&apart.known, &apart.strangers);
    let calm = known.calm.p99.max(strangers.calm.p99);
    let deferred = none("valid deferred", known.deferred + strangers.deferred);
    if every * lent >= LIMIT {
        let limit = (2.0 * calm).max(GRAIN);
        let mut checks = vec![ms("known p99", known.event.p99, limit), deferred];
        if strangers.event.count > 0 {
            checks.push(ms("strangers' p99", strangers.event.p99, limit));
        }
        return checks;
    }
    let mut checks = vec![ms(
        "known p99 (twice the calm's)",
        known.event.p99,
        2.0 * calm,
    )];
    if strangers.event.count == 0 {
        checks.push(deferred);
    } else if scene.engines > scene.coverage {
        let p99 = strangers.event.p99;
        checks.extend([at_most("strangers' p99", p99, 1.5, " s"), deferred]);
    } else {
        let limit = apart.unscanned as f64 * LIMIT / lent;
        checks.push(within(
            "strangers drained",
            strangers.drained,
            limit.max(1.0),
        ));
    }
    checks
}

fn backlog_checks(outcome: &Outcome, apart: &Apart, hangs: usize) -> Vec<Check> {
    let limit = 1.5 * outcome.reference.unwrap_or(0.0) + 10.0;
    let lent = LENT * outcome.variant.scene.slots as f64;
    let mut checks = match hangs as f64 <= lent {
        true => vec![within("all valid delivered", apart.drained, limit)],
        false => {
            // Those that hang take turns, and strangers wait for all but the first of them.
            let turns = (hangs as f64 / lent).ceil() - 1.0;
            let strangers = apart.strangers.drained;
            vec![
                within("known senders' delivered", apart.known.drained, limit),
                within("strangers' delivered", strangers, limit + turns * LIMIT),
            ]
        }
    };
    checks.extend([
        none("hangs not held", apart.loose()),
        at_most("scans of one hang", apart.most_scans() as f64, 2.0, ""),
    ]);
    checks
}

fn away_checks(outcome: &Outcome, apart: &Apart) -> Vec<Check> {
    let spare = outcome.variant.scene.capacity() - outcome.times * USUAL_RATE;
    let limit = 5.0 + 1.5 * apart.waiting as f64 / spare;
    vec![
        within("first mail", apart.first, 2.0),
        within("backlog gone", apart.drained, limit),
        at_most("fresh mail's p99", apart.fresh.p99, 1.0, " s"),
    ]
}

/// What is known of this run beside what is told of every run.
pub fn print(outcome: &Outcome, figures: &Figures) {
    let apart = &figures.apart;
    let spread = |of: Spread| {
        format!(
            "{} messages, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            of.count,
            of.p50 * 1000.0,
            of.p99 * 1000.0,
            of.max * 1000.0
        )
    };
    println!("  configured: {}", outcome.configured);
    for (name, group) in [("known", &apart.known), ("strangers", &apart.strangers)] {
        if group.calm.count + group.event.count > 0 {
            println!(
                "  {name}, calm: {}; event: {}; deferred {}; delivered {} after the event",
                spread(group.calm),
                spread(group.event),
                group.deferred,
                seconds(group.drained)
            );
        }
    }
    println!(
        "  event: {} % delivered in the session; at its end {} waited, first of them after {}, all after {}; fresh mail: {}",
        brief(apart.in_session),
        apart.waiting,
        seconds(apart.first),
        seconds(apart.drained),
        spread(apart.fresh)
    );
    if let Some(reference) = outcome.reference {
        let (what, unit) = match outcome.variant.event {
            Event::Overload => ("known senders alone", "scans a second"),
            _ => ("without what hangs", "s until all are delivered"),
        };
        println!(
            "  {what}: {} {unit}; here {}",
            brief(reference),
            compared(outcome, figures).map_or("never".to_owned(), brief)
        );
    }
    if apart.unscanned > 0 {
        println!("  hangs never scanned in the event: {}", apart.unscanned);
    }
    if let Some(killed) = outcome.killed {
        let after = killed.saturating_sub(outcome.phases.event_begins);
        println!(
            "  the relay was killed {:.1} s into the event",
            after.as_secs_f64()
        );
    }
    let mut fates = std::collections::BTreeMap::<(End, usize, &str), usize>::new();
    for Culprit {
        end, why, scans, ..
    } in &apart.culprits
    {
        *fates.entry((*end, *scans, why)).or_default() += 1;
    }
    for ((end, scans, why), count) in fates {
        let end = format!("{end:?}").to_lowercase();
        let why: String = why.chars().take(150).collect();
        println!("  culprits: {count} x {end} after {scans} scans {why}");
    }
}

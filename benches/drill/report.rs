//! Figures against targets, for people.

use std::fmt::Write as _;

use crate::figures::{End, Figures};
use crate::relay::Incident;
use crate::run::Outcome;
use crate::scene::Scene;
use crate::targets;
use crate::variant::{Event, Fault, Flood};

/// A figure and what it must be.
pub struct Check {
    pub name: &'static str,
    pub is: String,
    pub wanted: String,
    pub met: bool,
}

/// One run.
pub struct Row {
    pub outcome: Outcome,
    pub figures: Figures,
    /// Empty for a peer: it has promised nothing.
    pub checks: Vec<Check>,
}

impl Row {
    /// What a run amounts to.
    pub fn of(outcome: Outcome) -> Self {
        let figures = Figures::of(&outcome);
        let checks = checks(&outcome, &figures);
        Self {
            outcome,
            figures,
            checks,
        }
    }

    /// Whether the machine was too busy for this program itself.
    pub fn is_lame(&self) -> bool {
        self.figures.late.p99.max(self.figures.overrun.p99) > TOLERABLE
    }

    /// Whether a target is missed.
    pub fn misses(&self) -> bool {
        self.checks.iter().any(|check| !check.met)
    }
}

pub fn at_most(name: &'static str, is: f64, limit: f64, unit: &str) -> Check {
    Check {
        name,
        is: format!("{}{unit}", brief(is)),
        wanted: format!("<= {}{unit}", brief(limit)),
        met: is <= limit,
    }
}

pub fn within(name: &'static str, is: Option<f64>, limit: f64) -> Check {
    Check {
        name,
        is: is.map_or("never".to_owned(), |is| format!("{} s", brief(is))),
        wanted: format!("<= {} s", brief(limit)),
        met: is.is_some_and(|is| is <= limit),
    }
}

pub fn none(name: &'static str, is: usize) -> Check {
    at_most(name, is as f64, 0.0, "")
}

/// Three significant digits.
pub fn brief(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == v.trunc() => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// How late this program may be before its figures are doubtful, in seconds at p99.
const TOLERABLE: f64 = 0.005;

/// The targets that apply.
fn checks(outcome: &Outcome, figures: &Figures) -> Vec<Check> {
    if outcome.subject != "spillway" {
        return Vec::new();
    }
    if outcome.variant.scene != Scene::USUAL {
        return targets::checks(outcome, figures);
    }
    let mut checks = match outcome.variant.event {
        Event::Flood(flood) => flood_checks(flood, outcome.times, 0.0, figures),
        Event::Fault(fault) => fault_checks(fault, figures),
        Event::Newsletter { scan, .. } => {
            let mut checks = vec![none(
                "valid held at the end",
                figures.valid_ended(End::Held),
            )];
            if scan.as_secs() < 5 {
                checks.push(none("hold rules", figures.holds));
            }
            checks
        }
        // A tenth of a few milliseconds is less than a timer's grain.
        Event::NextHop(_) => vec![
            at_most(
                "p99 of the other next hop (calm + 10 %, + 2 ms)",
                figures.event.p99 * 1000.0,
                figures.calm.p99 * 1100.0 + 2.0,
                " ms",
            ),
            at_most(
                "refused attempts per message taken",
                figures.refused_ratio.unwrap_or(0.0),
                0.1,
                "",
            ),
        ],
        Event::Greedy { scan } if scan > outcome.variant.scene.usual => {
            vec![at_most("p99 of all others", figures.event.p99, 0.5, " s")]
        }
        Event::Greedy { .. } => vec![at_most(
            "p99 of all others / calm",
            figures.ratio(),
            2.0,
            "",
        )],
        Event::Drip { .. }
        | Event::Backlog { .. }
        | Event::Away
        | Event::Killer
        | Event::Beside
        | Event::Overload => Vec::new(),
    };
    checks.push(none(
        "valid refused with 5yz",
        figures.valid_ended(End::Rejected),
    ));
    checks.push(none("lost", figures.ended(End::Lost)));
    checks.push(none("duplicated", figures.ended(End::Doubled)));
    checks
}

/// `trials` are scans of the flood that are made to find out what it is: one where its sender is known.
pub fn flood_checks(flood: Flood, times: f64, trials: f64, figures: &Figures) -> Vec<Check> {
    let held = figures.valid_ended(End::Held);
    let degraded = figures.percent(figures.degraded);
    let mut checks = Vec::new();
    let (touched, contained, shares) = match flood {
        Flood::Constant => (2.0, 0.5, None),
        Flood::Polymorphic => (12.0, 3.0, Some((3.0, 0.2))),
        Flood::Mimic => (16.0, 3.0, Some((5.0, 0.5))),
        Flood::Text | Flood::Words => (6.0, 3.0, Some((3.0, 0.0))),
    };
    match shares {
        None => checks.extend([
            at_most("valid p99 in the flood / calm", figures.ratio(), 2.0, ""),
            at_most("valid p99", figures.event.p99 * 1000.0, 250.0, " ms"),
            at_most("valid max", figures.event.max, 5.0, " s"),
            none("valid held at the end", held),
            none(
                "valid delivered without an engine's opinion",
                figures.degraded,
            ),
        ]),
        Some((most_degraded, most_held)) => checks.extend([
            at_most("valid p99", figures.event.p99, 2.0, " s"),
            at_most(
                "valid held at the end",
                figures.percent(held),
                most_held,
                " %",
            ),
            at_most(
                "valid delivered without an engine's opinion",
                degraded,
                most_degraded,
                " %",
            ),
        ]),
    }
    checks.extend([
        at_most(
            "flood scans at the first engine",
            figures.touched as f64,
            touched + trials,
            "",
        ),
        within("contained", figures.contained, contained),
        within("first hold rule", figures.first_hold, 6.0),
        none("flood delivered", figures.flood_delivered),
        // A second and a half of mail.
        at_most(
            "peak of the valid backlog",
            figures.backlog as f64,
            (60.0 * times).ceil(),
            "",
        ),
        within("recovery", figures.recovery, 5.0),
    ]);
    checks
}

fn fault_checks(fault: Fault, figures: &Figures) -> Vec<Check> {
    let held = none("valid held at the end", figures.valid_ended(End::Held));
    match fault {
        Fault::SlowLarge => vec![within("class bypassed", figures.contained, 15.0), held],
        Fault::SlowAll | Fault::Hung | Fault::Refused | Fault::Garbage => {
            vec![at_most("valid p99", figures.event.p99, 2.0, " s"), held]
        }
        Fault::Flapping | Fault::Stutter => {
            vec![at_most("valid p99", figures.event.p99, 6.0, " s")]
        }
        Fault::Gray => vec![
            within("engine out", figures.contained, 25.0),
            none("made-up verdicts never re-scanned", figures.not_rescanned),
        ],
    }
}

/// All about one run.
pub fn print(row: &Row) {
    let Row {
        outcome,
        figures,
        checks,
    } = row;
    println!(
        "\n== {} ({}): {}",
        outcome.variant.name, outcome.subject, outcome.variant.about
    );
    if let Some(left_out) = &outcome.without {
        println!("  WITHOUT {left_out}");
    }
    for check in checks {
        let verdict = if check.met { "ok" } else { "MISSED" };
        println!(
            "  {:<50} {:>12}  {:<12} {verdict}",
            check.name, check.is, check.wanted
        );
    }
    let ms = |seconds: f64| format!("{:.1}", seconds * 1000.0);
    for (name, spread) in [
        ("calm", figures.calm),
        ("event", figures.event),
        ("concerned", figures.concerned),
    ] {
        if spread.count > 0 {
            println!(
                "  {name}: {} messages, p50 {} ms, p99 {} ms, max {} ms",
                spread.count,
                ms(spread.p50),
                ms(spread.p99),
                ms(spread.max)
            );
        }
    }
    if outcome.variant.scene != Scene::USUAL {
        targets::print(outcome, figures);
    }
    println!("  all messages at the end: {}", ends(&figures.ends));
    println!(
        "  valid from the event on ({}): {}; ever deferred {}, without an engine's opinion {}",
        figures.valid,
        ends(&figures.valid_ends),
        figures.deferred,
        figures.degraded
    );
    println!(
        "  peak of the valid backlog: {} in the calm, {} from the event on; recovery {}",
        figures.calm_backlog,
        figures.backlog,
        seconds(figures.recovery)
    );
    println!(
        "  first engine: {} scans of what this is about, {} workers busy at most, {} zombies at most; flood sent {}, delivered {}",
        figures.touched,
        outcome.busiest,
        outcome.zombies,
        figures.flood_sent,
        figures.flood_delivered
    );
    if let Event::Fault(Fault::Gray) = outcome.variant.event {
        println!(
            "  gray: {} delivered on a made-up answer, {} never re-scanned, {} bad ones among all delivered",
            figures.silent, figures.not_rescanned, figures.malware_delivered
        );
    }
    if let Some(ratio) = figures.refused_ratio {
        println!(
            "  slow next hop: {} refused attempts per message taken",
            brief(ratio)
        );
    }
    println!(
        "  breaker opened {}, closed {}; first hold rule {}, hold rules {}; incidents {}",
        seconds(figures.breaker_opened),
        seconds(figures.breaker_closed),
        seconds(figures.first_hold),
        figures.holds,
        outcome.books.incidents.len()
    );
    let mib = |octets: u64| octets >> 20;
    println!(
        "  relay: {} MiB resident before the event, {} at most, {} at the end; {:.0} % of a processor; foreign mail {}",
        mib(outcome.resident.calm),
        mib(outcome.resident.most),
        mib(outcome.resident.last),
        outcome.cpu.0 * 100.0,
        figures.foreign
    );
    println!(
        "  this program: {:.0} % of a processor; messages sent late by p99 {} ms, max {} ms; scans too long by p99 {} ms, max {} ms",
        outcome.cpu.1 * 100.0,
        ms(figures.late.p99),
        ms(figures.late.max),
        ms(figures.overrun.p99),
        ms(figures.overrun.max)
    );
    if row.is_lame() {
        println!(
            "  NOTE: the machine was too busy for this program; the delays say little about the relay"
        );
    }
    if outcome.capped {
        println!(
            "  NOTE: the cap on sessions was reached: the load was not an open loop all the time"
        );
    }
    story(outcome);
    oddities(outcome);
}

/// The beginning of the relay's own incident log; neighbours of one kind and subject are one line.
fn story(outcome: &Outcome) {
    const LINES: usize = 16;
    let begins = outcome.began_at + outcome.phases.event_begins;
    let alike = |a: &Incident, b: &Incident| a.kind == b.kind && a.subject == b.subject;
    for chunk in outcome.books.incidents.chunk_by(alike).take(LINES) {
        let at = chunk[0].at.duration_since(begins).as_secs_f64();
        let summary: String = chunk[0].summary.chars().take(120).collect();
        let more = match chunk.len() {
            1 => String::new(),
            count => format!(" (and {} like it)", count - 1),
        };
        println!("  incident {at:+.2} s: {}: {summary}{more}", chunk[0].kind);
    }
}

fn ends(ends: &std::collections::BTreeMap<End, usize>) -> String {
    let each = ends.iter().map(|(end, count)| format!("{end:?} {count}"));
    each.collect::<Vec<_>>().join(", ").to_lowercase()
}

pub fn seconds(of: Option<f64>) -> String {
    of.map_or("-".to_owned(), |of| format!("{} s", brief(of)))
}

/// Examples of what ought not to be.
fn oddities(outcome: &Outcome) {
    let told = outcome.told.iter().zip(outcome.plan.iter());
    let mut deferrals = std::collections::BTreeMap::<(bool, &str), usize>::new();
    let mut rejections = std::collections::BTreeMap::<(bool, &str), usize>::new();
    let mut broken = 0;
    for (told, planned) in told {
        broken += told.broken;
        let valid = planned.kind.is_valid();
        let code = |text: &'_ str| text.get(..9).map_or(0, str::len);
        if told.deferred > 0 {
            let text = &told.last_deferral;
            *deferrals.entry((valid, &text[..code(text)])).or_default() += told.deferred as usize;
        }
        if let Some(text) = &told.rejected {
            *rejections.entry((valid, &text[..code(text)])).or_default() += 1;
        }
    }
    for (what, counts) in [("4yz", deferrals), ("5yz", rejections)] {
        for ((valid, code), count) in counts {
            let of = if valid { "valid" } else { "other" };
            println!("  {what} to {of} mail: {count} x {code}");
        }
    }
    if broken > 0 {
        println!("  connections that broke: {broken}");
    }
    let why = |books: &std::collections::BTreeMap<String, String>, name: &str| {
        let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
        for reason in books.values() {
            *reasons.entry(reason.as_str()).or_default() += 1;
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (reason, count) in reasons.into_iter().take(4) {
            let reason: String = reason.chars().take(150).collect();
            println!("  {name}: {count} x {reason}");
        }
    };
    why(&outcome.books.held, "held");
    why(&outcome.books.pending, "pending");
}

const COLUMNS: [&str; 17] = [
    "variant",
    "calm p50",
    "p99",
    "max",
    "event p50",
    "p99",
    "max",
    "ratio",
    "scans",
    "zombies",
    "contained",
    "held / deferred",
    "degraded",
    "flood out",
    "lost / dup",
    "backlog",
    "recovery",
];

/// A row for each run, as Markdown. What misses its target is bold.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        COLUMNS
            .iter()
            .map(|c| (*c).to_owned())
            .chain(["first rule".into(), "MiB".into(), "missed".into()])
            .collect(),
    ];
    lines.extend(rows.iter().map(cells));
    let columns = lines[0].len();
    let width = |at: usize| {
        lines
            .iter()
            .map(|line: &Vec<String>| line[at].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text += "|\n";
        if at == 0 {
            for width in &widths {
                let _ = write!(text, "|{:-<1$}", "", width + 2);
            }
            text += "|\n";
        }
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let Row {
        outcome,
        figures,
        checks,
    } = row;
    let time = |seconds: f64| match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => format!("{} s", brief(s)),
    };
    let missed: Vec<&str> = checks.iter().filter(|c| !c.met).map(|c| c.name).collect();
    let (calm, event) = (figures.calm, figures.event);
    vec![
        match (outcome.subject, &outcome.without) {
            (_, Some(left_out)) => format!("{}, without {left_out}", outcome.variant.name),
            ("spillway", None) => outcome.variant.name.to_owned(),
            (peer, None) => format!("{}, {peer}", outcome.variant.name),
        },
        time(calm.p50),
        time(calm.p99),
        time(calm.max),
        time(event.p50),
        time(event.p99),
        time(event.max),
        match calm.count {
            0 => "-".to_owned(),
            _ => brief(figures.ratio()),
        },
        figures.touched.to_string(),
        outcome.zombies.to_string(),
        figures.contained.map_or("-".to_owned(), time),
        format!("{} / {}", figures.valid_ended(End::Held), figures.deferred),
        format!("{} %", brief(figures.percent(figures.degraded))),
        figures.flood_delivered.to_string(),
        format!(
            "{} / {}",
            figures.ended(End::Lost),
            figures.ended(End::Doubled)
        ),
        figures.backlog.to_string(),
        figures.recovery.map_or("never".to_owned(), time),
        figures.first_hold.map_or("-".to_owned(), time),
        match outcome.resident.most {
            0 => "-".to_owned(),
            octets => (octets >> 20).to_string(),
        },
        match missed.is_empty() {
            true => "-".to_owned(),
            false => format!("**{}**", missed.join(", ")),
        },
    ]
}

//! A line of JSON for each run, for scripts that go on where they stopped.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use crate::figures::Spread;
use crate::report::Row;

/// Appends what a run amounts to.
pub fn append(file: &Path, row: &Row) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{}", line(row))?;
    file.sync_data()
}

fn line(row: &Row) -> Value {
    let Row {
        outcome,
        figures,
        checks,
    } = row;
    let apart = &figures.apart;
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| json!({"name": check.name, "is": check.is, "wanted": check.wanted, "met": check.met}))
        .collect();
    let group = |group: &crate::apart::Group| {
        json!({
            "calm": spread(group.calm),
            "event": spread(group.event),
            "deferred": group.deferred,
            "drained_s": group.drained,
        })
    };
    let culprits: Vec<Value> = apart
        .culprits
        .iter()
        .map(|one| json!({"kind": format!("{:?}", one.kind), "end": format!("{:?}", one.end), "why": one.why, "scans": one.scans}))
        .collect();
    json!({
        "variant": outcome.variant.name,
        "subject": outcome.subject,
        "without": outcome.without,
        "seed": outcome.seed,
        "quick": outcome.quick,
        "at": outcome.began_at.to_string(),
        "configured": outcome.configured,
        "missed": row.misses(),
        "is_lame": row.is_lame(),
        "checks": checks,
        "calm": spread(figures.calm),
        "event": spread(figures.event),
        "concerned": spread(figures.concerned),
        "known": group(&apart.known),
        "strangers": group(&apart.strangers),
        "fresh": spread(apart.fresh),
        "alone": spread(apart.alone),
        "in_session_percent": apart.in_session,
        "waiting": apart.waiting,
        "first_s": apart.first,
        "drained_s": apart.drained,
        "reference_s": outcome.reference,
        "unscanned": apart.unscanned,
        "culprits": culprits,
        "valid": figures.valid,
        "degraded": figures.degraded,
        "deferred": figures.deferred,
        "flood_scans": figures.touched,
        "flood_delivered": figures.flood_delivered,
        "zombies": outcome.zombies,
        "resident": outcome.resident.most,
    })
}

/// In milliseconds.
fn spread(of: Spread) -> Value {
    json!({
        "count": of.count,
        "p50_ms": of.p50 * 1000.0,
        "p99_ms": of.p99 * 1000.0,
        "max_ms": of.max * 1000.0,
    })
}

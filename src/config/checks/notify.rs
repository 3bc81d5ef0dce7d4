//! Checks of `[[notify]]` together with the other sections.

use crate::notify::{Kind, Settings, WAYS_MAX};

use super::{Config, Log};

/// The next hops and the causes of each way exist, and one broken next hop does not silence all ways.
pub(super) fn ways(config: &Config, log: &mut Log) {
    if config.notify.len() > WAYS_MAX {
        log.complain(
            "notify",
            format!("there are {} [[notify]] sections", config.notify.len()),
            format!("write at most {WAYS_MAX}"),
        );
    }
    for way in &config.notify {
        next_hops(config, way, log);
        causes(config, way, log);
        waits(way, log);
    }
    let next_hop = |way: &Settings| match &way.kind {
        Kind::Mail(mail) => match &mail.next_hops[..] {
            [only] => Some(only.clone()),
            _ => None,
        },
        Kind::Command(_) | Kind::Webhook(_) => None,
    };
    let only = config.notify.first().and_then(next_hop);
    let Some(only) = only else { return };
    if config
        .notify
        .iter()
        .all(|way| next_hop(way).as_ref() == Some(&only))
    {
        let key = format!("notify.{}.next_hop", config.notify[0].name);
        log.warn(
            &key,
            format!("every notification goes through next_hop.{only}: while it is down, nobody is told, not even of that"),
            "name another next hop in fallback, or add a [[notify]] of another kind",
        );
    }
}

/// Warns of a wait for what is not told.
fn waits(way: &Settings, log: &mut Log) {
    for (key, part, is_told) in [
        ("begin_after", "begin", way.begin),
        ("end_after", "end", way.end),
    ] {
        let key = format!("notify.{}.{key}", way.name);
        if !is_told && log.is_changed(&key) {
            let what = format!("has no effect, because tell does not have \"{part}\"");
            log.warn(&key, what, format!("remove it, or add \"{part}\" to tell"));
        }
    }
}

fn next_hops(config: &Config, way: &Settings, log: &mut Log) {
    let Kind::Mail(mail) = &way.kind else { return };
    for (at, wanted) in mail.next_hops.iter().enumerate() {
        if config.next_hops.iter().any(|hop| hop.name == *wanted) {
            continue;
        }
        let key = if at == 0 { "next_hop" } else { "fallback" };
        let known: Vec<_> = config.next_hops.iter().map(|hop| &*hop.name).collect();
        log.complain(
            &format!("notify.{}.{key}", way.name),
            format!("there is no [[next_hop]] with the name {wanted:?}"),
            format!("write one of {}", known.join(", ")),
        );
    }
}

fn causes(config: &Config, way: &Settings, log: &mut Log) {
    for cause in &way.causes {
        let Some(wanted) = &cause.name else { continue };
        let (list, known): (_, Vec<&str>) = match cause.word {
            "engine" => ("engine", config.engines.iter().map(|e| &*e.name).collect()),
            _ => (
                "next_hop",
                config.next_hops.iter().map(|n| &*n.name).collect(),
            ),
        };
        if !known.contains(&&**wanted) {
            log.complain(
                &format!("notify.{}.causes", way.name),
                format!("there is no [[{list}]] with the name {wanted:?}"),
                format!("write one of {}", known.join(", ")),
            );
        }
    }
}

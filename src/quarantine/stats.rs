//! Counts of quarantine by reason, by engine and by age.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::store::{Filter, Lane, Record, Store, StoreError};

/// Entries read at once: few enough to use little memory, and enough to read a large quarantine soon.
const ENTRIES_PER_READ: usize = 1000;
/// Upper limits of the age groups.
const AGE_GROUPS: [(&str, Duration); 4] = [
    ("under 1 hour", Duration::from_secs(3600)),
    ("under 1 day", Duration::from_secs(86_400)),
    ("under 7 days", Duration::from_secs(7 * 86_400)),
    ("under 30 days", Duration::from_secs(30 * 86_400)),
];
/// Name of the group beyond the last limit.
const OLDEST_AGE_GROUP: &str = "older";

/// The messages of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Number of messages.
    pub messages: u64,
    /// Octets of content.
    pub octets: u64,
}

/// A group with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedGroup {
    /// The rule, the engine, or the range of ages.
    pub name: String,
    /// The counts of the group.
    #[serde(flatten)]
    pub group: Group,
}

/// Counts of quarantine. The groups by engine overlap: a message counts for each engine that found something or did not
/// answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// All messages.
    pub total: Group,
    /// By the rule that held it, the largest group first.
    pub by_reason: Vec<NamedGroup>,
    /// By engine, the largest group first.
    pub by_engine: Vec<NamedGroup>,
    /// By time since reception, the youngest first, including empty groups.
    pub by_age: Vec<NamedGroup>,
}

impl Group {
    fn add(&mut self, record: &Record) {
        self.messages += 1;
        self.octets += record.size;
    }
}

/// Counts the messages in quarantine. Reads every entry, a page at a time; entries that come or go meanwhile may be missed.
///
/// Cancel safety: safe.
pub async fn collect(store: &dyn Store, now: Timestamp) -> Result<Stats, StoreError> {
    let mut total = Group::default();
    let (mut reasons, mut engines) = (BTreeMap::new(), BTreeMap::new());
    let mut ages = [Group::default(); AGE_GROUPS.len() + 1];
    let mut offset = 0;
    loop {
        let page = Filter {
            lanes: vec![Lane::Held],
            limit: ENTRIES_PER_READ,
            offset,
            ..Filter::default()
        };
        let records = store.search(page).await?;
        for record in &records {
            total.add(record);
            let rule = record
                .decision
                .as_ref()
                .map_or("-", |decision| &decision.rule);
            group(&mut reasons, rule).add(record);
            for report in &record.reports {
                if report.missing().is_some() || !report.findings().is_empty() {
                    group(&mut engines, &report.engine).add(record);
                }
            }
            ages[age(now, record)].add(record);
        }
        if records.is_empty() {
            break;
        }
        offset += ENTRIES_PER_READ;
    }
    let names = AGE_GROUPS
        .iter()
        .map(|(name, _)| *name)
        .chain([OLDEST_AGE_GROUP]);
    Ok(Stats {
        total,
        by_reason: largest_first(reasons),
        by_engine: largest_first(engines),
        by_age: names
            .zip(ages)
            .map(|(name, group)| NamedGroup {
                name: name.to_owned(),
                group,
            })
            .collect(),
    })
}

fn group<'a>(groups: &'a mut BTreeMap<String, Group>, name: &str) -> &'a mut Group {
    groups.entry(name.to_owned()).or_default()
}

fn age(now: Timestamp, record: &Record) -> usize {
    // A message whose reception is in the future (the clock was set back) counts as young.
    let age = Duration::try_from(now.duration_since(record.received_at)).unwrap_or_default();
    AGE_GROUPS
        .iter()
        .position(|(_, limit)| age < *limit)
        .unwrap_or(AGE_GROUPS.len())
}

fn largest_first(groups: BTreeMap<String, Group>) -> Vec<NamedGroup> {
    let mut named: Vec<NamedGroup> = groups
        .into_iter()
        .map(|(name, group)| NamedGroup { name, group })
        .collect();
    named.sort_by_key(|named| std::cmp::Reverse(named.group.messages));
    named
}

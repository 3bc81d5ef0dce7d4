//! What a change of the configuration means for mail, in words.

use std::collections::BTreeMap;

use super::change::{Shown, map, section_of};
use super::units;

/// The keys of the thresholds: one line of scores that all three divide.
const THRESHOLD_KEYS: [&str; 3] = [
    "policy.tag_score",
    "policy.quarantine_score",
    "policy.reject_score",
];

/// Explains the changes between two configurations.
pub(super) struct Effects<'a> {
    old: BTreeMap<&'a str, &'a str>,
    new: BTreeMap<&'a str, &'a str>,
    /// Whether the bands of scores are told already, by the first threshold that changes.
    are_scores_told: bool,
}

impl<'a> Effects<'a> {
    pub(super) fn new(old: &'a Shown, new: &'a Shown) -> Self {
        Self {
            old: map(old),
            new: map(new),
            are_scores_told: false,
        }
    }

    /// What the change of a key means, one line for each consequence. Empty where the values say everything.
    pub(super) fn of(&mut self, key: &str) -> Vec<String> {
        if THRESHOLD_KEYS.contains(&key) {
            let told = std::mem::replace(&mut self.are_scores_told, true);
            return match told {
                true => Vec::new(),
                false => self.scores(),
            };
        }
        let values = (self.old.get(key).copied(), self.new.get(key).copied());
        let line = match (section_of(key), key.split_once('.')) {
            (Some(("engine", name)), _) => {
                let of = key.rsplit('.').next().unwrap_or_default();
                self.engine(name, of, values)
            }
            (Some(("rule", name)), _) => self.rule(name),
            (None, Some(("coverage", class))) => coverage(class, values),
            (None, Some(("policy", of))) => policy(of, values),
            (None, Some(("budget", of))) => budget(of),
            _ => None,
        };
        line.into_iter().collect()
    }

    /// The bands of scores in which something else is done.
    fn scores(&self) -> Vec<String> {
        let thresholds = |settings: &BTreeMap<&str, &str>| -> Option<[f64; 3]> {
            let [tag, quarantine, reject] =
                THRESHOLD_KEYS.map(|key| settings.get(key)?.parse().ok());
            Some([tag?, quarantine?, reject?])
        };
        let (Some(old), Some(new)) = (thresholds(&self.old), thresholds(&self.new)) else {
            return Vec::new();
        };
        let mut ends: Vec<f64> = old.iter().chain(&new).copied().collect();
        ends.sort_by(f64::total_cmp);
        ends.dedup();
        let mut lines = Vec::new();
        let mut from = 0;
        while let Some(start) = ends.get(from) {
            let (was, is) = (band(old, *start), band(new, *start));
            // The band goes on while the same is done.
            let more = ends[from..]
                .iter()
                .take_while(|score| (band(old, **score), band(new, **score)) == (was, is));
            let next = from + more.count();
            if was != is {
                let scores = match ends.get(next) {
                    Some(end) => format!("from {start} to below {end}"),
                    None => format!("from {start}"),
                };
                lines.push(format!(
                    "mail with scores {scores} is {is}, and no longer {was}"
                ));
            }
            from = next;
        }
        lines
    }

    fn engine(
        &self,
        name: &str,
        key: &str,
        (old, new): (Option<&str>, Option<&str>),
    ) -> Option<String> {
        let section = format!("engine.{name}.name");
        let has_it = |settings: &BTreeMap<&str, &str>| settings.contains_key(&*section);
        match (has_it(&self.old), has_it(&self.new)) {
            (false, true) => {
                return Some(
                    "it is asked about all mail; what it will find is not known yet".to_owned(),
                );
            }
            (true, false) => {
                return Some("it is not asked any more, and its findings do not count".to_owned());
            }
            (true, true) | (false, false) => {}
        }
        match (key, old, new) {
            ("timeout" | "slow" | "wait", Some(old), Some(new)) => {
                time_of_engine(name, key, is_longer(old, new)?, bare(new))
            }
            ("slots", Some(old), Some(new)) => {
                let (old, new): (u64, u64) = (old.parse().ok()?, new.parse().ok()?);
                Some(match new > old {
                    true => format!(
                        "{name} gets up to {new} scans at once on each replica: has it as many workers?"
                    ),
                    false => format!(
                        "{name} gets at most {new} scans at once on each replica, and more mail waits; see: spillway what-if --slots"
                    ),
                })
            }
            ("weight", Some(old), Some(new)) => Some(format!(
                "scores of {name} count {new} times, and no longer {old} times"
            )),
            ("max_size", Some(_), Some(new)) => Some(format!(
                "larger content than {} is not scanned by {name}, and its answer is then missing (too-large)",
                bare(new)
            )),
            _ => None,
        }
    }

    /// What a rule does that is added or removed.
    fn rule(&self, name: &str) -> Option<String> {
        let key = format!("rule.{name}.then");
        let then =
            |settings: &BTreeMap<&str, &str>| settings.get(&*key).map(|then| bare(then).to_owned());
        match (then(&self.old), then(&self.new)) {
            (None, Some(then)) => Some(format!("mail that it matches gets: {then}")),
            (Some(then), None) => Some(format!(
                "mail that it matched is decided by later rules and the policy, and no longer by its {then}"
            )),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// What follows from a longer or shorter time in the settings of an engine.
fn time_of_engine(name: &str, key: &str, is_longer: bool, new: &str) -> Option<String> {
    Some(match (key, is_longer) {
        ("timeout", true) => format!(
            "a message waits longer for {name}, and misses fewer of its answers; see: spillway what-if"
        ),
        ("timeout", false) => format!(
            "scans of {name} that take {new} or more count as missing; see: spillway what-if"
        ),
        ("slow", true) => {
            format!("a hang of {name} is noticed later, and slow but good scans are blamed less")
        }
        ("slow", false) => {
            format!("a hang of {name} is noticed sooner, and slow but good scans are blamed more")
        }
        ("wait", true) => format!(
            "new mail waits longer for a slot of {name} before its answer is missing (busy)"
        ),
        ("wait", false) => {
            format!("new mail that finds no slot of {name} within {new} misses its answer (busy)")
        }
        _ => return None,
    })
}

/// What is done with a message of that score, if nothing but the score decides.
fn band([tag, quarantine, reject]: [f64; 3], score: f64) -> &'static str {
    if score >= reject {
        "rejected"
    } else if score >= quarantine {
        "held"
    } else if score >= tag {
        "delivered marked"
    } else {
        "delivered without a mark"
    }
}

/// Whether the second duration is longer; none if they are equal or no durations.
fn is_longer(old: &str, new: &str) -> Option<bool> {
    let [old, new] = [old, new].map(|text| units::duration(bare(text)).ok());
    let (old, new) = (old?, new?);
    (old != new).then_some(new > old)
}

/// A text of TOML without its quotes.
fn bare(value: &str) -> &str {
    value.trim_matches('"')
}

fn coverage(class: &str, (old, new): (Option<&str>, Option<&str>)) -> Option<String> {
    let (old, new): (u64, u64) = (old?.parse().ok()?, new?.parse().ok()?);
    Some(match new {
        0 => format!(
            "mail that no engine of class {class} answered about is delivered, but is not clean"
        ),
        _ if new > old => format!(
            "mail about which fewer than {new} engines of class {class} answered is not delivered"
        ),
        _ => {
            format!("mail is delivered already when {new} of the engines of class {class} answered")
        }
    })
}

fn policy(key: &str, (old, new): (Option<&str>, Option<&str>)) -> Option<String> {
    let (old, new) = (bare(old?), bare(new?));
    Some(match key.strip_prefix("missing.") {
        Some(reason) => format!(
            "mail that lacks a required answer because of {reason} gets {new}, and no longer {old}"
        ),
        None if new == "deliver" => {
            format!("findings of kind {key} count by their score only, and no longer get {old}")
        }
        None => format!("mail with a finding of kind {key} gets {new}, and no longer {old}"),
    })
}

fn budget(key: &str) -> Option<String> {
    let effect = match key {
        "session" => {
            "a sender waits at most that long; then the relay keeps the mail and answers 250"
        }
        "total" => "when the scans of a message have taken that long, it is held",
        "deferral" => "mail that lacks a required answer for that long is held",
        _ => return None,
    };
    Some(effect.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::{Difference, differences, load};

    fn effects(old: &str, new: &str) -> Vec<String> {
        let read = |text: &str| {
            let folder = tempfile::tempdir().expect("folder");
            let file = folder.path().join("c.toml");
            std::fs::write(&file, text).expect("writes");
            load(Some(&file)).unwrap_or_else(|problems| panic!("{problems}"))
        };
        let differences = differences(read(old).shown(), read(new).shown());
        let line = |d: Difference| {
            let restart = if d.needs_restart { " (restart)" } else { "" };
            std::iter::once(d.what + restart).chain(d.effects.into_iter().map(|e| format!("  {e}")))
        };
        differences.into_iter().flat_map(line).collect()
    }

    /// Thresholds divide one line of scores: each band in which something else is done is told once, with what is done in it
    /// now; bands in which the same is done are not told.
    #[test]
    fn thresholds_are_told_as_bands_of_scores() {
        let scores = |tag: f64, quarantine: f64, reject: f64| {
            format!(
                "[policy]\ntag_score = {tag:.1}\nquarantine_score = {quarantine:.1}\nreject_score = {reject:.1}\n"
            )
        };
        let told = effects(&scores(5.0, 6.0, 15.0), &scores(5.0, 8.0, 15.0));
        assert_eq!(
            told,
            [
                "policy.quarantine_score: 6.0 -> 8.0",
                "  mail with scores from 6 to below 8 is delivered marked, and no longer held",
            ]
        );
        let told = effects(&scores(5.0, 6.0, 15.0), &scores(7.0, 8.0, 12.0));
        assert_eq!(
            told,
            [
                "policy.quarantine_score: 6.0 -> 8.0",
                "  mail with scores from 5 to below 6 is delivered without a mark, and no longer delivered marked",
                "  mail with scores from 6 to below 7 is delivered without a mark, and no longer held",
                "  mail with scores from 7 to below 8 is delivered marked, and no longer held",
                "  mail with scores from 12 to below 15 is rejected, and no longer held",
                "policy.reject_score: 15.0 -> 12.0",
                "policy.tag_score: 5.0 -> 7.0",
            ]
        );
    }

    /// Each change says what follows for mail, and whether it needs a restart.
    #[test]
    fn changes_say_what_follows() {
        let engine = |timeout: &str, slots: u32| {
            format!(
                "[[engine]]\nname = \"rules\"\nkind = \"rules\"\ntimeout = \"{timeout}\"\nslots = {slots}\n"
            )
        };
        let rule = "[[rule]]\nname = \"boss\"\nrecipient = [\"boss@*\"]\nthen = \"deliver\"\n";
        let old = engine("5s", 4);
        let new = format!(
            "[store]\npath = \"/elsewhere\"\n[policy]\nmalware = \"reject\"\n[policy.missing]\nbusy = \"deliver\"\n{}{rule}",
            engine("3s", 8)
        );
        let told = effects(&old, &new);
        for line in [
            "engine.rules.slots: 4 -> 8",
            "  rules gets up to 8 scans at once on each replica: has it as many workers?",
            "engine.rules.timeout: \"5s\" -> \"3s\"",
            "  scans of rules that take 3s or more count as missing; see: spillway what-if",
            "policy.malware: \"quarantine\" -> \"reject\"",
            "  mail with a finding of kind malware gets reject, and no longer quarantine",
            "  mail that lacks a required answer because of busy gets deliver, and no longer defer",
            "rule boss: added",
            "  mail that it matches gets: deliver",
        ] {
            assert!(told.iter().any(|told| told == line), "{line}\n{told:#?}");
        }
        let path = told.iter().find(|line| line.starts_with("store.path: "));
        assert!(
            path.is_some_and(|line| line.ends_with("(restart)")),
            "{told:#?}"
        );
    }
}

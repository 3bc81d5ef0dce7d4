//! What gets worse without a mechanism: each is left out in the variants that it is there for, and every variant is run
//! with all of them as well.

use crate::options::Options;
use crate::variant::Variant;

/// The mechanisms of src/ablation.rs, in small letters, and where leaving them out should show.
const TABLE: &[(&str, &[&str])] = &[
    ("zombies", &["constant", "polymorphic"]),
    ("canaries", &["constant", "text"]),
    ("trustlevels", &["mimic"]),
    ("turns", &["greedy-heavy"]),
    ("breaker", &["hung", "slow-all"]),
    ("probes", &["gray"]),
    ("sharing", &["newsletter-slow"]),
    ("retrybudget", &["garbage", "flapping"]),
    ("interceptors", &["text", "slow-class"]),
    ("blame", &["constant", "mimic"]),
    ("recovery", &["gray", "newsletter-heavy"]),
    ("admission", &["greedy-heavy"]),
    ("pacing", &["slow-hop", "tarpit-hop"]),
];

/// The runs, of the wanted variants: those without a mechanism follow the one with all of them.
pub fn runs<'a>(
    options: &Options,
    wanted: impl Iterator<Item = &'a Variant>,
) -> Vec<(Options, &'a Variant)> {
    let mut runs = Vec::new();
    for variant in wanted {
        let left_out = TABLE.iter().filter(|(_, of)| of.contains(&variant.name));
        let mut left_out = left_out.map(|(name, _)| (*name).to_owned()).peekable();
        if left_out.peek().is_none() {
            continue;
        }
        for without in std::iter::once(None).chain(left_out.map(Some)) {
            let options = Options {
                without,
                ..options.clone()
            };
            runs.push((options, variant));
        }
    }
    runs
}

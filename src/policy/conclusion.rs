//! The conclusion from the reports, before the administrator's rules.

use crate::verdict::{Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict};

use super::{PASSED_RULE, Settings, gravity};

/// The conclusion for the whole message; it does not depend on the recipients.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conclusion {
    pub(super) verdict: Verdict,
    pub(super) disposition: Disposition,
    pub(super) rule: String,
    pub(super) reason: String,
    pub(super) score: f64,
}

/// Steps 2 to 5 of the order in [`super`].
pub(super) fn conclude(settings: &Settings, reports: &[Report]) -> Conclusion {
    let sum = sum(settings, reports);
    let (verdict, disposition, rule, mut reason) = by_kind(settings, reports)
        .or_else(|| by_score(settings, sum.score))
        .or_else(|| by_coverage(settings, reports))
        .unwrap_or_else(|| otherwise(settings, reports, sum.score));
    for engine in sum.not_numbers {
        reason.push_str(&format!(
            "; a score of {engine} is not a finite number and counts as 0"
        ));
    }
    Conclusion {
        verdict,
        disposition,
        rule,
        reason,
        score: sum.score,
    }
}

type Step = (Verdict, Disposition, String, String);

/// The sum of the weighted scores.
struct Sum<'a> {
    score: f64,
    /// Engines with a score that is NaN or infinite.
    not_numbers: Vec<&'a str>,
}

/// One finding adds or subtracts at most 10^9: far beyond every threshold, and any number of findings has a finite sum.
const FINDING_SCORE_MAX: f64 = 1e9;

fn sum<'a>(settings: &Settings, reports: &'a [Report]) -> Sum<'a> {
    let mut sum = Sum {
        score: 0.0,
        not_numbers: Vec::new(),
    };
    for report in reports {
        let weight = settings.weights.get(&report.engine).copied().unwrap_or(1.0);
        for finding in report.findings() {
            if finding.kind == FindingKind::Info {
                continue;
            }
            if finding.score.is_finite() {
                sum.score += (finding.score * weight).clamp(-FINDING_SCORE_MAX, FINDING_SCORE_MAX);
            } else if !sum.not_numbers.contains(&&*report.engine) {
                sum.not_numbers.push(&report.engine);
            }
        }
    }
    sum
}

/// Step 2: the most serious disposition among the kinds of the findings; for equal dispositions, the most serious kind, then
/// the first finding.
fn by_kind(settings: &Settings, reports: &[Report]) -> Option<Step> {
    let mut worst: Option<(u8, Disposition, &Report, &Finding)> = None;
    for kind in FindingKind::ALL {
        let disposition = match settings.kinds.get(&kind) {
            None | Some(Disposition::Deliver) => continue,
            Some(&disposition) => disposition,
        };
        let found = reports.iter().find_map(|report| {
            let finding = report.findings().iter().find(|f| f.kind == kind)?;
            Some((report, finding))
        });
        if let Some((report, finding)) = found
            && worst.is_none_or(|(most_serious, ..)| gravity(disposition) > most_serious)
        {
            worst = Some((gravity(disposition), disposition, report, finding));
        }
    }
    let (_, disposition, report, finding) = worst?;
    Some((
        Verdict::Malicious,
        disposition,
        format!("policy.{}", finding.kind.as_str()),
        format!("{} found {}", report.engine, finding.name),
    ))
}

/// Step 3.
fn by_score(settings: &Settings, score: f64) -> Option<Step> {
    let (disposition, name, threshold) = if score >= settings.reject_score {
        (Disposition::Reject, "reject_score", settings.reject_score)
    } else if score >= settings.quarantine_score {
        let threshold = settings.quarantine_score;
        (Disposition::Quarantine, "quarantine_score", threshold)
    } else {
        return None;
    };
    Some((
        Verdict::Malicious,
        disposition,
        "policy.score".to_owned(),
        format!("score {score:.2} reaches {name} {threshold:.2}"),
    ))
}

/// Step 4: of the classes without coverage, the one with the most serious disposition.
fn by_coverage(settings: &Settings, reports: &[Report]) -> Option<Step> {
    let mut worst: Option<Step> = None;
    for class in EngineClass::ALL {
        let Some(step) = coverage_of(class, settings, reports) else {
            continue;
        };
        if worst
            .as_ref()
            .is_none_or(|w| gravity(step.1) > gravity(w.1))
        {
            worst = Some(step);
        }
    }
    worst
}

/// The missing answers of one class: too few answers, or one that others do not make up for ([`Reason::blames_message`]).
///
/// An engine without which mail passes counts as if it had answered. If coverage is met only so, the message is delivered, but
/// stays undetermined.
fn coverage_of(class: EngineClass, settings: &Settings, reports: &[Report]) -> Option<Step> {
    let required = settings.coverage.get(&class).copied().unwrap_or(0);
    let of_class = || reports.iter().filter(move |report| report.class == class);
    let answered = of_class().filter(|r| r.missing().is_none()).count();
    let passed = || of_class().filter_map(|r| Some((&*r.engine, r.passed.as_deref()?)));
    let covered = answered + passed().count();
    let missing = of_class().filter(|report| report.passed.is_none());
    let missing = missing.filter_map(|report| Some((&*report.engine, report.missing()?)));
    let consequence = |reason: Reason| {
        let configured = settings.missing.get(&reason).copied();
        configured.unwrap_or(Disposition::Defer)
    };
    let (missing, so): (Vec<(&str, Reason)>, &str) = if covered < required {
        (missing.collect(), "")
    } else if required > 0 {
        let blamed = missing
            .filter(|(_, reason)| reason.blames_message())
            .filter(|(_, reason)| consequence(*reason) != Disposition::Deliver);
        (
            blamed.collect(),
            ", but the message is the likely cause of a missing answer",
        )
    } else {
        return None;
    };
    let is_met = covered >= required && missing.is_empty();
    if is_met && answered >= required {
        return None;
    }
    let (disposition, rule) = match is_met {
        true => (Disposition::Deliver, PASSED_RULE.to_owned()),
        false => {
            let all = missing.iter().map(|(_, reason)| consequence(*reason));
            // Without one, no engine was asked, because the engines changed after the scan: the next scan asks them.
            let worst = all.max_by_key(|&disposition| gravity(disposition));
            let rule = format!("coverage.{}", class.as_str());
            (worst.unwrap_or(Disposition::Defer), rule)
        }
    };
    let so = if is_met { "" } else { so };
    let answers = format!(
        "{answered} of {required} required {} engines answered{so}",
        class.as_str()
    );
    let reason = answers + &without(&missing, passed());
    Some((Verdict::Undetermined, disposition, rule, reason))
}

/// The end of the reason of step 4: the engines whose answers are missing, and those without which mail passes.
fn without<'a>(
    missing: &[(&str, Reason)],
    passed: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let said: Vec<String> = missing
        .iter()
        .map(|(engine, reason)| format!("{engine}: {}", reason.as_str()))
        .collect();
    let mut text = match said.is_empty() {
        true => String::new(),
        false => format!(" ({})", said.join(", ")),
    };
    for (engine, why) in passed {
        text.push_str(&format!("; mail passes without {engine}: {why}"));
    }
    text
}

/// Step 5. Without required coverage, a message that no engine answered about is delivered, but is not clean.
fn otherwise(settings: &Settings, reports: &[Report], score: f64) -> Step {
    let answered = reports.iter().filter(|r| r.missing().is_none()).count();
    let (verdict, rule, reason) = if score >= settings.tag_score {
        let threshold = settings.tag_score;
        let reason = format!("score {score:.2} reaches tag_score {threshold:.2}");
        (Verdict::Suspect, "policy.score", reason)
    } else if answered == 0 {
        let reason = "no engine answered, and no coverage is required".to_owned();
        (Verdict::Undetermined, "coverage.none", reason)
    } else {
        let reason = format!(
            "{answered} of {} engines answered, score {score:.2}",
            reports.len()
        );
        (Verdict::Clean, "policy.clean", reason)
    };
    (verdict, Disposition::Deliver, rule.to_owned(), reason)
}

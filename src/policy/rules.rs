//! Whether an administrator's rule matches.

use std::net::IpAddr;

use crate::message::{AddressPattern, AttachmentFact, ComparedAddress, Glob};
use crate::verdict::Report;

use super::{Facts, Rule};

/// Whether one of the patterns matches. Without patterns there is no condition, so the text matches.
pub(super) fn any(patterns: &[Glob], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

/// The same for the patterns of addresses.
pub(super) fn any_address(patterns: &[AddressPattern], address: &ComparedAddress<'_>) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| address.matches(pattern))
}

/// The rules whose conditions hold, except for the condition on the recipient, in order.
pub(super) fn matching<'a>(rules: &'a [Rule], facts: Facts<'_>, score: f64) -> Vec<&'a Rule> {
    let sender = ComparedAddress::of_sender(&facts.envelope.reverse_path);
    rules
        .iter()
        .filter(|rule| {
            session(rule, facts, &sender)
                && rule.size_over.is_none_or(|size| facts.size > size)
                && rule.score_over.is_none_or(|least| score > least)
                && attachments(rule, facts.attachments)
                && findings(rule, facts.reports)
                && missing(rule, facts.reports)
        })
        .collect()
}

/// Conditions on sender, client, user and listener.
fn session(rule: &Rule, facts: Facts<'_>, sender: &ComparedAddress<'_>) -> bool {
    let origin = &facts.envelope.origin;
    // A dual-stack socket shows an IPv4 client as ::ffff:a.b.c.d; rules contain the IPv4 address.
    let client: IpAddr = origin.client.to_canonical();
    let user = match &origin.user {
        Some(user) => any(&rule.user, user),
        None => rule.user.is_empty(),
    };
    any_address(&rule.sender, sender)
        && (rule.client.is_empty() || rule.client.iter().any(|net| net.contains(&client)))
        && user
        && (rule.listener.is_empty() || rule.listener.iter().any(|name| **name == *origin.listener))
}

/// One attachment must match both the name and the type.
fn attachments(rule: &Rule, attachments: &[AttachmentFact]) -> bool {
    if rule.attachment_name.is_empty() && rule.attachment_type.is_empty() {
        return true;
    }
    attachments.iter().any(|attachment| {
        let named = match &attachment.name {
            Some(name) => any(&rule.attachment_name, name),
            None => rule.attachment_name.is_empty(),
        };
        named
            && (any(&rule.attachment_type, &attachment.declared)
                || any(&rule.attachment_type, &attachment.sniffed))
    })
}

fn of_engine(rule: &Rule, report: &Report) -> bool {
    rule.engine.is_empty() || rule.engine.iter().any(|name| **name == *report.engine)
}

/// One finding, of one of the engines, must match both the name and the kind.
fn findings(rule: &Rule, reports: &[Report]) -> bool {
    if rule.finding.is_empty() && rule.kind.is_empty() {
        return true;
    }
    let of_rule = reports.iter().filter(|report| of_engine(rule, report));
    of_rule.flat_map(Report::findings).any(|finding| {
        any(&rule.finding, &finding.name)
            && (rule.kind.is_empty() || rule.kind.contains(&finding.kind))
    })
}

/// One of the engines has no answer, for one of the reasons.
fn missing(rule: &Rule, reports: &[Report]) -> bool {
    rule.missing.is_empty()
        || reports
            .iter()
            .filter(|report| of_engine(rule, report))
            .filter_map(Report::missing)
            .any(|reason| rule.missing.contains(&reason))
}

/// The names of a rule's conditions, for the reason in its decisions.
pub(super) fn conditions(rule: &Rule) -> Vec<&'static str> {
    [
        ("sender", !rule.sender.is_empty()),
        ("recipient", !rule.recipient.is_empty()),
        ("client", !rule.client.is_empty()),
        ("user", !rule.user.is_empty()),
        ("listener", !rule.listener.is_empty()),
        ("size_over", rule.size_over.is_some()),
        ("attachment_name", !rule.attachment_name.is_empty()),
        ("attachment_type", !rule.attachment_type.is_empty()),
        ("finding", !rule.finding.is_empty()),
        ("kind", !rule.kind.is_empty()),
        ("engine", !rule.engine.is_empty()),
        ("missing", !rule.missing.is_empty()),
        ("score_over", rule.score_over.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect()
}

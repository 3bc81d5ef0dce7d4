//! Checks of `[[rule]]`s against the rest of the configuration.

use crate::config::Config;
use crate::config::document::Log;
use crate::message::AddressPattern;
use crate::policy::Rule;
use crate::verdict::Disposition;

/// Warns of a rule that delivers or discards the mail of everybody: from there on, the scanners decide nothing.
pub(super) fn for_everybody(config: &Config, log: &mut Log) {
    let mut rules = config.policy.rules.iter().enumerate();
    let Some((at, rule)) = rules.find(|(_, rule)| applies_to_all_mail(rule, config)) else {
        return;
    };
    let which = match at {
        0 => "every message",
        _ => "every message that no rule above it matches",
    };
    let what = match rule.then {
        Disposition::Deliver => {
            format!("delivers {which}, whatever the scanners find or miss")
        }
        Disposition::Discard => format!("discards {which}, without a trace for its sender"),
        Disposition::Quarantine | Disposition::Reject | Disposition::Defer => return,
    };
    log.warn(
        &format!("rule.{}.then", rule.name),
        what,
        "add conditions to the rule, for example client and sender, or remove it",
    );
}

/// Whether every condition of the rule holds for all mail that the listeners accept.
fn applies_to_all_mail(rule: &Rule, config: &Config) -> bool {
    let has_narrow_condition = !rule.user.is_empty()
        || !rule.attachment_name.is_empty()
        || !rule.attachment_type.is_empty()
        || !rule.finding.is_empty()
        || !rule.kind.is_empty()
        || !rule.missing.is_empty()
        || rule.score_over.is_some()
        || rule.size_over.is_some_and(|size| size > 0);
    let mut listeners = config.listeners.iter();
    let all_listeners = rule.listener.is_empty()
        || listeners.all(|listener| rule.listener.iter().any(|name| **name == *listener.name));
    !has_narrow_condition
        && is_any_address(&rule.sender)
        && is_any_address(&rule.recipient)
        && all_listeners
        && is_any_client(rule, config)
}

/// Whether one of the patterns matches every address: `*`, `*@*`. `*@*` matches neither `<>` nor the bare `postmaster`, but
/// nearly all mail.
fn is_any_address(patterns: &[AddressPattern]) -> bool {
    let is_any = |pattern: &AddressPattern| pattern.as_str().chars().all(|c| c == '*' || c == '@');
    patterns.is_empty() || patterns.iter().any(is_any)
}

/// Whether the rule's networks contain all clients: a prefix of 0 bits, or every network that may relay if there is no other
/// way to get that permission.
fn is_any_client(rule: &Rule, config: &Config) -> bool {
    let by_network_only = |listener: &crate::listener::Settings| {
        listener.users_file.is_none() && listener.client_ca.is_none()
    };
    let mut listeners = config.listeners.iter();
    rule.client.is_empty()
        || rule.client.iter().any(|net| net.prefix_len() == 0)
        || listeners.all(|listener| {
            let mut networks = listener.relay_networks.iter();
            by_network_only(listener)
                && networks.all(|net| rule.client.iter().any(|wide| wide.contains(net)))
        })
}

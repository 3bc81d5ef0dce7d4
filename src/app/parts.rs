//! The parts of a relay that a configuration describes, and the problems of a configuration whose parts cannot be built.

use std::sync::Arc;

use crate::config::Config;
use crate::delivery::Delivery;
use crate::listener::{Listener, ListenerError, Prepared};
use crate::notify;
use crate::pipeline::Generation;
use crate::policy::Policy;
use crate::scan::{Scanner, engine};

/// The problems that would prevent a start with a configuration without syntax errors, for example rule files that do not
/// compile or certificates that cannot be used. Does not bind addresses and does not open the store. Blocks on the disk.
pub fn check(config: &Config) -> Vec<String> {
    let mut problems = generation(config, None).err().unwrap_or_default();
    if let Err(error) = prepare(config) {
        problems.push(error.to_string());
    }
    problems.extend(notify_ways(config).err().unwrap_or_default());
    problems
}

/// Advice about settings that are valid, but do not fit the configuration of the engines on this machine. Blocks on the disk.
pub fn advice(config: &Config) -> Vec<String> {
    config.engines.iter().flat_map(engine::advice).collect()
}

/// Reads the certificates and users of all listeners.
pub(super) fn prepare(config: &Config) -> Result<Vec<Prepared>, ListenerError> {
    let limits = Arc::new(config.limits.clone());
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let listeners = config.listeners.iter().cloned();
    let prepared = listeners.map(|l| Listener::prepare(l, limits.clone(), hostname.clone()));
    prepared.collect()
}

/// Reads the secrets and authorities of all ways to tell people of trouble.
pub(super) fn notify_ways(config: &Config) -> Result<Vec<notify::Prepared>, Vec<String>> {
    let ways = notify::Prepared::all(&config.notify);
    ways.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// Builds the generation of a configuration, with the knowledge of the guards of the generation before. Returns all problems
/// at once.
pub(super) fn generation(
    config: &Config,
    before: Option<&Generation>,
) -> Result<Generation, Vec<String>> {
    let mut problems = Vec::new();
    let scanner = Scanner::new(config.engines.clone(), before.map(|g| &g.scanner))
        .map_err(|errors| problems.extend(errors.iter().map(ToString::to_string)));
    let delivery = Delivery::new(config.next_hops.clone(), before.map(|g| &g.delivery))
        .map_err(|error| problems.push(error.to_string()));
    match (scanner, delivery) {
        (Ok(scanner), Ok(delivery)) => Ok(Generation {
            config: config.version.clone(),
            hostname: config.relay.hostname.as_str().into(),
            scanner,
            policy: Policy::new(config.policy.clone(), config.version.clone()),
            delivery,
            budget: config.budget.clone(),
            retention: config.quarantine.retention,
            quarantine: config.quarantine.max_bytes,
        }),
        _ => Err(problems),
    }
}

//! Runs a relay as a service: signals, systemd, and the end.

use std::path::PathBuf;
use std::pin::pin;

use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _};
use sd_notify::NotifyState;

use super::signals::{Asked, Signals};
use super::{Running, StartError, start};
use crate::config::Config;

/// Runs a relay until a signal or a drain request ends it: SIGTERM, SIGINT and SIGQUIT drain, SIGHUP reloads. Notifies systemd
/// of its state. Returns whether all mail in flight has finished. Threads that hang at files may be left, so end the process
/// without waiting for them.
pub async fn run(config: Config, path: Option<PathBuf>) -> Result<bool, StartError> {
    let signals = Signals::new();
    let mut signals = signals.map_err(|error| {
        StartError::Parts(vec![format!("cannot install signal handlers: {error}")])
    })?;
    let mut starting = pin!(start(config, path));
    let running = loop {
        tokio::select! {
            running = &mut starting => break running?,
            asked = signals.next() => match asked {
                Asked::Reload => tracing::warn!("SIGHUP ignored: the relay is still starting"),
                Asked::Stop => {
                    tracing::info!("a signal ended the relay before it had started");
                    return Ok(true);
                }
            },
        }
    };
    tell_systemd(&[NotifyState::Ready]);
    until_stopped(&running, &mut signals).await;
    tell_systemd(&[NotifyState::Stopping]);
    Ok(running.drain().await)
}

/// Returns when a signal or a command asks the relay to end, also during a reload.
async fn until_stopped(running: &Running, signals: &mut Signals) {
    let mut reload = pin!(Fuse::terminated());
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return,
                Asked::Reload if reload.is_terminated() => reload.set(told_reload(running).fuse()),
                Asked::Reload => tracing::warn!("SIGHUP ignored: a reload is under way"),
            },
            () = &mut reload => {}
            () = running.drain_requested() => return,
        }
    }
}

/// Reloads, and notifies systemd. The result is logged; with a problem nothing changes.
async fn told_reload(running: &Running) {
    let reloading = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    tell_systemd(reloading.as_ref().map_or(&[], |states| states));
    let _ = running.reload().await;
    tell_systemd(&[NotifyState::Ready]);
}

/// Notifies systemd; does nothing if no service manager listens.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

//! The meaning of the system's signals for a running relay.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM, SIGINT, SIGQUIT: finish the mail in flight, and exit.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The handled signals. SIGUSR1, SIGUSR2 and SIGALRM mean nothing to the relay, but without a handler they would kill the
/// process, with the mail in flight. SIGPIPE needs no handler: Rust's runtime ignores it.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    alarm: Signal,
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }

    /// Waits for the next signal that has a meaning, and logs the others.
    ///
    /// Cancel safety: safe.
    pub(super) async fn next(&mut self) -> Asked {
        loop {
            let meaningless = tokio::select! {
                _ = self.terminate.recv() => return Asked::Stop,
                _ = self.interrupt.recv() => return Asked::Stop,
                _ = self.quit.recv() => return Asked::Stop,
                _ = self.hangup.recv() => return Asked::Reload,
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
                _ = self.alarm.recv() => "SIGALRM",
            };
            tracing::warn!(
                signal = meaningless,
                "signal ignored: it has no meaning for the relay"
            );
        }
    }
}

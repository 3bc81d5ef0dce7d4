//! `spillway demo`: shows the relay at work on test mail, without touching any other mail.
//!
//! The demo runs a relay with the embedded engines, one more engine that hangs on one particular message, and a mail server
//! behind the relay: all in this process, on free loopback ports and in one temporary folder. The demo sends messages over
//! SMTP. It does not rely on replies, but looks each message up in the mail server and in the relay's store. In every case (an
//! error, Ctrl-C, a closed terminal) the demo stops everything and removes the folder before the command ends.

mod engine;
mod loopback;
mod mail_server;
mod play;
mod scene;
mod show;
mod stage;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{CliError, Exit, Outcome};
use super::terminal::Terminal;
use crate::telemetry;
use crate::telemetry::log::{LogFormat, LogOutput};
use stage::Stage;

/// Runs the demo. Exits with [`Exit::Done`] only if every message is where it should be.
pub(super) async fn run(terminal: &mut Terminal<'_>) -> Outcome {
    // Warnings are expected here, for example about the engine that hangs; they would disturb the output.
    telemetry::log::init("error", LogFormat::Text, LogOutput::Stderr)
        .map_err(|error| CliError::Internal(error.to_string()))?;
    let mut stop = Stop::new()?;
    let stage = Stage::set().await?;
    let played = tokio::select! {
        played = play::play(&stage, terminal) => Some(played),
        () = stop.asked() => None,
    };
    let cleared = stage.clear().await;
    let Some(played) = played else {
        cleared?;
        terminal.note(
            "stopped before the end; everything is stopped, and the temporary folder is removed",
        )?;
        return Ok(Exit::Found);
    };
    let acts = played?;
    cleared?;
    show::end(&acts, terminal)?;
    Ok(match acts.iter().all(|act| act.as_expected) {
        true => Exit::Done,
        false => Exit::Found,
    })
}

/// The signals that end the demo early.
struct Stop([Signal; 3]);

impl Stop {
    /// Installs handlers for the signals, which from now on no longer kill the process.
    fn new() -> Result<Self, CliError> {
        let watch = |kind| {
            signal(kind).map_err(|error| {
                CliError::Internal(format!("cannot install signal handlers: {error}"))
            })
        };
        Ok(Self([
            watch(SignalKind::interrupt())?,
            watch(SignalKind::terminate())?,
            watch(SignalKind::hangup())?,
        ]))
    }

    /// Resolves when one of the signals has arrived.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

//! `spillway demo`: what the relay does, seen on real mail, without touching any.
//!
//! A relay with the embedded engines, one more engine that hangs on one particular message, and a mail server behind
//! it: all in this process, on free loopback ports and in one temporary folder. Messages are sent over SMTP, and where
//! each of them is afterwards is not believed but looked up: in the mail server and in the relay's store. Whatever
//! happens (an error, Ctrl-C, a closed terminal), everything is stopped and the folder removed before the command ends.

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
use crate::telemetry::log::LogFormat;
use stage::Stage;

/// Exits with [`Exit::Done`] only if every message met the end it should.
pub(super) async fn run(terminal: &mut Terminal<'_>) -> Outcome {
    // What is expected to happen here is not worth a log line between the results.
    telemetry::log::init("error", LogFormat::Text)
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
        terminal.note("stopped before the end; everything is cleaned up")?;
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
    /// From now on they no longer kill the process.
    fn new() -> Result<Self, CliError> {
        let watch =
            |kind| signal(kind).map_err(|error| CliError::Internal(format!("no signals: {error}")));
        Ok(Self([
            watch(SignalKind::interrupt())?,
            watch(SignalKind::terminate())?,
            watch(SignalKind::hangup())?,
        ]))
    }

    /// Resolves when one of them came.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

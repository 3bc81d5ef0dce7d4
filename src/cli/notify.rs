//! `spillway notify`: the ways on which people are told of trouble.

use std::path::Path;

use clap::{Args, Subcommand};

use super::control::{self, encoded};
use super::exit::{self, CliError, Exit, Outcome};
use super::person;
use super::relay::{Socket, parsed};
use super::terminal::{Terminal, safe};
use crate::notify::{TEST_DURATION_MAX, Tested};

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Notify {
    /// Send a test notification over all [[notify]], or over one, and show how that ended
    ///
    /// The running relay sends it, with one try, so the test shows what would happen at an incident.
    /// It counts for nothing: neither for `max_per_hour` nor in the metrics.
    #[command(after_help = exit::HELP)]
    Test(Test),
}

#[derive(Debug, Args)]
pub(super) struct Test {
    /// The name of one [[notify]] [default: all]
    name: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

/// Runs a command of the family against the running relay.
pub(super) async fn run(
    command: &Notify,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let Notify::Test(wanted) = command;
    let socket = wanted.socket.path(given)?;
    let mut path = format!("/control/notify?who={}", encoded(&person::actor()));
    if let Some(name) = &wanted.name {
        path.push_str(&format!("&way={}", encoded(name)));
    }
    let answer = control::ask_for(TEST_DURATION_MAX, &socket, "POST", &path).await?;
    if answer.code == 404 {
        let why = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(CliError::NotFound(why));
    }
    let tested: Vec<Tested> = parsed(&socket, &answer)?;
    if terminal.json {
        terminal.json(&tested)?;
    } else {
        for one in &tested {
            let (word, how) = match (&one.told, &one.wrong) {
                (Some(how), _) => ("told", how.as_str()),
                (None, Some(why)) => ("NOT told", why.as_str()),
                (None, None) => ("NOT told", ""),
            };
            terminal.line(format!("{}: {word}: {}", safe(&one.way), safe(how)))?;
        }
    }
    Ok(match tested.iter().any(|one| one.told.is_none()) {
        true => Exit::Found,
        false => Exit::Done,
    })
}

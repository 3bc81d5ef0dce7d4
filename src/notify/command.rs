//! The way through a program of this machine.
//!
//! The program gets the notification as one line of JSON on standard input, and an environment with nothing but a search path.
//! No shell reads its arguments, and nothing of a notification is in them. When its time is over, the program is killed with
//! all that it has started.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::{Failure, Notification, Sender};
use crate::deadline::Deadline;
use crate::process::{self, Ended, Input, Output, PROGRAM_PATH, Running, runnable};

/// Runs of one program at the same time. A start that hangs (a program on a mount whose server is gone) holds its thread.
const RUNS_MAX: usize = 1;

/// A program with its arguments.
pub(super) struct Command {
    words: Arc<[String]>,
    timeout: Duration,
    runs: Arc<Semaphore>,
}

impl Command {
    pub(super) fn new(words: Vec<String>, timeout: Duration) -> Self {
        Self {
            words: words.into(),
            timeout,
            runs: Arc::new(Semaphore::new(RUNS_MAX)),
        }
    }

    async fn run(&self, told: &Notification) -> Result<String, Failure> {
        let input = Bytes::from(told.json() + "\n");
        let deadline = Deadline::after(self.timeout);
        let late = |_| {
            let after = self.timeout.as_millis();
            Failure::Passing(format!("did not end within {after} ms"))
        };
        let run = self.runs.clone().acquire_owned();
        let run = deadline.run(run).await.map_err(late)?;
        let words = self.words.clone();
        // Starting a program blocks. The run counts until the start has returned, also when its caller has left.
        let starting = tokio::task::spawn_blocking(move || (start(&words), run));
        let started = deadline.run(starting).await.map_err(late)?;
        let (started, _run) = started.map_err(|error| Failure::Passing(error.to_string()))?;
        let running = started.map_err(|error| Failure::Passing(error.to_string()))?;
        let ended = deadline.run(running.end(Input::Octets(input))).await;
        judge(ended.map_err(late)?)
    }
}

impl Sender for Command {
    fn send<'a>(&'a self, told: &'a Notification) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async {
            let ended = self.run(told).await;
            let program = self.words.first().map_or("", String::as_str);
            let named = |text: &str| format!("command {program}: {text}");
            match ended {
                Ok(how) => Ok(named(&how)),
                Err(Failure::Passing(why)) => Err(Failure::Passing(named(&why))),
                Err(Failure::Lasting(why)) => Err(Failure::Lasting(named(&why))),
            }
        })
    }
}

/// Starts the program. Blocks.
fn start(words: &[String]) -> io::Result<Running> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    runnable(Path::new(program)).map_err(io::Error::other)?;
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PROGRAM_PATH);
    Running::start(command, Output::Discarded)
}

/// Exit code 0 is success.
fn judge(ended: Result<Ended, process::Trouble>) -> Result<String, Failure> {
    let ended = ended.map_err(|trouble| match trouble {
        // The program itself has ended, and may have told somebody: another run could tell twice.
        process::Trouble::LeftBehind => {
            Failure::Lasting("left a process behind that holds its standard error".to_owned())
        }
        process::Trouble::Talkative(_) => Failure::Lasting("prints too much".to_owned()),
        process::Trouble::System(error) => Failure::Passing(error.to_string()),
    })?;
    let said = String::from_utf8_lossy(&ended.complaints);
    let said = said.lines().next().unwrap_or_default().trim();
    let how = match (ended.code, ended.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended without an exit code".to_owned(),
    };
    let how = match said {
        "" => how,
        said => format!("{how}: {said}"),
    };
    match ended.code {
        Some(0) => Ok(how),
        _ => Err(Failure::Passing(how)),
    }
}

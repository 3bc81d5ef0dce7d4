//! Engine that runs a program. The program gets the message on standard input or as a file, and answers with its exit code and
//! its output.
//!
//! Each message gets one process in its own process group. The relay kills the whole group when the program has ended, when
//! the program prints too much, and when the scan is dropped. The arguments are a list that no shell interprets, and they
//! never contain anything of a message. The environment contains facts about the envelope, and nothing else of the relay.
//!
//! **Only an expected end counts.** An exit code that is in neither list, a signal, output that cannot be parsed, or a limit
//! that could not be set means no answer, with a reason, and never clean (promise P4).

mod answer;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::fchown;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tempfile::NamedTempFile;

use super::http::{ProbeWith, Reading};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError};
use crate::message::{Envelope, MessageId};
use crate::process::{self, Ended, Input, Output, PROGRAM_PATH, Running, limited};
use crate::scan::ScanRequest;
use crate::verdict::{Answer, FindingKind};

pub use crate::process::{Limits, NOT_RUN_EXIT_CODES, runnable};
pub use answer::{CommandAnswer, Lines, read};

/// Placeholder in an argument for the path of the file with the message.
pub const FILE_PLACEHOLDER: &str = "{file}";
/// Largest value in the environment in octets, except for the recipients. Senders choose these values, and no valid address or
/// name is longer than 1 KiB.
const FACT_OCTETS_MAX: usize = 1024;
/// Largest list of recipients in the environment in octets: 16 KiB, well below the 128 KiB that Linux allows for one value
/// (execve(2)).
const RECIPIENTS_OCTETS_MAX: usize = 16 * 1024;

/// Settings: a program, and its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSettings {
    /// The absolute path of the program, and its arguments. If an argument contains [`FILE_PLACEHOLDER`], the message is in a
    /// file whose path replaces the placeholder, and standard input is empty. Otherwise the message is on standard input.
    pub command: Vec<String>,
    /// The host name of the relay, which completes addresses without a domain.
    pub hostname: String,
    /// How the relay reads the answer.
    pub saying: Saying,
    /// The user that the program runs as; `None`: the user of the relay. Another user requires root or capabilities.
    pub user: Option<String>,
    /// Limits on the resources of the program.
    pub limits: Limits,
    /// The content of the probes, which the program must find.
    pub probe_with: ProbeWith,
}

/// How the relay reads the answer of a program.
#[derive(Debug, Clone, PartialEq)]
pub enum Saying {
    /// From the exit code and the printed lines.
    Exit(Exit),
    /// From printed JSON, with exit code 0.
    Json(Reading),
}

/// Meaning of the exit codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit codes that mean that the program found nothing.
    pub clean: Vec<u8>,
    /// Exit codes that mean that the program found something.
    pub found: Vec<u8>,
    /// A regular expression for lines of the output, with a group `name`, a group `score`, or both.
    pub pattern: Option<String>,
    /// The kind of the findings.
    pub bad_kind: FindingKind,
    /// The score of the findings, unless a line contains a score.
    pub bad_score: f64,
}

/// The engine for one program.
#[derive(Debug)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
    takes_file: bool,
    hostname: String,
    saying: answer::Reader,
    user: Option<(u32, u32)>,
    limits: Limits,
    probe_with: ProbeWith,
}

impl Engine for Command {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move { self.ask(&sample).await })
    }

    fn replica(&self) -> Option<&str> {
        Some(&self.program)
    }

    fn probes(&self) -> Option<Probes> {
        self.probe_with.probes()
    }
}

impl Command {
    /// The engine for a program. Starts no process. Blocks while it reads `/etc/passwd`.
    ///
    /// # Errors
    /// [`BuildError::NoProgram`] for an empty command, [`BuildError::NoUser`] for an unknown user, and
    /// [`BuildError::Pattern`] for an unusable regular expression.
    pub(super) fn new(settings: &CommandSettings) -> Result<Self, BuildError> {
        let Some((program, arguments)) = settings.command.split_first() else {
            return Err(BuildError::NoProgram);
        };
        let user = settings.user.as_deref().map(|name| {
            identity(Path::new("/etc/passwd"), name)
                .ok_or_else(|| BuildError::NoUser(name.to_owned()))
        });
        Ok(Self {
            program: program.clone(),
            arguments: arguments.to_vec(),
            hostname: settings.hostname.clone(),
            takes_file: takes_file(arguments),
            saying: answer::Reader::new(&settings.saying).map_err(BuildError::Pattern)?,
            user: user.transpose()?,
            limits: settings.limits,
            probe_with: settings.probe_with,
        })
    }

    async fn ask(self: Arc<Self>, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let request = sample.request().clone();
        let this = self.clone();
        // Writing a file blocks. Starting a program blocks too, for about 1 ms.
        let started = tokio::task::spawn_blocking(move || this.start(&request));
        let (running, input, file) = started.await.map_err(ScanError::from_task)??;
        let ended = running.end(input).await;
        drop(file);
        let (answer, signatures) = self.judge(ended)?;
        Ok(EngineAnswer {
            signatures,
            ..EngineAnswer::new(answer)
        })
    }

    /// Starts the program. Blocks.
    fn start(
        &self,
        request: &ScanRequest,
    ) -> Result<(Running, Input, Option<NamedTempFile>), ScanError> {
        let cannot =
            |cause: io::Error| ScanError::Unreachable(format!("{}: {cause}", self.program));
        let (input, file) = match self.takes_file {
            false => (Input::Octets(request.content.bytes().clone()), None),
            true => (Input::Nothing, Some(self.file(request).map_err(cannot)?)),
        };
        // Check before the start: the shell that sets the limits could report a missing program only by its exit code.
        runnable(Path::new(&self.program))
            .map_err(|wrong| ScanError::Unreachable(format!("{} {wrong}", self.program)))?;
        let mut command = limited(self.limits, &self.program);
        command.args(self.arguments(file.as_ref().map(NamedTempFile::path)));
        command
            .env_clear()
            .envs(facts(&self.hostname, request.id, &request.envelope));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let running = Running::start(command, Output::Kept).map_err(cannot)?;
        Ok((running, input, file))
    }

    /// The arguments, with the path of the file in place of [`FILE_PLACEHOLDER`].
    fn arguments(&self, file: Option<&Path>) -> Vec<OsString> {
        let path = file.map(|path| path.to_string_lossy()).unwrap_or_default();
        let filled = self
            .arguments
            .iter()
            .map(|text| text.replace(FILE_PLACEHOLDER, &path));
        filled.map(OsString::from).collect()
    }

    /// Writes the message to a file that only the user of the program can read. Dropping the value deletes the file.
    fn file(&self, request: &ScanRequest) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        let mut file = builder.prefix("spillway-").suffix(".eml").tempfile()?;
        file.write_all(request.content.bytes())?;
        if let Some((uid, gid)) = self.user {
            fchown(file.as_file(), Some(uid), Some(gid))?;
        }
        Ok(file)
    }

    /// Interprets the end of the program.
    fn judge(
        &self,
        ended: Result<Ended, process::Trouble>,
    ) -> Result<(Answer, Option<String>), ScanError> {
        let ended = ended.map_err(|trouble| match trouble {
            process::Trouble::Talkative(most) => {
                ScanError::Garbage(format!("the program printed more than {most} octets"))
            }
            process::Trouble::LeftBehind => ScanError::Garbage(
                "the program left a process behind that holds its output".to_owned(),
            ),
            process::Trouble::System(cause) => ScanError::Disconnected(cause.to_string()),
        })?;
        if ended.signal == Some(process::CPU_LIMIT_SIGNAL) {
            return Err(ScanError::NoAnswer(self.limits.cpu));
        }
        self.saying.judge(&ended).map_err(|wrong| match wrong {
            answer::Wrong::Failed(message) => ScanError::Engine(message),
            answer::Wrong::Garbage(answer) => ScanError::Garbage(answer),
        })
    }
}

/// Whether the program gets the message as a file.
pub fn takes_file(arguments: &[String]) -> bool {
    arguments.iter().any(|text| text.contains(FILE_PLACEHOLDER))
}

/// The environment of the program: facts about the envelope. The program inherits nothing from the environment of the relay.
fn facts(hostname: &str, id: MessageId, envelope: &Envelope) -> Vec<(&'static str, String)> {
    let mut recipients = String::new();
    for recipient in &envelope.recipients {
        let mailbox = recipient.mailbox.qualified(hostname);
        if recipients.len() + mailbox.len() > RECIPIENTS_OCTETS_MAX {
            break;
        }
        // A line feed separates recipients: no mailbox contains one.
        if !recipients.is_empty() {
            recipients.push('\n');
        }
        recipients.push_str(&showable(&mailbox));
    }
    let sender = envelope.reverse_path.qualified(hostname);
    let origin = &envelope.origin;
    let mut facts = vec![
        ("PATH", PROGRAM_PATH.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("SPILLWAY_ID", id.to_string()),
        ("SPILLWAY_SENDER", showable(&sender)),
        ("SPILLWAY_RECIPIENTS", recipients),
    ];
    if origin.protocol != "local" {
        facts.push(("SPILLWAY_CLIENT", origin.client.to_canonical().to_string()));
        facts.push(("SPILLWAY_HELO", showable(&origin.helo)));
    }
    if let Some(name) = &origin.client_name {
        facts.push(("SPILLWAY_CLIENT_NAME", showable(name)));
    }
    if let Some(user) = &origin.user {
        facts.push(("SPILLWAY_USER", showable(user)));
    }
    facts
}

/// The beginning of a text, with `?` for each control character, which could deceive a careless program.
fn showable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut text: String = text.chars().map(clean).collect();
    text.truncate(text.floor_char_boundary(FACT_OCTETS_MAX));
    text
}

/// Numbers of the user and the group for a user name, from a file like passwd(5). Users of directory services are not in this
/// file.
fn identity(passwd: &Path, name: &str) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(passwd).ok()?;
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut users = fields.filter(|fields| fields.first() == Some(&name));
    let user = users.next()?;
    Some((user.get(2)?.parse().ok()?, user.get(3)?.parse().ok()?))
}

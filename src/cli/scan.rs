//! `spillway scan`: the answers of the configured engines about a message, and the decision of the policy, without delivery.
//!
//! Exits with [`Exit::Found`] if any message is suspect or malicious, else with [`Exit::Undetermined`] if any message has no
//! verdict, else with [`Exit::Done`].

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::exit::{CliError, Exit, Outcome};
use super::mailbox;
use super::record::{show_decision, show_reports};
use super::terminal::{Terminal, safe};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::message::{
    BodyKind, Content, Envelope, Mailbox, Message, MessageId, Origin, ReversePath,
};
use crate::pipeline::{self, Judgement};
use crate::policy::Policy;
use crate::scan::Scanner;
use crate::verdict::{Decision, Report, Verdict};

#[derive(Debug, Args)]
pub(super) struct Scan {
    /// Messages as files (RFC 5322, .eml); `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The sender that rules see [default: none, as in a bounce]
    #[arg(long, value_name = "ADDRESS", value_parser = mailbox)]
    sender: Option<Mailbox>,
    /// A recipient that rules see; may be given several times [default: the relay's
    /// own postmaster]
    #[arg(long, value_name = "ADDRESS", value_parser = mailbox)]
    recipient: Vec<Mailbox>,
    /// The client that rules see [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
}

/// The result for one file.
#[derive(Debug, Serialize)]
struct Scanned {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    groups: Vec<Group>,
    reports: Vec<Report>,
}

#[derive(Debug, Serialize)]
struct Group {
    recipients: Vec<Mailbox>,
    decision: Decision,
}

pub(super) async fn run(wanted: &Scan, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let engines = config.engines.clone();
    let scanner = tokio::task::spawn_blocking(move || Scanner::new(engines, None))
        .await
        .map_err(|error| CliError::Internal(error.to_string()))?
        .map_err(|bad| {
            let lines: Vec<String> = bad.iter().map(ToString::to_string).collect();
            CliError::Usage(lines.join("\n"))
        })?;
    let policy = Policy::new(config.policy.clone(), config.version.clone());
    let envelope = Arc::new(wanted.envelope(&config.relay.hostname));
    let mut all = Vec::new();
    for file in &wanted.files {
        let name = file.display().to_string();
        let scanned = match read(file, config.limits.message_size, terminal) {
            Err(error) => Scanned {
                file: name,
                error: Some(error),
                groups: Vec::new(),
                reports: Vec::new(),
            },
            Ok(content) => {
                let message = message(envelope.clone(), content);
                let deadline = Deadline::after(config.budget.total);
                let judgement = pipeline::judge(&scanner, &policy, &message, deadline).await;
                Scanned::new(name, &envelope, judgement)
            }
        };
        if !terminal.json {
            show(&scanned, terminal)?;
        }
        all.push(scanned);
    }
    if terminal.json {
        terminal.json(&all)?;
    }
    Ok(exit(&all))
}

impl Scan {
    fn envelope(&self, hostname: &str) -> Envelope {
        let mut recipients = self.recipient.clone();
        if recipients.is_empty() {
            recipients.extend(Mailbox::parse(&format!("postmaster@{hostname}")));
        }
        let mut origin = Origin::local("scan");
        origin.client = self.client.unwrap_or(origin.client);
        Envelope {
            reverse_path: self.sender.clone().map_or(ReversePath::NULL, Into::into),
            recipients: recipients.into_iter().map(Into::into).collect(),
            body: BodyKind::EightBitMime,
            smtputf8: true,
            ret: None,
            envid: None,
            origin,
        }
    }
}

impl Scanned {
    fn new(file: String, envelope: &Envelope, judgement: Judgement) -> Self {
        let mailbox = |at: usize| Some(envelope.recipients.get(at)?.mailbox.clone());
        let groups = judgement.groups.into_iter().map(|(decision, at)| Group {
            recipients: at.into_iter().filter_map(mailbox).collect(),
            decision,
        });
        Self {
            file,
            error: None,
            groups: groups.collect(),
            reports: judgement.reports,
        }
    }

    /// The verdict of the message. It is the same for all recipients, because rules change the disposition only.
    fn verdict(&self) -> Verdict {
        let first = self.groups.first();
        first.map_or(Verdict::Undetermined, |group| group.decision.verdict)
    }
}

fn exit(all: &[Scanned]) -> Exit {
    let verdicts = || all.iter().map(Scanned::verdict);
    if verdicts().any(|verdict| matches!(verdict, Verdict::Suspect | Verdict::Malicious)) {
        Exit::Found
    } else if verdicts().any(|verdict| verdict == Verdict::Undetermined) {
        Exit::Undetermined
    } else {
        Exit::Done
    }
}

/// Reads a message of at most the size that the relay accepts, and gives it the line ends of SMTP.
fn read(file: &Path, largest: u64, terminal: &mut Terminal<'_>) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let most = largest.saturating_add(1);
    let read = match file == Path::new("-") {
        true => (&mut *terminal.input).take(most).read_to_end(&mut octets),
        false => File::open(file).and_then(|file| file.take(most).read_to_end(&mut octets)),
    };
    read.map_err(|error| error.to_string())?;
    let content = crlf(&octets);
    match content.len() as u64 > largest {
        true => Err("larger than limits.message_size: the relay would refuse it".to_owned()),
        false => Ok(content),
    }
}

/// Replaces LF by CRLF: files end lines with LF, and SMTP needs CRLF (RFC 5321 2.3.8).
fn crlf(octets: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(octets.len() + octets.len() / 32);
    for line in octets.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => {
                content.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
                content.extend_from_slice(b"\r\n");
            }
            None => content.extend_from_slice(line),
        }
    }
    content
}

fn message(envelope: Arc<Envelope>, content: Vec<u8>) -> Message {
    Message {
        id: MessageId::new(),
        received_at: Timestamp::now(),
        envelope,
        trace: "".into(),
        content: Content::uncharged(content),
        times: None,
    }
}

fn show(scanned: &Scanned, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let file = safe(&scanned.file);
    if let Some(error) = &scanned.error {
        return terminal.line(format!("{file}: not scanned: {}", safe(error)));
    }
    terminal.line(format!("{file}: {}", scanned.verdict().as_str()))?;
    show_reports(&scanned.reports, terminal)?;
    for group in &scanned.groups {
        if scanned.groups.len() > 1 {
            let to: Vec<&str> = group.recipients.iter().map(Mailbox::as_str).collect();
            terminal.line("")?;
            terminal.line(format!("For {}", safe(&to.join(", "))))?;
        }
        show_decision("Decision", &group.decision, terminal)?;
    }
    terminal.line("")
}

//! `spillway check-config --diff`: what another configuration changes, in words.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::control;
use super::exit::{CliError, Exit, Outcome};
use super::terminal::{Terminal, count, safe};
use super::{relay, settings};
use crate::admin::InForce;
use crate::app;
use crate::config::{self, Config, Difference};

/// Explains the changes from a configuration, else from that of the running relay, to the given one.
pub(super) async fn run(
    old: Option<&Path>,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let path = settings::path(given);
    let new = settings::read(path.as_deref())?;
    let (old, reads) = match old {
        Some(file) => {
            let reads = settings::path(None).map_or(Reads::Unknown, Reads::File);
            (of_file(file)?, reads)
        }
        None => {
            let old = in_force(&new.admin.socket).await?;
            let reads = old.file.clone().map_or(Reads::NoFile, Reads::File);
            (old, reads)
        }
    };
    let differences = config::differences(&old.settings, new.shown());
    let file = path.map(|path| path.display().to_string());
    match terminal.json {
        true => terminal.json(&json!({
            "old": {"file": old.file, "version": old.version},
            "new": {"file": file, "version": new.version},
            "differences": differences,
        }))?,
        false => {
            tell(&old, (&new, file.as_deref()), &differences, terminal)?;
            tell_next(file.as_deref(), &reads, &differences, terminal)?;
        }
    }
    Ok(Exit::Done)
}

fn of_file(file: &Path) -> Result<InForce, CliError> {
    let config = settings::read(Some(file))?;
    Ok(InForce {
        file: Some(file.to_owned()),
        version: config.version.to_string(),
        settings: config.shown().to_vec(),
        started: None,
    })
}

/// The configuration of the running relay, as the relay has it: its file may have been changed since.
pub(super) async fn in_force(socket: &Path) -> Result<InForce, CliError> {
    let answer = control::ask_at_once(socket, "/config").await?;
    relay::parsed(socket, &answer)
}

fn tell(
    old: &InForce,
    (new, file): (&Config, Option<&str>),
    differences: &[Difference],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let named = |file: Option<&str>, version: &str| {
        format!(
            "{} (version {version})",
            file.unwrap_or("built-in defaults")
        )
    };
    let old_file = old.file.as_ref().map(|file| file.display().to_string());
    terminal.fields(&[
        ("from", named(old_file.as_deref(), &old.version)),
        ("to", named(file, &new.version)),
    ])?;
    for difference in differences {
        let restart = if difference.needs_restart {
            " (needs a restart)"
        } else {
            ""
        };
        terminal.line(format!("{}{restart}", safe(&difference.what)))?;
        for effect in &difference.effects {
            terminal.line(format!("  {}", safe(effect)))?;
        }
    }
    Ok(())
}

/// Says how the differences get in force.
fn tell_next(
    file: Option<&str>,
    reads: &Reads,
    differences: &[Difference],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let changes = count(differences.len(), "change");
    let restarts = differences.iter().filter(|d| d.needs_restart).count();
    let puts = match differences.len() {
        1 => "puts it in force",
        _ => "puts them in force",
    };
    let first = step_before(file, reads);
    let end = match (differences.len(), restarts) {
        (0, _) => "no change".to_owned(),
        (_, 0) if *reads == Reads::NoFile => {
            format!("{changes}; the relay reads no file: only a restart with --config {puts}")
        }
        (_, 0) => format!("{changes}; {first}`spillway reload` {puts}"),
        (all, some) if some == all => format!("{changes}; {first}only a restart {puts}"),
        (_, some) => format!(
            "{changes}; {some} of them only with a restart: until then `spillway reload` refuses all of them"
        ),
    };
    terminal.wrapped("", "  ", &safe(&end))
}

/// The file that a reload reads.
#[derive(PartialEq, Eq)]
enum Reads {
    File(PathBuf),
    /// The relay has the built-in defaults.
    NoFile,
    /// No relay was asked, and there is no file that it reads by default.
    Unknown,
}

/// What a person must do with the file before the relay reads it; empty if the relay reads this very file.
fn step_before(file: Option<&str>, reads: &Reads) -> String {
    match (file, reads) {
        (Some(file), Reads::File(reads)) if !app::is_same_file(Path::new(file), reads) => {
            format!("copy {file} to {} first, then ", reads.display())
        }
        (Some(file), Reads::Unknown) => {
            format!("copy {file} to the file that the relay reads, then ")
        }
        _ => String::new(),
    }
}

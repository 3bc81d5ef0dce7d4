//! Files that packages install beside the program: completions and manual pages. Both are generated from the definitions
//! that parse the arguments.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::exit::{CliError, Exit, Outcome};
use super::terminal::Terminal;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Folder for the pages; created if missing
    folder: PathBuf,
}

pub(super) fn completions(
    wanted: &Completions,
    mut command: clap::Command,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    // The generator panics on a write error, so it writes into memory first.
    let mut script = Vec::new();
    clap_complete::generate(wanted.shell, &mut command, "spillway", &mut script);
    terminal.out.write_all(&script)?;
    Ok(Exit::Done)
}

pub(super) fn man(wanted: &Man, command: clap::Command, terminal: &mut Terminal<'_>) -> Outcome {
    let failed = |error| CliError::File(wanted.folder.clone(), error);
    std::fs::create_dir_all(&wanted.folder).map_err(failed)?;
    clap_mangen::generate_to(command, &wanted.folder).map_err(failed)?;
    terminal.note(format!("manual pages are in {}", wanted.folder.display()))?;
    Ok(Exit::Done)
}

//! What packages install beside the program: completions and manual pages, both made from the same definitions that
//! parse the arguments.

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
    /// The folder; made if missing
    folder: PathBuf,
}

pub(super) fn completions(
    wanted: &Completions,
    mut command: clap::Command,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    // The generator panics where it cannot write, so it writes where it always can.
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

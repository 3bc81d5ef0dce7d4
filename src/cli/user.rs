//! `spillway user`: the users who may relay after AUTH.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::exit::{self, CliError, Exit, Outcome};
use super::settings;
use super::terminal::{Terminal, safe};
use crate::listener::users;

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Add a user, or change the password of a user
    ///
    /// The running relay applies the change at once.
    #[command(after_help = exit::HELP)]
    Add(Add),
    /// List the names of all users
    #[command(after_help = exit::HELP)]
    List(File),
    /// Remove a user
    #[command(after_help = exit::HELP)]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The user's name
    name: String,
    /// Read the password from the first line of standard input [default: ask for it]
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    file: File,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The user's name
    name: String,
    #[command(flatten)]
    file: File,
}

#[derive(Debug, Args)]
pub(super) struct File {
    /// The users file [default: users_file of the listeners, if all name the same file]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(command: &User, config: Option<&Path>, terminal: &mut Terminal<'_>) -> Outcome {
    match command {
        User::Add(add) => {
            let file = add.file.path(config)?;
            let password = password(add.password_stdin, terminal)?;
            let replaced = users::add(&file, &add.name, &password)?;
            let did = if replaced { "changed" } else { "added" };
            report(terminal, did, &add.name, &file)?;
            Ok(Exit::Done)
        }
        User::Remove(remove) => {
            let file = remove.file.path(config)?;
            if !users::remove(&file, &remove.name)? {
                let name = safe(&remove.name);
                return Err(CliError::NotFound(format!(
                    "there is no user {name} in {}; see: spillway user list",
                    file.display()
                )));
            }
            report(terminal, "removed", &remove.name, &file)?;
            Ok(Exit::Done)
        }
        User::List(list) => {
            let names = users::list(&list.path(config)?)?;
            if terminal.json {
                terminal.json(&names)?;
            } else {
                for name in names {
                    terminal.line(safe(&name))?;
                }
            }
            Ok(Exit::Done)
        }
    }
}

fn report(terminal: &mut Terminal<'_>, did: &str, name: &str, file: &Path) -> Result<(), CliError> {
    if terminal.json {
        return terminal.json(&json!({"user": name, "did": did, "file": file}));
    }
    terminal.line(format!("{did} {} in {}", safe(name), file.display()))
}

impl File {
    fn path(&self, config: Option<&Path>) -> Result<PathBuf, CliError> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let config = settings::load(config)?;
        let mut files: Vec<_> = config
            .listeners
            .iter()
            .filter_map(|listener| listener.users_file.clone())
            .collect();
        files.sort();
        files.dedup();
        match files.as_slice() {
            [file] => Ok(file.clone()),
            [] => Err(CliError::Usage(
                "no listener has a users_file; set it, or name the file with --file".to_owned(),
            )),
            _ => Err(CliError::Usage(
                "the listeners have several users files; name one with --file".to_owned(),
            )),
        }
    }
}

fn password(from_input: bool, terminal: &mut Terminal<'_>) -> Result<String, CliError> {
    if from_input {
        let mut line = String::new();
        let mut input = (&mut *terminal.input).take(4096);
        std::io::BufRead::read_line(&mut input, &mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !terminal.interactive {
        return Err(CliError::Usage(
            "cannot ask for the password without a terminal; use --password-stdin".to_owned(),
        ));
    }
    let first = rpassword::prompt_password("Password: ")?;
    let second = rpassword::prompt_password("Password again: ")?;
    if first != second {
        return Err(CliError::Usage(
            "the two passwords differ; nothing was changed".to_owned(),
        ));
    }
    Ok(first)
}

//! The command line: one file for each family of commands, and all output.
//!
//! Commands open the store themselves, whether the relay runs or not. Only commands about the running relay (status, reload,
//! drain, engine, notify) use its control socket, and `queue`, which asks what its mail waits for. Results go to standard output, as tables for people or with `--json` for programs;
//! everything else goes to standard error. Exit codes are those of [`Exit`].

mod control;
mod demo;
mod diff;
mod engine;
mod exit;
mod explain;
mod explain_key;
mod id;
mod incident;
mod intercept;
mod json_list;
mod list;
mod manual;
mod named;
mod notify;
mod person;
mod quarantine;
mod queue;
mod record;
mod relay;
mod scan;
mod select;
mod settings;
mod show;
mod status;
mod table;
mod terminal;
mod user;
mod waits;
mod watch;
mod whatif;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::Config;
use crate::message::Mailbox;
use crate::message::address::NotAMailbox;
use crate::store::Store;
use crate::store::sqlite::{Role, SqliteStore};
use crate::telemetry;
use crate::telemetry::log::{LogFormat, LogOutput};

pub use exit::Exit;
pub use terminal::Terminal;

use exit::{CliError, Outcome};

/// An SMTP relay that scans mail, and in which no engine, message, sender or next hop delays other mail.
#[derive(Debug, Parser)]
#[command(name = "spillway", version, after_help = exit::HELP)]
#[command(
    max_term_width = 100,
    disable_help_subcommand = true,
    infer_long_args = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: $SPILLWAY_CONFIG, else /etc/spillway/spillway.toml if that file
    /// exists, else the built-in defaults]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay
    ///
    /// On SIGTERM, SIGINT and SIGQUIT the relay finishes the mail in flight and exits. On SIGHUP it
    /// reads its configuration again. It ignores SIGUSR1, SIGUSR2 and SIGALRM.
    #[command(after_help = exit::HELP)]
    Run,
    /// Check a configuration, and print every problem in it
    #[command(after_help = exit::HELP)]
    CheckConfig(relay::CheckConfig),
    /// Show what a configuration (--config) would have decided about recorded mail
    ///
    /// Each recorded decision is decided again under the rules, thresholds, coverage, weights and
    /// timeouts of the configuration, with the answers that the engines gave then. Nothing is
    /// changed. With --shadow, the running relay decides about new mail under another configuration
    /// too, until --shadow-off or its restart; a shadow has no timeouts of its own.
    #[command(after_help = exit::HELP)]
    WhatIf(whatif::WhatIf),
    /// Make the running relay read its configuration again
    ///
    /// The relay checks the new configuration first. If it finds problems, the command prints all of
    /// them, and the old configuration stays in force. Otherwise the command prints the changes.
    /// Open sessions continue.
    ///
    /// The relay reads the file with which it was started. --config does not change that: it finds
    /// the relay (admin.socket of FILE). If it names another file than the relay reads, nothing is
    /// reloaded: copy that file over the relay's file first; `check-config --diff` names both.
    #[command(after_help = exit::HELP)]
    Reload(relay::Socket),
    /// Make the running relay accept no new mail, finish the mail in flight, and exit
    #[command(after_help = exit::HELP)]
    Drain(relay::Socket),
    /// Show how long mail takes, what is late and why, and the state of the running relay
    ///
    /// First come the delays of valid mail: now, in the last hour, and in the same hour a week ago.
    /// Then comes what is late: the mail that has waited for more than a minute, by what it waits
    /// for, with what to do about it. Then come sessions, stored mail, engines and next hops.
    #[command(after_help = exit::HELP)]
    Status(status::Arguments),
    /// Scan messages in files, without SMTP: show the answer of each engine, and the decision
    #[command(after_help = exit::HELP)]
    Scan(scan::Scan),
    /// Show the history of a message: events, answers of the engines, decisions, incidents
    #[command(after_help = exit::HELP)]
    Explain(explain::Explain),
    /// Review held messages: list, show, release, delete or export them
    #[command(subcommand, after_help = exit::HELP)]
    Quarantine(quarantine::Quarantine),
    /// Show messages that wait for a scan or for delivery, and retry them
    #[command(subcommand, after_help = exit::HELP)]
    Queue(queue::Queue),
    /// Manage interceptors, which divert matching mail before an engine sees it
    #[command(subcommand, after_help = exit::HELP)]
    Intercept(intercept::Intercept),
    /// Show incidents: automatic actions of the relay, with their evidence
    #[command(subcommand, after_help = exit::HELP)]
    Incident(incident::Incidents),
    /// Show the state of the engines; test, drain or resume one
    #[command(subcommand, after_help = exit::HELP)]
    Engine(engine::Engines),
    /// Test the ways on which people are told of trouble
    #[command(subcommand, after_help = exit::HELP)]
    Notify(notify::Notify),
    /// Manage the users who may relay after AUTH
    #[command(subcommand, after_help = exit::HELP)]
    User(user::User),
    /// Demonstrate the relay in a few seconds, with test mail of its own
    ///
    /// The demo starts a relay with the embedded engines, one more engine that hangs on one
    /// particular message, and a mail server behind the relay. All of them run in this process, on
    /// free loopback ports and in a temporary folder. The demo sends a clean message, the EICAR test
    /// file, a blocked attachment and a message on which the engine hangs. It shows the result of
    /// each message, and removes everything at the end.
    #[command(after_help = exit::HELP)]
    Demo,
    /// Print the completion script for a shell
    #[command(after_help = exit::HELP)]
    Completions(manual::Completions),
    /// Write manual pages into a folder
    #[command(after_help = exit::HELP)]
    Man(manual::Man),
}

/// Runs the command that the arguments name, on the standard streams. The first argument is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    terminal::with_standard(|terminal| run(arguments, terminal))
}

/// Does the same as [`main`], on any streams.
pub fn run(arguments: impl IntoIterator<Item = OsString>, terminal: &mut Terminal<'_>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, terminal),
    };
    terminal.json = cli.global.json;
    let outcome = dispatch(&cli, terminal);
    outcome.unwrap_or_else(|error| {
        for line in error.lines() {
            // If standard error is closed, the exit code still reports the failure.
            let _ = writeln!(terminal.err, "spillway: {line}");
        }
        error.exit()
    })
}

/// Prints the help, the version, or the problem with the arguments.
fn usage(error: &clap::Error, terminal: &mut Terminal<'_>) -> Exit {
    let text = error.render();
    if error.use_stderr() {
        let _ = write!(terminal.err, "{text}");
        Exit::Usage
    } else {
        let _ = write!(terminal.out, "{text}");
        Exit::Done
    }
}

fn dispatch(cli: &Cli, terminal: &mut Terminal<'_>) -> Outcome {
    let given = cli.global.config.as_deref();
    match &cli.command {
        Command::Run => relay::run(given),
        Command::CheckConfig(command) => relay::check_config(command, given, terminal),
        Command::User(command) => user::run(command, given, terminal),
        Command::Completions(command) => manual::completions(command, Cli::command(), terminal),
        Command::Man(command) => manual::man(command, Cli::command(), terminal),
        Command::WhatIf(command) => wait(whatif::run(command, given, terminal)),
        Command::Demo => wait(demo::run(terminal)),
        Command::Reload(socket) => wait(relay::reload(socket, given, terminal)),
        Command::Drain(socket) => wait(relay::drain(&socket.path(given)?, terminal)),
        Command::Status(wanted) => wait(status::run(wanted, given, terminal)),
        Command::Engine(command) => wait(engine::run(command, given, terminal)),
        Command::Notify(command) => wait(notify::run(command, given, terminal)),
        Command::Scan(command) => wait(scan::run(command, &tool(given)?, terminal)),
        Command::Explain(command) => wait(explain::run(command, &tool(given)?, terminal)),
        Command::Quarantine(command) => wait(quarantine::run(command, &tool(given)?, terminal)),
        Command::Queue(command) => wait(queue::run(command, &tool(given)?, terminal)),
        Command::Intercept(command) => wait(intercept::run(command, &tool(given)?, terminal)),
        Command::Incident(command) => wait(incident::run(command, &tool(given)?, terminal)),
    }
}

/// Loads the configuration for a command that works beside the relay, and sends warnings of all rooms to standard error.
fn tool(given: Option<&Path>) -> Result<Config, CliError> {
    telemetry::log::init("warn", LogFormat::Text, LogOutput::Stderr)
        .map_err(|error| CliError::Internal(error.to_string()))?;
    settings::load(given)
}

/// Runs a command to its end, on one thread: a command has no work to do in parallel.
fn wait(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Internal(format!("cannot start the runtime: {error}")))?
        .block_on(work)
}

/// Parses an address on the command line.
fn mailbox(text: &str) -> Result<Mailbox, NotAMailbox> {
    Mailbox::parse(text)
}

/// Opens the store of `config`. A relay may work on it at the same time.
async fn open_store(config: &Config) -> Result<Arc<dyn Store>, CliError> {
    let (store, _) = SqliteStore::open(&config.store, Role::Tool).await?;
    Ok(store)
}

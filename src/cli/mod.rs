//! The command line: one file per family of commands, and everything that is printed.
//!
//! Commands work on the store themselves, whether the relay runs or not; only what concerns the running relay (status,
//! reload, drain) goes through its control socket. Results go to standard output, as tables for people or with `--json`
//! for programs; everything else goes to standard error. Exit codes are those of [`Exit`].

mod control;
mod demo;
mod engine;
mod exit;
mod explain;
mod incident;
mod intercept;
mod manual;
mod named;
mod person;
mod quarantine;
mod queue;
mod record;
mod relay;
mod scan;
mod select;
mod settings;
mod terminal;
mod user;

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
use crate::telemetry::log::LogFormat;

pub use exit::Exit;
pub use terminal::Terminal;

use exit::{CliError, Outcome};

/// An SMTP relay that scans mail, and that no engine, message, sender or next hop can stop.
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
    /// Configuration file [default: $SPILLWAY_CONFIG, else /etc/spillway/spillway.toml if it is
    /// there, else the built-in defaults]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay
    ///
    /// SIGTERM, SIGINT and SIGQUIT finish what is in flight and end; SIGHUP reads the configuration
    /// again; SIGUSR1, SIGUSR2 and SIGALRM are ignored.
    #[command(after_help = exit::HELP)]
    Run,
    /// Check a configuration: print everything that is wrong with it
    #[command(after_help = exit::HELP)]
    CheckConfig,
    /// Make the running relay read its configuration again
    ///
    /// The new configuration is checked first. If anything is wrong with it nothing changes and the
    /// problems are printed; otherwise what has changed is printed. Sessions go on.
    #[command(after_help = exit::HELP)]
    Reload(relay::Socket),
    /// Make the running relay finish what it is doing and end
    #[command(after_help = exit::HELP)]
    Drain(relay::Socket),
    /// Show what the running relay is doing
    #[command(after_help = exit::HELP)]
    Status(relay::Socket),
    /// Scan messages in files, without SMTP: what each engine says and what would be done
    #[command(after_help = exit::HELP)]
    Scan(scan::Scan),
    /// Tell the whole story of a message: what happened, what each engine said, what was decided
    #[command(after_help = exit::HELP)]
    Explain(explain::Explain),
    /// Review messages that are held
    #[command(subcommand, after_help = exit::HELP)]
    Quarantine(quarantine::Quarantine),
    /// Look at messages that wait to be scanned or delivered
    #[command(subcommand, after_help = exit::HELP)]
    Queue(queue::Queue),
    /// Divert mail by what it has in common, before an engine sees it
    #[command(subcommand, after_help = exit::HELP)]
    Intercept(intercept::Intercept),
    /// Look at what the relay did by itself, and why
    #[command(subcommand, after_help = exit::HELP)]
    Incident(incident::Incidents),
    /// See how the engines are doing, test one, take one out, put it back
    #[command(subcommand, after_help = exit::HELP)]
    Engine(engine::Engines),
    /// Manage the users who may relay after AUTH
    #[command(subcommand, after_help = exit::HELP)]
    User(user::User),
    /// Show in a few seconds what the relay does, on mail of its own
    ///
    /// Starts a relay with the embedded engines, one more engine that hangs on one particular
    /// message, and a mail server behind it, all in this process, on free loopback ports and in a
    /// temporary folder. Sends a clean message, the EICAR test file, a blocked attachment and a
    /// message on which the engine hangs, shows what became of each, and cleans up.
    #[command(after_help = exit::HELP)]
    Demo,
    /// Print completions for a shell
    #[command(after_help = exit::HELP)]
    Completions(manual::Completions),
    /// Write manual pages into a folder
    #[command(after_help = exit::HELP)]
    Man(manual::Man),
}

/// The program: runs what the arguments (the program's name first) say, on the standard streams.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    terminal::with_standard(|terminal| run(arguments, terminal))
}

/// The same on any streams.
pub fn run(arguments: impl IntoIterator<Item = OsString>, terminal: &mut Terminal<'_>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, terminal),
    };
    terminal.json = cli.global.json;
    let outcome = dispatch(&cli, terminal);
    outcome.unwrap_or_else(|error| {
        for line in error.lines() {
            // If nobody can be told there is still the exit code.
            let _ = writeln!(terminal.err, "spillway: {line}");
        }
        error.exit()
    })
}

/// Prints help and version, or what is wrong with the arguments.
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
        Command::CheckConfig => relay::check_config(given, terminal),
        Command::User(command) => user::run(command, given, terminal),
        Command::Completions(command) => manual::completions(command, Cli::command(), terminal),
        Command::Man(command) => manual::man(command, Cli::command(), terminal),
        Command::Demo => wait(demo::run(terminal)),
        Command::Reload(socket) => wait(relay::reload(&socket.path(given)?, terminal)),
        Command::Drain(socket) => wait(relay::drain(&socket.path(given)?, terminal)),
        Command::Status(socket) => wait(relay::status(&socket.path(given)?, terminal)),
        Command::Engine(command) => wait(engine::run(command, given, terminal)),
        Command::Scan(command) => wait(scan::run(command, &tool(given)?, terminal)),
        Command::Explain(command) => wait(explain::run(command, &tool(given)?, terminal)),
        Command::Quarantine(command) => wait(quarantine::run(command, &tool(given)?, terminal)),
        Command::Queue(command) => wait(queue::run(command, &tool(given)?, terminal)),
        Command::Intercept(command) => wait(intercept::run(command, &tool(given)?, terminal)),
        Command::Incident(command) => wait(incident::run(command, &tool(given)?, terminal)),
    }
}

/// What a command beside the relay needs: the configuration, and the rooms' warnings on standard error.
fn tool(given: Option<&Path>) -> Result<Config, CliError> {
    telemetry::log::init("warn", LogFormat::Text)
        .map_err(|error| CliError::Internal(error.to_string()))?;
    settings::load(given)
}

/// Runs a command to its end; commands do one thing at a time.
fn wait(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Internal(format!("no runtime: {error}")))?
        .block_on(work)
}

/// An address on the command line.
fn mailbox(text: &str) -> Result<Mailbox, NotAMailbox> {
    Mailbox::parse(text)
}

/// The store of `config`, beside the relay if one runs.
async fn open_store(config: &Config) -> Result<Arc<dyn Store>, CliError> {
    let (store, _) = SqliteStore::open(&config.store, Role::Tool).await?;
    Ok(store)
}

//! `spillway quarantine`: the review of held messages.

mod acts;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::exit::{self, CliError, Exit, Outcome};
use super::list::{ListArguments, RecordList};
use super::record::heading;
use super::select::Selection;
use super::show::{Show, show};
use super::table::Column;
use super::terminal::{Terminal, count, size};
use super::{mailbox, open_store};
use crate::config::Config;
use crate::message::Mailbox;
use crate::quarantine::stats::{self, NamedGroup};
use crate::store::{Lane, Store};

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Quarantine {
    /// List held messages, the newest first
    #[command(after_help = exit::HELP)]
    List(ListArguments),
    /// Show a held message: envelope, decision, answers of the engines, header fields, parts
    #[command(after_help = exit::HELP)]
    Show(Show),
    /// Release held messages to delivery, without another scan
    #[command(after_help = exit::HELP)]
    Release(Release),
    /// Delete held messages permanently
    #[command(after_help = exit::HELP)]
    Delete(Selection),
    /// Write held messages to files; the messages stay in quarantine
    #[command(after_help = exit::HELP)]
    Export(Export),
    /// Count held messages by reason, engine and age
    #[command(after_help = exit::HELP)]
    Stats,
}

#[derive(Debug, Args)]
pub(super) struct Release {
    #[command(flatten)]
    selection: Selection,
    /// Deliver to this address instead of the recipients; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = mailbox)]
    to: Vec<Mailbox>,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    selection: Selection,
    /// Format of the export
    #[arg(long, value_enum, default_value = "eml")]
    format: Format,
    /// Target: for eml a folder, with one file for each message, or for one message a new file; for
    /// mbox a file to append to; `-` for standard output. A folder that does not exist is made: for
    /// several messages, and if the path ends with `/`
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The unchanged message
    Eml,
    /// A mailbox file (mboxrd)
    Mbox,
}

pub(super) async fn run(
    command: &Quarantine,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let store = open_store(config).await?;
    let store = &*store;
    match command {
        Quarantine::List(wanted) => {
            let list = RecordList::Held;
            list.list(wanted, &[Lane::Held], store, terminal).await
        }
        Quarantine::Show(wanted) => {
            let id = wanted.id.message(store).await?;
            let record = crate::quarantine::held(store, id).await?;
            show(&record, None, wanted.body, store, terminal).await
        }
        Quarantine::Release(wanted) => acts::release(wanted, config, store, terminal).await,
        Quarantine::Delete(wanted) => acts::delete(wanted, config, store, terminal).await,
        Quarantine::Export(wanted) => acts::export(wanted, config, store, terminal).await,
        Quarantine::Stats => show_stats(store, terminal).await,
    }
}

async fn show_stats(store: &dyn Store, terminal: &mut Terminal<'_>) -> Outcome {
    let stats = stats::collect(store, terminal.now).await?;
    if terminal.json {
        terminal.json(&stats)?;
        return Ok(Exit::Done);
    }
    let messages = usize::try_from(stats.total.messages).unwrap_or(usize::MAX);
    terminal.line(format!(
        "{} held, {}",
        count(messages, "message"),
        size(stats.total.octets)
    ))?;
    groups("By reason", "RULE", &stats.by_reason, terminal)?;
    groups("By engine", "ENGINE", &stats.by_engine, terminal)?;
    groups("By age", "AGE", &stats.by_age, terminal)?;
    Ok(Exit::Done)
}

fn groups(
    title: &str,
    name: &'static str,
    groups: &[NamedGroup],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if groups.is_empty() {
        return Ok(());
    }
    heading(title, terminal)?;
    let columns = [
        Column::cut(name),
        Column::whole("MESSAGES"),
        Column::whole("SIZE"),
    ];
    let row = |named: &NamedGroup| {
        vec![
            named.name.clone(),
            named.group.messages.to_string(),
            size(named.group.octets),
        ]
    };
    terminal.table(&columns, groups.iter().map(row))
}

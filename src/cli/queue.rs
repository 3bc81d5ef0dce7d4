//! `spillway queue`: stored messages that wait for a scan or for delivery.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::exit::{self, CliError, Exit, Outcome};
use super::list::{ListArguments, RecordList};
use super::select::{Selected, Selection};
use super::show::{Show, show};
use super::terminal::{Terminal, count};
use super::waits::{Relay, WaitsFor};
use super::{control, open_store};
use crate::config::Config;
use crate::store::{Lane, Store};

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Queue {
    /// List waiting messages, the newest first
    #[command(after_help = exit::HELP)]
    List(List),
    /// Show a waiting message: envelope, state, decision, header fields, parts
    #[command(after_help = exit::HELP)]
    Show(Show),
    /// Retry waiting messages now, before their next try is due
    #[command(after_help = exit::HELP)]
    Retry(Retry),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    messages: ListArguments,
    /// Only messages that wait for this
    #[arg(long, value_enum, value_name = "WHAT")]
    waiting_for: Option<WaitingFor>,
}

#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    selection: Selection,
    /// Only messages that wait for this
    #[arg(long, value_enum, value_name = "WHAT")]
    waiting_for: Option<WaitingFor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WaitingFor {
    /// Another scan
    Scan,
    /// Delivery to the next hop
    Delivery,
}

fn lanes(wanted: Option<WaitingFor>) -> Vec<Lane> {
    match wanted {
        None => vec![Lane::Scan, Lane::Delivery],
        Some(WaitingFor::Scan) => vec![Lane::Scan],
        Some(WaitingFor::Delivery) => vec![Lane::Delivery],
    }
}

pub(super) async fn run(command: &Queue, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let store = open_store(config).await?;
    let (store, socket) = (&*store, &config.admin.socket);
    match command {
        Queue::List(wanted) => {
            let lanes = lanes(wanted.waiting_for);
            let list = RecordList::Waiting(Relay::find(socket).await);
            list.list(&wanted.messages, &lanes, store, terminal).await
        }
        Queue::Show(wanted) => {
            let id = wanted.id.message(store).await?;
            match store.get(id).await? {
                Some(record) if lanes(None).contains(&record.lane) => {
                    let relay = Relay::find(socket).await;
                    let waits = WaitsFor::of(&record, &relay, terminal);
                    show(&record, Some(&waits), wanted.body, store, terminal).await
                }
                _ => Err(CliError::NotFound(format!(
                    "message {id} is not in the queue; see `spillway explain {id}`"
                ))),
            }
        }
        Queue::Retry(wanted) => retry(wanted, config, store, terminal).await,
    }
}

async fn retry(
    wanted: &Retry,
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let lanes = lanes(wanted.waiting_for);
    let selected = wanted.selection.resolve("Retry", store, &lanes, terminal);
    let ids = match selected.await? {
        Selected::Go(ids) => ids,
        Selected::Declined => {
            terminal.note("nothing retried")?;
            return Ok(Exit::Done);
        }
        Selected::DryRun(number, shown) => {
            let list = RecordList::Waiting(Relay::find(&config.admin.socket).await);
            list.print(&shown, terminal)?;
            if !terminal.json {
                terminal.line(format!("would retry {}", count(number, "message")))?;
            }
            return Ok(Exit::Done);
        }
    };
    let (mut due, mut left) = (Vec::new(), Vec::new());
    for id in ids {
        match store.make_due(id, terminal.now).await? {
            true => due.push(id),
            false => left.push(id),
        }
    }
    control::acted(&config.admin.socket, "retry", &due, left.len()).await;
    if terminal.json {
        terminal.json(&json!({"retried": due, "left": left}))?;
    } else {
        for id in &left {
            terminal.note(format!(
                "{id}: not retried: it is being tried now, or has left the queue"
            ))?;
        }
        terminal.line(format!("retried {}", count(due.len(), "message")))?;
    }
    Ok(if left.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

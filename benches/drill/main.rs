//! The drill: what happens to valid mail while an engine, or a next hop, misbehaves. Described in docs/DRILL.md.
//!
//! ```text
//! cargo bench --bench drill                       all variants (about 45 minutes)
//! cargo bench --bench drill -- constant hung      some of them
//! cargo bench --bench drill -- --quick constant   short phases, for development
//! cargo bench --bench drill -- --help
//! ```

mod engine;
mod figures;
mod letter;
mod load;
mod mail;
mod options;
mod peer;
mod plan;
mod plot;
#[path = "../relay/process.rs"]
#[allow(dead_code, reason = "this file is a part of two benchmarks")]
mod process;
mod relay;
mod report;
mod run;
mod sink;
mod variant;
mod words;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::figures::Figures;
use crate::options::Options;
use crate::report::Row;
use crate::run::Outcome;
use crate::variant::{Event, Flood, Variant};

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for variant in variant::ALL {
            println!("{:<20} {}", variant.name, variant.about);
        }
        return ExitCode::SUCCESS;
    }
    let named = |name: &str| variant::ALL.iter().any(|variant| variant.name == name);
    if let Some(unknown) = options.variants.iter().find(|name| !named(name)) {
        eprintln!("no variant {unknown:?}; --list names them");
        return ExitCode::from(64);
    }
    process::raise_descriptor_limit();
    match drill(&options) {
        Ok(rows) => {
            println!("\n{}", report::table(&rows));
            let missed = rows.iter().any(Row::misses);
            ExitCode::from(u8::from(options.check && missed))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(70)
        }
    }
}

fn drill(options: &Options) -> io::Result<Vec<Row>> {
    let wanted = |variant: &&Variant| {
        options.variants.is_empty() || options.variants.iter().any(|name| name == variant.name)
    };
    let mut rows = Vec::new();
    for variant in variant::ALL.iter().filter(wanted) {
        let before = rows.len();
        rows.push(told(run::spillway(options, variant)?));
        if options.peer && variant.event == Event::Flood(Flood::Constant) {
            match peer::lacks() {
                Some(what) => println!("\npeer: skipped, {what} is missing"),
                None => rows.push(told(run::peer(options, variant)?)),
            }
        }
        if let Some(folder) = &options.plots {
            draw(folder, variant, &rows[before..])?;
        }
    }
    Ok(rows)
}

/// Prints what there is to say about a run.
fn told(outcome: Outcome) -> Row {
    let figures = Figures::of(&outcome);
    let checks = report::checks(&outcome, &figures);
    let row = Row {
        outcome,
        figures,
        checks,
    };
    report::print(&row);
    plot::terminal(&row.outcome, &row.figures);
    row
}

fn draw(folder: &Path, variant: &Variant, rows: &[Row]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(
        folder.join(format!("{}.svg", variant.name)),
        plot::svg(rows),
    )
}

//! The drill: what happens to valid mail while an engine, or a next hop, misbehaves. Described in docs/DRILL.md.
//!
//! ```text
//! cargo bench --bench drill                       the variants of the table (about 45 minutes)
//! cargo bench --bench drill -- constant hung      some of them
//! cargo bench --bench drill -- --quick constant   short phases, for development
//! cargo bench --bench drill -- --help
//! ```

mod ablation;
mod apart;
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
mod results;
mod run;
mod scene;
mod sink;
mod strangers;
mod targets;
mod variant;
mod words;

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::Parser;

use crate::figures::Figures;
use crate::options::Options;
use crate::report::Row;
use crate::variant::{Event, Flood, Variant};

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for variant in variants() {
            println!("{:<24} {}", variant.name, variant.about);
        }
        return ExitCode::SUCCESS;
    }
    let named = |name: &str| variants().any(|variant| variant.name == name);
    if let Some(unknown) = options.variants.iter().find(|name| !named(name)) {
        eprintln!("no variant {unknown:?}; --list names them");
        return ExitCode::from(64);
    }
    if (options.ablate || options.without.is_some()) && !cfg!(feature = "ablation") {
        eprintln!(
            "this build leaves nothing out: cargo bench --features ablation --bench drill -- …"
        );
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

fn variants() -> impl Iterator<Item = &'static Variant> {
    variant::TABLE.iter().chain(&strangers::ALL)
}

/// Runs what is wanted, as many at once as is wanted.
fn drill(options: &Options) -> io::Result<Vec<Row>> {
    let wanted = |variant: &&Variant| match options.variants.is_empty() {
        true => options.all || variant::TABLE.contains(variant),
        false => options.variants.iter().any(|name| name == variant.name),
    };
    let wanted = variants().filter(wanted);
    let runs: Vec<(Options, &Variant)> = match options.ablate {
        true => ablation::runs(options, wanted),
        false => wanted.map(|variant| (options.clone(), variant)).collect(),
    };
    let queue = Mutex::new(runs.iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..options.together.max(1) {
            scope.spawn(|| {
                while let Some((at, (options, variant))) = next() {
                    let rows = one(options, variant);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    for row in rows.iter().flatten() {
                        report::print(row);
                        plot::terminal(row);
                    }
                    done.insert(at, rows);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rows: io::Result<Vec<Vec<Row>>> = done.into_values().collect();
    Ok(rows?.into_iter().flatten().collect())
}

/// One variant: the relay's row, and the peer's if there is one.
fn one(options: &Options, variant: &Variant) -> io::Result<Vec<Row>> {
    let reference = match variant.reference() {
        Some(other) => {
            let outcome = run::spillway(options, &other)?;
            targets::compared(&outcome, &Figures::of(&outcome))
        }
        None => None,
    };
    let mut outcome = run::spillway(options, variant)?;
    outcome.reference = reference;
    let mut rows = vec![Row::of(outcome)];
    if options.peer && variant.event == Event::Flood(Flood::Constant) {
        match peer::lacks() {
            Some(what) => println!("\npeer: skipped, {what} is missing"),
            None => rows.push(Row::of(run::peer(options, variant)?)),
        }
    }
    if let Some(file) = &options.results {
        rows.iter().try_for_each(|row| results::append(file, row))?;
    }
    if let Some(folder) = &options.plots {
        std::fs::create_dir_all(folder)?;
        let picture = folder.join(format!("{}.svg", variant.name));
        std::fs::write(picture, plot::svg(&rows))?;
    }
    Ok(rows)
}

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

use std::process::ExitCode;

use clap::Parser;

use crate::figures::Figures;
use crate::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for variant in variant::ALL {
            println!("{:<20} {}", variant.name, variant.about);
        }
        return ExitCode::SUCCESS;
    }
    for name in &options.variants {
        if !variant::ALL.iter().any(|variant| variant.name == name) {
            eprintln!("no variant {name:?}; --list names them");
            return ExitCode::from(64);
        }
    }
    process::raise_descriptor_limit();
    let wanted =
        |name: &str| options.variants.is_empty() || options.variants.iter().any(|v| v == name);
    let mut rows = Vec::new();
    for variant in variant::ALL.iter().filter(|variant| wanted(variant.name)) {
        let outcome = match run::spillway(&options, variant) {
            Ok(outcome) => outcome,
            Err(error) => {
                eprintln!("{}: {error}", variant.name);
                return ExitCode::FAILURE;
            }
        };
        let figures = Figures::of(&outcome);
        let checks = report::checks(&outcome, &figures);
        report::print(&outcome, &figures, &checks);
        plot::terminal(&outcome, &figures);
        if let Some(folder) = &options.plots {
            let picture = plot::svg(&[("spillway", &outcome, &figures)]);
            let path = folder.join(format!("{}.svg", variant.name));
            let written =
                std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, picture));
            if let Err(error) = written {
                eprintln!("{}: {error}", path.display());
            }
        }
        rows.push((outcome, figures, checks));
    }
    println!("\n{}", report::table(&rows));
    let missed = rows
        .iter()
        .any(|(_, _, checks)| checks.iter().any(|check| !check.met));
    ExitCode::from(u8::from(options.check && missed))
}

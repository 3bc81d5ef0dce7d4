//! What the command line can change.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::scene::Scene;

/// Messages a second, unless told otherwise: what the targets are for.
pub const USUAL_RATE: f64 = 40.0;

/// The drill: live mail through a live relay while an engine, or a next hop, misbehaves.
#[derive(Debug, Clone, Parser)]
#[command(name = "cargo bench --bench drill --")]
pub struct Options {
    /// Variants to run; those of the table in docs/DRILL.md if none is named
    pub variants: Vec<String>,
    /// Run the variants of the way back and the stranger as well
    #[arg(long)]
    pub all: bool,
    /// Name the variants and end
    #[arg(long)]
    pub list: bool,
    /// Short phases, for development: the targets assume the full ones
    #[arg(long)]
    pub quick: bool,
    /// End with 1 if a target is missed
    #[arg(long)]
    pub check: bool,
    /// Write a picture of each variant into this folder
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "docs/drill")]
    pub plots: Option<PathBuf>,
    /// Run the constant flood against Postfix with clamav-milter as well
    #[arg(long)]
    pub peer: bool,
    /// Append a line of JSON for each run to this file
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,
    /// Run this relay instead of the one that was built with the drill
    #[arg(long, value_name = "FILE")]
    pub relay: Option<PathBuf>,
    /// Messages a second, flood included
    #[arg(long, default_value_t = USUAL_RATE)]
    pub rate: f64,
    /// The rate is multiplied by this
    #[arg(long, default_value_t = 1.0)]
    pub times: f64,
    /// Everything random comes from it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds of load that are not counted, so that the relay knows its senders
    #[arg(long, value_name = "SECONDS")]
    pub warm_up: Option<f64>,
    /// Seconds of calm, against which the event is compared
    #[arg(long, value_name = "SECONDS")]
    pub calm: Option<f64>,
    /// Seconds of flood or fault
    #[arg(long, value_name = "SECONDS")]
    pub event: Option<f64>,
    /// Seconds of load after it
    #[arg(long, value_name = "SECONDS")]
    pub after: Option<f64>,
    /// Seconds at most, without load, until nothing valid waits any more
    #[arg(long, value_name = "SECONDS")]
    pub settle: Option<f64>,
    /// The smallest valid message
    #[arg(long, value_name = "KIB", default_value_t = 4)]
    pub smallest: usize,
    /// The largest valid message
    #[arg(long, value_name = "KIB", default_value_t = 400)]
    pub largest: usize,
    /// Sessions at once at most; a message that finds none free waits, and the report says so
    #[arg(long, default_value_t = 2000)]
    pub sessions: usize,
    /// Variants that run at the same time: quicker, and each disturbs the others
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub together: usize,
    /// The listener's mode
    #[arg(long, default_value = "cut-through")]
    pub mode: String,
    /// A file with more sections for the relay's configuration
    #[arg(long, value_name = "FILE")]
    pub with: Option<PathBuf>,
    /// Lines for each [[engine]] section, such as 'slow = "250ms"'
    #[arg(long, value_name = "LINE")]
    pub engine: Vec<String>,
    /// Leave this mechanism out (needs --features ablation; src/ablation.rs names them)
    #[arg(long, value_name = "MECHANISM")]
    pub without: Option<String>,
    /// Leave out one mechanism after the other, each in the variants that it is there for
    #[arg(long)]
    pub ablate: bool,
    /// Keep the relay's folder (configuration, log, store) and say where it is
    #[arg(long)]
    pub keep: bool,
    /// What cargo tells every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// When the parts of a run begin, counted from the first message.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    pub calm_begins: Duration,
    pub event_begins: Duration,
    pub event_ends: Duration,
    pub load_ends: Duration,
    pub settled_by: Duration,
}

impl Options {
    pub fn phases(&self, scene: &Scene) -> Phases {
        let usual = match self.quick {
            true => scene.quick,
            false => scene.full,
        };
        let wanted = [self.warm_up, self.calm, self.event, self.after, self.settle];
        let mut ends = [Duration::ZERO; 5];
        let mut end = 0.0;
        for (at, (wanted, usual)) in wanted.into_iter().zip(usual).enumerate() {
            end += wanted.unwrap_or(usual);
            ends[at] = Duration::from_secs_f64(end);
        }
        let [calm_begins, event_begins, event_ends, load_ends, settled_by] = ends;
        Phases {
            calm_begins,
            event_begins,
            event_ends,
            load_ends,
            settled_by,
        }
    }

    pub fn rate(&self) -> f64 {
        self.rate * self.times
    }
}

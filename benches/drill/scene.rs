//! What stands on the stage of a variant, who sends, and for how long.

use std::time::Duration;

/// Scans at once that the relay sends to a clamd unless its configuration says otherwise (config/spillway.toml).
pub const DEFAULT_SLOTS: usize = 10;

/// The stage of a variant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scene {
    /// Engines that are asked.
    pub engines: usize,
    /// How many of them must have answered.
    pub coverage: usize,
    /// Workers of each engine, which are the relay's slots for it.
    pub slots: usize,
    /// Lines for each engine's section of the relay's configuration; all else in it is at its default.
    pub engine: &'static str,
    /// What an engine that is well takes for a message.
    pub usual: Duration,
    /// Messages a second, as a share of the rate that the command line says.
    pub rate: f64,
    /// The share of valid mail that comes from somebody who has never written before.
    pub strangers: f64,
    pub senders: Senders,
    /// The largest valid message in KiB, if the command line does not say less.
    pub largest: usize,
    /// From the beginning of the event until the relay is killed and started again.
    pub kill: Option<Duration>,
    pub full: Seconds,
    pub quick: Seconds,
}

/// Seconds of warm-up, calm, event, load after it, and of settling at most.
pub type Seconds = [f64; 5];

/// By what the relay can tell senders apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Senders {
    /// Each domain has a client address of its own.
    Apart,
    /// All mail comes from one client address, a mail server before the relay.
    OneClient {
        /// Whether that server tells where each message came from.
        xforward: bool,
    },
    /// One domain and one client address; its users are all that differs.
    OneDomain,
}

impl Scene {
    /// That of the table in docs/DRILL.md: three engines, two of which must answer, and mail from senders who are known.
    pub const USUAL: Self = Self {
        engines: 3,
        coverage: 2,
        slots: 12,
        engine: "slots = 12\ntimeout = \"5s\"\nattempts = 2\n",
        usual: Duration::from_millis(5),
        rate: 1.0,
        strangers: 0.03,
        senders: Senders::Apart,
        largest: usize::MAX,
        kill: None,
        full: [15.0, 30.0, 60.0, 30.0, 60.0],
        quick: [6.0, 8.0, 20.0, 8.0, 15.0],
    };

    /// The same with the relay's defaults, and every second valid message from a stranger.
    pub const HALF: Self = Self {
        slots: DEFAULT_SLOTS,
        engine: "",
        strangers: 0.5,
        ..Self::USUAL
    };

    /// One engine that takes as long as a clamd does, so that it is the engine which bounds what is scanned.
    pub const SINGLE: Self = Self {
        engines: 1,
        coverage: 1,
        usual: Duration::from_millis(50),
        ..Self::HALF
    };

    /// Messages a second that the engines can scan.
    pub fn capacity(&self) -> f64 {
        self.slots as f64 / self.usual.as_secs_f64()
    }
}

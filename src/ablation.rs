//! Leaving a mechanism out, to learn what it is worth (`benches/drill`, docs/RESILIENCE.md section 4). Only a build with the
//! feature `ablation` can; in every other [`without`] is the constant `false`, and nothing of it is left in the binary.

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// A scan keeps its slot until the engine has ended it.
    Zombies,
    /// Few copies of unproven content at once, and no more once they are slow.
    Canaries,
    /// Slots for known senders that what nothing speaks for cannot take.
    Lanes,
    /// Clients and senders take turns in a lane.
    Turns,
    /// An engine that fails gets no mail.
    Breaker,
    /// Known-bad and known-clean messages.
    Probes,
    /// One scan for all who want the same, and its answer for those who come later.
    Sharing,
    /// Further attempts only as far as successes have paid for them.
    RetryBudget,
    /// Strikes, the learner, and what they made.
    Interceptors,
    /// Other engines do not make up for one that a message may have broken.
    Blame,
    /// What was held or delivered for a cause is scanned again when the cause is gone.
    Recovery,
    /// Those who brought much are refused first.
    Admission,
    /// A next hop gets as much as it takes.
    Pacing,
}

/// Whether a mechanism is left out in this process: those named in the environment variable `SPILLWAY_WITHOUT`, by commas.
#[cfg(feature = "ablation")]
pub fn without(mechanism: Mechanism) -> bool {
    static LEFT_OUT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let left_out = LEFT_OUT.get_or_init(|| std::env::var("SPILLWAY_WITHOUT").unwrap_or_default());
    let name = format!("{mechanism:?}").to_lowercase();
    left_out.split(',').any(|one| one == name)
}

/// Whether a mechanism is left out: never, in this build.
#[cfg(not(feature = "ablation"))]
pub const fn without(_: Mechanism) -> bool {
    false
}

//! Leaves one mechanism out, so that the drill can measure what the mechanism is worth (`benches/drill`, docs/RESILIENCE.md
//! section 4). Only a build with the feature `ablation` can leave mechanisms out. In every other build, [`without`] is the
//! constant `false`, so the binary contains no code for it.

/// A mechanism that can be left out. Each variant states what the mechanism does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// A scan keeps its slot until the engine has ended it.
    Zombies,
    /// Few copies of unproven content are in an engine at once. Once they are slow, the gate sends no more.
    Canaries,
    /// Levels of trust at the gate: some slots are kept for known senders, and mail of low trust cannot take these slots.
    TrustLevels,
    /// Clients and senders take turns in a lane.
    Turns,
    /// An engine that fails gets no mail.
    Breaker,
    /// Known-bad and known-clean messages test each engine.
    Probes,
    /// All callers that want the same scan share one scan. Its answer also serves later callers.
    Sharing,
    /// Successful scans earn the time for further attempts.
    RetryBudget,
    /// Strikes and the learner create interceptors, and the interceptors divert mail.
    Interceptors,
    /// Other engines do not make up for an engine's missing answer that the message may have caused.
    Blame,
    /// Mail that was held or delivered for a cause is scanned again when the cause is gone.
    Recovery,
    /// Under pressure, the relay refuses mail of the largest parties first.
    Admission,
    /// A next hop gets mail as fast as the next hop takes mail.
    Pacing,
}

/// Whether this process leaves the mechanism out. The environment variable `SPILLWAY_WITHOUT` lists the mechanisms, separated
/// by commas.
#[cfg(feature = "ablation")]
pub fn without(mechanism: Mechanism) -> bool {
    static LEFT_OUT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let left_out = LEFT_OUT.get_or_init(|| std::env::var("SPILLWAY_WITHOUT").unwrap_or_default());
    let name = format!("{mechanism:?}").to_lowercase();
    left_out.split(',').any(|one| one == name)
}

/// Whether this process leaves the mechanism out: never, in this build.
#[cfg(not(feature = "ablation"))]
pub const fn without(_: Mechanism) -> bool {
    false
}

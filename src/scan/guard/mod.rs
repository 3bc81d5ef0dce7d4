//! What stands between a message and an engine.
/// Placeholder until the guard lands.
#[derive(Debug, Clone)]
pub struct Guarded;

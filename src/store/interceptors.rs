//! Interceptors as the store keeps them, with versions that show a change by another process.

use serde::{Deserialize, Serialize};

/// An interceptor as the store keeps it. The store does not interpret the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredInterceptor {
    /// Id of the interceptor.
    pub id: String,
    /// Value of [`Interceptors::version`] at the last change of this interceptor; 0 if the store does not have it yet.
    pub version: u64,
    /// The interceptor as JSON.
    pub body: String,
}

/// All interceptors at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interceptors {
    /// Grows with every change of an interceptor.
    pub version: u64,
    /// All interceptors, in the order of their ids.
    pub all: Vec<StoredInterceptor>,
}

/// Maximum number of interceptors, because each is compared with every message.
pub const INTERCEPTORS_MAX: usize = 1000;

//! What the pace and its callers say to each other.

use std::time::Duration;

use tokio::time::Instant;

/// Kind of the message that asks for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailKind {
    /// A message that has just arrived.
    Fresh,
    /// A stored message that waits. While the hop has a rate, stored messages go first.
    Waiting,
}

/// The right to one delivery, returned with [`Pace::ended`].
#[derive(Debug)]
pub struct DeliveryTicket {
    /// Value of [`Pace`]'s epoch counter at the time of issue.
    pub(super) epoch: u64,
}

/// The hop takes no message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: RefusalReason,
    /// Time from which another request is useful; `None` if something other than time decides.
    pub until: Option<Instant>,
}

/// Why the hop takes no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The hop throttles us: the pause or the rate allows no further message, or stored messages go first.
    Paced,
    /// The hop does not work.
    Dead,
    /// The hop refuses our login.
    LoginRefused,
    /// All connections of the hop are in use, and a recent delivery did not get one in time.
    Busy,
}

/// A change of the pace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PaceChange {
    /// From free or dead to paced, with this rate in messages a second.
    Paced(f64),
    /// The rate was cut to this value, in messages a second.
    Cut(f64),
    /// A cohort of consecutive deliveries failed.
    Dead,
    /// The hop refused our login. The next login may follow after this time.
    LoginRefused(Duration),
    /// As [`Self::LoginRefused`], for a login after such a wait.
    LoginRefusedAgain(Duration),
    /// The hop answers again after this time; mail goes out in a small window at first.
    Alive(Duration),
    /// From paced to free.
    Free,
    /// From paced to free, because the hop defers single messages at any rate.
    PerMessageDeferrals,
}

impl Refusal {
    pub(super) fn new(reason: RefusalReason, until: Option<Instant>) -> Self {
        Self { reason, until }
    }
}

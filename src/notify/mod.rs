//! Notifications: somebody is told when the story of some trouble begins and when it ends (docs/CONFIG.md, "Who is told").
//!
//! Each way ([`Kind`]) has a task and a ledger of its own, so that a way that hangs delays no other. The recorder of incidents
//! calls [`Notifier::story`], which only writes into the ledgers and never waits. A notification needs nothing of what may be
//! broken at that time: no store, no engine, no lane; mail goes straight to a next hop.
//!
//! What is bounded: the stories of a way, the notifications in an hour, the time and the number of tries, the answers that are
//! read, and the wait at the end of the relay. What is lost by a bound is counted and logged.

mod command;
mod ledger;
mod mail;
mod notification;
mod way;
mod webhook;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::Delivery;
use crate::incident::{self, Story, StoryListener, StoryPhase, Subject};
use crate::message::Mailbox;
use crate::scan::engine::Url;

use notification::Notification;
use way::{Terms, Way};

/// Most `[[notify]]` sections of a configuration: each has a task.
pub const WAYS_MAX: usize = 32;
/// Most next hops of one way.
pub const NEXT_HOPS_MAX: usize = 5;
/// Longest `timeout` of a way: 1 minute.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Longest duration of [`Notifier::test`]: one try, which may ask each next hop in turn.
pub const TEST_DURATION_MAX: Duration = TIMEOUT_MAX.saturating_mul(NEXT_HOPS_MAX as u32);

/// Settings of one `[[notify]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique name, used in logs and metrics.
    pub name: Arc<str>,
    /// How the notification goes out.
    pub kind: Kind,
    /// Whether beginnings are told.
    pub begin: bool,
    /// Whether ends are told.
    pub end: bool,
    /// Which causes; all if empty.
    pub causes: Vec<Cause>,
    /// Which kinds of trouble; all if empty.
    pub kinds: Vec<incident::Kind>,
    /// A beginning is told only if the trouble still lasts after this time.
    pub begin_after: Duration,
    /// An end is told only if the trouble has not come back within this time.
    pub end_after: Duration,
    /// Most notifications in any hour. What is due beyond that is told in one summary when the hour allows.
    pub max_per_hour: usize,
    /// Most tries for one notification.
    pub attempts: u32,
    /// Time for one try; with several next hops for each of them.
    pub timeout: Duration,
}

/// The kinds of ways.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A program with its arguments, which gets the notification as JSON on standard input.
    Command(Vec<String>),
    /// Mail.
    Mail(MailSettings),
    /// An HTTP server, which gets the notification as JSON.
    Webhook(WebhookSettings),
}

/// Settings of a way by mail.
#[derive(Debug, Clone, PartialEq)]
pub struct MailSettings {
    /// The recipients.
    pub to: Vec<Mailbox>,
    /// The sender; `None`: the null reverse-path.
    pub from: Option<Mailbox>,
    /// Names of next hops, tried in this order. A next hop that the notification reports as broken is tried last.
    pub next_hops: Vec<Arc<str>>,
}

/// Settings of a webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookSettings {
    /// Where to post.
    pub url: Url,
    /// File with the secret of the signature.
    pub secret_file: PathBuf,
    /// File of certificate authorities for https; `None`: those of the system.
    pub tls_ca: Option<PathBuf>,
}

/// Causes of stories that a way tells of: `engine`, `engine:clamd`, `next-hop`, `store` …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of [`Subject::WORDS`].
    pub word: &'static str,
    /// The name of the engine or next hop; `None` for all.
    pub name: Option<String>,
}

/// The name of a cause; empty for the parts of the relay itself.
fn name_of(cause: &Subject) -> &str {
    match cause {
        Subject::Engine { name, .. } | Subject::NextHop(name) | Subject::Interceptor(name) => name,
        Subject::Quarantine | Subject::Store | Subject::Relay => "",
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word)?;
        self.name.iter().try_for_each(|name| write!(f, ":{name}"))
    }
}

impl Settings {
    /// Whether this way tells of a story.
    fn wants(&self, story: &Story) -> bool {
        let (word, name) = (story.cause.word(), name_of(&story.cause));
        let fits = |cause: &Cause| {
            cause.word == word && cause.name.as_ref().is_none_or(|wanted| wanted == name)
        };
        let is_cause = self.causes.is_empty() || self.causes.iter().any(fits);
        is_cause && self.wants_kind(story.kind)
    }

    fn wants_kind(&self, kind: incident::Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }
}

/// Why a way cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("notify {way}: {why}")]
pub struct BuildError {
    way: Arc<str>,
    why: String,
}

/// Why a notification was not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Failure {
    /// Another try may succeed.
    #[error("{0}")]
    Passing(String),
    /// Another try would fail again, or would tell twice.
    #[error("{0}")]
    Lasting(String),
}

/// Sends notifications over one way.
trait Sender: Send + Sync {
    /// One try, bounded by the way's `timeout`. Returns how it was told, in a few words.
    ///
    /// Cancel safety: the receiver may or may not have got the notification.
    fn send<'a>(&'a self, told: &'a Notification) -> BoxFuture<'a, Result<String, Failure>>;
}

/// A way with the files that it needs, which starts when the other parts of a configuration are in force.
pub struct Prepared {
    settings: Settings,
    channel: Channel,
}

/// How a prepared way sends.
enum Channel {
    Command(Vec<String>),
    Mail(MailSettings),
    Webhook(Box<webhook::Webhook>),
}

impl Prepared {
    /// Reads the files of all ways. Blocks.
    ///
    /// # Errors
    /// Every way whose files cannot be used.
    pub fn all(settings: &[Settings]) -> Result<Vec<Self>, Vec<BuildError>> {
        let (mut ready, mut wrong) = (Vec::new(), Vec::new());
        for settings in settings {
            let channel = match &settings.kind {
                Kind::Command(command) => Ok(Channel::Command(command.clone())),
                Kind::Mail(mail) => Ok(Channel::Mail(mail.clone())),
                Kind::Webhook(hook) => {
                    let hook = webhook::Webhook::new(hook, settings.timeout);
                    hook.map(|hook| Channel::Webhook(Box::new(hook)))
                }
            };
            let settings = settings.clone();
            match channel {
                Ok(channel) => ready.push(Self { settings, channel }),
                Err(why) => wrong.push(BuildError {
                    way: settings.name,
                    why,
                }),
            }
        }
        match wrong.is_empty() {
            true => Ok(ready),
            false => Err(wrong),
        }
    }

    fn terms(self, relay: &Arc<str>, delivery: &Delivery) -> Terms {
        let timeout = self.settings.timeout;
        let sender: Box<dyn Sender> = match self.channel {
            Channel::Command(command) => Box::new(command::Command::new(command, timeout)),
            Channel::Mail(mail) => {
                let (relay, delivery) = (relay.clone(), delivery.clone());
                Box::new(mail::Mail::new(mail, timeout, relay, delivery))
            }
            Channel::Webhook(hook) => hook,
        };
        Terms {
            settings: self.settings,
            relay: relay.clone(),
            sender,
        }
    }
}

/// The result of a test of one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// The way's name.
    pub way: String,
    /// How the notification was told; none if it was not.
    pub told: Option<String>,
    /// Why it was not told; none if it was.
    pub wrong: Option<String>,
}

/// All ways of a running relay.
pub struct Notifier {
    ways: Mutex<Vec<Arc<Way>>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Notifier {
    /// Starts a task for each way. `relay` is the name of the relay in notifications.
    pub fn start(ways: Vec<Prepared>, relay: &str, delivery: &Delivery) -> Arc<Self> {
        let notifier = Self {
            ways: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        };
        notifier.apply(ways, relay, delivery);
        Arc::new(notifier)
    }

    /// Puts other settings in force. A way keeps what it has told, and what it has to tell, under the same name.
    pub fn apply(&self, ways: Vec<Prepared>, relay: &str, delivery: &Delivery) {
        let relay: Arc<str> = relay.into();
        let mut present = self.lock();
        let before = std::mem::take(&mut *present);
        for way in ways {
            let terms = way.terms(&relay, delivery);
            let same = before.iter().find(|way| way.is(&terms.settings.name));
            present.push(match same {
                Some(way) => {
                    way.replace(terms);
                    way.clone()
                }
                None => {
                    let way = Arc::new(Way::new(terms));
                    self.tasks.spawn(way.clone().run(self.closing.clone()));
                    way
                }
            });
        }
        let is_gone = |way: &&Arc<Way>| !present.iter().any(|kept| Arc::ptr_eq(kept, way));
        before.iter().filter(is_gone).for_each(|way| way.end());
    }

    /// Sends a test notification over the way with this name, or over all ways at the same time, with one try each. The test
    /// counts for nothing: neither for the limit of an hour nor in the metrics.
    ///
    /// # Errors
    /// One line, if there is no such way.
    ///
    /// Cancel safety: some ways may have told the test.
    pub async fn test(&self, name: Option<&str>) -> Result<Vec<Tested>, String> {
        let mut ways = self.lock().clone();
        ways.retain(|way| name.is_none_or(|name| way.is(name)));
        if ways.is_empty() {
            return Err(match name {
                Some(name) => format!("no [[notify]] has the name {name:?}"),
                None => {
                    "the configuration has no [[notify]], so nobody is told of trouble".to_owned()
                }
            });
        }
        Ok(join_all(ways.iter().map(|way| way.test())).await)
    }

    /// Takes up stories that were open when the last process ended, and were told by it: their ends are told.
    pub fn resume(&self, stories: &[Story]) {
        for way in &*self.lock() {
            stories.iter().for_each(|story| way.resume(story));
        }
    }

    /// Tells what is still to be told, with one try for each notification, and ends the tasks: within [`way::DRAIN_TIMEOUT`].
    /// Without anything to tell it ends at once.
    ///
    /// Cancel safety: the tasks end by themselves.
    pub async fn drain(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Way>>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoryListener for Notifier {
    fn story(&self, phase: StoryPhase, story: &Story) {
        for way in &*self.lock() {
            way.note(phase, story);
        }
    }
}

//! The relay, the engine and the mail server of the demo: their start and their end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::engine::FragileEngine;
use super::mail_server::MailServer;
use crate::admin::Waits;
use crate::app::{self, Running};
use crate::cli::exit::CliError;
use crate::config;
use crate::deadline::Deadline;
use crate::delivery::{
    DeliveredSender, Delivery, Kind, Outbound, Outcome, Settings, SmtpSettings, TlsMode,
};
use crate::message::{BodyKind, Content, Envelope, Mailbox, MessageId, Origin, ReversePath};
use crate::scan::Guarded;
use crate::store::Store;
use crate::store::history::{self, HistoryEntry};

/// Maximum wait for each step, 20 s. A step that works takes at most a few seconds (the engine's timeout is 2 s).
pub(super) const WAIT_MAX: Duration = Duration::from_secs(20);
/// The name of the engine that hangs.
pub(super) const FRAGILE_ENGINE: &str = "fragile";
/// Interval between reads of the history while the demo waits for an event: short, so that the demo does not look slow.
const HISTORY_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The relay's configuration. Coverage needs answers of two `av` engines before a delivery, so the engine that hangs makes a
/// difference.
const CONFIGURATION: &str = r#"
[relay]
hostname = "relay.demo.example"
drain_timeout = "3s"

[[listener]]
name = "smtp"
address = ["127.0.0.1:0"]

[[engine]]
name = "rules"
kind = "rules"
class = "av"

[[engine]]
name = "attachment"
kind = "attachment"
class = "content"

[[engine]]
name = "{fragile}"
kind = "clamd"
class = "av"
address = ["{engine}"]
timeout = "2s"
attempts = 1

[coverage]
av = 2

[policy]
malware = "quarantine"
policy = "reject"

[[next_hop]]
name = "mailserver"
domains = ["*"]
kind = "smtp"
address = ["{mail_server}"]
tls = "off"

[store]
disk_reserve = "1MiB"

[admin]
http = ""
"#;

/// The running parts of the demo.
pub(super) struct Stage {
    folder: TempDir,
    mail_server: MailServer,
    engine: FragileEngine,
    relay: Running,
    sender: Delivery,
}

/// The result of sending one message.
#[derive(Debug)]
pub(super) struct Sent {
    /// The id in the relay's reply.
    pub(super) id: Option<MessageId>,
    /// The relay's reply to end of data.
    pub(super) reply: String,
    /// Whether the reply was 5yz.
    pub(super) refused: bool,
    /// How long the sender waited for the reply.
    pub(super) took: Duration,
    /// When the reply came.
    pub(super) at: Instant,
}

impl Stage {
    /// Starts all parts, on loopback and in a temporary folder.
    pub(super) async fn set() -> Result<Self, CliError> {
        let file = |path, error| CliError::File(path, error);
        let folder = tempfile::Builder::new()
            .prefix("spillway-demo-")
            .tempdir()
            .map_err(|error| file(std::env::temp_dir(), error))?;
        let port = |error| CliError::Internal(format!("cannot listen on 127.0.0.1: {error}"));
        let mail_server = MailServer::start().await.map_err(port)?;
        let engine = FragileEngine::start().await.map_err(port)?;
        let path = folder.path().join("spillway.toml");
        let text = CONFIGURATION
            .replace("{fragile}", FRAGILE_ENGINE)
            .replace("{engine}", &engine.address().to_string())
            .replace("{mail_server}", &mail_server.address().to_string());
        std::fs::write(&path, text).map_err(|error| file(path.clone(), error))?;
        let config = config::load(Some(&path))?;
        let started = app::start(config, Some(path)).await;
        let relay = started.map_err(|error| CliError::Internal(error.to_string()))?;
        let sender = sender(relay.addresses().first().copied())?;
        Ok(Self {
            folder,
            mail_server,
            engine,
            relay,
            sender,
        })
    }

    /// The relay's address.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.relay.addresses().first().copied()
    }

    /// The mail server behind the relay.
    pub(super) fn mail_server(&self) -> &MailServer {
        &self.mail_server
    }

    /// The engine that hangs.
    pub(super) fn engine(&self) -> &FragileEngine {
        &self.engine
    }

    /// The relay's store.
    pub(super) fn store(&self) -> &Arc<dyn Store> {
        self.relay.pipeline().store()
    }

    /// What stored mail may wait for.
    pub(super) fn waits(&self) -> Waits {
        let generation = self.relay.pipeline().generation();
        Waits {
            at_work: self.store().at_work().all(),
            engines: generation
                .scanner
                .engines()
                .iter()
                .map(Guarded::health)
                .collect(),
            next_hops: generation.delivery.status(),
        }
    }

    /// Makes the relay look for stored mail that is due.
    pub(super) fn wake(&self) {
        self.relay.pipeline().wake();
    }

    /// Sends a message over SMTP, as any mail server would.
    pub(super) async fn send(&self, content: String) -> Sent {
        let began = Instant::now();
        let mail = Outbound {
            id: MessageId::new(),
            envelope: Arc::new(envelope()),
            prefix: "".into(),
            content: Content::uncharged(content),
            delivered: DeliveredSender::default(),
        };
        let outcomes = self.sender.deliver(&mail, Deadline::after(WAIT_MAX)).await;
        let answer = outcomes.first().map(Outcome::answer);
        let reply = match answer.and_then(|answer| answer.reply.as_ref()) {
            Some(reply) => reply.to_string(),
            None => answer.map(|a| a.text.clone()).unwrap_or_default(),
        };
        let mut words = reply.split(|c: char| !c.is_ascii_alphanumeric());
        Sent {
            id: words.find_map(|word| word.parse().ok()),
            refused: matches!(outcomes.first(), Some(Outcome::Failed(_))),
            reply,
            took: began.elapsed(),
            at: Instant::now(),
        }
    }

    /// The last event of a message. Waits for `event`, at most [`WAIT_MAX`].
    pub(super) async fn last_event(
        &self,
        id: MessageId,
        event: &str,
    ) -> Result<Option<HistoryEntry>, CliError> {
        let path = self
            .folder
            .path()
            .join("spillway-data")
            .join(history::FILE_NAME);
        let deadline = Deadline::after(WAIT_MAX);
        loop {
            let last = history::read(&path, id).await?.pop();
            if last.as_ref().is_some_and(|last| last.event == event) || deadline.passed() {
                return Ok(last);
            }
            deadline.within(HISTORY_CHECK_INTERVAL).wait().await;
        }
    }

    /// Stops all parts and removes the temporary folder.
    pub(super) async fn clear(self) -> Result<(), CliError> {
        // The sender's idle connections are open sessions of the relay, and would delay its drain.
        drop(self.sender);
        self.relay.drain().await;
        drop((self.engine, self.mail_server));
        let path = self.folder.path().to_owned();
        self.folder
            .close()
            .map_err(|error| CliError::File(path, error))
    }
}

/// A client of the relay: the code with which the relay itself delivers to next hops.
fn sender(relay: Option<SocketAddr>) -> Result<Delivery, CliError> {
    let day = Duration::from_secs(86_400);
    let settings = Settings {
        name: "demo".into(),
        domains: vec!["*".to_owned()],
        kind: Kind::Smtp(SmtpSettings {
            lmtp: false,
            addresses: relay.iter().map(ToString::to_string).collect(),
            tls: TlsMode::Off,
            tls_ca: None,
            username: None,
            password_file: None,
            connections: 4,
            pace: false,
            idle: WAIT_MAX,
            connect_timeout: WAIT_MAX,
            command_timeout: WAIT_MAX,
            data_timeout: WAIT_MAX,
            hostname: "sender.example".to_owned(),
        }),
        retry_first: day,
        retry_max: day,
        give_up: day,
    };
    Delivery::new(vec![settings], None).map_err(|error| CliError::Internal(error.to_string()))
}

fn envelope() -> Envelope {
    let mailbox = |text| Mailbox::parse(text).ok();
    Envelope {
        reverse_path: mailbox("alice@sender.example").map_or(ReversePath::NULL, Into::into),
        recipients: mailbox("bob@demo.example")
            .into_iter()
            .map(Into::into)
            .collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("demo"),
    }
}

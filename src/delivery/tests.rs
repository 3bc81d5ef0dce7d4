//! Deliveries to a server that plays a script: see [`script`].

mod ending;
mod extensions;
mod login;
mod pacing;
mod script;
mod sessions;
mod tls;

use std::time::Duration;

use script::Server;

use super::*;
use crate::message::{BodyKind, Mailbox, Origin, Recipient};

impl Delivery {
    /// Next hops that a test scripts. The settings give their domains and their retry schedule.
    pub(crate) fn scripted(
        hops: Vec<(Settings, Arc<dyn NextHop>)>,
        before: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let settings: Vec<_> = hops.iter().map(|(settings, _)| settings.clone()).collect();
        Ok(Self::of(hops, Routes::new(&settings)?, before))
    }
}

/// Settings of a next hop with long timeouts: a test that reaches one of them has failed.
fn hop(addresses: &[String]) -> SmtpSettings {
    SmtpSettings {
        lmtp: false,
        addresses: addresses.to_vec(),
        tls: TlsMode::Off,
        tls_ca: None,
        username: None,
        password_file: None,
        connections: 2,
        pace: true,
        idle: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(10),
        command_timeout: Duration::from_secs(60),
        data_timeout: Duration::from_secs(300),
        hostname: "me".to_owned(),
    }
}

fn named(name: &str, domain: &str, kind: Kind) -> Settings {
    Settings::sample(name, &[domain], kind)
}

fn delivery(settings: SmtpSettings) -> Delivery {
    Delivery::new(vec![named("hop", "*", Kind::Smtp(settings))], None).expect("next hop")
}

/// A message from a@x to these recipients, with one header field that the relay adds.
fn mail(to: &[&str], content: &'static [u8]) -> Outbound {
    let recipients = to
        .iter()
        .map(|text| Recipient::from(Mailbox::parse(text).expect("mailbox")));
    Outbound {
        id: MessageId::new(),
        envelope: Arc::new(Envelope {
            reverse_path: Mailbox::parse("a@x").expect("mailbox").into(),
            recipients: recipients.collect(),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("test"),
        }),
        prefix: Bytes::from_static(b"X: y\r\n"),
        content: Content::uncharged(content),
        delivered: DeliveredSender::default(),
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// The outcomes in short: `delivered`, `deferred` or `failed`, and the text.
async fn outcomes(delivery: &Delivery, mail: &Outbound, deadline: Deadline) -> Vec<String> {
    let outcomes = delivery.deliver(mail, deadline).await;
    let short = outcomes.iter().map(|outcome| {
        let word = match outcome {
            Outcome::Delivered(_) => "delivered",
            Outcome::Deferred(_) => "deferred",
            Outcome::Failed(_) => "failed",
        };
        format!("{word} {}", outcome.answer().text)
    });
    short.collect()
}

const CONTENT: &[u8] = b"Subject: s\r\n\r\n.dot\r\nend";

/// The script for one message to b@y on an open connection with PIPELINING.
const ONE_MAIL: &str = "
    C: MAIL FROM:<a@x>
    C: RCPT TO:<b@y>
    C: DATA
    S: 250 m
    S: 250 r
    S: 354 go
    C: X: y
    C: Subject: s
    C:
    C: ..dot
    C: end
    C: .
    S: 250 2.0.0 taken
";

const HELLO: &str = "
    S: 220 hi
    C: EHLO me
    S: 250-hi
    S: 250 PIPELINING
";

fn script(parts: &[&str]) -> String {
    parts.join("\n")
}

/// Each recipient's message goes to its own next hop, all next hops work concurrently, and the outcomes are in envelope order.
#[tokio::test]
async fn recipients_are_grouped_by_next_hop() {
    let first = Server::start(&[&script(&[
        HELLO,
        "C: MAIL FROM:<a@x>
         C: RCPT TO:<b@one.example>
         C: RCPT TO:<d@ONE.example>
         C: DATA
         S: 250 m
         S: 550 5.1.1 who
         S: 250 r
         S: 354 go
         C: X: y
         C: x
         C: .
         S: 250 first",
    ])])
    .await;
    let folder = tempfile::tempdir().expect("folder");
    let path = folder
        .path()
        .join("{local}")
        .to_str()
        .expect("UTF-8")
        .to_owned();
    let delivery = Delivery::new(
        vec![
            named("first", "one.example", Kind::Smtp(hop(&[first.address()]))),
            named("second", "two.example", Kind::Maildir { path }),
        ],
        None,
    )
    .expect("next hops");
    let mail = mail(
        &[
            "b@one.example",
            "c@two.example",
            "d@ONE.example",
            "e@three.example",
        ],
        b"x\r\n",
    );
    assert_eq!(
        outcomes(&delivery, &mail, soon()).await,
        [
            "failed RCPT: 550 5.1.1 who",
            "delivered 2.0.0 written to the Maildir",
            "delivered end of data: 250 first",
            "deferred 4.4.4 no next hop takes three.example: add it, or \"*\" for all, to the domains of a [[next_hop]]"
        ]
    );
    first.finished().await;
    assert_eq!(
        delivery.route("ONE.example").map(|hop| &*hop.name),
        Some("first")
    );
    assert_eq!(delivery.route("three.example"), None);
}

/// The error for unusable settings comes at the start and not with the first message, and it names the setting.
#[test]
fn unusable_settings_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "\n").expect("file");
    let good = hop(&["mail.example.com:25".to_owned()]);
    for (settings, expected) in [
        (
            SmtpSettings {
                addresses: vec!["nowhere".into()],
                ..good.clone()
            },
            "\"nowhere\" is not an address",
        ),
        (
            SmtpSettings {
                addresses: Vec::new(),
                ..good.clone()
            },
            "has no address",
        ),
        (
            SmtpSettings {
                tls: TlsMode::Verified,
                tls_ca: Some(file.clone()),
                ..good.clone()
            },
            "contains no certificate",
        ),
        (
            SmtpSettings {
                tls: TlsMode::Verified,
                tls_ca: Some("/nowhere/ca.pem".into()),
                ..good.clone()
            },
            "/nowhere/ca.pem",
        ),
        (
            SmtpSettings {
                tls: TlsMode::Verified,
                addresses: vec!["unix:/x".into()],
                ..good.clone()
            },
            "has no host name",
        ),
        (
            SmtpSettings {
                username: Some("u".into()),
                ..good.clone()
            },
            "belong together",
        ),
        (
            SmtpSettings {
                username: Some("u".into()),
                password_file: Some(file),
                ..good.clone()
            },
            "must hold one line",
        ),
        (
            SmtpSettings {
                username: Some("u".into()),
                password_file: Some("/nowhere/pw".into()),
                ..good
            },
            "/nowhere/pw",
        ),
    ] {
        let error =
            Delivery::new(vec![named("hop", "*", Kind::Smtp(settings))], None).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

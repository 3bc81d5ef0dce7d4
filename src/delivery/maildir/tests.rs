use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::message::{BodyKind, MessageId, Origin, Recipient};

fn outbound(to: &[&str], content: &'static [u8]) -> Outbound {
    let recipients = to
        .iter()
        .map(|text| Recipient::from(Mailbox::parse(text).expect("mailbox")));
    Outbound {
        id: MessageId::new(),
        envelope: Arc::new(Envelope {
            reverse_path: Mailbox::parse("a@example.com").expect("mailbox").into(),
            recipients: recipients.collect(),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("test"),
        }),
        prefix: Bytes::from_static(b"Received: by me\r\n"),
        content: Content::uncharged(content),
    }
}

fn maildir(folder: &Path) -> Maildir {
    let path = folder.join("{domain}/{local}");
    Maildir::new("local".into(), path.to_str().expect("UTF-8")).expect("maildir")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("folder");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

/// What lies in the Maildir is the message with the lines of final delivery before it (RFC 5321 4.4), line ends LF,
/// readable by its owner alone, and nothing is left in `tmp`.
#[tokio::test]
async fn a_message_lands_in_new() {
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(
        &["bob@Example.ORG", "eve@example.org"],
        b"Subject: x\r\n\r\n.a\r\nb",
    );
    let deadline = Deadline::after(Duration::from_secs(60));
    let outcomes = maildir(folder.path())
        .deliver(&mail, vec![0, 1], deadline)
        .await;
    assert!(
        outcomes
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Delivered(_))),
        "{outcomes:?}"
    );
    let bob = folder.path().join("example.org/bob");
    let found = files(&bob.join("new"));
    assert_eq!(found.len(), 1);
    assert_eq!(
        std::fs::read_to_string(&found[0]).expect("file"),
        "Return-Path: <a@example.com>\nDelivered-To: bob@Example.ORG\nReceived: by me\nSubject: x\n\n.a\nb"
    );
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(
        (mode(&found[0]), mode(&bob), mode(&bob.join("new"))),
        (0o600, 0o700, 0o700)
    );
    assert_eq!(files(&bob.join("tmp")), Vec::<PathBuf>::new());
    assert_eq!(files(&folder.path().join("example.org/eve/new")).len(), 1);
}

/// No address leaves its place in the tree, means something to the file system, or shares another's folder.
#[test]
fn hostile_names_stay_in_their_place() {
    let mut seen = std::collections::HashSet::new();
    let long = format!("{}@{}", "%".repeat(64), "ä.".repeat(60) + "x");
    for text in [
        "a@example.org",
        "../../etc/passwd@example.org",
        "..@..",
        "a@.example.org",
        ".a@example.org",
        "a/b@example.org",
        "a%2Fb@example.org",
        "a_b@example.org",
        "\"a b\"@example.org",
        "{domain}@example.org",
        "a\\b@example.org",
        "a@[192.0.2.1]",
        "a@x/../y",
        "postmaster",
        &long,
    ] {
        let mailbox = Mailbox::parse(text).expect(text);
        let folder = folder("/mail/{domain}/{local}", &mailbox);
        let parts: Vec<_> = folder.components().collect();
        assert_eq!(parts.len(), 4, "{text}: {folder:?}");
        assert!(folder.starts_with("/mail"), "{text}: {folder:?}");
        for part in parts.iter().skip(2) {
            let name = part.as_os_str().to_str().expect("UTF-8");
            assert!(
                !name.starts_with('.') && name.len() <= 255,
                "{text}: {name}"
            );
            assert!(!name.contains(['{', '\\', ' ']), "{text}: {name}");
        }
        assert!(seen.insert(folder.clone()), "{text} shares {folder:?}");
    }
}

/// A disk that does not take the message is our trouble, not the sender's: deferred, never failed.
#[tokio::test]
async fn trouble_with_the_disk_defers() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("example.org"), "in the way").expect("file");
    let mail = outbound(&["a@example.org", "a@example.net"], b"x\r\n");
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut outcomes = maildir(folder.path())
        .deliver(&mail, vec![0, 1], deadline)
        .await;
    outcomes.sort_by_key(|(at, _)| *at);
    assert!(
        matches!(&outcomes[0].1, Outcome::Deferred(answer) if answer.text.starts_with("4.3.0"))
    );
    assert!(matches!(&outcomes[1].1, Outcome::Delivered(_)));
}

/// After the deadline nobody waits, and nothing appears in the Maildir any more: it would be delivered twice.
#[tokio::test(start_paused = true)]
async fn an_abandoned_delivery_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(&["a@example.org"], b"x\r\n");
    let deadline = Deadline::after(Duration::ZERO);
    let outcomes = maildir(folder.path())
        .deliver(&mail, vec![0], deadline)
        .await;
    assert!(matches!(&outcomes[0].1, Outcome::Deferred(_)));
    let job = Job {
        envelope: mail.envelope.clone(),
        recipients: vec![0],
        prefix: mail.prefix.clone(),
        content: mail.content.clone(),
        template: folder
            .path()
            .join("{local}")
            .to_str()
            .expect("UTF-8")
            .into(),
        host: "h".into(),
        shared: Arc::new(JobState::default()),
    };
    drop(Waiting(job.shared.clone()));
    assert!(job.deliver(&mail.envelope.recipients[0].mailbox).is_err());
    for inner in ["tmp", "new"] {
        assert_eq!(files(&folder.path().join("a").join(inner)).len(), 0);
    }
}

/// One mailbox for everybody is a mistake in the template.
#[test]
fn a_template_needs_the_local_part() {
    assert!(matches!(
        Maildir::new("local".into(), "/mail/{domain}"),
        Err(BuildError::SharedMaildir(..))
    ));
}

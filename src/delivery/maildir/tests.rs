use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Barrier, Once};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

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
        delivered: DeliveredSender::default(),
    }
}

fn maildir(folder: &Path) -> Maildir {
    let path = folder.join("{domain}/{local}");
    Maildir::new("local".into(), path.to_str().expect("UTF-8")).expect("maildir")
}

/// A job that writes into a Maildir below `folder` with the recipient's local-part as its name.
fn job(mail: &Outbound, folder: &Path) -> Job {
    Job {
        envelope: mail.envelope.clone(),
        at: 0,
        maildir: folder.join(mail.envelope.recipients[0].mailbox.local_part()),
        mailbox: mail.envelope.recipients[0].mailbox.clone(),
        prefix: mail.prefix.clone(),
        content: mail.content.clone(),
        host: "h".into(),
        disk: Disk::REAL,
        shared: Arc::new(JobState::default()),
        delivered: DeliveredSender::default(),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("folder");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

/// The file in the Maildir is the message after the header fields of final delivery (RFC 5321 4.4), with LF line ends
/// and readable by its owner only; `tmp` is empty.
#[tokio::test]
async fn a_message_lands_in_new() {
    let folder = tempfile::tempdir().expect("folder");
    let (sender, mut receiver) = DeliveredSender::channel(2);
    let mut mail = outbound(
        &["bob@Example.ORG", "eve@example.org"],
        b"Subject: x\r\n\r\n.a\r\nb",
    );
    mail.delivered = sender;
    let deadline = Deadline::after(Duration::from_secs(60));
    let outcomes = maildir(folder.path())
        .write_files(&mail, vec![0, 1], deadline)
        .await;
    assert!(
        outcomes
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Delivered(_))),
        "{outcomes:?}"
    );
    let mut reports: Vec<_> = (0..2).filter_map(|_| receiver.try_recv().ok()).collect();
    reports.sort_by_key(|report| report.at);
    assert_eq!(reports.len(), 2);
    let outcome = |at: usize| outcomes.iter().find(|(other, _)| *other == at);
    for (at, report) in reports.iter().enumerate() {
        let text = outcome(at).map(|(_, outcome)| &outcome.answer().text);
        assert_eq!(
            (report.at, Some(&report.text)),
            (at, text),
            "as in the outcome"
        );
    }
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

/// No address leaves its place in the folder tree, has a special meaning for the file system, or shares a folder with
/// another address.
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
        "\"/../\"@example.org",
        "\"<>\"@example.org",
        "\"\"@example.org",
        "..@example.org",
        &format!("{}@example.org", "l".repeat(400)),
        "a@x/../y",
        "postmaster",
        &long,
    ] {
        // An earlier version may have stored what is no mailbox today.
        let mailbox: Mailbox = serde_json::from_value((*text).into()).expect(text);
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

/// Routes compare the canonical form of an address, so whoever reads a mailbox finds the mail of all its spellings in one
/// folder.
#[test]
fn all_spellings_of_a_mailbox_have_one_folder() {
    for text in [
        "bob@example.org",
        "Bob@Example.ORG",
        "bob@example.org.",
        "\"bob\"@example.org",
        "\"b\\ob\"@example.org",
    ] {
        let mailbox = Mailbox::parse(text).expect(text);
        let folder = folder("/mail/{domain}/{local}", &mailbox);
        assert_eq!(folder, Path::new("/mail/example.org/bob"), "{text}");
    }
}

/// A disk error is a problem of this relay, not of the sender: the outcome is deferred, never failed.
#[tokio::test]
async fn a_disk_error_defers() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("example.org"), "in the way").expect("file");
    let mail = outbound(&["a@example.org", "a@example.net"], b"x\r\n");
    let deadline = Deadline::after(Duration::from_secs(60));
    let mut outcomes = maildir(folder.path())
        .write_files(&mail, vec![0, 1], deadline)
        .await;
    outcomes.sort_by_key(|(at, _)| *at);
    assert!(
        matches!(&outcomes[0].1, Outcome::Deferred(answer) if answer.text.starts_with("4.3.0"))
    );
    assert!(matches!(&outcomes[1].1, Outcome::Delivered(_)));
}

/// After the deadline no file appears in the Maildir: the retry would deliver a duplicate.
#[tokio::test(start_paused = true)]
async fn an_abandoned_delivery_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(&["a@example.org"], b"x\r\n");
    let deadline = Deadline::after(Duration::ZERO);
    let outcomes = maildir(folder.path())
        .write_files(&mail, vec![0], deadline)
        .await;
    assert!(matches!(&outcomes[0].1, Outcome::Deferred(_)));
    let job = job(&mail, folder.path());
    drop(Waiting(job.shared.clone()));
    assert!(job.deliver().is_err());
    for inner in ["tmp", "new"] {
        assert_eq!(files(&folder.path().join("a").join(inner)).len(), 0);
    }
}

/// A folder that cannot be read cannot be synced. The delivery detects this before the rename; otherwise each retry
/// would add another copy.
#[test]
fn a_folder_that_cannot_be_synced_is_left_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let new = folder.path().join("a/new");
    make_maildir(&folder.path().join("a")).expect("a Maildir");
    std::fs::set_permissions(&new, Permissions::from_mode(0o300)).expect("permissions");
    let mail = outbound(&["a@example.org"], b"x\r\n");
    let job = job(&mail, folder.path());
    let result = std::thread::spawn(move || {
        // Permissions do not restrict root while root has its capabilities.
        let none = CapabilitySet::empty();
        let sets = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        set_capabilities(None, sets).expect("none are always allowed");
        job.deliver()
    });
    let error = result.join().expect("no panic").expect_err("not readable");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    std::fs::set_permissions(&new, Permissions::from_mode(0o700)).expect("permissions");
    for inner in ["tmp", "new"] {
        assert_eq!(files(&folder.path().join("a").join(inner)).len(), 0);
    }
}

/// A message in the Maildir is delivered. A disk that cannot sync the rename does not undo the delivery; otherwise each
/// retry would add another copy.
#[tokio::test]
async fn a_renamed_message_is_delivered() {
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(&["a@example.org"], b"x\r\n");
    let maildir = Maildir {
        disk: Disk {
            sync: |_| Err(io::Error::other("told to")),
            ..Disk::REAL
        },
        ..maildir(folder.path())
    };
    let deadline = Deadline::after(Duration::from_secs(60));
    let outcomes = maildir.write_files(&mail, vec![0], deadline).await;
    assert!(
        matches!(outcomes[..], [(0, Outcome::Delivered(_))]),
        "{outcomes:?}"
    );
    assert_eq!(files(&folder.path().join("example.org/a/new")).len(), 1);
}

/// Synchronizes the writing thread with a test: the thread stops at a step for the first time until the test continues.
struct Meeting(Barrier, Once);

impl Meeting {
    const fn new() -> Self {
        Self(Barrier::new(2), Once::new())
    }

    fn pause(&self) {
        self.1.call_once(|| {
            self.0.wait();
            self.0.wait();
        });
    }

    async fn step(&'static self) {
        let wait = tokio::task::spawn_blocking(move || self.0.wait());
        wait.await.expect("it comes");
    }
}

/// If the deadline passes during a rename, the delivery waits for the result of the rename and starts no other write.
#[tokio::test(start_paused = true)]
async fn a_message_renamed_at_the_deadline_is_delivered() {
    static MEETING: Meeting = Meeting::new();
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(&["a@example.org", "b@example.org"], b"x\r\n");
    let maildir = Maildir {
        disk: Disk {
            rename: |tmp, new, name| {
                MEETING.pause();
                (Disk::REAL.rename)(tmp, new, name)
            },
            ..Disk::REAL
        },
        writers: Arc::new(Semaphore::new(1)),
        ..maildir(folder.path())
    };
    let minute = Duration::from_secs(60);
    let mut delivery = pin!(maildir.write_files(&mail, vec![0, 1], Deadline::after(minute)));
    assert_eq!(delivery.as_mut().now_or_never(), None);
    MEETING.step().await;
    tokio::time::advance(minute).await;
    let early = delivery.as_mut().now_or_never();
    MEETING.step().await;
    assert_eq!(early, None, "the file is being renamed");
    let outcomes = delivery.await;
    assert!(
        matches!(
            outcomes[..],
            [(0, Outcome::Delivered(_)), (1, Outcome::Deferred(_))]
        ),
        "{outcomes:?}"
    );
    assert!(!folder.path().join("example.org/b").exists());
}

/// A message in the Maildir is delivered even if the sync takes longer than the delivery waits.
#[tokio::test(start_paused = true)]
async fn a_renamed_message_is_delivered_even_if_its_sync_is_slow() {
    static MEETING: Meeting = Meeting::new();
    let folder = tempfile::tempdir().expect("folder");
    let mail = outbound(&["a@example.org", "b@example.org"], b"x\r\n");
    let maildir = Maildir {
        disk: Disk {
            sync: |_| {
                MEETING.pause();
                Ok(())
            },
            ..Disk::REAL
        },
        writers: Arc::new(Semaphore::new(1)),
        ..maildir(folder.path())
    };
    let minute = Duration::from_secs(60);
    let mut delivery = pin!(maildir.write_files(&mail, vec![0, 1], Deadline::after(minute)));
    assert_eq!(delivery.as_mut().now_or_never(), None);
    MEETING.step().await;
    tokio::time::advance(minute).await;
    let mut outcomes = delivery.as_mut().now_or_never();
    if outcomes.is_none() {
        tokio::time::advance(LAST_RENAME_GRACE).await;
        outcomes = delivery.as_mut().now_or_never();
    }
    MEETING.step().await;
    let outcomes = outcomes.expect("the delivery waits no longer");
    assert!(
        matches!(
            outcomes[..],
            [(0, Outcome::Delivered(_)), (1, Outcome::Deferred(_))]
        ),
        "{outcomes:?}"
    );
}

/// A user who replaces `new` by another kind of file or a link gets no mail there: the folder is opened without
/// blocking and without following links, the mail is deferred, and no writer hangs.
#[test]
fn a_fifo_or_a_link_in_place_of_a_folder_gets_no_mail() {
    let folder = tempfile::tempdir().expect("folder");
    let maildir = folder.path().join("a");
    let (new, elsewhere) = (maildir.join("new"), folder.path().join("elsewhere"));
    make_maildir(&maildir).expect("a Maildir");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let mail = outbound(&["a@example.org"], b"x\r\n");
    std::fs::remove_dir(&new).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, &new, Mode::RUSR | Mode::WUSR).expect("a FIFO");
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let job = || job(&mail, folder.path());
    let at_fifo = job();
    std::thread::spawn(move || tell.send(at_fifo.deliver().is_err()));
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(true));
    std::fs::remove_file(&new).expect("removed");
    std::os::unix::fs::symlink(&elsewhere, &new).expect("a link");
    assert!(job().deliver().is_err());
    for inner in [elsewhere, maildir.join("tmp")] {
        assert_eq!(files(&inner), Vec::<PathBuf>::new());
    }
}

/// Writers that hang in one Maildir (a mount whose server does not answer) keep only their places in that Maildir.
/// Later deliveries there wait for a place; all other deliveries continue, including other recipients of the same
/// message.
#[tokio::test(start_paused = true)]
async fn a_maildir_that_hangs_does_not_stop_the_others() {
    /// Blocks the first writers until the test arrives, and counts the writers.
    static HANG: Barrier = Barrier::new(MAILDIR_WRITERS_MAX + 1);
    static IN_IT: AtomicU64 = AtomicU64::new(0);
    /// Releases the writers, also if the test fails.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            HANG.wait();
        }
    }
    let folder = tempfile::tempdir().expect("folder");
    let maildir = Arc::new(Maildir {
        // The test can block only this operation; an `open` that hangs has the same effect.
        disk: Disk {
            sync: |_| {
                if IN_IT.fetch_add(1, Ordering::SeqCst) < MAILDIR_WRITERS_MAX as u64 {
                    HANG.wait();
                }
                Ok(())
            },
            ..Disk::REAL
        },
        writers: Arc::new(Semaphore::new(MAILDIR_WRITERS_MAX + 1)),
        ..maildir(folder.path())
    });
    let minute = Duration::from_secs(60);
    for _ in 0..2 * MAILDIR_WRITERS_MAX {
        let (maildir, mail) = (maildir.clone(), outbound(&["a@example.org"], b"x\r\n"));
        let deadline = Deadline::after(minute);
        tokio::spawn(async move { maildir.write_files(&mail, vec![0], deadline).await });
    }
    while IN_IT.load(Ordering::SeqCst) < MAILDIR_WRITERS_MAX as u64 {
        tokio::task::yield_now().await;
    }
    let release = Release;
    tokio::time::advance(minute * 2).await;
    let mail = outbound(&["a@example.org", "b@example.org"], b"x\r\n");
    let mut delivery = pin!(maildir.write_files(&mail, vec![0, 1], Deadline::after(minute)));
    let [a, b] = ["a", "b"].map(|name| folder.path().join("example.org").join(name).join("new"));
    while !b.is_dir() || files(&b).is_empty() {
        assert_eq!(delivery.as_mut().now_or_never(), None);
        tokio::task::yield_now().await;
    }
    while maildir.writers.available_permits() < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        files(&a).len(),
        MAILDIR_WRITERS_MAX,
        "no further writer has started"
    );
    drop(release);
    let outcomes = delivery.await;
    assert!(
        outcomes
            .iter()
            .all(|(_, o)| matches!(o, Outcome::Delivered(_))),
        "{outcomes:?}"
    );
}

/// A template without the local-part would give all recipients one mailbox, so it is rejected.
#[test]
fn a_template_needs_the_local_part() {
    assert!(matches!(
        Maildir::new("local".into(), "/mail/{domain}"),
        Err(BuildError::SharedMaildir(..))
    ));
}

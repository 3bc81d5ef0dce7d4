//! A store that fails: clear errors, 4xx to senders, nothing lost, the rest of the mail flows.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::Client;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::{cli, command};
use crate::sink;
use spillway::store::{Filter, Lane};

const MALWARE_TO_HOLD: &str = "Subject: to be held\r\n\r\n";

fn to_be_held() -> Vec<u8> {
    let mut content = MALWARE_TO_HOLD.as_bytes().to_vec();
    content.extend(samples::eicar());
    content.extend(b"\r\n");
    content
}

/// Less free space than the reserve: mail that is stored first gets 452 at RCPT, before its content is sent for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_disk_reserve_mail_that_is_stored_first_gets_452() {
    let site = Site::new();
    // More than any disk has.
    let queue = "[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\nmode = \"queue\"\n";
    let config = format!("[store]\ndisk_reserve = \"1000TiB\"\n{queue}");
    let relay = site.start(&config).await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let reply = client.ask("MAIL FROM:<a@a.test>").await.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
    let reply = client.ask("RCPT TO:<b@b.test>").await.expect("a reply");
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
}

/// The same for mail that is delivered inside its session: clean mail goes on, to one recipient at a time, and what would
/// have to be held gets 452 after its content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_disk_reserve_mail_that_needs_no_storing_goes_on() {
    let site = Site::new();
    let relay = site.start("[store]\ndisk_reserve = \"1000TiB\"\n").await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let clean = b"Subject: x\r\n\r\nx\r\n";
    for _ in 0..3 {
        let reply = client
            .send("a@a.test", &["b@b.test"], clean)
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert_eq!(site.delivered().len(), 3);
    let reply = client
        .send("a@a.test", &["b@b.test", "c@b.test"], clean)
        .await
        .expect("a reply");
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    let mut client = Client::open(relay.address()).await.expect("connect");
    let reply = client
        .send("a@a.test", &["b@b.test"], &to_be_held())
        .await
        .expect("a reply");
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    let store = relay.running.pipeline().store();
    let [.., held, _] = store.stats().await.expect("stats");
    assert_eq!(held.messages, 0);
}

/// A full quarantine refuses what would be held, and nothing else; the relay stays ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_quarantine_refuses_what_would_be_held() {
    let site = Site::new();
    let limits = "[limits]\nmessage_size = \"32KiB\"\n[quarantine]\nmax_bytes = \"64KiB\"\n";
    let relay = site.start(limits).await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let mut held = 0;
    let reply = loop {
        let reply = client
            .send("a@a.test", &["b@b.test"], &to_be_held())
            .await
            .expect("a reply");
        if !reply.starts_with("250") {
            break reply;
        }
        held += 1;
        assert!(held < 64, "more than there is room for");
    };
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(held > 4, "{held}");
    let clean = client.send("a@a.test", &["b@b.test"], b"Subject: x\r\n\r\nx\r\n");
    let reply = clean.await.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
    let pipeline = relay.running.pipeline();
    pipeline.store().accepts().expect("ready");
}

/// A folder that nobody can write to, and one that is a file: the relay does not start, and says which and why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_store_is_named_at_the_start() {
    let site = Site::new();
    std::fs::write(site.path().join("not-a-folder"), "x").expect("a file");
    let path = site.configure("[store]\npath = \"not-a-folder/store\"\n");
    let config =
        spillway::config::load(Some(&path)).unwrap_or_else(|problems| panic!("{problems}"));
    let error = match spillway::app::start(config, Some(path)).await {
        Ok(_) => panic!("started without a store"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("not-a-folder"), "{error}");
}

/// A database file that is no database is never replaced by an empty one: the relay does not start, and says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_database_is_named_and_kept() {
    let site = Site::new();
    let path = site.configure("");
    let relay = site.start("").await;
    assert!(relay.running.drain().await);
    let database = std::fs::read_dir(site.path().join("spillway-data"))
        .expect("the store")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name == "spillway.db"))
        .expect("a database file");
    std::fs::write(&database, b"this is not a database, it is a text of more than a hundred octets, so that SQLite looks at it").expect("write");
    let config =
        spillway::config::load(Some(&path)).unwrap_or_else(|problems| panic!("{problems}"));
    let error = match spillway::app::start(config, Some(path)).await {
        Ok(_) => panic!("started on a malformed database"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(&database.display().to_string()), "{error}");
    assert!(
        std::fs::read(&database)
            .expect("still there")
            .starts_with(b"this is not")
    );
}

/// Held mail of which one body file is missing and one row is unreadable: both are named, the third is listed and can be
/// released, and new mail flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_messages_do_not_harm_the_others() {
    let site = Site::new();
    let relay = site
        .start("[store]\ninline_limit = \"1KiB\"\ndisk_reserve = \"1MiB\"\n")
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    for extra in [0, 100, 200] {
        let mut content = to_be_held();
        content.extend(b"0123456789012345678901234567890123456789\r\n".repeat(extra));
        let reply = client
            .send("a@a.test", &["b@b.test"], &content)
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    let store = relay.running.pipeline().store().clone();
    let held = || async {
        let filter = Filter {
            lanes: vec![Lane::Held],
            limit: 10,
            ..Filter::default()
        };
        store.search(filter).await.expect("search")
    };
    assert_eq!(held().await.len(), 3);
    let largest = held()
        .await
        .into_iter()
        .max_by_key(|r| r.size)
        .expect("three")
        .id;
    command(
        "find",
        &[
            &site.path().join("spillway-data").display().to_string(),
            "-name",
            &format!("{largest}*"),
            "-delete",
        ],
    );
    let error = store
        .content(largest)
        .await
        .expect_err("its body is gone")
        .to_string();
    assert!(error.contains(&largest.to_string()), "{error}");
    assert_eq!(held().await.len(), 2, "it is set aside");
    let reply = client
        .send("a@a.test", &["b@b.test"], b"Subject: x\r\n\r\nx\r\n")
        .await
        .expect("a reply");
    assert!(reply.contains("delivered"), "{reply}");
    let other = held().await[0].id.to_string();
    let config = site.path().join("spillway.toml");
    cli(&config, &["quarantine", "release", &other, "--yes"]);
    eventually("released", async || {
        (site.delivered().len() == 2).then_some(())
    })
    .await;
}

/// A Maildir that cannot be written: the message is kept here and arrives when the Maildir is mended; its sender was told
/// 250 once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_that_fails_delays_and_loses_nothing() {
    let site = Site::new();
    let blocked = site.path().join("blocked");
    std::fs::write(&blocked, "a file where a folder should be").expect("a file");
    let relay = site
        .start(
            "[[next_hop]]\nname = \"local\"\ndomains = [\"*\"]\nkind = \"maildir\"\npath = \"../blocked/{local}\"\nretry_first = \"1s\"\nretry_max = \"1s\"\n",
        )
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let reply = client
        .send("a@a.test", &["b@b.test"], b"Subject: x\r\n\r\nx\r\n")
        .await
        .expect("a reply");
    assert!(reply.starts_with("250 2.0.0 Ok: accepted as"), "{reply}");
    std::fs::remove_file(&blocked).expect("mended");
    std::fs::create_dir(&blocked).expect("mended");
    std::fs::set_permissions(&blocked, std::fs::Permissions::from_mode(0o700)).expect("mended");
    eventually("delivered in the end", async || {
        std::fs::read_dir(blocked.join("b/new"))
            .is_ok_and(|mut found| found.next().is_some())
            .then_some(())
    })
    .await;
}

static OPEN: AtomicBool = AtomicBool::new(false);

fn closed_at_first(_: u64) -> Option<&'static str> {
    (!OPEN.load(Ordering::Relaxed)).then_some("451 4.3.0 closed")
}

/// When a next hop comes back, its whole backlog follows at the pace it can take, and each message arrives once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_drains_when_its_next_hop_is_back() {
    const BACKLOG: usize = 100;
    let (hop, got) = sink::start(closed_at_first).await;
    let site = Site::new();
    let relay = site
        .start(&format!(
            "[[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n\
             retry_first = \"1s\"\nretry_max = \"1s\"\n"
        ))
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    for number in 0..BACKLOG {
        let content = format!("X-Test-Id: {number}\r\n\r\nx\r\n");
        let reply = client
            .send("a@a.test", &["b@b.test"], content.as_bytes())
            .await
            .expect("a reply");
        assert!(reply.contains("accepted as"), "{reply}");
    }
    OPEN.store(true, Ordering::Relaxed);
    eventually("the backlog is gone", async || {
        let [scan, delivery, ..] = relay
            .running
            .pipeline()
            .store()
            .stats()
            .await
            .expect("counts");
        (scan.messages + delivery.messages == 0).then_some(())
    })
    .await;
    let mut ids = got.ids();
    assert_eq!(ids.len(), BACKLOG);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), BACKLOG, "each once");
}

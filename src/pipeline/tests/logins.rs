//! Mail for a next hop that refuses the relay's login: how often the relay logs in, and what becomes of the mail.

use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::pacing::stored;
use super::*;

/// Starts a server that refuses every login, and counts the logins.
async fn refusing() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let logins = Arc::<AtomicUsize>::default();
    let count = logins.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut line, mut reply) = (String::new(), "220 hi\r\n");
                while stream.write_all(reply.as_bytes()).await.is_ok() {
                    line.clear();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        break;
                    }
                    reply = "250-hi\r\n250 AUTH PLAIN\r\n";
                    if line.starts_with("AUTH") {
                        count.fetch_add(1, Ordering::Relaxed);
                        reply = "535 5.7.8 no\r\n";
                    }
                }
            });
        }
    });
    (address, logins)
}

/// However much mail waits for a next hop that refuses our login, the first minute has one login, and the first hour fewer
/// than lock an account. All mail is kept.
#[tokio::test(start_paused = true)]
async fn waiting_mail_costs_one_login_a_minute_at_most() {
    const WAITING: usize = 100;
    let (address, logins) = refusing().await;
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "wrong").expect("a file");
    let hop = HopSettings {
        name: "provider".into(),
        kind: Kind::Smtp(SmtpSettings {
            username: Some("u".to_owned()),
            password_file: Some(password),
            connections: 20,
            ..smtp(address, Duration::from_secs(60))
        }),
        ..maildir_hop()
    };
    let mut generation = generation(Vec::new(), Budget::default());
    generation.delivery = Delivery::new(vec![hop], None).expect("a next hop");
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation, &store);
    for record in stored(&pipeline, "x@provider.test", WAITING) {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    let mut seen = Vec::new();
    for until in [59, 3600] {
        let end = Deadline::after(Duration::from_secs(until));
        while !end.passed() {
            tokio::time::advance(Duration::from_millis(250)).await;
        }
        seen.push(logins.load(Ordering::Relaxed));
    }
    let records = store.all();
    assert_eq!(records.len(), WAITING, "all mail is kept");
    assert!(
        records
            .iter()
            .any(|record| record.status.contains("535 5.7.8 no"))
    );
    assert_eq!(seen[0], 1, "in the first minute");
    assert!((3..=7).contains(&seen[1]), "in an hour: {seen:?}");
    closing.cancel();
}

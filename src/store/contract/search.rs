//! Laws about reads of many records: searches and counts.

use super::{at, octets, record};
use crate::message::{Mailbox, MessageId};
use crate::store::{Change, Filter, Lane, Store};

pub(super) async fn search_matches_every_field(store: &dyn Store) {
    let mut wanted = record(Lane::Held);
    wanted.received_at = at(50);
    let spelled = Mailbox::parse("\"q\\uote\"@xn--bcher-kva.example").expect("mailbox");
    wanted.envelope.recipients.push(spelled.into());
    let mut other = record(Lane::Delivery);
    other.received_at = at(60);
    other.expires_at = at(2000);
    other.envelope.reverse_path = Default::default();
    let nobody = Mailbox::parse("nobody@x.example").expect("mailbox");
    other.envelope.recipients = vec![nobody.into()];
    other.subject = "ÄRGER".to_owned();
    other.decision = None;
    other.reports = Vec::new();
    store
        .put(vec![wanted.clone()], octets(100))
        .await
        .expect("put");
    store
        .put(vec![other.clone()], octets(5000))
        .await
        .expect("put");
    let find = async |filter: Filter| -> Vec<MessageId> {
        let found = store
            .search(Filter {
                limit: 10,
                ..filter
            })
            .await;
        found
            .expect("search")
            .iter()
            .map(|record| record.id)
            .collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let any = Filter::default;
    assert_eq!(find(any()).await, [other.id, wanted.id], "newest first");
    assert_eq!(find(Filter { offset: 1, ..any() }).await, [wanted.id]);
    assert_eq!(
        find(Filter {
            subject: text("ärg"),
            ..any()
        })
        .await,
        [other.id]
    );
    let prefix = |id: MessageId, length: usize| Some(id.to_string()[..length].to_owned());
    for (id, length, found) in [
        (wanted.id, 26, vec![wanted.id]),
        (other.id, 25, vec![other.id]),
        (wanted.id, 1, vec![other.id, wanted.id]),
    ] {
        let filter = || Filter {
            id_prefix: prefix(id, length),
            ..any()
        };
        assert_eq!(find(filter()).await, found, "{length} characters of an id");
        let limited = Filter {
            limit: 1,
            ..filter()
        };
        let count = store.count(limited).await.expect("count");
        assert_eq!(count, found.len() as u64, "a count has no limit");
    }
    for lanes in [
        vec![],
        vec![Lane::Held],
        vec![Lane::Held, Lane::Scan, Lane::Delivery],
    ] {
        let base = || Filter {
            lanes: lanes.clone(),
            ..any()
        };
        for (what, filter) in [
            (
                "rule",
                Filter {
                    reason: text("policy.malware"),
                    ..base()
                },
            ),
            (
                "reason",
                Filter {
                    reason: text("FOUND eicar"),
                    ..base()
                },
            ),
            (
                "engine that found",
                Filter {
                    engine: text("clamd"),
                    ..base()
                },
            ),
            (
                "engine without answer",
                Filter {
                    engine: text("Rspamd"),
                    ..base()
                },
            ),
            (
                "finding",
                Filter {
                    finding: text("eicar-t"),
                    ..base()
                },
            ),
            (
                "sender",
                Filter {
                    sender: text("sender@ONE"),
                    ..base()
                },
            ),
            (
                "another spelling of the sender",
                Filter {
                    sender: text("\"s\\ender\"@ONE.example."),
                    ..base()
                },
            ),
            (
                "another spelling of a recipient",
                Filter {
                    recipient: text("quote@bücher.ex"),
                    ..base()
                },
            ),
            (
                "a recipient as received",
                Filter {
                    recipient: text("\"q\\UOTE\"@XN--"),
                    ..base()
                },
            ),
            (
                "recipient",
                Filter {
                    recipient: text("rita@"),
                    ..base()
                },
            ),
            (
                "subject",
                Filter {
                    subject: text("REPORT"),
                    ..base()
                },
            ),
            (
                "before",
                Filter {
                    before: Some(at(60)),
                    ..base()
                },
            ),
            (
                "size",
                Filter {
                    size: Some(100..5000),
                    ..base()
                },
            ),
            (
                "expired",
                Filter {
                    expired: Some(at(1000)),
                    ..base()
                },
            ),
        ] {
            assert_eq!(find(filter).await, [wanted.id], "{what} in {lanes:?}");
        }
        for (what, filter) in [
            (
                "part of an engine's name",
                Filter {
                    engine: text("clam"),
                    ..base()
                },
            ),
            (
                "an engine that is content",
                Filter {
                    engine: text("rules"),
                    ..base()
                },
            ),
            (
                "a wildcard is no wildcard",
                Filter {
                    sender: text("%"),
                    ..base()
                },
            ),
            (
                "not expired",
                Filter {
                    expired: Some(at(999)),
                    ..base()
                },
            ),
        ] {
            assert_eq!(find(filter).await, [], "{what} in {lanes:?}");
        }
    }
    assert_eq!(
        find(Filter {
            after: Some(at(60)),
            ..any()
        })
        .await,
        [other.id]
    );
}

pub(super) async fn lanes_are_counted(store: &dyn Store) {
    let mut old = record(Lane::Held);
    old.received_at = at(-7);
    store
        .put(vec![record(Lane::Held)], octets(10))
        .await
        .expect("put");
    store.put(vec![old], octets(300_000)).await.expect("put");
    store
        .put(vec![record(Lane::Scan)], octets(5))
        .await
        .expect("put");
    store
        .put(vec![record(Lane::Rescan)], octets(6))
        .await
        .expect("put");
    let [scan, delivery, held, rescan] = store.stats().await.expect("stats");
    assert_eq!(
        (scan.messages, scan.octets, scan.oldest),
        (1, 5, Some(at(0)))
    );
    assert_eq!(store.unjudged().await.expect("count"), 1);
    assert_eq!(
        (delivery.messages, delivery.octets, delivery.oldest),
        (0, 0, None)
    );
    assert_eq!(
        (held.messages, held.octets, held.oldest),
        (2, 300_010, Some(at(-7)))
    );
    assert_eq!(
        (rescan.messages, rescan.octets, rescan.oldest),
        (1, 6, Some(at(0)))
    );
}

pub(super) async fn the_oldest_message_of_each_next_hop_is_known(store: &dyn Store) {
    let waits = |next_hop: &str, received| {
        let mut record = record(Lane::Delivery);
        record.next_hop = next_hop.into();
        record.received_at = at(received);
        record
    };
    let records = [
        waits("b", 5),
        waits("a", 7),
        waits("b", 3),
        waits("", 9),
        waits("a", 8),
    ];
    for record in &records {
        let put = store.put(vec![record.clone()], octets(4));
        put.await.expect("put");
    }
    store
        .put(vec![record(Lane::Held)], octets(4))
        .await
        .expect("put");
    let oldest = async || {
        let oldest = store.oldest_outgoing().await.expect("oldest");
        let name = |(hop, received): (std::sync::Arc<str>, _)| (hop.to_string(), received);
        oldest.into_iter().map(name).collect::<Vec<_>>()
    };
    let expected = |b| {
        [
            (String::new(), at(9)),
            ("a".to_owned(), at(7)),
            ("b".to_owned(), at(b)),
        ]
    };
    assert_eq!(oldest().await, expected(3));
    store
        .change(records[2].id, Change::Remove, None)
        .await
        .expect("remove");
    assert_eq!(oldest().await, expected(5));
}

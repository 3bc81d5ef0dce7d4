//! Tests with lists that work, and lists that fail.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::message::{Content, ReversePath};
use crate::scan::ScanRequest;
use crate::scan::engine::tests::name_server::{NameServer, Says};
use crate::scan::tests::request;
use crate::verdict::Reason;

const TEXT: &str =
    "Subject: x\r\n\r\nsee http://www.bad.example.com/ and https://good.example.org/\r\n";

fn list(server: &NameServer, ask: &[Question]) -> DnsList {
    let answer = |listed, kind, score, name: &str| DnsAnswer {
        listed,
        kind,
        score,
        name: name.to_owned(),
    };
    let net = |text: &str| text.parse().expect("a network");
    DnsList {
        zone: "list.test".to_owned(),
        ask: ask.to_vec(),
        answers: vec![
            answer(
                Listed::In(net("127.0.0.2/32")),
                FindingKind::Spam,
                5.0,
                "listed",
            ),
            answer(Listed::Bits(64), FindingKind::Phishing, 8.0, "phishing"),
        ],
        errors: vec![net("127.255.255.0/24"), net("127.0.0.1/32")],
        max_names: 2,
        test_listed: None,
        test_unlisted: None,
        servers: NameServers {
            addresses: vec![server.address],
            patience: Duration::from_millis(200),
        },
    }
}

fn mail(client: [u8; 4], change: impl FnOnce(&mut ScanRequest)) -> Sample {
    let mut request = request(TEXT, Duration::from_secs(60));
    Arc::make_mut(&mut request.envelope).origin.client = client.into();
    change(&mut request);
    crate::scan::tests::sampled(request)
}

async fn ask(list: &DnsList, sample: Sample) -> Result<Vec<(String, FindingKind)>, ScanError> {
    let engine = Arc::new(Dns::new(list).expect("an engine"));
    match engine.scan(sample).await?.answer {
        Answer::Answered(findings) => Ok(findings.into_iter().map(|f| (f.name, f.kind)).collect()),
        other => panic!("{other:?}"),
    }
}

fn named(names: &[(&str, FindingKind)]) -> Vec<(String, FindingKind)> {
    names
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), *kind))
        .collect()
}

/// A listed client gets the finding that the administrator has configured. Other clients get no finding.
#[tokio::test]
async fn a_listed_client_is_found() {
    let server = NameServer::start().await;
    server.has("99.2.0.192.list.test", [127, 0, 0, 2]);
    let list = list(&server, &[Question::Client]);
    let found = ask(&list, mail([192, 0, 2, 99], |_| ()))
        .await
        .expect("an answer");
    assert_eq!(found, named(&[("listed", FindingKind::Spam)]));
    let found = ask(&list, mail([192, 0, 2, 1], |_| ()))
        .await
        .expect("an answer");
    assert_eq!(found, named(&[]));
}

/// The engine asks once about each domain of the sender and of URLs. Bits have the configured meaning, a listing without a
/// meaning is shown, and the finding `names-not-asked` reports domains beyond `max_names`.
#[tokio::test]
async fn domains_of_sender_and_urls_are_asked_about() {
    let server = NameServer::start().await;
    server.has("example.com.list.test", [127, 0, 0, 68]);
    server.has("example.org.list.test", [127, 0, 0, 16]);
    let mut list = list(&server, &[Question::Sender, Question::Url]);
    let found = ask(&list, mail([192, 0, 2, 1], |_| ()))
        .await
        .expect("an answer");
    let all = [
        ("phishing", FindingKind::Phishing),
        ("listed-otherwise", FindingKind::Info),
    ];
    assert_eq!(found, named(&all));
    let mut asked = server.asked();
    asked.sort();
    assert_eq!(asked, ["example.com.list.test", "example.org.list.test"]);
    list.max_names = 1;
    let found = ask(&list, mail([192, 0, 2, 1], |_| ()))
        .await
        .expect("an answer");
    let all = [
        ("phishing", FindingKind::Phishing),
        ("names-not-asked", FindingKind::Info),
    ];
    assert_eq!(found, named(&all));
}

/// The relay asks no list about its own users and private networks, and the finding `not-asked` shows that nothing was asked.
#[tokio::test]
async fn own_users_and_private_networks_are_not_asked_about() {
    let server = NameServer::start().await;
    let list = list(&server, &[Question::Client, Question::Sender]);
    let null = |request: &mut ScanRequest| {
        Arc::make_mut(&mut request.envelope).reverse_path = ReversePath::NULL;
    };
    let user = |request: &mut ScanRequest| {
        null(request);
        Arc::make_mut(&mut request.envelope).origin.user = Some("u".to_owned());
    };
    for sample in [mail([10, 0, 0, 1], null), mail([192, 0, 2, 99], user)] {
        let found = ask(&list, sample).await.expect("an answer");
        let neither = [("not-asked", FindingKind::Info); 2];
        assert_eq!(found, named(&neither));
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

/// P4: text that was not searched for domains makes the answer incomplete, unless a domain in the searched text is listed.
#[tokio::test]
async fn unsearched_text_is_not_clean() {
    let server = NameServer::start().await;
    let list = list(&server, &[Question::Url]);
    let long = format!("{TEXT}{}", "x\r\n".repeat(2 << 20));
    let deep = "Content-Type: message/rfc822\r\n\r\n".repeat(100) + TEXT;
    for listed in [false, true] {
        for text in [&long, &deep] {
            let sample = mail([192, 0, 2, 1], |request| {
                request.content = Content::uncharged(text.clone());
            });
            let engine = Arc::new(Dns::new(&list).expect("an engine"));
            let answer = engine.scan(sample).await.expect("an answer").answer;
            let is_missing = matches!(
                answer,
                Answer::None {
                    reason: Reason::LimitsReached,
                    ..
                }
            );
            // No text of the deep message is searched.
            let found = listed && text == &long;
            assert_eq!(is_missing, !found, "{answer:?}");
        }
        server.has("example.com.list.test", [127, 0, 0, 2]);
    }
}

/// P4: every failure of a list is a missing answer with its reason, and never "not listed". A listing of another name counts
/// all the same.
#[tokio::test]
async fn a_question_without_an_answer_is_not_clean() {
    let faults = [
        (Says::ServFail, Reason::EngineError),
        (Says::Refused, Reason::EngineError),
        (Says::Nothing, Reason::Unreachable),
        (Says::WrongId, Reason::Unreachable),
        (Says::Garbage, Reason::Unreachable),
        (
            Says::Addresses(vec![[198, 51, 100, 7].into()]),
            Reason::Garbage,
        ),
        (
            Says::Addresses(vec![[127, 255, 255, 254].into()]),
            Reason::EngineError,
        ),
        (
            Says::Addresses(vec![[127, 0, 0, 1].into()]),
            Reason::EngineError,
        ),
    ];
    for (fault, reason) in faults {
        let server = NameServer::start().await;
        server.says("example.com.list.test", fault.clone());
        let list = list(&server, &[Question::Url]);
        let error = ask(&list, mail([192, 0, 2, 1], |_| ()))
            .await
            .expect_err("no answer");
        assert_eq!(error.reason(), reason, "{fault:?}: {error}");
        assert!(error.to_string().len() < 500, "{error}");
        server.has("example.org.list.test", [127, 0, 0, 2]);
        let found = ask(&list, mail([192, 0, 2, 1], |_| ()))
            .await
            .expect("an answer");
        assert_eq!(found, named(&[("listed", FindingKind::Spam)]), "{fault:?}");
    }
    let gone = NameServer::start().await;
    let mut list = list(&gone, &[Question::Url]);
    // A reserved port where no server listens.
    list.servers.addresses = vec![([127, 0, 0, 1], 1).into()];
    let error = ask(&list, mail([192, 0, 2, 1], |_| ()))
        .await
        .expect_err("no answer");
    assert_eq!(error.reason(), Reason::Unreachable, "{error}");
}

/// RFC 5782 5: a list must contain the first test point and must not contain the second. Probes never use the cache, so that a
/// dead list fails its probe before its cached answers expire.
#[tokio::test]
async fn test_points_detect_a_dead_list_and_a_list_of_everything() {
    for (question, bad, clean) in [
        (
            Question::Client,
            "2.0.0.127.list.test",
            "1.0.0.127.list.test",
        ),
        (Question::Url, "test.list.test", "invalid.list.test"),
    ] {
        let server = NameServer::start().await;
        let list = list(&server, &[question]);
        let engine = Arc::new(Dns::new(&list).expect("an engine"));
        let probe = async |probe| {
            let sample = mail([127, 0, 0, 1], |_| ()).as_probe(probe);
            let answer = engine.clone().scan(sample).await.expect("an answer").answer;
            let Answer::Answered(findings) = answer else {
                panic!("{answer:?}");
            };
            findings.iter().any(|f| f.kind.is_objection())
        };
        server.has(bad, [127, 0, 0, 2]);
        assert!(
            probe(Probe::Bad).await && !probe(Probe::Clean).await,
            "alive"
        );
        server.has(clean, [127, 0, 0, 2]);
        assert!(probe(Probe::Clean).await, "lists everything");
        server.says(bad, Says::Addresses(Vec::new()));
        assert!(!probe(Probe::Bad).await, "dead");
    }
}

/// The engine keeps an answer for its TTL, so it does not ask the list again for each message of a flood.
#[tokio::test]
async fn answers_are_cached() {
    let server = NameServer::start().await;
    server.has("99.2.0.192.list.test", [127, 0, 0, 2]);
    let list = list(&server, &[Question::Client]);
    let engine = Arc::new(Dns::new(&list).expect("an engine"));
    for client in [
        [192, 0, 2, 99],
        [192, 0, 2, 99],
        [192, 0, 2, 1],
        [192, 0, 2, 1],
    ] {
        engine
            .clone()
            .scan(mail(client, |_| ()))
            .await
            .expect("an answer");
    }
    assert_eq!(server.asked().len(), 2, "{:?}", server.asked());
}

/// A list can be made without a runtime: the check of a configuration makes engines outside any runtime.
#[test]
fn a_list_can_be_made_without_a_runtime() {
    let servers = NameServers {
        addresses: vec![([127, 0, 0, 1], 1).into()],
        patience: Duration::from_secs(1),
    };
    servers.caching().expect("a resolver");
}

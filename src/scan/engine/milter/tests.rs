//! Tests against a scripted filter. The integration tests use real filters.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::packet::{OFFERED_ACTIONS, OFFERED_STEPS, PROTOCOL_VERSION, append};
use super::*;
use crate::message::edit::{self, Edit, FieldPosition, Wanted};
use crate::message::{Mailbox, RequestedEdit, Rights};
use crate::scan::tests::{sample, sampled};

/// Packets of a filter after one event. The last packet is the reply to the event.
type Says = Vec<(u8, Vec<u8>)>;

/// Packets after the nth event of a command; `None` for `continue`.
type Script = fn(u8, usize) -> Option<Says>;

/// Packets that the filter got: commands with their data. The data of macros begins with the command of their event.
type Told = Arc<Mutex<Vec<(u8, Vec<u8>)>>>;

const MAIL: &[u8] = b"From: a@a.test\r\nSubject:\ttwo\r\n lines\r\n\r\nbody\r\n";

fn packet(command: u8, data: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    append(&mut octets, command, &[data]);
    octets
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// Starts a filter with these terms. It continues at each event, unless the script has packets for the event.
async fn filter(terms: Vec<u8>, script: Script) -> (Arc<Milter>, Told) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = Address::Socket(listener.local_addr().expect("address"));
    let told = Told::default();
    let heard = told.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            heard.lock().expect("told").push((b'*', Vec::new()));
            let (mut inbox, mut seen) = (Vec::new(), [0_usize; 256]);
            loop {
                while let Ok(Some(next)) = split(&inbox) {
                    let (command, data) = (next.command, next.data);
                    let octets = next.octets;
                    heard.lock().expect("told").push((command, data.to_vec()));
                    inbox.drain(..octets);
                    let count = seen[usize::from(command)];
                    seen[usize::from(command)] += 1;
                    let says = match command {
                        b'O' => vec![(b'O', terms.clone())],
                        b'D' | b'K' | b'Q' | b'A' => Vec::new(),
                        _ => script(command, count).unwrap_or(vec![(b'c', Vec::new())]),
                    };
                    for (command, data) in says {
                        let _ = stream.write_all(&packet(command, &data)).await;
                    }
                }
                if stream.read_buf(&mut inbox).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        }
    });
    let settings = MilterSettings {
        hostname: "relay.test".to_owned(),
        bad_kind: FindingKind::Policy,
        bad_score: 7.0,
        tempfail: TempFail::NoAnswer,
        probe_with: ProbeWith::Nothing,
        connect_timeout: Duration::from_secs(60),
    };
    let milter = Milter::new(&address, &settings).expect("an engine");
    (Arc::new(milter), told)
}

fn everything() -> Vec<u8> {
    numbers(&[PROTOCOL_VERSION, OFFERED_ACTIONS, 0])
}

async fn ask(milter: &Arc<Milter>, content: &[u8]) -> Result<EngineAnswer, ScanError> {
    milter.clone().scan(sample(content.to_vec())).await
}

/// The reason if the answer is missing, and the findings.
fn said(answer: &EngineAnswer) -> Vec<String> {
    let (findings, reason) = match &answer.answer {
        Answer::Answered(findings) => (findings, None),
        Answer::None {
            findings, reason, ..
        } => (findings, Some(format!("no answer: {}", reason.as_str()))),
    };
    let one = |f: &Finding| {
        let detail = f.detail.as_deref().unwrap_or_default();
        format!("{} {} {} {detail}", f.kind.as_str(), f.name, f.score)
            .trim_end()
            .to_owned()
    };
    reason.into_iter().chain(findings.iter().map(one)).collect()
}

/// A filter that wants everything gets a whole session, in the order of SMTP, each event with its macros. The content is
/// split as mail servers split it.
#[tokio::test]
async fn a_filter_gets_the_session_and_the_message() {
    let (milter, told) = filter(everything(), |_, _| None).await;
    let answer = ask(&milter, MAIL).await.expect("an answer");
    assert!(said(&answer).is_empty());
    let told = told.lock().expect("told");
    let events: String = told
        .iter()
        .map(|(c, _)| char::from(*c))
        .filter(|c| *c != 'D')
        .collect();
    assert!(events.starts_with("*OCHMRTLLNBE"), "{events}");
    let of = |command: u8| -> Vec<String> {
        let those = told.iter().filter(|(c, _)| *c == command);
        those
            .map(|(_, data)| String::from_utf8_lossy(data).replace('\0', "|"))
            .collect()
    };
    assert_eq!(of(b'L'), ["From|a@a.test|", "Subject|\ttwo\n lines|"]);
    assert_eq!(of(b'B'), ["body\r\n"]);
    assert_eq!(of(b'R'), ["<recipient@example.org>|"]);
    let macros = of(b'D');
    let with = |stage: &str, text: &str| {
        let found = macros
            .iter()
            .any(|m| m.starts_with(stage) && m.contains(text));
        assert!(found, "{stage} {text}: {macros:?}");
    };
    with("C", "j|relay.test|");
    with("M", "{mail_addr}|");
    with("R", "{rcpt_addr}|recipient@example.org|");
    with("E", "i|");
}

/// The relay's host name completes the bare postmaster address, because some filters do not accept an address without a
/// domain.
#[tokio::test]
async fn a_filter_gets_no_address_without_a_domain() {
    let (milter, told) = filter(everything(), |_, _| None).await;
    let mut request = sample(MAIL).request().clone();
    let envelope = Arc::make_mut(&mut request.envelope);
    let postmaster = Mailbox::parse("postmaster").expect("a mailbox");
    envelope.reverse_path = postmaster.clone().into();
    envelope.recipients = vec![postmaster.into()];
    milter.scan(sampled(request)).await.expect("an answer");
    let told = told.lock().expect("told");
    let said = |command: u8, text: &str| {
        let data = |data: &Vec<u8>| String::from_utf8_lossy(data).replace('\0', "|");
        let mut those = told.iter().filter(|(c, _)| *c == command);
        assert!(
            those.any(|(_, d)| data(d).contains(text)),
            "{text}: {told:?}"
        );
    };
    said(b'M', "<postmaster@relay.test>|");
    said(b'R', "<postmaster@relay.test>|");
    said(
        b'D',
        "{mail_addr}|postmaster@relay.test|{mail_host}|relay.test|",
    );
    said(
        b'D',
        "{rcpt_addr}|postmaster@relay.test|{rcpt_host}|relay.test|",
    );
}

/// The relay does not send events that the filter leaves out, and does not wait for replies that the filter leaves out. A
/// filter may choose its macros, and the space after the colon.
#[tokio::test]
async fn terms_are_kept() {
    let mut terms = numbers(&[
        PROTOCOL_VERSION,
        0,
        OFFERED_STEPS & !(1 << 5) & !(1 << 4) & !0x400,
        0,
    ]);
    terms.extend_from_slice(b"{client_addr} i nonsense\0");
    let (milter, told) = filter(terms, |command, _| {
        // The filter has left out the replies to these events.
        matches!(command, b'L' | b'B').then(Vec::new)
    })
    .await;
    ask(&milter, MAIL).await.expect("an answer");
    let told = told.lock().expect("told");
    let events: String = told
        .iter()
        .map(|(c, _)| char::from(*c))
        .filter(|c| *c != 'D')
        .collect();
    assert!(events.starts_with("*OLLBE"), "{events}");
    let of = |first: &[u8]| {
        told.iter()
            .find(|(_, d)| d.starts_with(first))
            .expect("there")
            .1
            .clone()
    };
    assert_eq!(of(b"From"), b"From\0 a@a.test\0");
    let macros = String::from_utf8_lossy(&of(b"C")).into_owned();
    assert!(
        macros.contains("{client_addr}\0") && macros.contains("i\0"),
        "{macros}"
    );
    assert!(!macros.contains("j\0"), "{macros}");
}

/// Each reply has its meaning, at each event. Only continue and accept mean that the filter found nothing.
#[tokio::test]
async fn replies_are_reported_and_not_obeyed() {
    let reject: &[&str] = &["policy reject 7"];
    let cases: [(Script, &[&str]); 9] = [
        (|c, _| (c == b'H').then(|| vec![(b'a', vec![])]), &[]),
        (|c, _| (c == b'M').then(|| vec![(b'r', vec![])]), reject),
        (
            |c, _| (c == b'B').then(|| vec![(b'p', vec![]), (b'r', vec![])]),
            reject,
        ),
        (
            |c, _| (c == b'E').then(|| vec![(b't', vec![])]),
            &["no answer: engine-error"],
        ),
        (
            |c, _| (c == b'N').then(|| vec![(b'd', vec![])]),
            &["policy discard 7"],
        ),
        (
            |c, _| (c == b'E').then(|| vec![(b'y', b"554 5.7.1 100%% spam\0".to_vec())]),
            &["policy reject 7 554 5.7.1 100% spam"],
        ),
        (
            |c, _| (c == b'E').then(|| vec![(b'y', b"451 4.7.1 later\0".to_vec())]),
            &["no answer: engine-error"],
        ),
        (
            |c, _| (c == b'E').then(|| vec![(b'q', b"odd\0".to_vec()), (b'c', vec![])]),
            &["policy quarantine 7 odd"],
        ),
        // The message has one recipient, so the filter refuses the message.
        (|c, _| (c == b'R').then(|| vec![(b'r', vec![])]), reject),
    ];
    for (at, (script, expected)) in cases.into_iter().enumerate() {
        let (milter, _) = filter(everything(), script).await;
        let answer = ask(&milter, MAIL)
            .await
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(said(&answer), expected, "{at}");
    }
    let (milter, _) = filter(everything(), |c, _| {
        (c == b'E').then(|| vec![(b'f', vec![])])
    })
    .await;
    let error = ask(&milter, MAIL).await.expect_err("a failure");
    assert_eq!(error.reason(), Reason::EngineError);
}

/// `tempfail` can be a finding of kind `info`, for administrators whose filters greylist.
#[tokio::test]
async fn tempfail_can_be_a_finding() {
    let (milter, _) = filter(everything(), |c, _| {
        (c == b'E').then(|| vec![(b'y', b"451 4.7.1 Greylisted\0".to_vec())])
    })
    .await;
    let mut milter = Arc::into_inner(milter).expect("alone");
    milter.settings.tempfail = TempFail::Info;
    let answer = ask(&Arc::new(milter), MAIL).await.expect("an answer");
    assert_eq!(said(&answer), ["info tempfail 0 451 4.7.1 Greylisted"]);
}

/// A requested field has the position at which a milter puts it. Other requested changes are reported. Rules can match the
/// results in an Authentication-Results field, except those in a comment.
#[tokio::test]
async fn changes_are_requested_edits() {
    let (milter, _) = filter(everything(), |c, _| {
        (c == b'E').then(|| {
            let with = |number: u32, text: &[u8]| [&number.to_be_bytes(), text].concat();
            let results = b"Authentication-Results\0relay.test;\n\tdkim=pass (a; dkim=fail) header.d=a.test;\n\tspf=softfail\0";
            vec![
                (b'i', with(0, results)),
                (b'i', with(1, b"X-A\0 1\0")),
                (b'h', b"X-B\0b\n\tc\0".to_vec()),
                (b'm', with(0, b"Subject\0new\0")),
                (b'm', with(2, b"X-C\0\0")),
                (b'e', b"<x@a.test>\0".to_vec()),
                (b'+', b"<y@a.test>\0".to_vec()),
                (b'2', b"<z@a.test>\0NOTIFY=NEVER\0".to_vec()),
                (b'-', b"<b@b.test>\0".to_vec()),
                (b'b', vec![b'x'; 1000]),
                (b'b', vec![b'x'; 1000]),
                (b'a', vec![]),
            ]
        })
    })
    .await;
    let answer = ask(&milter, MAIL).await.expect("an answer");
    assert_eq!(said(&answer), ["info dkim=pass 0", "info spf=softfail 0"]);
    let told: Vec<String> = answer.wanted.iter().map(Wanted::to_string).collect();
    assert_eq!(
        told[1..],
        [
            "add X-A before field 1: 1",
            "add X-B at the end: b c",
            "change Subject 1: new",
            "remove X-C 2",
            "change the sender to <x@a.test>",
            "add the recipient <y@a.test>",
            "add the recipient <z@a.test> NOTIFY=NEVER",
            "remove the recipient <b@b.test>",
            "replace the body",
        ]
    );
    assert!(matches!(
        &answer.wanted[0],
        Wanted::Field(Edit::Add { place: FieldPosition::Top, value, .. }) if value.contains("\r\n\tspf")
    ));
}

/// A sender may forge any number of results in the relay's name, which the filter asks to remove. The filter's own result
/// still counts, and its own field is added when all forged fields are removed.
#[tokio::test]
async fn forged_fields_do_not_push_out_a_filters_own_result() {
    fn removals(count: u32) -> Says {
        let one = |number: u32| {
            let name = b"Authentication-Results\0\0";
            (b'm', [&number.to_be_bytes()[..], name].concat())
        };
        let own = b"\0\0\0\x01Authentication-Results\0 relay.test;\n\tdkim=pass x=1; dkim=pass; dkim=fail\0";
        let last = [(b'i', own.to_vec()), (b'c', vec![])];
        (1..=count).map(one).chain(last).collect()
    }
    let scripts: [(u32, Script); 3] = [
        (2, |c, _| (c == b'E').then(|| removals(2))),
        (100, |c, _| (c == b'E').then(|| removals(100))),
        (5000, |c, _| (c == b'E').then(|| removals(5000))),
    ];
    for (count, script) in scripts {
        let (milter, _) = filter(everything(), script).await;
        let answer = ask(&milter, MAIL).await.expect("an answer");
        assert_eq!(said(&answer), ["info dkim=pass 0", "info dkim=fail 0"]);
        let requested_edits = edit::grant(answer.wanted, Rights::Fields, false);
        let edits: Vec<Edit> = requested_edits
            .iter()
            .filter_map(RequestedEdit::granted)
            .cloned()
            .collect();
        let forged = "Authentication-Results: relay.test; dkim=pass\r\n".repeat(count as usize);
        let section = edit::rewrite(forged.as_bytes(), &edits).section;
        assert_eq!(
            String::from_utf8_lossy(&section),
            "Authentication-Results: relay.test;\r\n\tdkim=pass x=1; dkim=pass; dkim=fail\r\n",
            "{count}"
        );
    }
}

/// libmilter ends the session at a packet that is too long, so no sender must be able to cause such a packet. The filter has
/// not seen such a message, and is not to blame for the missing answer.
#[tokio::test]
async fn a_field_that_no_filter_takes_is_not_sent() {
    let longest = format!("{}: {}\r\n\r\nx", "n".repeat(33), "v".repeat(65_500));
    let (milter, told) = filter(everything(), |_, _| None).await;
    let answer = ask(&milter, longest.as_bytes()).await.expect("an answer");
    assert!(said(&answer).is_empty(), "it just fits");
    let told = told.lock().expect("told").clone();
    let field = told.iter().find(|(c, _)| *c == b'L').expect("a field");
    assert_eq!(field.1.len(), 65_535);

    let longer = longest.replacen("n:", "nn:", 1);
    let (milter, told) = filter(everything(), |c, _| {
        (c == b'E').then(|| vec![(b'r', vec![])])
    })
    .await;
    let answer = ask(&milter, longer.as_bytes()).await.expect("an answer");
    assert_eq!(said(&answer), ["no answer: limits-reached"]);
    let told = told.lock().expect("told").clone();
    assert!(told.iter().all(|(command, _)| *command != b'L'));

    // This filter leaves out header fields, so it sees all that it wants to see.
    let (milter, _) = filter(numbers(&[PROTOCOL_VERSION, 0, 1 << 5]), |_, _| None).await;
    let answer = ask(&milter, longer.as_bytes()).await.expect("an answer");
    assert!(said(&answer).is_empty());
}

/// Each message has its own connection, so that no reply about one message counts for the next. The filter gets QUIT at the
/// end.
#[tokio::test]
async fn each_message_has_a_connection_of_its_own() {
    let (milter, told) = filter(everything(), |_, _| None).await;
    for _ in 0..2 {
        ask(&milter, MAIL).await.expect("an answer");
    }
    let events = || -> String {
        let told = told.lock().expect("told");
        let all = told.iter().map(|(c, _)| char::from(*c));
        all.filter(|c| "*OEQ".contains(*c)).collect()
    };
    let ended = async {
        while events().len() < 8 {
            tokio::task::yield_now().await;
        }
    };
    let ended = Deadline::after(Duration::from_secs(60)).run(ended).await;
    assert!(ended.is_ok(), "{}", events());
    let events = events();
    assert_eq!(events.matches('*').count(), 2, "{events}");
    assert_eq!(events.matches("EQ").count(), 2, "{events}");
}

/// Terms that were not offered, changes before the end, and unexpected data are garbage.
#[tokio::test]
async fn only_the_protocol_counts() {
    for terms in [
        numbers(&[7, 0, 0]),
        numbers(&[1, 0, 0]),
        numbers(&[PROTOCOL_VERSION, OFFERED_ACTIONS + 1, 0]),
        numbers(&[PROTOCOL_VERSION, 0, 0x800]),
        numbers(&[PROTOCOL_VERSION, 0]),
        [numbers(&[PROTOCOL_VERSION, 0, 0, 1]), b"no end".to_vec()].concat(),
    ] {
        let (milter, _) = filter(terms.clone(), |_, _| None).await;
        let error = ask(&milter, MAIL).await.expect_err("garbage");
        assert_eq!(error.reason(), Reason::Garbage, "{terms:?}");
    }
    let scripts: [Script; 5] = [
        |c, _| (c == b'M').then(|| vec![(b'h', b"X\0y\0".to_vec()), (b'c', vec![])]),
        |c, _| (c == b'E').then(|| vec![(b'c', b"x".to_vec())]),
        |c, _| (c == b'E').then(|| vec![(b'h', b"X\0y".to_vec())]),
        |c, _| (c == b'E').then(|| vec![(b'y', b"250 ok\0".to_vec())]),
        |c, _| (c == b'E').then(|| vec![(b'p', vec![]); 300_000]),
    ];
    for (at, script) in scripts.into_iter().enumerate() {
        let (milter, _) = filter(everything(), script).await;
        let error = ask(&milter, MAIL).await.expect_err("garbage");
        assert_eq!(error.reason(), Reason::Garbage, "{at}");
    }
}

/// A filter gets as body what a mail server takes for the body, so that a sender cannot hide content between two lines that
/// are not fields. No octet of a message can end a packet or a text within it.
#[tokio::test]
async fn nothing_is_hidden_from_a_filter() {
    for (mail, fields, body) in [
        (
            "A: 1\r\nno field\r\nB: 2\r\n\r\nx",
            1,
            "no field\r\nB: 2\r\n\r\nx",
        ),
        ("\r\nonly body", 0, "only body"),
        ("A: 1\r\nB : 2", 2, ""),
        ("A: 1\0B: 2\r\n\r\nx\0y", 1, "x\0y"),
        (": no name\r\n\r\nx", 0, ": no name\r\n\r\nx"),
    ] {
        let (milter, told) = filter(everything(), |_, _| None).await;
        ask(&milter, mail.as_bytes()).await.expect("an answer");
        let told = told.lock().expect("told");
        let those: Vec<_> = told.iter().filter(|(c, _)| *c == b'L').collect();
        assert_eq!(those.len(), fields, "{mail:?}");
        let nuls = |data: &[u8]| data.iter().filter(|b| **b == 0).count();
        assert!(those.iter().all(|(_, data)| nuls(data) == 2), "{mail:?}");
        let seen: Vec<u8> = told
            .iter()
            .filter(|(c, _)| *c == b'B')
            .flat_map(|(_, d)| d.clone())
            .collect();
        assert_eq!(String::from_utf8_lossy(&seen), body, "{mail:?}");
    }
}

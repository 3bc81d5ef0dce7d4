//! Mail through next hops of which some do not work.

use std::collections::BTreeMap;

use metrics::Gauge;

use super::super::mail::Mail;
use super::*;
use crate::deadline::Deadline;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop};
use crate::delivery::{self, Answer, Outbound, Outcome};

/// What a next hop does with mail for each recipient; it keeps what it takes.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Take,
    Defer,
    Refuse,
    Hang,
}

struct Hop {
    name: Arc<str>,
    does: BTreeMap<&'static str, Does>,
    seen: Arc<Mutex<Vec<(String, Outbound)>>>,
}

impl NextHop for Hop {
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        _: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        Box::pin(async move {
            let seen = (self.name.to_string(), mail.clone());
            self.seen.lock().expect("the notes").push(seen);
            let mut outcomes = Vec::new();
            for at in recipients {
                let to = mail.envelope.recipients[at].mailbox.as_str();
                let does = self.does.get(to).or_else(|| self.does.get("*"));
                let answer = || Answer {
                    text: "450 not now".to_owned(),
                    ..Answer::of(&self.name)
                };
                let outcome = match does {
                    Some(Does::Take) => Outcome::Delivered(answer()),
                    Some(Does::Refuse) => Outcome::Failed(answer()),
                    Some(Does::Hang) => {
                        deadline.wait().await;
                        Outcome::Deferred(answer())
                    }
                    Some(Does::Defer) | None => Outcome::Deferred(answer()),
                };
                outcomes.push((at, outcome));
            }
            HopResult {
                outcomes,
                signal: HopSignal::Fine,
                offered: true,
            }
        })
    }
}

struct World {
    mail: Mail,
    seen: Arc<Mutex<Vec<(String, Outbound)>>>,
}

impl World {
    fn new(hops: &[(&str, &[(&'static str, Does)])], from: Option<&str>) -> Self {
        let seen = Arc::<Mutex<_>>::default();
        let mut all: Vec<(delivery::Settings, Arc<dyn NextHop>)> = Vec::new();
        for (name, does) in hops {
            let domain = format!("{name}.test");
            let settings = delivery::Settings::sample(name, &[&domain], delivery::Kind::sample());
            let hop = Hop {
                name: (*name).into(),
                does: does.iter().copied().collect(),
                seen: seen.clone(),
            };
            all.push((settings, Arc::new(hop)));
        }
        let mailbox = |text: &str| Mailbox::parse(text).expect("a mailbox");
        let settings = MailSettings {
            to: vec![mailbox("a@x.test"), mailbox("b@x.test")],
            from: from.map(mailbox),
            next_hops: hops.iter().map(|(name, _)| (*name).into()).collect(),
        };
        let delivery = Delivery::scripted(all, None).expect("next hops");
        let timeout = Duration::from_secs(10);
        Self {
            mail: Mail::new(settings, timeout, "mx.example.com".into(), delivery),
            seen,
        }
    }

    async fn tell(&self, story: Story) -> Result<String, Failure> {
        self.mail.send(&begun(story)).await
    }

    /// The next hops that were asked, with the recipients.
    fn asked(&self) -> Vec<String> {
        let seen = self.seen.lock().expect("the notes");
        let asked = seen.iter().map(|(hop, mail)| {
            let to = mail.envelope.recipients.iter();
            let to: Vec<&str> = to.map(|to| to.mailbox.local_part()).collect();
            format!("{hop} {}", to.join(","))
        });
        asked.collect()
    }
}

use Does::{Defer, Hang, Refuse, Take};

/// Mail about a broken next hop does not wait for it: the others are asked first. It is the last resort all the same.
#[tokio::test(start_paused = true)]
async fn a_broken_next_hop_is_asked_last() {
    let world = World::new(&[("one", &[("*", Take)]), ("two", &[("*", Take)])], None);
    assert_eq!(
        world.tell(about_next_hop("one")).await,
        Ok("mail taken by next hop two".to_owned())
    );
    assert_eq!(world.asked(), ["two a,b"]);
    let world = World::new(&[("one", &[("*", Take)]), ("two", &[("*", Defer)])], None);
    let told = world.tell(about_next_hop("one")).await;
    assert_eq!(told, Ok("mail taken by next hop one".to_owned()));
    assert_eq!(world.asked(), ["two a,b", "one a,b"]);
    assert!(world.tell(story(1)).await.is_ok());
    assert_eq!(world.asked()[2..], ["one a,b"], "the order of the file");
}

/// A next hop that hangs costs its timeout, and the next one has the mail. Nobody gets it twice.
#[tokio::test(start_paused = true)]
async fn each_recipient_gets_it_once() {
    let some: &[(&'static str, Does)] = &[("a@x.test", Take), ("b@x.test", Hang)];
    let world = World::new(&[("one", some), ("two", &[("*", Take)])], None);
    let began = tokio::time::Instant::now();
    assert_eq!(
        world.tell(story(1)).await,
        Ok("mail taken by next hop one, two".to_owned())
    );
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert_eq!(world.asked(), ["one a,b", "two b"]);
    let world = World::new(&[("one", some)], None);
    let told = world.tell(story(1)).await.expect("somebody has it");
    assert!(told.starts_with(
        "mail taken by next hop one, but not for all: mail by next hop one to b@x.test:"
    ));
}

/// Mail that every next hop refuses for good is not tried again; any other failure is.
#[tokio::test(start_paused = true)]
async fn only_a_passing_failure_is_tried_again() {
    let world = World::new(
        &[("one", &[("*", Refuse)]), ("two", &[("*", Refuse)])],
        None,
    );
    assert!(matches!(
        world.tell(story(1)).await,
        Err(Failure::Lasting(_))
    ));
    let world = World::new(&[("one", &[("*", Refuse)]), ("two", &[("*", Defer)])], None);
    assert!(matches!(
        world.tell(story(1)).await,
        Err(Failure::Passing(_))
    ));
}

/// The mail cannot loop, nobody can forge a field of it, and any mail program reads it.
#[tokio::test(start_paused = true)]
async fn the_mail_is_mail() {
    for (from, path) in [(None, ""), (Some("relay@x.test"), "relay@x.test")] {
        let world = World::new(&[("one", &[("*", Take)])], from);
        let title = "Grüße\r\nBcc: eve@a.test\r\n\r\nno end of it ".repeat(20);
        let told = Story {
            title: title.clone(),
            ..story(1)
        };
        world.tell(told).await.expect("told");
        let seen = world.seen.lock().expect("the notes");
        let mail = &seen[0].1;
        assert_eq!(mail.envelope.reverse_path.as_str(), path);
        let text = String::from_utf8(mail.content.bytes().to_vec()).expect("text");
        assert!(text.is_ascii() && !text.replace("\r\n", "").contains(['\r', '\n']));
        assert!(text.split("\r\n").all(|line| line.len() <= 100), "{text}");
        let parsed = mail_parser::MessageParser::default().parse(&text);
        let parsed = parsed.expect("a message");
        let field = |name: &'static str| parsed.header_raw(name).map(str::trim);
        assert_eq!(field("Auto-Submitted"), Some("auto-generated"));
        assert_eq!(field("Bcc"), None);
        assert!(field("Date").is_some() && parsed.message_id().is_some());
        let subject = parsed.subject().expect("a subject");
        assert!(
            subject.starts_with("[spillway mx.example.com] begin: engine clamd: Grüße\\r\\nBcc")
        );
        let body = parsed.body_text(0).expect("a text");
        assert!(body.contains("Grüße\\r\\nBcc") && body.contains("spillway incident show "));
    }
}

//! Tests of the paths of MAIL and RCPT.

use proptest::prelude::*;

use super::*;
use crate::message::address::MAILBOX_OCTETS_MAX;

fn said(arguments: &str) -> String {
    match forward(arguments.as_bytes()) {
        Ok((mailbox, rest)) => format!("{mailbox}|{}", String::from_utf8_lossy(rest)),
        Err(PathError::Malformed) => "malformed".to_owned(),
        Err(PathError::Mailbox(why)) => format!("{why:?}"),
    }
}

/// RFC 5321 4.1.2: the path ends at its bracket, or at a space if it has none, quotes hide both, and a space or nothing follows.
#[test]
fn a_path_ends_where_every_reader_ends_it() {
    for (arguments, expected) in [
        (" TO:<a@b>", "a@b|"),
        (" TO:<a@b> X=1", "a@b| X=1"),
        (" to:a@b X=1", "a@b| X=1"),
        (" To : <a@b>\tX", "a@b|\tX"),
        (" TO:<\"a>b\"@c> X", "\"a>b\"@c| X"),
        (" TO:<\"a\\\">b\"@c>", "\"a\\\">b\"@c|"),
        (" TO:\"a b\"@c X", "\"a b\"@c| X"),
        (" TO:<Postmaster>", "Postmaster|"),
        (" TO:postmaster", "postmaster|"),
        (" TO:<@x,@y.test:a@b>", "a@b|"),
        (" TO:<@[IPv6:::1]:a@b>", "a@b|"),
        ("", "malformed"),
        (" TO", "malformed"),
        (" TO:", "malformed"),
        (" TO: ", "malformed"),
        (" TO<a@b>", "malformed"),
        (" FROM:<a@b>", "malformed"),
        (" TO:<a@b", "malformed"),
        (" TO:<\"a@b>", "malformed"),
        (" TO:\"a@b", "malformed"),
        (" TO:<a@b>junk", "malformed"),
        (" TO:<a@b>SIZE=3", "malformed"),
        (" TO:<<a@b>>", "malformed"),
        (" TO:<<a@b>", "Syntax"),
        (" TO:<a@b >", "a@b|"),
        (" TO:< a@b > X", "a@b| X"),
        (" TO:< @x:a@b>", "a@b|"),
        (" TO:<a b@c>", "Syntax"),
        (" TO:<>", "Syntax"),
        (" TO:@x:a@b", "Syntax"),
        (" TO:<@x:>", "Syntax"),
        (" TO:<@x>", "Syntax"),
        (" TO:<@:a@b>", "Syntax"),
        (" TO:<@x,:a@b>", "Syntax"),
        (" TO:<@x,y:a@b>", "Syntax"),
        (" TO:<@x:@y:a@b>", "Syntax"),
        (" TO:<@[IPv6:::1:a@b>", "Syntax"),
    ] {
        assert_eq!(said(arguments), expected, "{arguments}");
    }
}

/// RFC 5321 4.5.5: bounces go to a sender unless the path is `<>` and nothing else.
#[test]
fn only_two_brackets_are_the_null_sender() {
    let null = |arguments: &str| reverse(arguments.as_bytes()).map(|(path, _)| path.is_null());
    assert_eq!(null(" FROM:<>"), Ok(true));
    assert_eq!(null(" FROM: <> X"), Ok(true));
    assert_eq!(null(" FROM:<a@b>"), Ok(false));
    for arguments in [
        " FROM:< >",
        " FROM:<@a:>",
        " FROM:<@a,@b:>",
        " FROM:\"\"",
        " FROM:<\"\">",
    ] {
        assert!(null(arguments).is_err(), "{arguments}");
    }
}

/// Octets that mean something in a path, and text around them.
fn noise() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-c.]{1,4}",
        4 => proptest::sample::select(vec![
            "@", "<", ">", "\"", "\\", ":", ",", " ", "\t", "[", "]", "-", "_", "%", "(", ";", "\r", "\n", "\0",
            "\u{7f}", "\u{fc}", "\u{85}", "\u{202e}", "\u{3002}", "IPv6:::1", "192.0.2.1", "@b.test", "\"a b\"",
        ]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// What is passed on is what came: an accepted mailbox stands in the path letter by letter, after the source route.
    #[test]
    fn an_accepted_path_is_the_text_between_its_brackets(text in noise()) {
        let arguments = format!(" TO:<{text}> X");
        if let Ok((mailbox, rest)) = forward(arguments.as_bytes()) {
            let inner = arguments[..arguments.len() - rest.len() - 1].trim_end();
            let route = inner.strip_suffix(mailbox.as_str()).expect("the end of the path");
            let route = route.strip_prefix(" TO:<").expect("its beginning").trim_start();
            prop_assert!(route.is_empty() || (route.starts_with('@') && route.ends_with(':')));
        }
    }

    /// An accepted path printed again is accepted as the same, here and by the next server.
    #[test]
    fn an_accepted_path_is_accepted_again(text in noise()) {
        for written in [format!(" TO:<{text}>"), format!(" TO:{text}")] {
            if let Ok((mailbox, _)) = forward(written.as_bytes()) {
                let again = format!(" TO:<{mailbox}> X");
                prop_assert_eq!(forward(again.as_bytes()), Ok((mailbox, &b" X"[..])));
            }
        }
    }

    /// No accepted mailbox can end a command, a header field, a log line or its own brackets.
    #[test]
    fn an_accepted_mailbox_ends_nothing(text in noise()) {
        if let Ok((mailbox, _)) = forward(format!(" TO:<{text}>").as_bytes()) {
            let text = mailbox.as_str();
            prop_assert!(text.len() <= MAILBOX_OCTETS_MAX);
            prop_assert!(!text.contains(char::is_control));
            let plain = mailbox.local_part().starts_with('"') || !text.contains(['<', '>', ' ', '"', ',']);
            prop_assert!(plain && !mailbox.domain().contains(['<', '>', ' ', '"', ',', '@']));
        }
    }
}

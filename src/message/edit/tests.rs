//! Which edits are granted, and their effect on a header section.

use super::*;

fn add(place: FieldPosition, name: &str, value: &str) -> Edit {
    Edit::Add {
        place,
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn change(name: &str, nth: u32, value: &str) -> Edit {
    Edit::Change {
        name: name.to_owned(),
        nth,
        value: value.to_owned(),
    }
}

fn remove(name: &str, nth: Option<u32>) -> Edit {
    Edit::Remove {
        name: name.to_owned(),
        nth,
    }
}

fn rewritten(section: &str, edits: &[Edit]) -> (String, String) {
    let Rewritten { top, section } = rewrite(section.as_bytes(), edits);
    let text = |octets| String::from_utf8(octets).expect("text");
    (text(top), text(section))
}

const SECTION: &str =
    "Received: by a\r\n\tfor b\r\nX-A: 1\r\nsubject: hello\r\nx-a: 2\r\n folded\r\nX-A:3\r\n";

/// Each edit changes only the field that it names, counted as received.
#[test]
fn each_edit_changes_what_it_names_and_nothing_else() {
    for (edit, from, to) in [
        (change("X-A", 2, "two"), "x-a: 2\r\n folded", "x-a: two"),
        (
            change("SUBJECT", 1, "x\r\n\ty"),
            "subject: hello",
            "subject: x\r\n\ty",
        ),
        (change("x-a", 1, "\ty"), "X-A: 1", "X-A:\ty"),
        (remove("x-A", Some(2)), "x-a: 2\r\n folded\r\n", ""),
        (remove("x-A", Some(9)), "", ""),
        (remove("nothing", None), "", ""),
        (
            add(FieldPosition::Before(1), "N", "v"),
            "Received: by a",
            "N: v\r\nReceived: by a",
        ),
        (
            add(FieldPosition::Before(3), "N", "v"),
            "subject",
            "N: v\r\nsubject",
        ),
        (
            add(FieldPosition::Before(6), "N", "v"),
            "X-A:3\r\n",
            "X-A:3\r\nN: v\r\n",
        ),
        (
            add(FieldPosition::End, "N", "v"),
            "X-A:3\r\n",
            "X-A:3\r\nN: v\r\n",
        ),
        (change("X-A", 4, "v"), "X-A:3\r\n", "X-A:3\r\nX-A: v\r\n"),
    ] {
        let (top, section) = rewritten(SECTION, std::slice::from_ref(&edit));
        assert_eq!(section, SECTION.replacen(from, to, 1), "{edit}");
        assert_eq!(top, "", "{edit}");
    }
    let (_, section) = rewritten(SECTION, &[remove("X-A", None)]);
    assert_eq!(section, "Received: by a\r\n\tfor b\r\nsubject: hello\r\n");
}

/// Positions count the fields of the message as received, so that engines that do not know each other do not change each
/// other's fields. If two edits concern one field, the later one applies.
#[test]
fn edits_do_not_move_each_other() {
    let edits = [
        remove("X-A", Some(1)),
        remove("X-A", Some(2)),
        add(FieldPosition::Before(2), "N", "first"),
        add(FieldPosition::Before(2), "N", "second"),
        change("x-a", 3, "three"),
        change("Subject", 1, "early"),
        change("Subject", 1, "late"),
        add(FieldPosition::Top, "T", "1"),
        add(FieldPosition::Top, "T", "2"),
        add(FieldPosition::End, "E", "1"),
        add(FieldPosition::End, "E", "2"),
    ];
    let (top, section) = rewritten(SECTION, &edits);
    assert_eq!(top, "T: 2\r\nT: 1\r\n");
    assert_eq!(
        section,
        "Received: by a\r\n\tfor b\r\nN: second\r\nN: first\r\nsubject: late\r\nX-A: three\r\nE: 1\r\nE: 2\r\n"
    );
    let all_but_one = [remove("X-A", None), change("X-A", 2, "kept")];
    let (_, section) = rewritten(SECTION, &all_but_one);
    assert_eq!(
        section,
        "Received: by a\r\n\tfor b\r\nsubject: hello\r\nx-a: kept\r\n"
    );
}

/// A header section that is empty, has no end, or has lines that some readers take for its end: an added field is a field to
/// every reader.
#[test]
fn an_added_field_is_a_field_for_every_reader() {
    for (section, edited) in [
        ("", "N: v\r\n"),
        ("A: b", "A: b\r\nN: v\r\n"),
        (
            "A: b\r\nno field\r\nC: d\r\n",
            "A: b\r\nN: v\r\nno field\r\nC: d\r\n",
        ),
        ("no field at all", "N: v\r\nno field at all\r\n"),
        // The first line continues a line above the message.
        (" a\r\nB: c\r\n", " a\r\nB: c\r\nN: v\r\n"),
        ("\ta: b", "\ta: b\r\nN: v\r\n"),
    ] {
        let (_, section) = rewritten(section, &[add(FieldPosition::End, "N", "v")]);
        assert_eq!(section, edited);
    }
    let (_, section) = rewritten(
        " a: b\r\nC: d\r\n",
        &[add(FieldPosition::Before(1), "N", "v")],
    );
    assert_eq!(section, " a: b\r\nN: v\r\nC: d\r\n");
}

/// RFC 8601 5: fields that claim this authserv-id, in any valid form, are removed; other fields stay.
#[test]
fn forged_results_are_removed() {
    let remove = [Edit::RemoveResults {
        authserv_id: "mx.example.com".to_owned(),
    }];
    for body in [
        " mx.example.com; spf=pass",
        "MX.example.COM",
        "\r\n\tmx.example.com\r\n\t; none",
        " (a (nested \\) one) comment) mx.example.com 1; none",
        " mx.example.com(1);none",
        " \"mx.exam\\ple.com\"; none",
        " mx.example.com.; none",
        " (no end mx.other.example; none",
        " \"no end",
        "",
        " ; spf=pass",
    ] {
        let section = format!("A: b\r\nauthentication-results:{body}\r\nC: d\r\n");
        let (_, section) = rewritten(&section, &remove);
        assert_eq!(section, "A: b\r\nC: d\r\n", "{body}");
    }
    for body in [
        " mx.example.org; spf=pass",
        " other (mx.example.com); none",
        " x-mx.example.com; none",
        " \"mx.example.com x\"; none",
    ] {
        let section = format!("A: b\r\nAuthentication-Results:{body}\r\nX-B: mx.example.com\r\n");
        assert_eq!(rewritten(&section, &remove).1, section, "{body}");
    }
}

fn verdict(edit: Edit, smtputf8: bool) -> Option<String> {
    let mut requested_edits = grant(vec![Wanted::Field(edit)], Rights::Fields, smtputf8);
    assert_eq!(requested_edits.len(), 1);
    match requested_edits.remove(0) {
        RequestedEdit::Granted(_) => None,
        RequestedEdit::Refused { why, .. } => Some(why),
    }
}

/// An edit that would end the header section, begin another field, or change what was scanned is refused.
#[test]
fn no_edit_breaks_out_of_its_field() {
    let long = "x".repeat(989);
    let too_long = "x".repeat(998);
    for value in ["", "v", "v\r\n\tw", "\r\n v", "\tv", &long] {
        assert_eq!(
            verdict(add(FieldPosition::End, "Subject", value), false),
            None,
            "{value:?}"
        );
    }
    for value in [
        "v\r\nX: y",
        "v\r\n\r\nbody",
        "v\r\n \r\n w",
        "v\r\n",
        "v\nX: y",
        "v\rX: y",
        "v\0",
        "v\r\n\u{b}w",
        "caf\u{e9}",
        &too_long,
    ] {
        for edit in [add(FieldPosition::Top, "X", value), change("X", 1, value)] {
            assert!(verdict(edit, false).is_some(), "{value:?}");
        }
    }
    let long = "n".repeat(77);
    for name in [
        "",
        "a b",
        "a:",
        "a\r\nb",
        "\u{e9}",
        &long,
        "received",
        "X-SPILLWAY-RESULT",
        "content-type",
        "Content-Transfer-Encoding",
        "MIME-Version",
    ] {
        for edit in [
            add(FieldPosition::Top, name, "v"),
            change(name, 1, "v"),
            remove(name, None),
        ] {
            assert!(verdict(edit, false).is_some(), "{name:?}");
        }
    }
    for edit in [
        change("X", 0, "v"),
        remove("X", Some(0)),
        add(FieldPosition::Before(0), "X", "v"),
    ] {
        assert!(verdict(edit, false).is_some());
    }
    assert_eq!(
        verdict(add(FieldPosition::End, "X", "caf\u{e9}"), true),
        None
    );
}

/// Without the administrator's permission no edit is made, and the report still shows the request.
#[test]
fn no_edit_is_made_without_permission() {
    let wanted = vec![
        Wanted::Field(add(FieldPosition::End, "X-A", "one\r\n\ttwo")),
        Wanted::Other("replace\x07 the body".to_owned()),
    ];
    let asked = |request: &RequestedEdit| match request {
        RequestedEdit::Refused { asked, .. } => asked.clone(),
        RequestedEdit::Granted(edit) => format!("granted: {edit}"),
    };
    let told = |rights| {
        let requested_edits = grant(wanted.clone(), rights, false);
        requested_edits.iter().map(asked).collect::<Vec<_>>()
    };
    assert_eq!(
        told(Rights::None),
        ["add X-A at the end: one two", "replace? the body"]
    );
    assert_eq!(
        told(Rights::Fields),
        ["granted: add X-A at the end: one two", "replace? the body"]
    );
}

/// A report is bounded, however much an engine requests. Requests that exceed the limits are refused as a whole, because a
/// part may be worse than nothing: for example a field that is to replace others.
#[test]
fn requests_are_bounded() {
    let wanted = |value: &str| Wanted::Field(add(FieldPosition::End, "X", value));
    let granted = |requested_edits: &[RequestedEdit]| {
        requested_edits
            .iter()
            .filter_map(RequestedEdit::granted)
            .count()
    };
    let most = vec![wanted("v"); REQUESTS_MAX];
    assert!(!exceeds(&most));
    assert_eq!(granted(&grant(most, Rights::Fields, false)), REQUESTS_MAX);
    let many = vec![wanted("v"); 1000];
    assert!(exceeds(&many));
    for rights in [Rights::Fields, Rights::None] {
        let requested_edits = grant(many.clone(), rights, false);
        assert_eq!(
            (requested_edits.len(), granted(&requested_edits)),
            (REQUESTS_MAX + 1, 0)
        );
    }
    let large = vec![wanted(&"v".repeat(900)); REQUESTS_MAX];
    assert!(exceeds(&large));
    assert_eq!(granted(&grant(large, Rights::Fields, false)), 0);
    let long = grant(
        vec![Wanted::Other("x".repeat(1 << 20))],
        Rights::Fields,
        false,
    );
    assert!(
        matches!(&long[..], [RequestedEdit::Refused { asked, .. }] if asked.len() == SHOWN_CHARACTERS_MAX)
    );
}

/// Consecutive removals of one name become one request with the same effect. Very many become a removal of all fields of that
/// name.
#[test]
fn removals_of_one_name_are_one_request() {
    let numbered = |numbers: std::ops::RangeInclusive<u32>| {
        let mut wanted = Vec::new();
        for number in numbers {
            want(&mut wanted, Wanted::Field(remove("x-a", Some(number))));
        }
        wanted
    };
    let edit = |wanted: &[Wanted]| match wanted {
        [Wanted::Field(edit)] => edit.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(edit(&numbered(1..=1)), remove("x-a", Some(1)));
    let two = edit(&numbered(2..=3));
    assert_eq!(two.to_string(), "remove x-a 2, 3");
    let (_, section) = rewritten(SECTION, std::slice::from_ref(&two));
    assert_eq!(
        section,
        "Received: by a\r\n\tfor b\r\nX-A: 1\r\nsubject: hello\r\n"
    );
    let stored = serde_json::to_string(&two).expect("a row");
    assert_eq!(serde_json::from_str::<Edit>(&stored).expect("an edit"), two);
    let none = edit(&numbered(0..=1));
    assert!(verdict(none, false).is_some(), "counted from 1");
    for many in [257, 100_000] {
        assert_eq!(edit(&numbered(1..=many)), remove("x-a", None), "{many}");
    }
    let mut wanted = numbered(1..=2);
    for edit in [
        remove("X-B", Some(1)),
        add(FieldPosition::End, "N", "v"),
        remove("X-B", Some(2)),
        remove("X-B", None),
        remove("X-B", Some(3)),
    ] {
        want(&mut wanted, Wanted::Field(edit));
    }
    let told: Vec<String> = wanted.iter().map(Wanted::to_string).collect();
    assert_eq!(
        told,
        [
            "remove x-a 1, 2",
            "remove X-B 1",
            "add N at the end: v",
            "remove all X-B"
        ]
    );
}

proptest::proptest! {
    /// After any granted edit, all other fields are unchanged and in their order, and no other field is added.
    #[test]
    fn other_fields_survive_any_granted_edit(
        names in proptest::collection::vec("[A-C]", 0..8),
        value in "[ -~\t\r\n]{0,12}",
        nth in 1..4_u32,
    ) {
        let section: String = names.iter().map(|name| format!("{name}: {name}\r\n")).collect();
        let edits = vec![
            Wanted::Field(change("A", nth, &value)),
            Wanted::Field(add(FieldPosition::Before(nth), "N", &value)),
            Wanted::Field(add(FieldPosition::End, "N", &value)),
        ];
        let requested_edits = grant(edits, Rights::Fields, false);
        let edits: Vec<Edit> = requested_edits.iter().filter_map(RequestedEdit::granted).cloned().collect();
        let rewritten = rewrite(section.as_bytes(), &edits);
        proptest::prop_assert_eq!(rewritten.top.len(), 0);
        let others = |section: &[u8]| -> Vec<String> {
            let all = crate::message::header::fields(section);
            let names = all.map(|f| String::from_utf8_lossy(f.name).into_owned());
            names.filter(|name| name != "A" && name != "N").collect()
        };
        proptest::prop_assert_eq!(others(&rewritten.section), others(section.as_bytes()));
        let all = crate::message::header::pieces(&rewritten.section);
        proptest::prop_assert!(all.into_iter().all(|(_, field)| field.is_some()));
    }
}

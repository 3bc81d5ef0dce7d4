use std::io::Write as _;

use base64::Engine as _;
use zip::write::SimpleFileOptions;

use super::*;
use crate::scan::tests::sample;

fn settings() -> AttachmentSettings {
    AttachmentSettings {
        block_extensions: vec!["exe".to_owned(), "js".to_owned(), "iso".to_owned()],
        block_types: vec![
            "application/vnd.microsoft.portable-executable".to_owned(),
            "video/*".to_owned(),
        ],
        block_encrypted: false,
        max_depth: 3,
        max_parts: 10,
        max_archive_files: 5,
        max_ratio: 200,
    }
}

/// A message with one attachment. `fields` are the Content-Type and Content-Disposition fields of the attachment.
fn with_fields(fields: &str, bytes: impl AsRef<[u8]>) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!(
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n\r\nhello\r\n--o\r\n\
         {fields}\r\nContent-Transfer-Encoding: base64\r\n\r\n{body}\r\n--o--\r\n"
    )
}

fn attached(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let fields = format!(
        "Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"{name}\""
    );
    with_fields(&fields, bytes)
}

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default())
            .expect("start");
        zip.write_all(bytes).expect("write");
    }
    zip.finish().expect("finish").into_inner()
}

fn program() -> Vec<u8> {
    let mut pe = vec![0; 0x200];
    pe[..2].copy_from_slice(b"MZ");
    pe[0x3c] = 0x80;
    pe[0x80..0x84].copy_from_slice(b"PE\0\0");
    pe
}

async fn ask_with(settings: AttachmentSettings, content: String) -> Answer {
    let engine = Arc::new(Attachments::new(settings));
    engine
        .scan(sample(content))
        .await
        .expect("an answer")
        .answer
}

async fn ask(content: String) -> Answer {
    ask_with(settings(), content).await
}

fn names(answer: &Answer) -> Vec<&str> {
    let (Answer::Answered(findings) | Answer::None { findings, .. }) = answer;
    findings.iter().map(|finding| &*finding.name).collect()
}

fn missing(answer: &Answer) -> Option<Reason> {
    match answer {
        Answer::Answered(_) => None,
        Answer::None { reason, .. } => Some(*reason),
    }
}

/// The engine finds a forbidden extension however the name is encoded, and in nested archives.
#[tokio::test]
async fn forbidden_names_are_found_however_they_are_written() {
    let plain = b"x".as_slice();
    let field = |field: &str| with_fields(field, plain);
    let inner = zipped(&[("deep/A.JS", plain)]);
    let contents = [
        attached("a.exe", plain),
        attached("A.EXE . .", plain),
        field("Content-Disposition: attachment; filename*=utf-8''a%2Eexe"),
        field("Content-Disposition: attachment; filename*0=\"a.e\"; filename*1=xe"),
        field("Content-Disposition: attachment; filename=\"=?utf-8?q?a=2Eexe?=\""),
        field(
            "Content-Disposition: attachment; filename=a.txt\r\nContent-Type: text/plain; name=\"a.exe\"",
        ),
        attached("a.zip", zipped(&[("b.iso", plain)])),
        attached(
            "a.zip",
            zipped(&[(&*format!("{}b.iso", "a/".repeat(500)), plain)]),
        ),
        attached("a.zip", zipped(&[("inner.zip", &inner)])),
    ];
    for content in contents {
        let answer = ask(content.clone()).await;
        assert_eq!(names(&answer), ["blocked-extension"], "{content}");
        assert_eq!(missing(&answer), None);
    }
    assert_eq!(
        names(&ask(attached("a.pdf", plain)).await),
        Vec::<&str>::new()
    );
}

/// The engine compares both the declared and the sniffed type with the forbidden types, also in archives.
#[tokio::test]
async fn forbidden_types_are_found_by_declaration_and_by_octets() {
    assert_eq!(
        names(&ask(attached("a.bin", program())).await),
        ["blocked-type", "disguised-executable"]
    );
    let zip = zipped(&[("a.dll", &program())]);
    assert_eq!(names(&ask(attached("a.zip", zip)).await), ["blocked-type"]);
    let video = with_fields("Content-Type: video/mp4", "x");
    assert_eq!(names(&ask(video).await), ["blocked-type"]);
}

/// The engine reports tricks whose only purpose is to deceive the recipient.
#[tokio::test]
async fn deceptive_tricks_are_reported() {
    let rtlo = "a\u{202e}fdp.scr";
    assert_eq!(names(&ask(attached(rtlo, "x")).await), ["disguised-name"]);
    assert_eq!(
        names(&ask(attached("a.pdf.scr", "x")).await),
        ["double-extension"]
    );
    let image = with_fields("Content-Type: image/png", program());
    assert!(names(&ask(image).await).contains(&"disguised-executable"));
    let twice = with_fields("Content-Type: text/plain\r\nContent-Type: text/html", "x");
    assert_eq!(names(&ask(twice).await), ["ambiguous-mime"]);
}

/// The engine reports files that need a password, and forbids them only with `block_encrypted`.
#[tokio::test]
async fn encrypted_archives_are_shown_or_forbidden() {
    let mut zip = zipped(&[("a.txt", b"hello hello")]);
    zip[6] |= 1;
    let central = memchr::memmem::find(&zip, b"PK\x01\x02").expect("directory");
    zip[central + 8] |= 1;
    let pdf = b"%PDF-1.7\ntrailer <</Encrypt 5 0 R>>".to_vec();
    for content in [attached("a.zip", zip), attached("a.pdf", pdf)] {
        for (block_encrypted, kind) in [(false, FindingKind::Info), (true, FindingKind::Policy)] {
            let settings = AttachmentSettings {
                block_encrypted,
                ..settings()
            };
            match ask_with(settings, content.clone()).await {
                Answer::Answered(found) => assert_eq!(
                    (&*found[0].name, found[0].kind, found.len()),
                    ("encrypted-archive", kind, 1)
                ),
                none => panic!("{none:?}"),
            }
        }
    }
}

/// Beyond a limit, the engine has no complete answer, but its findings so far count.
#[tokio::test]
async fn a_reached_limit_makes_the_answer_incomplete() {
    let many: Vec<_> = (0..6).map(|i| format!("{i}.exe")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), b"x".as_slice())).collect();
    let mut deep = zipped(&[("a.txt", b"x")]);
    for _ in 0..3 {
        deep = zipped(&[("b.exe", b"x"), ("inner.zip", &deep)]);
    }
    let bomb = zipped(&[("a.txt", &vec![b'a'; 4 << 20])]);
    let parts = format!(
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}",
        "--b\r\nContent-Type: text/plain; name=a.exe\r\n\r\nx\r\n".repeat(20)
    );
    let messages = format!("{}\r\nx", "Content-Type: message/rfc822\r\n\r\n".repeat(5));
    for (content, found) in [
        (attached("many.zip", zipped(&many)), false),
        (attached("deep.zip", deep), true),
        (attached("bomb.zip", bomb), false),
        (parts, true),
        (messages, false),
    ] {
        let answer = ask(content).await;
        assert_eq!(missing(&answer), Some(Reason::LimitsReached), "{answer:?}");
        assert_eq!(!names(&answer).is_empty(), found, "{answer:?}");
    }
}

/// Any number of informational findings hides no forbidden file (promise P4).
#[tokio::test]
async fn informational_findings_hide_no_forbidden_file() {
    let locked = b"%PDF-1.7\ntrailer <</Encrypt 5 0 R>>".as_slice();
    let many: Vec<_> = (0..=FINDINGS_PER_NAME_MAX)
        .map(|i| format!("{i}.pdf"))
        .collect();
    let mut files: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), locked)).collect();
    files.push(("a.exe", b"x"));
    let settings = AttachmentSettings {
        max_archive_files: 1000,
        ..settings()
    };
    let answer = ask_with(settings, attached("a.zip", zipped(&files))).await;
    assert!(
        names(&answer).contains(&"blocked-extension"),
        "{}",
        names(&answer).len()
    );
}

/// An archive that the engine cannot open makes the answer incomplete. A file in an archive that cannot be unpacked does not,
/// because its name is known.
#[tokio::test]
async fn an_unopened_archive_makes_the_answer_incomplete() {
    let zip = zipped(&[("a.txt", b"hello")]);
    let cut = &zip[..zip.len() - 10];
    let inner = zipped(&[("inner.zip", cut)]);
    for bytes in [cut, &inner] {
        let answer = ask(attached("a.zip", bytes)).await;
        assert_eq!(missing(&answer), Some(Reason::LimitsReached), "{answer:?}");
    }
    let mut strange = zip.clone();
    let central = memchr::memmem::find(&zip, b"PK\x01\x02").expect("directory");
    // An unknown compression method.
    strange[central + 10] = 99;
    let answer = ask(attached("a.zip", strange)).await;
    assert_eq!(missing(&answer), None);
    assert_eq!(names(&answer), ["unreadable-archive"]);
}

/// The report about a message with very many files stays small.
#[tokio::test]
async fn reports_are_bounded() {
    let parts = format!(
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}",
        (0..900)
            .map(|i| format!("--b\r\nContent-Type: text/plain; name={i}.exe\r\n\r\nx\r\n"))
            .collect::<String>()
    );
    assert_eq!(names(&ask(parts).await).len(), FINDINGS_PER_NAME_MAX);
}

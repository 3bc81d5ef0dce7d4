//! Tests with programs that behave correctly, and programs that do not.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::deadline::Deadline;
use crate::scan::tests::sample;
use crate::verdict::{Finding, Reason};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const FOUND_PATTERN: &str = "^(?<name>.+) FOUND$";

fn settings(script: &str) -> CommandSettings {
    let words = ["/bin/sh", "-c", script];
    CommandSettings {
        command: words.map(str::to_owned).to_vec(),
        hostname: "relay.test".to_owned(),
        saying: Saying::Exit(Exit {
            clean: vec![0],
            found: vec![1],
            pattern: Some(FOUND_PATTERN.to_owned()),
            bad_kind: FindingKind::Malware,
            bad_score: 10.0,
        }),
        user: None,
        limits: Limits {
            cpu: Duration::from_secs(60),
            memory: 1 << 30,
            file_size: 1 << 20,
        },
        probe_with: ProbeWith::Nothing,
    }
}

async fn run(settings: &CommandSettings, content: &[u8]) -> Result<Answer, ScanError> {
    let engine = Arc::new(Command::new(settings).expect("a command"));
    let ended = Deadline::after(TEST_TIMEOUT).run(engine.scan(sample(content.to_vec())));
    let answer = ended.await.expect("an end");
    answer.map(|answer| answer.answer)
}

async fn ask(script: &str, content: &[u8]) -> Result<Answer, ScanError> {
    run(&settings(script), content).await
}

/// Names of the findings of the script.
async fn names(script: &str, content: &[u8]) -> Vec<String> {
    match ask(script, content).await {
        Ok(Answer::Answered(findings)) => findings.into_iter().map(|f| f.name).collect(),
        other => panic!("{script}: {other:?}"),
    }
}

/// Whether the process has ended, reaped or not.
fn is_gone(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| {
        let state = stat.rsplit(") ").next().unwrap_or_default();
        state.starts_with(['Z', 'X'])
    })
}

/// Waits until `file` contains `count` process numbers.
async fn processes(file: &Path, count: usize) -> Vec<String> {
    let deadline = Deadline::after(TEST_TIMEOUT);
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        if all.len() == count && text.ends_with('\n') {
            return all;
        }
        assert!(!deadline.passed(), "{text:?}");
        tokio::task::yield_now().await;
    }
}

async fn are_gone(processes: &[String]) {
    let deadline = Deadline::after(TEST_TIMEOUT);
    while !processes.iter().all(|process| is_gone(process)) {
        assert!(!deadline.passed(), "{processes:?} still run");
        tokio::task::yield_now().await;
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("processes");
    (folder, file)
}

/// P4: only an exit code in one of the lists is an answer. Lines of output contain names and scores.
#[tokio::test]
async fn only_exit_codes_on_a_list_mean_something() {
    assert_eq!(ask("exit 0", b"x").await, Ok(Answer::Answered(Vec::new())));
    assert_eq!(names("exit 1", b"x").await, ["found"]);
    let script = "echo noise; echo A FOUND; echo B FOUND; echo A FOUND; exit 1";
    assert_eq!(names(script, b"x").await, ["A", "B"]);
    let cases = [
        ("exit 2", "exit code 2"),
        ("echo 'bad\tdisk' >&2; exit 3", "exit code 3: bad disk"),
        ("kill -TERM $$", "signal 15"),
        ("echo A FOUND; exec /nowhere/scan", "exit code 127"),
    ];
    for (script, says) in cases {
        let error = ask(script, b"x").await.expect_err("no answer");
        assert_eq!(error.reason(), Reason::EngineError, "{script}: {error}");
        assert!(error.to_string().contains(says), "{script}: {error}");
    }
    let noisy = "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 4";
    let error = ask(noisy, b"x").await.expect_err("no answer").to_string();
    assert!(
        error.contains("exit code 4: xxx") && error.len() < 400,
        "{error}"
    );
}

/// A program that prints a name and ends with a clean exit code contradicts itself. If the answer counted as clean, a wrong
/// configuration would hide every finding.
#[tokio::test]
async fn a_name_with_a_clean_exit_code_is_garbage() {
    for script in ["echo A FOUND; exit 0", "echo A FOUND; echo B FOUND"] {
        let error = ask(script, b"x").await.expect_err("no answer");
        assert_eq!(error.reason(), Reason::Garbage, "{error}");
        assert!(error.to_string().contains("names A and"), "{error}");
    }
}

/// A printed score counts, also for clean messages. A score that is not a number makes the answer garbage.
#[tokio::test]
async fn a_line_may_contain_the_score() {
    let scored = |script: &str| {
        let mut settings = settings(script);
        if let Saying::Exit(exit) = &mut settings.saying {
            exit.pattern = Some("^score=(?<score>\\S+)$".to_owned());
            exit.bad_kind = FindingKind::Spam;
        }
        settings
    };
    let score = |kind, name, score| Ok(Answer::Answered(vec![Finding::new(kind, name, score)]));
    let spam = run(&scored("echo score=7.5; exit 1"), b"x").await;
    assert_eq!(spam, score(FindingKind::Spam, "found", 7.5));
    let ham = run(&scored("echo score=-2; exit 0"), b"x").await;
    assert_eq!(ham, score(FindingKind::Score, "clean", -2.0));
    let error = run(&scored("echo score=NaN; exit 0"), b"x").await;
    assert_eq!(error.expect_err("no answer").reason(), Reason::Garbage);
}

/// JSON counts only with exit code 0, and is read like JSON of kind `http`.
#[tokio::test]
async fn json_is_read_like_that_of_a_service() {
    let reading = Reading {
        verdict_at: "/verdict".to_owned(),
        bad: vec!["bad".to_owned()],
        clean: vec!["clean".to_owned()],
        bad_kind: FindingKind::Malware,
        bad_score: 10.0,
        name_at: Some("/name".to_owned()),
        score_at: None,
        signatures_at: Some("/version".to_owned()),
        id_at: None,
    };
    let json = |script: &str| CommandSettings {
        saying: Saying::Json(reading.clone()),
        ..settings(script)
    };
    let bad = r#"echo '{"verdict": "bad", "name": "X", "version": 7}'"#;
    let engine = Arc::new(Command::new(&json(bad)).expect("a command"));
    let answer = engine.scan(sample("x")).await.expect("an answer");
    assert_eq!(answer.signatures.as_deref(), Some("7"));
    let found = Finding::new(FindingKind::Malware, "X", 10.0);
    assert_eq!(answer.answer, Answer::Answered(vec![found]));
    for (script, reason) in [
        ("echo clean", Reason::Garbage),
        (
            r#"echo '{"verdict": "clean", "version": 7}'; exit 1"#,
            Reason::EngineError,
        ),
    ] {
        let error = run(&json(script), b"x").await.expect_err("no answer");
        assert_eq!(error.reason(), reason, "{error}");
    }
}

/// The message arrives unchanged, on standard input or in a file that other users cannot read and that is deleted afterwards.
#[tokio::test]
async fn the_message_arrives_unchanged() {
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let script = "echo $(cksum) FOUND; exit 1";
    let sum = names(script, &content).await;
    let script = "echo $(cksum < $0) FOUND; stat -c '%a FOUND' $0; echo $0 FOUND; cat; exit 1";
    let mut settings = settings(script);
    settings.command.push(FILE_PLACEHOLDER.to_owned());
    let Ok(Answer::Answered(found)) = run(&settings, &content).await else {
        panic!("no answer");
    };
    assert_eq!(found[0].name, sum[0]);
    assert_eq!(found[1].name, "600");
    assert!(found[2].name.ends_with(".eml"), "{}", found[2].name);
    assert!(!Path::new(&found[2].name).exists());
}

/// The program gets nothing from the environment of the relay, and no control characters from the message.
#[tokio::test]
async fn the_environment_is_clean() {
    let mut request = sample("x").request().clone();
    let mut envelope = Envelope::clone(&request.envelope);
    envelope.origin.protocol = "ESMTP".to_owned();
    envelope.origin.helo = format!("a\nPATH=/evil\0{}", "x".repeat(5000));
    request.envelope = Arc::new(envelope);
    let facts = facts("relay.test", request.id, &request.envelope);
    let helo = facts.iter().find(|(name, _)| *name == "SPILLWAY_HELO");
    let (_, helo) = helo.expect("the HELO");
    assert!(
        helo.starts_with("a?PATH=/evil?xxx") && helo.len() == FACT_OCTETS_MAX,
        "{helo}"
    );
    let script = "env | sed 's/=.*/ FOUND/' | grep -v '^_ \\|^PWD \\|^SHLVL \\|^OLDPWD '; exit 1";
    let seen = names(script, b"x").await;
    let known = |name: &String| name == "PATH" || name == "LANG" || name.starts_with("SPILLWAY_");
    assert!(seen.iter().all(known) && seen.len() >= 5, "{seen:?}");
}

/// A program that ends before it has read the whole input has answered.
#[tokio::test]
async fn a_program_may_close_its_input_early() {
    let content = vec![b'x'; 16 << 20];
    let script = "exec 0<&-; echo Early FOUND; exit 1";
    assert_eq!(names(script, &content).await, ["Early"]);
}

/// Dropping a scan kills the program and every process of its group, even if the program neither reads nor answers.
#[tokio::test]
async fn a_dropped_scan_kills_the_whole_group() {
    let (_folder, file) = place();
    let script =
        "sleep 1000 & sh -c 'echo $$; exec sleep 1000' >> $0 & echo $! >> $0; echo $$ >> $0; wait";
    let mut settings = settings(script);
    settings.command.push(file.display().to_string());
    let engine = Arc::new(Command::new(&settings).expect("a command"));
    let scan = tokio::spawn(engine.scan(sample(vec![b'x'; 16 << 20])));
    let all = processes(&file, 3).await;
    assert!(!all.iter().any(|process| is_gone(process)));
    scan.abort();
    are_gone(&all).await;
}

/// Processes that a program leaves in its group end with the program, and do not delay the answer by holding a pipe open.
#[tokio::test]
async fn grandchildren_end_with_the_program() {
    let (_folder, file) = place();
    let script = format!(
        "sleep 1000 & echo $! >> {}; echo A FOUND; exit 1",
        file.display()
    );
    assert_eq!(names(&script, b"x").await, ["A"]);
    are_gone(&processes(&file, 1).await).await;
}

/// A process that has left the group and holds the output open is reported, and the scan does not wait for it.
#[tokio::test]
async fn an_escaped_process_is_reported() {
    let (_folder, file) = place();
    let script = format!(
        "setsid sh -c 'echo $$ >> {0}; exec sleep 1000' & while ! [ -s {0} ]; do sleep 0.01; done; exit 0",
        file.display()
    );
    let error = ask(&script, b"x").await.expect_err("no answer");
    assert_eq!(error.reason(), Reason::Garbage, "{error}");
    assert!(
        error.to_string().contains("left a process behind"),
        "{error}"
    );
    let escaped = processes(&file, 1).await;
    let number = escaped[0]
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let number = number.expect("a number");
    rustix::process::kill_process(number, rustix::process::Signal::KILL).expect("ours");
}

/// The engine stops reading endless output, and kills the program.
#[tokio::test]
async fn endless_output_ends_the_program() {
    let (_folder, file) = place();
    let script = format!("echo $$ > {}; exec yes", file.display());
    let error = ask(&script, b"x").await.expect_err("no answer");
    assert_eq!(error.reason(), Reason::Garbage, "{error}");
    are_gone(&processes(&file, 1).await).await;
}

/// The limits are in force before the program gets the message, also for every process that the program starts.
#[tokio::test]
async fn limits_are_in_force() {
    let print =
        "for limit in c v f t; do echo $limit $(sh -c \"ulimit -$limit\") FOUND; done; exit 1";
    let script = format!("cat > /dev/null; {print}");
    let blocks = (1 << 20) / 512;
    let kibibytes = (1 << 30) / 1024;
    let limits = [
        "c 0".to_owned(),
        format!("v {kibibytes}"),
        format!("f {blocks}"),
        "t 60".to_owned(),
    ];
    assert_eq!(names(&script, b"x").await, limits);
    let mut busy = settings("while :; do :; done");
    busy.limits.cpu = Duration::from_secs(1);
    let error = run(&busy, b"x").await.expect_err("no answer");
    assert_eq!(error, ScanError::NoAnswer(busy.limits.cpu));
    let (_folder, file) = place();
    let full = format!(
        "cat > /dev/null; exec head -c 2000000 /dev/zero > {}",
        file.display()
    );
    let error = ask(&full, b"x").await.expect_err("no answer");
    assert!(error.to_string().contains("signal 25"), "{error}");
    assert!(std::fs::metadata(&file).expect("a file").len() <= 1 << 20);
}

/// A program that cannot be started is unreachable, and the error names its path.
#[tokio::test]
async fn a_missing_program_is_unreachable() {
    let missing = CommandSettings {
        command: vec!["/nowhere/scan".to_owned()],
        ..settings("")
    };
    let error = run(&missing, b"x").await.expect_err("no answer");
    assert_eq!(error.reason(), Reason::Unreachable);
    assert!(error.to_string().contains("/nowhere/scan"), "{error}");
}

/// As root, the relay can run a program as another user, who can read the message and has no other groups. Without root, the
/// relay does not run the program as any user.
#[tokio::test]
async fn a_program_may_run_as_another_user() {
    let mut settings =
        settings("cat $0 > /dev/null || exit 5; echo $(id -un) $(id -G | wc -w) FOUND; exit 1");
    settings.command.push(FILE_PLACEHOLDER.to_owned());
    settings.user = Some("nobody".to_owned());
    let answer = run(&settings, b"x").await;
    match rustix::process::geteuid().is_root() {
        true => {
            let found = Finding::new(FindingKind::Malware, "nobody 1", 10.0);
            assert_eq!(answer, Ok(Answer::Answered(vec![found])));
        }
        false => assert_eq!(answer.expect_err("not root").reason(), Reason::Unreachable),
    }
}

/// A user is found by the whole name only. An unknown user is an error at the start.
#[test]
fn a_user_is_found_by_the_whole_name() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "rooted:x:1:1::/:\nroot:x:0:0::/:\nscan:x:107:112::/:\nodd:x:y:1\nshort\n";
    std::fs::write(file.path(), text).expect("written");
    assert_eq!(identity(file.path(), "scan"), Some((107, 112)));
    for name in ["odd", "short", "sca", ""] {
        assert_eq!(identity(file.path(), name), None, "{name}");
    }
    let unknown = CommandSettings {
        user: Some("nobody at all".to_owned()),
        ..settings("")
    };
    let error = Command::new(&unknown).expect_err("no such user");
    assert_eq!(error, BuildError::NoUser("nobody at all".to_owned()));
}

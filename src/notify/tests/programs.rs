//! The ways through real programs and real HTTP servers, which hang, fail, talk too much or are not there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::super::command::Command;
use super::super::webhook::Webhook;
use super::*;
use crate::scan::engine::HTTP;

/// Nothing here takes this long, unless it hangs.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

fn program(folder: &Path, script: &str) -> String {
    let path = folder.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a program");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its mode");
    path.display().to_string()
}

async fn run(words: Vec<String>, timeout: Duration) -> Result<String, Failure> {
    Command::new(words, timeout).send(&begun(story(1))).await
}

/// The program gets one line of JSON, its arguments as they stand, and nothing of the relay's environment.
#[tokio::test]
async fn a_program_gets_json_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let (got, environment) = (folder.path().join("got"), folder.path().join("env"));
    let script = format!(
        "cat >{}; env | cut -d= -f1 | sort >{}; test \"$1\" = '$(id); x' || exit 9",
        got.display(),
        environment.display()
    );
    let words = vec![program(folder.path(), &script), "$(id); x".to_owned()];
    let told = run(words, HANG_TIMEOUT).await.expect("told");
    assert_eq!(
        told,
        format!("command {}/program: exit code 0", folder.path().display())
    );
    let got = std::fs::read_to_string(got).expect("input");
    assert_eq!(got.lines().count(), 1);
    let got: serde_json::Value = serde_json::from_str(&got).expect("JSON");
    assert_eq!(got["story"]["title"], "story 1");
    let environment = std::fs::read_to_string(environment).expect("names");
    let names: Vec<&str> = environment.lines().filter(|name| *name != "PWD").collect();
    assert!(
        names
            .iter()
            .all(|name| ["PATH", "_", "SHLVL", "OLDPWD"].contains(name)),
        "{names:?}"
    );
}

/// A program that does not read, prints without end, or fails, is no success, and says why in one line. Its output goes nowhere.
#[tokio::test]
async fn a_program_that_fails_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    for (script, expected) in [
        ("exit 0", Ok("exit code 0")),
        ("exec 0<&-; exit 3", Err("exit code 3")),
        (
            "echo one >&2; echo two >&2; exit 1",
            Err("exit code 1: one"),
        ),
        ("kill -9 $$", Err("ended by signal 9")),
        ("head -c 50000000 /dev/zero; exit 4", Err("exit code 4")),
        (
            "head -c 50000000 /dev/zero | tr '\\0' x >&2; exit 0",
            Ok("exit code 0: xxx"),
        ),
    ] {
        let words = vec![program(folder.path(), script)];
        let named = format!("command {}: ", words[0]);
        let expected = match expected {
            Ok(how) => Ok(named.clone() + how),
            Err(why) => Err(named.clone() + why),
        };
        match (run(words, HANG_TIMEOUT).await, expected) {
            (Ok(how), Ok(expected)) => {
                assert!(how.starts_with(&expected) && how.len() < 5000);
            }
            (Err(Failure::Passing(why)), Err(expected)) => assert_eq!(why, expected),
            (other, _) => panic!("{script}: {other:?}"),
        }
    }
    let missing = run(vec!["/nowhere/page".to_owned()], HANG_TIMEOUT).await;
    let expected = "command /nowhere/page: does not exist".to_owned();
    assert_eq!(missing, Err(Failure::Passing(expected)));
}

/// A program that hangs is killed with all that it has started.
#[tokio::test]
async fn a_program_that_hangs_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("started");
    let script = format!(
        "sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait",
        file.display()
    );
    let words = vec![program(folder.path(), &script)];
    let command = Command::new(words, Duration::from_secs(2));
    let mut why = command.send(&begun(story(1))).await;
    // On a machine that is very busy the program is not even started in time.
    while !file.exists() {
        why = command.send(&begun(story(1))).await;
    }
    let Err(Failure::Passing(why)) = why else {
        panic!("{why:?}");
    };
    assert!(
        why.starts_with("command ") && why.ends_with(": did not end within 2000 ms"),
        "{why}"
    );
    let process = std::fs::read_to_string(&file).expect("a number");
    let stat = format!("/proc/{}/stat", process.trim());
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

/// A server that answers each request with these octets; it returns each request.
async fn server(answers: &[&'static str]) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!(
        "http://{}/hook?a=b",
        listener.local_addr().expect("its address")
    );
    let answers = answers.to_vec();
    let task = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut stream = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                stream.read_line(&mut head).await.expect("a line");
                if let Some(value) = head[from..].strip_prefix("content-length: ") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.expect("a body");
            requests.push(head + &String::from_utf8(body).expect("text"));
            // A client that has enough may have gone.
            let _ = stream.get_mut().write_all(answer.as_bytes()).await;
        }
        requests
    });
    (url, task)
}

fn hook(folder: &Path, url: &str, timeout: Duration) -> Webhook {
    let secret_file = folder.join("secret");
    std::fs::write(&secret_file, "a secret".repeat(4).replace(' ', "-")).expect("a secret");
    let settings = WebhookSettings {
        url: Url::parse(url, &HTTP).expect("a URL"),
        secret_file,
        tls_ca: None,
    };
    Webhook::new(&settings, timeout).expect("a way")
}

/// Only a success status within the time is a success. A redirect is not followed: it would carry the notification elsewhere.
#[tokio::test]
async fn a_webhook_succeeds_only_with_success() {
    let folder = tempfile::tempdir().expect("a folder");
    for (answer, expected) in [
        (
            "HTTP/1.1 204 No Content\r\n\r\n",
            Ok("taken by the webhook 127.0.0.1:"),
        ),
        (
            "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nwhy\x1b",
            Err("500 why "),
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            Err("302"),
        ),
        ("220 mail.test ESMTP\r\n", Err("invalid answer")),
        ("", Err("ended the connection")),
    ] {
        let (url, task) = server(&[answer]).await;
        let hook = hook(folder.path(), &url, HANG_TIMEOUT);
        match (hook.send(&begun(story(1))).await, expected) {
            (Ok(how), Ok(expected)) => assert!(how.starts_with(expected), "{how}"),
            (Err(Failure::Passing(why)), Err(expected)) => {
                assert!(why.starts_with("the webhook 127.0.0.1:"), "{why}");
                assert!(why.contains(expected) && !why.contains("engine"), "{why}");
            }
            (other, _) => panic!("{answer:?}: {other:?}"),
        }
        let requests = task.await.expect("the server");
        let (head, body) = requests[0].split_once("\r\n\r\n").expect("a request");
        assert!(head.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{head}");
        for field in [
            "x-spillway-signature: sha256=",
            "x-spillway-timestamp: ",
            "x-spillway-notification: ",
        ] {
            assert!(head.contains(field), "{head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["phase"], "begin");
    }
}

/// A server that takes the request and never answers costs its timeout, and so does one that never ends its answer.
#[tokio::test]
async fn a_webhook_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1";
            stream.write_all(head).await.expect("written");
            held.push(stream);
        }
    });
    let timeout = Duration::from_millis(300);
    let hook = hook(folder.path(), &format!("http://{address}/"), timeout);
    let why = hook.send(&begun(story(1))).await.expect_err("no end");
    assert!(
        why.to_string().ends_with("gave no answer within 300 ms"),
        "{why}"
    );
}

/// Nobody listens: the reason names the webhook and its address, and no engine, which has nothing to do with it.
#[tokio::test]
async fn a_webhook_that_is_not_there_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let hook = hook(folder.path(), &format!("http://{address}/"), HANG_TIMEOUT);
    let why = hook.send(&begun(story(1))).await.expect_err("nobody");
    let expected = format!("the webhook {address} cannot be reached: ");
    assert!(why.to_string().starts_with(&expected), "{why}");
}

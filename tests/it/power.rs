//! Promise P5 across a power cut: what is not flushed is gone then, whatever the program has written. The calls of the real
//! process are watched (strace), and before each 250 all that the message needs must have been flushed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::servers::{Server, free_port, listens, wait_until};

/// One system call: its text, and the lines of the trace in which it began and ended.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
    began: usize,
    ended: usize,
}

impl Call {
    /// The file of its first argument, as strace shows it behind the number.
    fn file(&self) -> Option<&Path> {
        let (_, rest) = self.text.split_once('<')?;
        rest.split_once('>').map(|(path, _)| Path::new(path))
    }

    /// The names it is given, each in the folder that stands before it, if one does.
    fn names(&self) -> Vec<PathBuf> {
        let pieces: Vec<&str> = self.text.split('"').collect();
        let in_folder = |pair: &[&str]| {
            let folder = pair[0].rsplit_once('<').map_or("", |(_, folder)| folder);
            let folder = folder.split_once('>').map_or("", |(folder, _)| folder);
            Path::new(folder).join(pair[1])
        };
        pieces.chunks_exact(2).map(in_folder).collect()
    }

    fn is_flush_of(&self, path: &Path) -> bool {
        matches!(&*self.name, "fsync" | "fdatasync")
            && self.text.ends_with(" = 0")
            && self.file() == Some(path)
    }

    fn is_write_to(&self, path: &Path) -> bool {
        self.name.contains("write") && self.file() == Some(path)
    }

    /// Whether it sends these words to a client.
    fn says(&self, words: &str) -> bool {
        self.text.contains("<socket:") && self.text.contains(words)
    }

    /// From where to where it renames.
    fn renames(&self) -> Option<(PathBuf, PathBuf)> {
        let done = self.name.starts_with("rename") && self.text.ends_with(" = 0");
        match <[PathBuf; 2]>::try_from(self.names()) {
            Ok([from, to]) if done => Some((from, to)),
            _ => None,
        }
    }
}

/// All calls of all threads; those that were interrupted by calls of others put together again.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: Vec<(&str, usize)> = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, line)) = line.split_once(' ') else {
            continue;
        };
        let line = line.trim();
        if let Some((_, rest)) = line.strip_prefix("<... ").and_then(|l| l.split_once('>')) {
            let Some(place) = open.iter().position(|(other, _)| *other == thread) else {
                continue;
            };
            let call = &mut calls[open.swap_remove(place).1];
            call.text.push_str(rest);
            call.ended = at;
        } else if let Some((name, text)) = line.split_once('(') {
            let (text, ended) = match text.strip_suffix(" <unfinished ...>") {
                Some(text) => {
                    open.push((thread, calls.len()));
                    (text, usize::MAX)
                }
                None => (text, at),
            };
            calls.push(Call {
                name: name.to_owned(),
                text: text.to_owned(),
                began: at,
                ended,
            });
        }
    }
    calls
}

/// What the process did.
struct Trace(Vec<Call>);

impl Trace {
    /// When `path` was next flushed after a call that began at `after`.
    fn flushed(&self, path: &Path, after: usize) -> usize {
        let mut flushes = self.0.iter().filter(|call| call.is_flush_of(path));
        flushes
            .find(|call| call.began > after)
            .map_or(usize::MAX, |call| call.ended)
    }

    /// When the reply that contains this began to be sent.
    fn said(&self, words: &str) -> usize {
        let mut calls = self.0.iter();
        let sent = calls.find(|call| call.says(words));
        sent.unwrap_or_else(|| panic!("{words} was not said")).began
    }

    /// When the log of the database was flushed with the row in which these words are.
    fn row_is_durable(&self, log: &Path, words: &str) -> usize {
        let mut calls = self.0.iter();
        let written = calls.find(|call| call.is_write_to(log) && call.text.contains(words));
        let written = written.unwrap_or_else(|| panic!("no row with {words}"));
        self.flushed(log, written.ended)
    }

    /// The file that was renamed into a place below `folder`: when it was durable there, whole and with its name.
    fn file_is_durable(&self, folder: &Path) -> usize {
        let mut all = self.0.iter();
        let renamed = all.find(|call| call.renames().is_some_and(|(_, to)| to.starts_with(folder)));
        let renamed = renamed.unwrap_or_else(|| panic!("nothing came to {}", folder.display()));
        let (from, to) = renamed.renames().expect("it is one");
        let mut writes = self.0.iter().rev();
        let last = writes.find(|call| call.is_write_to(&from));
        let last = last.unwrap_or_else(|| panic!("nothing was written to {}", from.display()));
        let content = self.flushed(&from, last.ended);
        assert!(
            content < renamed.began,
            "{} is flushed before it gets its name",
            to.display()
        );
        self.flushed(to.parent().expect("a folder"), renamed.ended)
    }
}

impl Trace {
    /// Each of these folders that was made is in the one above it before `reply`; how many they are.
    fn folders_are_durable(&self, reply: usize, is_needed: impl Fn(&Path) -> bool) -> usize {
        let made = |call: &&Call| {
            let done = call.name.starts_with("mkdir") && call.text.ends_with(" = 0");
            done && is_needed(&call.names()[0])
        };
        let made: Vec<&Call> = self.0.iter().filter(made).collect();
        for call in &made {
            let path = &call.names()[0];
            let parent = path.parent().expect("a parent");
            assert!(
                self.flushed(parent, call.ended) < reply,
                "{} is in its folder",
                path.display()
            );
        }
        made.len()
    }
}

/// Runs the relay under strace until it listens there, has it do something, and stops it; what it did.
async fn watched(config: &Path, port: u16, work: impl Future<Output = ()>) -> Trace {
    let trace = config.with_extension("trace");
    let log = std::fs::File::create(config.with_extension("log")).expect("a log file");
    // With -DD the tracer is the child's child, so that the child is the relay and can be told to end, and in a process group
    // of its own, so that it lives to write how the relay has ended.
    let calls_watched = "trace=?rename,?renameat,?renameat2,?mkdir,?mkdirat,write,writev,pwrite64,sendto,fsync,fdatasync";
    let arguments: [&OsStr; 12] = [
        "-DD".as_ref(),
        "-f".as_ref(),
        "-y".as_ref(),
        "-s".as_ref(),
        "5000".as_ref(),
        "-e".as_ref(),
        calls_watched.as_ref(),
        "-o".as_ref(),
        trace.as_ref(),
        env!("CARGO_BIN_EXE_spillway").as_ref(),
        "run".as_ref(),
        "--config".as_ref(),
    ];
    let arguments = arguments.into_iter().chain([config.as_os_str()]);
    let relay = Server::start("strace", arguments, log).until(|| listens(port));
    work.await;
    let main = relay.id().to_string();
    drop(relay);
    // Numbers of few digits are padded.
    let is_end = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some(&main) && words.next() == Some("+++")
    };
    let read = || String::from_utf8_lossy(&std::fs::read(&trace).unwrap_or_default()).into_owned();
    wait_until("the trace is complete", || read().lines().any(is_end));
    Trace(calls(&read()))
}

fn config(folder: &Path, mode: &str, next_hop: &str, port: u16) -> PathBuf {
    let path = folder.join("spillway.toml");
    let store = folder.join("data").join("store");
    std::fs::write(
        &path,
        format!(
            "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n\
             [store]\npath = \"{}\"\ndisk_reserve = \"1MiB\"\n\
             [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\nmode = \"{mode}\"\n\
             [[next_hop]]\nname = \"hop\"\ndomains = [\"*\"]\n{next_hop}",
            store.display()
        ),
    )
    .expect("configuration");
    path
}

/// A message of about so many octets, with this word in its subject.
async fn send(port: u16, word: &str, octets: usize) {
    let mut client = Client::open(([127, 0, 0, 1], port).into())
        .await
        .expect("connect");
    let line = b"0123456789012345678901234567890123456789012345678901234567890123\r\n";
    let mut content = format!("Subject: {word}\r\n\r\n").into_bytes();
    content.extend(line.repeat(octets / line.len()));
    let reply = client.send("a@a.test", &["b@b.test"], &content).await;
    let reply = reply.expect("a reply");
    assert!(reply.starts_with("250 2.0.0 Ok: "), "{reply}");
}

/// Before a queued message is acknowledged its row is flushed; and before that a content too large for the database, the
/// name of its file, and every folder above it that the relay has made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_is_flushed_before_it_is_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, nobody) = (free_port(), free_port());
    let hop = format!("kind = \"smtp\"\naddress = [\"127.0.0.1:{nobody}\"]\ntls = \"off\"\n");
    let config = config(folder.path(), "queue", &hop, port);
    let trace = watched(&config, port, async {
        send(port, "small-one", 4 << 10).await;
        send(port, "large-one", 1 << 20).await;
    })
    .await;
    let store = folder.path().join("data").join("store");
    let log = store.join("spillway.db-wal");
    let replies: Vec<usize> = ["small-one", "large-one"]
        .map(|word| trace.row_is_durable(&log, word))
        .into();
    let accepted = "\"250 2.0.0 Ok: accepted as ";
    let mut said = trace.0.iter().filter(|call| call.says(accepted));
    for (durable, word) in replies.iter().zip(["small", "large"]) {
        let reply = said.next().expect("a reply").began;
        assert!(*durable < reply, "the row of the {word} message");
    }
    let file = trace.file_is_durable(&store.join("bodies"));
    let mut rows = trace.0.iter();
    let row = rows.find(|call| call.is_write_to(&log) && call.text.contains("large-one"));
    assert!(
        file < row.expect("its row").began,
        "the file before its row"
    );

    let first = trace.said(accepted);
    let is_needed = |path: &Path| store.starts_with(path) || path.starts_with(store.join("bodies"));
    let made = trace.folders_are_durable(first, is_needed);
    assert_eq!(made, 3 + 32, "data, store, bodies, those in it");
}

/// Before a message that goes through is acknowledged, it is flushed into its Maildir, and the Maildir into its folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_delivered_into_a_maildir_is_flushed_before_it_is_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let mail = folder.path().join("mail");
    let hop = format!(
        "kind = \"maildir\"\npath = \"{}/{{local}}\"\n",
        mail.display()
    );
    let config = config(folder.path(), "cut-through", &hop, port);
    let trace = watched(&config, port, send(port, "one", 4 << 10)).await;
    let reply = trace.said("\"250 2.0.0 Ok: ");
    assert!(trace.file_is_durable(&mail.join("b")) < reply);
    let made = trace.folders_are_durable(reply, |path| path.starts_with(&mail));
    assert_eq!(made, 5, "mail, b, those in it");
}

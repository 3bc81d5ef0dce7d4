//! The commands that talk to a running relay, against the program itself.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::relay::PATIENCE;
use crate::servers::wait_until;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

/// A relay with a configuration of its own, and the end of the line on which it tells its supervisor how it is.
struct Relay {
    folder: tempfile::TempDir,
    supervisor: UnixDatagram,
    process: Child,
}

impl Relay {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        configure(folder.path(), "errors = 20");
        let line = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&line).expect("binds");
        // Only so that a relay that says nothing fails the test instead of hanging it.
        supervisor
            .set_read_timeout(Some(PATIENCE))
            .expect("timeout");
        let process = command(folder.path(), &["run"])
            .env("NOTIFY_SOCKET", &line)
            .spawn()
            .expect("runs");
        Self {
            folder,
            supervisor,
            process,
        }
    }

    /// Waits until the relay says so.
    fn says(&self, word: &str) {
        let mut octets = [0; 1024];
        loop {
            let length = self.supervisor.recv(&mut octets).expect(word);
            if String::from_utf8_lossy(&octets[..length]).contains(word) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("a process");
    }

    /// Stops the process while it writes nothing: stopped within a write, it would keep the store locked.
    fn hang(&self) {
        let stat = format!("/proc/{}/stat", self.process.id());
        let is_stopped = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "));
        let file = self.folder.path().join("store/spillway.db");
        wait_until("the relay is stopped between two writes", || {
            self.signal(Signal::STOP);
            wait_until("the relay is stopped", is_stopped);
            let db = rusqlite::Connection::open(&file).expect("opens");
            let is_free = db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
            if !is_free {
                self.signal(Signal::CONT);
            }
            is_free
        });
    }

    /// The exit code, and what is written to standard error.
    fn complain(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = command(self.folder.path(), arguments);
        let output = command.stderr(Stdio::piped()).output().expect("runs");
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code().unwrap_or(-1), told)
    }

    fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let output: Output = command(self.folder.path(), arguments)
            .stdout(Stdio::piped())
            .output()
            .expect("runs");
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.code().unwrap_or(-1), told)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command
        .args(arguments)
        .arg("--config")
        .arg(folder.join("spillway.toml"))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn configure(folder: &Path, limits: &str) {
    let text = format!(
        "[relay]\nhostname = \"relay.example\"\n[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\n\
         [limits]\n{limits}\n[store]\npath = \"store\"\ndisk_reserve = \"1MiB\"\n[admin]\nhttp = \"\"\n"
    );
    std::fs::write(folder.join("spillway.toml"), text).expect("writes");
}

/// Started, asked, reloaded with a bad and with a good file, told to drain: each command tells what became of it.
#[test]
fn a_running_relay_is_asked_reloaded_and_drained() {
    let mut relay = Relay::start();
    relay.says("READY=1");
    let (exit, status) = relay.ask(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!((exit, &status["hostname"]), (0, &"relay.example".into()));
    let before = status["config"].clone();

    configure(relay.folder.path(), "errors = 0x");
    let (exit, told) = relay.ask(&["check-config"]);
    assert_eq!(exit, 64, "{told}");
    let socket = relay.folder.path().join("store/control.sock");
    let (exit, again) = relay.ask(&["reload", "--socket", socket.to_str().expect("UTF-8")]);
    assert_eq!(exit, 64, "{again}");
    assert_eq!(
        again.lines().next(),
        told.lines().next(),
        "the relay sees the same"
    );

    configure(
        relay.folder.path(),
        "errors = 10\nin_flight_bytes = \"256MiB\"",
    );
    let (exit, told) = relay.ask(&["reload"]);
    assert_eq!(exit, 64, "{told}");
    assert!(
        told.contains("in_flight_bytes") && told.contains("needs a restart"),
        "{told}"
    );
    assert!(told.ends_with("nothing has changed\n"), "{told}");

    configure(relay.folder.path(), "errors = 10");
    let other = relay.folder.path().join("new.toml");
    std::fs::copy(relay.folder.path().join("spillway.toml"), &other).expect("copies");
    refuses_to_reload(&relay, &other);
    let (exit, told) = relay.ask(&["check-config", "--diff"]);
    let end = "\n1 change; `spillway reload` puts it in force\n";
    assert!(exit == 0 && told.ends_with(end), "{told}");

    let (exit, told) = relay.ask(&["reload"]);
    assert_eq!(exit, 0, "{told}");
    assert_eq!(told, "limits.errors: 20 -> 10\nreloaded: 1 change\n");
    let (_, status) = relay.ask(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_ne!(status["config"], before, "another version is in force");

    let (exit, told) = relay.ask(&["drain"]);
    assert!(exit == 0 && told.starts_with("draining"), "{told}");
    relay.says("STOPPING=1");
    let ended = relay.process.wait().expect("ends");
    assert_eq!(ended.code(), Some(0), "everything in flight was done");
    assert_eq!(relay.ask(&["status"]).0, 69);
}

/// `reload --config` with another file than the relay reads reloads nothing and says what to do, and so does the comparison.
fn refuses_to_reload(relay: &Relay, other: &Path) {
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        let told = command.args(arguments).arg("--config").arg(other).output();
        let told = told.expect("runs");
        let text = String::from_utf8(told.stdout).expect("UTF-8");
        (told.status.code().unwrap_or(-1), text)
    };
    let reads = relay.folder.path().join("spillway.toml");
    let (reads, named) = (reads.display(), other.display());
    let (exit, told) = ask(&["reload"]);
    let why = format!("the relay reads {reads}, and you named {named}: copy it there first");
    assert!(exit == 64 && told.starts_with(&why), "{told}");
    assert!(
        told.ends_with("not reloaded: nothing has changed\n"),
        "{told}"
    );
    let (exit, told) = ask(&["check-config", "--diff"]);
    let end = format!(
        "1 change; copy {named} to {reads} first, then `spillway reload` puts it in force\n"
    );
    assert!(exit == 0 && told.ends_with(&end), "{told}");
}

/// A reload whose file hangs (a FIFO that nobody writes to) is all that hangs: whoever asks is answered, signals that mean
/// nothing change nothing, and SIGTERM ends the relay.
#[test]
fn a_reload_that_hangs_keeps_nobody_from_ending_the_relay() {
    let mut relay = Relay::start();
    relay.says("READY=1");
    let file = relay.folder.path().join("spillway.toml");
    std::fs::remove_file(&file).expect("removes");
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
    relay.signal(Signal::HUP);
    relay.says("RELOADING=1");
    let socket = relay.folder.path().join("store/control.sock");
    let socket = socket.to_str().expect("UTF-8").to_owned();
    for meaningless in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        relay.signal(meaningless);
        let (exit, told) = relay.ask(&["status", "--socket", &socket]);
        assert_eq!(exit, 0, "{meaningless:?}: {told}");
    }
    relay.signal(Signal::TERM);
    relay.says("STOPPING=1");
    assert_eq!(relay.process.wait().expect("ends").code(), Some(0));
}

/// A second relay on the same store would spoil it; it says so and goes.
#[test]
fn a_second_relay_does_not_start() {
    let relay = Relay::start();
    relay.says("READY=1");
    let (exit, _) = relay.ask(&["run"]);
    assert_eq!(exit, 75);
    assert_eq!(relay.ask(&["status"]).0, 0, "the first is as it was");
}

/// A relay that hangs takes connections and never answers. Each command about it ends soon, names its process and the way out,
/// and fails; what the store knows is still shown. The relay is stopped here, so only the bound of the commands ends them.
#[test]
fn a_relay_that_hangs_is_named() {
    let relay = Relay::start();
    relay.says("READY=1");
    relay.hang();
    let pid = relay.process.id();
    let silent = format!("spillway: the relay (pid {pid}) does not answer on ");
    let fix = format!("its process is stopped: `kill -CONT {pid}` continues it");
    let (exit, told) = relay.complain(&["status"]);
    assert_eq!(exit, 75, "{told}");
    assert!(told.starts_with(&silent) && told.contains(&fix), "{told}");
    let (exit, told) = relay.complain(&["queue", "list"]);
    assert_eq!(exit, 0, "{told}");
    assert!(told.contains(&fix), "{told}");
    let (exit, list) = relay.ask(&["queue", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!((exit, &list["relay"]), (0, &"not-answering".into()));
    relay.signal(Signal::CONT);
    assert_eq!(relay.ask(&["status"]).0, 0, "it goes on");
}

/// `engine show` of a running relay has its state and what was measured, for people and as JSON.
#[test]
fn a_running_engine_is_shown_with_what_was_measured() {
    let relay = Relay::start();
    relay.says("READY=1");
    let (exit, told) = relay.ask(&["engine", "show", "attachment"]);
    assert_eq!(exit, 0, "{told}");
    assert!(told.starts_with("engine "), "{told}");
    assert!(told.contains("\nno scans since "), "{told}");
    assert!(told.contains("too little evidence"), "{told}");
    let (exit, told) = relay.ask(&["engine", "show", "attachment", "--json"]);
    assert_eq!(exit, 0, "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["engine"], "attachment");
    assert_eq!(told["replicas"][0]["drained"], false);
    assert_eq!(told["measured"]["scans"]["count"], 0);
    assert_eq!(told["proposals"][0]["setting"], "timeout");
    let (exit, _) = relay.ask(&["engine", "show", "other"]);
    assert_eq!(exit, 1, "no such engine");
}

/// The answer to a drain and to a resume of an engine is its state after that, and `status` says the same.
#[test]
fn drain_and_resume_tell_the_state() {
    let relay = Relay::start();
    relay.says("READY=1");
    let (_, status) = relay.ask(&["status"]);
    assert!(
        status.contains("engine attachment  healthy, 0 of "),
        "{status}"
    );
    let (exit, told) = relay.ask(&["engine", "drain", "attachment"]);
    assert_eq!(exit, 0, "{told}");
    assert!(
        told.starts_with("drained: engine attachment is down since "),
        "{told}"
    );
    let (_, status) = relay.ask(&["status"]);
    assert!(
        status.contains("engine attachment  down since "),
        "{status}"
    );
    let (exit, told) = relay.ask(&["engine", "resume", "attachment", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(exit, 0, "{told}");
    assert_eq!(told["engine"]["replicas"][0]["drained"], false);
}

/// `--watch` shows the status again and again, shows a relay that stops and one that comes back, and a signal ends it with the
/// exit code of the last status. For programs each status is one line.
#[test]
fn a_watched_status_goes_on_until_a_signal() {
    let mut relay = Relay::start();
    relay.says("READY=1");
    let mut watching = command(relay.folder.path(), &["status", "--watch", "1", "--json"]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().expect("runs");
    let out = watching.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(out).lines();
    let mut next = || -> serde_json::Value {
        let line = lines.next().expect("goes on").expect("reads");
        serde_json::from_str(&line).expect("one document a line")
    };
    for _ in 0..2 {
        assert_eq!(next()["hostname"], "relay.example");
    }
    relay.signal(Signal::TERM);
    relay.process.wait().expect("ends");
    while next()["error"] == serde_json::Value::Null {}
    let end = |watching: &mut Child, signal| {
        kill_process(Pid::from_child(watching), signal).expect("a process");
        watching.wait().expect("ends").code()
    };
    assert_eq!(end(&mut watching, Signal::INT), Some(69), "no relay runs");

    relay.process = command(relay.folder.path(), &["run"])
        .spawn()
        .expect("runs");
    let mut watching = command(relay.folder.path(), &["status", "--watch=1"]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().expect("runs");
    let out = watching.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(out).lines().map(|line| line.expect("reads"));
    for _ in 0..2 {
        let is_head = |line: &String| line.starts_with("DELAY OF VALID MAIL");
        lines.find(is_head).expect("a status");
        let is_gap = |line: &String| line.is_empty();
        lines.find(is_gap).expect("an empty line");
    }
    assert_eq!(end(&mut watching, Signal::TERM), Some(0), "the relay runs");
}

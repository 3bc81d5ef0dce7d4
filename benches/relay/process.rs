//! Relays, sinks and their costs, as processes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A free port of the loopback address.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Waits until somebody listens.
pub fn wait_for(port: u16) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "nobody listens on {address}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// 10,000 sessions need as many descriptors on both sides.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.or(Some(65_536));
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: wanted,
            maximum: limit.maximum,
        },
    );
}

/// A program that is stopped when the measurement ends, however it ends.
pub struct Stopped(pub Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running Spillway.
pub struct Spillway {
    child: Stopped,
    pub port: u16,
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Spillway {
    /// Starts the release binary with this configuration after a listener in `mode`.
    pub fn start(mode: &str, rest: &str) -> Self {
        let listener = format!("mode = \"{mode}\"\n");
        Self::start_as(
            Path::new(env!("CARGO_BIN_EXE_spillway")),
            &[],
            &listener,
            rest,
        )
    }

    /// Starts `program` with these lines for its listener, and more in its environment.
    pub fn start_as(
        program: &Path,
        environment: &[(&str, &str)],
        listener: &str,
        rest: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let config = format!(
            "[relay]\nhostname = \"relay.test\"\nlog_level = \"warn\"\n\
             [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\n{listener}\
             [admin]\nhttp = \"\"\n{rest}"
        );
        std::fs::write(folder.path().join("spillway.toml"), &config).expect("configuration");
        let mut spillway = Self {
            child: Stopped(launch(program, folder.path(), environment)),
            port,
            folder,
            program: program.to_owned(),
        };
        spillway.wait();
        spillway
    }

    /// Until it listens; if it ends instead, its log tells why.
    fn wait(&mut self) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = self.child.0.try_wait() {
                let log = std::fs::read_to_string(self.folder.path().join("log"));
                panic!("spillway: {status}\n{}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// User and system seconds so far.
    pub fn cpu(&self) -> f64 {
        cpu_of(self.child.0.id()).0
    }

    /// Resident octets.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id()))
            .unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap_or("0");
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .unwrap_or(0)
            * 1024
    }
}

/// What only the drill does with it.
#[allow(dead_code, reason = "this file is a part of two benchmarks")]
impl Spillway {
    /// Its configuration, for the command line tool.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("spillway.toml")
    }

    /// What was started.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// SIGKILL, and another start on the same store; returns when it listens again.
    pub fn kill_and_start(&mut self, environment: &[(&str, &str)]) {
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        self.child = Stopped(launch(&self.program, self.folder.path(), environment));
        self.wait();
    }

    /// Leaves its folder (configuration, log, store) on the disk.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        println!("kept: {}", self.folder.path().display());
    }

    /// SIGTERM; returns when it has ended, which it does within its `relay.drain_timeout`.
    pub fn finish(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_child(&self.child.0);
        let _ = kill_process(pid, Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(45) {
            if let Ok(Some(_)) = self.child.0.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("spillway did not end within 45 s of SIGTERM");
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
    }
}

fn launch(program: &Path, folder: &Path, environment: &[(&str, &str)]) -> Child {
    let log = folder.join("log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .expect("a log");
    Command::new(program)
        .args(["run", "--config"])
        .arg(folder.join("spillway.toml"))
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("spillway starts")
}

/// A Postfix of its own that relays everything to `sink`.
pub struct Postfix {
    folder: tempfile::TempDir,
    pub port: u16,
}

impl Postfix {
    pub fn start(sink: u16) -> Self {
        Self::start_with(sink, "")
    }

    /// With more lines for its main.cf.
    pub fn start_with(sink: u16, more: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("postfix")
            .tempdir_in("/var/tmp")
            .expect("a folder");
        let port = free_port();
        let at = folder.path();
        let daemons = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix"]
            .iter()
            .find(|p| Path::new(p).exists());
        let daemons = daemons.expect("Postfix is installed (Debian package postfix)");
        std::fs::write(
            at.join("main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {at}/queue\ndata_directory = {at}/data\n\
                 daemon_directory = {daemons}\ncommand_directory = /usr/sbin\nmail_owner = postfix\nsetgid_group = postdrop\n\
                 inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmydestination =\nmynetworks = 127.0.0.0/8\n\
                 myhostname = postfix.test\nrelayhost = [127.0.0.1]:{sink}\ndefault_process_limit = 100\n\
                 smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n\
                 smtp_tls_security_level = none\nsmtpd_tls_security_level = none\nmaillog_file = {at}/log\n\
                 maillog_file_prefixes = /var\n{more}",
                at = at.display()
            ),
        )
        .expect("main.cf");
        std::fs::write(
            at.join("master.cf"),
            format!(
                "127.0.0.1:{port} inet n - n - - smtpd\npickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\n\
                 qmgr unix n - n 300 1 qmgr\nrewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\n\
                 defer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\nverify unix - - n - 1 verify\n\
                 flush unix n - n 1000? 0 flush\nproxymap unix - - n - - proxymap\nsmtp unix - - n - - smtp\n\
                 relay unix - - n - - smtp\nshowq unix n - n - - showq\nerror unix - - n - - error\n\
                 retry unix - - n - - error\ndiscard unix - - n - - discard\nanvil unix - - n - 1 anvil\n\
                 scache unix - - n - 1 scache\npostlog unix-dgram n - n - 1 postlogd\n"
            ),
        )
        .expect("master.cf");
        for part in ["queue", "data"] {
            std::fs::create_dir(at.join(part)).expect("a folder");
        }
        run(
            "chown",
            &["postfix", &at.join("data").display().to_string()],
        );
        run("chmod", &["755", &at.display().to_string()]);
        run("postfix", &["-c", &at.display().to_string(), "start"]);
        wait_for(port);
        Self { folder, port }
    }

    /// User and system seconds of the master and everything it has started.
    pub fn cpu(&self) -> f64 {
        let master: u32 = std::fs::read_to_string(self.pid_file())
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0);
        let (own, reaped) = cpu_of(master);
        let children: f64 = processes()
            .filter(|pid| parent_of(*pid) == master)
            .map(|pid| cpu_of(pid).0)
            .sum();
        own + reaped + children
    }

    /// Its configuration and queue.
    #[allow(dead_code, reason = "this file is a part of two benchmarks")]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("queue/pid/master.pid")
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        run(
            "postfix",
            &["-c", &self.folder.path().display().to_string(), "stop"],
        );
    }
}

fn run(program: &str, arguments: &[&str]) {
    let search = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", search)
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        other => eprintln!("{program} {arguments:?}: {other:?}"),
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat_of(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field may contain anything, but ends with the last parenthesis.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

fn parent_of(pid: u32) -> u32 {
    stat_of(pid)
        .get(1)
        .and_then(|f| f.parse().ok())
        .unwrap_or(0)
}

/// Seconds of the process itself, and of children it has waited for (proc_pid_stat(5), fields 14 to 17).
pub fn cpu_of(pid: u32) -> (f64, f64) {
    let fields = stat_of(pid);
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 100.0
    };
    (ticks(11) + ticks(12), ticks(13) + ticks(14))
}

/// smtp-sink until it has `messages`.
pub fn sink(port: u16, messages: usize) -> Stopped {
    let child = Command::new("/usr/sbin/smtp-sink")
        // As root it insists on giving up its rights.
        .args([
            "-u",
            "postfix",
            "-M",
            &messages.to_string(),
            &format!("127.0.0.1:{port}"),
            "1024",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("smtp-sink (Debian package postfix)");
    let sink = Stopped(child);
    wait_for(port);
    sink
}

/// smtp-source: `messages` of `octets` in `sessions` at once.
pub fn source(port: u16, sessions: usize, messages: usize, octets: usize) -> Stopped {
    let child = Command::new("/usr/sbin/smtp-source")
        .args([
            "-s",
            &sessions.to_string(),
            "-m",
            &messages.to_string(),
            "-l",
            &octets.to_string(),
        ])
        .args([
            "-f",
            "sender@a.test",
            "-t",
            "recipient@b.test",
            &format!("127.0.0.1:{port}"),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("smtp-source (Debian package postfix)");
    Stopped(child)
}

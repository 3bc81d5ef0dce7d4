//! Real servers for tests, each with a configuration and folder of its own, ended when dropped, and when the test's
//! process ends in any other way.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Everything a test waits for happens long before this, on a slow machine with other work as well, or not at all.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a test is left out, where the harness does not hide it as what a test prints that passes.
pub fn left_out(test: &str, because: &str) {
    let _ = writeln!(std::io::stderr(), "left out: {test}: {because}");
}

/// A free port of the loopback address that no other test of this process gets. It is none of those that the system chooses
/// for clients (32768 and up on Linux): one of these could be taken before the server that it is for has started.
pub fn free_port() -> u16 {
    const FIRST: u32 = 16_384;
    const COUNT: u32 = 16_384;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begins = std::process::id().wrapping_mul(257);
    for _ in 0..COUNT {
        let next = begins.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT).expect("a port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// Polls a condition of another process.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Somebody accepts connections there.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_ok()
}

/// A server that does not outlive the test, nor the process of the tests, however that ends: `keeper` sees to it.
pub struct Server {
    name: String,
    keeper: Child,
    id: Pid,
}

impl Server {
    /// Starts a program; `log` takes its standard error.
    pub fn start<A: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = A>,
        log: impl Into<Stdio>,
    ) -> Self {
        let mut keeper = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keeper"))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for the tests; their end is what ends the servers.
            .process_group(0)
            .spawn()
            .expect("bash runs");
        let mut id = String::new();
        BufReader::new(keeper.stdout.take().expect("a pipe"))
            .read_line(&mut id)
            .expect("the server's process id");
        let id = id.trim().parse().ok().and_then(Pid::from_raw);
        Self {
            name: program.to_owned(),
            id: id.expect("a process id"),
            keeper,
        }
    }

    /// Waits until it is ready.
    pub fn until(mut self, mut is_ready: impl FnMut() -> bool) -> Self {
        wait_until(&format!("{} listens", self.name), || {
            let ended = self.keeper.try_wait().expect("its state");
            assert!(
                ended.is_none(),
                "{} has ended; tests/run installs it",
                self.name
            );
            is_ready()
        });
        self
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.id.as_raw_nonzero().get()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.id, signal).expect("it runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A server is gone with all that it has started, and that does not listen to SIGTERM, when the pipe to its keeper is closed:
/// the system does that for a test process that Ctrl-C or SIGKILL ended. One that is stopped is gone as well.
#[test]
fn no_server_outlives_the_test() {
    for (trap, stopped) in [("trap '' TERM;", false), ("", true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("started");
        let script = format!("{trap} sleep infinity & echo $! >{}; wait", file.display());
        let started = || std::fs::read_to_string(&file).unwrap_or_default();
        let server = Server::start("bash", ["-c", &script], Stdio::null())
            .until(|| started().ends_with('\n'));
        let stat = format!("/proc/{}/stat", started().trim());
        // One that nobody has buried yet has ended all the same.
        let runs = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(runs());
        if stopped {
            server.signal(Signal::STOP);
        }
        drop(server);
        wait_until("what it has started ends", || !runs());
    }
}

/// The product itself, as users run it.
pub struct Spillway {
    pub server: Server,
}

impl Spillway {
    /// Runs it with this configuration file until it listens on `port`.
    pub fn start(config: &Path, port: u16) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(config.with_extension("log"))
            .expect("a log file");
        let arguments = [
            OsStr::new("run"),
            OsStr::new("--config"),
            config.as_os_str(),
        ];
        let mut server = Server::start(env!("CARGO_BIN_EXE_spillway"), arguments, log);
        wait_until("spillway listens", || {
            let ended = server.keeper.try_wait().expect("its state");
            assert!(ended.is_none(), "spillway ended: {}", log_of(config));
            listens(port)
        });
        Self { server }
    }
}

/// What it has logged.
pub fn log_of(config: &Path) -> String {
    std::fs::read_to_string(config.with_extension("log")).unwrap_or_default()
}

/// A command of the product; its standard output.
pub fn cli(config: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .expect("spillway runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

/// A Postfix instance of its own, which only root can have.
pub struct Postfix {
    _server: Server,
    pub folder: PathBuf,
    pub port: u16,
}

impl Postfix {
    /// `settings` are lines of main.cf. The folder is left to the caller to remove.
    pub fn start(folder: &Path, settings: &str) -> Self {
        let port = free_port();
        let at = folder.display();
        let daemons = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix"]
            .iter()
            .find(|p| Path::new(p).exists());
        let daemons = daemons.expect("Postfix is installed; tests/run does that");
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {at}/queue\ndata_directory = {at}/data\n\
             daemon_directory = {daemons}\ncommand_directory = /usr/sbin\nmail_owner = postfix\nsetgid_group = postdrop\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\ndefault_process_limit = 50\n\
             smtp_tls_security_level = none\nsmtpd_tls_security_level = none\nmaillog_file = {at}/log\n\
             maillog_file_prefixes = /\nsmtpd_client_connection_count_limit = 0\nalias_maps =\nalias_database =\n\
             biff = no\nlocal_recipient_maps =\nmessage_size_limit = 60000000\nmailbox_size_limit = 0\n{settings}"
        );
        let mut master = format!("127.0.0.1:{port} inet n - n - - smtpd\n");
        for (service, kind, process) in [
            ("pickup", "unix n - n 60 1", "pickup"),
            ("cleanup", "unix n - n - 0", "cleanup"),
            ("qmgr", "unix n - n 300 1", "qmgr"),
            ("rewrite", "unix - - n - -", "trivial-rewrite"),
            ("bounce", "unix - - n - 0", "bounce"),
            ("defer", "unix - - n - 0", "bounce"),
            ("trace", "unix - - n - 0", "bounce"),
            ("proxymap", "unix - - n - -", "proxymap"),
            ("smtp", "unix - - n - -", "smtp"),
            ("relay", "unix - - n - -", "smtp"),
            ("showq", "unix n - n - -", "showq"),
            ("error", "unix - - n - -", "error"),
            ("retry", "unix - - n - -", "error"),
            ("discard", "unix - - n - -", "discard"),
            ("local", "unix - n n - -", "local"),
            ("virtual", "unix - n n - -", "virtual"),
            ("anvil", "unix - - n - 1", "anvil"),
            ("scache", "unix - - n - 1", "scache"),
            ("postlog", "unix-dgram n - n - 1", "postlogd"),
        ] {
            let _ = writeln!(master, "{service} {kind} {process}");
        }
        std::fs::write(folder.join("main.cf"), main).expect("main.cf");
        std::fs::write(folder.join("master.cf"), master).expect("master.cf");
        for part in ["queue", "data"] {
            std::fs::create_dir(folder.join(part)).expect("a folder");
        }
        command("chmod", &["755", &at.to_string()]);
        command(
            "chown",
            &["postfix", &folder.join("data").display().to_string()],
        );
        // As `postfix start` does it, but in the foreground.
        command("postfix", &["-c", &at.to_string(), "check"]);
        let master = format!("{daemons}/master");
        let server = Server::start(&master, ["-c", &at.to_string()], Stdio::null());
        Self {
            _server: server.until(|| listens(port)),
            folder: folder.to_owned(),
            port,
        }
    }
}

/// A folder of signatures for ClamAV: one, for the EICAR test file.
pub fn signatures(folder: &Path) -> PathBuf {
    let database = folder.join("database");
    std::fs::create_dir(&database).expect("a folder");
    // The test file is defined to begin with these 68 octets (eicar.org); the signature is on all of them.
    let mut hex = String::new();
    for octet in crate::samples::eicar() {
        let _ = write!(hex, "{octet:02x}");
    }
    let signature = format!("Test.EICAR:0:*:{hex}\n");
    std::fs::write(database.join("test.ndb"), signature).expect("a signature");
    database
}

/// clamd with a signature of its own for the EICAR test file.
pub struct Clamd {
    pub server: Server,
    pub socket: PathBuf,
}

impl Clamd {
    pub fn start(folder: &Path) -> Self {
        let database = signatures(folder);
        let socket = folder.join("clamd.ctl");
        let config = folder.join("clamd.conf");
        std::fs::write(
            &config,
            format!(
                "Foreground yes\nDatabaseDirectory {}\nLocalSocket {}\nLogFile {}\nUser root\nMaxThreads 12\n",
                database.display(),
                socket.display(),
                folder.join("clamd.log").display()
            ),
        )
        .expect("clamd.conf");
        let arguments = [OsStr::new("--config-file"), config.as_os_str()];
        let server = Server::start("/usr/sbin/clamd", arguments, Stdio::inherit())
            .until(|| UnixStream::connect(&socket).is_ok());
        Self { server, socket }
    }
}

/// SpamAssassin's spamd, without the network.
pub struct Spamd {
    _server: Server,
    pub port: u16,
}

impl Spamd {
    pub fn start(folder: &Path) -> Self {
        let port = free_port();
        // A folder of preferences and state of its own; root may scan only if it says for whom.
        let mut arguments = vec![
            "--local".to_owned(),
            "--nouser-config".to_owned(),
            "--max-children=2".to_owned(),
            "--listen=127.0.0.1".to_owned(),
            format!("--port={port}"),
            "--syslog=stderr".to_owned(),
            format!("--helper-home-dir={}", folder.display()),
        ];
        if is_root() {
            arguments.push("--username=nobody".to_owned());
        }
        let log = std::fs::File::create(folder.join("spamd.log")).expect("a log file");
        let server = Server::start("/usr/sbin/spamd", arguments, log);
        Self {
            _server: server.until(|| listens(port)),
            port,
        }
    }
}

/// rspamd with a normal worker and one that is a mail filter, without modules and without the network.
pub struct Rspamd {
    _server: Server,
    pub port: u16,
    /// Where it speaks the milter protocol.
    pub milter: u16,
}

impl Rspamd {
    pub fn start(folder: &Path) -> Self {
        Self::with(folder, "")
    }

    /// With rules of the test's own, in Lua.
    pub fn with(folder: &Path, lua: &str) -> Self {
        Self::run(folder, lua, "")
    }

    /// With a key pair of its own in its normal worker; its public key.
    pub fn with_key(folder: &Path) -> (Self, String) {
        let (pair, key) = Self::key_pair();
        (Self::run(folder, "", &pair), key)
    }

    /// A new key pair as a block of rspamd's configuration, and its public key.
    pub fn key_pair() -> (String, String) {
        let output = Command::new("/usr/bin/rspamadm")
            .arg("keypair")
            .output()
            .expect("rspamadm is installed; tests/run does that");
        let pair = String::from_utf8(output.stdout).expect("text");
        let key = pair
            .lines()
            .find_map(|line| line.trim().strip_prefix("pubkey = \""))
            .and_then(|rest| rest.strip_suffix("\";"))
            .expect("a public key")
            .to_owned();
        (pair, key)
    }

    /// `worker`: what its normal worker has beside a socket.
    fn run(folder: &Path, lua: &str, worker: &str) -> Self {
        let (port, milter) = (free_port(), free_port());
        let at = folder.display();
        // The public suffixes that it comes with take it seconds to compile.
        std::fs::write(folder.join("tld"), "test\n").expect("a list of suffixes");
        std::fs::write(folder.join("rules.lua"), lua).expect("rules");
        let config = folder.join("rspamd.conf");
        std::fs::write(
            &config,
            format!(
                "options {{ pidfile = \"{at}/rspamd.pid\"; tempdir = \"{at}\"; hs_cache_dir = \"{at}\"; filters = \"\"; url_tld = \"{at}/tld\";\n\
                 control_socket = \"{at}/control.sock mode=0600\"; history_file = \"{at}/history\";\n\
                 dns {{ nameserver = [\"127.0.0.1:9\"]; timeout = 0.1s; retransmits = 1; }} }}\n\
                 logging {{ type = \"file\"; filename = \"{at}/rspamd.log\"; level = \"info\"; }}\n\
                 worker \"normal\" {{ bind_socket = \"127.0.0.1:{port}\"; count = 1; {worker} }}\n\
                 worker \"rspamd_proxy\" {{ bind_socket = \"127.0.0.1:{milter}\"; count = 1; milter = yes;\n\
                 upstream \"local\" {{ default = yes; self_scan = yes; }} }}\n\
                 actions {{ reject = 15; add_header = 6; greylist = 4; }}\nlua = \"{at}/rules.lua\";\n"
            ),
        )
        .expect("rspamd.conf");
        let arguments = ["--no-fork", "--insecure", "--config"].map(OsStr::new);
        let arguments = arguments.into_iter().chain([config.as_os_str()]);
        let server = Server::start("/usr/bin/rspamd", arguments, Stdio::null());
        Self {
            _server: server.until(|| listens(port) && listens(milter)),
            port,
            milter,
        }
    }
}

/// c-icap with its echo service, and its anti-virus service over a clamd.
pub struct CIcap {
    _server: Server,
    pub port: u16,
}

impl CIcap {
    pub fn start(folder: &Path, clamd: &Clamd) -> Self {
        let port = free_port();
        let at = folder.display();
        let config = folder.join("c-icap.conf");
        // Only root can be somebody, and has to say whom.
        let user = if is_root() {
            "User root\nGroup root\n"
        } else {
            ""
        };
        std::fs::write(
            &config,
            format!(
                "PidFile {at}/c-icap.pid\nCommandsSocket {at}/c-icap.ctl\nStartServers 1\nMaxServers 1\nThreadsPerChild 10\n\
                 MinSpareThreads 1\nMaxSpareThreads 10\nPort 127.0.0.1:{port}\n{user}ServerName test\nTmpDir {at}\n\
                 ServerLog {at}/c-icap.log\nAccessLog {at}/c-icap.access\nLoadMagicFile /etc/c-icap/c-icap.magic\n\
                 TemplateDir /usr/share/c_icap/templates/\nTemplateDefaultLanguage en\n\
                 Service echo srv_echo.so\nService antivirus_module virus_scan.so\n\
                 ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple\n\
                 ServiceAlias stock virus_scan\nvirus_scan.SendPercentData 5\nvirus_scan.StartSendPercentDataAfter 2M\n\
                 virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE GIF JPEG MSOFFICE\nvirus_scan.MaxObjectSize 100M\n\
                 virus_scan.DefaultEngine clamd\nModule common clamd_mod.so\nclamd_mod.ClamdSocket {}\n",
                clamd.socket.display()
            ),
        )
        .expect("c-icap.conf");
        let arguments = [OsStr::new("-N"), OsStr::new("-f"), config.as_os_str()];
        let server = Server::start("/usr/bin/c-icap", arguments, Stdio::null());
        Self {
            _server: server.until(|| listens(port)),
            port,
        }
    }
}

/// OpenDKIM as a mail filter, with a key of its own for a.test that it finds without the network.
pub struct OpenDkim {
    _server: Server,
    pub socket: PathBuf,
}

/// What an OpenDKIM is there for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dkim {
    Sign,
    Verify,
}

impl OpenDkim {
    pub fn start(folder: &Path, what: Dkim) -> Self {
        let at = folder.display();
        dkim_key(folder);
        let mode = if what == Dkim::Sign { "s" } else { "v" };
        let socket = folder.join(format!("opendkim-{mode}.sock"));
        let config = folder.join(format!("opendkim-{mode}.conf"));
        // What comes from hosts of its own it would not verify, and this machine is one.
        let internal = match what {
            Dkim::Sign => String::new(),
            Dkim::Verify => format!("InternalHosts {at}/nobody\n"),
        };
        std::fs::write(folder.join("nobody"), "192.0.2.1\n").expect("a list of hosts");
        std::fs::write(
            &config,
            format!(
                "Socket local:{}\nMode {mode}\nDomain a.test\nSelector s\nKeyFile {at}/s.private\nRequireSafeKeys no\n\
                 AuthservID relay.test\nTestPublicKeys {at}/dkim-keys\nBackground no\nSyslog no\nUMask 0000\n{internal}",
                socket.display()
            ),
        )
        .expect("opendkim.conf");
        let arguments = [OsStr::new("-x"), config.as_os_str()];
        let server = Server::start("/usr/sbin/opendkim", arguments, Stdio::null());
        Self {
            _server: server.until(|| UnixStream::connect(&socket).is_ok()),
            socket,
        }
    }
}

/// A key for a.test, its public half in a file of keys as opendkim's tests have it.
fn dkim_key(folder: &Path) {
    let (private, keys) = (folder.join("s.private"), folder.join("dkim-keys"));
    if keys.exists() {
        return;
    }
    let (private, at) = (private.display().to_string(), folder.display());
    command("openssl", &["genrsa", "-out", &private, "2048"]);
    let public = format!("{at}/s.public");
    command(
        "openssl",
        &["rsa", "-in", &private, "-pubout", "-out", &public],
    );
    let public = std::fs::read_to_string(public).expect("a public key");
    let base64: String = public
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    std::fs::write(
        keys,
        format!("s._domainkey.a.test v=DKIM1; k=rsa; p={base64}\n"),
    )
    .expect("keys");
}

/// Runs a tool of the system.
pub fn command(program: &str, arguments: &[&str]) -> String {
    let search = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", search)
        .output()
        .expect(program);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

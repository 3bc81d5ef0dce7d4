//! Postfix with clamav-milter, for comparison: the same flood, the same engine, as Debian sets them up.
//!
//! Only the first engine is asked: a milter for each of the others would wait for the first one all the same.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::{Postfix, Stopped, free_port, wait_for};
use crate::relay::Books;

const MILTER: &str = "/usr/sbin/clamav-milter";

/// A running peer.
pub struct Peer {
    pub postfix: Postfix,
    milter: Stopped,
    _folder: tempfile::TempDir,
}

/// What is missing to run it.
pub fn lacks() -> Option<&'static str> {
    if !Path::new("/usr/sbin/postfix").exists() {
        return Some("Debian's package postfix");
    }
    if !Path::new(MILTER).exists() {
        return Some("Debian's package clamav-milter");
    }
    (!rustix::process::geteuid().is_root()).then_some("the rights of root")
}

impl Peer {
    /// With this engine and next hop.
    pub fn start(engine: u16, sink: u16) -> Self {
        // Its user must be able to write there.
        let folder = tempfile::Builder::new()
            .prefix("milter")
            .tempdir_in("/var/tmp")
            .expect("a folder");
        let port = free_port();
        let config = folder.path().join("clamav-milter.conf");
        std::fs::write(
            &config,
            format!(
                "MilterSocket inet:{port}@127.0.0.1\nForeground true\nClamdSocket tcp:127.0.0.1:{engine}\nOnInfected Quarantine\n\
                 OnFail Defer\nMaxFileSize 25M\nReadTimeout 120\nTemporaryDirectory /var/tmp\n"
            ),
        )
        .expect("configuration");
        let milter = Command::new(MILTER)
            .arg("--config-file")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("clamav-milter starts");
        let milter = Stopped(milter);
        wait_for(port);
        let postfix = Postfix::start_with(
            sink,
            &format!("smtpd_milters = inet:127.0.0.1:{port}\nmilter_default_action = tempfail\n"),
        );
        Self {
            postfix,
            milter,
            _folder: folder,
        }
    }

    /// User and system seconds so far.
    pub fn cpu(&self) -> f64 {
        self.postfix.cpu() + crate::process::cpu_of(self.milter.0.id()).0
    }

    /// What is still in its queues, by queue id.
    pub fn books(&self) -> Books {
        let output = Command::new("/usr/sbin/postqueue")
            .arg("-c")
            .arg(self.postfix.folder())
            .arg("-j")
            .output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        let mut books = Books::default();
        for line in String::from_utf8_lossy(&text).lines() {
            let Ok(entry) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let of = match field("queue_name").as_str() {
                "hold" => &mut books.held,
                _ => &mut books.pending,
            };
            of.insert(field("queue_id"), field("queue_name"));
        }
        books
    }
}

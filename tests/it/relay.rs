//! A relay inside the test's process, with a folder and ports of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spillway::app::{self, Running};
use spillway::config;
use tempfile::TempDir;

pub use crate::servers::PATIENCE;

/// Starts relays that keep their files in one folder.
pub struct Site {
    folder: TempDir,
}

impl Site {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a configuration that listens on a free port and has no admin sockets in the way of other tests.
    pub fn configure(&self, text: &str) -> PathBuf {
        let listener = if text.contains("[[listener]]") {
            ""
        } else {
            "[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\n"
        };
        let relay = if text.contains("[relay]") {
            ""
        } else {
            "[relay]\nhostname = \"relay.test\"\n"
        };
        let admin = if text.contains("[admin]") {
            ""
        } else {
            "[admin]\nhttp = \"\"\n"
        };
        let store = if text.contains("[store]") {
            ""
        } else {
            "[store]\ndisk_reserve = \"1MiB\"\n"
        };
        let path = self.path().join("spillway.toml");
        std::fs::write(&path, format!("{relay}{listener}{admin}{store}{text}"))
            .expect("configuration");
        path
    }

    /// A running relay with this configuration.
    pub async fn start(&self, text: &str) -> Relay {
        let path = self.configure(text);
        let config = config::load(Some(&path)).unwrap_or_else(|problems| panic!("{problems}"));
        let running = app::start(config, Some(path))
            .await
            .expect("the relay starts");
        Relay { running }
    }

    /// The messages in the Maildirs of all recipients, as files.
    pub fn delivered(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().join("spillway-data/maildir")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if folder.ends_with("new") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// A running relay.
pub struct Relay {
    pub running: Running,
}

impl Relay {
    /// The first address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.running.addresses()[0]
    }
}

/// Asks again and again until the answer is there; fails the test when it never comes.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let asking = async {
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"))
}

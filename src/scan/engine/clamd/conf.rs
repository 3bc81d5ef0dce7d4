//! What a clamd on this machine says about its own limits, in the only place where it says it: its configuration file.

use std::path::Path;
use std::time::Duration;

use crate::file;
use crate::scan::Settings;
use crate::scan::engine::Address;

/// Where distributions keep it.
const FILES: [&str; 4] = [
    "/etc/clamav/clamd.conf",
    "/etc/clamd.d/scan.conf",
    "/etc/clamd.conf",
    "/usr/local/etc/clamd.conf",
];
/// Octets of it that are read.
const CONF_OCTETS_MAX: u64 = 1 << 20;

/// What does not fit together, of the clamd at any of these addresses whose configuration is found here; each with its
/// remedy. Blocks on files.
pub(in crate::scan) fn advice(settings: &Settings, addresses: &[Address]) -> Vec<String> {
    let read = |path: &&str| {
        let text = file::read_text(Path::new(path), CONF_OCTETS_MAX).ok()?;
        Some(((*path).to_owned(), text))
    };
    let files = FILES.iter().filter_map(read);
    let matching = files.map(|(path, text)| (path, Conf::read(&text)));
    matching
        .filter(|(_, conf)| addresses.iter().any(|address| conf.listens_on(address)))
        .flat_map(|(path, conf)| conf.advice(settings, &path))
        .collect()
}

/// The keys that matter here, at clamd's own defaults (clamd.conf(5), 1.4).
#[derive(Debug, PartialEq)]
struct Conf {
    local_socket: Option<String>,
    tcp_port: Option<u16>,
    max_threads: usize,
    max_scan_time: Duration,
    stream_max_length: u64,
    alerts_exceeds_max: bool,
}

impl Conf {
    fn read(text: &str) -> Self {
        let mut conf = Self {
            local_socket: None,
            tcp_port: None,
            max_threads: 10,
            max_scan_time: Duration::from_secs(120),
            stream_max_length: 100 << 20,
            alerts_exceeds_max: false,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            match key {
                "LocalSocket" => conf.local_socket = Some(value.to_owned()),
                "TCPSocket" => conf.tcp_port = value.parse().ok(),
                "MaxThreads" => conf.max_threads = value.parse().unwrap_or(conf.max_threads),
                "MaxScanTime" => {
                    let milliseconds = value.parse().map(Duration::from_millis);
                    conf.max_scan_time = milliseconds.unwrap_or(conf.max_scan_time);
                }
                "StreamMaxLength" => {
                    conf.stream_max_length = size(value).unwrap_or(conf.stream_max_length);
                }
                "AlertExceedsMax" => conf.alerts_exceeds_max = value == "yes" || value == "true",
                _ => {}
            }
        }
        conf
    }

    fn listens_on(&self, address: &Address) -> bool {
        let port = |text: &str| {
            text.rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok())
        };
        match address {
            Address::Unix(path) => {
                self.local_socket.as_deref().map(Path::new) == Some(path.as_path())
            }
            Address::Socket(at) => at.ip().is_loopback() && self.tcp_port == Some(at.port()),
            Address::Tcp(name) => {
                name.starts_with("localhost:")
                    && port(name).is_some()
                    && port(name) == self.tcp_port
            }
        }
    }

    fn advice(&self, settings: &Settings, path: &str) -> Vec<String> {
        let name = &settings.name;
        let mut advice = Vec::new();
        if self.max_scan_time.is_zero() {
            advice.push(format!(
                "engine.{name}.limit: clamd has none (MaxScanTime 0 in {path}), so a slot may be given back while its \
                 worker still works; write MaxScanTime 120000 there"
            ));
        } else if settings.limit <= self.max_scan_time {
            let seconds = self.max_scan_time.as_secs();
            advice.push(format!(
                "engine.{name}.limit: is not above clamd's own limit (MaxScanTime in {path}, {seconds} s), so a slot may \
                 be given back while its worker still works; write limit = \"{}s\"",
                seconds + 30
            ));
        }
        if settings.slots > self.max_threads {
            advice.push(format!(
                "engine.{name}.slots: is above clamd's MaxThreads {} ({path}), so mail waits inside clamd, where nobody \
                 can tell a slow message from a busy engine; write slots = {}",
                self.max_threads, self.max_threads
            ));
        }
        if settings.max_size > self.stream_max_length {
            advice.push(format!(
                "engine.{name}.max_size: is above clamd's StreamMaxLength of {} octets ({path}), which refuses what is \
                 larger; raise that or lower this",
                self.stream_max_length
            ));
        }
        if !self.alerts_exceeds_max {
            advice.push(format!(
                "engine.{name}: clamd says OK to what it did not look at beyond its limits; write AlertExceedsMax yes in \
                 {path}"
            ));
        }
        advice
    }
}

/// `25M`, `1G`, `4096`.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1 << 10),
        (at, 'M' | 'm') => (&text[..at], 1 << 20),
        (at, 'G' | 'g') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::settings;

    const TEXT: &str = "# comment\nLocalSocket /run/clamav/clamd.ctl\nTCPSocket 3310\nMaxThreads 12\n\
                        MaxScanTime 200000\nStreamMaxLength 25M\n";

    /// The configuration of another clamd says nothing about this one.
    #[test]
    fn only_the_same_clamd_is_asked() {
        let conf = Conf::read(TEXT);
        let same = Address::Unix("/run/clamav/clamd.ctl".into());
        assert!(conf.listens_on(&same));
        assert!(!conf.listens_on(&Address::Unix("/run/other".into())));
        let port = |text: &str| Address::Socket(text.parse().expect(text));
        assert!(conf.listens_on(&port("127.0.0.1:3310")));
        assert!(!conf.listens_on(&port("192.0.2.1:3310")), "another machine");
        assert!(!conf.listens_on(&Address::Tcp("localhost:1".to_owned())));
    }

    /// Each limit of ours that contradicts one of clamd's is told, with what to write.
    #[test]
    fn what_contradicts_clamd_is_told() {
        let wrong = Settings {
            slots: 20,
            max_size: 50 << 20,
            ..settings("clamd")
        };
        let advice = Conf::read(TEXT).advice(&wrong, "clamd.conf");
        for (told, expected) in advice.iter().zip([
            "limit = \"230s\"",
            "slots = 12",
            "StreamMaxLength of 26214400 octets",
            "AlertExceedsMax yes",
        ]) {
            assert!(told.contains(expected), "{told}");
        }
        assert_eq!(advice.len(), 4);
        let right = format!("{TEXT}AlertExceedsMax yes\nMaxScanTime 120000\n");
        let none: Vec<String> = Vec::new();
        assert_eq!(Conf::read(&right).advice(&settings("clamd"), "x"), none);
    }
}

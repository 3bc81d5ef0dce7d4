//! Reads the limits of a clamd on this machine from its configuration file: the protocol cannot ask for them.

use std::path::Path;
use std::time::Duration;

use crate::file;
use crate::scan::Settings;
use crate::scan::engine::Address;

/// Paths of the configuration file of clamd in the common distributions.
const CONF_PATHS: [&str; 4] = [
    "/etc/clamav/clamd.conf",
    "/etc/clamd.d/scan.conf",
    "/etc/clamd.conf",
    "/usr/local/etc/clamd.conf",
];
/// Largest configuration file that is read, in octets: 1 MiB, far above any real one.
const CONF_OCTETS_MAX: u64 = 1 << 20;

/// Contradictions between the settings of the engine and the configuration of each clamd on this machine that listens at one
/// of the addresses. Each text names the fix. Blocks while it reads files.
pub(in crate::scan) fn advice(settings: &Settings, addresses: &[Address]) -> Vec<String> {
    let read = |path: &&str| {
        let text = file::read_text(Path::new(path), CONF_OCTETS_MAX).ok()?;
        Some(((*path).to_owned(), text))
    };
    let files = CONF_PATHS.iter().filter_map(read);
    let matching = files.map(|(path, text)| (path, Conf::read(&text)));
    matching
        .filter(|(_, conf)| addresses.iter().any(|address| conf.listens_on(address)))
        .flat_map(|(path, conf)| conf.advice(settings, &path))
        .collect()
}

/// The keys of clamd.conf that concern the relay. Missing keys have the defaults of clamd (clamd.conf(5), 1.4).
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
                "engine.{name}.limit: clamd has no limit of its own (MaxScanTime 0 in {path}), so the relay may free a slot \
                 while the clamd thread still works; write MaxScanTime 120000 in that file"
            ));
        } else if settings.limit <= self.max_scan_time {
            let seconds = self.max_scan_time.as_secs();
            advice.push(format!(
                "engine.{name}.limit: is not above clamd's own limit (MaxScanTime in {path}, {seconds} s), so the relay may \
                 free a slot while the clamd thread still works; write limit = \"{}s\"",
                seconds + 30
            ));
        }
        if settings.slots > self.max_threads {
            advice.push(format!(
                "engine.{name}.slots: is above clamd's MaxThreads {} ({path}), so mail waits inside clamd, where the relay \
                 cannot tell a slow message from a busy engine; write slots = {}",
                self.max_threads, self.max_threads
            ));
        }
        if settings.max_size > self.stream_max_length {
            advice.push(format!(
                "engine.{name}.max_size: is above clamd's StreamMaxLength of {} octets ({path}), so clamd refuses larger \
                 messages; raise StreamMaxLength, or lower max_size",
                self.stream_max_length
            ));
        }
        if !self.alerts_exceeds_max {
            advice.push(format!(
                "engine.{name}: clamd answers OK for content beyond its limits that it did not scan; write \
                 AlertExceedsMax yes in {path}"
            ));
        }
        advice
    }
}

/// Parses a size in octets: `25M`, `1G`, `4096`.
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

    /// The configuration of a clamd counts only for an engine at its own address.
    #[test]
    fn only_the_configuration_of_the_same_clamd_counts() {
        let conf = Conf::read(TEXT);
        let same = Address::Unix("/run/clamav/clamd.ctl".into());
        assert!(conf.listens_on(&same));
        assert!(!conf.listens_on(&Address::Unix("/run/other".into())));
        let port = |text: &str| Address::Socket(text.parse().expect(text));
        assert!(conf.listens_on(&port("127.0.0.1:3310")));
        assert!(!conf.listens_on(&port("192.0.2.1:3310")), "another machine");
        assert!(!conf.listens_on(&Address::Tcp("localhost:1".to_owned())));
    }

    /// Each setting that contradicts a limit of clamd is reported, with the line to write.
    #[test]
    fn contradictions_with_clamd_are_reported() {
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

//! The `process_…` metrics that Prometheus's client libraries have in common, read from `/proc` (proc(5)) at each request.
//!
//! Not counted through `metrics`, whose counters are whole numbers: a second of processor time is too coarse. The crate
//! `metrics-process` counts whole seconds for this reason.

use std::fmt::Write;
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use super::metrics::ALL;

/// Ticks of the times in `/proc` in a second (`USER_HZ`): 100 on every architecture for which Rust has a Linux target.
const PROC_TICKS_PER_SECOND: f64 = 100.0;

/// Adds the metrics to a page. A metric that cannot be read, as in a chroot without `/proc`, is left out: 0 would look like a
/// measurement.
pub(super) fn render(page: &mut String) {
    for metric in ALL {
        let Some(value) = value(metric.name) else {
            continue;
        };
        let (name, help, kind) = (metric.name, metric.help, metric.kind.as_str());
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n"
        );
    }
}

fn value(name: &str) -> Option<f64> {
    match name {
        "process_cpu_seconds_total" => {
            let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
            Some((number(&stat, 14)? + number(&stat, 15)?) / PROC_TICKS_PER_SECOND)
        }
        "process_start_time_seconds" => started(),
        "process_resident_memory_bytes" => kibibytes("VmRSS:"),
        "process_virtual_memory_bytes" => kibibytes("VmSize:"),
        // The folder that is read is one of the descriptors.
        "process_open_fds" => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0),
        "process_max_fds" => {
            let limit = getrlimit(Resource::Nofile).current;
            Some(limit.map_or(f64::INFINITY, |limit| limit as f64))
        }
        _ => None,
    }
}

/// Field `at` of `/proc/self/stat`, counted from 1. The second field, the name of the program, may contain blanks.
fn number(stat: &str, at: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(at - 3)?.parse().ok()
}

/// Read once: the time of the boot in `/proc/stat` follows the clock, and a start that moves looks like a restart.
fn started() -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let all = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = all
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        Some(boot + number(&stat, 22)? / PROC_TICKS_PER_SECOND)
    })
}

/// A size in `/proc/self/status`, in octets.
fn kibibytes(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: f64 = size.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields are those of proc(5), also for a program whose name has blanks and brackets.
    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 6 7 20 0 1 0 12345 99 1";
        assert_eq!(number(stat, 14), Some(250.0));
        assert_eq!(number(stat, 15), Some(50.0));
        assert_eq!(number(stat, 22), Some(12_345.0));
        assert_eq!(number("", 14), None);
    }

    /// Each process metric of the table is read, and the values are those of this process.
    #[test]
    fn this_process_is_measured() {
        let mut page = String::new();
        render(&mut page);
        for metric in ALL.iter().filter(|m| m.name.starts_with("process_")) {
            assert!(page.contains(&format!("\n{} ", metric.name)), "{page}");
        }
        let now = jiff::Timestamp::now().as_second() as f64;
        let age = now - value("process_start_time_seconds").expect("a start");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        let open = value("process_open_fds").expect("a count");
        let _file = std::fs::File::open("/proc/self/stat").expect("opens");
        assert!(value("process_open_fds").expect("a count") > 0.0 && open > 0.0);
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!(open < value("process_max_fds").expect("a limit"));
    }
}

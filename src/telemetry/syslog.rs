//! Log lines as datagrams to the syslog daemon of this machine, in the form that libc's `syslog` sends (RFC 3164 4.1, without
//! the host name, which the daemon adds). Sending never waits: a line that the daemon does not take at once is lost and
//! counted.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The socket of the daemon.
pub(super) const SOCKET_PATH: &str = "/dev/log";
/// Longest datagram in octets: 8 KiB, the limit of rsyslog and syslog-ng by default. The rest of a longer line is cut off.
const DATAGRAM_OCTETS_MAX: usize = 8192;

/// The connection to the daemon. It is made anew when the daemon has been restarted.
#[derive(Debug)]
pub(super) struct Syslog {
    path: PathBuf,
    socket: Mutex<Option<UnixDatagram>>,
}

impl Syslog {
    /// A connection to the daemon at `path`. The error says why there is none yet; each line tries again.
    pub(super) fn new(path: &Path) -> (Self, Option<io::Error>) {
        let (socket, error) = match connect(path) {
            Ok(socket) => (Some(socket), None),
            Err(error) => (None, Some(error)),
        };
        let syslog = Self {
            path: path.to_owned(),
            socket: Mutex::new(socket),
        };
        (syslog, error)
    }

    fn send(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = &line[..line.len().min(DATAGRAM_OCTETS_MAX)];
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match &*socket {
            Some(open) => open.send(line),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        let sent = match sent {
            // The daemon is there, and slower than the lines.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(_) => {
                *socket = connect(&self.path).ok();
                let again = socket.as_ref().map(|open| open.send(line));
                again.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
            }
            sent => sent,
        };
        if sent.is_err() {
            metrics::counter!("spillway_log_lost_total", "log" => "syslog").increment(1);
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

impl Write for &Syslog {
    /// The subscriber calls this with one whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(daemon: &UnixDatagram) -> String {
        let mut datagram = vec![0; 2 * DATAGRAM_OCTETS_MAX];
        let octets = daemon.recv(&mut datagram).expect("a datagram");
        String::from_utf8_lossy(&datagram[..octets]).into_owned()
    }

    /// Lines reach the daemon whole and without line end, also after its restart, and no line waits for a daemon that does
    /// not read.
    #[test]
    fn lines_reach_the_daemon_and_never_wait() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("log");
        let (syslog, error) = Syslog::new(&path);
        assert!(error.is_some(), "no daemon yet");
        syslog.send(b"lost");
        for life in 0..2 {
            let daemon = UnixDatagram::bind(&path).expect("binds");
            // Only so that a line that does not come fails the test instead of hanging it.
            let patience = Some(std::time::Duration::from_secs(10));
            daemon.set_read_timeout(patience).expect("timeout");
            syslog.send(format!("line {life}\n").as_bytes());
            assert_eq!(receive(&daemon), format!("line {life}"));
            syslog.send("x".repeat(9000).as_bytes());
            assert_eq!(receive(&daemon).len(), DATAGRAM_OCTETS_MAX);
            std::fs::remove_file(&path).expect("the daemon ends");
        }
        let _silent = UnixDatagram::bind(&path).expect("binds");
        // More than the queue of a socket holds (net.unix.max_dgram_qlen): this would hang if it waited.
        for _ in 0..10_000 {
            syslog.send(&[b'x'; 1000]);
        }
    }
}

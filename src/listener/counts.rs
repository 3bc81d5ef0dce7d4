//! What the metrics count of sessions, AUTH and TLS.

use metrics::counter;

use super::session::Ending;
use crate::smtp::Reply;
use crate::smtp::transaction::Mechanism;

/// A session has its place.
pub(super) fn session_began(listener: &str) {
    counter!("spillway_sessions_total", "listener" => listener.to_owned()).increment(1);
}

/// A session that began has ended.
pub(super) fn session_ended(ending: &Ending) {
    counter!("spillway_sessions_ended_total", "how" => how(ending)).increment(1);
}

fn how(ending: &Ending) -> &'static str {
    match ending {
        Ending::Quit => "quit",
        Ending::Closed => "closed",
        Ending::TimedOut(_) => "timed-out",
        Ending::TooManyErrors => "too-many-errors",
        Ending::Drained => "drained",
        Ending::TooManySessions => "too-many-sessions",
        Ending::NoProxyHeader => "no-proxy-header",
        Ending::Handshake(_) => "handshake-failed",
        Ending::Http => "http",
        Ending::Lost(_) => "lost",
    }
}

/// An AUTH exchange has ended, with a reply or with the session.
pub(super) fn auth(mechanism: Mechanism, result: &Result<Reply, Ending>) {
    let mechanism = match mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::Login => "LOGIN",
    };
    counter!("spillway_auth_attempts_total", "mechanism" => mechanism, "outcome" => outcome(result))
        .increment(1);
}

/// The outcome, by the codes of RFC 4954 6.
fn outcome(result: &Result<Reply, Ending>) -> &'static str {
    match result {
        Ok(reply) => match reply.code() {
            235 => "accepted",
            535 => "wrong",
            400..500 | 502 => "unavailable",
            _ => "malformed",
        },
        // The last wrong password that a session may send ends the session.
        Err(Ending::TooManyErrors) => "wrong",
        // The client left in the middle of the exchange.
        Err(_) => "malformed",
    }
}

/// A TLS handshake has succeeded.
pub(super) fn handshake(version: &'static str) {
    counter!("spillway_tls_handshakes_total", "version" => version).increment(1);
}

/// A TLS handshake has failed.
pub(super) fn handshake_failed(why: &'static str) {
    counter!("spillway_tls_handshakes_failed_total", "why" => why).increment(1);
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::telemetry::metrics::is_declared;

    /// Each word of a label is in the table of the metrics, so that its series is there before the first event.
    #[test]
    fn every_word_is_declared() {
        let lost = || io::Error::other("lost");
        for ending in [
            Ending::Quit,
            Ending::Closed,
            Ending::TimedOut("too slow"),
            Ending::TooManyErrors,
            Ending::Drained,
            Ending::TooManySessions,
            Ending::NoProxyHeader,
            Ending::Handshake(lost()),
            Ending::Http,
            Ending::Lost(lost()),
        ] {
            let word = how(&ending);
            let declared = is_declared("spillway_sessions_ended_total", "how", word);
            assert!(declared, "{word}");
        }
        for reply in [
            Reply::authenticated(),
            Reply::bad_credentials(),
            Reply::auth_cancelled(),
            Reply::auth_unavailable(),
            Reply::not_implemented(),
        ] {
            let word = outcome(&Ok(reply));
            let declared = is_declared("spillway_auth_attempts_total", "outcome", word);
            assert!(declared, "{word}");
        }
    }

    /// A wrong password is neither a malformed exchange nor the relay's own failure: an alarm on guessing depends on this.
    #[test]
    fn outcomes_of_auth_differ() {
        assert_eq!(outcome(&Ok(Reply::authenticated())), "accepted");
        assert_eq!(outcome(&Ok(Reply::bad_credentials())), "wrong");
        assert_eq!(outcome(&Err(Ending::TooManyErrors)), "wrong");
        assert_eq!(outcome(&Ok(Reply::auth_cancelled())), "malformed");
        assert_eq!(outcome(&Err(Ending::Closed)), "malformed");
        assert_eq!(outcome(&Ok(Reply::auth_unavailable())), "unavailable");
        assert_eq!(outcome(&Ok(Reply::not_implemented())), "unavailable");
    }
}

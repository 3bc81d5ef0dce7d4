//! AUTH PLAIN (RFC 4616) and LOGIN, over TLS only (RFC 4954).
//!
//! Password guessing is slow, and only for the client that guesses: a client may have few password checks at a time, each
//! wrong password occupies one of them for 1 s, and three wrong passwords end the session.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::refusal::cut;
use super::{Ending, Line, Session};
use crate::deadline::Deadline;
use crate::listener::counts;
use crate::listener::refusals::may_log;
use crate::listener::session_limits::Sessions;
use crate::smtp::Reply;
use crate::smtp::transaction::Mechanism;

/// Number of wrong passwords that end a session: 3, so that a user may mistype a password twice.
const WRONG_PASSWORDS_MAX: u32 = 3;
/// Delay of the reply to a wrong password: 1 s, which limits one place to one guess a second.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_secs(1);
/// Largest number of sessions of one client address whose password is being checked, or was wrong within the last second.
const PASSWORD_CHECKS_PER_CLIENT_MAX: usize = 8;
/// The same sessions of all clients: 1024, more than the checks of `users` can serve before they time out.
static PASSWORD_CHECK_PLACES: LazyLock<Arc<Sessions>> = LazyLock::new(|| Sessions::new(1024));

impl Session {
    /// Runs and counts the exchange after AUTH, and returns the reply that ends it. A wrong password counts as an error of the
    /// session.
    pub(super) async fn authenticate(
        &mut self,
        mechanism: Mechanism,
        initial: Option<Vec<u8>>,
    ) -> Result<Reply, Ending> {
        let result = self.exchange(mechanism, initial).await;
        counts::auth(mechanism, &result);
        result
    }

    async fn exchange(
        &mut self,
        mechanism: Mechanism,
        initial: Option<Vec<u8>>,
    ) -> Result<Reply, Ending> {
        let credentials = match mechanism {
            Mechanism::Plain => self
                .response(initial, "")
                .await?
                .and_then(|response| plain(&response)),
            Mechanism::Login => self.login(initial).await?,
        };
        let (name, password) = match credentials {
            Ok(credentials) => credentials,
            Err(refusal) => return Ok(refusal),
        };
        let Some(users) = self.context.users.clone() else {
            return Ok(Reply::not_implemented());
        };
        let Some(_place) =
            PASSWORD_CHECK_PLACES.admit(self.address, PASSWORD_CHECKS_PER_CLIENT_MAX)
        else {
            return Ok(Reply::auth_unavailable());
        };
        match users.verify(&name, &password).await {
            Ok(true) => {
                tracing::info!(user = %name, "authenticated");
                self.server.set_user(name);
                Ok(Reply::authenticated())
            }
            Ok(false) => {
                if may_log(self.address) {
                    let user = cut(name.as_bytes());
                    tracing::warn!(%user, client = %self.address, "authentication failed");
                }
                self.wrong_passwords += 1;
                if self.wrong_passwords >= WRONG_PASSWORDS_MAX {
                    return Err(Ending::TooManyErrors);
                }
                Deadline::after(WRONG_PASSWORD_DELAY).wait().await;
                Ok(Reply::bad_credentials())
            }
            Err(error) => {
                tracing::error!(%error, "credentials cannot be checked");
                Ok(Reply::auth_unavailable())
            }
        }
    }

    /// The two prompts of LOGIN, "Username:" and "Password:", as clients of this mechanism expect them.
    async fn login(&mut self, initial: Option<Vec<u8>>) -> Result<Result<Pair, Reply>, Ending> {
        let name = self.response(initial, "VXNlcm5hbWU6").await?;
        let name = match name.and_then(without_nul) {
            Ok(name) => name,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let password = self.response(None, "UGFzc3dvcmQ6").await?;
        Ok(password
            .and_then(without_nul)
            .map(|password| (name, password)))
    }

    /// The initial response, or else the answer to the challenge, decoded; a reply if it cannot be read, or cancels.
    async fn response(
        &mut self,
        initial: Option<Vec<u8>>,
        challenge: &'static str,
    ) -> Result<Result<String, Reply>, Ending> {
        if let Some(initial) = initial {
            // RFC 4954 4: an initial response of no octets.
            return Ok(if initial == b"=" {
                Ok(String::new())
            } else {
                text(&initial)
            });
        }
        self.say(&Reply::challenge(challenge));
        Ok(match self.next_line().await? {
            Line::Command(line) if line == b"*" => Err(Reply::auth_cancelled()),
            Line::Command(line) => text(&line),
            Line::Unacceptable(refusal) => Err(refusal),
        })
    }
}

/// User name and password.
type Pair = (String, String);

/// Parses `[authzid] NUL authcid NUL password` (RFC 4616 2). An authorization identity other than the user name is refused.
fn plain(response: &str) -> Result<Pair, Reply> {
    let mut parts = response.split('\0');
    let (identity, name, password) = (parts.next(), parts.next(), parts.next());
    match (identity, name, password, parts.next()) {
        (Some(identity), Some(name), Some(password), None) if !name.is_empty() => {
            match identity.is_empty() || identity == name {
                true => Ok((name.to_owned(), password.to_owned())),
                false => Err(Reply::foreign_identity()),
            }
        }
        _ => Err(Reply::bad_response(
            "The response is not of the form [identity] NUL user NUL password",
        )),
    }
}

/// A user name or password has no NUL.
fn without_nul(text: String) -> Result<String, Reply> {
    match text.contains('\0') {
        true => Err(Reply::bad_response("The response contains a NUL")),
        false => Ok(text),
    }
}

fn text(base64: &[u8]) -> Result<String, Reply> {
    let octets = STANDARD.decode(base64).map_err(|_| {
        Reply::bad_response("The response is not base64 with its padding (RFC 4648 4)")
    })?;
    String::from_utf8(octets).map_err(|_| Reply::bad_response("The response is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PLAIN response has three parts, and a user cannot act for another user (RFC 4616 2).
    #[test]
    fn a_plain_response_has_three_parts_and_one_identity() {
        let pair = Ok(("tim".to_owned(), "secret".to_owned()));
        assert_eq!(plain("\0tim\0secret"), pair);
        assert_eq!(plain("tim\0tim\0secret"), pair);
        for (bad, code) in [
            ("admin\0tim\0secret", "535 5.7.8"),
            ("\0\0secret", "501 5.5.2"),
            ("tim", "501 5.5.2"),
            ("", "501 5.5.2"),
            ("\0tim", "501 5.5.2"),
            ("\0tim\0secret\0", "501 5.5.2"),
        ] {
            let refusal = plain(bad).expect_err(bad).to_string();
            assert!(refusal.starts_with(code), "{bad:?}: {refusal}");
        }
    }
}

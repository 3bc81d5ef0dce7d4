//! AUTH PLAIN (RFC 4616) and LOGIN, over TLS only (RFC 4954).
//!
//! Password guessing is slow, and only for the client that guesses: a client may have few password checks at a time, each
//! wrong password occupies one of them for 1 s, and three wrong passwords end the session.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Ending, Session};
use crate::deadline::Deadline;
use crate::listener::counts;
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
        initial: Option<String>,
    ) -> Result<Reply, Ending> {
        let result = self.exchange(mechanism, initial).await;
        counts::auth(mechanism, &result);
        result
    }

    async fn exchange(
        &mut self,
        mechanism: Mechanism,
        initial: Option<String>,
    ) -> Result<Reply, Ending> {
        let credentials = match mechanism {
            Mechanism::Plain => {
                let response = match initial {
                    Some(response) => response.into_bytes(),
                    None => self.ask("").await?,
                };
                plain(&response)
            }
            Mechanism::Login => {
                let name = match initial {
                    Some(response) => response.into_bytes(),
                    // "Username:" and, below, "Password:": the prompts that clients of this mechanism expect.
                    None => self.ask("VXNlcm5hbWU6").await?,
                };
                if name == b"*" {
                    return Ok(Reply::auth_cancelled());
                }
                let password = self.ask("UGFzc3dvcmQ6").await?;
                text(&name).zip(text(&password))
            }
        };
        let Some((name, password)) = credentials else {
            return Ok(Reply::auth_cancelled());
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
                tracing::warn!(user = %name, client = %self.address, "authentication failed");
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

    async fn ask(&mut self, challenge: &'static str) -> Result<Vec<u8>, Ending> {
        self.say(&Reply::challenge(challenge));
        self.answer_line().await
    }
}

/// Parses `[authzid] NUL authcid NUL password`. An authorization identity other than the user name is refused.
fn plain(response: &[u8]) -> Option<(String, String)> {
    let decoded = text(response)?;
    let mut parts = decoded.split('\0');
    let (authorization, name, password) = (parts.next()?, parts.next()?, parts.next()?);
    let sole = parts.next().is_none() && (authorization.is_empty() || authorization == name);
    (sole && !name.is_empty()).then(|| (name.to_owned(), password.to_owned()))
}

fn text(base64: &[u8]) -> Option<String> {
    String::from_utf8(STANDARD.decode(base64).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PLAIN response has three parts, and a user cannot act for another user (RFC 4616 2).
    #[test]
    fn a_plain_response_has_three_parts_and_one_identity() {
        let encode = |text: &str| STANDARD.encode(text).into_bytes();
        let pair = Some(("tim".to_owned(), "secret".to_owned()));
        assert_eq!(plain(&encode("\0tim\0secret")), pair);
        assert_eq!(plain(&encode("tim\0tim\0secret")), pair);
        for bad in [
            "admin\0tim\0secret",
            "\0\0secret",
            "tim",
            "\0tim",
            "\0tim\0secret\0more",
        ] {
            assert_eq!(plain(&encode(bad)), None, "{bad:?}");
        }
        assert_eq!(plain(b"*"), None);
    }
}

//! Leads from the greeting to a session that accepts mail: EHLO, STARTTLS, AUTH.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Capabilities, Stage};
use crate::smtp::RemoteReply;
use crate::smtp::reply::Class;
use crate::smtp::reply_parser::RawReply;

/// Whether the client uses STARTTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsWish {
    /// The client does not use STARTTLS.
    Never,
    /// The client uses STARTTLS if the server offers it.
    IfOffered,
    /// Without STARTTLS there is no session.
    Always,
}

/// User name and password for AUTH.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
}

/// Shows the user name only.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.username)
    }
}

/// Next step of the owner of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Write the appended commands, then read one reply.
    Reply,
    /// Do the TLS handshake, then call [`Opening::encrypted`]. Octets received between the reply to STARTTLS and the
    /// handshake are an attack: an attacker injects them so that they are read as if they had arrived encrypted. They end
    /// the connection.
    Handshake,
    /// The session accepts mail.
    Ready,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// A reply ended the attempt.
    #[error("{stage}: {reply}")]
    Refused {
        /// The command or event that the server refused.
        stage: Stage,
        /// The reply.
        reply: RemoteReply,
    },
    /// Encryption is required, and the server does not offer it.
    #[error("the server does not offer STARTTLS, which this next hop's settings require")]
    NoStartTls,
    /// AUTH is configured, and the server offers no mechanism that this client knows.
    #[error(
        "the server offers neither AUTH PLAIN nor AUTH LOGIN, but this next hop has a username"
    )]
    NoAuth,
    /// AUTH is configured, and the connection is not encrypted.
    #[error("the server does not offer STARTTLS, and the relay sends no password unencrypted")]
    AuthInClear,
}

/// The state machine for the start of a session.
#[derive(Debug)]
pub struct Opening {
    lmtp: bool,
    hostname: String,
    tls: TlsWish,
    credentials: Option<Credentials>,
    /// The server is on this machine, so AUTH may be sent unencrypted.
    local: bool,
    encrypted: bool,
    state: State,
    capabilities: Capabilities,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    /// The reply to AUTH PLAIN, or to the password of AUTH LOGIN.
    Auth,
    LoginUser,
    LoginPassword,
}

impl Opening {
    /// A state machine that waits for the greeting. `local`: the server is on this machine, so the password may be sent
    /// unencrypted.
    pub fn new(
        lmtp: bool,
        hostname: &str,
        tls: TlsWish,
        credentials: Option<Credentials>,
        local: bool,
    ) -> Self {
        Self {
            lmtp,
            hostname: hostname.to_owned(),
            tls,
            credentials,
            local,
            encrypted: false,
            state: State::Greeting,
            capabilities: Capabilities::default(),
        }
    }

    /// The extensions that the server offers, after [`Progress::Ready`].
    pub fn into_capabilities(self) -> Capabilities {
        self.capabilities
    }

    /// Continues after the TLS handshake: forgets the extensions announced before it (RFC 3207 4.2), and sends EHLO again.
    pub fn encrypted(&mut self, out: &mut Vec<u8>) {
        self.encrypted = true;
        self.capabilities = Capabilities::default();
        self.hello(out);
    }

    /// Processes the next reply of the server.
    pub fn on_reply(
        &mut self,
        reply: &RawReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, OpeningError> {
        let class = reply.class();
        match (self.state, class) {
            (State::Greeting, Class::Positive) => {
                self.hello(out);
                Ok(Progress::Reply)
            }
            (State::Ehlo, Class::Positive) => {
                self.capabilities = Capabilities::from_ehlo(reply);
                self.after_hello(out)
            }
            // A server older than 1995, which knows only HELO (RFC 5321 3.2), or one that refuses EHLO this time. LMTP has no
            // older form.
            (State::Ehlo, Class::Permanent) if !self.lmtp => {
                self.capabilities.ehlo_refused = Some(reply.to_remote());
                command(out, &["HELO ", &self.hostname]);
                self.state = State::Helo;
                Ok(Progress::Reply)
            }
            (State::Helo, Class::Positive) => self.after_hello(out),
            (State::StartTls, Class::Positive) => Ok(Progress::Handshake),
            // The server offers STARTTLS and cannot do it now. Opportunistic TLS continues without encryption.
            (State::StartTls, Class::Transient | Class::Permanent)
                if self.tls == TlsWish::IfOffered =>
            {
                self.authenticate(out)
            }
            (State::Auth, Class::Positive) => Ok(Progress::Ready),
            (State::LoginUser, Class::Intermediate) => {
                let username = self.credentials.iter().map(|c| c.username.as_str());
                command(out, &[&STANDARD.encode(username.collect::<String>())]);
                self.state = State::LoginPassword;
                Ok(Progress::Reply)
            }
            (State::LoginPassword, Class::Intermediate) => {
                let password = self.credentials.iter().map(|c| c.password.as_str());
                command(out, &[&STANDARD.encode(password.collect::<String>())]);
                self.state = State::Auth;
                Ok(Progress::Reply)
            }
            _ => Err(OpeningError::Refused {
                stage: self.stage(),
                reply: self.without_secrets(reply.to_remote()),
            }),
        }
    }

    /// The reply without the password, in the clear or as the client sent it: some servers repeat the line that they refuse,
    /// and replies are logged, stored and shown.
    fn without_secrets(&self, mut reply: RemoteReply) -> RemoteReply {
        let sent = self
            .credentials
            .iter()
            .filter(|_| self.stage() == Stage::Auth);
        for Credentials { username, password } in sent {
            for secret in [
                STANDARD.encode(plain(username, password)),
                STANDARD.encode(password),
                password.clone(),
            ] {
                reply.text = reply.text.replace(&secret, "***");
            }
        }
        reply
    }

    /// The command or event that the next reply answers.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::StartTls => Stage::StartTls,
            State::Auth | State::LoginUser | State::LoginPassword => Stage::Auth,
        }
    }

    fn hello(&mut self, out: &mut Vec<u8>) {
        let verb = if self.lmtp { "LHLO " } else { "EHLO " };
        command(out, &[verb, &self.hostname]);
        self.state = State::Ehlo;
    }

    fn after_hello(&mut self, out: &mut Vec<u8>) -> Result<Progress, OpeningError> {
        if self.encrypted || self.tls == TlsWish::Never {
            return self.authenticate(out);
        }
        if self.capabilities.starttls {
            command(out, &["STARTTLS"]);
            self.state = State::StartTls;
            return Ok(Progress::Reply);
        }
        if self.tls == TlsWish::Always {
            return Err(OpeningError::NoStartTls);
        }
        self.authenticate(out)
    }

    fn authenticate(&mut self, out: &mut Vec<u8>) -> Result<Progress, OpeningError> {
        let Some(credentials) = &self.credentials else {
            return Ok(Progress::Ready);
        };
        if !self.encrypted && !self.local {
            return Err(OpeningError::AuthInClear);
        }
        if self.capabilities.auth_plain {
            let secret = plain(&credentials.username, &credentials.password);
            command(out, &["AUTH PLAIN ", &STANDARD.encode(secret)]);
            self.state = State::Auth;
        } else if self.capabilities.auth_login {
            command(out, &["AUTH LOGIN"]);
            self.state = State::LoginUser;
        } else {
            return Err(OpeningError::NoAuth);
        }
        Ok(Progress::Reply)
    }
}

/// The message of AUTH PLAIN (RFC 4616 2).
fn plain(username: &str, password: &str) -> String {
    format!("\0{username}\0{password}")
}

fn command(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes replies in. Returns the commands sent in between, with `*` for the handshake, and the last result.
    fn dialog(mut opening: Opening, replies: &[&str]) -> (String, Result<Progress, OpeningError>) {
        let mut sent = Vec::new();
        let mut last = Ok(Progress::Reply);
        for text in replies {
            assert_eq!(
                last,
                Ok(Progress::Reply),
                "nothing was asked before {text:?}"
            );
            let text = format!("{text}\r\n").replace('|', "\r\n");
            let reply = RawReply::parse(text.as_bytes())
                .expect("reply")
                .expect("whole");
            last = opening.on_reply(&reply, &mut sent);
            if last == Ok(Progress::Handshake) {
                sent.extend_from_slice(b"*\r\n");
                opening.encrypted(&mut sent);
                last = Ok(Progress::Reply);
            }
        }
        let sent = String::from_utf8(sent).expect("ASCII");
        (sent.trim_end().replace("\r\n", "|"), last)
    }

    fn opening(tls: TlsWish, user: bool) -> Opening {
        let credentials = user.then(|| Credentials {
            username: "u".into(),
            password: "p".into(),
        });
        Opening::new(false, "me", tls, credentials, false)
    }

    /// Each usual dialog leads to a session that accepts mail.
    #[test]
    fn usual_dialogs_open_a_session() {
        let ready = Ok(Progress::Ready);
        for (machine, replies, sent) in [
            (
                opening(TlsWish::IfOffered, false),
                vec!["220 hi", "250-x|250 SIZE"],
                "EHLO me",
            ),
            (
                opening(TlsWish::Never, false),
                vec!["220 hi", "250-x|250 STARTTLS"],
                "EHLO me",
            ),
            (
                opening(TlsWish::IfOffered, false),
                vec!["220 hi", "502 what", "250 x"],
                "EHLO me|HELO me",
            ),
            (
                opening(TlsWish::Always, false),
                vec!["220 hi", "250-x|250 STARTTLS", "220 go", "250 x"],
                "EHLO me|STARTTLS|*|EHLO me",
            ),
            (
                opening(TlsWish::IfOffered, false),
                vec!["220 hi", "250-x|250 STARTTLS", "454 not now"],
                "EHLO me|STARTTLS",
            ),
            (
                opening(TlsWish::Always, true),
                vec![
                    "220 hi",
                    "250-x|250 STARTTLS",
                    "220 go",
                    "250-x|250 AUTH PLAIN LOGIN",
                    "235 in",
                ],
                "EHLO me|STARTTLS|*|EHLO me|AUTH PLAIN AHUAcA==",
            ),
            (
                opening(TlsWish::Always, true),
                vec![
                    "220 hi",
                    "250-x|250 STARTTLS",
                    "220 go",
                    "250-x|250 AUTH LOGIN",
                    "334 a",
                    "334 b",
                    "235 in",
                ],
                "EHLO me|STARTTLS|*|EHLO me|AUTH LOGIN|dQ==|cA==",
            ),
            (
                Opening::new(true, "me", TlsWish::Never, None, true),
                vec!["220 hi", "250 x"],
                "LHLO me",
            ),
        ] {
            assert_eq!(
                dialog(machine, &replies),
                (sent.to_owned(), ready.clone()),
                "{replies:?}"
            );
        }
    }

    /// Extensions announced before the handshake do not count after it (RFC 3207 4.2).
    #[test]
    fn offers_before_the_handshake_are_forgotten() {
        let replies = [
            "220 hi",
            "250-x|250-STARTTLS|250 AUTH PLAIN",
            "220 go",
            "250 x",
        ];
        let (_, end) = dialog(opening(TlsWish::IfOffered, true), &replies);
        assert_eq!(end, Err(OpeningError::NoAuth));
    }

    /// A password is never sent unencrypted to another machine, and a required handshake is never skipped.
    #[test]
    fn a_password_is_never_sent_unencrypted() {
        let plain = ["220 hi", "250-x|250 AUTH PLAIN"];
        let (sent, end) = dialog(opening(TlsWish::IfOffered, true), &plain);
        assert_eq!(
            (sent.as_str(), end),
            ("EHLO me", Err(OpeningError::AuthInClear))
        );
        let (_, end) = dialog(opening(TlsWish::Always, false), &plain);
        assert_eq!(end, Err(OpeningError::NoStartTls));
        let refused = ["220 hi", "250-x|250 STARTTLS", "454 not now"];
        let (_, end) = dialog(opening(TlsWish::Always, false), &refused);
        assert!(matches!(
            end,
            Err(OpeningError::Refused {
                stage: Stage::StartTls,
                ..
            })
        ));
        assert!(!format!("{:?}", opening(TlsWish::Always, true)).contains("\"p\""));
    }

    /// Any other reply ends the attempt, and the error names the refused command and the reply.
    #[test]
    fn a_refusal_names_its_stage() {
        for (replies, stage) in [
            (vec!["554 go away"], Stage::Greeting),
            (vec!["354 what"], Stage::Greeting),
            (vec!["220 hi", "421 busy"], Stage::Hello),
            (vec!["220 hi", "502 what", "502 what"], Stage::Hello),
        ] {
            match dialog(opening(TlsWish::IfOffered, false), &replies).1 {
                Err(OpeningError::Refused { stage: at, .. }) => assert_eq!(at, stage),
                other => panic!("{replies:?}: {other:?}"),
            }
        }
    }

    /// A server that refuses EHLO is asked with HELO, and the session remembers the reply. After a handshake only the reply
    /// to the second EHLO counts.
    #[test]
    fn a_refused_ehlo_is_remembered() {
        for (tls, replies, refused) in [
            (
                TlsWish::Never,
                vec!["220 hi", "502 5.5.1 what", "250 x"],
                true,
            ),
            (TlsWish::Never, vec!["220 hi", "250-x|250 8BITMIME"], false),
            (
                TlsWish::Always,
                vec![
                    "220 hi",
                    "250-x|250 STARTTLS",
                    "220 go",
                    "500 what",
                    "250 x",
                ],
                true,
            ),
        ] {
            let mut opening = opening(tls, false);
            let mut out = Vec::new();
            for text in &replies {
                let text = format!("{text}\r\n").replace('|', "\r\n");
                let reply = RawReply::parse(text.as_bytes());
                let reply = reply.expect("reply").expect("whole");
                if opening.on_reply(&reply, &mut out) == Ok(Progress::Handshake) {
                    opening.encrypted(&mut out);
                }
            }
            let capabilities = opening.into_capabilities();
            assert_eq!(capabilities.ehlo_refused.is_some(), refused, "{replies:?}");
        }
    }

    /// No secret in a log: a reply that repeats the line with the password is kept without the password.
    #[test]
    fn a_reply_that_repeats_the_password_is_kept_without_it() {
        let hello = ["220 hi", "250-x|250 AUTH PLAIN"];
        let login = ["220 hi", "250-x|250 AUTH LOGIN", "334 a", "334 b"];
        let credentials = || Credentials {
            username: "u".to_owned(),
            password: "secret word".to_owned(),
        };
        for (before, reply, kept) in [
            (
                &hello[..],
                "500 5.5.1 unknown: AUTH PLAIN AHUAc2VjcmV0IHdvcmQ=",
                "500 5.5.1 unknown: AUTH PLAIN ***",
            ),
            (
                &login[..],
                "535 c2VjcmV0IHdvcmQ= is wrong",
                "535 *** is wrong",
            ),
            (&login[..], "535 secret word is wrong", "535 *** is wrong"),
            (&login[..], "535 5.7.8 no", "535 5.7.8 no"),
        ] {
            let opening = Opening::new(false, "me", TlsWish::Never, Some(credentials()), true);
            let replies = [before, &[reply]].concat();
            let (_, end) = dialog(opening, &replies);
            let stage = Stage::Auth;
            let Err(OpeningError::Refused { stage: at, reply }) = end else {
                panic!("{end:?}");
            };
            assert_eq!((at, reply.to_string().as_str()), (stage, kept));
        }
    }
}

//! The way to an HTTP server: a POST with the notification as JSON, and a signature over its time and its body.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use ring::hmac;

use super::{Failure, Notification, Sender, WebhookSettings};
use crate::deadline::{Deadline, wall_clock};
use crate::file;
use crate::scan::engine::{HttpClient, ScanError};

/// Characters of the shortest secret: 16 random letters and digits have 95 bits.
const SECRET_CHARACTERS_MIN: usize = 16;
/// The field with the seconds since 1970 at which the request was signed.
const TIMESTAMP_FIELD: HeaderName = HeaderName::from_static("x-spillway-timestamp");
/// The field with `sha256=` and the HMAC in hexadecimal digits.
const SIGNATURE_FIELD: HeaderName = HeaderName::from_static("x-spillway-signature");
/// The field with the id of the notification, which is the same in each try.
const ID_FIELD: HeaderName = HeaderName::from_static("x-spillway-notification");

/// One server.
pub(super) struct Webhook {
    client: HttpClient,
    path: String,
    key: hmac::Key,
    timeout: Duration,
}

impl Webhook {
    /// Reads the secret and the authorities, and connects to nothing. Blocks.
    ///
    /// # Errors
    /// The reason in one line.
    pub(super) fn new(settings: &WebhookSettings, timeout: Duration) -> Result<Self, String> {
        let client = HttpClient::new(&settings.url, settings.tls_ca.as_deref(), timeout);
        Ok(Self {
            client: client.map_err(|error| error.to_string())?,
            path: settings.url.path().to_owned(),
            key: secret(&settings.secret_file)?,
            timeout,
        })
    }

    async fn post(&self, told: &Notification) -> Result<String, Failure> {
        let body = Bytes::from(told.json());
        let fields = fields(&self.key, wall_clock().as_second(), &told.id(), &body)
            .map_err(|error| Failure::Lasting(error.to_string()))?;
        let deadline = Deadline::after(self.timeout);
        let posted = self.client.post(&self.path, fields, body, deadline);
        let server = self.client.name();
        let wrong = match deadline.run(posted).await {
            Ok(Ok(_)) => return Ok(format!("taken by the webhook {server}")),
            Ok(Err(ScanError::Unreachable(why))) => format!("cannot be reached: {why}"),
            Ok(Err(ScanError::DeadlinePassed)) | Err(_) => {
                format!("gave no answer within {} ms", self.timeout.as_millis())
            }
            // These texts begin with what the server did: "reports an error: …".
            Ok(Err(error)) => error.to_string(),
        };
        Err(Failure::Passing(format!("the webhook {server} {wrong}")))
    }
}

impl Sender for Webhook {
    fn send<'a>(&'a self, told: &'a Notification) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(self.post(told))
    }
}

/// The fields of a request. The signature is over the digits of the time, a dot, and the body.
fn fields(
    key: &hmac::Key,
    seconds: i64,
    id: &str,
    body: &[u8],
) -> Result<HeaderMap, hyper::header::InvalidHeaderValue> {
    let mut mac = hmac::Context::with_key(key);
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    let mut signature = "sha256=".to_owned();
    for octet in mac.sign().as_ref() {
        signature.push_str(&format!("{octet:02x}"));
    }
    Ok(HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (TIMESTAMP_FIELD, HeaderValue::from(seconds)),
        (SIGNATURE_FIELD, HeaderValue::from_str(&signature)?),
        (ID_FIELD, HeaderValue::from_str(id)?),
    ]))
}

/// Reads a secret from a file that contains nothing else.
fn secret(path: &Path) -> Result<hmac::Key, String> {
    let shown = path.display();
    let text = file::read_text(path, file::CREDENTIAL_FILE_OCTETS_MAX)
        .map_err(|error| format!("secret_file: {shown}: {error}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    let is_good =
        text.len() >= SECRET_CHARACTERS_MIN && text.bytes().all(|octet| octet.is_ascii_graphic());
    match is_good {
        true => Ok(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())),
        false => Err(format!(
            "secret_file: {shown}: must contain one line: the secret, at least {SECRET_CHARACTERS_MIN} visible ASCII \
             characters; write one with: openssl rand -hex 32"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature is the one that a receiver computes with any other tool. The expected value is the output of
    /// `printf '1700000000.{"version":1}' | openssl dgst -sha256 -hmac 0123456789abcdef`.
    #[test]
    fn a_receiver_can_verify_the_signature() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "0123456789abcdef\n").expect("a secret");
        let key = secret(&file).expect("a key");
        let fields = fields(&key, 1_700_000_000, "01", b"{\"version\":1}").expect("fields");
        assert_eq!(fields[TIMESTAMP_FIELD], "1700000000");
        assert_eq!(fields[ID_FIELD], "01");
        assert_eq!(
            fields[SIGNATURE_FIELD],
            "sha256=d4d5218e4060ea8d4e3266cccc3a4dad71e647b6992c00beec425264a92b2c5f"
        );
    }

    /// A secret that can be guessed is refused, and so is a file that holds something else.
    #[test]
    fn a_secret_is_long_and_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        for wrong in [
            "",
            "short",
            "0123456789abcde",
            "two words that are long",
            "two\nlines, and so on …",
        ] {
            std::fs::write(&file, wrong).expect("a secret");
            let told = secret(&file).expect_err(wrong);
            assert!(told.contains("openssl rand"), "{told}");
        }
        assert!(secret(&folder.path().join("none")).is_err());
    }
}

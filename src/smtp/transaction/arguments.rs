//! Arguments of the commands that have neither path nor parameters.

use super::Mechanism;
use crate::smtp::parameters::words;

/// Longest argument of EHLO or HELO in octets: that of a domain (RFC 5321 4.5.3.1.2).
const HOST_OCTETS_MAX: usize = 255;

/// Parses the arguments of BDAT: ` chunk-size [LAST]`. A size that two systems read differently makes two messages of one, so
/// there is one way to write it: nothing but spaces separates, and a number that is too large is none.
pub(super) fn chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let arguments = std::str::from_utf8(arguments).ok()?;
    let mut words = arguments
        .strip_prefix(' ')?
        .split(' ')
        .filter(|word| !word.is_empty());
    let size = words.next()?;
    let octets = size
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| size.parse())?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some((octets.ok()?, last))
}

/// Whether there is no argument. RSET, DATA, QUIT and STARTTLS have none (RFC 5321 4.1.1, RFC 3207 4).
pub(super) fn is_none(arguments: &[u8]) -> bool {
    words(arguments).next().is_none()
}

/// The name in the arguments of EHLO and HELO. Further words are not read.
pub(super) fn host(arguments: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(words(arguments).next()?);
    let sound = name.len() <= HOST_OCTETS_MAX
        && !name.contains(|c: char| c.is_control() || c.is_whitespace());
    sound.then(|| name.into_owned())
}

/// What is asked for with AUTH: `None` for another mechanism than the offered ones.
pub(super) type Asked<'a> = (Option<Mechanism>, Option<&'a [u8]>);

/// Parses the arguments of AUTH: mechanism and initial response (RFC 4954 4). `None` if there are none, or more.
pub(super) fn auth(arguments: &[u8]) -> Option<Asked<'_>> {
    let mut words = words(arguments);
    let mechanism = match words.next()? {
        word if word.eq_ignore_ascii_case(b"PLAIN") => Some(Mechanism::Plain),
        word if word.eq_ignore_ascii_case(b"LOGIN") => Some(Mechanism::Login),
        _ => None,
    };
    let initial = words.next();
    words.next().is_none().then_some((mechanism, initial))
}

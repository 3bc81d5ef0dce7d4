//! The trace of each refusal: one count always, and one log line as long as the client does not flood.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::message::{MessageId, party};
use crate::smtp::Reply;

/// The span over which lines are counted.
const LINE_WINDOW_DURATION: Duration = Duration::from_secs(60);
/// Most lines about one client network in a window: enough to see what a client does wrong, and a new one every 3 s.
const LINES_PER_NETWORK_MAX: u32 = 20;
/// Most lines about all clients in a window, beyond the first of each network: 20 a second, about 10 KB a second on the disk.
const LINES_MAX: u32 = 1200;
/// Most client networks that are counted one by one in a window. The lines of further networks are suppressed together.
const NETWORKS_MAX: usize = 1024;
/// Most networks whose suppressed lines get a line of their own at the end of a window.
const NETWORKS_SUMMED_UP_MAX: usize = 20;

/// The lines of all listeners.
static LINES: LazyLock<Lines> = LazyLock::new(Lines::default);

/// What a client was about to do when the relay refused it. The words are labels of a metric: never change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To connect, or to name another client (PROXY, XCLIENT, XFORWARD).
    Client,
    /// EHLO or HELO.
    Helo,
    /// STARTTLS or the handshake.
    Tls,
    /// AUTH.
    User,
    /// MAIL.
    From,
    /// RCPT.
    To,
    /// DATA or BDAT, and the content.
    Data,
    /// The end of data of a message that the relay took to judge it.
    Reply,
    /// Another command, or a line that is none.
    Command,
}

impl Stage {
    /// The word in the log and in the metric.
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Helo => "helo",
            Self::Tls => "tls",
            Self::User => "user",
            Self::From => "from",
            Self::To => "to",
            Self::Data => "data",
            Self::Reply => "reply",
            Self::Command => "command",
        }
    }

    /// The stage of a command line.
    pub(super) fn of_command(line: &[u8]) -> Self {
        let verb = line.split(|octet| !octet.is_ascii_alphabetic()).next();
        let is = |word: &str| verb.is_some_and(|verb| verb.eq_ignore_ascii_case(word.as_bytes()));
        let stages = [
            (Self::From, &["MAIL"][..]),
            (Self::To, &["RCPT"]),
            (Self::Data, &["DATA", "BDAT"]),
            (Self::Helo, &["EHLO", "HELO", "LHLO"]),
            (Self::User, &["AUTH"]),
            (Self::Tls, &["STARTTLS"]),
            (Self::Client, &["XCLIENT", "XFORWARD"]),
        ];
        let found = stages
            .into_iter()
            .find(|(_, words)| words.iter().any(|word| is(word)));
        found.map_or(Self::Command, |(stage, _)| stage)
    }
}

/// One refusal.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    pub(super) stage: Stage,
    /// One stable word; a label of the metric, so from a small set.
    pub(super) reason: &'static str,
    /// The reply, if the client gets one.
    pub(super) reply: Option<&'a Reply>,
    pub(super) client: IpAddr,
    pub(super) listener: &'a str,
    /// Empty for a connection that gets no session.
    pub(super) session: &'a str,
    pub(super) helo: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    /// The reverse-path, as far as the client has given one.
    pub(super) from: Option<Cow<'a, str>>,
    /// The refused recipient, or the first recipients of the refused message.
    pub(super) to: Option<Cow<'a, str>>,
    /// The message, if the relay had taken it to judge it.
    pub(super) id: Option<MessageId>,
    /// The cause in words, where there is no reply.
    pub(super) detail: Option<Cow<'a, str>>,
}

impl<'a> Refusal<'a> {
    /// A refusal of a client about which nothing else is known.
    pub(super) fn of_client(client: IpAddr, listener: &'a str, reply: &'a Reply) -> Self {
        Self {
            stage: Stage::Client,
            reason: reply.reason(),
            reply: Some(reply),
            client,
            listener,
            session: "",
            helo: None,
            user: None,
            from: None,
            to: None,
            id: None,
            detail: None,
        }
    }

    /// Counts the refusal, and logs it unless its client floods.
    pub(super) fn tell(&self) {
        let (stage, reason) = (self.stage.as_str(), self.reason);
        metrics::counter!("spillway_refusals_total", "stage" => stage, "reason" => reason)
            .increment(1);
        if may_log(self.client) {
            self.log();
        }
    }

    fn log(&self) {
        tracing::info!(
            stage = self.stage.as_str(),
            reason = self.reason,
            code = self.reply.map(Reply::code),
            enhanced = self.reply.and_then(Reply::enhanced).as_deref(),
            client = %self.client,
            listener = self.listener,
            session = (!self.session.is_empty()).then_some(self.session),
            helo = self.helo,
            user = self.user,
            from = self.from.as_deref(),
            to = self.to.as_deref(),
            id = self.id.map(tracing::field::display),
            detail = self.detail.as_deref(),
            reply = self.reply.map(tracing::field::display),
            "refused"
        );
    }
}

/// Whether one more line about a client that is refused may be written now.
pub(super) fn may_log(client: IpAddr) -> bool {
    LINES.admit(party::network(client))
}

/// How many lines of the present window are written and suppressed.
#[derive(Debug, Default)]
struct Window {
    /// Whether the window has a task that ends it.
    is_open: bool,
    lines: u32,
    networks: HashMap<IpAddr, Counted>,
    /// Suppressed lines of networks beyond [`NETWORKS_MAX`].
    beyond: u64,
}

#[derive(Debug, Default)]
struct Counted {
    lines: u32,
    suppressed: u64,
}

/// Bounds the lines: a client that is refused a thousand times a second must not fill the disk.
#[derive(Debug, Default)]
struct Lines(Mutex<Window>);

impl Lines {
    /// Whether a line about this network may be written. The first refusal opens a window, which ends by itself.
    fn admit(&'static self, network: IpAddr) -> bool {
        let (admitted, opened) = self.lock().admit(network);
        if opened {
            let ends = Deadline::after(LINE_WINDOW_DURATION);
            tokio::spawn(async move {
                ends.wait().await;
                let window = std::mem::take(&mut *self.lock());
                window.sum_up();
            });
        }
        admitted
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Counts a line; returns whether it may be written, and whether it is the first of the window.
    fn admit(&mut self, network: IpAddr) -> (bool, bool) {
        let opened = !std::mem::replace(&mut self.is_open, true);
        if self.networks.len() >= NETWORKS_MAX && !self.networks.contains_key(&network) {
            self.beyond += 1;
            return (false, opened);
        }
        let counted = self.networks.entry(network).or_default();
        // The first line of a network is always written: others must not keep it from the log.
        let admitted =
            counted.lines == 0 || counted.lines < LINES_PER_NETWORK_MAX && self.lines < LINES_MAX;
        match admitted {
            true => {
                counted.lines += 1;
                self.lines += 1;
            }
            false => counted.suppressed += 1,
        }
        (admitted, opened)
    }

    /// The networks with most suppressed lines, and the sum of all others.
    fn suppressed(self) -> (Vec<(IpAddr, u64)>, u64) {
        let counted = self.networks.into_iter().map(|(n, c)| (n, c.suppressed));
        let mut most: Vec<_> = counted.filter(|(_, suppressed)| *suppressed > 0).collect();
        most.sort_by_key(|(network, suppressed)| (std::cmp::Reverse(*suppressed), *network));
        let others = most.split_off(most.len().min(NETWORKS_SUMMED_UP_MAX));
        let others: u64 = others.iter().map(|(_, suppressed)| suppressed).sum();
        (most, others + self.beyond)
    }

    /// Logs how many lines were suppressed.
    fn sum_up(self) {
        let (most, others) = self.suppressed();
        let each = most
            .into_iter()
            .map(|(network, count)| (Some(network), count));
        let rest = (others > 0).then_some((None, others));
        for (client, count) in each.chain(rest) {
            let client = client.map(tracing::field::display);
            tracing::info!(client, count, "refusals not logged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    /// A client that floods gets few lines, another client still gets its own, and no suppressed line is uncounted.
    #[test]
    fn a_flood_is_summed_up() {
        let mut window = Window::default();
        let written = |window: &mut Window, client| {
            (0..1000)
                .filter(|_| window.admit(network(client)).0)
                .count()
        };
        assert_eq!(written(&mut window, 1), LINES_PER_NETWORK_MAX as usize);
        assert!(window.admit(network(2)).0);
        assert_eq!(window.suppressed(), (vec![(network(1), 980)], 0));
    }

    /// A flood from any number of networks has bounded lines and memory, and its summary is short.
    #[test]
    fn a_flood_from_everywhere_is_bounded() {
        let mut window = Window::default();
        let floods = (0..10 * NETWORKS_MAX as u32).map(network);
        let lines = floods.flat_map(|client| [client; 3]);
        let lines: Vec<bool> = lines.map(|client| window.admit(client).0).collect();
        let written = lines.iter().filter(|written| **written).count();
        assert!(written <= LINES_MAX as usize + NETWORKS_MAX, "{written}");
        assert_eq!(window.networks.len(), NETWORKS_MAX);
        let (most, others) = window.suppressed();
        assert_eq!(most.len(), NETWORKS_SUMMED_UP_MAX);
        let told: u64 = most.iter().map(|(_, count)| count).sum();
        assert_eq!(told + others, (lines.len() - written) as u64);
    }

    /// A flood from many networks does not keep the refusal of another client out of the log.
    #[test]
    fn a_flood_silences_nobody_else() {
        let mut window = Window::default();
        for client in 0..100 {
            for _ in 0..LINES_PER_NETWORK_MAX {
                window.admit(network(client));
            }
        }
        assert!(window.admit(network(100)).0, "its first line");
        assert!(!window.admit(network(100)).0, "the flood has the others");
    }

    /// The window ends by itself, so that a client that was refused too often is heard of again, and the next refusal opens
    /// a new one.
    #[tokio::test(start_paused = true)]
    async fn a_window_ends() {
        let lines: &'static Lines = Box::leak(Box::default());
        for _ in 0..2 {
            let written = (0..100).filter(|_| lines.admit(network(1))).count();
            assert_eq!(written, LINES_PER_NETWORK_MAX as usize);
            Deadline::after(LINE_WINDOW_DURATION + Duration::from_secs(1))
                .wait()
                .await;
        }
    }

    /// The stage is that of the verb, in any case and whatever follows it.
    #[test]
    fn the_verb_tells_the_stage() {
        for (line, stage) in [
            ("EHLO x", Stage::Helo),
            ("helo", Stage::Helo),
            ("StartTLS", Stage::Tls),
            ("AUTH PLAIN AHg=", Stage::User),
            ("MAIL FROM:<a@b>", Stage::From),
            ("rcpt to:<a@b>", Stage::To),
            ("DATA", Stage::Data),
            ("BDAT\t5", Stage::Data),
            ("XCLIENT ADDR=1.2.3.4", Stage::Client),
            ("MAILX FROM:<a@b>", Stage::Command),
            ("", Stage::Command),
            ("GET / HTTP/1.1", Stage::Command),
        ] {
            assert_eq!(Stage::of_command(line.as_bytes()), stage, "{line}");
        }
    }
}

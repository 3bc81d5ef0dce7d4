//! A plain SMTP client for tests that send many messages.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One session.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connected and introduced.
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let mut client = Self {
            stream: BufReader::new(TcpStream::connect(address).await?),
        };
        client.reply().await?;
        client.ask("EHLO client.test").await?;
        Ok(client)
    }

    /// Says whose mail comes now, as a front end does that the relay trusts, and is introduced anew.
    pub async fn xclient(&mut self, address: &str) -> std::io::Result<()> {
        self.ask(&format!("XCLIENT ADDR={address}")).await?;
        self.ask("EHLO client.test").await?;
        Ok(())
    }

    /// One command; the last line of its reply.
    pub async fn ask(&mut self, command: &str) -> std::io::Result<String> {
        let line = format!("{command}\r\n");
        self.stream.write_all(line.as_bytes()).await?;
        self.reply().await
    }

    /// One transaction; the last line of the reply to its end of data, or of the first refusal.
    pub async fn send(
        &mut self,
        from: &str,
        to: &[&str],
        content: &[u8],
    ) -> std::io::Result<String> {
        let mut commands = format!("MAIL FROM:<{from}>\r\n");
        for recipient in to {
            commands += &format!("RCPT TO:<{recipient}>\r\n");
        }
        commands += "DATA\r\n";
        self.stream.write_all(commands.as_bytes()).await?;
        for _ in 0..to.len() + 2 {
            let reply = self.reply().await?;
            if reply.starts_with(['4', '5']) {
                return Ok(reply);
            }
        }
        let mut stuffed = Vec::with_capacity(content.len() + 64);
        for line in content.split_inclusive(|b| *b == b'\n') {
            if line.starts_with(b".") {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        if !stuffed.ends_with(b"\r\n") {
            stuffed.extend_from_slice(b"\r\n");
        }
        stuffed.extend_from_slice(b".\r\n");
        self.stream.write_all(&stuffed).await?;
        self.reply().await
    }

    /// The last line of a reply.
    pub async fn reply(&mut self) -> std::io::Result<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

//! A name server whose zones are a script, and that goes wrong on cue. Used by the unit tests, too.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, NS, SOA, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

/// What it says about one name.
#[derive(Debug, Clone, PartialEq)]
pub enum Says {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// This text, in pieces of 255 octets.
    Text(String),
    /// That there is something wrong with itself.
    ServFail,
    /// That it does not talk to us.
    Refused,
    /// Nothing.
    Nothing,
    /// Something that is no DNS message.
    Garbage,
    /// The right answer to another question.
    WrongId,
}

/// A running server; what it is not told about does not exist.
#[derive(Debug, Clone)]
pub struct NameServer {
    /// Where it listens, on UDP.
    pub address: SocketAddr,
    script: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Starts one on this runtime.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let server = Self {
            address: socket.local_addr().expect("an address"),
            script: Arc::default(),
            asked: Arc::default(),
        };
        tokio::spawn(server.clone().serve(socket));
        server
    }

    /// What it says about a name from now on.
    pub fn says(&self, name: &str, says: Says) -> &Self {
        let name = name.to_ascii_lowercase();
        self.script.lock().expect("the script").insert(name, says);
        self
    }

    /// Addresses for a name.
    pub fn has(&self, name: &str, address: [u8; 4]) -> &Self {
        self.says(name, Says::Addresses(vec![address.into()]))
    }

    /// A text for a name.
    pub fn text(&self, name: &str, text: &str) -> &Self {
        self.says(name, Says::Text(text.to_owned()))
    }

    /// All names that it was asked about, in their order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the names").clone()
    }

    async fn serve(self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            if let Some(answer) = self.answer(&query) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }

    fn answer(&self, query: &Message) -> Option<Vec<u8>> {
        let question = query.queries.first()?;
        let (name, kind) = (question.name().clone(), question.query_type());
        let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        self.asked.lock().expect("the names").push(text.clone());
        let says = self.script.lock().expect("the script").get(&text).cloned();
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        let record = |data| Record::from_rdata(name.clone(), 300, data);
        match (says, kind) {
            (Some(Says::Nothing), _) => return None,
            (Some(Says::Garbage), _) => return Some(b"what is this".to_vec()),
            (Some(Says::WrongId), _) => {
                answer.metadata.id ^= 1;
                answer.add_answer(record(RData::A(A(Ipv4Addr::new(127, 0, 0, 2)))));
            }
            (Some(Says::ServFail), _) => answer.metadata.response_code = ResponseCode::ServFail,
            (Some(Says::Refused), _) => answer.metadata.response_code = ResponseCode::Refused,
            (Some(Says::Addresses(all)), RecordType::A) => {
                for address in all {
                    answer.add_answer(record(RData::A(A(address))));
                }
            }
            (Some(Says::Text(text)), RecordType::TXT) => {
                let pieces = text.as_bytes().chunks(255);
                let pieces = pieces.map(|p| String::from_utf8_lossy(p).into_owned());
                answer.add_answer(record(RData::TXT(TXT::new(pieces.collect()))));
            }
            (None, RecordType::NS) if text.is_empty() => {
                answer.add_answer(record(RData::NS(NS(Name::root()))));
            }
            (known, _) => {
                if known.is_none() {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 60);
                let soa = Record::from_rdata(Name::root(), 60, RData::SOA(soa));
                answer.add_authority(soa);
            }
        }
        answer.to_vec().ok()
    }
}

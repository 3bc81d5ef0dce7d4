//! The protocol without sockets, clock or configuration: RFC 5321 and its extensions as pure values and machines, used
//! by the listener (server) and by delivery (client) alike.

pub mod content;
pub mod dialog;
pub mod dot_stuff;
pub mod orcpt;
pub mod reply;
pub mod reply_parser;
pub mod transaction;
pub mod xtext;

pub use reply::{RemoteReply, Reply};

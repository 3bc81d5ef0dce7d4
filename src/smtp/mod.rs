//! The SMTP protocol (RFC 5321 and its extensions) as pure values and state machines, without sockets, clock or
//! configuration. The listener uses the server side, and delivery uses the client side.

pub mod content;
pub mod dialog;
pub mod dot_stuff;
pub mod orcpt;
pub mod parameters;
pub mod path;
mod remote_reply;
pub mod reply;
pub mod reply_parser;
pub mod transaction;
pub mod xtext;

pub use remote_reply::RemoteReply;
pub use reply::Reply;

//! Admission of the mail of a session: its party, and the memory that each transaction is charged.

use super::Session;
use super::receive::Intake;
use crate::listener::admission::AdmissionParty;
use crate::message::{self, Charge, MemoryBudget, Recipient, ReversePath, SenderReputation};
use crate::smtp::Reply;
use crate::smtp::content::Decoder;

/// Memory that the recipients of a transaction use before its content begins.
#[derive(Debug, Default)]
pub(super) struct EnvelopeCharge {
    octets: usize,
    charge: Charge,
}

impl Session {
    /// The accounts that the transaction is charged to. The party of mail with the null reverse-path depends on the first recipient, which is
    /// not known yet at MAIL.
    fn party(&self) -> AdmissionParty {
        let transaction = self.server.transaction();
        let first = transaction.and_then(|t| t.recipients.first());
        let path = transaction.map_or(&ReversePath::NULL, |t| &t.reverse_path);
        let user = self.server.user();
        // A client that has authenticated counts as a known sender, and any other client as an unknown one.
        let reputation = match self.client_certificate || user.is_some() {
            true => SenderReputation::Known,
            false => SenderReputation::Unknown,
        };
        let client = self.client();
        let sender = message::Party::new(client, user, path, first.map(|first| &first.mailbox));
        self.admission.party(client, &sender, reputation)
    }

    /// Asks admission, after the protocol accepted MAIL, whether there is room for the message. Returns `said` or a
    /// refusal. The client gets the refusal before it sends content, and can still use another server.
    pub(super) fn transaction_begun(&mut self, said: Reply) -> Reply {
        match self
            .admission
            .ask(&self.party(), MemoryBudget::MESSAGE_OVERHEAD_OCTETS)
        {
            Ok(()) => said,
            Err(reply) => {
                self.forget_transaction();
                reply
            }
        }
    }

    /// Charges one more recipient to the transaction; false if there is no memory for it. Recipients are charged because a
    /// transaction with a thousand of them may wait minutes for its DATA.
    pub(super) fn has_room_for(&mut self, recipient: &Recipient) -> bool {
        let octets = size_of::<Recipient>()
            + recipient.mailbox.as_str().len()
            + recipient.orcpt.as_deref().map_or(0, str::len);
        let envelope = self.envelope.get_or_insert_default();
        envelope.octets += octets * MemoryBudget::OCTETS_PER_CONTENT_OCTET;
        let memory = self.pipeline.memory();
        memory.try_hold(&mut envelope.charge, envelope.octets)
    }

    /// Starts the intake at DATA or at the first chunk, and takes a share of admission for the message. The error is the
    /// reply to the client.
    pub(super) fn begin(&mut self, decoder: Decoder) -> Result<Box<Intake>, Reply> {
        let envelope = self.envelope.take().unwrap_or_default();
        let (mut charge, octets) = (
            envelope.charge,
            envelope.octets + MemoryBudget::MESSAGE_OVERHEAD_OCTETS,
        );
        let share = self.admission.enter(self.party(), octets)?;
        if !self.pipeline.memory().try_hold(&mut charge, octets) {
            return Err(Reply::no_room());
        }
        let declared = self.server.transaction().map_or(0, |t| t.declared_size);
        let intake = Intake::new(decoder, declared, &self.context.limits, charge);
        Ok(Box::new(intake.shared(share)))
    }

    /// An intake that keeps nothing, for a refused chunk: its octets follow the command in any case.
    pub(super) fn discarding(&self, decoder: Decoder, reply: Reply) -> Box<Intake> {
        let mut intake = Intake::new(decoder, 0, &self.context.limits, Charge::default());
        intake.refuse(reply);
        Box::new(intake)
    }
}

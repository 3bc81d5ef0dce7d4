//! The words of other mail servers and filters, so that an administrator who knows them finds the keys of this relay.

use super::change::SECTION_LISTS;

/// A word, the servers that have it, and the keys that do the same here: `section.key`.
type Word = (&'static str, &'static str, &'static [&'static str]);

/// All words. Each is the name that an administrator would look for, not every name that exists.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    ("mynetworks", "Postfix's and amavis's", &["listener.relay_networks"]),
    ("relayhost", "Postfix's", &["next_hop.address"]),
    ("relay_domains", "Postfix's", &["next_hop.domains"]),
    ("mydestination", "Postfix's", &["next_hop.domains"]),
    ("virtual_mailbox_domains", "Postfix's", &["next_hop.domains"]),
    ("transport_maps", "Postfix's", &["next_hop.domains", "next_hop.address"]),
    ("mailbox_transport", "Postfix's", &["next_hop.kind"]),
    ("virtual_transport", "Postfix's", &["next_hop.kind"]),
    ("home_mailbox", "Postfix's", &["next_hop.path"]),
    ("myhostname", "Postfix's", &["relay.hostname"]),
    ("inet_interfaces", "Postfix's", &["listener.address"]),
    ("smtpd_relay_restrictions", "Postfix's", &["listener.relay_networks", "listener.users_file"]),
    ("smtpd_recipient_restrictions", "Postfix's", &["listener.relay_networks", "rule.recipient"]),
    ("smtpd_sender_restrictions", "Postfix's", &["rule.sender"]),
    ("smtpd_client_restrictions", "Postfix's", &["rule.client"]),
    ("smtpd_sasl_auth_enable", "Postfix's", &["listener.users_file"]),
    ("smtpd_authorized_xclient_hosts", "Postfix's", &["listener.xclient_from"]),
    ("smtpd_authorized_xforward_hosts", "Postfix's", &["listener.xforward_from"]),
    ("smtpd_upstream_proxy_protocol", "Postfix's", &["listener.proxy_from"]),
    ("content_filter", "Postfix's", &["engine.kind", "engine.address"]),
    ("smtpd_proxy_filter", "Postfix's", &["engine.kind", "engine.address"]),
    ("smtpd_milters", "Postfix's", &["engine.kind", "engine.address"]),
    ("non_smtpd_milters", "Postfix's", &["engine.kind", "engine.address"]),
    ("milter_default_action", "Postfix's", &["policy.missing.unreachable"]),
    ("header_checks", "Postfix's", &["rule.sender", "engine.paths"]),
    ("body_checks", "Postfix's", &["engine.paths"]),
    ("mime_header_checks", "Postfix's", &["rule.attachment_name"]),
    ("smtpd_tls_security_level", "Postfix's", &["listener.tls"]),
    ("smtpd_use_tls", "Postfix's", &["listener.tls"]),
    ("smtpd_enforce_tls", "Postfix's", &["listener.tls"]),
    ("smtpd_tls_wrappermode", "Postfix's", &["listener.tls"]),
    ("smtpd_tls_cert_file", "Postfix's", &["listener.certificate"]),
    ("smtpd_tls_chain_files", "Postfix's", &["listener.certificate", "listener.key"]),
    ("smtpd_tls_key_file", "Postfix's", &["listener.key"]),
    ("smtpd_tls_CAfile", "Postfix's", &["listener.client_ca"]),
    ("smtp_tls_security_level", "Postfix's", &["next_hop.tls"]),
    ("smtp_tls_CAfile", "Postfix's", &["next_hop.tls_ca"]),
    ("smtp_sasl_password_maps", "Postfix's", &["next_hop.username", "next_hop.password_file"]),
    ("message_size_limit", "Postfix's and Exim's", &["limits.message_size"]),
    ("smtpd_recipient_limit", "Postfix's", &["limits.recipients"]),
    ("default_process_limit", "Postfix's", &["limits.sessions"]),
    ("smtpd_client_connection_count_limit", "Postfix's", &["limits.sessions_per_client"]),
    ("smtpd_hard_error_limit", "Postfix's", &["limits.errors"]),
    ("smtpd_timeout", "Postfix's", &["limits.idle"]),
    ("line_length_limit", "Postfix's", &["limits.command_line"]),
    ("hopcount_limit", "Postfix's", &["limits.hops"]),
    ("queue_minfree", "Postfix's", &["store.disk_reserve"]),
    ("queue_directory", "Postfix's", &["store.path"]),
    ("minimal_backoff_time", "Postfix's", &["next_hop.retry_first"]),
    ("maximal_backoff_time", "Postfix's", &["next_hop.retry_max"]),
    ("maximal_queue_lifetime", "Postfix's", &["next_hop.give_up"]),
    ("bounce_queue_lifetime", "Postfix's", &["next_hop.give_up"]),
    ("smtp_connect_timeout", "Postfix's", &["next_hop.connect_timeout"]),
    ("smtp_data_done_timeout", "Postfix's", &["next_hop.data_timeout"]),
    ("default_destination_concurrency_limit", "Postfix's", &["next_hop.connections"]),
    ("smtp_destination_concurrency_limit", "Postfix's", &["next_hop.connections"]),
    ("primary_hostname", "Exim's", &["relay.hostname"]),
    ("local_interfaces", "Exim's", &["listener.address"]),
    ("daemon_smtp_ports", "Exim's", &["listener.address"]),
    ("relay_from_hosts", "Exim's", &["listener.relay_networks"]),
    ("relay_to_domains", "Exim's", &["next_hop.domains"]),
    ("route_list", "Exim's", &["next_hop.domains", "next_hop.address"]),
    ("hosts_proxy", "Exim's", &["listener.proxy_from"]),
    ("acl_smtp_rcpt", "Exim's", &["listener.relay_networks", "rule.recipient"]),
    ("acl_smtp_mail", "Exim's", &["rule.sender"]),
    ("acl_smtp_connect", "Exim's", &["rule.client"]),
    ("acl_smtp_data", "Exim's", &["rule.finding"]),
    ("acl_smtp_mime", "Exim's", &["rule.attachment_name"]),
    ("av_scanner", "Exim's", &["engine.kind", "engine.address"]),
    ("spamd_address", "Exim's", &["engine.kind", "engine.address"]),
    ("tls_advertise_hosts", "Exim's", &["listener.tls"]),
    ("tls_certificate", "Exim's", &["listener.certificate"]),
    ("tls_privatekey", "Exim's", &["listener.key"]),
    ("tls_verify_certificates", "Exim's", &["listener.client_ca"]),
    ("recipients_max", "Exim's", &["limits.recipients"]),
    ("smtp_accept_max", "Exim's", &["limits.sessions"]),
    ("smtp_accept_max_per_host", "Exim's", &["limits.sessions_per_client"]),
    ("smtp_receive_timeout", "Exim's", &["limits.idle"]),
    ("received_headers_max", "Exim's", &["limits.hops"]),
    ("check_spool_space", "Exim's", &["store.disk_reserve"]),
    ("spool_directory", "Exim's", &["store.path"]),
    ("inet_socket_port", "amavis's", &["listener.address"]),
    ("forward_method", "amavis's", &["next_hop.address"]),
    ("av_scanners", "amavis's", &["engine.kind", "engine.address"]),
    ("max_servers", "amavis's", &["engine.slots"]),
    ("child_timeout", "amavis's", &["budget.total"]),
    ("banned_filename_re", "amavis's", &["rule.attachment_name"]),
    ("final_virus_destiny", "amavis's", &["policy.malware"]),
    ("final_banned_destiny", "amavis's", &["policy.policy"]),
    ("final_spam_destiny", "amavis's", &["policy.quarantine_score", "policy.reject_score"]),
    ("sa_tag2_level_deflt", "amavis's", &["policy.tag_score"]),
    ("sa_kill_level_deflt", "amavis's", &["policy.quarantine_score"]),
    ("virus_quarantine_to", "amavis's", &["quarantine.retention"]),
    ("bypass_virus_checks_maps", "amavis's", &["rule.then"]),
    ("bind_socket", "rspamd's", &["listener.address"]),
    ("task_timeout", "rspamd's", &["engine.timeout"]),
    ("actions", "rspamd's", &["policy.tag_score", "policy.quarantine_score", "policy.reject_score"]),
    ("add_header", "rspamd's", &["policy.tag_score"]),
    ("ClamdSocket", "clamav-milter's", &["engine.address"]),
    ("MilterSocket", "clamav-milter's", &["engine.address"]),
    ("MaxFileSize", "clamav-milter's", &["engine.max_size"]),
    ("OnInfected", "clamav-milter's", &["policy.malware"]),
    ("OnFail", "clamav-milter's", &["policy.missing.unreachable"]),
    ("SMART_HOST", "Sendmail's", &["next_hop.address"]),
    ("INPUT_MAIL_FILTER", "Sendmail's", &["engine.kind", "engine.address"]),
    ("confMAX_MESSAGE_SIZE", "Sendmail's", &["limits.message_size"]),
    ("databytes", "Haraka's", &["limits.message_size"]),
];

/// What to write instead of a word of another server: "this is Postfix's mynetworks; here it is relay_networks in
/// \[\[listener]]". `None` for a word that none of them has.
pub(super) fn advice(word: &str) -> Option<String> {
    let mut words = WORDS.iter();
    let (word, server, keys) = words.find(|(known, ..)| known.eq_ignore_ascii_case(word))?;
    let mut places: Vec<(&str, Vec<&str>)> = Vec::new();
    for key in *keys {
        let (section, key) = key.rsplit_once('.')?;
        match places.last_mut().filter(|(last, _)| *last == section) {
            Some((_, keys)) => keys.push(key),
            None => places.push((section, vec![key])),
        }
    }
    let places = places.iter().map(|(section, keys)| {
        let keys = keys.join(" and ");
        match SECTION_LISTS.contains(section) {
            true => format!("{keys} in [[{section}]]"),
            false => format!("{keys} in [{section}]"),
        }
    });
    let places: Vec<String> = places.collect();
    Some(format!(
        "this is {server} {word}; here it is {}",
        places.join(" and ")
    ))
}

/// All words.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static Word> {
    WORDS.iter()
}

//! Name servers, and what their errors mean here.
//!
//! No type of the resolver's crate is in the settings; its cache is bounded in entries and keeps to the records' TTL.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::system_conf::read_system_conf;

use super::{BuildError, ScanError};

/// Answers that are kept: a few megabytes at most.
const CACHED_ANSWERS_MAX: u64 = 8192;
/// No answer is believed for longer than this, whatever its TTL says.
const CACHE_AGE_MAX: Duration = Duration::from_secs(3600);

/// Who is asked, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServers {
    /// Their addresses; none: those of the system.
    pub addresses: Vec<SocketAddr>,
    /// One query waits so long, and is then sent once more: less than half of what the engine has.
    pub patience: Duration,
}

impl NameServers {
    /// A resolver that remembers what it was told.
    pub(super) fn caching(&self) -> Result<TokioResolver, BuildError> {
        self.resolver(CACHED_ANSWERS_MAX)
    }

    /// A resolver that asks each time: for probes, which must see what is so now.
    pub(super) fn forgetful(&self) -> Result<TokioResolver, BuildError> {
        self.resolver(0)
    }

    fn resolver(&self, cache: u64) -> Result<TokioResolver, BuildError> {
        let (config, options) = self.configuration(cache)?;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| BuildError::Resolver(error.to_string()))
    }

    /// Blocks on the system's file where no addresses are given.
    pub(super) fn configuration(
        &self,
        cache: u64,
    ) -> Result<(ResolverConfig, ResolverOpts), BuildError> {
        let config = match self.addresses.is_empty() {
            true => {
                let read = read_system_conf();
                let (config, _) = read.map_err(|error| BuildError::Resolver(error.to_string()))?;
                config
            }
            false => ResolverConfig::from_name_servers(self.addresses.iter().map(server).collect()),
        };
        let mut options = ResolverOpts::default();
        options.timeout = self.patience;
        options.attempts = 1;
        options.cache_size = cache;
        options.positive_max_ttl = Some(CACHE_AGE_MAX);
        options.negative_max_ttl = Some(CACHE_AGE_MAX);
        // What /etc/hosts says is nothing about what the world's DNS says.
        options.use_hosts_file = ResolveHosts::Never;
        Ok((config, options))
    }

    /// With the cache's usual size.
    pub(super) fn cached_configuration(
        &self,
    ) -> Result<(ResolverConfig, ResolverOpts), BuildError> {
        self.configuration(CACHED_ANSWERS_MAX)
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

/// Whether the name servers say that there is no such record, as against that they cannot tell.
pub(super) fn is_no(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
        return false;
    };
    matches!(
        none.response_code,
        ResponseCode::NXDomain | ResponseCode::NoError
    )
}

/// A question that has no answer, neither yes nor no; `about` is who should know.
pub(super) fn failed(error: &NetError, about: &str) -> ScanError {
    let replica = about.to_owned();
    match error {
        NetError::Timeout | NetError::NoConnections | NetError::Io(_) => {
            ScanError::Unreachable(format!("{about}: no answer from the name servers: {error}"))
        }
        NetError::Proto(_) => ScanError::Garbage {
            replica,
            answer: error.to_string(),
        },
        other => ScanError::Engine {
            replica,
            message: other.to_string(),
        },
    }
}

//! Name servers, and the meaning of their errors.
//!
//! The settings use no type of the resolver's crate. The resolver's cache is bounded in entries, and respects the records'
//! TTL.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::system_conf::read_system_conf;

use super::{BuildError, ScanError};

/// Answers in the cache of one resolver: a few megabytes at most.
const CACHED_ANSWERS_MAX: u64 = 8192;
/// Answers are cached for one hour at most, even if their TTL is longer, so that a changed record counts after that.
const CACHE_AGE_MAX: Duration = Duration::from_secs(3600);

/// The name servers, and the timeout of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServers {
    /// Addresses of the name servers. If empty, the relay uses the name servers of the system.
    pub addresses: Vec<SocketAddr>,
    /// Timeout of one query. The resolver then sends the query once more, so this is less than half of the engine's time.
    pub patience: Duration,
}

impl NameServers {
    /// A resolver with a cache.
    pub(super) fn caching(&self) -> Result<TokioResolver, BuildError> {
        self.resolver(CACHED_ANSWERS_MAX)
    }

    /// A resolver without a cache, for probes: a probe must see the present state.
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

    /// The configuration of a resolver with `cache` cached answers. If there are no addresses, this reads the system's file,
    /// and blocks.
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
        // /etc/hosts says nothing about the public DNS.
        options.use_hosts_file = ResolveHosts::Never;
        Ok((config, options))
    }

    /// The configuration of [`Self::caching`], with the usual size of the cache.
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

/// Whether the error means that there is no such record. Other errors mean that the name servers cannot tell.
pub(super) fn is_no(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
        return false;
    };
    matches!(
        none.response_code,
        ResponseCode::NXDomain | ResponseCode::NoError
    )
}

/// The error for a query that got neither yes nor no. `about` names the zone or the engine in the report.
pub(super) fn failed(error: &NetError, about: &str) -> ScanError {
    match error {
        NetError::Timeout | NetError::NoConnections | NetError::Io(_) => {
            ScanError::Unreachable(format!("{about}: no answer from the name servers: {error}"))
        }
        NetError::Proto(_) => ScanError::Garbage(error.to_string()),
        other => ScanError::Engine(other.to_string()),
    }
}

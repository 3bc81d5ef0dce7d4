//! Routes recipient domains to next hops.

use std::collections::HashMap;

use super::{BuildError, Settings};
use crate::message::canonical;

/// Maps domains to positions in the list of next hops.
#[derive(Debug, Default)]
pub struct Routes {
    exact: HashMap<String, usize>,
    /// Domain suffixes with their leading dot.
    suffixes: HashMap<String, usize>,
    rest: Option<usize>,
}

impl Routes {
    /// Collects the domains of all next hops. Fails if two entries claim the same domain.
    pub fn new(hops: &[Settings]) -> Result<Self, BuildError> {
        let mut routes = Self::default();
        for (at, hop) in hops.iter().enumerate() {
            for domain in &hop.domains {
                let canonical = || canonical::domain(domain).into_owned();
                let before = if domain == "*" {
                    routes.rest.replace(at)
                } else if domain.starts_with('.') {
                    routes.suffixes.insert(canonical(), at)
                } else {
                    routes.exact.insert(canonical(), at)
                };
                if let Some(before) = before {
                    return Err(BuildError::DomainTwice {
                        domain: domain.clone(),
                        first: hops[before].name.to_string(),
                        second: hop.name.to_string(),
                    });
                }
            }
        }
        Ok(routes)
    }

    /// Position of the next hop for this domain, in any spelling: the exact domain first, then the longest suffix, then `*`. Address
    /// literals and the empty domain of the bare postmaster match only `*`, because they contain no domain name.
    pub fn find(&self, domain: &str) -> Option<usize> {
        if domain.is_empty() || domain.starts_with('[') {
            return self.rest;
        }
        let domain = canonical::domain(domain);
        if let Some(at) = self.exact.get(&*domain) {
            return Some(*at);
        }
        if self.suffixes.is_empty() {
            return self.rest;
        }
        let mut suffixes = domain.match_indices('.').map(|(dot, _)| &domain[dot..]);
        suffixes
            .find_map(|suffix| self.suffixes.get(suffix).copied())
            .or(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Kind;

    fn hop(name: &str, domains: &[&str]) -> Settings {
        Settings::sample(name, domains, Kind::sample())
    }

    /// The most specific entry wins, independent of order and case.
    #[test]
    fn the_most_exact_domain_wins() {
        let hops = [
            hop("rest", &["*"]),
            hop(
                "below",
                &[
                    ".Example.com",
                    ".b.example.com",
                    ".bücher.example",
                    ".XN--mnchen-3ya.example",
                ],
            ),
            hop("exact", &["a.example.com", "example.com", "Bücher.example"]),
        ];
        let routes = Routes::new(&hops).expect("routes");
        for (domain, expected) in [
            ("example.com", "exact"),
            ("A.EXAMPLE.com", "exact"),
            ("a.example.com.", "exact"),
            ("x.a.example.com", "below"),
            ("x.example.com", "below"),
            ("notexample.com", "rest"),
            ("a.example.com..", "exact"),
            ("xn--bcher-kva.example", "exact"),
            ("BÜCHER.example", "exact"),
            ("x.bu\u{308}cher.example.", "below"),
            ("x.münchen.example", "below"),
            ("x。example。com", "below"),
            ("", "rest"),
            ("[192.0.2.1]", "rest"),
            ("[IPv6:2001:db8::1]", "rest"),
        ] {
            let found = routes.find(domain).map(|at| &*hops[at].name);
            assert_eq!(found, Some(expected), "{domain}");
        }
        let none = Routes::new(&hops[2..]).expect("routes");
        assert_eq!(none.find("x.example.com"), None);
    }

    /// Two next hops for one domain are a configuration error that names both.
    #[test]
    fn a_domain_is_claimed_once() {
        let error = Routes::new(&[hop("one", &["example.com"]), hop("two", &["EXAMPLE.com"])])
            .expect_err("twice");
        let text = error.to_string();
        assert!(text.contains("one") && text.contains("two"), "{text}");
    }
}

//! Where requests may go: hosts that the operator has listed, and no addresses of the inner network unless they are listed too.
//!
//! The check of addresses is in the resolver that the connection itself uses, so what was checked is what is connected to: a
//! name that answers differently the second time (DNS rebinding) gains nothing. Addresses written in the URL never reach a
//! resolver and are checked with the URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Where requests may go.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    entries: Vec<Entry>,
    networks: Vec<IpNet>,
}

#[derive(Debug, Clone)]
struct Entry {
    host: Pattern,
    /// None: any.
    port: Option<u16>,
    plain: bool,
}

#[derive(Debug, Clone)]
enum Pattern {
    Any,
    /// A name, or an address as a URL writes it.
    Exact(String),
    /// Everything below a name, which begins with a dot here.
    Below(String),
}

/// A setting cannot be used. The text names what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadReach(String);

/// Why a request may not go where it wants to. The texts name the host and never an address that it resolved to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not an address that can be asked at all.
    #[error("{0}")]
    Url(String),
    /// Not listed.
    #[error("{0} is not among the hosts that tools may reach (HTTP_TOOL_HOSTS)")]
    Host(String),
    /// The address lies in a network that tools may not reach.
    #[error("{0} is at an address that tools may not reach (HTTP_TOOL_NETWORKS)")]
    Address(String),
}

impl Refused {
    /// The reason without the host, for whoever sent it: what was refused is not repeated.
    pub(crate) fn nameless(&self) -> String {
        match self {
            Self::Url(reason) => reason.clone(),
            Self::Host(_) => "this host is not among those that tools may reach (HTTP_TOOL_HOSTS)".to_owned(),
            Self::Address(_) => {
                "this is at an address that tools may not reach (HTTP_TOOL_NETWORKS)".to_owned()
            }
        }
    }
}

impl Reach {
    /// Reads the lists. A host is `example.org`, `*.example.org`, `example.org:8443`, `http://example.org` for plain HTTP, or `*`
    /// for any host over HTTPS; a network is `10.0.5.0/24` or a single address.
    ///
    /// # Errors
    /// The entry that cannot be used.
    pub fn new<S: AsRef<str>>(hosts: &[S], networks: &[S]) -> Result<Self, BadReach> {
        let entries = hosts.iter().map(|entry| Entry::read(entry.as_ref())).collect::<Result<_, _>>()?;
        let networks = networks
            .iter()
            .map(|network| {
                let network = network.as_ref();
                let address = network.parse::<IpAddr>().map(IpNet::from);
                network
                    .parse::<IpNet>()
                    .or(address)
                    .map_err(|_| BadReach(format!("{network:?} is not a network such as 10.0.5.0/24")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { entries, networks })
    }

    /// Any host over HTTPS, at any port, and inner addresses only in these networks. Plain HTTP for what is listed so.
    ///
    /// # Errors
    /// The entry that cannot be used.
    pub fn anywhere<S: AsRef<str>>(plain_hosts: &[S], networks: &[S]) -> Result<Self, BadReach> {
        let mut reach = Self::new(plain_hosts, networks)?;
        reach.entries.push(Entry { host: Pattern::Any, port: None, plain: false });
        Ok(reach)
    }

    /// Whether no host is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a request may go to this address, as far as that can be said without asking for addresses.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(Refused::Url("a URL begins with https://".to_owned())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Url(
                "a URL holds no user and no password; send a header instead".to_owned(),
            ));
        }
        let host = url.host().ok_or_else(|| Refused::Url("the URL names no host".to_owned()))?;
        let port = url.port_or_known_default().unwrap_or(0);
        let name = host.to_string();
        let name = name.trim_end_matches('.');
        if !self.entries.iter().any(|entry| entry.covers(name, port, plain)) {
            let shown = if url.port().is_some() { format!("{name}:{port}") } else { name.to_owned() };
            return Err(Refused::Host(if plain { format!("http://{shown}") } else { shown }));
        }
        let address = match host {
            Host::Domain(_) => return Ok(()),
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
        };
        if self.admits(address) { Ok(()) } else { Err(Refused::Address(name.to_owned())) }
    }

    /// Whether a connection may be made to this address.
    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.networks.iter().any(|network| network.contains(&address))
    }
}

impl Entry {
    fn read(text: &str) -> Result<Self, BadReach> {
        let wrong = || {
            BadReach(format!(
                "{text:?} is not a host such as example.org, *.example.org, example.org:8443, http://example.org or *"
            ))
        };
        let plain = text.starts_with("http://");
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest == "*" {
            // Any host in clear text would be a hole that nobody means.
            return if plain {
                Err(wrong())
            } else {
                Ok(Self { host: Pattern::Any, port: Some(443), plain })
            };
        }
        let below = rest.starts_with("*.");
        let name = rest.strip_prefix("*.").unwrap_or(rest);
        let url =
            Url::parse(&format!("{}://{name}", if plain { "http" } else { "https" })).map_err(|_| wrong())?;
        let whole = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty();
        let host = url.host_str().filter(|host| whole && !host.contains('*')).ok_or_else(wrong)?;
        let host = host.trim_end_matches('.');
        let port = Some(url.port_or_known_default().unwrap_or(443));
        let host = if below { Pattern::Below(format!(".{host}")) } else { Pattern::Exact(host.to_owned()) };
        Ok(Self { host, port, plain })
    }

    fn covers(&self, name: &str, port: u16, plain: bool) -> bool {
        let host = match &self.host {
            Pattern::Any => true,
            Pattern::Exact(host) => host == name,
            Pattern::Below(end) => name.ends_with(end.as_str()),
        };
        host && self.port.is_none_or(|own| own == port) && self.plain == plain
    }
}

/// Whether an address belongs to the public internet. What embeds an IPv4 address is judged by that.
///
/// The lists are those of the IANA special-purpose registries (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        // Shared by providers (RFC 6598), protocol assignments, 6to4 relays, benchmarks, multicast and reserved.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 224)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // NAT64 (RFC 6052) and 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // Only global unicast is public; of it not Teredo, benchmarks, ORCHID and documentation.
        [first, second, ..] => {
            (0x2000..0x4000).contains(&first)
                && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
                && !(first == 0x3fff && second < 0x1000)
        }
    }
}

/// Gives the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// All of them.
    fn lookup(
        &self,
        name: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;
}

/// The resolver of this machine.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Lookup for System {
    fn lookup(
        &self,
        name: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// A resolver that gives a connection only addresses that it may use.
pub(crate) struct Guarded {
    pub(crate) reach: Arc<Reach>,
    pub(crate) lookup: Arc<dyn Lookup>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, lookup) = (Arc::clone(&self.reach), Arc::clone(&self.lookup));
        Box::pin(async move {
            let found = lookup.lookup(name.as_str().to_owned()).await?;
            // One inner address among outer ones is a trick, or a mistake that should be seen.
            if found.iter().any(|address| !reach.admits(*address)) {
                return Err(Box::new(Refused::Address(name.as_str().to_owned())) as _);
            }
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(hosts: &[&str], networks: &[&str]) -> Reach {
        Reach::new(hosts, networks).expect("a reach")
    }

    fn check(reach: &Reach, url: &str) -> Result<(), Refused> {
        reach.check(&Url::parse(url).expect("a URL"))
    }

    #[test]
    fn only_listed_hosts_are_reached() {
        let reach =
            reach(&["api.example.org", "*.example.net", "example.com:8443", "http://plain.example"], &[]);
        for url in [
            "https://api.example.org/x",
            "https://API.example.org:443",
            "https://api.example.org./",
            "https://a.b.example.net",
            "https://example.com:8443",
            "http://plain.example/",
        ] {
            assert_eq!(check(&reach, url), Ok(()), "{url}");
        }
        for url in [
            "http://api.example.org",
            "https://api.example.org:8443",
            "https://example.net",
            "https://evilexample.net",
            "https://example.com",
            "https://plain.example",
            "https://api.example.org.evil.example",
            "https://api.example.org@evil.example",
            "ftp://api.example.org",
            "file:///etc/passwd",
            "https://user:pass@api.example.org",
        ] {
            assert!(check(&reach, url).is_err(), "{url}");
        }
        assert!(check(&Reach::default(), "https://example.org").is_err());
    }

    #[test]
    fn inner_addresses_are_refused_however_they_are_written() {
        let reach = reach(&["*"], &[]);
        for url in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://10.1.2.3/",
            "https://172.31.0.1/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
            "https://[::1]/",
            "https://[::]/",
            "https://[fe80::1]/",
            "https://[fd00::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://[2001:0:1::1]/",
            "https://[2001:db8::1]/",
            "https://[ff02::1]/",
        ] {
            assert!(
                matches!(check(&reach, url), Err(Refused::Address(_))),
                "{url}: {:?}",
                check(&reach, url)
            );
        }
        for url in ["https://8.8.8.8/", "https://[2606:4700::1111]/", "https://[64:ff9b::808:808]/"] {
            assert_eq!(check(&reach, url), Ok(()), "{url}");
        }
    }

    #[test]
    fn listed_networks_are_reached_and_no_others() {
        let reach = reach(&["http://127.0.0.1:8080", "10.0.5.7", "10.0.6.7"], &["127.0.0.1", "10.0.5.0/24"]);
        assert_eq!(check(&reach, "http://127.0.0.1:8080/a"), Ok(()));
        assert_eq!(check(&reach, "https://10.0.5.7/"), Ok(()));
        assert!(check(&reach, "https://10.0.6.7/").is_err());
        assert!(reach.admits("::ffff:10.0.5.9".parse().expect("an address")));
        assert!(!reach.admits("127.0.0.2".parse().expect("an address")));
    }

    #[test]
    fn what_is_no_host_or_network_is_named() {
        for host in ["", "http://*", "a b", "example.org/path", "a.*.b", "user@example.org"] {
            let error = Reach::new(&[host], &[]).expect_err(host);
            assert!(error.to_string().contains("not a host"), "{error}");
        }
        assert!(Reach::new(&[], &["10.0.0.0/99"]).is_err());
    }
}

//! Where Redis is and how it is reached, read from a URL.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use interlock_model::secret::Secret;
use redis::{Client, ClientTlsConfig, TlsCertificates};
use url::{Host, Url};

/// Where Redis is.
#[derive(Clone)]
pub struct RedisConfig {
    url: Secret,
    /// `host:port` and number, for people.
    place: String,
    db: i64,
    tls: bool,
    exposed: bool,
    ca_pem: Option<String>,
    own: Option<OwnCertificate>,
    /// How long a request waits for an answer.
    pub deadline: Duration,
}

/// The certificate that we show to Redis, and its key, both PEM.
#[derive(Clone)]
pub struct OwnCertificate {
    /// The certificate and those between it and its authority.
    pub chain: String,
    /// Its key.
    pub key: Secret,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// How long a request waits for an answer, where nothing else is said.
const DEADLINE: Duration = Duration::from_millis(25);

impl RedisConfig {
    /// Reads `redis://[user:password@]host[:port][/db]` or `rediss://…` (TLS). Without a number it is database 0.
    ///
    /// `ca_pem` holds the authorities to trust instead of this machine's. `plaintext` allows a connection without TLS to
    /// another machine.
    ///
    /// # Errors
    /// What is wrong with the URL, without its password.
    pub fn new(url: &Secret, ca_pem: Option<String>, plaintext: bool) -> Result<Self, &'static str> {
        const FORM: &str = "must be redis://[user:password@]host[:port][/db], or rediss:// for TLS";
        let parsed = Url::parse(url.expose().trim()).map_err(|_| FORM)?;
        let tls = match parsed.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(FORM),
        };
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err("must end after the number of the database; options and fragments are not taken");
        }
        // Not a special scheme: the address is still a name.
        let (host, is_loopback) = match parsed.host().ok_or(FORM)? {
            Host::Domain("") => return Err(FORM),
            Host::Domain(name) => {
                let address = name.parse::<IpAddr>();
                (name.to_owned(), name == "localhost" || address.is_ok_and(|address| address.is_loopback()))
            }
            Host::Ipv4(address) => (address.to_string(), address.is_loopback()),
            Host::Ipv6(address) => (format!("[{address}]"), address.is_loopback()),
        };
        let db = match parsed.path().trim_matches('/') {
            "" => 0,
            number => number.parse::<u16>().map(i64::from).map_err(|_| FORM)?,
        };
        if ca_pem.is_some() && !tls {
            return Err("is not encrypted, so authorities to trust mean nothing: write rediss://");
        }
        if !tls && !is_loopback && !plaintext {
            return Err(
                "would send its password and everything else unencrypted to another machine: write rediss://, or set \
                 INSECURE_REDIS_PLAINTEXT=true if the network between is yours alone",
            );
        }
        let place = format!("{host}:{}/{db}", parsed.port().unwrap_or(6379));
        let url = Secret::new(url.expose().trim());
        let exposed = !tls && !is_loopback;
        Ok(Self { url, place, db, tls, exposed, ca_pem, own: None, deadline: DEADLINE })
    }

    /// Shows this certificate to Redis, over TLS.
    ///
    /// # Errors
    /// That the connection is not encrypted, or that the two cannot be used.
    pub fn showing(mut self, own: OwnCertificate) -> Result<Self, &'static str> {
        if !self.tls {
            return Err("is not encrypted, so no certificate can be shown: write rediss://");
        }
        self.own = Some(own);
        self.client()
            .map_err(|_| "cannot be used with this certificate and key: both are wanted in PEM form")?;
        Ok(self)
    }

    /// `host:port/db`, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Number of the database.
    pub fn db(&self) -> i64 {
        self.db
    }

    /// Whether the connection is encrypted.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Whether what is said can be read on the way to another machine.
    pub fn is_exposed(&self) -> bool {
        self.exposed
    }

    pub(crate) fn client(&self) -> redis::RedisResult<Client> {
        if self.tls {
            let root_cert = self.ca_pem.clone().map(String::into_bytes);
            let client_tls = self.own.as_ref().map(|own| ClientTlsConfig {
                client_cert: own.chain.clone().into_bytes(),
                client_key: own.key.expose().as_bytes().to_vec(),
            });
            Client::build_with_tls(self.url.expose(), TlsCertificates { client_tls, root_cert })
        } else {
            Client::open(self.url.expose())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<RedisConfig, &'static str> {
        RedisConfig::new(&Secret::new(url), None, false)
    }

    #[test]
    fn urls_are_read_and_their_passwords_never_shown() {
        for (url, place, tls) in [
            ("redis://127.0.0.1", "127.0.0.1:6379/0", false),
            ("redis://localhost:7000/1", "localhost:7000/1", false),
            ("redis://[::1]:7000/15", "[::1]:7000/15", false),
            ("rediss://redis.example:7001/2", "redis.example:7001/2", true),
            ("rediss://lab:hunter2@redis.example", "redis.example:6379/0", true),
            ("redis://:hunter2@127.0.0.1/3", "127.0.0.1:6379/3", false),
        ] {
            let config = read(url).expect(url);
            assert_eq!((config.place(), config.tls()), (place, tls), "{url}");
            assert!(!format!("{config:?}").contains("hunter2"));
            assert!(config.client().is_ok(), "{url}");
        }
    }

    #[test]
    fn what_is_unsafe_or_unreadable_is_refused() {
        for url in [
            "",
            "redis",
            "http://127.0.0.1",
            "redis://",
            "redis://127.0.0.1/one",
            "redis://127.0.0.1/-1",
            "redis://127.0.0.1/1?protocol=resp3",
            "rediss://redis.example/#insecure",
            "unix:///run/redis.sock",
        ] {
            assert!(read(url).is_err(), "{url}");
        }
        for away in [
            "redis://redis.example",
            "redis://10.0.0.1",
            "redis://[2001:db8::1]",
            "redis://localhost.example",
        ] {
            assert!(read(away).is_err(), "{away}");
            assert!(RedisConfig::new(&Secret::new(away), None, true).is_ok(), "{away}");
        }
        assert!(RedisConfig::new(&Secret::new("redis://127.0.0.1"), Some(String::new()), false).is_err());
    }
}

//! The database URL: what is ours to decide in it is TLS, the rest is the driver's.

use std::net::IpAddr;
use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode};

use super::error::{broken, error};
use crate::Error;

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Protection {
    /// Not at all.
    Plain,
    /// TLS; certificate and name are checked.
    Tls(Roots, Option<OwnCertificate>),
}

/// Files of the certificate that we show, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnCertificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

/// Whose certificates count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// The operating system's authorities.
    System,
    /// A file of our own.
    File(PathBuf),
}

/// Takes a URL apart.
///
/// # Errors
/// [`Error::Database`] with words that never hold the URL: it may carry a password.
pub(super) fn parse(url: &str) -> Result<(Config, Protection), Error> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(broken("the database URL must begin with postgres:// or postgresql://"));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots, mut rest) = (None, Roots::System, Vec::new());
    let (mut chain, mut key) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", "system")) => roots = Roots::System,
            Some(("sslrootcert", value)) => roots = Roots::File(path(value, "sslrootcert")?),
            Some(("sslcert", value)) => chain = Some(path(value, "sslcert")?),
            Some(("sslkey", value)) => key = Some(path(value, "sslkey")?),
            _ => rest.push(pair),
        }
    }
    let plain_url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    let mut config: Config = plain_url.parse().map_err(error)?;
    let own = match (chain, key) {
        (Some(chain), Some(key)) => Some(OwnCertificate { chain, key }),
        (None, None) => None,
        _ => return Err(broken("the database URL must give both sslcert and sslkey, or neither")),
    };
    let protection = protection(mode, is_local(&config), roots, own)?;
    config.ssl_mode(if protection == Protection::Plain { SslMode::Disable } else { SslMode::Require });
    // SCRAM bound to the TLS connection (RFC 5802, RFC 5929 section 4): the driver would else hash the password with MD5, or send it as
    // it is, for a server that asks for that.
    // Where a certificate takes the place of the password, there is none to be told.
    let by_certificate = matches!(protection, Protection::Tls(_, Some(_))) && config.get_password().is_none();
    let says_itself = rest.iter().any(|pair| pair.starts_with("channel_binding="));
    if protection != Protection::Plain && !says_itself && !by_certificate {
        config.channel_binding(ChannelBinding::Require);
    }
    Ok((config, protection))
}

fn protection(
    mode: Option<&str>,
    local: bool,
    roots: Roots,
    own: Option<OwnCertificate>,
) -> Result<Protection, Error> {
    let plain = mode == Some("disable") || local && matches!(mode, None | Some("prefer" | "allow"));
    match mode {
        _ if plain && own.is_some() => Err(broken(
            "the database URL gives a certificate to show, which is sent over TLS only: say sslmode=verify-full",
        )),
        _ if plain => {
            if !local {
                tracing::warn!(
                    "sslmode=disable: the database password and all data cross the network in plain text"
                );
            }
            Ok(Protection::Plain)
        }
        None | Some("verify-full") => Ok(Protection::Tls(roots, own)),
        Some(weaker @ ("require" | "verify-ca" | "prefer" | "allow")) => {
            tracing::warn!(
                "sslmode={weaker} does not check whom it talks to and is treated as verify-full; say sslmode=verify-full"
            );
            Ok(Protection::Tls(roots, own))
        }
        Some(_) => Err(broken("the database URL's sslmode is not one of disable, require, verify-full")),
    }
}

/// Whether every host is this machine.
fn is_local(config: &Config) -> bool {
    if !config.get_hostaddrs().is_empty() {
        return config.get_hostaddrs().iter().all(IpAddr::is_loopback);
    }
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => {
            name == "localhost"
                || name.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    })
}

fn path(text: &str, name: &str) -> Result<PathBuf, Error> {
    decoded(text)
        .map(PathBuf::from)
        .ok_or_else(|| broken(&format!("the database URL's {name} is not a path")))
}

/// Percent-decoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protection_of(url: &str) -> Protection {
        parse(url).expect("a good URL").1
    }

    #[test]
    fn a_server_elsewhere_must_prove_its_name() {
        for url in [
            "postgres://u:p@db.example/i",
            "postgres://u:p@db.example/i?sslmode=require",
            "postgres://u:p@db.example/i?sslmode=prefer",
            "postgresql://u:p@db.example/i?sslmode=verify-ca",
            "postgres://u:p@10.0.0.7:5432/i?sslmode=verify-full",
            "postgres://u:p@localhost,db.example/i",
            "postgres://u:p@localhost/i?hostaddr=10.0.0.7",
            "postgres://u:p@localhost/i?sslmode=require",
        ] {
            assert_eq!(protection_of(url), Protection::Tls(Roots::System, None), "{url}");
        }
    }

    #[test]
    fn plain_text_stays_on_this_machine_unless_it_is_asked_for() {
        for url in [
            "postgres://u:p@localhost/i",
            "postgres://u:p@127.0.0.1:5432/i?application_name=x",
            "postgres://u:p@[::1]/i",
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/i",
            "postgres://u:p@db.example/i?sslmode=disable",
        ] {
            assert_eq!(protection_of(url), Protection::Plain, "{url}");
        }
    }

    #[test]
    fn over_tls_the_server_proves_that_it_knows_the_password_unless_the_url_says_otherwise() {
        for (url, expected) in [
            ("postgres://u:p@db.example/i", ChannelBinding::Require),
            ("postgres://u:p@db.example/i?channel_binding=prefer", ChannelBinding::Prefer),
            ("postgres://u:p@localhost/i", ChannelBinding::Prefer),
            ("postgres://u:p@localhost/i?sslmode=verify-full", ChannelBinding::Require),
        ] {
            assert_eq!(parse(url).expect("good").0.get_channel_binding(), expected, "{url}");
        }
    }

    #[test]
    fn a_certificate_file_is_taken_out_and_the_rest_is_left() {
        let (config, protection) = parse(
            "postgres://u:p@db.example/i?sslrootcert=/etc/my%20ca.pem&application_name=x&sslmode=verify-full",
        )
        .expect("good");

        assert_eq!(protection, Protection::Tls(Roots::File(PathBuf::from("/etc/my ca.pem")), None));
        assert_eq!(config.get_application_name(), Some("x"));
    }

    #[test]
    fn a_certificate_is_shown_over_tls_only_and_with_its_key() {
        let own =
            Some(OwnCertificate { chain: PathBuf::from("/etc/own.pem"), key: PathBuf::from("/etc/own.key") });
        let shown = "sslcert=/etc/own.pem&sslkey=/etc/own.key";
        for url in ["postgres://u@db.example/i?", "postgres://u@localhost/i?sslmode=verify-full&"] {
            assert_eq!(
                protection_of(&format!("{url}{shown}")),
                Protection::Tls(Roots::System, own.clone()),
                "{url}"
            );
        }
        for url in [
            format!("postgres://u@localhost/i?{shown}"),
            format!("postgres://u@localhost/i?sslmode=prefer&{shown}"),
            format!("postgres://u@db.example/i?sslmode=disable&{shown}"),
            "postgres://u@db.example/i?sslcert=/etc/own.pem".to_owned(),
            "postgres://u@db.example/i?sslkey=/etc/own.key".to_owned(),
            "postgres://u@db.example/i?sslkey=%zz&sslcert=/etc/own.pem".to_owned(),
        ] {
            assert!(parse(&url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_without_repeating_it() {
        for url in [
            "mysql://u:hunter2@db/i",
            "postgres://u:hunter2@db/i?sslmode=maybe",
            "postgres://u:hunter2@db/i?nonsense=1",
        ] {
            let error = parse(url).expect_err(url);
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

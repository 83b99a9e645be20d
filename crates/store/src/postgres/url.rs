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
    Tls(Roots),
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
    let (mut mode, mut roots, mut binds, mut rest) = (None, Roots::System, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", "system")) => roots = Roots::System,
            Some(("sslrootcert", value)) => roots = Roots::File(PathBuf::from(decoded(value)?)),
            Some(("channel_binding", value)) => {
                binds = Some(value);
                rest.push(pair);
            }
            _ => rest.push(pair),
        }
    }
    let plain_url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    let mut config: Config = plain_url.parse().map_err(error)?;
    let protection = protection(mode, is_local(&config), roots)?;
    config.ssl_mode(if protection == Protection::Plain { SslMode::Disable } else { SslMode::Require });
    // SCRAM bound to the TLS connection (RFC 5802, RFC 5929 section 4): the driver would else hash the password with MD5, or send it as
    // it is, for a server that asks for that.
    if protection != Protection::Plain && binds.is_none() {
        config.channel_binding(ChannelBinding::Require);
    }
    Ok((config, protection))
}

fn protection(mode: Option<&str>, local: bool, roots: Roots) -> Result<Protection, Error> {
    match mode {
        Some("disable") if !local => {
            tracing::warn!(
                "sslmode=disable: the database password and all data cross the network in plain text"
            );
            Ok(Protection::Plain)
        }
        Some("disable") => Ok(Protection::Plain),
        None | Some("prefer" | "allow") if local => Ok(Protection::Plain),
        None | Some("verify-full") => Ok(Protection::Tls(roots)),
        Some(weaker @ ("require" | "verify-ca" | "prefer" | "allow")) => {
            tracing::warn!(
                "sslmode={weaker} does not check whom it talks to and is treated as verify-full; say sslmode=verify-full"
            );
            Ok(Protection::Tls(roots))
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

/// Percent-decoding of a path.
fn decoded(text: &str) -> Result<String, Error> {
    let bad = || broken("the database URL's sslrootcert is not a path");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
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
            assert_eq!(protection_of(url), Protection::Tls(Roots::System), "{url}");
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

        assert_eq!(protection, Protection::Tls(Roots::File(PathBuf::from("/etc/my ca.pem"))));
        assert_eq!(config.get_application_name(), Some("x"));
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

//! How a client gets tokens, and how it must prove who it is: the names of OAuth (RFC 6749, RFC 7523, RFC 7591, RFC 8693).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As the protocol writes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl FromStr for $name {
            type Err = Unknown;

            fn from_str(text: &str) -> Result<Self, Unknown> {
                let found = Self::ALL.iter().find(|known| known.name() == text);
                found.copied().ok_or_else(|| Unknown {
                    what: $what,
                    known: Self::ALL.iter().map(|known| known.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The text is none of the names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {what}; there are: {known}")]
pub struct Unknown {
    what: &'static str,
    known: String,
}

names! {
    /// A way to a token that an agent can use.
    GrantType, "a grant type for agents" {
        /// With its own credentials.
        ClientCredentials = "client_credentials",
        /// With the refresh token of the pair before.
        RefreshToken = "refresh_token",
        /// With a token of its surroundings as an assertion.
        JwtBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer",
        /// With the same, in a token exchange.
        TokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange",
    }
}

names! {
    /// A proof of identity with a key that the server does not know.
    KeyMethod, "a way of authentication with a key" {
        /// A signed assertion.
        PrivateKeyJwt = "private_key_jwt",
        /// A client certificate.
        TlsClientAuth = "tls_client_auth",
    }
}

/// The grant types, each once, in one order; the place of the first text that is none.
///
/// # Errors
/// [`Unknown`], with its place.
pub fn parse_grants<T: AsRef<str>>(texts: &[T]) -> Result<Vec<GrantType>, (usize, Unknown)> {
    let mut grants = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let grant = text.as_ref().parse().map_err(|error| (at, error))?;
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    grants.sort_unstable();
    Ok(grants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_no_other_way() {
        for grant in GrantType::ALL {
            assert_eq!(grant.name().parse(), Ok(*grant));
            assert_eq!(grant.name().to_uppercase().parse::<GrantType>().ok(), None);
        }
        for bad in ["", "password", "implicit", "authorization_code", " refresh_token", "refresh_token\0"] {
            assert!(bad.parse::<GrantType>().is_err(), "{bad}");
        }
        assert!("client_secret_basic".parse::<KeyMethod>().is_err());
    }

    #[test]
    fn grants_are_counted_once_and_in_one_order() {
        let found = parse_grants(&["refresh_token", "client_credentials", "refresh_token"]);

        assert_eq!(found, Ok(vec![GrantType::ClientCredentials, GrantType::RefreshToken]));
        assert_eq!(parse_grants(&["refresh_token", "password"]).map_err(|(at, _)| at), Err(1));
        assert_eq!(parse_grants::<&str>(&[]), Ok(vec![]));
    }
}

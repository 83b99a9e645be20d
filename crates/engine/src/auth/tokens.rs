//! Access tokens: JSON Web Tokens with one fixed algorithm per key (RFC 7519, RFC 8725).
//!
//! The header of a token never chooses the algorithm and may name nothing but `alg`, `typ` and `kid`. Times are judged by our
//! clock. What a token says is only half of an answer: [`super::Sessions`] asks whether its owner still has those rights.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::id::from_hexadecimal;
use interlock_model::policy::PrincipalKind;
use interlock_model::secret::Secret;
use interlock_model::text::{Form as _, TokenText};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::Principals;
use super::documents::Session;
use super::signing_keys::{Keys, KeysError};

/// Longest token that is looked at, in bytes.
const MAX_BYTES: usize = TokenText::RULE.longest;
/// Clocks may differ by this much, in seconds.
const LEEWAY: i64 = 30;
/// What tokens named as their issuer before it was an address. Those that are still in force are taken: the audience is what
/// binds a token to its installation.
const EARLIER_ISSUER: &str = "interlock";
/// Longest session in seconds, however often it is refreshed: 90 days.
const MAX_SESSION: i64 = 90 * 86_400;

/// Which of the two a token is. They are never exchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Sent with requests.
    Access,
    /// Exchanged for a new pair.
    Refresh,
}

impl TokenKind {
    /// As in claims, log and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }
}

/// What a token is good together with (RFC 8705 section 3.1).
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Confirmation {
    /// SHA-256 of a client certificate, in base64url.
    #[serde(rename = "x5t#S256")]
    pub thumbprint: String,
}

/// What a token says (RFC 9068 names where it has one).
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Claims {
    /// User name or agent id.
    pub sub: String,
    /// Access or refresh.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// What kind of principal `sub` is.
    pub principal: PrincipalKind,
    /// Roles at issue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Scopes at issue.
    pub scopes: Vec<String>,
    /// The scopes are a limit on what the roles give.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// Name for people; in access tokens.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The client, for agents the same as `sub` (RFC 9068).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_id: String,
    /// The session, which is the refresh token's family.
    pub fam: String,
    /// When the principal last proved who it is, seconds.
    pub auth_time: i64,
    /// How (RFC 8176).
    pub amr: Vec<String>,
    /// Issued at, seconds.
    pub iat: i64,
    /// Not before, seconds.
    pub nbf: i64,
    /// Ends at, seconds.
    pub exp: i64,
    /// Id of the token.
    pub jti: String,
    /// Who issued it.
    pub iss: String,
    /// For which installation.
    pub aud: String,
    /// The principal's `tokens_valid_from` at issue, microseconds: when that moves, the token is dead.
    pub epo: i64,
    /// The client certificate that it is good with; in access tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// Why a token is not accepted. To the outside every reason looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid authentication credentials")]
pub enum TokenError {
    /// None was sent.
    Missing,
    /// Not a token of ours, or its signature is wrong.
    Invalid,
    /// Its time is over, or has not come.
    Expired,
    /// It was revoked.
    Revoked,
    /// Its owner is unknown, disabled, or has changed credentials.
    Principal,
    /// It is bound to a certificate, and the client shows none or another.
    Certificate,
    /// Its agent may not use this way to a token any more, or must prove itself in another way.
    Grant,
}

impl TokenError {
    /// For log and audit only.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing_token",
            Self::Invalid => "invalid_token",
            Self::Expired => "expired_token",
            Self::Revoked => "revoked_token",
            Self::Principal => "unknown_or_disabled_principal",
            Self::Certificate => "other_certificate",
            Self::Grant => "grant_not_allowed",
        }
    }
}

/// Issues and reads tokens.
#[derive(Debug)]
pub struct Tokens {
    keys: Keys,
    issuer: String,
    audience: String,
    lifetimes: Lifetimes,
    principals: Option<Arc<Principals>>,
}

/// How long tokens live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Access tokens of people, in seconds.
    pub user_seconds: i64,
    /// Access tokens of agents, in seconds.
    pub agent_seconds: i64,
    /// Refresh tokens, in seconds.
    pub refresh_seconds: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    #[serde(default)]
    kid: Option<String>,
}

/// What the issued token shall say beside what the issuer adds.
#[derive(Debug, Clone)]
pub(super) struct Issue<'a> {
    pub(super) session: &'a Session,
    pub(super) kind: TokenKind,
    pub(super) jti: &'a str,
}

impl Tokens {
    /// Tokens of one installation. `audience` is unique to it, so that no other installation's token is taken.
    pub fn new(keys: Keys, audience: String, lifetimes: Lifetimes) -> Self {
        Self { keys, issuer: EARLIER_ISSUER.to_owned(), audience, lifetimes, principals: None }
    }

    /// Names who issues: the address under which clients know this server (RFC 8414 section 2).
    #[must_use]
    pub fn issued_by(mut self, issuer: String) -> Self {
        self.issuer = issuer;
        self
    }

    /// Whether this installation issues, or has issued, under that name.
    fn is_issuer(&self, name: &str) -> bool {
        name == self.issuer
            || name == EARLIER_ISSUER
            || self.principals.as_ref().is_some_and(|principals| principals.knows_issuer(name))
    }

    /// Takes the published keys of the installation's other servers too.
    #[must_use]
    pub fn shared(mut self, principals: Arc<Principals>) -> Self {
        self.principals = Some(principals);
        self
    }

    /// How long tokens live.
    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// Seconds that an access token of such a principal lives.
    pub fn access_seconds(&self, kind: PrincipalKind) -> i64 {
        match kind {
            PrincipalKind::User => self.lifetimes.user_seconds,
            PrincipalKind::Agent => self.lifetimes.agent_seconds,
        }
    }

    /// `EdDSA` or `HS256`.
    pub fn algorithm(&self) -> &'static str {
        self.keys.algorithm()
    }

    /// A session is over after this, however often it is refreshed.
    pub(super) fn longest_session(&self) -> std::time::Duration {
        let longest = MAX_SESSION.max(self.lifetimes.refresh_seconds);
        std::time::Duration::from_secs(longest.unsigned_abs())
    }

    /// The signing keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Who issues, and for which installation.
    pub fn names(&self) -> (&str, &str) {
        (&self.issuer, &self.audience)
    }

    /// Signs. The same session gives the same token: nothing here is random.
    pub(super) fn sign(&self, issue: &Issue<'_>) -> Result<(Secret, Claims), KeysError> {
        let Issue { session, kind, jti } = *issue;
        let iat = session.issued_at.seconds();
        let lifetime = match kind {
            TokenKind::Access => self.access_seconds(session.kind),
            TokenKind::Refresh => self.lifetimes.refresh_seconds,
        };
        let claims = Claims {
            sub: session.principal.clone(),
            kind,
            principal: session.kind,
            roles: session.roles.clone(),
            scopes: session.scopes.iter().map(ToString::to_string).collect(),
            limited: session.limited,
            name: if kind == TokenKind::Access { session.name.clone() } else { String::new() },
            client_id: session.principal.clone(),
            fam: session.id.clone(),
            auth_time: session.auth_time.seconds(),
            amr: session.amr.clone(),
            iat,
            nbf: iat,
            exp: (iat + lifetime)
                .min(session.expires_at.seconds())
                .min(session.created_at.plus(self.longest_session()).seconds()),
            jti: jti.to_owned(),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            epo: session.epoch.micros(),
            // A refresh token is bound by its session: a renewed certificate goes on with it.
            cnf: session
                .certificate
                .as_ref()
                .filter(|_| kind == TokenKind::Access)
                .map(|bound| Confirmation { thumbprint: bound.thumbprint.clone() }),
        };
        let current = self.keys.current.load();
        let mut header = Header::new(current.algorithm);
        header.kid = Some(current.kid.clone());
        header.typ = Some(if kind == TokenKind::Access { "at+jwt" } else { "rt+jwt" }.to_owned());
        let token =
            jsonwebtoken::encode(&header, &claims, &current.private).map_err(|_| KeysError::Damaged)?;
        Ok((Secret::new(token), claims))
    }

    /// Reads a token of this kind: form, header, signature, issuer, audience, type. Time is checked by [`Tokens::check_time`],
    /// because it passes.
    ///
    /// # Errors
    /// [`TokenError::Invalid`].
    pub fn read(&self, token: &str, kind: TokenKind) -> Result<Claims, TokenError> {
        let header = strict_header(token).ok_or(TokenError::Invalid)?;
        let fits = match header.typ.as_deref() {
            None | Some("JWT") => true,
            Some(typ) => typ == if kind == TokenKind::Access { "at+jwt" } else { "rt+jwt" },
        };
        if header.alg != self.keys.algorithm() || !fits {
            return Err(TokenError::Invalid);
        }
        let current = self.keys.current.load();
        let published;
        let mut retired = None;
        let key = match &header.kid {
            None => &current.verifying,
            Some(named) if *named == current.kid => &current.verifying,
            Some(named) => match &self.keys.previous {
                Some((known, key)) if known == named => key,
                _ => {
                    (published, retired) =
                        self.published(named, current.algorithm).ok_or(TokenError::Invalid)?;
                    &published
                }
            },
        };
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation(current.algorithm))
            .map_err(|_| TokenError::Invalid)?
            .claims;
        // A retired key signed nothing that outlives it: whoever has its private half since then has nothing.
        if retired.is_some_and(|end| claims.exp > end.seconds()) {
            return Err(TokenError::Invalid);
        }
        let ours = claims.kind == kind && self.is_issuer(&claims.iss) && claims.aud == self.audience;
        // No person is without a role, so a person's token always says which.
        let ours = ours && (claims.principal == PrincipalKind::Agent || !claims.roles.is_empty());
        if !ours || claims.jti.is_empty() || claims.jti.len() > 64 || claims.sub.is_empty() {
            return Err(TokenError::Invalid);
        }
        Ok(claims)
    }

    /// A key that another server of this installation signs with, or that this one signed with before. Only for EdDSA: a
    /// stored public key must never serve as a shared secret.
    fn published(&self, kid: &str, algorithm: Algorithm) -> Option<(DecodingKey, Option<Timestamp>)> {
        let key = self.principals.as_ref()?.public_key(kid).filter(|_| algorithm == Algorithm::EdDSA)?;
        let bytes = from_hexadecimal::<32>(&key.public)?;
        Some((DecodingKey::from_ed_der(&bytes), key.retired_at))
    }

    /// Whether the token is in force now.
    ///
    /// # Errors
    /// [`TokenError::Expired`].
    pub fn check_time(claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
        let now = now.seconds();
        let in_force = claims.exp.saturating_add(LEEWAY) > now
            && claims.nbf.saturating_sub(LEEWAY) <= now
            && claims.iat.saturating_sub(LEEWAY) <= now;
        if in_force { Ok(()) } else { Err(TokenError::Expired) }
    }
}

/// Signature and form only: what the claims mean is judged by our own rules.
fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

fn strict_header(token: &str) -> Option<StrictHeader> {
    use base64::Engine as _;
    if token.len() > MAX_BYTES || token.bytes().filter(|&b| b == b'.').count() != 2 {
        return None;
    }
    let header = token.split('.').next()?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes =
        Lifetimes { user_seconds: 3600, agent_seconds: 600, refresh_seconds: 86_400 };

    fn tokens() -> Tokens {
        Tokens::new(Keys::ed25519(&Keys::generate().expect("key")).expect("key"), "lab".into(), LIFETIMES)
    }

    fn session() -> Session {
        let now = Timestamp::from_seconds(1_000_000);
        Session {
            id: "family".into(),
            kind: PrincipalKind::User,
            principal: "ana".into(),
            name: "ana".into(),
            method: "password".into(),
            amr: vec!["pwd".into()],
            auth_time: now,
            roles: vec!["operator".into()],
            scopes: vec![],
            limited: false,
            epoch: Timestamp::from_seconds(5),
            client_ip: "127.0.0.1".into(),
            user_agent: String::new(),
            created_at: now,
            issued_at: now,
            refresh_jti: Some("refresh".into()),
            previous_jti: None,
            access_jti: "access".into(),
            expires_at: now.plus(std::time::Duration::from_hours(24)),
            ended_at: None,
            certificate: None,
            ended_reason: None,
        }
    }

    fn issue(tokens: &Tokens) -> (String, Claims) {
        let (token, claims) = tokens
            .sign(&Issue { session: &session(), kind: TokenKind::Access, jti: "access" })
            .expect("signed");
        (token.expose().to_owned(), claims)
    }

    #[test]
    fn access_and_refresh_tokens_are_not_exchangeable() {
        let ours = tokens();
        let (refresh, _) = ours
            .sign(&Issue { session: &session(), kind: TokenKind::Refresh, jti: "refresh" })
            .expect("signed");

        assert!(ours.read(refresh.expose(), TokenKind::Refresh).is_ok());
        assert_eq!(ours.read(refresh.expose(), TokenKind::Access), Err(TokenError::Invalid));
        assert_eq!(ours.read(&issue(&ours).0, TokenKind::Refresh), Err(TokenError::Invalid));
    }

    #[test]
    fn the_same_session_gives_the_same_token() {
        let ours = tokens();

        assert_eq!(issue(&ours).0, issue(&ours).0);
    }

    #[test]
    fn a_token_is_read_by_its_own_installation_only() {
        let ours = tokens();
        let (token, claims) = issue(&ours);

        assert_eq!(ours.read(&token, TokenKind::Access), Ok(claims));
        assert_eq!(tokens().read(&token, TokenKind::Access), Err(TokenError::Invalid));
        let hs = Tokens::new(
            Keys::hs256(&Secret::new("0123456789abcdefghijklmnopqrstuvwxyz"), None).expect("key"),
            "lab".into(),
            LIFETIMES,
        );
        assert_eq!(hs.read(&token, TokenKind::Access), Err(TokenError::Invalid));
    }

    #[test]
    fn tokens_from_before_the_issuer_was_an_address_are_taken_and_foreign_ones_are_not() {
        let pkcs8 = Keys::generate().expect("key");
        let with = || Tokens::new(Keys::ed25519(&pkcs8).expect("key"), "lab".into(), LIFETIMES);
        let now = with().issued_by("https://robot.example".into());

        assert!(now.read(&issue(&with()).0, TokenKind::Access).is_ok());
        assert_eq!(issue(&now).1.iss, "https://robot.example");
        let foreign = with().issued_by("https://other.example".into());
        assert_eq!(now.read(&issue(&foreign).0, TokenKind::Access), Err(TokenError::Invalid));
    }

    #[test]
    fn any_changed_byte_kills_a_token() {
        let ours = tokens();
        let (token, _) = issue(&ours);

        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            // The last character of a base64 part may carry unused bits; the decoder refuses or keeps them, never lies.
            assert_eq!(ours.read(&changed, TokenKind::Access), Err(TokenError::Invalid), "byte {at}");
        }
    }

    #[test]
    fn a_header_chooses_nothing() {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let ours = tokens();
        let (token, _) = issue(&ours);
        let rest = token.split_once('.').expect("three parts").1;
        let kid = &ours.keys.current.load().kid.clone();

        for header in [
            r#"{"alg":"none"}"#.to_owned(),
            format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"EdDSA","kid":"{kid}","crit":["x"],"x":1}}"#),
            format!(r#"{{"alg":"EdDSA","kid":"{kid}","jwk":{{}}}}"#),
            r#"{"alg":"EdDSA","kid":"other"}"#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(
                ours.read(&format!("{}.{rest}", encode(&header)), TokenKind::Access),
                Err(TokenError::Invalid),
                "{header}"
            );
        }
        for junk in ["", ".", "..", "a.b.c", "....", &"a".repeat(5000), "é.é.é"] {
            assert_eq!(ours.read(junk, TokenKind::Access), Err(TokenError::Invalid), "{junk}");
        }
    }

    #[test]
    fn time_is_judged_with_thirty_seconds_of_grace() {
        let (_, claims) = issue(&tokens());
        let at = |seconds: i64| Tokens::check_time(&claims, Timestamp::from_seconds(1_000_000 + seconds));

        assert_eq!(at(0), Ok(()));
        assert_eq!(at(3629), Ok(()));
        assert_eq!(at(3630), Err(TokenError::Expired));
        assert_eq!(at(-30), Ok(()));
        assert_eq!(at(-31), Err(TokenError::Expired));
    }

    #[test]
    fn the_previous_key_verifies_and_never_signs() {
        let old = Secret::new("0123456789abcdefghijklmnopqrstuvwxyz");
        let new = Secret::new("zyxwvutsrqponmlkjihgfedcba9876543210");
        let before = Tokens::new(Keys::hs256(&old, None).expect("key"), "lab".into(), LIFETIMES);
        let after = Tokens::new(Keys::hs256(&new, Some(&old)).expect("key"), "lab".into(), LIFETIMES);

        assert!(after.read(&issue(&before).0, TokenKind::Access).is_ok());
        assert!(before.read(&issue(&after).0, TokenKind::Access).is_err());
    }
}

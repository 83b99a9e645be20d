//! Workload identity: a token that a cloud or a build service gave to a program, exchanged for a principal of ours.
//!
//! Only says which principal a token stands for. Whether that principal exists, is enabled and may do something is for the
//! engine; so is remembering the id of a token that counts once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use serde_json::Value;
use url::Url;

use crate::oidc::http::Http;
use crate::oidc::{self, Algorithm, Cached, Keys, Parsed, TokenFault, Wanted};
use crate::step::Trace;
use crate::{DirectoryError, Refusal, Step};

/// Who may come from one issuer.
#[derive(Debug, Clone)]
pub struct WorkloadTrust {
    /// The issuer, character for character. `https://`; `http://` for a loopback address only.
    pub issuer: String,
    /// Where its keys are. Without it, discovery says so.
    pub jwks_uri: Option<String>,
    /// What the token must be made for: something only this installation is called.
    pub audience: String,
    /// The first rule that fits decides.
    pub rules: Vec<SubjectRule>,
    /// Algorithms that the issuer may sign with.
    pub algorithms: Vec<Algorithm>,
    /// Longest time from issue to end of a token, at most 24 h.
    pub longest: Duration,
    /// Each token counts once, and must have an id.
    pub once: bool,
    /// Authorities to trust for the issuer's keys, as PEM. Without it, those of this machine.
    pub ca_pem: Option<String>,
}

/// Which workloads are which principal.
#[derive(Debug, Clone)]
pub struct SubjectRule {
    /// The subject. `*` stands for one character or more, none of them `:` or `/`: `repo:acme/lab:ref:refs/heads/*`.
    pub subject: String,
    /// Claims that must be there with these texts besides, such as `repository_owner_id`.
    pub claims: BTreeMap<String, String>,
    /// The principal that it stands for.
    pub principal: String,
}

/// A workload that is who it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadIdentity {
    /// The principal of the rule.
    pub principal: String,
    /// `oidc:<issuer>#<sub>`, for the audit trail.
    pub subject: String,
    /// Where each token counts once: its id.
    pub once: Option<String>,
    /// End of the token: nothing that is made from it should last longer.
    pub expires: Timestamp,
}

/// All issuers that are trusted. Tokens of others cause no request.
#[derive(Debug)]
pub struct Workloads {
    issuers: Vec<Issuer>,
}

#[derive(Debug)]
struct Issuer {
    trust: WorkloadTrust,
    http: Http,
    place: Cached<Url>,
    keys: Cached<Keys>,
}

/// Longest time for the requests of one validation.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Clocks may differ by this much.
const SKEW: Duration = Duration::from_secs(30);
/// Longest lifetime of a token.
const MAX_LONGEST: Duration = Duration::from_hours(24);

impl Workloads {
    /// Takes the issuers. Connects to nothing.
    ///
    /// # Errors
    /// [`DirectoryError::Misconfigured`] with what is wrong.
    pub fn new(trusts: Vec<WorkloadTrust>) -> Result<Self, DirectoryError> {
        let mut issuers: Vec<Issuer> = Vec::new();
        for trust in trusts {
            trust.validate().map_err(|reason| {
                DirectoryError::Misconfigured(format!("workloads of '{}': {reason}", trust.issuer))
            })?;
            if issuers.iter().any(|known| known.trust.issuer == trust.issuer) {
                return Err(DirectoryError::Misconfigured(format!(
                    "workloads of '{}' are named twice",
                    trust.issuer
                )));
            }
            let loopback = oidc::server_url(&trust.issuer).is_ok_and(|url| oidc::is_loopback(&url));
            let http = Http::new(trust.ca_pem.as_deref(), loopback, TIMEOUT)?;
            issuers.push(Issuer { trust, http, place: Cached::new(), keys: Cached::new() });
        }
        Ok(Self { issuers })
    }

    /// Which principal a token stands for. Anyone may send one: the keys of an issuer are fetched anew at most once a minute.
    ///
    /// # Errors
    /// [`DirectoryError::Refused`] for every token that no rule names or that is not right; [`DirectoryError::Unavailable`]
    /// while the issuer's keys cannot be had.
    pub async fn validate(&self, now: Timestamp, token: &str) -> Result<WorkloadIdentity, DirectoryError> {
        let parsed = Parsed::read(token)?;
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| parsed.unverified_issuer() == Some(&issuer.trust.issuer))
            .ok_or(TokenFault::Issuer)?;
        tokio::time::timeout(TIMEOUT, issuer.validate(now, parsed))
            .await
            .unwrap_or_else(|_| Err(DirectoryError::unavailable("the issuer's keys did not come in time")))
    }

    /// Tries a token, for people.
    pub async fn test(&self, now: Timestamp, token: &str) -> Vec<Step> {
        let mut trace = Trace::default();
        trace.begin("token");
        match self.validate(now, token).await {
            Ok(identity) => {
                let end = identity.expires.seconds() - now.seconds();
                trace.pass(format!("{}, for {end} s more", identity.subject));
                trace.begin("agent");
                trace.pass(identity.principal);
            }
            Err(error) => trace.fail(&error),
        }
        trace.into_steps()
    }
}

impl Issuer {
    async fn keys(&self, enough: impl Fn(&Keys) -> bool) -> Result<Arc<Keys>, DirectoryError> {
        self.keys
            .get(enough, async || {
                let place = self
                    .place
                    .get(
                        |_| true,
                        async || {
                            if let Some(text) = &self.trust.jwks_uri {
                                oidc::server_url(text).map_err(DirectoryError::misconfigured)
                            } else {
                                let place = oidc::address(&self.trust.issuer)?;
                                let answer = self.http.document(&place, "discovery").await?;
                                oidc::keys_of(
                                    answer.body.as_ref().unwrap_or(&Value::Null),
                                    &self.trust.issuer,
                                )
                            }
                        },
                    )
                    .await?;
                oidc::fetch(&self.http, &place).await
            })
            .await
    }

    async fn validate(&self, now: Timestamp, token: Parsed<'_>) -> Result<WorkloadIdentity, DirectoryError> {
        let trust = &self.trust;
        // ID tokens, SPIFFE documents and access tokens (RFC 9068); an order to sign out is none of them.
        if token.kind.as_deref().is_some_and(|kind| !matches!(kind, "jwt" | "jose" | "at+jwt")) {
            return Err(TokenFault::Kind.into());
        }
        let wanted = Wanted::by(&token, &trust.algorithms)?;
        let keys = self.keys(|keys| wanted.is_in(keys)).await?;
        let claims = token.verify(&keys, &trust.algorithms)?;
        oidc::issuer(&claims, &trust.issuer)?;
        oidc::audience(&claims, &trust.audience, false)?;
        let expires = oidc::times(&claims, now, SKEW, None, Some(trust.longest))?;
        if claims.contains_key("events") {
            return Err(TokenFault::Kind.into());
        }
        let jti = oidc::text(&claims, "jti").filter(|jti| (1..=255).contains(&jti.len()));
        if trust.once && jti.is_none() {
            return Err(TokenFault::Claim.into());
        }
        let subject = oidc::subject(&claims)?;
        let rule = trust.rules.iter().find(|rule| {
            fits(&rule.subject, &subject)
                && rule.claims.iter().all(|(name, value)| {
                    oidc::at_path(&claims, name).and_then(Value::as_str) == Some(value.as_str())
                })
        });
        let rule = rule.ok_or(Refusal::NoRule)?;
        Ok(WorkloadIdentity {
            principal: rule.principal.clone(),
            subject: oidc::subject_of(&trust.issuer, &subject),
            once: jti.filter(|_| trust.once).map(str::to_owned),
            expires,
        })
    }
}

impl WorkloadTrust {
    fn validate(&self) -> Result<(), String> {
        oidc::server_url(&self.issuer).map_err(|reason| format!("the issuer {reason}"))?;
        if let Some(text) = &self.jwks_uri {
            let keys =
                oidc::server_url(text).map_err(|reason| format!("the address of the keys {reason}"))?;
            let issuer_is_local = oidc::server_url(&self.issuer).is_ok_and(|url| oidc::is_loopback(&url));
            if keys.scheme() == "http" && !issuer_is_local {
                return Err("the address of the keys is plain HTTP".to_owned());
            }
        }
        if self.audience.is_empty() {
            return Err("no audience: tokens made for others would count".to_owned());
        }
        if self.algorithms.is_empty() || self.rules.is_empty() {
            return Err("no algorithm or no rule".to_owned());
        }
        if self.longest.is_zero() || self.longest > MAX_LONGEST {
            return Err("a token may last 1 s to 24 h".to_owned());
        }
        for rule in &self.rules {
            if rule.principal.is_empty()
                || rule.subject.is_empty()
                || rule.subject.trim_matches(['*', ':', '/']).is_empty()
            {
                return Err(format!("the rule '{}' fits anyone or stands for nobody", rule.subject));
            }
        }
        if let Some(pem) = &self.ca_pem {
            crate::tls::roots(Some(pem))?;
        }
        Ok(())
    }
}

/// Whether a subject fits a pattern: part by part, with the same `:` and `/` between.
fn fits(pattern: &str, subject: &str) -> bool {
    let parts = |text: &str| -> Vec<Vec<char>> {
        text.split_inclusive([':', '/']).map(|part| part.chars().collect()).collect()
    };
    let (patterns, subjects) = (parts(pattern), parts(subject));
    patterns.len() == subjects.len()
        && patterns.iter().zip(&subjects).all(|(pattern, part)| part_fits(pattern, part))
}

/// Goes back to the last star only, so it takes time of the product of both lengths at most.
fn part_fits(pattern: &[char], part: &[char]) -> bool {
    let (mut p, mut s) = (0, 0);
    // After the last star: where the pattern goes on, and how far the star reaches.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if s == part.len() {
            return p == pattern.len();
        }
        match pattern.get(p) {
            Some('*') if !matches!(part[s], ':' | '/') => {
                star = Some((p + 1, s + 1));
                (p, s) = (p + 1, s + 1);
            }
            Some(c) if *c == part[s] && *c != '*' => (p, s) = (p + 1, s + 1),
            _ => match star {
                Some((after, reach)) if !matches!(part[reach], ':' | '/') => {
                    star = Some((after, reach + 1));
                    (p, s) = (after, reach + 1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_inside_its_part() {
        for (pattern, subject, expected) in [
            ("repo:acme/lab:ref:refs/heads/main", "repo:acme/lab:ref:refs/heads/main", true),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/lab:ref:refs/heads/main", true),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/lab:pull_request:ref:refs/heads/main", false),
            ("repo:acme/*", "repo:acme/", false),
            ("repo:acme/*", "repo:acme/a/b", false),
            ("repo:acme/*", "repo:acme-evil/lab", false),
            ("a:*:*", "a:b:c", true),
            ("a:*:*", "a:b:", false),
            ("a:*b*c", "a:xbyc", true),
            ("a*c", "abcxc", true),
            ("a*b*", "axbxb", true),
            ("*", "a", true),
            ("*", "", false),
            ("a*:c", "a:c", false),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn a_trust_that_is_too_wide_is_refused() {
        let trust = |change: fn(&mut WorkloadTrust)| {
            let mut trust = WorkloadTrust {
                issuer: "https://token.example".to_owned(),
                jwks_uri: None,
                audience: "interlock".to_owned(),
                rules: vec![SubjectRule {
                    subject: "repo:a/b".to_owned(),
                    claims: BTreeMap::new(),
                    principal: "ci".to_owned(),
                }],
                algorithms: vec![Algorithm::Rs256],
                longest: Duration::from_hours(1),
                once: false,
                ca_pem: None,
            };
            change(&mut trust);
            Workloads::new(vec![trust]).map(|_| ()).map_err(|error| error.reason())
        };
        assert_eq!(trust(|_| {}), Ok(()));
        assert!(trust(|t| t.audience.clear()).is_err());
        assert!(trust(|t| t.rules[0].subject = "*:*/*".to_owned()).is_err());
        assert!(trust(|t| t.rules[0].principal.clear()).is_err());
        assert!(trust(|t| t.longest = Duration::from_secs(86_401)).is_err());
        assert!(trust(|t| t.jwks_uri = Some("http://127.0.0.1/keys".to_owned())).is_err());
        assert!(trust(|t| t.issuer = "http://token.example".to_owned()).is_err());
    }
}

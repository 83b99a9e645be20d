//! What the claims of an ID token, a logout token and a workload's token must say (OpenID Connect Core 1.0, section 3.1.3.7).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256, Sha512};

use super::token::{Algorithm, TokenFault};

/// Claims of a token whose signature is right.
pub(crate) type Claims = Map<String, Value>;

/// Seconds since 1970; fractions are cut. A text is no time.
pub(crate) fn time(claims: &Claims, name: &str) -> Result<Option<Timestamp>, TokenFault> {
    let seconds = match claims.get(name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_i64().or_else(|| {
            // `as` saturates and the range is checked before.
            #[expect(clippy::cast_possible_truncation, reason = "bounded by the filter")]
            number.as_f64().filter(|seconds| (0.0..1e11).contains(seconds)).map(|seconds| seconds as i64)
        }),
        Some(_) => None,
    };
    seconds.map(|seconds| Some(Timestamp::from_seconds(seconds))).ok_or(TokenFault::Malformed)
}

pub(crate) fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// `iss`, exactly.
pub(crate) fn issuer(claims: &Claims, issuer: &str) -> Result<(), TokenFault> {
    if text(claims, "iss") == Some(issuer) { Ok(()) } else { Err(TokenFault::Issuer) }
}

/// `aud` holds ours. With others beside it, or whenever it is there, `azp` must be ours too.
pub(crate) fn audience(claims: &Claims, client: &str, parties: bool) -> Result<(), TokenFault> {
    let audiences: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => {
            many.iter().map(Value::as_str).collect::<Option<_>>().ok_or(TokenFault::Audience)?
        }
        _ => return Err(TokenFault::Audience),
    };
    if !audiences.contains(&client) {
        return Err(TokenFault::Audience);
    }
    match claims.get("azp") {
        _ if !parties => Ok(()),
        None if audiences.len() == 1 => Ok(()),
        Some(party) if party.as_str() == Some(client) => Ok(()),
        _ => Err(TokenFault::AuthorizedParty),
    }
}

/// `exp` and `iat` are there and fit the clock; `nbf` too where it is. Gives `exp`.
pub(crate) fn times(
    claims: &Claims,
    now: Timestamp,
    skew: Duration,
    not_before: Option<Timestamp>,
    longest: Option<Duration>,
) -> Result<Timestamp, TokenFault> {
    let expires = time(claims, "exp")?.ok_or(TokenFault::Expired)?;
    let issued = time(claims, "iat")?.ok_or(TokenFault::Age)?;
    if now >= expires.plus(skew) {
        return Err(TokenFault::Expired);
    }
    let latest = now.plus(skew);
    if issued > latest || time(claims, "nbf")?.is_some_and(|from| from > latest) {
        return Err(TokenFault::NotYet);
    }
    if not_before.is_some_and(|earliest| issued.plus(skew) < earliest)
        || longest.is_some_and(|longest| expires > issued.plus(longest))
    {
        return Err(TokenFault::Age);
    }
    Ok(expires)
}

/// `sub`: 1 to 255 characters, none of them a control character.
pub(crate) fn subject(claims: &Claims) -> Result<String, TokenFault> {
    let subject = text(claims, "sub").ok_or(TokenFault::Subject)?;
    let valid =
        !subject.is_empty() && subject.chars().count() <= 255 && !subject.chars().any(char::is_control);
    if valid { Ok(subject.to_owned()) } else { Err(TokenFault::Subject) }
}

/// `nonce`, in constant time.
pub(crate) fn nonce(claims: &Claims, nonce: &Secret) -> Result<(), TokenFault> {
    if text(claims, "nonce").is_some_and(|found| nonce.matches(found)) {
        Ok(())
    } else {
        Err(TokenFault::Nonce)
    }
}

/// `at_hash` and `c_hash`, where they are (Core 1.0, section 3.3.2.11).
pub(crate) fn hash(
    claims: &Claims,
    name: &str,
    algorithm: Algorithm,
    of: Option<&str>,
) -> Result<(), TokenFault> {
    let Some(found) = claims.get(name) else { return Ok(()) };
    let of = of.ok_or(TokenFault::Hash)?.as_bytes();
    let half = match algorithm {
        Algorithm::EdDsa => Sha512::digest(of)[..32].to_vec(),
        _ => Sha256::digest(of)[..16].to_vec(),
    };
    if found.as_str() == Some(&URL_SAFE_NO_PAD.encode(half)) { Ok(()) } else { Err(TokenFault::Hash) }
}

/// `acr` is one of these, if any is asked for.
pub(crate) fn context(claims: &Claims, required: &[String]) -> Result<(), TokenFault> {
    let found = text(claims, "acr");
    if required.is_empty() || required.iter().any(|one| Some(one.as_str()) == found) {
        Ok(())
    } else {
        Err(TokenFault::Context)
    }
}

/// A claim by its whole name, or by a path with dots.
pub(crate) fn at_path<'a>(claims: &'a Claims, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    let mut value = claims.get(first)?;
    for name in rest.split('.') {
        value = value.as_object()?.get(name)?;
    }
    Some(value)
}

/// Groups: a list of texts or one text; sorted, each once, at most 1000 of at most 512 bytes.
pub(crate) fn groups(claims: &Claims, path: &str) -> Option<Vec<String>> {
    let mut groups: Vec<String> = match at_path(claims, path)? {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => return None,
    };
    groups.retain(|group| (1..=512).contains(&group.len()) && !group.chars().any(char::is_control));
    groups.sort();
    groups.dedup();
    groups.truncate(1000);
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &str) -> Claims {
        serde_json::from_str(text).expect("claims")
    }

    #[test]
    fn a_token_for_others_too_must_name_us_as_the_party() {
        for (text, expected) in [
            (r#"{"aud":"me"}"#, Ok(())),
            (r#"{"aud":["me"]}"#, Ok(())),
            (r#"{"aud":["me","you"],"azp":"me"}"#, Ok(())),
            (r#"{"aud":["me","you"]}"#, Err(TokenFault::AuthorizedParty)),
            (r#"{"aud":"me","azp":"you"}"#, Err(TokenFault::AuthorizedParty)),
            (r#"{"aud":"me","azp":7}"#, Err(TokenFault::AuthorizedParty)),
            (r#"{"aud":["you"],"azp":"me"}"#, Err(TokenFault::Audience)),
            (r#"{"aud":["me",7]}"#, Err(TokenFault::Audience)),
            (r#"{"aud":[]}"#, Err(TokenFault::Audience)),
            ("{}", Err(TokenFault::Audience)),
        ] {
            assert_eq!(audience(&claims(text), "me", true), expected, "{text}");
        }
    }

    #[test]
    fn times_are_numbers_and_fit_the_clock() {
        let now = Timestamp::from_seconds(1000);
        let skew = Duration::from_secs(30);
        let begun = Some(Timestamp::from_seconds(990));
        for (text, expected) in [
            (r#"{"exp":1001,"iat":1000}"#, Ok(())),
            (r#"{"exp":1000.5,"iat":970.0,"nbf":1030}"#, Ok(())),
            (r#"{"exp":971,"iat":970}"#, Ok(())),
            (r#"{"exp":970,"iat":970}"#, Err(TokenFault::Expired)),
            (r#"{"iat":1000}"#, Err(TokenFault::Expired)),
            (r#"{"exp":"2000","iat":1000}"#, Err(TokenFault::Malformed)),
            (r#"{"exp":1e300,"iat":1000}"#, Err(TokenFault::Malformed)),
            (r#"{"exp":2000,"iat":1031}"#, Err(TokenFault::NotYet)),
            (r#"{"exp":2000,"iat":1000,"nbf":1031}"#, Err(TokenFault::NotYet)),
            (r#"{"exp":2000,"iat":959}"#, Err(TokenFault::Age)),
            (r#"{"exp":2000}"#, Err(TokenFault::Age)),
            (r#"{"exp":9000,"iat":1000}"#, Err(TokenFault::Age)),
        ] {
            let longest = Some(Duration::from_hours(1));
            assert_eq!(times(&claims(text), now, skew, begun, longest).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn groups_are_found_at_names_and_paths() {
        let all = claims(r#"{"a":{"b":["y","x","x",7,""]},"https://x.example/g":"one","n":7}"#);

        assert_eq!(groups(&all, "a.b"), Some(vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!(groups(&all, "https://x.example/g"), Some(vec!["one".to_owned()]));
        assert_eq!(groups(&all, "n"), None);
        assert_eq!(groups(&all, "a.b.c"), None);
    }

    #[test]
    fn hashes_bind_what_stands_beside_the_token() {
        // OpenID Connect Core 1.0, appendix A.3.
        let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
        let good = claims(r#"{"at_hash":"77QmUPtjPfzWtF2AnpK9RQ"}"#);

        assert_eq!(hash(&good, "at_hash", Algorithm::Rs256, Some(token)), Ok(()));
        assert_eq!(hash(&good, "at_hash", Algorithm::EdDsa, Some(token)), Err(TokenFault::Hash));
        assert_eq!(hash(&good, "at_hash", Algorithm::Rs256, Some("x")), Err(TokenFault::Hash));
        assert_eq!(hash(&good, "at_hash", Algorithm::Rs256, None), Err(TokenFault::Hash));
        assert_eq!(hash(&good, "c_hash", Algorithm::Rs256, None), Ok(()));
    }
}

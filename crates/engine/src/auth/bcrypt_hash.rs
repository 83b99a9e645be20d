//! bcrypt: hashes of earlier systems, verified at sign-in and replaced there, and new ones where that is chosen.
//!
//! bcrypt looks at 72 bytes and stops at a NUL. A longer password, or one with a NUL, is never right here, and none is hashed:
//! what an earlier system took for it was a part of it.

/// Costs that are taken over. Above, one guess would cost seconds.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;
/// Bytes that bcrypt looks at.
pub(super) const MAX_BYTES: usize = 72;
/// Cost of new hashes: some 0.3 s.
const NEW: u32 = 12;

/// Hashes a new password, of which all counts; the caller has seen to that. The salt is the operating system's.
pub(super) fn hash(password: &str) -> String {
    bcrypt::hash(password, NEW).expect("the cost is within the algorithm's bounds")
}

/// The cost of a bcrypt hash; `None` if it is none.
pub(crate) fn cost(hash: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2y$"].into_iter().find_map(|prefix| hash.strip_prefix(prefix))?;
    let (cost, digits) = rest.split_at_checked(2)?;
    let digits = digits.strip_prefix('$')?;
    let good = digits.len() == 53
        && digits.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'/'))
        && cost.bytes().all(|c| c.is_ascii_digit());
    cost.parse().ok().filter(|cost| good && COSTS.contains(cost))
}

/// Whether a hash of an earlier system can be taken over.
pub(crate) fn is_importable(hash: &str) -> bool {
    cost(hash).is_some() && bcrypt::verify("", hash).is_ok()
}

/// Whether the password fits.
pub(super) fn verify(password: &str, hash: &str) -> bool {
    let whole = password.len() <= MAX_BYTES && !password.bytes().any(|byte| byte == 0);
    let guess = if whole { password } else { "" };
    // Always computed, so that a refused one takes as long.
    bcrypt::verify(guess, hash).unwrap_or(false) && whole
}

/// The costs whose work together makes up for what `had` took less than `slowest`.
fn missing(had: Option<u32>, slowest: Option<u32>) -> std::ops::Range<u32> {
    match (had, slowest.filter(|cost| COSTS.contains(cost))) {
        (_, None) => 0..0,
        (None, Some(slowest)) => slowest..slowest + 1,
        (Some(had), Some(slowest)) => had..slowest.max(had),
    }
}

/// Takes the time that is missing for an answer to take as long as the slowest: a hash of cost `n` takes twice that of `n - 1`.
pub(super) fn spend(had: Option<u32>, slowest: Option<u32>) {
    for cost in missing(had, slowest) {
        // The result is of no interest; the work is.
        std::hint::black_box(bcrypt::hash_with_salt("nobody", cost, *b"time is the same").ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with the smallest cost there is.
    fn hash_of(password: &str, prefix: &str) -> String {
        let made = bcrypt::hash_with_salt(password, 4, *b"sixteen octets!!").expect("a hash");
        made.to_string().replace("$2b$", prefix)
    }

    #[test]
    fn all_three_spellings_verify() {
        for prefix in ["$2a$", "$2b$", "$2y$"] {
            let hash = hash_of("grün & gut", prefix);

            assert_eq!(cost(&hash), Some(4));
            assert!(is_importable(&hash), "{hash}");
            assert!(verify("grün & gut", &hash));
            assert!(!verify("grün & schlecht", &hash));
        }
    }

    #[test]
    fn hashes_of_another_implementation_verify() {
        // As libxcrypt has them.
        assert!(verify("", "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s."));
        assert!(verify("a", "$2a$06$DCq7YPn5Rq63x1Lad4cll./agdm.LQZHIyaClHyFrK6v2xYIg7zRy"));
    }

    #[test]
    fn a_password_that_was_cut_off_is_not_right() {
        let long = "x".repeat(80);
        let cut = hash_of(&long[..72], "$2b$");

        assert!(verify(&long[..72], &cut));
        assert!(!verify(&long, &cut));
        assert!(!verify("ana\0secret", &hash_of("ana", "$2b$")));
    }

    #[test]
    fn every_answer_takes_the_work_of_the_dearest_hash() {
        let work = |cost: u32| 1_u64 << cost;
        for slowest in COSTS {
            for had in std::iter::once(None).chain((*COSTS.start()..=slowest).map(Some)) {
                let done = had.map_or(0, work) + missing(had, Some(slowest)).map(work).sum::<u64>();
                assert_eq!(done, work(slowest), "{had:?} {slowest}");
            }
        }
        assert!(missing(None, None).is_empty() && missing(Some(4), None).is_empty());
    }

    #[test]
    fn what_is_no_such_hash_is_not_imported() {
        let good = hash_of("x", "$2b$");
        let dear = good.replace("$04$", "$15$");
        for bad in [
            "",
            "$2b$04$",
            "$2b$xx$",
            "$2x$04$",
            &good[..59],
            &dear,
            "$argon2id$v=19$m=8,t=1,p=1$a$b",
            "plain",
        ] {
            assert!(!is_importable(bad), "{bad}");
        }
    }
}

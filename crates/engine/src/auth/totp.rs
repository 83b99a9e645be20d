//! One-time passwords by time (RFC 6238), as authenticator apps compute them: HMAC-SHA-1, six digits, thirty seconds.

use aws_lc_rs::hmac;
use interlock_model::Timestamp;

/// Bytes of a secret (RFC 4226 section 4: 160 bits).
pub(super) const SECRET_BYTES: usize = 20;
/// Seconds of a step.
const PERIOD: i64 = 30;
/// Steps that a clock may be off, each way.
const WINDOW: i64 = 1;

/// The code of a step.
fn code(secret: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let digest = tag.as_ref();
    // Dynamic truncation (RFC 4226 section 5.3).
    let at = usize::from(digest[digest.len() - 1] & 0x0f);
    let number = digest[at..at + 4].iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    format!("{:06}", (number & 0x7fff_ffff) % 1_000_000)
}

/// The step that the guess fits, later than `after`: a code is taken once, and none before it any more.
pub(super) fn matching_step(secret: &[u8], guess: &str, now: Timestamp, after: i64) -> Option<i64> {
    let current = now.seconds().div_euclid(PERIOD);
    let mut found = None;
    for step in current - WINDOW..=current + WINDOW {
        // All are computed and compared whole: the time tells nothing.
        let fits = interlock_model::secret::Secret::new(code(secret, step)).matches(guess);
        if fits && step > after {
            found = Some(step);
        }
    }
    found
}

/// RFC 4648 base32 without padding.
pub(super) fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    bytes
        .chunks(5)
        .flat_map(|chunk| {
            let bits = (0..5).fold(0_u64, |bits, at| bits << 8 | u64::from(*chunk.get(at).unwrap_or(&0)));
            (0..(chunk.len() * 8).div_ceil(5))
                .map(move |at| char::from(ALPHABET[((bits >> (35 - 5 * at)) & 31) as usize]))
        })
        .collect()
}

/// What an authenticator app reads, as a link or a QR code.
pub(super) fn uri(user: &str, secret: &str) -> String {
    // User names hold letters, digits and . - _ @ only.
    let user = user.replace('@', "%40");
    format!(
        "otpauth://totp/Interlock:{user}?secret={secret}&issuer=Interlock&algorithm=SHA1&digits=6&period=30"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"12345678901234567890";

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 6238 appendix B, the last six of eight digits.
        for (seconds, wanted) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(SECRET, seconds / PERIOD), wanted, "{seconds}");
        }
    }

    #[test]
    fn a_code_is_right_one_step_early_or_late_and_once() {
        let now = Timestamp::from_seconds(1_111_111_111);
        let step = 1_111_111_111 / PERIOD;

        for offset in -1..=1 {
            let guess = code(SECRET, step + offset);
            assert_eq!(matching_step(SECRET, &guess, now, 0), Some(step + offset));
            assert_eq!(matching_step(SECRET, &guess, now, step + offset), None);
        }
        for offset in [-2, 2] {
            assert_eq!(matching_step(SECRET, &code(SECRET, step + offset), now, 0), None);
        }
        for bad in ["", "50471", "0504710", "05047l", "050 471"] {
            assert_eq!(matching_step(SECRET, bad, now, 0), None, "{bad}");
        }
    }

    #[test]
    fn base32_is_that_of_the_standard() {
        // RFC 4648 section 10, without padding.
        for (plain, wanted) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
        ] {
            assert_eq!(base32(plain.as_bytes()), wanted);
        }
        assert_eq!(base32(SECRET), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    }
}

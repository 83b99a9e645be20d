//! Token verifications a second on one core, without any cache: form, header, signature and claims of tokens that are all
//! different. `bench/auth` runs it.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use interlock_engine::auth::{Keys, Lifetimes, TokenKind, Tokens};
use interlock_model::secret::Secret;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// Different tokens.
const TOKENS: usize = 2_000;
/// How long to measure.
const TIME: Duration = Duration::from_secs(3);
const SECRET: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

fn claims(number: usize) -> Value {
    json!({
        "sub": "01890000-0000-7000-8000-000000000001", "type": "access", "principal": "agent", "name": "bench",
        "scopes": ["runs:read", "tasks:read", "tasks:create"], "client_id": "01890000-0000-7000-8000-000000000001",
        "fam": format!("{number:032x}"), "auth_time": 1_000_000, "amr": ["secret"], "iat": 1_000_000, "nbf": 1_000_000,
        "exp": 1_003_600, "jti": format!("{number:032x}"), "iss": "interlock", "aud": "interlock:bench", "epo": 1,
    })
}

fn per_second(name: &str, keys: Keys, algorithm: Algorithm, private: &EncodingKey) {
    let mut header = Header::new(algorithm);
    header.typ = Some("at+jwt".to_owned());
    let signed: Vec<String> = (0..TOKENS)
        .map(|number| encode(&header, &claims(number), private).expect("a token can be signed"))
        .collect();
    let lifetimes = Lifetimes { user_seconds: 3600, agent_seconds: 3600, refresh_seconds: 86_400 };
    let tokens = Tokens::new(keys, "interlock:bench".to_owned(), lifetimes);
    let begun = Instant::now();
    let mut count = 0_u32;
    while Instant::now().duration_since(begun) < TIME {
        for token in &signed {
            black_box(tokens.read(token, TokenKind::Access).expect("the token is good"));
            count += 1;
        }
    }
    let seconds = Instant::now().duration_since(begun).as_secs_f64();
    let line = format!("{name} {:.0}\n", f64::from(count) / seconds);
    std::io::stdout().write_all(line.as_bytes()).expect("standard output can be written");
}

fn main() {
    let pkcs8 = Keys::generate().expect("a key");
    let keys = Keys::ed25519(&pkcs8).expect("a key");
    per_second("EdDSA", keys, Algorithm::EdDSA, &EncodingKey::from_ed_der(&pkcs8));
    let keys = Keys::hs256(&Secret::new(SECRET), None).expect("a key");
    per_second("HS256", keys, Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()));
}

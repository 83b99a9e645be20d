//! A provider that says whatever a test wants, and the keys to sign it with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use interlock_directory::{Begun, ClientAuth, DirectoryError, Oidc, OidcConfig, RoleMap, SignedIn};
use interlock_model::Timestamp;
use interlock_model::time::TestEntropy;
use jsonwebtoken::EncodingKey;
use rcgen::PublicKeyData as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
pub(crate) const CLIENT: &str = "interlock";
pub(crate) const BACK: &str = "https://lab.example/cb";

/// What a path answers.
#[derive(Clone)]
pub(crate) enum Reply {
    Json(u16, Value),
    Redirect(String),
    /// A body of this many bytes, announced or in chunks.
    Long(u64, bool),
    Silence,
}

/// A key pair of a provider.
pub(crate) struct Key {
    pub(crate) kid: &'static str,
    pair: rcgen::KeyPair,
    algorithm: jsonwebtoken::Algorithm,
}

impl Key {
    pub(crate) fn es256(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        Self { kid, pair, algorithm: jsonwebtoken::Algorithm::ES256 }
    }

    pub(crate) fn eddsa(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        Self { kid, pair, algorithm: jsonwebtoken::Algorithm::EdDSA }
    }

    pub(crate) fn public(&self) -> &[u8] {
        self.pair.der_bytes()
    }

    pub(crate) fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let raw = self.public();
        if self.algorithm == jsonwebtoken::Algorithm::ES256 {
            json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": text(&raw[1..33]), "y": text(&raw[33..])})
        } else {
            json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "alg": "EdDSA", "x": text(raw)})
        }
    }

    /// Signs with this key, whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let der = self.pair.serialize_der();
        let key = match self.algorithm {
            jsonwebtoken::Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&der),
        };
        let text = unsigned(header, claims);
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, self.algorithm).expect("signed");
        format!("{text}.{signature}")
    }

    pub(crate) fn header(&self) -> Value {
        let name = if self.algorithm == jsonwebtoken::Algorithm::ES256 { "ES256" } else { "EdDSA" };
        json!({"alg": name, "kid": self.kid})
    }
}

/// Header and claims, as they are signed.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// A request as it arrived: path, headers, body.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) struct Provider {
    pub(crate) issuer: String,
    pub(crate) key: Key,
    routes: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://127.0.0.1:{}", listener.local_addr().expect("an address").port());
        let provider = Self { issuer, key: Key::es256("one"), routes: Arc::default(), asked: Arc::default() };
        provider.route("/.well-known/openid-configuration", Reply::Json(200, provider.metadata()));
        provider.route("/keys", Reply::Json(200, json!({"keys": [provider.key.jwk()]})));
        let (routes, asked) = (Arc::clone(&provider.routes), Arc::clone(&provider.asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&routes), Arc::clone(&asked)));
            }
        });
        provider
    }

    pub(crate) fn metadata(&self) -> Value {
        let issuer = &self.issuer;
        json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/auth"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/keys"),
            "userinfo_endpoint": format!("{issuer}/me"),
            "end_session_endpoint": format!("{issuer}/end"),
            "id_token_signing_alg_values_supported": ["ES256", "EdDSA", "HS256", "none"],
            "authorization_response_iss_parameter_supported": true,
        })
    }

    pub(crate) fn route(&self, path: &str, reply: Reply) {
        self.routes.lock().expect("routes").insert(path.to_owned(), reply);
    }

    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        self.asked.lock().expect("the list").iter().filter(|asked| asked.path == path).cloned().collect()
    }

    pub(crate) fn all_asked(&self) -> Vec<String> {
        self.asked.lock().expect("the list").iter().map(|asked| asked.path.clone()).collect()
    }

    pub(crate) fn config(&self) -> OidcConfig {
        let mut config = OidcConfig::new(&self.issuer, CLIENT, ClientAuth::Public, BACK);
        config.roles = RoleMap::for_names("lab-ops=operator").expect("a map");
        config.timeout = Duration::from_secs(2);
        config
    }

    pub(crate) fn oidc(&self) -> Oidc {
        Oidc::new(self.config()).expect("settings")
    }

    /// Claims of a good ID token.
    pub(crate) fn claims(&self, nonce: &str) -> Value {
        json!({
            "iss": self.issuer, "sub": "u-1", "aud": CLIENT, "iat": NOW.seconds(), "exp": NOW.seconds() + 300,
            "nonce": nonce, "preferred_username": "ana", "groups": ["lab-ops"],
        })
    }

    /// A whole sign-in in which the token endpoint answers with this.
    pub(crate) async fn sign_in_with(
        &self,
        oidc: &Oidc,
        answer: impl FnOnce(&str) -> Value,
    ) -> Result<SignedIn, DirectoryError> {
        let begun = oidc.begin(NOW, &TestEntropy::seeded(7)).await?;
        let (state, nonce) = (parameter(&begun, "state"), parameter(&begun, "nonce"));
        self.route("/token", Reply::Json(200, answer(&nonce)));
        oidc.finish(NOW, &TestEntropy::seeded(8), begun.flow, &self.query(&state)).await
    }

    /// A sign-in in which header and claims of the ID token were changed before it was signed.
    pub(crate) async fn sign_in(
        &self,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Result<SignedIn, DirectoryError> {
        let oidc = self.oidc();
        self.sign_in_with(&oidc, |nonce| {
            let (mut header, mut claims) = (self.key.header(), self.claims(nonce));
            change(&mut header, &mut claims);
            json!({"token_type": "Bearer", "access_token": "at", "id_token": self.key.sign(&header, &claims)})
        })
        .await
    }

    pub(crate) fn query(&self, state: &str) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("code", "c0de").append_pair("state", state).append_pair("iss", &self.issuer);
        query.finish()
    }
}

pub(crate) fn parameter(begun: &Begun, name: &str) -> String {
    let url = Url::parse(&begun.url).expect("an address");
    let found = url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    found.unwrap_or_else(|| panic!("no {name}"))
}

async fn answer(
    mut stream: TcpStream,
    routes: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut chunk = [0; 8192];
        let Ok(count @ 1..) = stream.read(&mut chunk).await else { return };
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
        });
        if body.len() >= length.unwrap_or(0_usize) {
            break (head.to_owned(), body.to_owned());
        }
    };
    let path = head.split_whitespace().nth(1).unwrap_or("").split('?').next().unwrap_or("").to_owned();
    let reply = routes.lock().expect("routes").get(&path).cloned();
    asked.lock().expect("the list").push(Asked { path, head, body });
    let text = match reply {
        Some(Reply::Json(status, value)) => {
            let value = value.to_string();
            format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{value}",
                value.len()
            )
        }
        Some(Reply::Redirect(to)) => {
            format!("HTTP/1.1 307 X\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        }
        Some(Reply::Long(length, announced)) => return long(stream, length, announced).await,
        Some(Reply::Silence) => return std::future::pending().await,
        None => "HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(text.as_bytes()).await;
}

async fn long(mut stream: TcpStream, length: u64, announced: bool) {
    let head = if announced {
        format!("HTTP/1.1 200 X\r\ncontent-length: {length}\r\n\r\n")
    } else {
        "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
    };
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let block = vec![b' '; 1 << 16];
    for _ in 0..length / 65_536 {
        let result = if announced {
            stream.write_all(&block).await
        } else {
            stream.write_all(&[b"10000\r\n", block.as_slice(), b"\r\n"].concat()).await
        };
        if result.is_err() {
            return;
        }
    }
}

//! Settings of the HTTPS surface, already checked by the configuration layer of `cli`.

use std::time::Duration;

pub use axum::http::Method;
use ipnet::IpNet;

/// When HSTS is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hsts {
    /// On secure requests (RFC 6797 section 7.2).
    Secure,
    /// Also over plain HTTP, as the earlier system did.
    Always,
    /// Not at all.
    Never,
}

/// Which header of a trusted proxy names its client. The others are the client's own and mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedBy {
    /// `X-Forwarded-For`, or `X-Real-IP` where there is none; `X-Forwarded-Proto`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// `X-Real-IP`; `X-Forwarded-Proto`.
    XRealIp,
}

/// Rate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Whether there are any.
    pub enabled: bool,
    /// Requests a minute, for each address and each principal.
    pub per_minute: u32,
    /// Requests an hour, likewise.
    pub per_hour: u32,
}

/// What happens to a request that looks like an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreeningMode {
    /// Nobody looks.
    Off,
    /// It is served and told in metrics, log and audit trail.
    Observe,
    /// It is refused where an attack has no business.
    Block,
}

/// Request screening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screening {
    /// What happens.
    pub mode: ScreeningMode,
    /// Descriptions and reasons are held to the rules of titles.
    pub text_as_labels: bool,
}

/// Deadlines and bounds of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the request's head.
    pub head: Duration,
    /// Time for the request's body.
    pub body: Duration,
    /// Time without a request after which an HTTP/2 connection ends; HTTP/1.1 has that of the head.
    pub idle: Duration,
    /// Bytes a second that a body must bring, and that a client must take of an answer, on average.
    pub least_rate: u64,
    /// How long either may fall short of it. More than 0.
    pub patience: Duration,
    /// Connections in all.
    pub total: usize,
    /// Connections of one address. A trusted proxy may hold half of `total`, if that is more.
    pub per_address: usize,
    /// Requests under way at once.
    pub in_flight: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_mins(1),
            least_rate: 256,
            patience: Duration::from_secs(10),
            total: 4_096,
            per_address: 256,
            in_flight: 1_024,
        }
    }
}

impl ConnectionLimits {
    /// For the listener of probes and metrics.
    pub fn internal() -> Self {
        Self { total: 64, per_address: 32, ..Self::default() }
    }
}

/// Settings of one server.
#[expect(clippy::struct_excessive_bools, reason = "settings are independent switches")]
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Title in documents and on `/`.
    pub title: String,
    /// Text below the title.
    pub description: String,
    /// Product version.
    pub version: &'static str,
    /// Whether documents are for administrators only.
    pub production: bool,
    /// Plain HTTP is redirected or refused.
    pub force_https: bool,
    /// The listener speaks TLS.
    pub tls: bool,
    /// When HSTS is sent.
    pub hsts: Hsts,
    /// Sends the earlier system's `X-XSS-Protection`.
    pub compat_headers: bool,
    /// 422 bodies in the form of the earlier system.
    pub legacy_errors: bool,
    /// Address under which clients know this server, without a slash at the end. Without it, what they call it.
    pub public_url: Option<String>,
    /// Host names that are answered; `*.` prefixes are allowed.
    pub allowed_hosts: Vec<String>,
    /// Origins that browsers may call from.
    pub cors_origins: Vec<String>,
    /// Methods that they may use.
    pub cors_methods: Vec<Method>,
    /// Addresses whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Which header of theirs names the client.
    pub forwarded_by: ForwardedBy,
    /// Addresses that begin every connection with the PROXY protocol, version 2.
    pub proxy_protocol: Vec<IpNet>,
    /// Probes and metrics have a listener of their own, and `/metrics` is not here.
    pub internal_listener: bool,
    /// Largest request body in bytes.
    pub max_request_size: usize,
    /// Rate limits.
    pub rate: RateLimits,
    /// Request screening.
    pub screening: Screening,
    /// Connection limits.
    pub connections: ConnectionLimits,
    /// Where to report weaknesses: URIs for `security.txt` (RFC 9116). None: there is no such file.
    pub security_contacts: Vec<String>,
    /// The policy for those who report, if there is one.
    pub security_policy: Option<String>,
    /// Lets a monitoring system read `/metrics` without signing in.
    pub metrics_token: Option<interlock_model::secret::Secret>,
}

//! The settings with their types, every value checked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use interlock_directory::{ClientAuth, LdapConfig, OidcConfig, RoleMap, WorkloadTrust};
use interlock_engine::auth::{CertificateSignIn, Factors, Scheme, accept_password};
use interlock_engine::orchestrator::OrchestratorSettings;
use interlock_model::schedule::Schedule;
use interlock_model::secret::Secret;
use interlock_model::task::ScheduleKind;
use interlock_server::config::{ForwardedBy, Hsts, Method, RateLimits, Screening, ScreeningMode};
use interlock_server::perimeter::added::AddedRules;
use interlock_server::perimeter::limits::WhenAway;
use interlock_server::tls::acme::{Acme, Proof};
use interlock_server::tls::{ClientSources, PeopleSources, PersonField};
use interlock_shared::{OwnCertificate, RedisConfig};
use interlock_tools::telemetry::{BadCollector, Collector};
use ipnet::IpNet;

use super::{Config, ConfigError};

/// The host of `host`, `host:port` or `[address]:port`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// What of a database's URL is about who signs in.
struct DatabaseUrl<'a> {
    scheme: &'a str,
    user: &'a str,
    password: Option<&'a str>,
    rest: &'a str,
}

impl<'a> DatabaseUrl<'a> {
    fn read(url: &'a str) -> Option<Self> {
        let (scheme, after) = url.split_once("://")?;
        let end = after.find(['/', '?']).unwrap_or(after.len());
        let (login, host) = after[..end].rsplit_once('@').unwrap_or(("", &after[..end]));
        let rest = &after[end - host.len()..];
        let (user, password) =
            login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        Some(Self { scheme, user, password: password.filter(|password| !password.is_empty()), rest })
    }

    fn with(&self, password: &str) -> Secret {
        let Self { scheme, user, rest, .. } = self;
        let encoded: String = password
            .bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        Secret::new(format!("{scheme}://{user}:{encoded}@{rest}"))
    }
}

/// What a text stands for in a URL; what is no escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| byte == b'%');
        bytes.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether somebody who has read manuals would try this password.
fn is_weak(password: &str) -> bool {
    let folded = password.to_ascii_lowercase();
    let sample = ["your", "change", "example", "placeholder", "sample", "password", "secret"];
    sample.iter().any(|word| folded.contains(word))
        || accept_password("postgres", &Secret::new(password), Factors::Beside).is_err()
}

/// How the listener speaks.
#[derive(Debug, Clone)]
pub(crate) enum TlsMode {
    /// Plain HTTP, on loopback only.
    Off,
    /// A certificate from this installation's own authority.
    Internal,
    /// From an authority, by ACME.
    Acme {
        /// What is ordered.
        acme: Box<Acme>,
        /// Where the authority is answered over plain HTTP.
        http: Option<SocketAddr>,
    },
    /// Files.
    Files {
        /// Chain.
        certificate: PathBuf,
        /// Key.
        key: PathBuf,
    },
}

impl TlsMode {
    /// Whether it speaks plain HTTP.
    pub(crate) const fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }
}

/// What pipelines may reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct ToolSettings {
    pub(crate) http_hosts: Vec<String>,
    pub(crate) http_networks: Vec<String>,
    pub(crate) http_ca_file: Option<PathBuf>,
    pub(crate) rates: Vec<String>,
    pub(crate) file: Option<PathBuf>,
}

/// Everything that a server needs to know.
#[expect(clippy::struct_excessive_bools, reason = "settings are independent switches")]
#[derive(Debug, Clone)]
pub(crate) struct ServerSettings {
    pub(crate) bind: IpAddr,
    pub(crate) port: u16,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) production: bool,
    pub(crate) max_request_size: usize,
    /// Without a slash at the end.
    pub(crate) public_url: Option<String>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) cors_methods: Vec<Method>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) forwarded_by: ForwardedBy,
    pub(crate) proxy_protocol: Vec<IpNet>,
    pub(crate) internal_listen: Option<SocketAddr>,
    pub(crate) security_contacts: Vec<String>,
    pub(crate) security_policy: Option<String>,
    pub(crate) force_https: bool,
    pub(crate) hsts: Hsts,
    pub(crate) compat_headers: bool,
    pub(crate) legacy_errors: bool,
    pub(crate) tls: TlsMode,
    pub(crate) tls12: bool,
    pub(crate) tls_clients: Option<ClientSources>,
    /// What certificates of people are good for.
    pub(crate) tls_users: Option<CertificateSignIn>,
    pub(crate) rate: RateLimits,
    pub(crate) screening: Screening,
    /// Those of the file, which it goes on following.
    pub(crate) added_rules: Arc<AddedRules>,
    pub(crate) jwt_secret: Option<Secret>,
    pub(crate) jwt_secret_previous: Option<Secret>,
    pub(crate) token_hours: i64,
    pub(crate) access_minutes: i64,
    pub(crate) refresh_days: i64,
    pub(crate) owner_mode: bool,
    /// From where administration is allowed.
    pub(crate) admin_networks: Vec<IpNet>,
    /// How new passwords are stored.
    pub(crate) password_hash: Scheme,
    /// Administrators can set passwords of others over the network.
    pub(crate) admins_set_passwords: bool,
    /// Agents get scopes of administration by the word of two people.
    pub(crate) admin_grants_need_two: bool,
    /// Secrets and API keys of agents are refused.
    pub(crate) agents_need_keys: bool,
    /// Days after which runs of the device are deleted; `None`: never.
    pub(crate) device_run_days: Option<u32>,
    /// Days after which audit entries are deleted; `None`: never.
    pub(crate) audit_days: Option<u32>,
    /// File to which checkpoints of the audit log are appended.
    pub(crate) anchor_file: Option<PathBuf>,
    pub(crate) bootstrap_admin_secret: Option<Secret>,
    pub(crate) master_key: Option<Secret>,
    pub(crate) master_key_previous: Option<Secret>,
    pub(crate) require_step_up: bool,
    pub(crate) require_mfa_for_admins: bool,
    pub(crate) queue: Duration,
    pub(crate) orchestrator: OrchestratorSettings,
    pub(crate) drain: Duration,
    pub(crate) simulate_tools: bool,
    pub(crate) tools: ToolSettings,
    pub(crate) default_timeout: Duration,
    pub(crate) database_url: Option<Secret>,
    pub(crate) redis: Option<RedisConfig>,
    pub(crate) redis_down: WhenAway,
    /// Name and length of the Redis Stream into which events are copied.
    pub(crate) events_mirror: Option<(String, u64)>,
    pub(crate) metrics_token: Option<Secret>,
    /// Where traces go.
    pub(crate) collector: Option<Collector>,
    pub(crate) ldap: Option<LdapConfig>,
    /// Programs that may come with a token of their surroundings.
    pub(crate) workloads: Vec<WorkloadTrust>,
    pub(crate) breached_passwords: Option<PathBuf>,
    pub(crate) oidc: Option<OidcConfig>,
    /// Where the provider sends a browser that has signed out.
    pub(crate) oidc_back_to: Option<String>,
}

impl Config {
    pub(super) fn bad(&self, key: &'static str, reason: impl Into<String>) -> ConfigError {
        ConfigError::Value { key, origin: self.origin(key), reason: reason.into() }
    }

    fn integer(&self, key: &'static str, from: u64, to: u64) -> Result<u64, ConfigError> {
        let number = self.text(key).trim().parse::<u64>().ok().filter(|number| (from..=to).contains(number));
        number.ok_or_else(|| self.bad(key, format!("must be a whole number from {from} to {to}")))
    }

    fn seconds(&self, key: &'static str, from: f64, to: f64) -> Result<Duration, ConfigError> {
        let number = self.text(key).trim().parse::<f64>().ok().filter(|number| (from..=to).contains(number));
        let seconds = number
            .ok_or_else(|| self.bad(key, format!("must be a number of seconds from {from} to {to}")))?;
        Ok(Duration::from_secs_f64(seconds))
    }

    fn orchestrator(&self) -> Result<OrchestratorSettings, ConfigError> {
        let default_zone = self.text("tasks.default_timezone").trim().to_owned();
        let anchor = interlock_model::Timestamp::from_seconds(0);
        if let Err(error) = Schedule::parse(ScheduleKind::Manual, None, &default_zone, anchor) {
            return Err(self.bad("tasks.default_timezone", error.message));
        }
        let concurrency = usize::try_from(self.integer("worker.concurrency", 0, 1_000)?).unwrap_or_default();
        Ok(OrchestratorSettings {
            lease: self.seconds("worker.lease_seconds", 1.0, 3_600.0)?,
            poll: self.seconds("worker.poll_interval", 0.01, 60.0)?,
            backoff_max: self.seconds("worker.backoff_max_delay", 1.0, 60.0)?,
            misfire_grace: self.seconds("scheduler.misfire_grace_time", 0.0, 86_400.0)?,
            concurrency,
            // As much again, so that the next are there when places become free.
            prefetch: concurrency,
            retention: Duration::from_hours(24 * self.integer("tasks.retention_days", 1, 3_650)?),
            default_zone,
        })
    }

    /// Where traces go.
    fn collector(&self) -> Result<Option<Collector>, ConfigError> {
        const KEY: &str = "telemetry.otlp_endpoint";
        let text = self.text(KEY).trim();
        if text.is_empty() {
            return Ok(None);
        }
        let headers = self.secret("telemetry.otlp_headers");
        let headers = headers.as_ref().map_or("", Secret::expose);
        let made = Collector::new(text, headers, self.text("telemetry.service_name"));
        made.map(Some).map_err(|error| match error {
            BadCollector::Endpoint => self.bad(KEY, error.to_string()),
            BadCollector::Headers => self.bad("telemetry.otlp_headers", error.to_string()),
        })
    }

    fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.text(key).trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.bad(key, "must be true or false")),
        }
    }

    fn list(&self, key: &'static str) -> Vec<String> {
        self.text(key).split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn secret(&self, key: &'static str) -> Option<Secret> {
        let text = self.text(key);
        (!text.is_empty()).then(|| Secret::new(text))
    }

    fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.text(key).trim().to_ascii_lowercase();
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            self.bad(
                key,
                format!(
                    "must be one of {}",
                    choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                ),
            )
        })
    }

    /// The logging settings, needed before anything else: `(level, text format)`.
    pub(crate) fn logging(&self) -> Result<(tracing::Level, bool), ConfigError> {
        let level = self.choice(
            "log.level",
            &[
                ("error", tracing::Level::ERROR),
                ("warning", tracing::Level::WARN),
                ("warn", tracing::Level::WARN),
                ("info", tracing::Level::INFO),
                ("debug", tracing::Level::DEBUG),
            ],
        )?;
        Ok((level, self.choice("log.format", &[("json", false), ("text", true)])?))
    }

    fn pem(&self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.text(key).trim() {
            "" => Ok(None),
            path => std::fs::read_to_string(path)
                .map(Some)
                .map_err(|error| self.bad(key, format!("cannot be read: {error}"))),
        }
    }

    pub(super) fn filled(&self, key: &'static str) -> Option<String> {
        Some(self.text(key).trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The LDAP directory, if one is set.
    pub(crate) fn ldap(&self) -> Result<Option<LdapConfig>, ConfigError> {
        let Some(url) = self.filled("ldap.url") else { return Ok(None) };
        let base = self.text("ldap.user_base").trim();
        let mut ldap = if self.choice("ldap.kind", &[("ldap", false), ("ad", true)])? {
            LdapConfig::active_directory(url, base)
        } else {
            LdapConfig::new(url, base)
        };
        ldap.ca_pem = self.pem("ldap.ca_file")?;
        ldap.bind_dn = self.filled("ldap.bind_dn");
        ldap.bind_password = self.secret("ldap.bind_password");
        ldap.user_filter = self.filled("ldap.user_filter").unwrap_or(ldap.user_filter);
        ldap.group_base = self.filled("ldap.group_base").or(ldap.group_base);
        ldap.group_filter = self.filled("ldap.group_filter").unwrap_or(ldap.group_filter);
        ldap.roles = RoleMap::for_dns(self.text("ldap.role_map"))
            .map_err(|reason| self.bad("ldap.role_map", reason))?;
        if ldap.roles.is_empty() {
            return Err(
                self.bad("ldap.role_map", "must give at least one group a role, or nobody can sign in")
            );
        }
        ldap.validate().map_err(|wrong| self.bad("ldap.url", wrong.join("; ")))?;
        Ok(Some(ldap))
    }

    fn oidc_back_to(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.filled("oidc.post_logout_redirect_uri") else { return Ok(None) };
        if text.starts_with("https://") || text.starts_with("http://") {
            Ok(Some(text))
        } else {
            Err(self.bad("oidc.post_logout_redirect_uri", "must be an address that begins with https://"))
        }
    }

    /// The OpenID provider, if one is set.
    pub(crate) fn oidc(&self) -> Result<Option<OidcConfig>, ConfigError> {
        let Some(issuer) = self.filled("oidc.issuer") else { return Ok(None) };
        let client = self.text("oidc.client_id").trim();
        let auth = self.secret("oidc.client_secret").map_or(ClientAuth::Public, ClientAuth::Secret);
        let mut oidc = OidcConfig::new(issuer, client, auth, self.text("oidc.redirect_uri").trim());
        oidc.scopes = OidcConfig::read_scopes(self.text("oidc.scopes"));
        self.text("oidc.username_claim").trim().clone_into(&mut oidc.username_claim);
        self.text("oidc.groups_claim").trim().clone_into(&mut oidc.groups_claim);
        oidc.required_acr = self.list("oidc.required_acr");
        oidc.ca_pem = self.pem("oidc.ca_file")?;
        oidc.roles = RoleMap::for_names(self.text("oidc.role_map"))
            .map_err(|reason| self.bad("oidc.role_map", reason))?;
        if oidc.roles.is_empty() {
            return Err(
                self.bad("oidc.role_map", "must give at least one group a role, or nobody can sign in")
            );
        }
        oidc.validate().map_err(|wrong| self.bad("oidc.issuer", wrong.join("; ")))?;
        Ok(Some(oidc))
    }

    /// The Redis that servers share, if one is set.
    fn events_mirror(&self) -> Result<Option<(String, u64)>, ConfigError> {
        let key = "events.mirror_stream";
        let length = self.integer("events.mirror_length", 1, 100_000_000)?;
        let name = self.text(key).to_owned();
        if name.is_empty() {
            return Ok(None);
        }
        if name.len() > 200 || name.chars().any(char::is_control) {
            return Err(self.bad(key, "a name of at most 200 bytes without control characters"));
        }
        if name.starts_with("interlock:") {
            return Err(self.bad(key, "names that begin with interlock: are for the servers themselves"));
        }
        if self.secret("redis.url").is_none() {
            return Err(self.bad(key, "REDIS_URL must say which Redis"));
        }
        Ok(Some((name, length)))
    }

    fn redis(&self) -> Result<Option<RedisConfig>, ConfigError> {
        let (ca_pem, plaintext) = (self.pem("redis.ca_file")?, self.flag("redis.insecure_plaintext")?);
        let deadline = Duration::from_millis(self.integer("redis.deadline_ms", 1, 1_000)?);
        let Some(url) = self.secret("redis.url") else { return Ok(None) };
        let mut redis =
            RedisConfig::new(&url, ca_pem, plaintext).map_err(|reason| self.bad("redis.url", reason))?;
        redis.deadline = deadline;
        let redis = match (self.pem("redis.cert_file")?, self.pem("redis.key_file")?) {
            (None, None) => redis,
            (Some(chain), Some(key)) => redis
                .showing(OwnCertificate { chain, key: Secret::new(key) })
                .map_err(|reason| self.bad("redis.cert_file", reason))?,
            (chain, _) => {
                let missing = if chain.is_some() { "redis.key_file" } else { "redis.cert_file" };
                return Err(self.bad(missing, "is wanted too: a certificate and its key"));
            }
        };
        Ok(Some(redis))
    }

    fn bind(&self) -> Result<IpAddr, ConfigError> {
        match self.text("server.bind").trim() {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            text => text
                .parse::<IpAddr>()
                .map_err(|_| self.bad("server.bind", "must be an IP address such as 127.0.0.1 or 0.0.0.0")),
        }
    }

    /// What tools may reach.
    fn tools(&self) -> ToolSettings {
        ToolSettings {
            http_hosts: self.list("tools.http_hosts"),
            http_networks: self.list("tools.http_networks"),
            http_ca_file: self.filled("tools.http_ca_file").map(PathBuf::from),
            rates: self.list("tools.rates"),
            file: self.filled("tools.file").map(PathBuf::from),
        }
    }

    /// Days after which runs of the device are deleted; `None`: never. Longer than an idempotency key stands for its run.
    fn device_run_days(&self) -> Result<Option<u32>, ConfigError> {
        match u32::try_from(self.integer("device.retention_days", 0, 36_500)?).unwrap_or(u32::MAX) {
            0 => Ok(None),
            1 => Err(self
                .bad("device.retention_days", "must be 2 to 36500, or 0 to keep runs for ever".to_owned())),
            days => Ok(Some(days)),
        }
    }

    /// Days after which audit entries are deleted; `None`: never.
    fn audit_days(&self) -> Result<Option<u32>, ConfigError> {
        let hold = self.flag("audit.legal_hold")?;
        let days = self.integer("audit.retention_days", 0, 36_500)?;
        Ok(u32::try_from(days).ok().filter(|days| *days > 0 && !hold))
    }

    /// All settings of a server.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub(crate) fn server(&self) -> Result<ServerSettings, ConfigError> {
        let bind = self.bind()?;
        let settings = ServerSettings {
            bind,
            port: u16::try_from(self.integer("server.port", 0, 65_535)?).unwrap_or(0),
            title: self.text("server.title").to_owned(),
            description: self.text("server.description").to_owned(),
            production: self.choice("server.environment", &[("development", false), ("production", true)])?,
            max_request_size: usize::try_from(self.integer("server.max_request_size", 1_024, 104_857_600)?)
                .unwrap_or(usize::MAX),
            public_url: self.public_url()?,
            allowed_hosts: self.hosts()?,
            cors_origins: self.origins()?,
            cors_methods: self.methods()?,
            trusted_proxies: self.networks("server.trusted_proxies")?,
            forwarded_by: self.choice(
                "server.forwarded_header",
                &[
                    ("x-forwarded-for", ForwardedBy::XForwardedFor),
                    ("forwarded", ForwardedBy::Forwarded),
                    ("x-real-ip", ForwardedBy::XRealIp),
                ],
            )?,
            proxy_protocol: self.networks("server.proxy_protocol_from")?,
            internal_listen: self.internal_listen()?,
            security_contacts: self.security_contacts()?,
            security_policy: self.security_policy()?,
            force_https: self.flag("server.force_https")?,
            hsts: self.choice(
                "server.hsts",
                &[("secure", Hsts::Secure), ("always", Hsts::Always), ("never", Hsts::Never)],
            )?,
            compat_headers: self.flag("server.compat_headers")?,
            legacy_errors: self.choice("server.error_format", &[("problem", false), ("legacy", true)])?,
            tls: self.tls()?,
            tls12: self.choice("tls.min_version", &[("1.3", false), ("1.2", true)])?,
            tls_clients: self.tls_clients()?,
            tls_users: self.tls_users()?,
            rate: self.rate()?,
            screening: self.screening()?,
            added_rules: self.added_rules()?,
            jwt_secret: self.secret("identity.jwt_secret_key"),
            jwt_secret_previous: self.secret("identity.jwt_secret_key_previous"),
            token_hours: i64::try_from(self.integer("identity.access_token_expire_hours", 1, 24)?)
                .unwrap_or(1),
            access_minutes: i64::try_from(self.integer("identity.access_token_expire_minutes", 1, 1_440)?)
                .unwrap_or(60),
            refresh_days: i64::try_from(self.integer("identity.refresh_token_expire_days", 1, 365)?)
                .unwrap_or(30),
            owner_mode: self.choice("identity.scope_mode", &[("strict", false), ("owner", true)])?,
            admin_networks: self.networks("identity.admin_networks")?,
            password_hash: self.choice(
                "identity.password_hash",
                &[("argon2id", Scheme::Argon2id), ("bcrypt", Scheme::Bcrypt)],
            )?,
            admins_set_passwords: self.flag("identity.admins_set_passwords")?,
            admin_grants_need_two: self.flag("identity.admin_grants_need_two")?,
            agents_need_keys: self.flag("identity.agents_need_keys")?,
            device_run_days: self.device_run_days()?,
            audit_days: self.audit_days()?,
            anchor_file: self.filled("audit.anchor_file").map(PathBuf::from),
            bootstrap_admin_secret: self.secret("identity.bootstrap_admin_secret"),
            master_key: self.secret("identity.master_key"),
            master_key_previous: self.secret("identity.master_key_previous"),
            require_step_up: self.flag("identity.require_step_up")?,
            require_mfa_for_admins: self.flag("identity.require_mfa_for_admins")?,
            queue: Duration::from_secs(self.integer("device.execute_queue_seconds", 0, 3_600)?),
            orchestrator: self.orchestrator()?,
            drain: self.seconds("worker.drain_seconds", 0.0, 3_600.0)?,
            tools: self.tools(),
            simulate_tools: self.choice("tasks.tool_mode", &[("real", false), ("simulate", true)])?,
            default_timeout: Duration::from_secs(self.integer(
                "device.default_timeout_seconds",
                1,
                604_800,
            )?),
            database_url: self.database_url()?,
            redis: self.redis()?,
            events_mirror: self.events_mirror()?,
            redis_down: self.choice(
                "limits.redis_down",
                &[("local", WhenAway::Local), ("deny", WhenAway::Deny), ("allow", WhenAway::Allow)],
            )?,
            metrics_token: self.secret("metrics.token"),
            collector: self.collector()?,
            ldap: self.ldap()?,
            workloads: self.workloads()?,
            breached_passwords: self.filled("identity.breached_passwords_file").map(PathBuf::from),
            oidc: self.oidc()?,
            oidc_back_to: self.oidc_back_to()?,
        };
        self.never_banned()?;
        self.checked_together(&settings)?;
        Ok(settings)
    }

    /// What no single setting shows: how they fit each other.
    fn checked_together(&self, settings: &ServerSettings) -> Result<(), ConfigError> {
        let bind = settings.bind;
        if settings.metrics_token.as_ref().is_some_and(|token| token.expose().len() < 16) {
            return Err(self.bad("metrics.token", "must be at least 16 bytes"));
        }
        if settings.tls.is_off() && !settings.bind.is_loopback() {
            return Err(self.bad(
                "server.bind",
                format!(
                    "{bind} can be reached from the network, so TLS is required. Give --tls-cert and --tls-key, or --tls internal for a \
                     certificate of this installation's own authority, or listen on 127.0.0.1 behind a proxy on this machine"
                ),
            ));
        }
        let proxied = !settings.trusted_proxies.is_empty() || !settings.proxy_protocol.is_empty();
        if settings.production && settings.tls.is_off() && !proxied {
            return Err(self.bad(
                "server.environment",
                "production needs HTTPS: give --tls-cert and --tls-key, or --tls internal, or name the proxy that speaks TLS in \
                 TRUSTED_PROXIES (127.0.0.1 for one on this machine) or PROXY_PROTOCOL_FROM",
            ));
        }
        if settings.tls.is_off() && settings.tls_clients.is_some() {
            return Err(self.bad(
                if settings.tls_users.is_some() { "tls.user_ca_file" } else { "tls.client_ca_file" },
                "client certificates need TLS: give --tls-cert and --tls-key, or --tls internal",
            ));
        }
        Ok(())
    }

    /// URIs as RFC 9116 section 2.5.3 wants them: web addresses over TLS only.
    fn security_contacts(&self) -> Result<Vec<String>, ConfigError> {
        let contacts = self.list("server.security_contact");
        if contacts.iter().all(|contact| is_contact(contact)) {
            return Ok(contacts);
        }
        Err(self.bad(
            "server.security_contact",
            "must be URIs such as mailto:security@example.org, https://example.org/report or tel:+1-201-555-0123",
        ))
    }

    fn security_policy(&self) -> Result<Option<String>, ConfigError> {
        let policy = self.filled("server.security_policy");
        match &policy {
            Some(address) if !(address.starts_with("https://") && is_contact(address)) => {
                Err(self.bad("server.security_policy", "must be an address that begins with https://"))
            }
            _ => Ok(policy),
        }
    }

    fn rate(&self) -> Result<RateLimits, ConfigError> {
        Ok(RateLimits {
            enabled: self.flag("limits.enabled")?,
            per_minute: u32::try_from(self.integer("limits.requests_per_minute", 1, 10_000_000)?)
                .unwrap_or(u32::MAX),
            per_hour: u32::try_from(self.integer("limits.requests_per_hour", 1, 100_000_000)?)
                .unwrap_or(u32::MAX),
        })
    }

    fn screening(&self) -> Result<Screening, ConfigError> {
        Ok(Screening {
            mode: self.choice(
                "screening.patterns",
                &[
                    ("true", ScreeningMode::Block),
                    ("block", ScreeningMode::Block),
                    ("false", ScreeningMode::Observe),
                    ("observe", ScreeningMode::Observe),
                    ("off", ScreeningMode::Off),
                ],
            )?,
            text_as_labels: self.flag("screening.text")?,
        })
    }

    fn added_rules(&self) -> Result<Arc<AddedRules>, ConfigError> {
        let key = "screening.rules_file";
        let Some(path) = self.filled(key) else { return Ok(Arc::default()) };
        AddedRules::open(std::path::Path::new(&path))
            .map(Arc::new)
            .map_err(|error| self.bad(key, format!("cannot be taken: {error}")))
    }

    /// Where probes and metrics are served. What leaves this machine is for those who hold the token.
    fn internal_listen(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let key = "server.internal_listen";
        let Some(text) = self.filled(key) else { return Ok(None) };
        let address: SocketAddr = text
            .parse()
            .map_err(|_| self.bad(key, "must be an address and a port such as 127.0.0.1:9100"))?;
        if !address.ip().is_loopback() && self.secret("metrics.token").is_none() {
            return Err(self.bad(key, "can be reached from the network, so METRICS_TOKEN is required"));
        }
        Ok(Some(address))
    }

    /// Which client certificates are taken.
    fn tls_clients(&self) -> Result<Option<ClientSources>, ConfigError> {
        let required = self.choice("tls.client_auth", &[("required", true), ("optional", false)])?;
        let revocations = self.filled("tls.client_crl_file").map(PathBuf::from);
        let machines = self.filled("tls.client_ca_file").map(PathBuf::from);
        let field = self.choice(
            "tls.user_field",
            &[
                ("email", PersonField::Mail),
                ("upn", PersonField::PrincipalName),
                ("cn", PersonField::CommonName),
            ],
        )?;
        let people = self.filled("tls.user_ca_file").map(PathBuf::from);
        let people = people.map(|authorities| PeopleSources { authorities, field });
        if machines.is_some() || people.is_some() {
            return Ok(Some(ClientSources { machines, people, revocations, required }));
        }
        if revocations.is_some() {
            let reason = "does nothing without tls.client_ca_file or tls.user_ca_file";
            return Err(self.bad("tls.client_crl_file", reason));
        }
        Ok(None)
    }

    /// What certificates of people are good for.
    fn tls_users(&self) -> Result<Option<CertificateSignIn>, ConfigError> {
        let domain = self.filled("tls.user_domain");
        let is_domain = |domain: &String| {
            domain.len() <= 253
                && domain.split('.').all(|label| {
                    !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                })
        };
        if !domain.as_ref().is_none_or(is_domain) {
            return Err(self.bad("tls.user_domain", "must be a domain such as lab.example, without the @"));
        }
        let roles = self.list("tls.user_roles");
        if self.filled("tls.user_ca_file").is_some() {
            return Ok(Some(CertificateSignIn { domain, roles }));
        }
        for (key, set) in [("tls.user_domain", domain.is_some()), ("tls.user_roles", !roles.is_empty())] {
            if set {
                return Err(self.bad(key, "does nothing without tls.user_ca_file"));
            }
        }
        Ok(None)
    }

    /// Networks that are never banned: the allow-list and the trusted proxies.
    ///
    /// # Errors
    /// The first that is no network.
    pub(crate) fn never_banned(&self) -> Result<Vec<IpNet>, ConfigError> {
        let mut networks = self.networks("screening.ban_allow")?;
        networks.extend(self.networks("server.trusted_proxies")?);
        networks.extend(self.networks("server.proxy_protocol_from")?);
        Ok(networks)
    }

    /// The address under which clients know the server (RFC 8414 section 2: no query, no fragment; ours has no path either).
    fn public_url(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.filled("server.public_url") else { return Ok(None) };
        let plain = text.strip_suffix('/').unwrap_or(&text);
        let bad = |reason: &str| Err(self.bad("server.public_url", reason));
        let Some((scheme, authority)) = plain.split_once("://") else {
            return bad("must be an address such as https://robot.lab.example");
        };
        let host = host_of(authority);
        let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':');
        if authority.len() > 255 || host.is_empty() || !host.bytes().all(name) {
            return bad("must be a scheme, a host and perhaps a port, without path, query or user");
        }
        let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        match scheme {
            "https" => Ok(Some(plain.to_owned())),
            "http" if is_local => Ok(Some(plain.to_owned())),
            _ => bad("must begin with https://; http:// is for loopback addresses only"),
        }
    }

    fn hosts(&self) -> Result<Vec<String>, ConfigError> {
        let mut hosts = self.list("server.allowed_hosts");
        if let Some(url) = self.public_url()? {
            hosts.extend(url.split_once("://").map(|(_, authority)| host_of(authority).to_owned()));
        }
        let good = |host: &String| {
            let name = host.strip_prefix("*.").unwrap_or(host);
            !name.is_empty()
                && name.bytes().all(|c| {
                    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':' | b'[' | b']' | b'_')
                })
        };
        if hosts.iter().all(good) {
            Ok(hosts)
        } else {
            Err(self.bad(
                "server.allowed_hosts",
                "must be host names without scheme or path; *. may stand in front",
            ))
        }
    }

    fn origins(&self) -> Result<Vec<String>, ConfigError> {
        let origins = self.list("server.cors_allow_origins");
        let good = |origin: &String| {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', '?', '#', '@', ' ']))
        };
        if origins.iter().all(good) {
            Ok(origins)
        } else {
            Err(self.bad("server.cors_allow_origins", "must be origins such as https://dashboard.example.org; * would let any page use a signed-in session"))
        }
    }

    fn methods(&self) -> Result<Vec<Method>, ConfigError> {
        const KNOWN: [Method; 6] =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let key = "server.cors_allow_methods";
        let find = |name: &String| KNOWN.iter().find(|method| method.as_str() == name).cloned();
        let methods: Option<Vec<Method>> = self.list(key).iter().map(find).collect();
        methods.ok_or_else(|| {
            self.bad(key, "must be methods such as GET,POST: GET, HEAD, POST, PUT, PATCH, DELETE")
        })
    }

    /// The database's URL, with the password that stands elsewhere.
    fn database_url(&self) -> Result<Option<Secret>, ConfigError> {
        let (url, password) = (self.secret("database.url"), self.secret("database.password"));
        let Some(url) = url else {
            return match password {
                None => Ok(None),
                Some(_) => Err(self.bad("database.password", "does nothing without DATABASE_URL")),
            };
        };
        let Some(parts) = DatabaseUrl::read(url.expose()) else {
            // What is wrong with it is told when it is used.
            return Ok(Some(url));
        };
        let weak = |key| {
            Err(self.bad(key, "the database password is a sample, a common one, or shorter than 8 characters; make one with: openssl rand -hex 32"))
        };
        match (parts.password, password) {
            (Some(own), None) if is_weak(&percent_decoded(own)) => weak("database.url"),
            (_, None) => Ok(Some(url)),
            (Some(_), Some(_)) => {
                Err(self.bad("database.password", "DATABASE_URL has a password too; give one of them"))
            }
            (None, Some(_)) if parts.user.is_empty() => {
                Err(self
                    .bad("database.password", "DATABASE_URL must name the user: postgres://user@host/name"))
            }
            (None, Some(password)) if is_weak(password.expose()) => weak("database.password"),
            (None, Some(password)) => Ok(Some(parts.with(password.expose()))),
        }
    }

    fn networks(&self, key: &'static str) -> Result<Vec<IpNet>, ConfigError> {
        self.list(key)
            .iter()
            .map(|text| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)))
            .collect::<Result<_, _>>()
            .map_err(|_| self.bad(key, "must be addresses or networks such as 10.0.0.0/8"))
    }

    fn tls(&self) -> Result<TlsMode, ConfigError> {
        let (certificate, key) = (self.text("tls.cert_file"), self.text("tls.key_file"));
        let mode = self.choice(
            "tls.mode",
            &[("auto", Mode::Auto), ("internal", Mode::Internal), ("acme", Mode::Acme)],
        )?;
        match (certificate.is_empty(), key.is_empty()) {
            (true, true) => match mode {
                Mode::Auto => Ok(TlsMode::Off),
                Mode::Internal => Ok(TlsMode::Internal),
                Mode::Acme => self.acme(),
            },
            (false, false) if mode != Mode::Auto => Err(self.bad(
                "tls.mode",
                "internal and acme do not go together with certificate files; drop one of them",
            )),
            (false, false) => Ok(TlsMode::Files { certificate: certificate.into(), key: key.into() }),
            (false, true) => Err(self
                .bad("tls.key_file", "is missing: give the private key of the certificate with --tls-key")),
            (true, false) => {
                Err(self.bad("tls.cert_file", "is missing: give the certificate chain with --tls-cert"))
            }
        }
    }
}

/// `tls.mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Auto,
    Internal,
    Acme,
}

/// Names in one certificate at most, as the best known authorities have it.
const MOST_NAMES: usize = 100;

/// Whether an authority could prove it: a name with a dot in it, and no address, pattern or local name.
fn is_public_name(name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    let good = |label: &&str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    labels.len() > 1
        && name.len() <= 253
        && labels.iter().all(good)
        && !labels.last().is_some_and(|last| last.bytes().all(|c| c.is_ascii_digit()) || *last == "localhost")
}

impl Config {
    fn acme(&self) -> Result<TlsMode, ConfigError> {
        if !self.flag("tls.acme_agree_terms")? {
            return Err(self.bad(
                "tls.acme_agree_terms",
                "must be true with tls.mode acme: read the authority's terms of service first",
            ));
        }
        let directory = self.text("tls.acme_directory").trim().to_owned();
        if !directory.starts_with("https://") {
            return Err(self.bad("tls.acme_directory", "must be an https address"));
        }
        let listed = self.list("tls.acme_names");
        let names = if listed.is_empty() {
            self.list("server.allowed_hosts").into_iter().filter(|name| is_public_name(name)).collect()
        } else {
            listed
        };
        if names.is_empty() || names.len() > MOST_NAMES {
            return Err(self.bad(
                "tls.acme_names",
                "needs 1 to 100 names under which the authority reaches this server, such as ot2.lab.example (or put them into ALLOWED_HOSTS)",
            ));
        }
        if let Some(name) = names.iter().find(|name| !is_public_name(name)) {
            return Err(self.bad(
                "tls.acme_names",
                format!("{name} is no full host name; an authority cannot prove it"),
            ));
        }
        let contacts = self.list("tls.acme_contact");
        if !contacts.iter().all(|contact| is_contact(contact)) {
            return Err(self.bad("tls.acme_contact", "must be URIs such as mailto:lab@example.org"));
        }
        let external = match (self.filled("tls.acme_eab_id"), self.secret("tls.acme_eab_key")) {
            (None, None) => None,
            (Some(id), Some(key)) => Some((id, key)),
            _ => return Err(self.bad("tls.acme_eab_id", "goes together with tls.acme_eab_key")),
        };
        let proof =
            self.choice("tls.acme_challenge", &[("tls-alpn-01", Proof::TlsAlpn), ("http-01", Proof::Http)])?;
        let http = match proof {
            Proof::TlsAlpn => None,
            Proof::Http => Some(self.text("tls.acme_http_listen").trim().parse().map_err(|_| {
                self.bad("tls.acme_http_listen", "must be an address and a port, such as 0.0.0.0:80")
            })?),
        };
        let authorities = self.filled("tls.acme_ca_file").map(PathBuf::from);
        let acme = Acme { directory, authorities, contacts, names, proof, external };
        Ok(TlsMode::Acme { acme: Box::new(acme), http })
    }
}

fn is_contact(text: &str) -> bool {
    ["mailto:", "https://", "tel:"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
        && text.bytes().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<ServerSettings, ConfigError> {
        let environment =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::load(None, &environment, &[]).expect("known names").server()
    }

    #[test]
    fn the_defaults_are_safe() {
        let settings = with(&[]).expect("defaults");
        assert!(settings.bind.is_loopback() && settings.rate.enabled && settings.cors_origins.is_empty());
        assert_eq!(
            (settings.rate.per_minute, settings.rate.per_hour, settings.max_request_size),
            (60, 1000, 10_485_760)
        );
    }

    #[test]
    fn screening_refuses_unless_it_is_told_otherwise() {
        for (text, mode) in [
            ("true", ScreeningMode::Block),
            ("false", ScreeningMode::Observe),
            ("observe", ScreeningMode::Observe),
            ("off", ScreeningMode::Off),
        ] {
            let settings = with(&[("BLOCK_SUSPICIOUS_PATTERNS", text)]).expect("a mode");
            assert_eq!(settings.screening.mode, mode);
        }
        assert_eq!(
            with(&[]).expect("defaults").screening,
            Screening { mode: ScreeningMode::Block, text_as_labels: false }
        );
    }

    #[test]
    fn what_would_be_unsafe_or_meaningless_stops_the_start() {
        for pairs in [
            [("BIND", "0.0.0.0")],
            [("BIND", "lab.example")],
            [("MAX_REQUEST_SIZE", "1023")],
            [("MAX_REQUEST_SIZE", "-1")],
            [("CORS_ALLOW_ORIGINS", "*")],
            [("CORS_ALLOW_ORIGINS", "https://a.example/path")],
            [("TRUSTED_PROXIES", "proxy.example")],
            [("FORWARDED_HEADER", "x-client-ip")],
            [("PROXY_PROTOCOL_FROM", "balancer.example")],
            [("SECURITY_CONTACT", "security@lab.example")],
            [("SECURITY_CONTACT", "http://lab.example/report")],
            [("SECURITY_POLICY", "lab.example/policy")],
            [("INTERNAL_LISTEN", "9100")],
            [("INTERNAL_LISTEN", "0.0.0.0:9100")],
            [("RATE_LIMIT_ENABLED", "maybe")],
            [("BLOCK_SUSPICIOUS_PATTERNS", "sometimes")],
            [("BLOCK_SUSPICIOUS_TEXT", "observe")],
            [("BAN_ALLOW", "lab.example")],
            [("TLS_CERT_FILE", "cert.pem")],
            [("TLS_CLIENT_CA_FILE", "ca.pem")],
            [("TLS_CLIENT_CRL_FILE", "crl.pem")],
            [("TLS_CLIENT_AUTH", "sometimes")],
            [("TLS_USER_CA_FILE", "people.pem")],
            [("TLS_USER_FIELD", "uid")],
            [("TLS_USER_DOMAIN", "lab.example")],
            [("TLS_USER_DOMAIN", "@lab.example")],
            [("TLS_USER_ROLES", "viewer")],
            [("ACCESS_TOKEN_EXPIRE_HOURS", "0")],
            [("METRICS_TOKEN", "short")],
            [("REDIS_URL", "redis://redis.example:6379/1")],
            [("REDIS_URL", "http://127.0.0.1")],
            [("RATE_LIMIT_REDIS_DOWN", "unlimited")],
            [("REDIS_DEADLINE_MS", "0")],
            [("ENVIRONMENT", "prod")],
            [("PORT", "65536")],
            [("ENVIRONMENT", "production")],
            [("CORS_ALLOW_METHODS", "GET,BREW")],
            [("CORS_ALLOW_METHODS", "get")],
            [("DATABASE_URL", "postgres://lab:postgres@db/lab")],
            [("DATABASE_URL", "postgres://lab:your-secure-p%61ssword@db/lab")],
            [("POSTGRES_PASSWORD", "r8vN2kQx7TzLw4")],
            [("ACCESS_TOKEN_EXPIRE_HOURS", "25")],
            [("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", "1441")],
            [("JWT_REFRESH_TOKEN_EXPIRE_DAYS", "366")],
        ] {
            assert!(with(&pairs).is_err(), "{pairs:?}");
        }
    }
}

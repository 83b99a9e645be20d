//! The settings that exist. This table is the documentation of each: what, unit, range, default.

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text.
    Text,
    /// A whole number.
    Integer,
    /// true or false.
    Flag,
    /// Texts separated by commas.
    List,
    /// Never shown; `<name>_file` and `<VARIABLE>_FILE` read it from a file.
    Secret,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// `section.name`, as in the file.
    pub(crate) key: &'static str,
    /// Environment variables, the preferred one first.
    pub(crate) variables: &'static [&'static str],
    /// What it holds.
    pub(crate) kind: Kind,
    /// Value when nothing is said.
    pub(crate) default: &'static str,
    /// What it does, with unit and range.
    pub(crate) doc: &'static str,
}

const fn setting(
    key: &'static str,
    variables: &'static [&'static str],
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Setting {
    Setting { key, variables, kind, default, doc }
}

/// Every setting.
pub(crate) const SETTINGS: &[Setting] = &[
    setting(
        "server.bind",
        &["BIND", "UVICORN_HOST"],
        Kind::Text,
        "127.0.0.1",
        "Address to listen on. Anything but loopback needs TLS.",
    ),
    setting(
        "server.port",
        &["PORT", "UVICORN_PORT"],
        Kind::Integer,
        "8000",
        "Port, 0 to 65535; 0 takes a free one. 8080 for the orchestrator.",
    ),
    setting("server.title", &[], Kind::Text, "", "Title in documents; empty: the device file's own title."),
    setting("server.description", &[], Kind::Text, "", "Text below the title."),
    setting(
        "server.environment",
        &["ENVIRONMENT"],
        Kind::Text,
        "development",
        "development, or production: API documents are then for administrators only.",
    ),
    setting(
        "server.max_request_size",
        &["MAX_REQUEST_SIZE"],
        Kind::Integer,
        "10485760",
        "Largest request body in bytes, 1024 to 104857600.",
    ),
    setting(
        "server.public_url",
        &["PUBLIC_URL"],
        Kind::Text,
        "",
        "Address under which clients know this server, such as https://robot.lab.example: the issuer of its tokens. Its host is answered to. Empty: the listener's own.",
    ),
    setting(
        "server.allowed_hosts",
        &["ALLOWED_HOSTS"],
        Kind::List,
        "",
        "Host names to answer to, beside loopback names and the listening address; *.example.org is allowed.",
    ),
    setting(
        "server.cors_allow_origins",
        &["CORS_ALLOW_ORIGINS"],
        Kind::List,
        "",
        "Origins whose pages may call this server with credentials. * is refused.",
    ),
    setting(
        "server.trusted_proxies",
        &["TRUSTED_PROXIES"],
        Kind::List,
        "",
        "Addresses or networks (CIDR) whose forwarding header is believed.",
    ),
    setting(
        "server.forwarded_header",
        &["FORWARDED_HEADER"],
        Kind::Text,
        "x-forwarded-for",
        "Which header the trusted proxies write: x-forwarded-for (x-real-ip where there is none), forwarded (RFC 7239, with proto), x-real-ip. The others are ignored.",
    ),
    setting(
        "server.proxy_protocol_from",
        &["PROXY_PROTOCOL_FROM"],
        Kind::List,
        "",
        "Addresses or networks (CIDR) that begin each connection with the PROXY protocol, version 2. From them nothing else is taken, from others it is not read.",
    ),
    setting(
        "server.internal_listen",
        &["INTERNAL_LISTEN"],
        Kind::Text,
        "",
        "Address and port, such as 127.0.0.1:9100, where /health/live, /health/ready and /metrics are served over plain HTTP; /metrics is there only then. Off loopback it wants METRICS_TOKEN.",
    ),
    setting(
        "server.force_https",
        &["FORCE_HTTPS"],
        Kind::Flag,
        "false",
        "Redirects GET and HEAD over plain HTTP, refuses everything else.",
    ),
    setting(
        "server.hsts",
        &["HSTS"],
        Kind::Text,
        "secure",
        "When Strict-Transport-Security is sent: secure, always, never.",
    ),
    setting(
        "server.compat_headers",
        &["COMPAT_HEADERS"],
        Kind::Flag,
        "false",
        "Sends the earlier system's X-XSS-Protection.",
    ),
    setting(
        "server.error_format",
        &["ERROR_FORMAT"],
        Kind::Text,
        "problem",
        "problem, or legacy: 422 bodies as a list.",
    ),
    setting(
        "server.security_contact",
        &["SECURITY_CONTACT"],
        Kind::List,
        "",
        "Where to report weaknesses, as URIs such as mailto:security@example.org or https://example.org/report; shown in /.well-known/security.txt.",
    ),
    setting(
        "server.security_policy",
        &["SECURITY_POLICY"],
        Kind::Text,
        "",
        "https address of the policy for those who report.",
    ),
    setting(
        "tls.mode",
        &[],
        Kind::Text,
        "auto",
        "auto: certificate files if given, else plain HTTP on loopback; internal: a certificate from this installation's own authority; acme: one that an authority issues by ACME.",
    ),
    setting(
        "tls.acme_directory",
        &["ACME_DIRECTORY"],
        Kind::Text,
        "https://acme-v02.api.letsencrypt.org/directory",
        "With tls.mode acme: https address of the authority's directory.",
    ),
    setting(
        "tls.acme_agree_terms",
        &["ACME_AGREE_TERMS"],
        Kind::Flag,
        "false",
        "You have read the authority's terms of service and agree. Nothing is ordered without it.",
    ),
    setting(
        "tls.acme_names",
        &["ACME_NAMES"],
        Kind::List,
        "",
        "Names in the certificate, at most 100. Empty: the host names in ALLOWED_HOSTS, without addresses, wildcards and localhost.",
    ),
    setting(
        "tls.acme_challenge",
        &["ACME_CHALLENGE"],
        Kind::Text,
        "tls-alpn-01",
        "How the names are proved: tls-alpn-01 (this server answers on port 443 of each) or http-01 (on port 80).",
    ),
    setting(
        "tls.acme_http_listen",
        &["ACME_HTTP_LISTEN"],
        Kind::Text,
        "0.0.0.0:80",
        "With http-01: address and port that answer the authority over plain HTTP and send everybody else to HTTPS.",
    ),
    setting(
        "tls.acme_contact",
        &["ACME_CONTACT"],
        Kind::List,
        "",
        "Where the authority can reach you, as URIs such as mailto:lab@example.org. Empty: nowhere.",
    ),
    setting(
        "tls.acme_ca_file",
        &["ACME_CA_FILE"],
        Kind::Text,
        "",
        "PEM file with the authority of the directory's own certificate. Empty: those that this machine trusts.",
    ),
    setting(
        "tls.acme_eab_id",
        &["ACME_EAB_ID"],
        Kind::Text,
        "",
        "Id of an account that you have at the authority already, where it asks for one (external account binding).",
    ),
    setting("tls.acme_eab_key", &["ACME_EAB_KEY"], Kind::Secret, "", "Its key, base64url."),
    setting("tls.cert_file", &["TLS_CERT_FILE"], Kind::Text, "", "Certificate chain in PEM form."),
    setting("tls.key_file", &["TLS_KEY_FILE"], Kind::Text, "", "Private key in PEM form."),
    setting(
        "tls.client_ca_file",
        &["TLS_CLIENT_CA_FILE"],
        Kind::Text,
        "",
        "Authorities of client certificates, PEM. Empty: none are asked for.",
    ),
    setting(
        "tls.client_crl_file",
        &["TLS_CLIENT_CRL_FILE"],
        Kind::Text,
        "",
        "Revocation lists of those authorities, PEM, one for each. Empty: no client certificate is ever revoked.",
    ),
    setting(
        "tls.client_auth",
        &["TLS_CLIENT_AUTH"],
        Kind::Text,
        "required",
        "With tls.client_ca_file: required, or optional: whoever shows no certificate is served too.",
    ),
    setting("tls.min_version", &[], Kind::Text, "1.3", "1.3, or 1.2 for old clients."),
    setting("limits.enabled", &["RATE_LIMIT_ENABLED"], Kind::Flag, "true", "Rate limits."),
    setting(
        "limits.requests_per_minute",
        &["MAX_REQUESTS_PER_MINUTE"],
        Kind::Integer,
        "60",
        "For each address and each principal, 1 to 10000000.",
    ),
    setting(
        "limits.requests_per_hour",
        &["MAX_REQUESTS_PER_HOUR"],
        Kind::Integer,
        "1000",
        "For each address and each principal, 1 to 100000000.",
    ),
    setting(
        "screening.patterns",
        &["BLOCK_SUSPICIOUS_PATTERNS"],
        Kind::Text,
        "true",
        "true: requests that look like an attack are refused; false or observe: they are only recorded; off: nobody looks.",
    ),
    setting(
        "screening.text",
        &["BLOCK_SUSPICIOUS_TEXT"],
        Kind::Flag,
        "false",
        "Also refuses reasons and descriptions that hold live markup or control characters.",
    ),
    setting(
        "screening.ban_allow",
        &["BAN_ALLOW"],
        Kind::List,
        "",
        "Addresses or networks (CIDR) that are never banned. Trusted proxies never are.",
    ),
    setting(
        "identity.jwt_secret_key",
        &["JWT_SECRET_KEY"],
        Kind::Secret,
        "",
        "Signs tokens with HS256; at least 32 bytes. Empty: an EdDSA key is made and kept.",
    ),
    setting(
        "identity.jwt_secret_key_previous",
        &["JWT_SECRET_KEY_PREVIOUS"],
        Kind::Secret,
        "",
        "Still verifies tokens, never signs.",
    ),
    setting(
        "identity.access_token_expire_hours",
        &["ACCESS_TOKEN_EXPIRE_HOURS"],
        Kind::Integer,
        "1",
        "Lifetime of a person's access token in hours, 1 to 24.",
    ),
    setting(
        "identity.access_token_expire_minutes",
        &["JWT_ACCESS_TOKEN_EXPIRE_MINUTES"],
        Kind::Integer,
        "60",
        "Lifetime of an agent's access token in minutes, 1 to 1440.",
    ),
    setting(
        "identity.refresh_token_expire_days",
        &["JWT_REFRESH_TOKEN_EXPIRE_DAYS"],
        Kind::Integer,
        "30",
        "Lifetime of a refresh token in days, 1 to 365; each use begins it anew.",
    ),
    setting(
        "identity.scope_mode",
        &["SCOPE_MODE"],
        Kind::Text,
        "strict",
        "strict: scopes are enforced; owner: an agent may act on what is its own without them, for migrations.",
    ),
    setting(
        "identity.bootstrap_admin_secret",
        &["BOOTSTRAP_ADMIN_SECRET"],
        Kind::Secret,
        "",
        "Password of the user admin and secret of the agent system at the first start; empty: a password is made and shown once, the agent has none.",
    ),
    setting(
        "backup.key",
        &["BACKUP_KEY"],
        Kind::Text,
        "",
        "Public key that `interlock backup create` seals backups for, as `interlock backup key` prints it. The private key stays elsewhere.",
    ),
    setting(
        "audit.retention_days",
        &["AUDIT_RETENTION_DAYS"],
        Kind::Integer,
        "90",
        "Audit entries older than so many days are deleted, 1 to 36500; 0 keeps them for ever. Their hashes stay, so that the rest can be verified.",
    ),
    setting(
        "audit.legal_hold",
        &["AUDIT_LEGAL_HOLD"],
        Kind::Flag,
        "false",
        "While this is set no audit entry is deleted, whatever its age.",
    ),
    setting(
        "audit.anchor_file",
        &["AUDIT_ANCHOR_FILE"],
        Kind::Text,
        "",
        "File to which each minute's signed checkpoint of the audit log is appended; best on another machine. `interlock-verify --noted` reads it.",
    ),
    setting(
        "ldap.url",
        &["LDAP_URL"],
        Kind::Text,
        "",
        "Directory to sign people in against: ldaps://host, or ldap://host with StartTLS. Empty: none.",
    ),
    setting("ldap.kind", &["LDAP_KIND"], Kind::Text, "ldap", "ldap, or ad for Active Directory."),
    setting(
        "ldap.ca_file",
        &["LDAP_CA_FILE"],
        Kind::Text,
        "",
        "Authorities to trust, PEM; empty: this machine's.",
    ),
    setting("ldap.bind_dn", &["LDAP_BIND_DN"], Kind::Text, "", "Account that searches; empty: anonymous."),
    setting("ldap.bind_password", &["LDAP_BIND_PASSWORD"], Kind::Secret, "", "Its password."),
    setting("ldap.user_base", &["LDAP_USER_BASE"], Kind::Text, "", "Below which people are searched."),
    setting(
        "ldap.user_filter",
        &["LDAP_USER_FILTER"],
        Kind::Text,
        "",
        "Finds a person, with {username}; empty: the usual one of the kind.",
    ),
    setting(
        "ldap.group_base",
        &["LDAP_GROUP_BASE"],
        Kind::Text,
        "",
        "Below which groups are searched; empty: memberOf.",
    ),
    setting(
        "ldap.group_filter",
        &["LDAP_GROUP_FILTER"],
        Kind::Text,
        "",
        "Finds groups, with {dn}; empty: the usual one.",
    ),
    setting(
        "ldap.role_map",
        &["LDAP_ROLE_MAP"],
        Kind::Text,
        "",
        "Which group gives which role: cn=lab-ops,ou=groups,dc=example=operator;… People without a role are not let in.",
    ),
    setting(
        "oidc.issuer",
        &["OIDC_ISSUER"],
        Kind::Text,
        "",
        "OpenID provider to sign people in with, as it writes itself. Empty: none.",
    ),
    setting("oidc.client_id", &["OIDC_CLIENT_ID"], Kind::Text, "", "Our id there."),
    setting(
        "oidc.client_secret",
        &["OIDC_CLIENT_SECRET"],
        Kind::Secret,
        "",
        "Our secret there; empty: a public client.",
    ),
    setting(
        "oidc.redirect_uri",
        &["OIDC_REDIRECT_URI"],
        Kind::Text,
        "",
        "https://this-server/auth/oidc/callback, as registered there.",
    ),
    setting(
        "oidc.post_logout_redirect_uri",
        &["OIDC_POST_LOGOUT_REDIRECT_URI"],
        Kind::Text,
        "",
        "Where the provider sends a browser that has signed out, as registered there. Empty: it stays at the provider.",
    ),
    setting(
        "oidc.scopes",
        &["OIDC_SCOPES"],
        Kind::Text,
        "openid profile email",
        "What to ask for, with spaces between.",
    ),
    setting(
        "oidc.username_claim",
        &["OIDC_USERNAME_CLAIM"],
        Kind::Text,
        "preferred_username",
        "Claim with the sign-in name.",
    ),
    setting(
        "oidc.required_acr",
        &["OIDC_REQUIRED_ACR"],
        Kind::List,
        "",
        "How strongly people must have signed in there (acr), one of these; empty: however the provider likes.",
    ),
    setting("oidc.groups_claim", &["OIDC_GROUPS_CLAIM"], Kind::Text, "groups", "Claim with the groups."),
    setting(
        "oidc.role_map",
        &["OIDC_ROLE_MAP"],
        Kind::Text,
        "",
        "Which group gives which role: lab-ops=operator;… People without a role are not let in.",
    ),
    setting(
        "oidc.ca_file",
        &["OIDC_CA_FILE"],
        Kind::Text,
        "",
        "Authorities to trust, PEM; empty: this machine's.",
    ),
    setting(
        "workloads.file",
        &["WORKLOADS_FILE"],
        Kind::Text,
        "",
        "TOML file that says which tokens of clouds and build services stand for which agent. Empty: none.",
    ),
    setting(
        "identity.master_key",
        &["MASTER_KEY"],
        Kind::Secret,
        "",
        "Seals stored secrets such as those of authenticator apps: 32 bytes in base64 or hexadecimal, the same on servers that share a database. Empty: a key is made and kept in the state folder.",
    ),
    setting(
        "identity.master_key_previous",
        &["MASTER_KEY_PREVIOUS"],
        Kind::Secret,
        "",
        "Still opens what it has sealed, never seals: for the time in which MASTER_KEY is exchanged.",
    ),
    setting(
        "identity.require_step_up",
        &["REQUIRE_STEP_UP"],
        Kind::Flag,
        "true",
        "People who have a second factor must have shown it within 15 minutes for dangerous acts.",
    ),
    setting(
        "identity.require_mfa_for_admins",
        &["REQUIRE_MFA_FOR_ADMINS"],
        Kind::Flag,
        "false",
        "Administrators without a second factor are refused dangerous acts.",
    ),
    setting(
        "device.execute_queue_seconds",
        &["EXECUTE_QUEUE_SECONDS"],
        Kind::Integer,
        "10",
        "Longest wait for a busy device in seconds, 0 to 3600; then 409.",
    ),
    setting(
        "device.default_timeout_seconds",
        &[],
        Kind::Integer,
        "3600",
        "Deadline in seconds of an action that declares none, 1 to 604800.",
    ),
    setting(
        "database.url",
        &["DATABASE_URL"],
        Kind::Secret,
        "",
        "postgres://… ; empty: a SQLite file in the state folder.",
    ),
    setting(
        "redis.url",
        &["REDIS_URL"],
        Kind::Secret,
        "",
        "redis://[user:password@]host[:port][/db], rediss:// for TLS; database 0 where no number is given. Empty: limits count on this server alone, and changes by other servers are found by looking.",
    ),
    setting(
        "redis.ca_file",
        &["REDIS_CA_FILE"],
        Kind::Text,
        "",
        "Authorities to trust, PEM; empty: this machine's.",
    ),
    setting(
        "redis.insecure_plaintext",
        &["INSECURE_REDIS_PLAINTEXT"],
        Kind::Flag,
        "false",
        "Allows redis:// to another machine: the password and everything else cross the network in the clear.",
    ),
    setting(
        "redis.deadline_ms",
        &["REDIS_DEADLINE_MS"],
        Kind::Integer,
        "25",
        "Longest wait of a request for Redis in milliseconds, 1 to 1000; three misses in a row count as away.",
    ),
    setting(
        "limits.redis_down",
        &["RATE_LIMIT_REDIS_DOWN"],
        Kind::Text,
        "local",
        "While Redis is away: local (each server admits its share), deny, allow. Signing in always has its share.",
    ),
    setting(
        "metrics.token",
        &["METRICS_TOKEN"],
        Kind::Secret,
        "",
        "Lets a monitoring system read /metrics as a bearer token; at least 16 bytes.",
    ),
    setting("log.level", &["LOG_LEVEL"], Kind::Text, "info", "error, warning, info, debug."),
    setting(
        "tasks.default_timezone",
        &["DEFAULT_TIMEZONE"],
        Kind::Text,
        "UTC",
        "IANA time zone of tasks that name none.",
    ),
    setting(
        "tasks.tool_mode",
        &["TOOL_MODE"],
        Kind::Text,
        "real",
        "real: steps do what they say. simulate: they do nothing, and their results say so.",
    ),
    setting(
        "tools.http_hosts",
        &["HTTP_TOOL_HOSTS"],
        Kind::List,
        "",
        "Hosts that http.request may reach, none at first: example.org, *.example.org, example.org:8443, http://example.org for plain HTTP, * for any over HTTPS.",
    ),
    setting(
        "tools.http_networks",
        &["HTTP_TOOL_NETWORKS"],
        Kind::List,
        "",
        "Inner networks that the hosts may be in, such as 10.0.5.0/24. Public addresses need no entry.",
    ),
    setting(
        "tools.http_ca_file",
        &["HTTP_TOOL_CA_FILE"],
        Kind::Text,
        "",
        "Certificate authorities for http.request beside those of this machine, in PEM form.",
    ),
    setting(
        "tools.rates",
        &["TOOL_RATES"],
        Kind::List,
        "",
        "Calls a minute, for each server: http.request=120, mcp.search.*=10. The first that fits counts.",
    ),
    setting(
        "tools.file",
        &["TOOLS_FILE"],
        Kind::Text,
        "",
        "Devices and MCP servers that tasks may use, in TOML (docs/reference/pipelines.md).",
    ),
    setting(
        "tasks.retention_days",
        &["RUN_RETENTION_DAYS"],
        Kind::Integer,
        "90",
        "How long runs that are over, events and answered questions are kept, in days, 1 to 3650.",
    ),
    setting(
        "worker.concurrency",
        &["WORKER_CONCURRENCY"],
        Kind::Integer,
        "32",
        "Runs that this server carries out at once, 0 to 1000; 0: none, others do.",
    ),
    setting(
        "worker.lease_seconds",
        &["WORKER_LEASE_SECONDS"],
        Kind::Text,
        "60",
        "A worker that has not been heard of for this long is dead and others take its runs, in seconds, 1 to 3600. The same on all servers of one database.",
    ),
    setting(
        "worker.poll_interval",
        &["WORKER_POLL_INTERVAL"],
        Kind::Text,
        "0.5",
        "How often the queue is looked at when nobody tells that something changed, in seconds, 0.01 to 60.",
    ),
    setting(
        "worker.backoff_max_delay",
        &["WORKER_BACKOFF_MAX_DELAY"],
        Kind::Text,
        "60",
        "Longest wait before a run is tried again, in seconds, 1 to 60.",
    ),
    setting(
        "worker.drain_seconds",
        &["WORKER_DRAIN_SECONDS"],
        Kind::Text,
        "10",
        "How long runs may go on when the server ends, in seconds, 0 to 3600; others go on with the rest.",
    ),
    setting(
        "scheduler.misfire_grace_time",
        &["SCHEDULER_MISFIRE_GRACE_TIME"],
        Kind::Text,
        "30",
        "A due time that is older than this was missed, and the task's misfire_policy says what becomes of it, in seconds, 0 to 86400.",
    ),
    setting(
        "log.format",
        &[],
        Kind::Text,
        "json",
        "json: one object a line; text: time - name - level - message.",
    ),
];

/// The setting of this key.
pub(crate) fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The setting that this variable sets.
pub(crate) fn by_variable(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.variables.contains(&name))
}

/// Variables of the wire contract whose function does not exist yet, and that function.
const NOT_YET: &[(&str, &str)] = &[("AUDIT_RETENTION_DAYS", "audit retention (everything is kept)")];

/// What a variable would do that is not there yet.
pub(crate) fn not_yet(name: &str) -> Option<&'static str> {
    NOT_YET.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
}

/// Every variable.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().flat_map(|setting| setting.variables.iter().copied())
}

//! The security log: events under names that operators search for.
//!
//! One line a security event, target `security`; the subscriber in `cli` writes it as JSON. Never holds secrets.

use serde_json::Value;

use crate::auth::Origin;

/// The closed list of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody signed in.
    AuthenticationSucceeded,
    /// Somebody could not prove who they are.
    AuthenticationFailed,
    /// Guessing is being delayed.
    AccountLocked,
    /// A token was issued.
    TokenIssued,
    /// A token was revoked.
    TokenRevoked,
    /// A refresh token was used twice: one of the two was a thief.
    TokenReuseDetected,
    /// An agent that was silent for long is active again.
    DormantAgentActive,
    /// An agent uses a scope that it has not used for long.
    ScopeUsageUnusual,
    /// Somebody signed in unlike before: from elsewhere, with something else, after failures or a long time.
    SignInUnusual,
    /// How somebody proves who they are was changed.
    CredentialChanged,
    /// A credential ends soon.
    CredentialExpiring,
    /// The account for emergencies was used.
    BreakGlassUsed,
    /// A client certificate was not taken, or was missing where one is required.
    CertificateRefused,
    /// An authenticated caller lacks the right.
    AuthorizationDenied,
    /// A limit was passed.
    RateLimitExceeded,
    /// A request was refused for its content.
    RequestBlocked,
    /// A text that looks like an attack was let through.
    PatternObserved,
    /// An address was blocked.
    IpBlocked,
    /// A setting weakens security.
    ConfigInsecure,
    /// The audit trail cannot be written.
    AuditFailed,
    /// The audit trail is not what was signed before.
    AuditTampered,
    /// The emergency stop was engaged or released.
    EmergencyStop,
    /// What servers share cannot be reached: limits hold on each server alone.
    SharedStateLost,
    /// What servers share can be reached again.
    SharedStateBack,
}

impl Event {
    /// All events.
    pub const ALL: [Self; 24] = [
        Self::SignInUnusual,
        Self::CredentialChanged,
        Self::CredentialExpiring,
        Self::TokenReuseDetected,
        Self::DormantAgentActive,
        Self::ScopeUsageUnusual,
        Self::BreakGlassUsed,
        Self::AuthenticationSucceeded,
        Self::AuthenticationFailed,
        Self::AccountLocked,
        Self::CertificateRefused,
        Self::TokenIssued,
        Self::TokenRevoked,
        Self::AuthorizationDenied,
        Self::RateLimitExceeded,
        Self::RequestBlocked,
        Self::PatternObserved,
        Self::IpBlocked,
        Self::ConfigInsecure,
        Self::AuditFailed,
        Self::AuditTampered,
        Self::EmergencyStop,
        Self::SharedStateLost,
        Self::SharedStateBack,
    ];

    /// Name in log and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuthenticationSucceeded => "authentication_succeeded",
            Self::AuthenticationFailed => "authentication_failed",
            Self::AccountLocked => "account_locked",
            Self::CertificateRefused => "certificate_refused",
            Self::TokenIssued => "token_issued",
            Self::TokenRevoked => "token_revoked",
            Self::TokenReuseDetected => "token_reuse_detected",
            Self::DormantAgentActive => "dormant_agent_active",
            Self::ScopeUsageUnusual => "scope_usage_unusual",
            Self::SignInUnusual => "sign_in_unusual",
            Self::CredentialChanged => "credential_changed",
            Self::CredentialExpiring => "credential_expiring",
            Self::BreakGlassUsed => "break_glass_used",
            Self::AuthorizationDenied => "authorization_denied",
            Self::RateLimitExceeded => "rate_limit_exceeded",
            Self::RequestBlocked => "request_blocked",
            Self::PatternObserved => "pattern_observed",
            Self::IpBlocked => "ip_blocked",
            Self::ConfigInsecure => "config_insecure",
            Self::AuditFailed => "audit_failed",
            Self::AuditTampered => "audit_tampered",
            Self::EmergencyStop => "emergency_stop",
            Self::SharedStateLost => "shared_state_lost",
            Self::SharedStateBack => "shared_state_back",
        }
    }

    /// `low medium high critical`.
    pub const fn severity(self) -> &'static str {
        match self {
            Self::AuthenticationSucceeded
            | Self::TokenIssued
            | Self::TokenRevoked
            | Self::SharedStateBack
            | Self::PatternObserved => "low",
            Self::AuthenticationFailed
            | Self::CertificateRefused
            | Self::ScopeUsageUnusual
            | Self::SignInUnusual
            | Self::CredentialChanged
            | Self::CredentialExpiring
            | Self::AuthorizationDenied
            | Self::RateLimitExceeded => "medium",
            Self::AccountLocked
            | Self::TokenReuseDetected
            | Self::DormantAgentActive
            | Self::RequestBlocked
            | Self::IpBlocked
            | Self::ConfigInsecure
            | Self::SharedStateLost
            | Self::EmergencyStop => "high",
            Self::AuditFailed | Self::AuditTampered | Self::BreakGlassUsed => "critical",
        }
    }
}

/// Logs and counts an event.
#[expect(clippy::needless_pass_by_value, reason = "every caller makes the details for this call")]
pub fn event(event: Event, principal: Option<&str>, origin: Option<&Origin>, details: Value) {
    metrics::counter!("orchestrator_security_events_total", "event_type" => event.name(), "severity" => event.severity())
        .increment(1);
    let client_ip = origin.map(|o| o.client_ip.to_string());
    let user_agent = origin.map(|o| o.user_agent.as_str());
    let request_id = origin.map(|o| o.request_id.as_str());
    match event.severity() {
        "low" => {
            tracing::info!(target: "security", event_type = event.name(), agent_id = principal, client_ip, user_agent, request_id, %details);
        }
        "critical" => {
            tracing::error!(target: "security", event_type = event.name(), agent_id = principal, client_ip, user_agent, request_id, %details);
        }
        _ => {
            tracing::warn!(target: "security", event_type = event.name(), agent_id = principal, client_ip, user_agent, request_id, %details);
        }
    }
}

/// Counts an attempt to authenticate.
pub fn authentication(method: &'static str, result: &'static str) {
    metrics::counter!("orchestrator_authentication_attempts_total", "method" => method, "result" => result)
        .increment(1);
}

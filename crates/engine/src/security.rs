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
    /// An agent was given `admin`, which is everything but motion.
    AdminScopeGranted,
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
    /// A browser has kept a page of ours from doing what its policy forbids.
    PagePolicyViolated,
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
    pub const ALL: [Self; 26] = [
        Self::SignInUnusual,
        Self::CredentialChanged,
        Self::CredentialExpiring,
        Self::TokenReuseDetected,
        Self::DormantAgentActive,
        Self::ScopeUsageUnusual,
        Self::BreakGlassUsed,
        Self::AdminScopeGranted,
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
        Self::PagePolicyViolated,
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
            Self::AdminScopeGranted => "admin_scope_granted",
            Self::BreakGlassUsed => "break_glass_used",
            Self::AuthorizationDenied => "authorization_denied",
            Self::RateLimitExceeded => "rate_limit_exceeded",
            Self::RequestBlocked => "request_blocked",
            Self::PatternObserved => "pattern_observed",
            Self::PagePolicyViolated => "page_policy_violated",
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
            | Self::PagePolicyViolated
            | Self::RateLimitExceeded => "medium",
            Self::AccountLocked
            | Self::TokenReuseDetected
            | Self::DormantAgentActive
            | Self::AdminScopeGranted
            | Self::RequestBlocked
            | Self::IpBlocked
            | Self::ConfigInsecure
            | Self::SharedStateLost
            | Self::EmergencyStop => "high",
            Self::AuditFailed | Self::AuditTampered | Self::BreakGlassUsed => "critical",
        }
    }
}

/// The closed list of `details.reason` in [`Event::AuthenticationFailed`] and [`Event::AccountLocked`].
pub const FAILURES: [&str; 35] = [
    "certificate_encoding",
    "certificate_malformed",
    "certificate_name_too_long",
    "certificate_names_nobody",
    "certificate_names_several",
    "certificate_of_a_machine",
    "certificate_of_no_person",
    "certificate_purpose",
    "credentials_in_query",
    "credentials_in_the_clear",
    "disabled",
    "expired_token",
    "grant_not_allowed",
    "invalid_credentials",
    "invalid_token",
    "missing_token",
    "name_not_allowed",
    "name_taken",
    "no_account",
    "no_certificate",
    "no_role",
    "no_such_agent",
    "no_such_handoff",
    "no_such_sign_in",
    "not_renewed",
    "other_certificate",
    "passkey_refused",
    "refused_elsewhere",
    "replayed_assertion",
    "revoked_token",
    "second_factor_missing",
    "second_factor_wrong",
    "throttled",
    "unknown_or_disabled_principal",
    "workload_refused",
];

/// Puts a word of the list in the place of one that a directory or provider has chosen, which stays beside it.
fn close(details: &mut Value) {
    let Some(reason) = details.get_mut("reason") else { return };
    if !reason.as_str().is_some_and(|reason| FAILURES.contains(&reason)) {
        let theirs = std::mem::replace(reason, Value::from("refused_elsewhere"));
        details["told"] = theirs;
    }
}

/// Logs and counts an event.
pub fn event(event: Event, principal: Option<&str>, origin: Option<&Origin>, mut details: Value) {
    if matches!(event, Event::AuthenticationFailed | Event::AccountLocked) {
        close(&mut details);
    }
    count(event);
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

/// Counts an event without logging it: one of many of a kind, of which the log has a sample.
pub fn count(event: Event) {
    metrics::counter!("orchestrator_security_events_total", "event_type" => event.name(), "severity" => event.severity())
        .increment(1);
}

/// Counts an attempt to authenticate.
pub fn authentication(method: &'static str, result: &'static str) {
    metrics::counter!("orchestrator_authentication_attempts_total", "method" => method, "result" => result)
        .increment(1);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    const PUBLISHED: &str = include_str!("../../../docs/reference/security-log.md");

    /// The first words in backquotes of the lines of a table below a heading.
    fn table(heading: &str) -> Vec<Vec<&'static str>> {
        let after = PUBLISHED.split_once(heading).expect("the heading is there").1;
        let part = after.split("\n## ").next().unwrap_or_default();
        part.lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect()
    }

    #[test]
    fn what_is_published_is_what_there_is() {
        let events: BTreeSet<_> = Event::ALL.iter().map(|event| (event.name(), event.severity())).collect();
        assert_eq!(events.len(), Event::ALL.len(), "a name is there twice");
        let told: BTreeSet<_> = table("## Events").iter().map(|row| (row[0], row[1])).collect();
        assert_eq!(told, events);

        let reasons: BTreeSet<_> = FAILURES.into_iter().collect();
        let told: BTreeSet<_> = table("## Reasons").iter().map(|row| row[0]).collect();
        assert_eq!(told, reasons);
    }

    #[test]
    fn a_reason_is_a_word_of_the_list() {
        let mut own = json!({ "reason": "invalid_credentials", "method": "login" });
        let mut theirs = json!({ "reason": "the nonce is another one" });

        close(&mut own);
        close(&mut theirs);

        assert_eq!(own, json!({ "reason": "invalid_credentials", "method": "login" }));
        assert_eq!(theirs, json!({ "reason": "refused_elsewhere", "told": "the nonce is another one" }));
    }
}

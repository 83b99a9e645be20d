//! The metrics of this profile, under the names that alert rules use, described and present from the start.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use interlock_model::policy::PrincipalKind;
use interlock_model::run::RunState;
use interlock_model::screen::Family;
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::auth::TokenKind;
use crate::security::Event;

/// Agents that have a label of their own; the rest share `other`.
const NAMED_AGENTS: usize = 50;
static NAMED: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// The label of a principal: people share one, agents have one each as long as there is room.
pub(crate) fn label(kind: PrincipalKind, principal: &str) -> String {
    match kind {
        PrincipalKind::User => "user".to_owned(),
        PrincipalKind::Agent => {
            let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
            let named = named.get_or_insert_default();
            if named.contains(principal) || named.len() < NAMED_AGENTS && named.insert(principal.to_owned()) {
                principal.to_owned()
            } else {
                "other".to_owned()
            }
        }
    }
}

/// Counts a token.
pub(crate) fn token_issued(kind: PrincipalKind, principal: &str, token: TokenKind) {
    let label = label(kind, principal);
    counter!("orchestrator_jwt_tokens_issued_total", "agent_id" => label, "token_type" => token.name())
        .increment(1);
}

/// What is counted of one action. Kept, because to find a series by its labels costs more than to count.
pub(crate) struct ActionMetrics {
    ends: Vec<(RunState, Counter)>,
    duration: Histogram,
}

impl ActionMetrics {
    /// Those of an action; what was never counted is zero.
    pub(crate) fn of(action: &str) -> Self {
        let ends = RunState::ALL.into_iter().filter(|state| state.is_final()).map(|state| {
            let ends =
                counter!("device_executions_total", "task" => action.to_owned(), "status" => state.as_str());
            ends.absolute(0);
            (state, ends)
        });
        let duration = histogram!("device_execution_duration_seconds", "task" => action.to_owned());
        Self { ends: ends.collect(), duration }
    }

    /// Counts the end of a run.
    pub(crate) fn ended(&self, state: RunState, duration_ms: Option<f64>) {
        if let Some((_, ends)) = self.ends.iter().find(|(known, _)| *known == state) {
            ends.increment(1);
        }
        if let Some(duration_ms) = duration_ms {
            self.duration.record(duration_ms / 1000.0);
        }
    }
}

fn describe_signing_in() {
    describe_counter!("orchestrator_authentication_attempts_total", "Attempts to authenticate.");
    for method in ["login", "token", "credentials", "refresh"] {
        for result in ["success", "failed", "error"] {
            counter!("orchestrator_authentication_attempts_total", "method" => method, "result" => result)
                .absolute(0);
        }
    }
    describe_counter!("orchestrator_jwt_tokens_issued_total", "Tokens issued.");
    for token_type in ["access", "refresh"] {
        counter!("orchestrator_jwt_tokens_issued_total", "agent_id" => "user", "token_type" => token_type)
            .absolute(0);
    }
    describe_counter!("orchestrator_jwt_tokens_revoked_total", "Tokens revoked.");
    for reason in ["manual", "rotated", "reuse", "credentials", "agent_disabled"] {
        counter!("orchestrator_jwt_tokens_revoked_total", "reason" => reason).absolute(0);
    }
}

/// Describes every series and sets every bounded label combination to zero, so that alert rules find their series.
pub fn describe() {
    describe_counter!("orchestrator_security_events_total", "Security events by type and severity.");
    for event in Event::ALL {
        counter!("orchestrator_security_events_total", "event_type" => event.name(), "severity" => event.severity()).absolute(0);
    }
    describe_signing_in();
    describe_counter!("orchestrator_rate_limit_violations_total", "Requests over a limit.");
    for endpoint in ["/health", "/auth/login", "/agents/auth/token", "unmatched"] {
        for limit in ["minute", "hour"] {
            counter!("orchestrator_rate_limit_violations_total", "endpoint" => endpoint, "limit" => limit)
                .absolute(0);
        }
    }
    describe_counter!("orchestrator_blocked_requests_total", "Requests refused by the perimeter.");
    for reason in [
        "rate_limited",
        "client_blocked",
        "framing",
        "host",
        "https_required",
        "too_large",
        "overloaded",
        "proxy_protocol",
    ] {
        counter!("orchestrator_blocked_requests_total", "reason" => reason).absolute(0);
    }
    describe_counter!("interlock_spans_dropped_total", "Spans of traces that reached no collector.");
    counter!("interlock_spans_dropped_total").absolute(0);
    describe_counter!("interlock_tls_reloads_total", "Certificates and lists read again.");
    describe_counter!("interlock_acme_orders_total", "Orders of a certificate by ACME.");
    for result in ["done", "failed"] {
        counter!("interlock_tls_reloads_total", "result" => result).absolute(0);
        counter!("interlock_acme_orders_total", "result" => result).absolute(0);
    }
    describe_gauge!(
        "interlock_tls_expires_timestamp_seconds",
        Unit::Seconds,
        "When a certificate or revocation list in force ends, in seconds since 1970."
    );
    describe_counter!(
        "interlock_observed_patterns_total",
        "Texts that look like an attack and were let through."
    );
    for family in Family::ALL {
        counter!("orchestrator_blocked_requests_total", "reason" => family.name()).absolute(0);
        for place in ["path", "query", "header", "id", "label", "free_text"] {
            counter!("interlock_observed_patterns_total", "family" => family.name(), "place" => place)
                .absolute(0);
        }
    }
    counter!("interlock_unscreened_bytes_total").absolute(0);
    metrics::describe_gauge!(
        "interlock_screening_rules_info",
        "1 for the versions of the rules in force: the program's and those of THREAT_RULES_FILE."
    );
    metrics::describe_gauge!("interlock_added_rules", "Rules and names of THREAT_RULES_FILE in force.");
    gauge!("interlock_added_rules").set(0.0);
    describe_counter!("interlock_added_rules_reloads_total", "Changed files of added rules, by result.");
    for result in ["done", "failed"] {
        counter!("interlock_added_rules_reloads_total", "result" => result).absolute(0);
    }
    gauge!("interlock_bans_in_force").set(0.0);
    metrics::describe_gauge!(
        "interlock_redis_up",
        "1 while the Redis of REDIS_URL answers; 0 while it does not, or none is set."
    );
    gauge!("interlock_redis_up").set(0.0);
    metrics::describe_gauge!(
        "interlock_postgres_news_up",
        "1 while this server hears at once of changes by others through PostgreSQL; 0 while it must look, or has a file."
    );
    gauge!("interlock_postgres_news_up").set(0.0);
    describe_counter!("orchestrator_http_requests_total", "Requests answered.");
    describe_histogram!(
        "orchestrator_http_request_duration_seconds",
        Unit::Seconds,
        "Time to answer a request."
    );
    describe_counter!("device_executions_total", "Executions of device actions by how they ended.");
    describe_histogram!("device_execution_duration_seconds", Unit::Seconds, "Time in a device action.");
    gauge!("device_emergency_stop_engaged").set(0.0);
    gauge!("device_needs_attention").set(0.0);
    describe_evidence();
}

/// The audit log and the backups.
fn describe_evidence() {
    counter!("audit_entries_dropped_total").absolute(0);
    gauge!("audit_failing").set(0.0);
    gauge!("audit_seal_failing").set(0.0);
    gauge!("audit_anchor_failing").set(0.0);
    for (name, text) in [
        (
            "interlock_backup_last_success_timestamp_seconds",
            "When the last backup was taken, in seconds since 1970; 0: never.",
        ),
        (
            "interlock_backup_last_drill_timestamp_seconds",
            "When a backup was last proven whole, in seconds since 1970; 0: never.",
        ),
    ] {
        describe_gauge!(name, Unit::Seconds, text);
        gauge!(name).set(0.0);
    }
}

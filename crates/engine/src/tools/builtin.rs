//! The tools that concern the run itself: waiting, asking a person, publishing an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::id::hexadecimal as hex;
use interlock_model::pipeline::{Effect, Known, Misuse};
use interlock_model::task::ApprovalState;
use interlock_model::text::{Form as _, Topic};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Call, Done, Failure, Tool, misuse, only};
use crate::pipeline::{PublishError, Question};

/// Longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_hours(30 * 24);
/// Up to here a sleep keeps its worker; a longer one gives it back.
const SHORT_SLEEP: Duration = Duration::from_secs(2);
/// How long a question stands, if the step does not say: at least, by itself, at most.
const EXPIRES: (u64, u64, u64) = (60, 24 * 3600, 30 * 24 * 3600);
const LONGEST_REASON: usize = 2_000;

pub(super) fn all() -> BTreeMap<String, Arc<dyn Tool>> {
    let all: [(&str, Arc<dyn Tool>); 3] = [
        ("orchestrator.sleep", Arc::new(Sleep)),
        ("orchestrator.request_approval", Arc::new(RequestApproval)),
        ("event.publish", Arc::new(Publish)),
    ];
    all.into_iter().map(|(address, tool)| (address.to_owned(), tool)).collect()
}

/// Checks a member that is a text, if it is known already.
fn text(known: &Known<'_>, name: &str, longest: usize) -> Result<(), Misuse> {
    match known.fixed.get(name) {
        None if known.has(name) => Ok(()),
        None => misuse_missing(name),
        Some(Value::String(text)) if (1..=longest).contains(&text.chars().count()) => Ok(()),
        Some(_) => misuse(name, format!("{name} is a text of 1 to {longest} characters")),
    }
}

fn misuse_missing(name: &str) -> Result<(), Misuse> {
    Err(Misuse::Input(None, format!("{name} is missing")))
}

struct Sleep;

impl Sleep {
    fn seconds(value: &Value) -> Option<Duration> {
        // A template writes text.
        let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
        (0.0..=LONGEST_SLEEP.as_secs_f64()).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
    }
}

#[async_trait]
impl Tool for Sleep {
    fn description(&self) -> String {
        "Waits for a number of seconds; longer waits hold no worker".to_owned()
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        only(&known, &["seconds"])?;
        match known.fixed.get("seconds") {
            None if known.has("seconds") => {}
            None => misuse_missing("seconds")?,
            Some(seconds) if Self::seconds(seconds).is_some() => {}
            Some(_) => {
                let most = LONGEST_SLEEP.as_secs();
                return misuse("seconds", format!("seconds is a number from 0 to {most}"));
            }
        }
        Ok(Effect::None)
    }

    fn needs(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let asked = call.input.get("seconds").and_then(Self::seconds).unwrap_or_default();
        let now = call.clock.now();
        let until = call.until.unwrap_or_else(|| now.plus(asked));
        let left = until.since(now);
        if left > SHORT_SLEEP {
            return Ok(Done::Wait(until));
        }
        tokio::select! {
            () = tokio::time::sleep(left) => Ok(Done::Value(json!({ "seconds": asked.as_secs_f64() }))),
            () = call.cancel.cancelled() => Err(Failure::Cancelled),
        }
    }
}

/// Asks a person. The answer is good for this step of this run, for exactly what it was given and for this pipeline; who may
/// answer is the host's to decide.
struct RequestApproval;

#[async_trait]
impl Tool for RequestApproval {
    fn description(&self) -> String {
        "Waits until a person has approved what follows; holds no worker".to_owned()
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        only(&known, &["reason", "parameters", "expires_in_seconds", "approvers"])?;
        text(&known, "reason", LONGEST_REASON)?;
        if let Some(expires) = known.fixed.get("expires_in_seconds")
            && !expires.as_u64().is_some_and(|seconds| (EXPIRES.0..=EXPIRES.2).contains(&seconds))
        {
            return misuse(
                "expires_in_seconds",
                format!("expires_in_seconds is a whole number from {} to {}", EXPIRES.0, EXPIRES.2),
            );
        }
        // Written out: whether one person is enough is not for data to say.
        match known.fixed.get("approvers") {
            None if known.has("approvers") => {
                return misuse("approvers", "approvers is 1 or 2, without a template".to_owned());
            }
            Some(approvers) if !matches!(approvers.as_u64(), Some(1 | 2)) => {
                return misuse("approvers", "approvers is 1 or 2".to_owned());
            }
            None | Some(_) => {}
        }
        Ok(Effect::None)
    }

    fn needs(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let bound = json!([call.lineage, call.step, hex(&call.pipeline), call.input]);
        let digest = hex(&Sha256::digest(bound.to_string()));
        let decision = call.host.decision(call.step, &digest).await.map_err(|_| Failure::Lost)?;
        let by = |by: &Option<String>| by.clone().unwrap_or_else(|| "somebody".to_owned());
        match decision {
            Some(decision) if matches!(decision.state, ApprovalState::Approved | ApprovalState::Used) => {
                let mut value = json!({
                    "approved": true, "approved_by": decision.by, "decided_at": decision.at, "note": decision.note,
                });
                if let Some(first) = decision.first {
                    value["first_approved_by"] = json!(first);
                }
                Ok(Done::Value(value))
            }
            Some(decision) if decision.state == ApprovalState::Denied => {
                Err(Failure::Refused(format!("{} said no", by(&decision.by))))
            }
            Some(decision) if decision.state == ApprovalState::Expired => {
                Err(Failure::Refused("nobody approved it in time".to_owned()))
            }
            Some(decision) if decision.state == ApprovalState::Withdrawn => {
                Err(Failure::Refused("the question was withdrawn".to_owned()))
            }
            _ => {
                let seconds =
                    call.input.get("expires_in_seconds").and_then(Value::as_u64).unwrap_or(EXPIRES.1);
                let reason = call.input.get("reason").and_then(Value::as_str).unwrap_or_default();
                Ok(Done::Ask(Question {
                    step: call.step,
                    digest,
                    reason: reason.to_owned(),
                    subject: json!({ "parameters": call.input.get("parameters"), "next_steps": (call.following)() }),
                    expires_at: call.clock.now().plus(Duration::from_secs(seconds)),
                    approvers: if call.input.get("approvers").and_then(Value::as_u64) == Some(2) {
                        2
                    } else {
                        1
                    },
                }))
            }
        }
    }
}

struct Publish;

#[async_trait]
impl Tool for Publish {
    fn description(&self) -> String {
        "Publishes an event, once however often the run is taken up again".to_owned()
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        only(&known, &["topic", "payload"])?;
        text(&known, "topic", Topic::RULE.longest)?;
        if known.fixed.get("payload").is_some_and(|payload| !payload.is_object()) {
            return misuse("payload", "payload is an object");
        }
        // The host remembers what this step has published.
        Ok(Effect::Idempotent)
    }

    fn needs(&self, _: &str) -> Vec<String> {
        vec!["events:publish".to_owned()]
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let topic = call.input.get("topic").and_then(Value::as_str).unwrap_or_default();
        let payload = call.input.get("payload").and_then(Value::as_object).cloned().unwrap_or_default();
        match call.host.publish(call.step, topic, payload).await {
            Ok(event) => Ok(Done::Value(json!({ "event_id": event, "topic": topic }))),
            Err(PublishError::Lost) => Err(Failure::Lost),
            Err(PublishError::Refused(why)) => Err(Failure::Refused(why)),
            Err(PublishError::Unavailable) => {
                Err(Failure::Unreached("the event could not be stored".to_owned()))
            }
        }
    }
}

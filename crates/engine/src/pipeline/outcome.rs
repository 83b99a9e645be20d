//! How a run is told: its output, its errors, its metrics.

use std::time::Duration;

use interlock_model::pipeline::{RunOutput, Step};
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use serde_json::json;

use super::{End, Ended, Kind, Stop, Walk};
use crate::tools::Failure;

/// Steps so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) executed: usize,
    pub(super) skipped: usize,
}

/// Classes of failed steps.
const CLASSES: [&str; 7] = ["refused", "unreached", "failed", "timed_out", "cancelled", "unknown", "lost"];

/// Describes what is counted of steps, from zero.
pub(crate) fn describe_steps(tools: &[String]) {
    describe_histogram!("orchestrator_step_duration_seconds", Unit::Seconds, "Time of a step.");
    describe_counter!("orchestrator_step_success_total", "Steps that succeeded.");
    describe_counter!("orchestrator_step_failure_total", "Steps that failed, by how.");
    for tool in tools {
        let _ = histogram!("orchestrator_step_duration_seconds", "tool_addr" => tool.clone());
        counter!("orchestrator_step_success_total", "tool_addr" => tool.clone()).absolute(0);
        for class in CLASSES {
            counter!("orchestrator_step_failure_total", "tool_addr" => tool.clone(), "error_type" => class)
                .absolute(0);
        }
    }
}

/// The metrics of one call. `tool` is an address that exists, so its values are bounded.
pub(super) fn step_ended(tool: &str, elapsed: Duration, failure: Option<&Failure>) {
    histogram!("orchestrator_step_duration_seconds", "tool_addr" => tool.to_owned())
        .record(elapsed.as_secs_f64());
    let class = match failure {
        None => {
            counter!("orchestrator_step_success_total", "tool_addr" => tool.to_owned()).increment(1);
            return;
        }
        Some(Failure::Refused(_)) => "refused",
        Some(Failure::Unreached(_)) => "unreached",
        Some(Failure::Failed { .. }) => "failed",
        Some(Failure::TimedOut(_)) => "timed_out",
        Some(Failure::Cancelled) => "cancelled",
        Some(Failure::Unknown(_)) => "unknown",
        Some(Failure::Lost) => "lost",
    };
    counter!("orchestrator_step_failure_total", "tool_addr" => tool.to_owned(), "error_type" => class)
        .increment(1);
}

/// `step 3 (weather, http.request)`.
fn named(step: &Step) -> String {
    let number = step.index + 1;
    match &step.id {
        Some(id) => format!("step {number} ({id}, {})", step.uses),
        None => format!("step {number} ({})", step.uses),
    }
}

impl Walk<'_> {
    pub(super) fn stopped(self, step: &Step, why: Stop) -> End {
        let (kind, message, retryable) = match why {
            Stop::Lost => return End::Lost,
            Stop::Later(at) => return End::Later { at },
            Stop::Ask(question) => return End::Waiting(*question),
            Stop::Bad(kind, message, retryable) => (kind, message, retryable),
        };
        counter!("orchestrator_pipeline_executions_total", "status" => "failed").increment(1);
        let output = self.output(Some((step, &message)));
        let ended =
            Ended { error: format!("{}: {message}", named(step)), step: step.index, retryable, output };
        match kind {
            Kind::Failed => End::Failed(ended),
            Kind::TimedOut => End::TimedOut(ended),
            Kind::Cancelled => End::Cancelled(ended),
            Kind::Uncertain => End::Uncertain(ended),
        }
    }

    /// The output of the run, which is over.
    pub(super) fn output(self, failure: Option<(&Step, &String)>) -> RunOutput {
        let took = self.ambient.clock.now().since(self.job.started_at);
        let (params, steps) = self.context.into_parts();
        RunOutput {
            title: self.job.title.clone(),
            params,
            steps,
            total: self.pipeline.steps().len(),
            executed: self.tally.executed,
            skipped: self.tally.skipped,
            micros: i64::try_from(took.as_micros()).unwrap_or(i64::MAX),
            failed_step: failure.map(|(step, message)| {
                json!({ "index": step.index, "id": step.id, "uses": step.uses, "error": message })
            }),
        }
    }
}

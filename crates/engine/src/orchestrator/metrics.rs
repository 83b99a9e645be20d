//! What an orchestrator counts, under the names that alert rules use, present from the start.

use interlock_model::policy::PrincipalKind;
use interlock_model::task::{FIRST_PRIORITY, LAST_PRIORITY, ScheduleKind, TaskRunState};
use metrics::{Unit, counter, describe_counter, describe_histogram, gauge, histogram};

use crate::metrics::label;

/// Counts a task.
pub(super) fn task_created(kind: &'static str, owner: &str) {
    let is_agent = owner.parse::<interlock_model::AgentId>().is_ok();
    let owner = label(if is_agent { PrincipalKind::Agent } else { PrincipalKind::User }, owner);
    counter!("orchestrator_tasks_created_total", "schedule_kind" => kind, "agent_id" => owner).increment(1);
}

/// Describes what an orchestrator counts, from zero. `tools` are the addresses that steps can use.
pub fn describe(tools: &[String]) {
    crate::pipeline::describe_steps(tools);
    describe_counter!(
        "orchestrator_external_tool_calls_total",
        "Calls of tools outside, by what they answered."
    );
    describe_histogram!(
        "orchestrator_external_tool_duration_seconds",
        Unit::Seconds,
        "Time of a call of a tool outside."
    );
    // `http.request` is always a tool; where it may go is another setting.
    counter!("orchestrator_external_tool_calls_total", "tool_address" => "http.request", "status_code" => "none")
        .absolute(0);
    let _ = histogram!("orchestrator_external_tool_duration_seconds", "tool_address" => "http.request");
    describe_counter!("orchestrator_tasks_created_total", "Tasks made.");
    describe_counter!("orchestrator_scheduler_jobs_created_total", "Runs made by due times.");
    for kind in ScheduleKind::ALL {
        counter!("orchestrator_tasks_created_total", "schedule_kind" => kind.as_str(), "agent_id" => "user")
            .absolute(0);
        counter!("orchestrator_scheduler_jobs_created_total", "schedule_kind" => kind.as_str()).absolute(0);
    }
    describe_counter!("orchestrator_runs_total", "Runs of tasks by how they ended.");
    for state in TaskRunState::ALL.iter().filter(|state| state.is_final()) {
        counter!("orchestrator_runs_total", "status" => state.as_str()).absolute(0);
    }
    describe_counter!("orchestrator_pipeline_executions_total", "Pipelines that began, and how they ended.");
    for status in ["started", "success", "failed"] {
        counter!("orchestrator_pipeline_executions_total", "status" => status).absolute(0);
    }
    describe_histogram!(
        "orchestrator_task_duration_seconds",
        Unit::Seconds,
        "Time from begin to end of a run."
    );
    describe_histogram!(
        "orchestrator_lease_duration_seconds",
        Unit::Seconds,
        "Time for which a worker held a run."
    );
    for success in ["true", "false"] {
        let _ = histogram!("orchestrator_task_duration_seconds", "success" => success);
    }
    let _ = histogram!("orchestrator_lease_duration_seconds");
    describe_counter!("orchestrator_scheduler_ticks_total", "Looks for due times.");
    for result in ["success", "error"] {
        counter!("orchestrator_scheduler_ticks_total", "result" => result).absolute(0);
    }
    metrics::describe_gauge!(
        "orchestrator_scheduler_lag_seconds",
        "How long the earliest due time has been waiting."
    );
    gauge!("orchestrator_scheduler_lag_seconds").set(0.0);
    metrics::describe_gauge!("orchestrator_due_work_queue_depth", "Runs that wait, by priority.");
    queue_depth(&[]);
    metrics::describe_gauge!(
        "orchestrator_active_workers",
        "Workers of all servers that share the database."
    );
    gauge!("orchestrator_active_workers", "state" => "alive").set(0.0);
    describe_counter!(
        "orchestrator_webhook_deliveries_total",
        "Attempts to tell agents outcomes, by how they went."
    );
    for result in ["delivered", "again", "failed"] {
        counter!("orchestrator_webhook_deliveries_total", "result" => result).absolute(0);
    }
    describe_counter!(
        "orchestrator_events_mirrored_total",
        "Events copied to a Redis Stream, and attempts that failed."
    );
    for result in ["copied", "failed"] {
        counter!("orchestrator_events_mirrored_total", "result" => result).absolute(0);
    }
    describe_counter!("orchestrator_worker_heartbeat_total", "Heartbeats of this server's worker.");
    counter!("orchestrator_worker_heartbeat_total").absolute(0);
}

/// Tells how many runs wait; priorities that are not named have none.
pub(super) fn queue_depth(depth: &[(u8, u64)]) {
    for priority in FIRST_PRIORITY..=LAST_PRIORITY {
        let waiting = depth.iter().find(|(of, _)| *of == priority).map_or(0, |(_, count)| *count);
        let waiting = f64::from(u32::try_from(waiting).unwrap_or(u32::MAX));
        gauge!("orchestrator_due_work_queue_depth", "priority" => priority.to_string()).set(waiting);
    }
}

//! The operations of tasks, runs and events.

use axum::http::Method;

use super::Entry;
use super::identity::Shape;

pub(super) const OPERATIONS: &[Entry] = &[
    ("GET", "/health", "health", "Service", "How each part of the server does", "", "Checkup"),
    (
        "POST",
        "/tasks",
        "create_task",
        "Tasks",
        "Make a task; it is scheduled at once. Idempotency-Key: the same key and body give the first answer again",
        "NewTask",
        "Task",
    ),
    ("GET", "/tasks", "list_tasks", "Tasks", "Tasks, newest first", "", "TaskPage"),
    ("GET", "/tasks/{task_id}", "show_task", "Tasks", "One task", "", "Task"),
    (
        "PUT",
        "/tasks/{task_id}",
        "update_task",
        "Tasks",
        "Change a task; a new schedule is in force at once",
        "TaskEdit",
        "Task",
    ),
    (
        "POST",
        "/tasks/{task_id}/run_now",
        "run_task",
        "Tasks",
        "Have a task run now. Idempotency-Key as for making one",
        "",
        "Operation",
    ),
    (
        "POST",
        "/tasks/{task_id}/snooze",
        "snooze_task",
        "Tasks",
        "Have what waits of a task wait longer; with nothing waiting, its next occurrence",
        "Snooze",
        "Operation",
    ),
    (
        "POST",
        "/tasks/{task_id}/skip",
        "skip_task",
        "Tasks",
        "Leave the next due time of a task out; with due_at, only if that is the one",
        "Skip",
        "Operation",
    ),
    (
        "GET",
        "/tasks/{task_id}/due",
        "due_times",
        "Tasks",
        "When a task is due, what was snoozed or skipped included; of a paused one, if it were resumed now. Query: count, 1 to 100",
        "",
        "Times",
    ),
    (
        "POST",
        "/tasks/{task_id}/pause",
        "pause_task",
        "Tasks",
        "Stop a task from running by itself",
        "",
        "Operation",
    ),
    (
        "POST",
        "/tasks/{task_id}/resume",
        "resume_task",
        "Tasks",
        "Let a task run by itself again",
        "",
        "Operation",
    ),
    ("POST", "/tasks/{task_id}/cancel", "cancel_task", "Tasks", "End a task for good", "", "Operation"),
    (
        "POST",
        "/schedules/preview",
        "preview_schedule",
        "Tasks",
        "When a schedule would be due",
        "Preview",
        "Times",
    ),
    (
        "GET",
        "/tools",
        "list_tools",
        "Tasks",
        "Tools that steps may use, as far as the caller may",
        "",
        "Object",
    ),
    (
        "GET",
        "/runs",
        "list_task_runs",
        "Runs",
        "Runs of tasks, newest first, without their output",
        "",
        "TaskRunPage",
    ),
    ("GET", "/runs/{run_id}", "show_task_run", "Runs", "One run with its output", "", "TaskRun"),
    (
        "GET",
        "/runs/{run_id}/events",
        "follow_task_run",
        "Runs",
        "Each change of a run's state and what it reports, as a stream of server-sent events, until it is over",
        "",
        "",
    ),
    (
        "GET",
        "/runs/{run_id}/log",
        "task_run_log",
        "Runs",
        "What a run reported: steps, progress, log lines, numbers and files of devices",
        "",
        "Object",
    ),
    (
        "POST",
        "/runs/{run_id}/cancel",
        "cancel_task_run",
        "Runs",
        "End a run: at once if it waits, else its worker is told",
        "Reason",
        "TaskRun",
    ),
    (
        "GET",
        "/runs/task/{task_id}/latest",
        "latest_task_run",
        "Runs",
        "The newest run of a task, or null",
        "",
        "TaskRun",
    ),
    ("GET", "/runs/task/{task_id}/stats", "task_stats", "Runs", "Figures of a task", "", "Object"),
    (
        "GET",
        "/runs/stats/summary",
        "runs_summary",
        "Runs",
        "Figures of all runs that the caller may see",
        "",
        "Object",
    ),
    (
        "POST",
        "/events",
        "publish_event",
        "Events",
        "Publish an event; tasks that wait for it run",
        "NewEvent",
        "Operation",
    ),
    ("GET", "/events/topics", "event_topics", "Events", "Topics that active tasks wait for", "", "Object"),
    (
        "GET",
        "/events/stream",
        "follow_events",
        "Events",
        "New events as a stream of server-sent events; Last-Event-ID or after resumes it",
        "",
        "",
    ),
    ("GET", "/events/stream/recent", "recent_events", "Events", "The newest events", "", "Object"),
    ("DELETE", "/events/stream/cleanup", "clean_events", "Events", "Delete old events", "", "Operation"),
    (
        "GET",
        "/approvals",
        "list_approvals",
        "Approvals",
        "What waits for a person's word, and what was decided",
        "",
        "ApprovalPage",
    ),
    (
        "POST",
        "/approvals/{approval_id}/decide",
        "decide_approval",
        "Approvals",
        "Approve or deny, once, for exactly these parameters. Never one's own, never by software",
        "Decision",
        "Approval",
    ),
    (
        "POST",
        "/agents/{agent_id}/webhook/secret",
        "rotate_webhook_secret",
        "Agents",
        "Make a new secret that messages to the agent's webhook are signed with; it is shown only now",
        "",
        "WebhookSecret",
    ),
    (
        "GET",
        "/agents/{agent_id}/webhook/deliveries",
        "list_deliveries",
        "Agents",
        "How telling the agent outcomes of its runs went, newest first; an agent may see its own",
        "",
        "DeliveryPage",
    ),
    (
        "POST",
        "/agents/{agent_id}/webhook/deliveries/{run_id}/retry",
        "retry_delivery",
        "Agents",
        "Tell an outcome once more, whether it was taken or given up",
        "",
        "Operation",
    ),
];

/// Names and kinds in the query of an operation.
pub(super) fn queries(method: &Method, path: &str) -> &'static [(&'static str, &'static str)] {
    match (method.as_str(), path) {
        ("GET", "/tasks") => &[
            ("status", "TaskStatus"),
            ("created_by", "Principal"),
            ("schedule_kind", "ScheduleKind"),
            ("limit", "limit"),
            ("offset", "count"),
        ],
        ("GET", "/runs") => &[
            ("task_id", "Uuid"),
            ("success", "boolean"),
            ("state", "TaskRunState"),
            ("include_errors", "boolean"),
            ("start_time", "time"),
            ("end_time", "time"),
            ("limit", "limit"),
            ("offset", "count"),
        ],
        ("GET", "/runs/{run_id}/log") => &[("after", "count"), ("limit", "many")],
        ("GET", "/runs/task/{task_id}/stats" | "/runs/stats/summary") => &[("days", "count")],
        ("GET", "/events/stream") => &[("after", "Position")],
        ("GET", "/tasks/{task_id}/due" | "/events/stream/recent") => &[("count", "count")],
        ("DELETE", "/events/stream/cleanup") => &[("max_age_hours", "count")],
        ("GET", "/approvals") => &[("state", "ApprovalState"), ("limit", "limit"), ("offset", "count")],
        ("GET", "/agents/{agent_id}/webhook/deliveries") => {
            &[("state", "=pending|delivered|failed"), ("limit", "limit"), ("offset", "count")]
        }
        _ => &[],
    }
}

/// Headers of an operation, beside those of every request.
pub(super) fn headers(method: &Method, path: &str) -> &'static [(&'static str, &'static str, &'static str)] {
    match (method.as_str(), path) {
        ("POST", "/tasks" | "/tasks/{task_id}/run_now") => {
            &[("Idempotency-Key", super::KEY_TEXT, "IdempotencyKey")]
        }
        ("GET", "/events/stream") => &[("Last-Event-ID", "Events behind this position", "Position")],
        _ => &[],
    }
}

/// What a task has beside what must be sent.
const DESCRIBED: [(&str, &str); 11] = {
    let mut all = [("next_due_at", "time?"); 11];
    let mut at = 0;
    while at < DEFAULTED.len() {
        all[at] = DEFAULTED[at];
        at += 1;
    }
    all
};

/// Members of a task that have defaults.
const DEFAULTED: [(&str, &str); 10] = [
    ("schedule_expr", "ScheduleExpr?"),
    ("timezone", "Zone?"),
    ("priority", "integer"),
    ("dedupe_key", "DedupeKey?"),
    ("dedupe_window_seconds", "integer"),
    ("max_retries", "integer"),
    ("backoff_strategy", "Backoff?"),
    ("concurrency_key", "DedupeKey?"),
    ("misfire_policy", "Misfire?"),
    ("status", "TaskStatus?"),
];

pub(super) const SHAPES: &[Shape] = &[
    (
        "Checkup",
        &[
            ("status", "string"),
            ("timestamp", "time"),
            ("version", "string"),
            ("request_id", "string"),
            ("summary", "object"),
            ("checks", "[object]"),
        ],
        &[],
    ),
    ("WebhookSecret", &[("agent_id", "string"), ("webhook_secret", "string"), ("message", "string")], &[]),
    (
        "Delivery",
        &[
            ("webhook_id", "string"),
            ("run_id", "string"),
            ("state", "string"),
            ("attempts", "integer"),
            ("created_at", "time"),
            ("last_attempt_at", "time?"),
            ("next_attempt_at", "time?"),
            ("error", "string?"),
        ],
        &[],
    ),
    (
        "NewTask",
        &[
            ("title", "Title"),
            ("description", "Description"),
            ("schedule_kind", "ScheduleKind"),
            ("payload", "object"),
            ("created_by", "Principal"),
        ],
        &DEFAULTED,
    ),
    (
        "TaskEdit",
        &[],
        &[
            ("title", "Title?"),
            ("description", "Description?"),
            ("schedule_kind", "ScheduleKind?"),
            ("schedule_expr", "ScheduleExpr?"),
            ("timezone", "Zone?"),
            ("payload", "object"),
            ("priority", "integer"),
            ("status", "TaskStatus?"),
            ("dedupe_key", "DedupeKey?"),
            ("dedupe_window_seconds", "integer"),
            ("max_retries", "integer"),
            ("backoff_strategy", "Backoff?"),
            ("concurrency_key", "DedupeKey?"),
            ("misfire_policy", "Misfire?"),
        ],
    ),
    (
        "Task",
        &[
            ("id", "string"),
            ("title", "string"),
            ("description", "string"),
            ("schedule_kind", "string"),
            ("payload", "object"),
            ("created_by", "string"),
            ("created_at", "time"),
            ("updated_at", "time"),
        ],
        &DESCRIBED,
    ),
    ("Snooze", &[("delay_seconds", "integer")], &[("reason", "Remark?")]),
    ("Skip", &[], &[("due_at", "time?"), ("reason", "Remark?")]),
    (
        "Preview",
        &[("schedule_kind", "ScheduleKind")],
        &[("schedule_expr", "ScheduleExpr?"), ("timezone", "Zone?"), ("from", "time?"), ("count", "integer")],
    ),
    ("Times", &[("times", "[time]")], &[]),
    (
        "TaskRun",
        &[
            ("id", "string"),
            ("task_id", "string"),
            ("state", "string"),
            ("attempt", "integer"),
            ("trigger", "string"),
            ("first_attempt", "string"),
            ("created_at", "time"),
        ],
        &[
            ("success", "boolean?"),
            ("error", "string?"),
            ("output", "object?"),
            ("scheduled_for", "time?"),
            ("started_at", "time?"),
            ("finished_at", "time?"),
            ("lease_owner", "string?"),
            ("leased_until", "time?"),
        ],
    ),
    ("NewEvent", &[("topic", "Topic"), ("payload", "object"), ("source_agent_id", "Principal")], &[]),
    (
        "Approval",
        &[
            ("id", "string"),
            ("run_id", "string"),
            ("task_id", "string"),
            ("step", "string"),
            ("requested_by", "string"),
            ("parameters", "any"),
            ("parameters_sha256", "string"),
            ("reason", "string"),
            ("state", "string"),
            ("created_at", "time"),
            ("expires_at", "time"),
        ],
        &[
            ("decided_at", "time?"),
            ("decided_by", "string?"),
            ("note", "string?"),
            ("approvers", "integer"),
            ("first_approved_by", "string?"),
            ("first_approved_at", "time?"),
        ],
    ),
    ("Decision", &[("decision", "=approve|deny")], &[("note", "Note?"), ("parameters_sha256", "Sha256?")]),
];

/// Pages and what they hold.
pub(super) const PAGES: &[(&str, &str)] = &[
    ("TaskPage", "[Task]"),
    ("TaskRunPage", "[TaskRun]"),
    ("ApprovalPage", "[Approval]"),
    ("DeliveryPage", "[Delivery]"),
];

//! What a run leaves for those who look at it later, and the short form in which it is kept.
//!
//! Most of what people read is known from the row of the run, or the same for every run; it is put back when somebody looks.

use serde_json::{Map, Value, json};

use crate::Timestamp;
use crate::task::TaskId;

/// Largest output that is kept, in bytes of its short form.
const LARGEST: usize = 8 << 20;
/// Deepest nesting that is kept: what is deeper could not be read back.
const DEEPEST: usize = 100;

/// What a run leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOutput {
    /// Title of the task at that time.
    pub title: String,
    /// Parameters of the pipeline: an object.
    pub params: Value,
    /// Results of steps, by the names under which they were saved: an object.
    pub steps: Value,
    /// Steps of the pipeline.
    pub total: usize,
    /// Those that were carried out.
    pub executed: usize,
    /// Those whose condition did not hold.
    pub skipped: usize,
    /// How long it took, in microseconds.
    pub micros: i64,
    /// The step that failed: `index`, `id`, `uses`, `error`.
    pub failed_step: Option<Value>,
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(members) => levels == 0 || members.values().any(|member| is_deeper(member, levels - 1)),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(Map::is_empty)
}

impl RunOutput {
    /// The short form: a JSON array of the title, the four numbers, and as far as they are there the results, the failed step and
    /// the parameters. One that is too large, or nested too deep to be read back, is an object that says so.
    pub fn kept(&self) -> String {
        let Self { title, params, steps, total, executed, skipped, micros, failed_step } = self;
        if [params, steps].into_iter().any(|part| is_deeper(part, DEEPEST)) {
            return json!({ "_truncated": "the output was nested too deep to be stored" }).to_string();
        }
        let failed_step = failed_step.as_ref().unwrap_or(&Value::Null);
        let rest = match (is_empty(params), is_empty(steps) && failed_step.is_null()) {
            (true, true) => String::new(),
            (true, false) => format!(",{steps},{failed_step}"),
            (false, _) => format!(",{steps},{failed_step},{params}"),
        };
        let text = format!("[{},{total},{executed},{skipped},{micros}{rest}]", Value::from(title.as_str()));
        if text.len() > LARGEST {
            return json!({ "_truncated": "the output was too large to be stored" }).to_string();
        }
        text
    }

    /// What people read of what was kept, for a run of `task` that began at `began`. Other forms than [`RunOutput::kept`]'s, from
    /// before there was a short one, are shown as they are.
    pub fn shown(kept: Value, task: TaskId, began: Option<Timestamp>) -> Value {
        let Value::Array(mut parts) = kept else { return kept };
        let mut part = |at: usize| parts.get_mut(at).map(Value::take).unwrap_or_default();
        let or_empty = |value: Value| if value.is_null() { json!({}) } else { value };
        let micros = Timestamp::from_micros(part(4).as_i64().unwrap_or(0));
        let failed_step = part(6);
        let mut summary = json!({
            "success": failed_step.is_null(),
            "total_steps": part(1),
            "executed_steps": part(2),
            "skipped_steps": part(3),
            "execution_time_seconds": micros.since(Timestamp::from_micros(0)).as_secs_f64(),
        });
        if !failed_step.is_null() {
            summary["failed_step"] = failed_step;
        }
        json!({
            "now": began,
            "params": or_empty(part(7)),
            "steps": or_empty(part(5)),
            "_task_id": task,
            "_task_title": part(0),
            "_execution_start": began,
            "_execution_summary": summary,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> RunOutput {
        RunOutput {
            title: "Nothing".to_owned(),
            params: json!({}),
            steps: json!({}),
            total: 2,
            executed: 1,
            skipped: 1,
            micros: 1_500,
            failed_step: None,
        }
    }

    fn shown(output: &RunOutput) -> Value {
        let kept = serde_json::from_str(&output.kept()).expect("JSON");
        RunOutput::shown(kept, TaskId::from_bytes([1; 16]), Some(Timestamp::from_seconds(0)))
    }

    #[test]
    fn a_run_that_leaves_nothing_is_kept_in_a_few_bytes_and_shown_in_full() {
        assert_eq!(output().kept(), r#"["Nothing",2,1,1,1500]"#);

        let whole = json!({
            "now": "1970-01-01T00:00:00.000000Z", "params": {}, "steps": {}, "_task_id": "01010101-0101-0101-0101-010101010101",
            "_task_title": "Nothing", "_execution_start": "1970-01-01T00:00:00.000000Z",
            "_execution_summary": {
                "success": true, "total_steps": 2, "executed_steps": 1, "skipped_steps": 1, "execution_time_seconds": 0.0015,
            },
        });
        assert_eq!(shown(&output()), whole);
    }

    #[test]
    fn results_parameters_and_the_failed_step_come_back() {
        let failed = json!({ "index": 1, "id": null, "uses": "a.b", "error": "no" });
        let params = json!({ "n": 3 });
        let steps = json!({ "x": [1, 2] });

        let bad = shown(&RunOutput { failed_step: Some(failed.clone()), ..output() });
        assert_eq!((&bad["params"], &bad["steps"]), (&json!({}), &json!({})));
        assert_eq!(bad["_execution_summary"]["failed_step"], failed);
        assert_eq!(bad["_execution_summary"]["success"], false);

        let good = shown(&RunOutput { params: params.clone(), steps: steps.clone(), ..output() });
        assert_eq!((&good["params"], &good["steps"]), (&params, &steps));
        assert_eq!(good["_execution_summary"]["success"], true);
        assert_eq!(shown(&RunOutput { params: params.clone(), ..output() })["params"], params);
    }

    #[test]
    fn what_cannot_be_read_back_or_is_too_large_is_left_out() {
        let deep = (0..120).fold(Value::Null, |inner, _| json!([inner]));
        let large = Value::String("x".repeat(LARGEST));

        for (steps, why) in [(json!({ "deep": deep }), "deep"), (json!({ "large": large }), "large")] {
            let left = shown(&RunOutput { steps, ..output() });
            assert!(left["_truncated"].as_str().is_some_and(|text| text.contains(why)), "{left}");
        }
    }

    #[test]
    fn what_was_kept_before_is_shown_as_it_is() {
        let before = json!({ "steps": {}, "_task_title": "Old" });

        assert_eq!(RunOutput::shown(before.clone(), TaskId::from_bytes([1; 16]), None), before);
    }
}

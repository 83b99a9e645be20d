//! Answers questions about schedules and expressions, one JSON object a line, for tests/compare.

use std::io::{BufRead as _, Write as _};

use interlock_model::Timestamp;
use interlock_model::jmespath::{Expression, Fuel};
use interlock_model::schedule::Schedule;
use interlock_model::task::ScheduleKind;
use serde_json::{Value, json};

fn answer(question: &Value) -> Option<Value> {
    let text = |name: &str| question.get(name).and_then(Value::as_str);
    if let Some(expression) = text("expression") {
        return Some(match Expression::compile(expression) {
            Err(error) => json!({ "refused": error.to_string() }),
            Ok(expression) => match expression.search(question.get("data")?, &mut Fuel::of(1_000_000)) {
                Err(error) => json!({ "failed": error.to_string() }),
                Ok(value) => json!({ "value": value }),
            },
        });
    }
    let kind = ScheduleKind::parse(text("kind")?)?;
    let anchor = Timestamp::from_seconds(question.get("anchor")?.as_i64()?);
    let count = usize::try_from(question.get("count")?.as_u64()?).ok()?;
    Some(match Schedule::parse(kind, text("expr"), text("zone")?, anchor) {
        Err(error) => json!({ "refused": error.message }),
        Ok(schedule) => {
            let times: Vec<i64> =
                schedule.times_after(anchor, count).into_iter().map(Timestamp::seconds).collect();
            json!({ "times": times })
        }
    })
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let question = serde_json::from_str(&line?)?;
        writeln!(out, "{}", answer(&question).unwrap_or_else(|| json!({ "refused": "not a question" })))?;
    }
    Ok(())
}

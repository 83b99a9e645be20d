//! Expressions, schedules, schemas and texts that people and programs write.

use interlock_model::device::{Catalogue as Actions, Declarations};
use interlock_model::jmespath::{Expression, Fuel};
use interlock_model::pipeline::{Catalogue, Context, Effect, Known, Misuse, Pipeline};
use interlock_model::rule::Rule;
use interlock_model::schedule::Schedule;
use interlock_model::schema::Schema;
use interlock_model::scope::Scope;
use interlock_model::screen::{self, Meter, Place};
use interlock_model::task::ScheduleKind;
use interlock_model::{Timestamp, unit};
use serde_json::{Map, Value, json};

use crate::{split, text};

/// 2026-01-01T00:00:00Z.
const NOW: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// Expressions: compiled and searched within their fuel; what was compiled keeps its text.
pub(crate) fn jmespath(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let Ok(expression) = Expression::compile(text) else { return };
    assert_eq!(expression.text(), text);
    let values = json!({
        "a": [1, 2.5, -3, "x", null, true, {"b": {"c": [[1, 2], [3]]}}], "b": {"c": "d", "e": ["f", "ä", ""]}, "c": 1e300,
        "params": {"limit": 30}, "steps": {"weather": {"body": {"temp": 31.5}}},
    });
    let _ = expression.search(&values, &mut Fuel::of(100_000));
    let _ = expression.holds(&values, &mut Fuel::of(100_000));
}

/// Schedules: the times that one gives rise, each after the one before.
pub(crate) fn schedule(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let kinds = [
        ScheduleKind::Cron,
        ScheduleKind::Rrule,
        ScheduleKind::Once,
        ScheduleKind::Event,
        ScheduleKind::Condition,
        ScheduleKind::Manual,
    ];
    let (expression, zone) = split(rest);
    let (Some(expression), Some(zone)) = (text(expression), text(zone)) else { return };
    let zone = if zone.is_empty() { "Europe/Berlin" } else { zone };
    let kind = kinds[usize::from(*kind) % kinds.len()];
    let Ok(schedule) = Schedule::parse(kind, Some(expression), zone, NOW) else { return };
    let times = schedule.times_after(NOW, 5);
    assert!(times.iter().all(|time| *time > NOW), "{expression:?} gives a time that is over");
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{expression:?} gives times that do not rise");
    assert_eq!(schedule.next_after(NOW), times.first().copied(), "{expression:?} gives two first times");
}

/// Takes every tool.
struct Any;

impl Catalogue for Any {
    fn check(&self, _: &str, _: Known<'_>) -> Result<Effect, Misuse> {
        Ok(Effect::None)
    }
}

/// Pipelines: compiled, conditions and templates rendered.
pub(crate) fn pipeline(data: &[u8]) {
    let Ok(payload) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    match Pipeline::compile(&payload, &Any) {
        Err(errors) => assert!((1..=20).contains(&errors.len()), "{} mistakes are told", errors.len()),
        Ok(pipeline) => {
            let mut context = Context::new(&pipeline, NOW, Some(json!({"topic": "t", "payload": {"a": 1}})));
            for step in pipeline.steps() {
                let _ = step.applies(&context);
                if let (Ok(input), Some(name)) = (step.input(&context), &step.save_as) {
                    let _ = context.save(name, Value::Object(input));
                }
            }
        }
    }
}

/// Rules over parameters: what compiles is evaluated.
pub(crate) fn rule(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let values = json!({"a": 1, "b": 2.5, "c": "text", "d": [1, 2, 3], "e": null, "f": true, "volume": 20, "wells": 3});
    let Value::Object(values) = values else { return };
    let names: Vec<&str> = values.keys().map(String::as_str).collect();
    if let Ok(rule) = Rule::compile(text, &names) {
        let value = rule.evaluate(&values);
        assert_eq!(
            rule.holds(&values),
            value.is_ok_and(|value| value == json!(true)),
            "{text:?} is told in two ways"
        );
    }
}

/// Schemas, and a value against one.
pub(crate) fn schema(data: &[u8]) {
    let (schema, value) = split(data);
    let Ok(schema) = serde_json::from_slice::<Value>(schema) else { return };
    let Ok(schema) = Schema::compile(&schema) else { return };
    let value = serde_json::from_slice(value).unwrap_or(Value::Null);
    if let Err(errors) = schema.validate(&value) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
}

/// What a device declares, and a call.
pub(crate) fn declarations(data: &[u8]) {
    let (declared, call) = split(data);
    let Ok(declared) = serde_json::from_slice::<Declarations>(declared) else { return };
    let Ok(actions) = Actions::check(declared) else { return };
    let given: Map<String, Value> = serde_json::from_slice(call).unwrap_or_default();
    for action in actions.actions() {
        if let Ok(parameters) = action.check_call(given.clone()) {
            let again = action.check_call(parameters.clone());
            assert_eq!(
                again.ok().as_ref(),
                Some(&parameters),
                "what was checked is refused or changed when checked again"
            );
        }
        let _ = (action.mask(&given), action.secrets(&given));
    }
}

/// Scopes: one covers itself, and survives its own text.
pub(crate) fn scope(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.as_str(), text);
        assert!(
            scope.covers(text.trim_end_matches('*')) || text.ends_with('*'),
            "{text:?} does not cover itself"
        );
    }
}

/// Detection: linear work, whatever the text.
pub(crate) fn screen(data: &[u8]) {
    for place in [Place::Path, Place::Query, Place::Header, Place::Id, Place::Label, Place::FreeText] {
        let mut meter = Meter::default();
        screen::inspect(place, data, &mut meter);
        let most = 200 * (data.len() as u64 + 64);
        assert!(
            meter.steps() <= most,
            "{} steps for {} bytes in a {}",
            meter.steps(),
            data.len(),
            place.name()
        );
    }
    screen::inspect_query(data, &mut Meter::default());
}

/// Strict JSON: what it takes, the library takes for the same value.
pub(crate) fn strict_json(data: &[u8]) {
    if let Ok(value) = interlock_model::strict_json::parse(data) {
        let usual = serde_json::from_slice::<Value>(data);
        assert_eq!(usual.ok().as_ref(), Some(&value), "strict JSON is read in two ways");
        let written = value.to_string();
        let again = interlock_model::strict_json::parse(written.as_bytes());
        assert_eq!(again.ok(), Some(value), "strict JSON does not survive its own text");
    }
}

/// Times: one survives its own text.
pub(crate) fn time(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(time) = text.parse::<Timestamp>() {
        assert_eq!(
            time.to_string().parse::<Timestamp>().ok(),
            Some(time),
            "{text:?} does not survive its text"
        );
    }
}

/// Quantities with units.
pub(crate) fn unit(data: &[u8]) {
    let (quantity, wanted) = split(data);
    let (Some(quantity), Some(wanted)) = (text(quantity), text(wanted)) else { return };
    for wanted in [wanted, "uL", "s", "mm", "Cel", "1"] {
        if let Ok(value) = unit::convert(quantity, wanted) {
            assert!(value.is_finite(), "{quantity:?} is {value} {wanted}");
        }
    }
    let _ = unit::find(quantity);
}

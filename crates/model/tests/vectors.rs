//! Rules, schemas and units from outside. Here: the cases that every implementation answers alike, `tests/rules.json` and
//! `tests/schema_vectors.json`. The modules hold what only this implementation promises, such as messages.

#[path = "it/rules.rs"]
mod rules;
#[path = "it/schemas.rs"]
mod schemas;
#[path = "it/screening.rs"]
mod screening;
#[path = "it/units.rs"]
mod units;

use std::path::Path;

use interlock_model::rule::Rule;
use interlock_model::schema::Schema;
use serde_json::{Map, Value};

fn cases(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parsed: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // A list of cases, or an object that explains itself beside them.
    match parsed {
        Value::Array(cases) => cases,
        Value::Object(mut file) => match file.remove("cases") {
            Some(Value::Array(cases)) => cases,
            _ => panic!("{} has no list of cases", path.display()),
        },
        _ => panic!("{} holds no cases", path.display()),
    }
}

/// Equality of JSON with numbers by value: a rule's 3.0 is a vector's 3.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// The names of a rule's case: those it lists, else those it gives values for.
fn names<'a>(case: &'a Value, values: &'a Map<String, Value>) -> Vec<&'a str> {
    match case.get("names").and_then(Value::as_array) {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => values.keys().map(String::as_str).collect(),
    }
}

fn rule_failure(case: &Value) -> Option<String> {
    let expr = case.get("expr").and_then(Value::as_str).expect("a case has an expression");
    let empty = Map::new();
    let values = case.get("values").and_then(Value::as_object).unwrap_or(&empty);
    let names = names(case, values);
    let answer = Rule::compile(expr, &names).map_err(|error| error.to_string());
    let answer = answer.and_then(|rule| {
        let value = rule.evaluate(values).map_err(|error| error.to_string());
        assert_eq!(rule.holds(values), value == Ok(Value::Bool(true)), "{expr}");
        value
    });
    match (case.get("result"), &answer) {
        (Some(wanted), Ok(value)) if same(wanted, value) => None,
        (None, Err(_)) => None,
        (wanted, answer) => Some(format!("{expr} with {values:?}: {answer:?}, not {wanted:?}")),
    }
}

fn schema_failure(case: &Value) -> Option<String> {
    let schema = case.get("schema").expect("a case has a schema");
    let value = case.get("value").unwrap_or(&Value::Null);
    let answer = match Schema::compile(schema) {
        Ok(schema) => Ok(schema.validate(value).is_ok()),
        Err(error) => Err(error.to_string()),
    };
    match (case.get("ok").and_then(Value::as_bool), &answer) {
        (Some(wanted), Ok(ok)) if wanted == *ok => None,
        (None, Err(_)) => None,
        (wanted, answer) => Some(format!("{schema} for {value}: {answer:?}, not {wanted:?}")),
    }
}

#[test]
fn rules_answer_as_every_implementation_does() {
    let cases = cases("rules.json");

    let failures: Vec<String> = cases.iter().filter_map(rule_failure).collect();

    assert!(cases.len() >= 60, "only {} cases", cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn schemas_answer_as_every_implementation_does() {
    let cases = cases("schema_vectors.json");

    let failures: Vec<String> = cases.iter().filter_map(schema_failure).collect();

    assert!(cases.len() >= 60, "only {} cases", cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

//! From `k=v` words and `@file` to the parameters of a call, by the action's own declaration.
//!
//! The server checks everything again: this only decides what kind of JSON value a word means. A quantity such as `0.05mL` is
//! left to the server, which has the table of units.

use std::io::Read as _;
use std::path::Path;

use interlock_model::device::{ActionSpec, ParamSpec};
use interlock_model::strict_json;
use serde_json::{Map, Value};

use super::failure::{Failure, exit};
use super::text::{line, nearest};

/// Largest parameter file.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Parameters from words. Without a declaration (the caller may execute but not list actions) a word that is JSON is that
/// JSON, and any other is a text.
pub(crate) fn read(words: &[String], action: Option<&ActionSpec>) -> Result<Map<String, Value>, Failure> {
    let mut parameters = Map::new();
    let mut named: Vec<&str> = Vec::new();
    for word in words {
        if let Some(file) = word.strip_prefix('@') {
            for (name, value) in from_file(file)? {
                known(action, &name)?;
                parameters.insert(name, value);
            }
            continue;
        }
        let Some((name, text)) = word.split_once('=') else {
            let hint = "parameters look like r=120, files like @parameters.json; an action comes before them";
            return Err(Failure::usage(format!("'{}' is neither a parameter nor a file", line(word)), hint));
        };
        if named.contains(&name) {
            return Err(Failure::usage(
                format!("parameter '{}' is given twice", line(name)),
                "give each parameter once",
            ));
        }
        named.push(name);
        let spec = known(action, name)?;
        let value = value(spec, text)
            .map_err(|reason| refused(action, &format!("parameter '{}': {reason}", line(name))))?;
        parameters.insert(name.to_owned(), value);
    }
    Ok(parameters)
}

fn refused(action: Option<&ActionSpec>, cause: &str) -> Failure {
    let name = action.map_or("ACTION", |action| action.name.as_str());
    Failure::new(
        exit::PARAMETERS,
        "the parameters are refused; nothing was done",
        format!("interlock action schema {}", line(name)),
    )
    .because(cause)
}

/// The declaration of a parameter; an unknown one is refused with the name that was probably meant.
fn known<'a>(action: Option<&'a ActionSpec>, name: &str) -> Result<Option<&'a ParamSpec>, Failure> {
    let Some(spec) = action else { return Ok(None) };
    if let Some(found) = spec.parameters.iter().find(|parameter| parameter.name == name) {
        return Ok(Some(found));
    }
    let names: Vec<&str> = spec.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let takes = if names.is_empty() {
        "takes no parameters".to_owned()
    } else {
        format!("takes {}", names.join(", "))
    };
    let meant = nearest(name, names.iter().copied())
        .map(|near| format!("; did you mean '{near}'?"))
        .unwrap_or_default();
    Err(refused(action, &format!("there is no parameter '{}': {} {takes}{meant}", line(name), spec.name)))
}

fn from_file(file: &str) -> Result<Map<String, Value>, Failure> {
    let mut text = Vec::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(MAX_BYTES).read_to_end(&mut text))
    };
    read.map_err(|error| Failure::file("cannot read", Path::new(file), &error, "check the path after '@'"))?;
    let wrong = |cause: String| {
        let hint = "the file holds one JSON object, such as {\"r\": 120, \"well\": \"B3\"}";
        Failure::new(exit::PARAMETERS, format!("{} holds no parameters", line(file)), hint).because(cause)
    };
    match strict_json::parse(&text) {
        Ok(Value::Object(parameters)) => Ok(parameters),
        Ok(_) => Err(wrong("it is JSON, but not an object".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Whether any of the words reads standard input.
pub(crate) fn reads_stdin(words: &[String]) -> bool {
    words.iter().any(|word| word == "@-")
}

/// Names of sensitive parameters that are in the words, where every user of the machine can read them.
pub(crate) fn exposed<'a>(words: &'a [String], action: Option<&ActionSpec>) -> Vec<&'a str> {
    let sensitive = |name: &str| {
        action.is_some_and(|action| action.parameters.iter().any(|p| p.sensitive && p.name == name))
    };
    words
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| sensitive(name))
        .collect()
}

fn value(spec: Option<&ParamSpec>, text: &str) -> Result<Value, String> {
    let Some(spec) = spec else { return Ok(json(text).unwrap_or_else(|| Value::from(text))) };
    if spec.unit.is_some() && spec.kind != "array" {
        // A number is in the declared unit; with a unit behind it, it is the server's to convert.
        return Ok(number(text).unwrap_or_else(|| Value::from(text)));
    }
    let empty = Value::Null;
    let schema = if spec.schema.is_object() { &spec.schema } else { &empty };
    by_schema(schema, &spec.kind, text)
}

/// The value that a text means for this schema.
fn by_schema(schema: &Value, kind: &str, text: &str) -> Result<Value, String> {
    let mut choices: Vec<&Value> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    collect(schema, &mut choices, &mut kinds, 0);
    if kinds.is_empty() && choices.is_empty() && !kind.is_empty() {
        kinds.push(kind);
    }
    if !choices.is_empty() {
        return choose(&choices, &kinds, text);
    }
    let is = |wanted: &str| kinds.contains(&wanted);
    if is("null") && text == "null" {
        return Ok(Value::Null);
    }
    if is("boolean")
        && let Some(value) = boolean(text)
    {
        return Ok(Value::Bool(value));
    }
    if (is("integer") || is("number"))
        && let Some(value) = number(text)
    {
        return Ok(value);
    }
    for (wanted, open, items) in [("array", '[', true), ("object", '{', false)] {
        if is(wanted) && (text.trim_start().starts_with(open) || !is("string")) {
            if items && !text.trim_start().starts_with(open) {
                return list(schema, text);
            }
            if let Some(value) =
                json(text).filter(|value| if items { value.is_array() } else { value.is_object() })
            {
                return Ok(value);
            }
        }
    }
    if is("string") {
        return Ok(Value::from(text));
    }
    if is("any") || kinds.is_empty() {
        return Ok(json(text).unwrap_or_else(|| Value::from(text)));
    }
    Err(expected(&kinds))
}

/// `A1,B2` for a list of words or numbers.
fn list(schema: &Value, text: &str) -> Result<Value, String> {
    let items = array_items(schema).unwrap_or(&Value::Null);
    if text.is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    let parts: Result<Vec<Value>, String> =
        text.split(',').map(|part| by_schema(items, "any", part.trim())).collect();
    parts.map(Value::Array).map_err(|reason| format!("in its list: {reason}"))
}

fn array_items(schema: &Value) -> Option<&Value> {
    schema
        .get("items")
        .or_else(|| schema.get("anyOf")?.as_array()?.iter().find_map(|branch| branch.get("items")))
}

/// Choices and types of a schema and of its alternatives.
fn collect<'a>(schema: &'a Value, choices: &mut Vec<&'a Value>, kinds: &mut Vec<&'a str>, depth: usize) {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        choices.extend(values);
    } else if let Some(value) = schema.get("const") {
        choices.push(value);
    } else {
        match schema.get("type") {
            Some(Value::String(kind)) => kinds.push(kind),
            Some(Value::Array(several)) => kinds.extend(several.iter().filter_map(Value::as_str)),
            _ => {}
        }
    }
    if depth < 8
        && let Some(branches) = schema.get("anyOf").and_then(Value::as_array)
    {
        for branch in branches {
            collect(branch, choices, kinds, depth + 1);
        }
    }
}

fn choose(choices: &[&Value], kinds: &[&str], text: &str) -> Result<Value, String> {
    let by_text = choices.iter().find(|choice| choice.as_str() == Some(text));
    let meant = json(text);
    let by_value = || choices.iter().find(|choice| meant.as_ref().is_some_and(|meant| equal(meant, choice)));
    if let Some(choice) = by_text.or_else(by_value) {
        return Ok((*choice).clone());
    }
    if text == "null" && kinds.contains(&"null") {
        return Ok(Value::Null);
    }
    if let Some(value) =
        number(text).filter(|_| kinds.iter().any(|kind| matches!(*kind, "number" | "integer")))
    {
        return Ok(value);
    }
    if kinds.contains(&"string") {
        return Ok(Value::from(text));
    }
    let shown: Vec<String> = choices
        .iter()
        .take(20)
        .map(|choice| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned))
        .collect();
    let more = if choices.len() > 20 { ", …" } else { "" };
    Err(format!("must be one of {}{more}", shown.join(", ")))
}

/// 100 and 100.0 are the same number.
fn equal(one: &Value, two: &Value) -> bool {
    one == two
        || matches!((one.as_f64(), two.as_f64()), (Some(one), Some(two)) if one.to_bits() == two.to_bits())
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A JSON number; also `+1`, `.5` and `1.`, which people write.
fn number(text: &str) -> Option<Value> {
    let text = text.trim();
    if !text.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'+' | b'-' | b'.' | b'e' | b'E')) {
        return None;
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Value::from(whole));
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Value::from)
}

fn json(text: &str) -> Option<Value> {
    strict_json::parse(text.as_bytes()).ok()
}

fn expected(kinds: &[&str]) -> String {
    let words: Vec<&str> = kinds
        .iter()
        .map(|kind| match *kind {
            "boolean" => "true or false",
            "integer" => "a whole number",
            "number" => "a number",
            "array" => "a list such as [1, 2] or 1,2",
            "object" => "a JSON object such as {\"a\": 1}",
            other => other,
        })
        .collect();
    format!("must be {}", words.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn action() -> ActionSpec {
        let parameter = |name: &str, kind: &str, unit: Value, schema: Value| json!({"name": name, "type": kind, "unit": unit, "schema": schema});
        serde_json::from_value(json!({"name": "mix_color", "parameters": [
            parameter("r", "number", json!("uL"), json!({"type": "number", "minimum": 0})),
            parameter("n", "integer", json!(null), json!({"type": "integer"})),
            parameter("ratio", "number", json!(null), json!({"type": ["number", "null"]})),
            parameter("shake", "boolean", json!(null), json!({"type": "boolean"})),
            parameter("well", "string", json!(null), json!({"type": "string"})),
            parameter("speed", "integer", json!(null), json!({"enum": [100, 400]})),
            parameter("mode", "string", json!(null), json!({"anyOf": [{"enum": ["slow", "fast"]}, {"type": "null"}]})),
            parameter("wells", "array", json!(null), json!({"type": "array", "items": {"type": "string"}})),
            parameter("volumes", "array", json!(null), json!({"type": "array", "items": {"type": "number"}})),
            parameter("options", "object", json!(null), json!({"type": "object"})),
            parameter("anything", "any", json!(null), json!({})),
        ]}))
        .expect("an action")
    }

    fn parse(words: &[&str]) -> Result<Value, String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        read(&words, Some(&action()))
            .map(Value::Object)
            .map_err(|failure| failure.cause.unwrap_or(failure.error))
    }

    #[test]
    fn words_become_what_the_action_declares() {
        let given = [
            "r=0.05mL",
            "n=-3",
            "ratio=null",
            "shake=yes",
            "well=120",
            "speed=400",
            "mode=fast",
            "wells=A1, B2",
            "volumes=[1, 2.5]",
            "options={\"a\": [1]}",
            "anything=true",
        ];

        assert_eq!(
            parse(&given).expect("parameters"),
            json!({
                "r": "0.05mL", "n": -3, "ratio": null, "shake": true, "well": "120", "speed": 400, "mode": "fast", "wells": ["A1", "B2"],
                "volumes": [1, 2.5], "options": {"a": [1]}, "anything": true
            })
        );
    }

    #[test]
    fn a_number_for_a_quantity_is_in_its_own_unit() {
        assert_eq!(parse(&["r=120"]).expect("parameters"), json!({"r": 120}));
        assert_eq!(parse(&["r=1e-3"]).expect("parameters"), json!({"r": 1e-3}));
    }

    #[test]
    fn an_equals_sign_belongs_to_the_value() {
        assert_eq!(parse(&["well=a=b"]).expect("parameters"), json!({"well": "a=b"}));
        assert_eq!(parse(&["well="]).expect("parameters"), json!({"well": ""}));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_help() {
        for (word, expected) in [
            ("n=many", "a whole number"),
            ("shake=perhaps", "true or false"),
            ("speed=200", "one of 100, 400"),
            ("options=[1]", "a JSON object"),
            ("volumes=1,x", "in its list"),
            ("wel=B3", "did you mean 'well'?"),
            ("n=NaN", "a whole number"),
        ] {
            let error = parse(&[word]).expect_err(word);

            assert!(error.contains(expected), "{word}: {error}");
        }
        assert!(parse(&["n=1", "n=2"]).expect_err("twice").contains("twice"));
        assert!(parse(&["B3"]).expect_err("no parameter").contains("neither"));
    }

    #[test]
    fn a_file_comes_first_and_a_word_overrules_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"n": 1, "well": "A1"}"#).expect("written");
        let at = format!("@{}", file.path().display());

        assert_eq!(parse(&[&at, "well=B3"]).expect("parameters"), json!({"n": 1, "well": "B3"}));
        std::fs::write(file.path(), r#"{"n": 1, "n": 2}"#).expect("written");
        assert!(parse(&[&at]).expect_err("a key twice").contains("line 1"));
    }

    #[test]
    fn without_a_declaration_json_is_json_and_the_rest_is_text() {
        let words: Vec<String> =
            ["r=120", "well=B3", "on=true", "q=\"7\""].iter().map(|&word| word.to_owned()).collect();

        assert_eq!(
            Value::Object(read(&words, None).expect("parameters")),
            json!({"r": 120, "well": "B3", "on": true, "q": "7"})
        );
    }
}

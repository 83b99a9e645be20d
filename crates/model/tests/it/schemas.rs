//! What a schema says when it refuses, and that neither schemas nor values make it panic.

use interlock_model::schema::{BadSchema, MAX_DEPTH, MAX_ERRORS, Schema, SchemaError};
use proptest::prelude::*;
use serde_json::{Value, json};

fn compile(schema: &Value) -> Schema {
    Schema::compile(schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

fn errors(schema: &Value, value: &Value) -> Vec<SchemaError> {
    compile(schema).validate(value).err().unwrap_or_default()
}

/// The only error's kind and message; empty if there is none.
fn refusal(schema: &Value, value: &Value) -> (&'static str, String) {
    match errors(schema, value).as_slice() {
        [] => ("", String::new()),
        [only] => (only.kind, only.message.clone()),
        many => panic!("{schema} for {value}: {many:?}"),
    }
}

#[test]
fn a_refusal_names_the_limit_in_plain_words() {
    let duration = "must be a duration such as PT1H30M";
    let cases = [
        (json!({"type": "number"}), json!("12"), "type", "must be a number"),
        (json!({"type": "number"}), json!(true), "type", "must be a number"),
        (json!({"type": "integer"}), json!(1.5), "type", "must be a whole number"),
        (json!({"type": "boolean"}), json!(1), "type", "must be true or false"),
        (json!({"type": "string"}), json!(null), "type", "must be text"),
        (json!({"type": "array"}), json!({}), "type", "must be a list"),
        (json!({"type": "object"}), json!([]), "type", "must be an object"),
        (json!({"type": "null"}), json!(0), "type", "must be null"),
        (json!({"type": ["integer", "null"]}), json!("x"), "type", "must be a whole number or null"),
        (
            json!({"type": ["integer", "string", "null"]}),
            json!([]),
            "type",
            "must be a whole number, text or null",
        ),
        (json!({"minimum": 0}), json!(-1), "range", "must be at least 0"),
        (json!({"maximum": 300.0}), json!(300.5), "range", "must be at most 300"),
        (json!({"exclusiveMinimum": 0.5}), json!(0.5), "range", "must be more than 0.5"),
        (json!({"exclusiveMaximum": 10}), json!(10), "range", "must be less than 10"),
        (json!({"multipleOf": 5}), json!(7), "range", "must be a multiple of 5"),
        (json!({"minimum": 0, "multipleOf": 5}), json!(7), "range", "must be a multiple of 5"),
        (json!({"minimum": 1, "multipleOf": 5}), json!(7), "range", "must be 1 plus a multiple of 5"),
        (json!({"minLength": 2}), json!("ß"), "range", "must have at least 2 characters"),
        (json!({"maxLength": 1}), json!("ab"), "range", "must have at most 1 character"),
        (json!({"minItems": 1}), json!([]), "range", "must have at least 1 item"),
        (json!({"maxItems": 2}), json!([1, 2, 3]), "range", "must have at most 2 items"),
        (
            json!({"enum": ["slow", "fast", 3, null]}),
            json!("x"),
            "range",
            "must be one of \"slow\", \"fast\", 3, null",
        ),
        (
            json!({"enum": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}),
            json!(0),
            "range",
            "must be one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …",
        ),
        (json!({"const": 3}), json!(4), "range", "must be 3"),
        (
            json!({"const": 3, "enum": [1, 2]}),
            json!(3),
            "range",
            "cannot be given: no value keeps its limits",
        ),
        (json!({"required": ["x"]}), json!({}), "type", "must be given"),
        (json!({"properties": {}, "additionalProperties": false}), json!({"x": 1}), "type", "must be empty"),
        (
            json!({"properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            json!({"x": 1, "y": 2}),
            "type",
            "must have no members other than 'a', 'b'",
        ),
        (json!({"format": "date"}), json!("2026-02-30"), "format", "must be a date such as 2026-01-31"),
        (
            json!({"format": "date-time"}),
            json!("2026-01-31 12:00"),
            "format",
            "must be a time with a zone such as 2026-01-31T12:00:00Z",
        ),
        (json!({"format": "duration"}), json!("5 min"), "format", duration),
        (
            json!({"anyOf": [{"type": "number"}, {"type": "null"}]}),
            json!("x"),
            "type",
            "must be a number or null",
        ),
        (
            json!({"anyOf": [{"type": "number", "maximum": 3}, {"type": "null"}]}),
            json!(4),
            "range",
            "must be at most 3",
        ),
        (json!({"anyOf": [{"const": 1}, {"enum": [2, 3]}]}), json!(4), "range", "must be one of 1, 2, 3"),
        (
            json!({"anyOf": [{"maximum": 3}, {"minimum": 5}]}),
            json!(4),
            "type",
            "must have one of the declared forms",
        ),
    ];

    for (schema, value, kind, message) in cases {
        assert_eq!(refusal(&schema, &value), (kind, message.to_owned()), "{schema} for {value}");
    }
}

#[test]
fn every_broken_limit_is_reported_with_its_path() {
    let schema = json!({"type": "object", "required": ["well", "volume"], "additionalProperties": {"type": "string"},
        "properties": {"volume": {"type": "number", "maximum": 10, "multipleOf": 2},
                       "steps": {"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}}}});
    let value = json!({"volume": 13, "steps": [1, null, 0, "x"], "note": 3});

    let mut found: Vec<(String, String)> =
        errors(&schema, &value).into_iter().map(|error| (error.path.join("."), error.message)).collect();
    found.sort();

    let wanted = [
        ("note", "must be text"),
        ("steps.2", "must be at least 1"),
        ("steps.3", "must be a whole number or null"),
        ("volume", "must be a multiple of 2"),
        ("volume", "must be at most 10"),
        ("well", "must be given"),
    ];
    assert_eq!(found, wanted.map(|(path, message)| (path.to_owned(), message.to_owned())));
}

#[test]
fn a_schema_outside_the_subset_is_refused_with_its_place() {
    let cases = [
        (json!(null), "schema: a schema must be an object"),
        (json!(true), "schema: a schema must be an object"),
        (
            json!({"pattern": "a+"}),
            "schema: keyword \"pattern\" is not supported, so its limit would be ignored",
        ),
        (
            json!({"type": "array", "items": {"properties": {"x": {"oneOf": []}}}}),
            "schema/items/properties/x: keyword \"oneOf\" is not supported, so its limit would be ignored",
        ),
        (json!({"$ref": "#"}), "schema: keyword \"$ref\" is not supported, so its limit would be ignored"),
        (
            json!({"Minimum": 1}),
            "schema: keyword \"Minimum\" is not supported, so its limit would be ignored",
        ),
        (json!({"minimum": "0"}), "schema: \"minimum\" must be a number"),
        (json!({"maximum": null}), "schema: \"maximum\" must be a number"),
        (json!({"multipleOf": 0}), "schema: \"multipleOf\" must be more than 0"),
        (json!({"minLength": -1}), "schema: \"minLength\" must be a whole number that is not negative"),
        (json!({"maxItems": 1.5}), "schema: \"maxItems\" must be a whole number that is not negative"),
        (json!({"enum": []}), "schema: \"enum\" must be a list with at least one value"),
        (json!({"anyOf": []}), "schema: \"anyOf\" must be a list with at least one schema"),
        (json!({"anyOf": [3]}), "schema/anyOf: a schema must be an object"),
        (json!({"items": [{}]}), "schema/items: a schema must be an object"),
        (json!({"properties": []}), "schema: \"properties\" must be an object of schemas"),
        (json!({"required": "x"}), "schema: \"required\" must be a list of names"),
        (json!({"required": [1]}), "schema: \"required\" must be a list of names"),
        (json!({"format": "email"}), "schema: \"format\" must be \"date\", \"date-time\" or \"duration\""),
        (json!({"title": 3}), "schema: \"title\" must be a string"),
        (json!({"maximum": 3, "default": 4}), "schema: \"default\" breaks the limits beside it"),
    ];

    for (schema, message) in cases {
        assert_eq!(Schema::compile(&schema).expect_err("refused").to_string(), message, "{schema}");
    }
    let types = "must be one or a list of \"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\", \"object\"";
    for schema in
        [json!({"type": "int"}), json!({"type": []}), json!({"type": ["number", 3]}), json!({"type": null})]
    {
        assert_eq!(
            Schema::compile(&schema).expect_err("refused").to_string(),
            format!("schema: \"type\" {types}")
        );
    }
}

#[test]
fn a_schema_has_at_most_thirty_two_levels() {
    let nested = |keyword: &str, levels: usize| {
        (1..levels).fold(json!({"type": "array"}), |inner, _| match keyword {
            "anyOf" => json!({"anyOf": [inner]}),
            "properties" => json!({"properties": {"x": inner}}),
            keyword => json!({keyword: inner}),
        })
    };

    for keyword in ["items", "additionalProperties", "anyOf", "properties"] {
        assert!(Schema::compile(&nested(keyword, MAX_DEPTH)).is_ok(), "{keyword}");
        assert_eq!(Schema::compile(&nested(keyword, MAX_DEPTH + 1)).expect_err(keyword), BadSchema::TooDeep);
    }
    let constant = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
    for schema in [json!({"const": constant}), json!({"enum": [constant]}), json!({"default": constant})] {
        assert_eq!(Schema::compile(&schema).expect_err("too deep"), BadSchema::TooDeep);
    }
}

#[test]
fn numbers_are_compared_exactly() {
    let cases = [
        (json!({"type": "integer"}), json!(3.0), true),
        (json!({"type": "integer"}), json!(1e300), true),
        (json!({"type": "integer"}), json!(u64::MAX), true),
        (json!({"type": "number"}), json!(i64::MIN), true),
        (json!({"const": 1}), json!(1.0), true),
        (json!({"const": 1}), json!(true), false),
        (json!({"enum": [[1, {"a": 2}]]}), json!([1.0, {"a": 2.0}]), true),
        (json!({"maximum": 9_007_199_254_740_992_i64}), json!(9_007_199_254_740_993_i64), false),
        (json!({"maximum": 9_007_199_254_740_992.0}), json!(9_007_199_254_740_993_i64), false),
        (json!({"maximum": 1e300}), json!(u64::MAX), true),
        (json!({"minimum": -0.0}), json!(0), true),
        (json!({"minimum": 0}), json!(-0.0), true),
        (json!({"multipleOf": 0.1}), json!(0.3), true),
        (json!({"multipleOf": 0.1}), json!(300.3), true),
        (json!({"multipleOf": 0.1}), json!(0.35), false),
        (json!({"multipleOf": 0.1, "minimum": 0.05}), json!(0.35), true),
        (json!({"multipleOf": 2}), json!(9_007_199_254_740_993_i64), false),
        (json!({"multipleOf": 3, "minimum": -4}), json!(5), true),
        (json!({"multipleOf": 3, "minimum": -4}), json!(6), false),
        (json!({"multipleOf": 1}), json!(1.000_000_000_5), true),
        (json!({"multipleOf": 1}), json!(1.000_000_002), false),
        (json!({"multipleOf": 1e-300}), json!(1e300), false),
        (json!({"multipleOf": 1, "minimum": i64::MIN}), json!(u64::MAX), true),
    ];

    for (schema, value, ok) in cases {
        assert_eq!(compile(&schema).validate(&value).is_ok(), ok, "{schema} for {value}");
    }
}

#[test]
fn formats_take_what_the_worker_can_read() {
    let good = [
        ("date", vec!["2026-01-31", "2024-02-29", "0001-01-01", "9999-12-31"]),
        (
            "date-time",
            vec!["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456789+05:30", "0001-01-01T23:59:59-23:59"],
        ),
        (
            "duration",
            vec!["PT0S", "P1D", "P2W", "PT1H30M", "P1DT2H3M4.5S", "PT90M", "P999999999D", "PT0.000000001S"],
        ),
    ];
    let bad = [
        (
            "date",
            vec![
                "",
                "2026-1-31",
                "2025-02-29",
                "2026-13-01",
                "2026-01-00",
                "0000-01-01",
                "2026-01-31Z",
                "2026/01/31",
                "２026-01-3",
            ],
        ),
        (
            "date-time",
            vec![
                "2026-01-31",
                "2026-01-31T12:00:00",
                "2026-01-31 12:00:00Z",
                "2026-01-31T24:00:00Z",
                "2026-01-31T23:59:60Z",
                "2026-01-31T12:00:00.Z",
                "2026-01-31T12:00:00+24:00",
                "2026-01-31T12:00:00+0530",
                "2026-01-31t12:00:00Z",
                "2026-01-31T12:00:00z",
                "2026-01-31T12:00:00.1234567891Z",
                "2026-01-31T12:00Z",
            ],
        ),
        (
            "duration",
            vec![
                "",
                "P",
                "PT",
                "P1DT",
                "1D",
                "P1Y",
                "P1M",
                "P1W2D",
                "PT1M1H",
                "PT1.5M",
                "PT1,5S",
                "PT.5S",
                "PT5.S",
                "-P1D",
                "P-1D",
                "p1d",
                "PT1H1H",
                "P1D1D",
                "P9999999999D",
                "P999999999W",
                "P1H",
                "PT1D",
                "PTT1S",
                "PT1S ",
                "P+1D",
            ],
        ),
    ];

    for (cases, ok) in [(good, true), (bad, false)] {
        for (format, texts) in cases {
            for text in texts {
                assert_eq!(
                    compile(&json!({"format": format})).validate(&json!(text)).is_ok(),
                    ok,
                    "{format} {text:?}"
                );
            }
        }
    }
    assert!(compile(&json!({"format": "date"})).validate(&json!(3)).is_ok(), "says nothing about numbers");
}

#[test]
fn an_answer_has_at_most_thirty_two_errors() {
    let schema = json!({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]});
    let value = json!(vec![1; 10_000]);

    assert_eq!(errors(&schema, &value).len(), MAX_ERRORS);
}

#[test]
fn long_texts_of_declarations_and_keys_are_cut() {
    let long = "k".repeat(1_000);
    let chosen = refusal(&json!({"enum": [long, "x"]}), &json!(1)).1;
    let member = errors(&json!({"additionalProperties": {"type": "null"}}), &json!({long: 1}));

    assert!(chosen.len() < 100 && chosen.ends_with("…, \"x\""), "{chosen}");
    assert!(member.iter().all(|error| error.path.iter().all(|step| step.len() < 100)));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_i64..9).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[-0-9TZPDHMS:.+]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-c]", inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

/// Valid schemas with any of the keywords.
fn schema() -> impl Strategy<Value = Value> {
    let limit = prop_oneof![
        (-9_i64..9).prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(if f.is_finite() { f } else { 1.5 }))
    ];
    let leaf = prop_oneof![
        Just(json!({})),
        prop::sample::select(vec!["null", "boolean", "integer", "number", "string", "array", "object"])
            .prop_map(|t| json!({"type": t})),
        prop::sample::select(vec!["date", "date-time", "duration"]).prop_map(|f| json!({"format": f})),
        (
            prop::sample::select(vec!["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
            limit.clone()
        )
            .prop_map(|(keyword, limit)| json!({keyword: limit})),
        (limit, 1e-3..1e3).prop_map(|(minimum, step)| json!({"minimum": minimum, "multipleOf": step})),
        (prop::sample::select(vec!["minLength", "maxLength", "minItems", "maxItems"]), 0..6)
            .prop_map(|(keyword, n)| json!({keyword: n})),
        prop::collection::vec(json_value(), 1..4).prop_map(|choices| json!({"enum": choices})),
        json_value().prop_map(|constant| json!({"const": constant})),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| json!({"items": items})),
            inner.clone().prop_map(|rest| json!({"additionalProperties": rest, "required": ["a"]})),
            inner.clone().prop_map(|a| json!({"properties": {"a": a}, "additionalProperties": false})),
            prop::collection::vec(inner, 1..4).prop_map(|branches| json!({"anyOf": branches})),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_a_schema_or_an_error(schema in json_value(), value in json_value()) {
        let _ = Schema::compile(&schema).map(|schema| schema.validate(&value));
    }

    #[test]
    fn every_value_is_accepted_or_refused_with_known_kinds(schema in schema(), value in json_value()) {
        let compiled = Schema::compile(&schema);
        prop_assert!(compiled.is_ok(), "{}: {:?}", schema, compiled);
        if let Ok(Err(errors)) = compiled.map(|schema| schema.validate(&value)) {
            prop_assert!((1..=MAX_ERRORS).contains(&errors.len()));
            for error in errors {
                prop_assert!(["type", "range", "format"].contains(&error.kind));
                prop_assert!(error.message.starts_with("must ") || error.message.starts_with("cannot "), "{}", error.message);
            }
        }
    }

    #[test]
    fn a_refused_text_is_never_repeated(schema in schema(), secret in "[a-z]{4}[0-9]{12}") {
        let value = json!({"a": secret, "b": [secret, {"c": secret}]});
        for value in [json!(secret), json!([secret]), value] {
            for error in compile(&schema).validate(&value).err().unwrap_or_default() {
                prop_assert!(!error.message.contains(&secret), "{}", error.message);
                prop_assert!(!error.path.concat().contains(&secret));
            }
        }
    }

    #[test]
    fn every_whole_number_of_steps_is_accepted_and_half_a_step_is_not(
        base in -1000_i32..1000, decimals in 0..4, step in 1_i32..1000, count in 0_i32..10_000,
    ) {
        let scale = 10_f64.powi(decimals);
        let at = |units: f64| units / scale;
        let (base, step, count) = (f64::from(base), f64::from(step), f64::from(count));
        let schema = compile(&json!({"minimum": at(base), "multipleOf": at(step)}));
        prop_assert!(schema.validate(&json!(at(base + count * step))).is_ok());
        prop_assert!(schema.validate(&json!(at(base + (count + 0.5) * step))).is_err());
    }

    #[test]
    fn integer_limits_are_exact(limit in any::<i64>(), value in any::<i64>()) {
        let ok = |keyword: &str| compile(&json!({keyword: limit})).validate(&json!(value)).is_ok();
        prop_assert_eq!(ok("minimum"), value >= limit);
        prop_assert_eq!(ok("maximum"), value <= limit);
        prop_assert_eq!(ok("exclusiveMinimum"), value > limit);
        prop_assert_eq!(ok("exclusiveMaximum"), value < limit);
    }
}

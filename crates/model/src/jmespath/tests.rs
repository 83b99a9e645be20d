//! Expressions and what they answer.

use serde_json::{Value, json};

use super::*;

fn data() -> Value {
    json!({
        "plate": {"id": "P-7", "wells": [
            {"name": "A1", "ph": 7.5, "tags": ["acid", "hot"]},
            {"name": "A2", "ph": 6, "tags": []},
            {"name": "A3", "ph": 8.25, "tags": ["cold"], "note": null},
        ]},
        "counts": {"red": 3, "green": 0, "blue": 12},
        "odd name": true, "nothing": null, "zero": 0, "empty": [], "text": "größe",
        "nested": [[1, 2], [3, [4]], 5],
    })
}

fn ask(text: &str) -> Value {
    let expression = Expression::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expression.search(&data(), &mut Fuel::of(100_000)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn expressions_answer() {
    for (text, expected) in [
        ("plate.id", json!("P-7")),
        ("plate.missing.deeper", json!(null)),
        ("\"odd name\"", json!(true)),
        ("plate.wells[0].name", json!("A1")),
        ("plate.wells[-1].name", json!("A3")),
        ("plate.wells[9]", json!(null)),
        ("plate.wells[*].name", json!(["A1", "A2", "A3"])),
        ("plate.wells[].tags[]", json!(["acid", "hot", "cold"])),
        ("plate.wells[?ph > `7`].name", json!(["A1", "A3"])),
        ("plate.wells[?ph > `7`].name | [0]", json!("A1")),
        ("plate.wells[?contains(tags, 'hot')] | length(@)", json!(1)),
        ("plate.wells[1:].name", json!(["A2", "A3"])),
        ("plate.wells[::-1].name", json!(["A3", "A2", "A1"])),
        ("plate.wells[*].[name, ph]", json!([["A1", 7.5], ["A2", 6], ["A3", 8.25]])),
        ("plate.wells[0].{n: name, p: ph}", json!({"n": "A1", "p": 7.5})),
        ("counts.*", json!([12, 0, 3])),
        ("nested[]", json!([1, 2, 3, [4], 5])),
        ("nested[][]", json!([1, 2, 3, 4, 5])),
        ("(plate.wells[*].name)[0]", json!("A1")),
        ("plate.wells[*].name[0]", json!([])),
        ("nothing || 'else'", json!("else")),
        ("zero || 'else'", json!(0)),
        ("empty && 'then'", json!([])),
        ("!empty", json!(true)),
        ("zero == `0.0` && nothing != `1`", json!(true)),
        ("'a' < 'b' && `2` >= `2`", json!(true)),
        ("'a' < `1`", json!(null)),
        ("sort_by(plate.wells, &ph)[*].name", json!(["A2", "A1", "A3"])),
        ("max_by(plate.wells, &ph).name", json!("A3")),
        ("sum(values(counts))", json!(15)),
        ("avg(values(counts))", json!(5.0)),
        ("join('-', sort(keys(counts)))", json!("blue-green-red")),
        ("length(text)", json!(5)),
        ("reverse(text)", json!("eßörg")),
        ("ceil(plate.wells[0].ph)", json!(8)),
        ("to_string(counts)", json!(r#"{"blue":12,"green":0,"red":3}"#)),
        ("to_number('12')", json!(12)),
        ("to_number('x')", json!(null)),
        ("type(nothing)", json!("null")),
        ("not_null(nothing, missing, zero)", json!(0)),
        ("merge(counts, `{\"red\": 1}`).red", json!(1)),
        ("map(&note, plate.wells)", json!([null, null, null])),
        ("max(`[]`)", json!(null)),
        ("'it\\'s'", json!("it's")),
    ] {
        assert_eq!(ask(text), expected, "{text}");
    }
}

#[test]
fn what_is_no_expression_is_refused_with_its_place() {
    for (text, at, part) in [
        ("", 1, "too early"),
        ("plate.", 7, "too early"),
        ("plate..id", 7, "does not belong"),
        ("plate id", 7, "does not belong"),
        ("a = b", 3, "write '=='"),
        ("${a}", 1, "without ${ }"),
        ("a['b']", 3, "does not belong"),
        ("length(a, b)", 12, "length(string, array or object)"),
        ("len(a)", 1, "no such function"),
        ("sort_by(a, b)", 13, "&expression"),
        ("&a", 1, "does not belong"),
        ("'open", 1, "closing '"),
        ("\"open\\\"", 1, "closing \""),
        ("`{bad`", 1, "not JSON"),
        ("a[::0]", 6, "not 0"),
        ("a[1:2:3:4]", 8, "does not belong"),
        ("a[99999999999999999999]", 3, "too large"),
        ("größe", 3, "double quotes"),
    ] {
        let error = Expression::compile(text).expect_err(text);
        assert!(error.message.contains(part), "{text}: {error}");
        assert_eq!(error.at, at, "{text}: {error}");
    }
}

#[test]
fn functions_refuse_what_they_do_not_take_and_name_types_only() {
    for text in
        ["length(zero)", "sum(nested)", "join(',', nested)", "sort(nested)", "abs(text)", "keys(empty)"]
    {
        let expression = Expression::compile(text).expect("an expression");
        let error = expression.search(&data(), &mut Fuel::of(10_000)).expect_err(text);
        assert!(matches!(error, EvalError::Type { .. }), "{text}: {error}");
        assert!(!error.to_string().contains("größe"), "{error}");
    }
}

#[test]
fn conditions_hold_for_what_is_not_empty_and_not_zero() {
    for (text, expected) in [
        ("plate", true),
        ("counts.red", true),
        ("zero", false),
        ("nothing", false),
        ("empty", false),
        ("length(empty)", false),
        ("''", false),
        ("missing", false),
        ("`-0.0`", false),
        ("plate.wells[?ph > `9`]", false),
    ] {
        let expression = Expression::compile(text).expect("an expression");
        assert_eq!(expression.holds(&data(), &mut Fuel::of(10_000)), Ok(expected), "{text}");
    }
}

#[test]
fn long_and_deep_expressions_are_refused_before_they_cost() {
    for text in [
        "(".repeat(1_000),
        "!".repeat(1_000) + "a",
        "[".repeat(1_000),
        "a[?".repeat(300),
        "{a:".repeat(300),
        "a|".repeat(500) + "a",
        "a.".repeat(5_000) + "a",
        "abs(".repeat(200),
        "*.".repeat(500) + "a",
    ] {
        assert!(Expression::compile(&text).is_err() || text.len() <= LONGEST, "{}", &text[..20]);
    }
    let chain = vec!["a"; 250].join(".");
    assert_eq!(ask(&chain), Value::Null);
}

#[test]
fn answers_that_explode_run_out_of_fuel() {
    // Each step doubles what the one before gave; written out, they would not fit into any memory.
    for text in [
        vec!["[@,@]"; 100].join("|"),
        format!("`[1]`|{}", vec!["[@,@][]"; 100].join("|")),
        format!("'x'|{}", vec!["join('',[@,@])"; 60].join("|")),
        format!("{}|@==@", vec!["[@,@]"; 100].join("|")),
        format!("{}|to_string(@)", vec!["{a:@,b:@}"; 90].join("|")),
    ] {
        let expression = Expression::compile(&text).expect("an expression");
        let mut fuel = Fuel::of(1_000_000);
        assert_eq!(expression.search(&data(), &mut fuel), Err(EvalError::TooMuch), "{}", &text[..20]);
        assert_eq!(fuel.left(), 0);
    }
}

proptest::proptest! {
    #[test]
    fn any_text_compiles_or_is_refused(text in "[a-z0-9.*\\[\\]{}()?:,|&!<>='\"`@ -]{0,60}") {
        if let Ok(expression) = Expression::compile(&text) {
            let _ = expression.search(&data(), &mut Fuel::of(10_000));
        }
    }
}

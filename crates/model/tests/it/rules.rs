//! What a rule refuses, where it says so, and that nothing makes it panic or hold by accident.

use interlock_model::rule::{BadRule, Broken, MAX_CHARS, MAX_LEVELS, Rule};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const NAMES: [&str; 5] = ["r", "y", "b", "text", "items"];

fn values() -> Map<String, Value> {
    let values = json!({"r": 10, "y": 20.5, "b": 300, "text": "Größe", "items": [1, "a", null, [2, 3]]});
    values.as_object().expect("an object").clone()
}

fn compile(expr: &str) -> Result<Rule, BadRule> {
    Rule::compile(expr, &NAMES)
}

fn value(expr: &str) -> Result<Value, Broken> {
    compile(expr).unwrap_or_else(|error| panic!("{expr}: {error}")).evaluate(&values())
}

#[test]
fn a_bad_expression_is_refused_with_its_place() {
    let cases = [
        ("", "expected a value at character 1, found the end"),
        ("r +", "expected a value at character 4, found the end"),
        ("r = 3", "expected \"==\" to compare at character 3, found '='"),
        ("r <= 3 y", "expected an operator or the end at character 8, found \"y\""),
        ("1 < r < 3", "expected an operator or the end at character 7, found \"<\""),
        ("not not r", "expected a value at character 5, found \"not\""),
        ("--r", "expected a value at character 2, found \"-\""),
        ("(r + y", "expected an operator or \")\" at character 7, found the end"),
        ("[r y]", "expected \",\" or \"]\" at character 4, found \"y\""),
        ("[r,]", "expected a value at character 4, found \"]\""),
        ("min(r y)", "expected \",\" or \")\" at character 7, found \"y\""),
        ("r not 3", "expected an operator or the end at character 3, found \"not\""),
        ("'open", "the string that begins at character 1 does not end"),
        ("r < 1.", "expected digits after the point at character 6, found \".\""),
        ("2r < 3", "expected an operator or the end at character 2, found \"r\""),
        ("r < 1e999", "the number at character 5 is out of range"),
        ("z < 3", "\"z\" at character 1 is not a parameter"),
        (
            "r < 3 and sqrt(r) < 2",
            "there is no function \"sqrt\" (character 11); there are abs, min, max and len",
        ),
        ("abs() < 3", "abs at character 1 takes one value"),
        ("len(r, y) < 3", "len at character 1 takes one value"),
        ("min() < 3", "min at character 1 takes at least one value"),
        ("r.__class__", "expected a name, a value or an operator at character 2, found '.'"),
        ("r; y", "expected a name, a value or an operator at character 2, found ';'"),
        ("r % 2", "expected a name, a value or an operator at character 3, found '%'"),
        ("größe < 3", "expected a name, a value or an operator at character 3, found 'ö'"),
    ];

    for (expr, message) in cases {
        assert_eq!(compile(expr).expect_err(expr).to_string(), message, "{expr}");
    }
}

#[test]
fn the_declared_sizes_are_the_limits() {
    let longest = format!("r{}", " ".repeat(MAX_CHARS - 1));
    let nested =
        |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));

    assert!(compile(&longest).is_ok());
    assert_eq!(compile(&format!("{longest} ")).expect_err("too long"), BadRule::TooLong);
    assert!(compile(&format!("'{}' == text", "ß".repeat(MAX_CHARS - 10))).is_ok(), "characters, not bytes");
    for (open, close) in [("(", ")"), ("[", "]"), ("max(", ")")] {
        assert!(compile(&nested(open, close, MAX_LEVELS)).is_ok(), "{open}");
        let refused = compile(&nested(open, close, MAX_LEVELS + 1)).expect_err(open);
        assert_eq!(refused, BadRule::TooDeep { at: open.len() * MAX_LEVELS + 1 }, "{open}");
    }
    assert!(compile(&"(".repeat(MAX_CHARS)).is_err());
}

#[test]
fn the_deepest_and_the_longest_rule_fit_a_small_stack() {
    let deep = format!("{}r <= 3{}", "not (-1 * 2 + (".repeat(16), "))".repeat(16));
    let long = format!("r{}", "+r".repeat(249));
    let small = std::thread::Builder::new().stack_size(512 * 1024);

    let thread = small.spawn(move || {
        (
            compile(&deep).map(|rule| rule.holds(&values())),
            compile(&long).map(|rule| rule.evaluate(&values())),
        )
    });
    let (deep, long) = thread.expect("starts").join().expect("does not overflow");

    assert_eq!(deep, Ok(false));
    assert_eq!(long, Ok(Ok(json!(2500.0))));
}

#[test]
fn an_expression_without_a_value_says_why_and_does_not_hold() {
    let cases = [
        ("r < text", Broken::Kinds),
        ("null < 1", Broken::Kinds),
        ("true < 1", Broken::Kinds),
        ("items < items", Broken::Kinds),
        ("r / 0 > 1", Broken::DivisionByZero),
        ("r / (y - 20.5) > 1", Broken::DivisionByZero),
        ("1e308 * 10 > 1", Broken::NumberRange),
        ("text + text == text", Broken::NotANumber),
        ("-text == 1", Broken::NotANumber),
        ("abs(null) == 1", Broken::NotANumber),
        ("min('a', 'b') == 'a'", Broken::NotANumber),
        ("max(items) == 1", Broken::NotANumber),
        ("r and true", Broken::NotABoolean),
        ("not null", Broken::NotABoolean),
        ("false or r", Broken::NotABoolean),
        ("len(r) == 1", Broken::NotAContainer),
        ("1 in r", Broken::NotAContainer),
        ("1 in text", Broken::NotAContainer),
        ("min([]) == 1", Broken::Empty),
    ];

    for (expr, why) in cases {
        assert_eq!(value(expr), Err(why), "{expr}");
        assert!(!compile(expr).expect(expr).holds(&values()), "{expr}");
        assert!(!compile(&format!("not ({expr})")).expect(expr).holds(&values()), "not ({expr})");
    }
}

#[test]
fn what_decides_early_hides_what_would_break() {
    assert_eq!(value("false and r / 0 > 1"), Ok(json!(false)));
    assert_eq!(value("true or r / 0 > 1"), Ok(json!(true)));
    assert_eq!(value("r > 5 and y > 5 and not b < 5"), Ok(json!(true)));
}

#[test]
fn only_true_holds() {
    for expr in ["1", "'true'", "[true]", "null", "r", "false"] {
        assert!(!compile(expr).expect(expr).holds(&values()), "{expr}");
    }
    assert!(compile("True").expect("True").holds(&values()));
}

#[test]
fn a_name_without_a_value_is_null() {
    let rule = compile("r == null or r > 2").expect("compiles");

    assert!(rule.holds(&Map::new()));
    assert!(!compile("r < 2").expect("compiles").holds(&Map::new()));
}

#[test]
fn a_deep_value_breaks_the_rule_instead_of_the_stack() {
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    let mut values = values();
    values.insert("items".to_owned(), deep);

    let answer = compile("items == items").expect("compiles").evaluate(&values);

    assert_eq!(answer, Err(Broken::TooDeep));
}

/// Arithmetic as text and as the double it must be.
fn arithmetic() -> impl Strategy<Value = (String, f64)> {
    let leaf =
        (0_u32..1_000_000).prop_map(|n| (format!("{}.{}", n / 100, n % 100 / 10), f64::from(n / 10) / 10.0));
    leaf.prop_recursive(4, 16, 2, |inner| {
        (inner.clone(), inner, prop::sample::select(vec!['+', '-', '*'])).prop_map(
            |((a, x), (b, y), sign)| {
                let value = match sign {
                    '+' => x + y,
                    '-' => x - y,
                    _ => x * y,
                };
                (format!("({a} {sign} {b})"), value)
            },
        )
    })
    .prop_filter("fits", |(text, _)| text.len() <= MAX_CHARS)
}

/// Words of the language in any order.
fn words() -> impl Strategy<Value = String> {
    let words = vec![
        "r", "y", "text", "items", "1", "0", "2.5e3", "'a'", "\"b\"", "true", "None", "and", "or", "not",
        "in", "<=", "<", "==", "!=", "+", "-", "*", "/", "(", ")", "[", "]", ",", "abs(", "min(", "max(",
        "len(",
    ];
    prop::collection::vec(prop::sample::select(words), 0..40).prop_map(|words| words.join(" "))
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,3}", inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,600}") {
        let _ = compile(&text).map(|rule| rule.holds(&values()));
    }

    #[test]
    fn any_words_over_any_values_have_a_value_or_break(text in words(), r in json_value(), items in json_value()) {
        let values: Map<String, Value> = [("r".to_owned(), r), ("items".to_owned(), items)].into_iter().collect();
        if let Ok(rule) = compile(&text) {
            prop_assert_eq!(rule.holds(&values), rule.evaluate(&values) == Ok(Value::Bool(true)));
        }
    }

    #[test]
    fn arithmetic_is_that_of_doubles((text, wanted) in arithmetic()) {
        prop_assert_eq!(value(&text).map(|value| value.as_f64()), Ok(Some(wanted + 0.0)));
    }

    #[test]
    fn products_bind_before_sums_and_sums_before_comparisons(a in -99..99, b in -99..99, c in -99..99, d in -99..99) {
        let text = format!("{a} + {b} * {c} - {d} <= {d} or not {a} - {b} - {c} > 0 and {a} == {b}");
        let wanted = a + b * c - d <= d || (a - b - c <= 0 && a == b);
        prop_assert_eq!(value(&text), Ok(json!(wanted)));
    }

    #[test]
    fn every_value_equals_itself_and_is_in_a_list_of_it(any_value in json_value()) {
        let values: Map<String, Value> = [("r".to_owned(), any_value)].into_iter().collect();
        for expr in ["r == r", "r in [r]", "not r != r", "[1, r] == [1, r]"] {
            prop_assert!(compile(expr).expect(expr).holds(&values), "{}", expr);
        }
    }
}

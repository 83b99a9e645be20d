//! Documents as YAML and lists as CSV. Both are made of the JSON form, so that every form says the same.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::ui::json_text;

/// YAML 1.2 in blocks. Texts are quoted as JSON has them, so that none is taken for a number, a date or a switch, and none moves a
/// terminal; names are bare where that is safe.
pub(super) fn yaml<T: Serialize>(document: &T) -> String {
    let value = serde_json::to_value(document).unwrap_or_default();
    let mut text = String::new();
    block(&mut text, &value, 0);
    text.trim_start_matches('\n').to_owned()
}

fn name(text: &str) -> String {
    let mut letters = text.chars();
    let plain = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    // Words that YAML 1.1 takes for something else.
    let word = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    if plain && !word { text.to_owned() } else { json_text(text, false) }
}

/// Writes what stands behind `name:` or `-`: on the same line if it is one word, else on lines of its own.
fn block(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, member) in members {
                let _ = write!(out, "\n{indent}{}:", name(key));
                block(out, member, depth + 1);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(&mut inner, item, depth + 1);
                // The first member of an item stands beside its dash.
                let inner = inner.strip_prefix('\n').map_or(inner.as_str(), str::trim_start);
                let _ = write!(out, "\n{indent}- {}", inner.trim_start());
            }
        }
        scalar => {
            let _ = write!(out, "{}{}", if depth == 0 { "" } else { " " }, json_text(scalar, false));
        }
    }
}

/// CSV as RFC 4180 has it, with a line of names: a column for each member that any item has, `id` first. Texts stand as they are,
/// numbers and switches as in JSON, `null` is empty, lists and objects are JSON. A text that a spreadsheet would compute gets a
/// single quote before it.
pub(super) fn csv<T: Serialize>(items: &[T]) -> String {
    let rows: Vec<Value> = items.iter().map(|item| serde_json::to_value(item).unwrap_or_default()).collect();
    let mut names: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !names.contains(&key.as_str()) {
            names.push(key);
        }
    }
    names.sort_by_key(|name| *name != "id");
    if rows.iter().any(|row| !row.is_object()) {
        names = vec!["value"];
    }
    let line = |cells: Vec<String>| cells.join(",");
    let mut lines = vec![line(names.iter().map(|name| cell(&Value::from(*name))).collect())];
    lines.extend(rows.iter().map(|row| {
        let of = |name: &&str| if row.is_object() { cell(&row[*name]) } else { cell(row) };
        line(names.iter().map(of).collect())
    }));
    lines.join("\r\n")
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => {
            // As JSON escapes it, but for the quotes: no control characters reach a terminal.
            let shown: String = text
                .chars()
                .map(|c| if super::text::is_plain(c) || c == '\n' { c } else { '\u{fffd}' })
                .collect();
            let computed = shown.starts_with(['=', '+', '-', '@', '\t', '\r']);
            if computed { format!("'{shown}") } else { shown }
        }
        other => json_text(other, false),
    };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_has_blocks_and_no_text_that_means_something_else() {
        let document = json!([
            { "id": "a1", "no": "yes", "when": "2026-01-01", "list": [1, [2, 3], { "x": null }], "none": [], "o": {} },
            "2e3\u{1b}"
        ]);

        let text = yaml(&document);

        assert_eq!(
            text,
            "- id: \"a1\"\n  list:\n    - 1\n    - - 2\n      - 3\n    - x: null\n  \"no\": \"yes\"\n  none: []\n  o: {}\n  when: \
             \"2026-01-01\"\n- \"2e3\\u001b\""
        );
        assert_eq!(yaml(&json!({ "id": 7 })), "id: 7");
        assert_eq!(yaml(&json!([])), "[]");
        assert_eq!(yaml(&json!("x")), "\"x\"");
    }

    #[test]
    fn csv_has_a_column_for_each_member_and_nothing_is_computed() {
        let items = [
            json!({ "at": 1, "id": "a", "title": "say \"hi\", twice", "deep": { "x": [1] } }),
            json!({ "id": "b", "title": "=1+1", "gone": null, "at": -3.5 }),
        ];

        let text = csv(&items);

        assert_eq!(
            text,
            "id,at,deep,title,gone\r\na,1,\"{\"\"x\"\":[1]}\",\"say \"\"hi\"\", twice\",\r\nb,-3.5,,'=1+1,"
        );
        assert_eq!(csv(&[json!("2026-01-01T00:00:00Z")]), "value\r\n2026-01-01T00:00:00Z");
        assert_eq!(cell(&json!("a\u{1b}[2J")), "a\u{fffd}[2J");
    }
}

//! `interlock security access`: who may what, with which credentials, for a review.

use serde_json::{Value, json};

use super::connect::Session;
use super::failure::Failure;
use super::global::Global;
use super::text::line;
use super::ui::{Table, Ui};

/// Columns of the list: one line for each credential, or one for whoever has none.
const COLUMNS: [&str; 13] = [
    "kind",
    "id",
    "name",
    "roles",
    "disabled",
    "made",
    "last_seen",
    "credential",
    "credential_id",
    "credential_made",
    "credential_used",
    "credential_ends",
    "scopes",
];

pub(super) async fn review(ui: &Ui, global: &Global, csv: bool) -> Result<(), Failure> {
    let found = Session::open(global)?.client.access().await?;
    if csv {
        let mut lines = vec![COLUMNS.join(",")];
        lines.extend(found.iter().flat_map(rows).map(|row| row.map(|text| cell(&text)).join(",")));
        return ui.out(&lines.join("\n"));
    }
    let table = |principals: &[Value]| {
        let mut table = Table::new(&["WHO", "ROLES", "SEEN", "CREDENTIAL", "MADE", "USED", "ENDS", "SCOPES"]);
        for [_, _, name, roles, disabled, _, seen, credential, id, made, used, ends, scopes] in
            principals.iter().flat_map(rows)
        {
            let name = if disabled == "true" { format!("{name} (disabled)") } else { name };
            let credential = format!("{credential} {id}");
            table.row([name, roles, seen, credential.trim().to_owned(), made, used, ends, scopes]);
        }
        table
    };
    ui.list(&found, table, |principal| text(&principal["id"]))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => line(text),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn rows(principal: &Value) -> Vec<[String; 13]> {
    let none = [json!({})];
    let credentials = principal["credentials"].as_array().filter(|all| !all.is_empty());
    let row = |credential: &Value| {
        let of = |member: &str| text(&principal[member]);
        let its = |member: &str| text(&credential[member]);
        // A credential without limits of its own does what its owner may.
        let scopes = if credential["scopes"].is_null() { of("scopes") } else { its("scopes") };
        [
            of("kind"),
            of("id"),
            of("name"),
            of("roles"),
            of("disabled"),
            of("created_at"),
            of("last_seen_at"),
            its("kind"),
            its("id"),
            its("created_at"),
            its("last_used_at"),
            its("expires_at"),
            scopes,
        ]
    };
    credentials.map_or(&none[..], Vec::as_slice).iter().map(row).collect()
}

/// A cell of RFC 4180. What a spreadsheet would take for a formula is made text.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_or_breaks_its_line() {
        assert_eq!(cell("=cmd|' /C calc'!A0"), "'=cmd|' /C calc'!A0");
        assert_eq!(cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(cell("plain"), "plain");
    }
}

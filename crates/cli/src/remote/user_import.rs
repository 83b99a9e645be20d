//! `interlock user import`: people of an earlier system with their bcrypt hashes, on the server's own machine.

use std::path::Path;

use interlock_engine::users::UserError;
use serde::Deserialize;
use serde_json::json;

use super::failure::{Failure, exit};
use super::text::line;
use super::ui::{Table, Ui};
use crate::local::Local;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// A person as the file has them.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    password_hash: String,
    roles: Vec<String>,
}

pub(super) async fn import(ui: &Ui, local: &Local, file: &Path) -> Result<(), Failure> {
    let text = read(file)?;
    let rows = parse(&text).map_err(|reason| {
        let hint = "a JSON array of {name, password_hash, roles}, or CSV with the line name,password_hash,roles first and roles separated by spaces";
        Failure::new(exit::PARAMETERS, format!("{} is not a list of users", file.display()), hint).because(reason)
    })?;
    let mut outcomes = Vec::new();
    for row in &rows {
        let outcome = match local.import(&row.name, row.password_hash.clone(), &row.roles).await {
            Ok(_) => None,
            Err(UserError::Store(error)) => {
                return Err(Failure::new(exit::ERROR, "the users cannot be stored", "interlock doctor")
                    .because(error.to_string()));
            }
            Err(error) => Some(error.to_string()),
        };
        outcomes.push(json!({ "name": row.name, "imported": outcome.is_none(), "reason": outcome }));
    }
    let failed = outcomes.iter().filter(|outcome| !outcome["reason"].is_null()).count();
    ui.list(&outcomes, table, |outcome| outcome["name"].as_str().unwrap_or_default().to_owned())?;
    if failed == 0 {
        return Ok(());
    }
    let mut failure = Failure::new(
        exit::PARAMETERS,
        format!("{failed} of {} users were not imported", rows.len()),
        "mend these rows and import them again; the others are done",
    );
    failure.answered = true;
    Err(failure)
}

fn table(outcomes: &[serde_json::Value]) -> Table {
    let mut table = Table::new(&["NAME", "IMPORTED", "REASON"]);
    for outcome in outcomes {
        let text = |member: &str| line(outcome[member].as_str().unwrap_or_default());
        let done = if outcome["imported"] == true { "yes" } else { "no" };
        table.row([text("name").as_str(), done, text("reason").as_str()]);
    }
    table
}

fn read(file: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::file("cannot read", file, &error, "check the path");
    let size = std::fs::metadata(file).map_err(failed)?.len();
    if size > MAX_BYTES {
        return Err(Failure::usage(
            format!("{} is larger than 16 MiB", file.display()),
            "import it in parts",
        ));
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// JSON if it begins like it, else CSV.
fn parse(text: &str) -> Result<Vec<Row>, String> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        // The error tells the place, not the content: there are hashes in it.
        return serde_json::from_str(text)
            .map_err(|error| format!("line {}, column {}: not of the form", error.line(), error.column()));
    }
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, head) = lines.next().ok_or("it is empty")?;
    let head: Vec<&str> = head.split(',').map(cell).collect();
    let place = |name: &str| {
        head.iter().position(|cell| *cell == name).ok_or(format!("the first line does not name {name}"))
    };
    let (name, hash, roles) = (place("name")?, place("password_hash")?, place("roles")?);
    lines
        .map(|(number, line)| {
            let cells: Vec<&str> = line.split(',').map(cell).collect();
            if cells.len() != head.len() {
                return Err(format!("line {}: {} cells instead of {}", number + 1, cells.len(), head.len()));
            }
            Ok(Row {
                name: cells[name].to_owned(),
                password_hash: cells[hash].to_owned(),
                roles: cells[roles]
                    .split([' ', ';', '|'])
                    .filter(|r| !r.is_empty())
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .collect()
}

fn cell(text: &str) -> &str {
    text.trim().trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            name: "ida".to_owned(),
            password_hash: "$2b$12$x".to_owned(),
            roles: vec!["operator".to_owned(), "viewer".to_owned()],
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let json = r#"[{"name": "ida", "password_hash": "$2b$12$x", "roles": ["operator", "viewer"]}]"#;
        let csv = "roles,name,password_hash\n\"operator viewer\",ida,$2b$12$x\n\n";

        assert_eq!(parse(json), Ok(vec![row()]));
        assert_eq!(parse(csv), Ok(vec![row()]));
    }

    #[test]
    fn what_is_not_of_the_form_is_refused_without_showing_a_hash() {
        for bad in [
            "",
            "name,password_hash\nida,$2b$12$x",
            "name,password_hash,roles\nida,$2b$12$x",
            r#"[{"name": "ida", "password_hash": "$2b$12$x", "roles": "operator"}]"#,
            r#"[{"name": "ida", "password_hash": "$2b$12$x", "roles": [], "password": "x"}]"#,
        ] {
            let refused = parse(bad).expect_err(bad);
            assert!(!refused.contains("$2b$"), "{refused}");
        }
    }
}

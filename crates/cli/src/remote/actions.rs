//! `interlock action`: what the device can do, and what a file would declare.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_model::device::{ActionSpec, ParamSpec};
use serde_json::Value;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::text::{block, line, nearest, shortened};
use super::ui::{Table, Ui, json_text};

/// What the device can do.
#[derive(Debug, Subcommand)]
pub(crate) enum ActionCommand {
    /// List the actions of the device
    List,
    /// Show what an action takes
    #[command(alias = "show")]
    Schema {
        /// Its name
        name: String,
    },
    /// Find what is missing in the declarations of a Python file. The file is executed, its actions are not
    Lint {
        /// The file
        file: PathBuf,
    },
}

pub(crate) async fn action(ui: &Ui, global: &Global, command: ActionCommand) -> Result<(), Failure> {
    match command {
        ActionCommand::List => {
            let answer = Session::open(global)?.client.actions().await?;
            ui.list(&answer.actions, list_table, |action| action.name.clone())
        }
        ActionCommand::Schema { name } => {
            let answer = Session::open(global)?.client.actions().await?;
            let Some(spec) = answer.actions.iter().find(|action| action.name == name) else {
                let hint = match nearest(&name, answer.actions.iter().map(|action| action.name.as_str())) {
                    Some(near) => format!("interlock action schema {}", line(near)),
                    None => "interlock action list".to_owned(),
                };
                return Err(Failure::new(
                    exit::NOT_FOUND,
                    format!("{} has no action '{}'", line(&answer.device.name), line(&name)),
                    hint,
                ));
            };
            match ui.output {
                Output::Table => schema(ui, spec),
                Output::Name => {
                    spec.parameters.iter().try_for_each(|parameter| ui.out(&line(&parameter.name)))
                }
                form => ui.out(&json_text(spec, form == Output::Json)),
            }
        }
        ActionCommand::Lint { file } => lint(ui, file).await,
    }
}

fn list_table(actions: &[ActionSpec]) -> Table {
    let mut table = Table::new(&["ACTION", "PARAMETERS", "EFFECTS", "ROLE", "DESCRIPTION"]);
    for action in actions {
        let parameters: Vec<String> = action.parameters.iter().map(brief).collect();
        let about = action.doc.as_deref().or(action.title.as_deref()).unwrap_or("");
        table.row([
            action.name.as_str(),
            &shortened(&parameters.join(" "), 50),
            action.effects.as_deref().unwrap_or(""),
            action.role.as_deref().unwrap_or("operator"),
            &shortened(about.lines().next().unwrap_or(""), 60),
        ]);
    }
    table
}

/// `r=0`, or `well` when it must be given.
fn brief(parameter: &ParamSpec) -> String {
    if parameter.required {
        parameter.name.clone()
    } else {
        format!("{}={}", parameter.name, plain(&parameter.default))
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => json_text(other, false),
    }
}

fn schema(ui: &Ui, action: &ActionSpec) -> Result<(), Failure> {
    let mut about = action.doc.clone().or_else(|| action.title.clone()).unwrap_or_default();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            about.extend(["\n", name, ": ", &value]);
        }
    };
    fact("effects", action.effects.clone());
    fact("role", Some(action.role.clone().unwrap_or_else(|| "operator".to_owned())));
    fact("duration", action.duration.clone());
    fact("time limit", action.timeout_seconds.map(super::text::seconds));
    fact("safe to repeat", Some(if action.idempotent { "yes" } else { "no" }.to_owned()));
    for rule in &action.rules {
        fact("rule", Some(format!("{} ({})", rule.message, rule.expr)));
    }
    ui.out(&format!("{}\n", block(&about).trim()))?;
    if action.parameters.is_empty() {
        ui.note(&format!("it takes no parameters: interlock run {}", line(&action.name)));
        return Ok(());
    }
    let table = |parameters: &[ParamSpec]| {
        let mut table = Table::new(&["PARAMETER", "TYPE", "UNIT", "DEFAULT", "LIMITS", "HELP"]);
        for parameter in parameters {
            let default = if parameter.required { "required".to_owned() } else { plain(&parameter.default) };
            table.row([
                parameter.name.as_str(),
                &parameter.kind,
                parameter.unit.as_deref().unwrap_or(""),
                &default,
                &shortened(&limits(&parameter.schema), 60),
                parameter.help.as_deref().unwrap_or(""),
            ]);
        }
        table
    };
    ui.list(&action.parameters, table, |parameter| parameter.name.clone())?;
    let example: Vec<String> = action
        .parameters
        .iter()
        .filter(|parameter| parameter.required)
        .map(|parameter| format!(" {}=…", parameter.name))
        .collect();
    ui.note(&format!("to run it: interlock run {}{}", line(&action.name), line(&example.concat())));
    Ok(())
}

/// A schema's limits in short: `0…300`, `slow | fast`.
fn limits(schema: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        parts.push(choices.iter().map(plain).collect::<Vec<_>>().join(" | "));
    }
    let bound = |name: &str| schema.get(name).filter(|value| value.is_number()).map(plain);
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => parts.push(format!("{low}…{high}")),
        (Some(low), None) => parts.push(format!("at least {low}")),
        (None, Some(high)) => parts.push(format!("at most {high}")),
        (None, None) => {}
    }
    let words = [
        ("exclusiveMinimum", "more than"),
        ("exclusiveMaximum", "less than"),
        ("multipleOf", "in steps of"),
        ("minLength", "characters from"),
        ("maxLength", "characters up to"),
        ("minItems", "items from"),
        ("maxItems", "items up to"),
    ];
    parts
        .extend(words.iter().filter_map(|(name, words)| bound(name).map(|value| format!("{words} {value}"))));
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        parts.push(
            branches.iter().map(limits).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" or "),
        );
    }
    if let Some(items) = schema.get("items").map(limits).filter(|items| !items.is_empty()) {
        parts.push(format!("each {items}"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

async fn lint(ui: &Ui, file: PathBuf) -> Result<(), Failure> {
    if !file.is_file() {
        return Err(Failure::new(
            exit::NOT_FOUND,
            format!("there is no file {}", file.display()),
            "check the path",
        ));
    }
    let asked = tokio::task::spawn_blocking(move || crate::python::lint(&file)).await;
    let failed = |cause: String| {
        let hint = "Python 3.7 or later must be installed as python3; INTERLOCK_PYTHON names another one";
        Failure::new(exit::ERROR, "the file cannot be linted", hint).because(cause)
    };
    let report =
        asked.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(format!("{error:#}")))?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let good = report["ok"].as_bool().unwrap_or(false);
    if matches!(ui.output, Output::Json | Output::Jsonl) {
        ui.out(&json_text(&report, ui.output == Output::Json))?;
    } else {
        let text = |finding: &Value, member: &str| finding[member].as_str().unwrap_or("").to_owned();
        let table = |findings: &[Value]| {
            let mut table = Table::new(&["LEVEL", "ACTION", "PARAMETER", "FINDING"]);
            for finding in findings {
                let place = finding["line"].as_u64().map(|at| format!(" (line {at})")).unwrap_or_default();
                let message = format!("{}{place}", text(finding, "message"));
                table.row([
                    text(finding, "level"),
                    text(finding, "action"),
                    text(finding, "parameter"),
                    message,
                ]);
            }
            table
        };
        if findings.is_empty() {
            ui.note("nothing is missing");
        } else {
            ui.list(&findings, table, |finding| text(finding, "message"))?;
        }
    }
    if good {
        return Ok(());
    }
    let mut failure =
        Failure::new(exit::ERROR, "the file cannot be served", "mend the findings of level error");
    failure.answered = true;
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_are_told_in_short() {
        assert_eq!(
            limits(&json!({"type": "number", "minimum": 0, "maximum": 300, "multipleOf": 0.5})),
            "0…300, in steps of 0.5"
        );
        assert_eq!(limits(&json!({"enum": ["slow", "fast"]})), "slow | fast");
        assert_eq!(limits(&json!({"anyOf": [{"type": "null"}, {"minimum": 1}]})), "at least 1");
        assert_eq!(
            limits(&json!({"type": "array", "items": {"maximum": 9}, "minItems": 1})),
            "items from 1, each at most 9"
        );
        assert_eq!(limits(&json!(null)), "");
    }
}

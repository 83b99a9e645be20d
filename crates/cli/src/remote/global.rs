//! Options of every command that talks to a server, and where their values come from.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use interlock_model::pipeline::TextTemplate;

use super::selection::Fields;

/// What a command prints on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// Documents, in the form that was asked for: [`Ui::document`](super::ui::Ui::document) knows it.
    Document,
    /// Ids or names only, one on each line.
    Name,
}

/// Form of what a command prints on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document on each line.
    Jsonl,
    /// Ids or names only, one on each line.
    Name,
    /// One YAML document.
    Yaml,
    /// Rows with a line of names.
    Csv,
    /// For people, with all there is: a column for each field.
    Wide,
}

impl Form {
    /// What is printed, whatever the notation.
    pub(crate) fn output(self) -> Output {
        match self {
            Self::Table | Self::Wide => Output::Table,
            Self::Json | Self::Jsonl | Self::Yaml | Self::Csv => Output::Document,
            Self::Name => Output::Name,
        }
    }
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Global {
    /// Form of the output: table, wide (every field), json, jsonl, yaml, csv (lists) or name
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        hide_possible_values = true,
        value_name = "FORM",
        help_heading = "Global options"
    )]
    pub(crate) output: Option<Form>,

    /// Print these fields only, such as id,device.state; with -o jsonl, yaml, csv or wide in that form
    #[arg(long, global = true, value_name = "FIELDS", help_heading = "Global options")]
    pub(crate) json: Option<Fields>,

    /// Print a line of this text for each thing, such as '${id} ${state}'; what stands in ${} is JMESPath
    #[arg(
        long,
        global = true,
        value_name = "TEXT",
        value_parser = TextTemplate::compile,
        conflicts_with_all = ["output", "json"],
        help_heading = "Global options"
    )]
    pub(crate) template: Option<TextTemplate>,

    /// Use this context instead of the current one [env: INTERLOCK_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) context: Option<String>,

    /// Address of the server, such as https://robot.example.org:8000 [env: INTERLOCK_URL, or ORCHESTRATOR_API]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub(crate) url: Option<String>,

    /// PEM file of the only certificate authority to trust [env: INTERLOCK_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) ca_file: Option<PathBuf>,

    /// Print results and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,

    /// Print more: every log line of a run
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,

    /// Never ask anything
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) no_input: bool,

    /// Answer yes to questions
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) yes: bool,
}

/// Environment variables, or a stand-in for them in tests.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable of the process that is set and not empty.
pub(crate) fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Global {
    /// The form of what is printed.
    pub(crate) fn form(&self) -> Form {
        match (self.output, &self.json) {
            _ if self.template.is_some() => Form::Json,
            // A table of chosen fields is a wide one of these.
            (Some(Form::Table), Some(_)) => Form::Wide,
            (Some(form), _) => form,
            (None, Some(_)) => Form::Json,
            (None, None) => Form::Table,
        }
    }

    /// Whether output is for programs.
    pub(crate) fn wants_json(&self) -> bool {
        matches!(self.form(), Form::Json | Form::Jsonl)
    }

    /// Whether a failure is a document on standard output, too.
    pub(crate) fn says_problems(&self) -> bool {
        self.template.is_none() && matches!(self.form(), Form::Json | Form::Jsonl | Form::Yaml)
    }
}

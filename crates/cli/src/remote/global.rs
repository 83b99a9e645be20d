//! Options of every command that talks to a server, and where their values come from.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What a command prints on standard output: for people, documents, or names. YAML and CSV say what JSON does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One document.
    Json,
    /// One document on each line.
    Jsonl,
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
    /// One YAML document. What is no list and no single thing is JSON, which YAML reads.
    Yaml,
    /// Rows with a line of names, for lists. What is no list is JSON.
    Csv,
}

impl Form {
    /// What is printed, whatever the notation.
    pub(crate) fn output(self) -> Output {
        match self {
            Self::Table => Output::Table,
            Self::Json | Self::Yaml | Self::Csv => Output::Json,
            Self::Jsonl => Output::Jsonl,
            Self::Name => Output::Name,
        }
    }
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Global {
    /// Form of the output: table, json, jsonl, yaml, csv (lists) or name
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_default_value = true,
        hide_possible_values = true,
        value_name = "FORM",
        help_heading = "Global options"
    )]
    pub(crate) output: Form,

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
    /// Whether output is for programs.
    pub(crate) fn wants_json(&self) -> bool {
        matches!(self.output.output(), Output::Json | Output::Jsonl)
    }
}

//! Standard output for data, standard error for people; colour and prompts only where somebody can see them.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter};

use super::failure::{Failure, exit};
use super::global::{Form, Global, Output, process_variable};
use super::notation::{csv, yaml};
use super::text::{is_plain, line};

/// How this process may talk.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about the terminal and switches of the command line"
)]
pub(crate) struct Ui {
    /// Form of data, without YAML and CSV.
    pub(crate) output: Output,
    /// Form of lists and single things.
    form: Form,
    /// Results and errors only.
    pub(crate) quiet: bool,
    /// More.
    pub(crate) verbose: bool,
    /// There is a person who can be asked.
    pub(crate) interactive: bool,
    /// Questions are answered already.
    pub(crate) yes: bool,
    /// Standard error shows a line that changes.
    pub(crate) live: bool,
    colour: bool,
    colour_data: bool,
}

impl Ui {
    pub(crate) fn new(global: &Global) -> Self {
        let (input, data, notes) =
            (io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal());
        let dumb = process_variable("TERM").is_some_and(|term| term == "dumb");
        let forced = process_variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let refused = process_variable("NO_COLOR").is_some();
        let coloured = |terminal: bool| forced || (terminal && !refused && !dumb);
        Self {
            output: global.output.output(),
            form: global.output,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            interactive: input && notes && !global.no_input,
            yes: global.yes,
            live: notes && !global.quiet && !dumb,
            colour: coloured(notes),
            colour_data: coloured(data) && global.output == Form::Table,
        }
    }

    /// One or more lines of data.
    ///
    /// # Errors
    /// [`Failure::reader_left`] when nobody reads any more.
    #[expect(
        clippy::unused_self,
        reason = "data goes through the same object as notes, so that nothing prints by itself"
    )]
    pub(crate) fn out(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.write_all(b"\n"))
            .and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::reader_left(),
            _ => Failure::new(
                exit::ERROR,
                "standard output cannot be written",
                "check the disk or the program that reads it",
            )
            .because(error.to_string()),
        })
    }

    /// A line for people, unless they want quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            Self::say(text);
        }
    }

    /// A line for people that quiet does not silence: warnings and what concerns safety.
    pub(crate) fn warn(&self, text: &str) {
        Self::say(&format!("{} {text}", self.bold("note:")));
    }

    fn say(text: &str) {
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        painted(self.colour, "1", text)
    }

    pub(crate) fn red(&self, text: &str) -> String {
        painted(self.colour, "1;31", text)
    }

    /// A state's word in its colour, for standard output.
    pub(crate) fn state(&self, word: &str) -> String {
        painted(self.colour_data, state_colour(word), word)
    }

    /// A state's word in its colour, for standard error.
    pub(crate) fn state_note(&self, word: &str) -> String {
        painted(self.colour, state_colour(word), word)
    }

    /// A list, in the form that was asked for. `name` gives what `-o name` prints of an item.
    pub(crate) fn list<T: Serialize>(
        &self,
        items: &[T],
        table: impl Fn(&[T]) -> Table,
        name: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        match self.form {
            Form::Table => table(items).print(self),
            Form::Yaml => self.out(&yaml(&items)),
            Form::Csv => self.out(&csv(items)),
            Form::Json => self.out(&json_text(&items, true)),
            Form::Jsonl => items.iter().try_for_each(|item| self.out(&json_text(item, false))),
            Form::Name => items.iter().try_for_each(|item| self.out(&line(&name(item)))),
        }
    }

    /// One thing, in the form that was asked for. `facts` are its lines for people.
    pub(crate) fn one<T: Serialize>(
        &self,
        item: &T,
        facts: impl FnOnce() -> Facts,
        name: &str,
    ) -> Result<(), Failure> {
        match self.form {
            Form::Table => facts().print(self),
            Form::Yaml => self.out(&yaml(item)),
            Form::Csv => self.out(&csv(std::slice::from_ref(item))),
            Form::Json => self.out(&json_text(item, true)),
            Form::Jsonl => self.out(&json_text(item, false)),
            Form::Name => self.out(&line(name)),
        }
    }
}

fn painted(colour: bool, code: &str, text: &str) -> String {
    if colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn state_colour(word: &str) -> &'static str {
    match word {
        "succeeded" | "ready" | "healthy" => "32",
        "running" | "busy" | "starting" => "36",
        "failed" | "timed_out" | "uncertain" | "stopped" | "held" | "unavailable" | "unhealthy" => "31",
        "cancelled" => "33",
        _ => "",
    }
}

/// JSON whose strings hold nothing that a terminal obeys: what serde leaves as it is (DEL, C1, changes of direction) is
/// escaped too, which every reader of JSON undoes.
pub(crate) fn json_text<T: Serialize + ?Sized>(value: &T, pretty: bool) -> String {
    let mut bytes = Vec::new();
    let written = if pretty {
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Plain(PrettyFormatter::new())))
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Plain(CompactFormatter)))
    };
    written.ok().and_then(|()| String::from_utf8(bytes).ok()).unwrap_or_else(|| "null".to_owned())
}

struct Plain<F>(F);

macro_rules! same {
    ($($name:ident($($argument:ident: $kind:ty),*));* $(;)?) => {
        $(fn $name<W: ?Sized + io::Write>(&mut self, writer: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.0.$name(writer $(, $argument)*)
        })*
    };
}

impl<F: Formatter> Formatter for Plain<F> {
    same! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
        write_char_escape(escape: CharEscape);
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, odd)) = rest.char_indices().find(|&(_, c)| !is_plain(c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            // All of these are in the first plane: one escape each.
            write!(writer, "\\u{:04x}", u32::from(odd))?;
            rest = &rest[at + odd.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Columns for people. Cells are cleaned when they are added.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    state_column: Option<usize>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let state_column = headings.iter().position(|&heading| heading == "STATE");
        Self { headings: headings.to_vec(), rows: Vec::new(), state_column }
    }

    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| line(cell.as_ref())).collect());
    }

    fn print(&self, ui: &Ui) -> Result<(), Failure> {
        if self.rows.is_empty() {
            ui.note("nothing to show");
            return Ok(());
        }
        ui.out(&self.render(ui))
    }

    fn render(&self, ui: &Ui) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        for (column, (heading, width)) in self.headings.iter().zip(&widths).enumerate() {
            let _ = if column + 1 == widths.len() {
                write!(text, "{heading}")
            } else {
                write!(text, "{heading:width$}  ")
            };
        }
        let mut text = painted(ui.colour_data, "1", text.trim_end());
        for row in &self.rows {
            text.push('\n');
            let mut cells = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = if column + 1 == row.len() { 0 } else { width + 2 - cell.chars().count() };
                let shown = if self.state_column == Some(column) { ui.state(cell) } else { cell.clone() };
                let _ = write!(cells, "{shown}{:padding$}", "");
            }
            text.push_str(cells.trim_end());
        }
        text
    }
}

/// Names and values of one thing, one on each line.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        self.0.push((name, line(value.as_ref())));
        self
    }

    #[must_use]
    pub(crate) fn maybe(self, name: &'static str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn print(&self, ui: &Ui) -> Result<(), Failure> {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| {
                let value = if *name == "state" { ui.state(value) } else { value.clone() };
                format!(
                    "{}{:gap$}  {value}",
                    painted(ui.colour_data, "1", name),
                    "",
                    gap = width - name.len()
                )
            })
            .collect();
        ui.out(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Ui {
        Ui {
            output: Output::Table,
            form: Form::Table,
            quiet: false,
            verbose: false,
            interactive: false,
            yes: false,
            live: false,
            colour: false,
            colour_data: false,
        }
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let mut table = Table::new(&["NAME", "STATE", "WHY"]);
        table.row(["mix", "ready", ""]);
        table.row(["heat_µ", "held", "a\nb"]);

        assert_eq!(table.render(&plain()), "NAME    STATE  WHY\nmix     ready\nheat_µ  held   a b");
    }

    #[test]
    fn json_escapes_what_a_terminal_obeys_and_means_the_same() {
        let hostile = "a\u{9b}2J\x1b\u{202e}\x7fb µ";

        let text = json_text(hostile, false);

        assert_eq!(text, "\"a\\u009b2J\\u001b\\u202e\\u007fb µ\"");
        assert_eq!(serde_json::from_str::<String>(&text).expect("JSON"), hostile);
    }
}

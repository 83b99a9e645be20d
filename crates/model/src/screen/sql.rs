//! SQL fragments, by the grammar of what follows what: "select the wells" is prose, `' or 1=1` is not.
//!
//! Every rule looks a bounded number of tokens ahead, so the work is linear.

use super::sql_tokens::{CLOSE, Kind, OPEN, QUOTE, Token, split};
use super::{Best, Family, Meter};

pub(super) const CONNECTORS: [&[u8]; 7] = [b"or", b"and", b"xor", b"having", b"where", b"||", b"&&"];
pub(super) const COMPARISONS: [&[u8]; 18] = [
    b"=", b"==", b"!=", b"<>", b"<", b">", b"<=", b">=", b"<=>", b"like", b"rlike", b"regexp", b"between",
    b"in", b"is", b"ilike", b"sounds", b"glob",
];
/// Functions that an injection calls; a call counts only where a value or a condition is expected.
pub(super) const FUNCTIONS: [&[u8]; 52] = [
    b"sleep",
    b"benchmark",
    b"pg_sleep",
    b"extractvalue",
    b"updatexml",
    b"load_file",
    b"substring",
    b"substr",
    b"mid",
    b"ascii",
    b"ord",
    b"char",
    b"chr",
    b"nchar",
    b"concat",
    b"group_concat",
    b"concat_ws",
    b"version",
    b"user",
    b"database",
    b"current_user",
    b"current_database",
    b"session_user",
    b"system_user",
    b"count",
    b"length",
    b"len",
    b"if",
    b"iif",
    b"ifnull",
    b"nullif",
    b"coalesce",
    b"cast",
    b"convert",
    b"hex",
    b"unhex",
    b"md5",
    b"sha1",
    b"row",
    b"rand",
    b"floor",
    b"exp",
    b"elt",
    b"make_set",
    b"json_keys",
    b"xmltype",
    b"sqlite_version",
    b"db_name",
    b"object_id",
    b"exists",
    b"gtid_subset",
    b"randomblob",
];
/// Functions that are called for no honest reason through a web interface.
const LOUD: [&[u8]; 12] = [
    b"benchmark",
    b"pg_sleep",
    b"extractvalue",
    b"updatexml",
    b"load_file",
    b"load_extension",
    b"gtid_subset",
    b"gtid_subtract",
    b"randomblob",
    b"st_latfromgeohash",
    b"xmltype",
    b"lo_import",
];
const LOUD_PREFIXES: [&[u8]; 7] =
    [b"dbms_", b"utl_", b"xp_", b"pg_read_", b"pg_ls_", b"ctxsys.", b"master..xp_"];
/// Tables that only the database itself and those who explore it name.
const CATALOGUES: [&[u8]; 18] = [
    b"information_schema",
    b"sysobjects",
    b"syscolumns",
    b"sysusers",
    b"sqlite_master",
    b"sqlite_schema",
    b"sqlite_temp_master",
    b"pg_catalog",
    b"pg_shadow",
    b"pg_user",
    b"pg_tables",
    b"mysql.user",
    b"mysql.db",
    b"all_tables",
    b"user_tables",
    b"v$version",
    b"sys.objects",
    b"sys.databases",
];
/// Clauses that may follow a value whose text was just closed.
const CLAUSES: [&[u8]; 14] = [
    b"union",
    b"order",
    b"group",
    b"having",
    b"limit",
    b"where",
    b"procedure",
    b"into",
    b"rlike",
    b"regexp",
    b"between",
    b"in",
    b"offset",
    b"returning",
];

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    let tokens = split(bytes, meter);
    if tokens.len() < 2 {
        return;
    }
    let reader = Reader { tokens: &tokens };
    for index in 0..tokens.len() {
        meter.add(1);
        reader.at(index, best);
    }
}

/// Tokens with what the rules ask of them.
pub(super) struct Reader<'t> {
    tokens: &'t [Token<'t>],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Compared {
    /// A name with a value: prose and filters say such things.
    Named,
    /// With a quoted side.
    Quoted,
    /// Two literals, or one name with itself.
    Constant,
}

pub(super) const END: Token<'static> = Token { kind: Kind::End, text: &[], gap: 0, odd: false };

impl<'t> Reader<'t> {
    pub(super) fn get(&self, index: usize) -> Token<'t> {
        self.tokens.get(index).copied().unwrap_or(END)
    }

    pub(super) fn word(&self, index: usize) -> bool {
        self.get(index).kind == Kind::Word
    }

    /// Whether the token at `index` is called: a parenthesis opens after it.
    pub(super) fn called(&self, index: usize) -> bool {
        self.get(index + 1).after(OPEN)
    }

    pub(super) fn function(&self, index: usize) -> bool {
        self.get(index).among(&FUNCTIONS) && self.called(index)
    }

    /// Whether the value that a stranger's text stands in has just been closed before this token.
    pub(super) fn broken_out(&self, index: usize) -> bool {
        let token = self.get(index);
        token.after(QUOTE) && token.odd
    }

    pub(super) fn comment_or_end(&self, index: usize) -> bool {
        matches!(self.get(index).kind, Kind::Comment | Kind::End | Kind::Semicolon)
    }

    pub(super) fn comment_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens).any(|index| self.get(index).kind == Kind::Comment)
    }

    pub(super) fn at(&self, index: usize, best: &mut Best) {
        let token = self.get(index);
        let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Sql);
        match token.kind {
            Kind::Word => self.at_word(index, &mut put),
            Kind::Operator => self.at_operator(index, &mut put),
            Kind::Comment => self.at_comment(index, &mut put),
            Kind::Semicolon => self.at_semicolon(index, &mut put),
            Kind::Variable if token.text.starts_with(b"@@") => put(70, "sql.variable"),
            Kind::Number if self.called(index) && self.get(index + 1).is(b"union") => put(90, "sql.union"),
            _ => {}
        }
        if token.among(&CONNECTORS) {
            self.at_connector(index, &mut put);
        }
    }

    pub(super) fn at_word(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let (token, next) = (self.get(index), self.get(index + 1));
        match token.text {
            b"union" => self.union(index, put),
            b"select" => self.select(index, put),
            b"drop" | b"insert" | b"update" | b"delete" | b"truncate" | b"alter" | b"create" | b"exec"
            | b"execute" | b"declare" | b"grant" | b"load" | b"copy" | b"attach" | b"replace" | b"merge" => {
                self.statement(index, put);
            }
            b"waitfor" if next.among(&[b"delay", b"time"]) => put(90, "sql.delay"),
            b"into" if next.among(&[b"outfile", b"dumpfile"]) => put(90, "sql.file"),
            b"procedure" if next.is(b"analyse") => put(85, "sql.procedure"),
            b"case" if next.is(b"when") => {
                if self.comparison(index + 2).is_some_and(|(kind, _)| kind == Compared::Constant) {
                    put(85, "sql.case");
                } else {
                    put(40, "sql.case");
                }
            }
            b"sleep" if self.called(index) && next.kind == Kind::Number => {
                let previous = if index > 0 { self.get(index - 1) } else { END };
                let value = previous.among(&[b"and", b"or", b"select", b"-", b"+", b"*", b"||", b"xor"])
                    || previous.kind == Kind::Comma
                    || self.broken_out(index);
                put(if value { 85 } else { 55 }, "sql.delay");
            }
            b"order" | b"group" if next.is(b"by") => {
                let number = self.get(index + 2).kind == Kind::Number;
                let before = index > 0 && self.get(index - 1).kind == Kind::Number;
                // The whole text: `order by 7#`.
                let whole = index == 0 && self.comment_or_end(index + 3);
                if number && (self.broken_out(index) || token.after(CLOSE) || before) {
                    put(80, "sql.order");
                } else if number && whole {
                    put(58, "sql.order");
                } else if self.broken_out(index) && self.comment_within(index + 2, 4) {
                    put(75, "sql.order");
                }
            }
            b"if" if self.called(index) => {
                if self.comparison(index + 1).is_some_and(|(kind, _)| kind == Compared::Constant) {
                    put(80, "sql.if");
                }
            }
            text => {
                let call = self.called(index);
                if call && LOUD.contains(&text) {
                    put(if self.broken_out(index) { 90 } else { 75 }, "sql.function");
                } else if LOUD_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
                    && (call || text.starts_with(b"xp_"))
                {
                    put(85, "sql.function");
                } else if CATALOGUES
                    .iter()
                    .any(|name| text.starts_with(name) && matches!(text.get(name.len()), None | Some(b'.')))
                {
                    put(68, "sql.catalogue");
                }
            }
        }
        if self.broken_out(index) && token.among(&CLAUSES) && !token.is(b"in") {
            let plausible = matches!(next.kind, Kind::Number | Kind::Variable)
                || next.after(OPEN)
                || self.comment_within(index + 1, 6);
            if plausible {
                put(80, "sql.clause");
            }
        }
        if self.broken_out(index) && self.function(index) {
            put(75, "sql.function");
        }
    }

    pub(super) fn union(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let mut next = index + 1;
        if self.get(next).among(&[b"all", b"distinct", b"distinctrow"]) {
            next += 1;
        }
        if self.glued_select(next) {
            return put(90, "sql.union");
        }
        if !self.get(next).is(b"select") {
            if self.get(next).is(b"values") && self.called(next) {
                put(85, "sql.union");
            }
            return;
        }
        let first = self.get(next + 1);
        let previous = if index > 0 { self.get(index - 1) } else { END };
        let evident = self.get(next).after(OPEN)
            || self.get(index).odd
            || next > index + 1
            || matches!(first.kind, Kind::Number | Kind::Variable | Kind::End | Kind::Comment)
            || matches!(previous.kind, Kind::Number | Kind::End)
            || first.after(QUOTE | OPEN)
            || first.among(&[b"null", b"*", b"-", b"+", b"distinct", b"top"])
            || self.function(next + 1)
            || self.get(next + 2).kind == Kind::Comma
            || self.source_within(next + 1, 12);
        put(if evident { 95 } else { 65 }, "sql.union");
    }

    /// `selectchar(`, as tools write it when their own filter evasion goes wrong.
    pub(super) fn glued_select(&self, index: usize) -> bool {
        let rest = self.get(index).text.strip_prefix(b"select").filter(|rest| !rest.is_empty());
        rest.is_some_and(|rest| FUNCTIONS.contains(&rest)) && self.called(index)
    }

    pub(super) fn source_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens).any(|index| self.get(index).is(b"from") && self.word(index + 1))
    }

    pub(super) fn select(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let mut next = index + 1;
        if self.get(next).among(&[b"distinct", b"all", b"top"]) {
            next += 1;
            if self.get(next).kind == Kind::Number {
                next += 1;
            }
        }
        let first = self.get(next);
        let second = self.get(next + 1);
        let inner = self.get(index).after(OPEN);
        let from = self.source_within(next, 16);
        if first.is(b"*") {
            put(if second.is(b"from") && self.word(next + 2) { 88 } else { 45 }, "sql.select");
        } else if first.kind == Kind::Variable {
            put(88, "sql.select");
        } else if self.function(next) {
            put(if from || inner { 88 } else { 75 }, "sql.select");
        } else if (first.kind == Kind::Number || first.is(b"null")) && second.kind == Kind::Comma {
            put(if from || inner || self.get(next + 2).is(b"null") { 85 } else { 45 }, "sql.select");
        } else if from && (inner || self.comment_within(next, 16)) {
            put(85, "sql.select");
        } else if from && self.where_within(next, 20) {
            put(80, "sql.select");
        } else if inner && (matches!(first.kind, Kind::Number) || first.is(b"case")) {
            put(70, "sql.select");
        }
    }

    /// `to` and a name, as `grant x on y to z` ends.
    pub(super) fn to_within(&self, index: usize) -> bool {
        (index..index + 4).any(|index| self.get(index).is(b"to") && self.word(index + 1))
    }

    /// `where` with a comparison.
    pub(super) fn where_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens)
            .any(|index| self.get(index).is(b"where") && self.comparison(index + 1).is_some())
    }

    pub(super) fn at_comment(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let token = self.get(index);
        let previous = if index > 0 { self.get(index - 1) } else { END };
        if self.broken_out(index) {
            put(if token.text == b"#" { 62 } else { 85 }, "sql.cut_off");
        } else if previous.kind == Kind::Semicolon && self.broken_out(index - 1) {
            put(88, "sql.cut_off");
        } else if token.text == b"--"
            && previous.kind == Kind::Number
            && (token.after(CLOSE) || !token.after(super::sql_tokens::SPACE))
            && self.get(index + 1).kind == Kind::End
        {
            put(55, "sql.cut_off");
        }
    }

    /// `'||(`, `'+'`: a text is closed, continued with an expression, and opened again.
    pub(super) fn at_operator(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let (token, next) = (self.get(index), self.get(index + 1));
        if !self.broken_out(index) {
            return;
        }
        let reopened = next.after(QUOTE);
        let expression = next.after(OPEN) || self.function(index + 1) || next.kind == Kind::Variable;
        match token.text {
            b"||" if expression || reopened => put(82, "sql.concatenation"),
            b"+" | b"-" | b"*" | b"/" | b"%" | b"^" | b"&" | b"|" if expression => {
                put(78, "sql.concatenation");
            }
            b"=" | b"<" | b">" | b"<>" | b"!=" | b"<=>"
                if reopened || (next.kind == Kind::Number && self.comment_within(index + 2, 2)) =>
            {
                put(60, "sql.concatenation");
            }
            b"+" | b"-" | b"*" | b"/" | b"%" | b"^" | b"&" | b"|" if reopened => put(55, "sql.concatenation"),
            b"+" | b"-" | b"*" | b"/" | b"%" | b"^" | b"&" | b"|"
                if next.kind == Kind::Number
                    && (self.get(index + 2).after(QUOTE) || self.get(index + 2).kind == Kind::Comment) =>
            {
                put(58, "sql.concatenation");
            }
            _ => {}
        }
    }
}

//! SQL fragments, by the grammar of what follows what: "select the wells" is prose, `' or 1=1` is not.
//!
//! Every rule looks a bounded number of tokens ahead, so the work is linear.

use super::sql_tokens::{CLOSE, Kind, OPEN, QUOTE, Token, split};
use super::{Best, Family, Meter};

const CONNECTORS: [&[u8]; 7] = [b"or", b"and", b"xor", b"having", b"where", b"||", b"&&"];
const COMPARISONS: [&[u8]; 18] = [
    b"=", b"==", b"!=", b"<>", b"<", b">", b"<=", b">=", b"<=>", b"like", b"rlike", b"regexp", b"between",
    b"in", b"is", b"ilike", b"sounds", b"glob",
];
/// Functions that an injection calls; a call counts only where a value or a condition is expected.
const FUNCTIONS: [&[u8]; 52] = [
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
const STATEMENTS: [&[u8]; 24] = [
    b"drop",
    b"insert",
    b"delete",
    b"update",
    b"select",
    b"exec",
    b"execute",
    b"shutdown",
    b"create",
    b"alter",
    b"truncate",
    b"declare",
    b"waitfor",
    b"grant",
    b"merge",
    b"replace",
    b"rename",
    b"set",
    b"if",
    b"begin",
    b"copy",
    b"attach",
    b"call",
    b"load",
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

struct Reader<'t> {
    tokens: &'t [Token<'t>],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Compared {
    /// A name with a value: prose and filters say such things.
    Named,
    /// With a quoted side.
    Quoted,
    /// Two literals, or one name with itself.
    Constant,
}

const END: Token<'static> = Token { kind: Kind::End, text: &[], gap: 0, odd: false };

impl<'t> Reader<'t> {
    fn get(&self, index: usize) -> Token<'t> {
        self.tokens.get(index).copied().unwrap_or(END)
    }

    fn word(&self, index: usize) -> bool {
        self.get(index).kind == Kind::Word
    }

    /// Whether the token at `index` is called: a parenthesis opens after it.
    fn called(&self, index: usize) -> bool {
        self.get(index + 1).after(OPEN)
    }

    fn function(&self, index: usize) -> bool {
        self.get(index).among(&FUNCTIONS) && self.called(index)
    }

    /// Whether the value that a stranger's text stands in has just been closed before this token.
    fn broken_out(&self, index: usize) -> bool {
        let token = self.get(index);
        token.after(QUOTE) && token.odd
    }

    fn comment_or_end(&self, index: usize) -> bool {
        matches!(self.get(index).kind, Kind::Comment | Kind::End | Kind::Semicolon)
    }

    fn comment_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens).any(|index| self.get(index).kind == Kind::Comment)
    }

    fn at(&self, index: usize, best: &mut Best) {
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

    fn at_word(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
                if number && (self.broken_out(index) || token.after(CLOSE) || before) {
                    put(80, "sql.order");
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

    fn union(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let mut next = index + 1;
        if self.get(next).among(&[b"all", b"distinct", b"distinctrow"]) {
            next += 1;
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
            || self.from_within(next + 1, 12);
        put(if evident { 95 } else { 65 }, "sql.union");
    }

    fn from_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens).any(|index| self.get(index).is(b"from") && self.word(index + 1))
    }

    fn select(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
        let from = self.from_within(next, 16);
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

    /// `where` with a comparison.
    fn where_within(&self, index: usize, tokens: usize) -> bool {
        (index..index + tokens)
            .any(|index| self.get(index).is(b"where") && self.comparison(index + 1).is_some())
    }

    /// Whether a statement ends here as statements do, and prose does not.
    fn statement_end(&self, index: usize) -> Option<u8> {
        let token = self.get(index);
        match token.kind {
            Kind::Semicolon | Kind::Comment => Some(90),
            _ if token.after(QUOTE) && token.kind == Kind::End => Some(85),
            Kind::End => Some(62),
            Kind::Comma => Some(55),
            _ if token.among(&[b"cascade", b"restrict"]) => Some(85),
            _ => None,
        }
    }

    fn statement(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        const THINGS: [&[u8]; 12] = [
            b"table",
            b"database",
            b"schema",
            b"view",
            b"index",
            b"user",
            b"function",
            b"procedure",
            b"trigger",
            b"role",
            b"column",
            b"login",
        ];
        let (first, second, third) = (self.get(index + 1), self.get(index + 2), self.get(index + 3));
        match self.get(index).text {
            b"drop" if first.among(&THINGS) => {
                let conditional = second.is(b"if") && third.is(b"exists");
                let name = if conditional { index + 4 } else { index + 2 };
                if self.word(name) && conditional {
                    put(88, "sql.drop");
                } else if self.word(name)
                    && let Some(score) = self.statement_end(name + 1)
                {
                    put(if self.get(index).odd { score.max(85) } else { score }, "sql.drop");
                }
            }
            b"insert" | b"replace" if first.is(b"into") && self.word(index + 2) => {
                let values = (index + 3..index + 24).any(|at| self.get(at).among(&[b"values", b"select"]));
                if values || third.after(OPEN) {
                    put(88, "sql.insert");
                }
            }
            b"update" if self.word(index + 1) && second.is(b"set") && self.word(index + 3) => {
                if self.get(index + 4).is(b"=") {
                    put(82, "sql.update");
                }
            }
            b"delete" if first.is(b"from") && self.word(index + 2) => {
                if third.is(b"where") && self.comparison(index + 4).is_some() {
                    put(85, "sql.delete");
                } else if let Some(score) = self.statement_end(index + 3) {
                    put(score, "sql.delete");
                }
            }
            b"truncate" if first.is(b"table") && self.word(index + 2) => {
                put(self.statement_end(index + 3).unwrap_or(0), "sql.truncate");
            }
            b"alter" if first.among(&THINGS) && self.word(index + 2) => {
                if third.among(&[
                    b"add",
                    b"drop",
                    b"modify",
                    b"rename",
                    b"set",
                    b"with",
                    b"alter",
                    b"identified",
                ]) {
                    put(85, "sql.alter");
                }
            }
            b"create" if first.among(&THINGS) && self.word(index + 2) => {
                if third.after(OPEN) || third.among(&[b"as", b"identified", b"with", b"returns"]) {
                    put(80, "sql.create");
                }
            }
            b"exec" | b"execute" => {
                let procedure =
                    [&b"xp_"[..], b"sp_", b"master"].iter().any(|name| first.text.starts_with(name));
                if procedure || (first.is(b"immediate") && second.after(QUOTE)) {
                    put(90, "sql.exec");
                } else if first.kind == Kind::Variable || (first.after(OPEN) && first.after(QUOTE)) {
                    put(75, "sql.exec");
                }
            }
            b"declare" if first.kind == Kind::Variable => put(85, "sql.declare"),
            b"grant" if second.is(b"on") || second.is(b"privileges") || first.is(b"dba") => {
                put(72, "sql.grant");
            }
            b"load" if first.is(b"data") && second.among(&[b"infile", b"local"]) => put(90, "sql.file"),
            b"copy" if self.word(index + 1) && second.among(&[b"from", b"to"]) && third.is(b"program") => {
                put(90, "sql.file");
            }
            b"attach" if first.is(b"database") && second.after(QUOTE) => put(85, "sql.attach"),
            b"merge" if first.is(b"into") && self.word(index + 2) && third.is(b"using") => {
                put(80, "sql.merge")
            }
            _ => {}
        }
    }

    fn at_semicolon(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let next = self.get(index + 1);
        if !next.among(&STATEMENTS) {
            return;
        }
        let cut =
            self.broken_out(index) || self.get(index).after(CLOSE) || self.comment_within(index + 2, 24);
        let after = self.get(index + 2);
        match next.text {
            b"shutdown" if self.comment_or_end(index + 2) => put(if cut { 85 } else { 60 }, "sql.stacked"),
            b"if" if after.after(OPEN) && cut => put(85, "sql.stacked"),
            b"set" if after.kind == Kind::Variable => put(80, "sql.stacked"),
            b"begin" | b"call" if cut => put(70, "sql.stacked"),
            _ if cut && self.broken_out(index) => put(80, "sql.stacked"),
            _ => {}
        }
    }

    fn at_comment(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
    fn at_operator(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let (token, next) = (self.get(index), self.get(index + 1));
        if !self.broken_out(index) {
            return;
        }
        let reopened = next.after(QUOTE);
        let expression = next.after(OPEN) || self.function(index + 1) || next.kind == Kind::Variable;
        match token.text {
            b"||" if expression || reopened => put(82, "sql.concatenation"),
            b"+" | b"-" | b"*" | b"/" | b"%" | b"^" | b"&" | b"|" if expression => {
                put(78, "sql.concatenation")
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

    fn at_connector(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
        let token = self.get(index);
        let out = self.broken_out(index);
        let previous = if index > 0 { self.get(index - 1) } else { END };
        let after_number = previous.kind == Kind::Number;
        let mut operand = index + 1;
        while self.get(operand).among(&[b"not", b"!", b"binary", b"-", b"+", b"~"]) && operand < index + 4 {
            operand += 1;
        }
        if self.get(operand).is(b"select") && self.get(operand).after(OPEN) {
            put(90, "sql.subquery");
        } else if self.function(operand) {
            let loud =
                self.get(operand).among(&[b"sleep", b"exists", b"ascii", b"substring", b"substr", b"char"]);
            if out || token.after(CLOSE) || after_number {
                put(88, "sql.condition");
            } else if loud {
                put(60, "sql.condition");
            }
        }
        if let Some((kind, end)) = self.comparison(operand) {
            let cut = self.comment_within(end, 6);
            let score = match kind {
                _ if out && cut => 92,
                Compared::Constant if out || cut => 92,
                // "5 or 6 = 6": only after a value, or as the whole text.
                Compared::Constant if after_number || token.after(CLOSE) || previous.kind == Kind::End => 85,
                Compared::Constant => 72,
                Compared::Quoted if out => 90,
                Compared::Named if out => 80,
                Compared::Quoted | Compared::Named if token.after(CLOSE) && cut => 80,
                Compared::Named | Compared::Quoted if after_number && cut => 75,
                Compared::Quoted | Compared::Named => 0,
            };
            put(score, "sql.condition");
        }
        // `' or 1--`, `' or true#`, `' or 'x`: the operand alone is the condition.
        let alone = self.get(operand);
        let literal = alone.kind == Kind::Number || alone.among(&[b"true", b"false", b"null"]);
        let after = self.get(operand + 1);
        if out && literal && after.kind == Kind::Comment {
            put(90, "sql.condition");
        } else if out && literal && (after.kind == Kind::End || after.after(QUOTE) || after.after(CLOSE)) {
            put(66, "sql.condition");
        } else if out && alone.kind == Kind::Word && alone.after(QUOTE) && after.kind == Kind::End {
            put(58, "sql.condition");
        } else if out && matches!(alone.kind, Kind::Comment | Kind::End) && alone.after(QUOTE) {
            put(60, "sql.condition");
        } else if (after_number || token.after(CLOSE)) && literal && after.kind == Kind::Comment {
            put(70, "sql.condition");
        }
    }

    /// One side of a comparison: where it ends, and what it is. Calls are taken as names.
    fn side(&self, mut index: usize) -> Option<(Side<'t>, usize)> {
        for _ in 0..3 {
            if self.get(index).among(&[b"-", b"+", b"~", b"!", b"not", b"binary", b"all", b"any"]) {
                index += 1;
            }
        }
        let token = self.get(index);
        match token.kind {
            Kind::Number | Kind::Variable => {
                // `1+1=2`, `6*3=18`.
                let mut end = index + 1;
                while self.get(end).among(&[b"+", b"-", b"*", b"/", b"%", b"^"])
                    && self.get(end + 1).kind == Kind::Number
                    && end < index + 8
                {
                    end += 2;
                }
                Some((Side::Literal(token.text), end))
            }
            Kind::Word if token.among(&CONNECTORS) || token.among(&COMPARISONS) => None,
            Kind::Word if matches!(token.text, b"true" | b"false" | b"null") => {
                Some((Side::Literal(token.text), index + 1))
            }
            Kind::Word => {
                let quoted = token.after(QUOTE) && self.get(index + 1).after(QUOTE);
                let mut end = index + 1;
                if self.called(index) && self.get(index).among(&FUNCTIONS) {
                    // To the comparison after the call, if it is near.
                    while end < index + 14
                        && !self.get(end).among(&COMPARISONS)
                        && self.get(end).kind != Kind::End
                    {
                        end += 1;
                    }
                }
                Some((if quoted { Side::Quoted(token.text) } else { Side::Name(token.text) }, end))
            }
            // `''=''`: nothing between two quotes.
            Kind::Operator if token.after(QUOTE) && token.among(&COMPARISONS) => {
                Some((Side::Quoted(b""), index))
            }
            Kind::Comment | Kind::End | Kind::Operator if token.after(QUOTE) => {
                Some((Side::Quoted(b""), index))
            }
            _ => None,
        }
    }

    fn comparison(&self, index: usize) -> Option<(Compared, usize)> {
        let (left, mut operator) = self.side(index)?;
        if self.get(operator).is(b"not") {
            operator += 1;
        }
        if !self.get(operator).among(&COMPARISONS) {
            return None;
        }
        let mut from = operator + 1;
        if self.get(operator).is(b"is") && self.get(from).is(b"not") {
            from += 1;
        }
        if self.get(operator).is(b"sounds") {
            from += 1;
        }
        if self.get(from).is(b"=") {
            from += 1;
        }
        let pattern = self.get(from).is(b"%") || self.get(from).is(b"*");
        let (right, end) = match self.side(from) {
            Some(side) => side,
            None if pattern || self.get(from).is(b"select") => (Side::Quoted(b"%"), from + 1),
            None => return None,
        };
        let kind = match (left, right) {
            (Side::Literal(_), Side::Literal(_)) => Compared::Constant,
            (Side::Quoted(left), Side::Quoted(right)) if left == right => Compared::Constant,
            (Side::Quoted(_), Side::Quoted(_)) => Compared::Quoted,
            (Side::Literal(left), Side::Quoted(right)) | (Side::Quoted(left), Side::Literal(right))
                if left == right =>
            {
                Compared::Constant
            }
            (Side::Name(left), Side::Name(right)) if left == right => Compared::Constant,
            (Side::Quoted(_), _) | (_, Side::Quoted(_)) => Compared::Quoted,
            _ => Compared::Named,
        };
        Some((kind, end))
    }
}

#[derive(Debug, Clone, Copy)]
enum Side<'t> {
    Literal(&'t [u8]),
    Quoted(&'t [u8]),
    Name(&'t [u8]),
}

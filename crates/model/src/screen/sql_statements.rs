//! Statements of SQL that an injection adds: `drop table x;` is one, "drop table of reagents" is prose.

use super::sql::Reader;
use super::sql_tokens::{CLOSE, Kind, OPEN, QUOTE};

/// Words with which a statement begins.
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

impl Reader<'_> {
    /// Whether a statement ends here as statements do, and prose does not.
    pub(super) fn statement_end(&self, index: usize) -> Option<u8> {
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

    pub(super) fn statement(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
            b"update"
                if self.word(index + 1)
                    && second.is(b"set")
                    && self.word(index + 3)
                    && self.get(index + 4).is(b"=") =>
            {
                put(82, "sql.update");
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
            b"alter"
                if first.among(&THINGS)
                    && self.word(index + 2)
                    && third.among(&[
                        b"add",
                        b"drop",
                        b"modify",
                        b"rename",
                        b"set",
                        b"with",
                        b"alter",
                        b"identified",
                    ]) =>
            {
                put(85, "sql.alter");
            }
            b"create"
                if first.among(&THINGS)
                    && self.word(index + 2)
                    && (third.after(OPEN) || third.among(&[b"as", b"identified", b"with", b"returns"])) =>
            {
                put(80, "sql.create");
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
            b"grant"
                if (second.is(b"on") || second.is(b"privileges")) && self.to_within(index + 3)
                    || first.is(b"dba") =>
            {
                put(72, "sql.grant");
            }
            b"load" if first.is(b"data") && second.among(&[b"infile", b"local"]) => put(90, "sql.file"),
            b"copy" if self.word(index + 1) && second.among(&[b"from", b"to"]) && third.is(b"program") => {
                put(90, "sql.file");
            }
            b"attach" if first.is(b"database") && second.after(QUOTE) => put(85, "sql.attach"),
            b"merge" if first.is(b"into") && self.word(index + 2) && third.is(b"using") => {
                put(80, "sql.merge");
            }
            _ => {}
        }
    }

    pub(super) fn at_semicolon(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
}

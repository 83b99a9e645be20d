//! Conditions of SQL that are always true, or ask the database something: `' or 1=1`, `and sleep(5)`.

use super::sql::{COMPARISONS, CONNECTORS, Compared, END, FUNCTIONS, Reader};
use super::sql_tokens::{CLOSE, Kind, OPEN, QUOTE};

impl<'t> Reader<'t> {
    pub(super) fn at_connector(&self, index: usize, put: &mut impl FnMut(u8, &'static str)) {
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
                Compared::Quoted | Compared::Named
                    if previous.kind == Kind::End && self.comment_or_end(end) =>
                {
                    56
                }
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
        } else if out
            && literal
            && (after.kind == Kind::End && !after.after(QUOTE)
                || after.among(&CONNECTORS)
                || after.after(CLOSE)
                || after.after(QUOTE) && alone.after(QUOTE))
        {
            // Not "3' and 5' ends": both numbers stand before their mark.
            put(66, "sql.condition");
        } else if out && alone.kind == Kind::Word && alone.after(QUOTE) && after.kind == Kind::End {
            put(58, "sql.condition");
        } else if out && matches!(alone.kind, Kind::Comment | Kind::End) && alone.after(QUOTE) {
            put(60, "sql.condition");
        } else if (after_number || token.after(CLOSE) || previous.kind == Kind::End)
            && literal
            && after.kind == Kind::Comment
        {
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

    pub(super) fn comparison(&self, index: usize) -> Option<(Compared, usize)> {
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
            (Side::Name(left) | Side::Quoted(left), Side::Name(right) | Side::Quoted(right))
                if left == right =>
            {
                Compared::Constant
            }
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

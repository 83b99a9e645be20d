//! From text to tokens.

use serde_json::Value;

use super::SyntaxError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Quoted(String),
    Number(i64),
    Literal(Value),
    Dot,
    Star,
    /// `[`
    Open,
    /// `[?`
    Filter,
    /// `[]`
    Flatten,
    Close,
    OpenBrace,
    CloseBrace,
    OpenParen,
    CloseParen,
    Comma,
    Colon,
    Pipe,
    Or,
    And,
    Not,
    Reference,
    Current,
    Compare(Comparison),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A token and the character at which it begins, from 1.
pub(super) type Placed = (Token, usize);

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

/// The tokens of a text; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, SyntaxError> {
    let mut lexer = Lexer { chars: text.chars().collect(), at: 0 };
    let mut all = Vec::new();
    loop {
        while lexer.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            lexer.at += 1;
        }
        let at = lexer.at + 1;
        let token = lexer.next().map_err(|message| SyntaxError { message, at })?;
        let end = token == Token::End;
        all.push((token, at));
        if end {
            return Ok(all);
        }
    }
}

impl Lexer {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn either(&mut self, second: char, long: Token, short: Token) -> Token {
        if self.take(second) { long } else { short }
    }

    fn next(&mut self) -> Result<Token, String> {
        let Some(c) = self.peek() else { return Ok(Token::End) };
        self.at += 1;
        Ok(match c {
            '.' => Token::Dot,
            '*' => Token::Star,
            ']' => Token::Close,
            '{' => Token::OpenBrace,
            '}' => Token::CloseBrace,
            '(' => Token::OpenParen,
            ')' => Token::CloseParen,
            ',' => Token::Comma,
            ':' => Token::Colon,
            '@' => Token::Current,
            '[' if self.take('?') => Token::Filter,
            '[' => self.either(']', Token::Flatten, Token::Open),
            '|' => self.either('|', Token::Or, Token::Pipe),
            '&' => self.either('&', Token::And, Token::Reference),
            '!' => self.either('=', Token::Compare(Comparison::Unequal), Token::Not),
            '<' => {
                self.either('=', Token::Compare(Comparison::LessOrEqual), Token::Compare(Comparison::Less))
            }
            '>' => self.either(
                '=',
                Token::Compare(Comparison::GreaterOrEqual),
                Token::Compare(Comparison::Greater),
            ),
            '=' if self.take('=') => Token::Compare(Comparison::Equal),
            '=' => return Err("'=' compares nothing: write '=='".to_owned()),
            '"' => Token::Quoted(self.quoted()?),
            '\'' => Token::Literal(Value::String(self.raw()?)),
            '`' => Token::Literal(self.literal()?),
            '-' | '0'..='9' => self.number(c)?,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let begin = self.at - 1;
                while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.at += 1;
                }
                Token::Name(self.chars[begin..self.at].iter().collect())
            }
            '$' => return Err("an expression stands here without ${ }".to_owned()),
            _ => {
                return Err(
                    "this character means nothing here: names with other characters stand in double quotes"
                        .to_owned(),
                );
            }
        })
    }

    fn number(&mut self, first: char) -> Result<Token, String> {
        let begin = self.at - 1;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let text: String = self.chars[begin..self.at].iter().collect();
        match text.parse() {
            Ok(number) => Ok(Token::Number(number)),
            Err(_) if first == '-' && text.len() == 1 => Err("'-' is not followed by digits".to_owned()),
            Err(_) => Err("the number is too large".to_owned()),
        }
    }

    /// What stands up to an unescaped `end`, as it is written.
    fn until(&mut self, end: char) -> Result<String, String> {
        let begin = self.at;
        while let Some(c) = self.peek() {
            if c == end {
                self.at += 1;
                return Ok(self.chars[begin..self.at - 1].iter().collect());
            }
            self.at += if c == '\\' { 2 } else { 1 };
        }
        Err(format!("a closing {end} is missing"))
    }

    fn quoted(&mut self) -> Result<String, String> {
        let inside = self.until('"')?;
        serde_json::from_str(&format!("\"{inside}\""))
            .map_err(|_| "the name in quotes is not a JSON string".to_owned())
    }

    fn raw(&mut self) -> Result<String, String> {
        Ok(self.until('\'')?.replace("\\'", "'"))
    }

    fn literal(&mut self) -> Result<Value, String> {
        let inside = self.until('`')?.replace("\\`", "`");
        crate::strict_json::parse(inside.trim().as_bytes()).map_err(|_| {
            "what stands between ` and ` is not JSON: a string is `\"text\"` or 'text'".to_owned()
        })
    }
}

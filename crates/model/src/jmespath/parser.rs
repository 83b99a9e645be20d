//! From tokens to a tree, by precedence. The powers are those of the reference implementations.

use serde_json::Value;

use super::functions::Function;
use super::lexer::{Comparison, Placed, Token};
use super::{DEEPEST, MOST_NODES, SyntaxError};

#[derive(Clone, Debug)]
pub(super) enum Node {
    Current,
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Literal(Value),
    /// The second of what the first gives.
    Then(Box<Node>, Box<Node>),
    Flatten(Box<Node>),
    /// The second of each element of the list, or value of the object, that the first gives.
    Each(Box<Node>, Box<Node>),
    EachValue(Box<Node>, Box<Node>),
    /// Left, condition, right.
    EachWhere(Box<Node>, Box<Node>, Box<Node>),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
    Or(Box<Node>, Box<Node>),
    And(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
    /// An expression as the argument of a function.
    Reference(Box<Node>),
}

struct Parser {
    tokens: Vec<Placed>,
    at: usize,
    nodes: usize,
    depth: usize,
}

/// What binds less than this ends a projection.
const PROJECTION: u8 = 10;

fn power(token: &Token) -> u8 {
    match token {
        Token::Pipe => 1,
        Token::Or => 2,
        Token::And => 3,
        Token::Compare(_) => 5,
        Token::Flatten => 9,
        Token::Star => 20,
        Token::Filter => 21,
        Token::Dot => 40,
        Token::Not => 45,
        Token::OpenBrace => 50,
        Token::Open => 55,
        Token::OpenParen => 60,
        _ => 0,
    }
}

pub(super) fn parse(tokens: Vec<Placed>) -> Result<Node, SyntaxError> {
    let mut parser = Parser { tokens, at: 0, nodes: 0, depth: 0 };
    let root = parser.expression(0)?;
    if *parser.peek() != Token::End {
        return Err(parser.unexpected());
    }
    Ok(root)
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn after(&self, more: usize) -> &Token {
        &self.tokens[(self.at + more).min(self.tokens.len() - 1)].0
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        let at = self.tokens[self.at.min(self.tokens.len() - 1)].1;
        SyntaxError { message: message.into(), at }
    }

    fn unexpected(&self) -> SyntaxError {
        match self.peek() {
            Token::End => self.error("the expression ends too early"),
            _ => self.error("this does not belong here"),
        }
    }

    fn expect(&mut self, wanted: &Token) -> Result<(), SyntaxError> {
        if self.peek() != wanted {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    fn count(&mut self) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(self.error(format!("the expression has more than {MOST_NODES} parts")));
        }
        Ok(())
    }

    fn expression(&mut self, weakest: u8) -> Result<Node, SyntaxError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.error(format!("the expression nests deeper than {DEEPEST} levels")));
        }
        let mut left = self.prefix()?;
        while weakest < power(self.peek()) {
            left = self.infix(left)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn boxed(&mut self, weakest: u8) -> Result<Box<Node>, SyntaxError> {
        self.expression(weakest).map(Box::new)
    }

    fn prefix(&mut self) -> Result<Node, SyntaxError> {
        self.count()?;
        match self.peek().clone() {
            Token::Literal(value) => {
                self.at += 1;
                Ok(Node::Literal(value))
            }
            Token::Name(name) => {
                self.at += 1;
                if *self.peek() == Token::OpenParen { self.call(&name) } else { Ok(Node::Field(name)) }
            }
            Token::Quoted(name) => {
                self.at += 1;
                if *self.peek() == Token::OpenParen {
                    return Err(self.error("the name of a function has no quotes"));
                }
                Ok(Node::Field(name))
            }
            Token::Current => {
                self.at += 1;
                Ok(Node::Current)
            }
            Token::Star => {
                self.at += 1;
                let right = if *self.peek() == Token::Close { Node::Current } else { self.projected(20)? };
                Ok(Node::EachValue(Box::new(Node::Current), Box::new(right)))
            }
            Token::Not => {
                self.at += 1;
                Ok(Node::Not(self.boxed(45)?))
            }
            Token::OpenParen => {
                self.at += 1;
                let inside = self.expression(0)?;
                self.expect(&Token::CloseParen)?;
                // A pair of parentheses ends a projection.
                Ok(Node::Then(Box::new(inside), Box::new(Node::Current)))
            }
            Token::OpenBrace => {
                self.at += 1;
                self.object()
            }
            Token::Filter | Token::Flatten => self.infix(Node::Current),
            Token::Open => match self.after(1) {
                Token::Number(_) | Token::Colon => self.infix(Node::Current),
                Token::Star if *self.after(2) == Token::Close => self.infix(Node::Current),
                _ => {
                    self.at += 1;
                    self.list()
                }
            },
            _ => Err(self.unexpected()),
        }
    }

    fn infix(&mut self, left: Node) -> Result<Node, SyntaxError> {
        self.count()?;
        let left = Box::new(left);
        match self.next() {
            Token::Dot if *self.peek() == Token::Star => {
                self.at += 1;
                Ok(Node::EachValue(left, Box::new(self.projected(40)?)))
            }
            Token::Dot => Ok(Node::Then(left, Box::new(self.after_dot(40)?))),
            Token::Pipe => Ok(Node::Then(left, self.boxed(1)?)),
            Token::Or => Ok(Node::Or(left, self.boxed(2)?)),
            Token::And => Ok(Node::And(left, self.boxed(3)?)),
            Token::Compare(how) => Ok(Node::Compare(how, left, self.boxed(5)?)),
            Token::Filter => {
                let condition = self.boxed(0)?;
                self.expect(&Token::Close)?;
                let right = if *self.peek() == Token::Flatten { Node::Current } else { self.projected(21)? };
                Ok(Node::EachWhere(left, condition, Box::new(right)))
            }
            Token::Flatten => {
                let right = self.projected(9)?;
                Ok(Node::Each(Box::new(Node::Flatten(left)), Box::new(right)))
            }
            Token::Open => match self.peek() {
                Token::Number(_) | Token::Colon => self.index(left),
                _ => {
                    self.expect(&Token::Star)?;
                    self.expect(&Token::Close)?;
                    Ok(Node::Each(left, Box::new(self.projected(20)?)))
                }
            },
            _ => {
                self.at -= 1;
                Err(self.unexpected())
            }
        }
    }

    /// `1]` or `1:2:3]`, after the bracket was opened.
    fn index(&mut self, left: Box<Node>) -> Result<Node, SyntaxError> {
        let mut parts = [None; 3];
        let mut colons = 0;
        loop {
            match self.next() {
                Token::Number(number) if parts[colons].is_none() => parts[colons] = Some(number),
                Token::Colon if colons < 2 => colons += 1,
                Token::Close => break,
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected());
                }
            }
        }
        if colons == 0 {
            return Ok(Node::Then(left, Box::new(Node::Index(parts[0].unwrap_or(0)))));
        }
        let step = parts[2].unwrap_or(1);
        if step == 0 {
            self.at -= 1;
            return Err(self.error("the step of a slice is not 0"));
        }
        let slice = Node::Then(left, Box::new(Node::Slice(parts[0], parts[1], step)));
        Ok(Node::Each(Box::new(slice), Box::new(self.projected(20)?)))
    }

    /// What each element of a projection is asked for.
    fn projected(&mut self, weakest: u8) -> Result<Node, SyntaxError> {
        if power(self.peek()) < PROJECTION {
            return Ok(Node::Current);
        }
        match self.peek() {
            Token::Open | Token::Filter => self.expression(weakest),
            Token::Dot => {
                self.at += 1;
                self.after_dot(weakest)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn after_dot(&mut self, weakest: u8) -> Result<Node, SyntaxError> {
        match self.peek() {
            Token::Name(_) | Token::Quoted(_) | Token::Star => self.expression(weakest),
            Token::Open => {
                self.at += 1;
                self.list()
            }
            Token::OpenBrace => {
                self.at += 1;
                self.object()
            }
            _ => Err(self.unexpected()),
        }
    }

    fn list(&mut self) -> Result<Node, SyntaxError> {
        let mut all = vec![self.expression(0)?];
        while *self.peek() == Token::Comma {
            self.at += 1;
            all.push(self.expression(0)?);
        }
        self.expect(&Token::Close)?;
        Ok(Node::List(all))
    }

    fn object(&mut self) -> Result<Node, SyntaxError> {
        let mut all = Vec::new();
        loop {
            let (Token::Name(name) | Token::Quoted(name)) = self.next() else {
                self.at -= 1;
                return Err(self.unexpected());
            };
            self.expect(&Token::Colon)?;
            all.push((name, self.expression(0)?));
            if *self.peek() != Token::Comma {
                break;
            }
            self.at += 1;
        }
        self.expect(&Token::CloseBrace)?;
        Ok(Node::Object(all))
    }

    fn call(&mut self, name: &str) -> Result<Node, SyntaxError> {
        let function = Function::named(name).ok_or_else(|| {
            self.at -= 1;
            self.error(format!("there is no such function; there are {}", Function::names()))
        })?;
        self.expect(&Token::OpenParen)?;
        let mut arguments = Vec::new();
        while *self.peek() != Token::CloseParen {
            if !arguments.is_empty() {
                self.expect(&Token::Comma)?;
            }
            self.count()?;
            arguments.push(if *self.peek() == Token::Reference {
                self.at += 1;
                Node::Reference(self.boxed(0)?)
            } else {
                self.expression(0)?
            });
        }
        let (least, most) = function.arity();
        let references = arguments.iter().enumerate();
        let misplaced = references
            .map(|(place, argument)| (place, matches!(argument, Node::Reference(_))))
            .any(|(place, reference)| reference != (function.reference() == Some(place)));
        if !(least..=most).contains(&arguments.len()) || misplaced {
            return Err(self.error(format!("{name} is used as {}", function.usage())));
        }
        self.at += 1;
        Ok(Node::Call(function, arguments))
    }
}

//! Cross-field rules: the expression language of docs/reference/worker-protocol.md, section Rules.
//!
//! Answers whether a call's parameters fit together; what one parameter may be is [`crate::schema`]. Pure and total: an
//! expression that cannot be computed breaks the rule, it never panics and never holds by accident. The worker
//! (`python/interlock/_rules.py`) and the dashboard have their own implementations; `tests/rules.json` holds the cases that all
//! of them must answer alike.
//!
//! What the grammar leaves open: `and`, `or` and `not` take true and false only, and the first two stop as soon as the value is
//! known. `==`, `!=` and `in` compare any kinds and find different kinds unequal. An order exists between two numbers and between
//! two strings (by code point). A string ends at the next quote of its kind, without escapes. A level is one open bracket. A name
//! without a value is null.

use std::fmt;

use serde_json::{Map, Number, Value};

/// Longest expression, in characters.
pub const MAX_CHARS: usize = 500;
/// Deepest nesting of brackets of any kind.
pub const MAX_LEVELS: usize = 32;
/// Deepest value that is compared. Above the 64 levels that a body may have, below what a stack can take.
const MAX_COMPARED_LEVELS: usize = 128;

/// Why an expression is not a rule. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// More than [`MAX_CHARS`].
    #[error("the expression is longer than 500 characters")]
    TooLong,
    /// More than [`MAX_LEVELS`].
    #[error("the expression is nested deeper than 32 levels at character {at}")]
    TooDeep {
        /// Where the level too many opens.
        at: usize,
    },
    /// The text does not follow the grammar.
    #[error("expected {expected} at character {at}, found {found}")]
    Unexpected {
        /// What the grammar allows there.
        expected: &'static str,
        /// What stands there.
        found: String,
        /// Where.
        at: usize,
    },
    /// A string without its closing quote.
    #[error("the string that begins at character {at} does not end")]
    OpenString {
        /// Where it begins.
        at: usize,
    },
    /// A number that a double cannot hold.
    #[error("the number at character {at} is out of range")]
    NumberRange {
        /// Where it begins.
        at: usize,
    },
    /// A name that is not a parameter.
    #[error("{name:?} at character {at} is not a parameter")]
    UnknownName {
        /// The name.
        name: String,
        /// Where it stands.
        at: usize,
    },
    /// A function that does not exist.
    #[error("there is no function {name:?} (character {at}); there are abs, min, max and len")]
    UnknownFunction {
        /// Its name.
        name: String,
        /// Where it stands.
        at: usize,
    },
    /// The wrong number of arguments.
    #[error("{function} at character {at} takes {takes}")]
    Arguments {
        /// Its name.
        function: &'static str,
        /// What it takes.
        takes: &'static str,
        /// Where it stands.
        at: usize,
    },
}

/// Why an expression has no value for these parameters. Never holds a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// `<`, `<=`, `>` or `>=` between values that have no common order.
    #[error("compares values of different kinds")]
    Kinds,
    /// Division by zero.
    #[error("divides by zero")]
    DivisionByZero,
    /// A result beyond the range of a double.
    #[error("computes a number that is out of range")]
    NumberRange,
    /// Arithmetic on something else.
    #[error("computes with a value that is not a number")]
    NotANumber,
    /// `and`, `or` or `not` on something else.
    #[error("combines a value that is neither true nor false")]
    NotABoolean,
    /// `len` or `in` on something that holds nothing.
    #[error("looks inside a value that holds no items")]
    NotAContainer,
    /// `min` or `max` of nothing.
    #[error("looks for the least or greatest of no numbers")]
    Empty,
    /// A value nested too deeply to compare.
    #[error("compares a value that is nested too deeply")]
    TooDeep,
}

/// A checked expression over parameter names.
#[derive(Clone, Debug)]
pub struct Rule {
    root: Node,
}

impl Rule {
    /// Parses `expr`; every name in it must be one of `names`.
    ///
    /// # Errors
    /// [`BadRule`] for the first thing that does not follow the grammar, with its position.
    pub fn compile(expr: &str, names: &[&str]) -> Result<Self, BadRule> {
        if expr.chars().count() > MAX_CHARS {
            return Err(BadRule::TooLong);
        }
        let mut parser = Parser { tokens: tokenise(expr)?, next: 0, levels: 0, names };
        let root = parser.or()?;
        match parser.peek() {
            Token::End => Ok(Self { root }),
            _ => Err(parser.unexpected("an operator or the end")),
        }
    }

    /// Whether the value is `true`. A rule that cannot be computed does not hold.
    pub fn holds(&self, values: &Map<String, Value>) -> bool {
        matches!(self.root.evaluate(values), Ok(Operand::Bool(true)))
    }

    /// The value of the expression, for people who want to know why a rule does not hold.
    ///
    /// # Errors
    /// [`Broken`] if it has none.
    pub fn evaluate(&self, values: &Map<String, Value>) -> Result<Value, Broken> {
        self.root.evaluate(values)?.to_json()
    }
}

// ---------------------------------------------------------------------------------------------------------------- tokens

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Number(f64),
    Text(String),
    Name(String),
    And,
    Or,
    Not,
    In,
    True,
    False,
    Null,
    /// One of the operators and brackets.
    Sign(&'static str),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(_) => f.write_str("a number"),
            Self::Text(_) => f.write_str("a string"),
            Self::Name(name) => write!(f, "{name:?}"),
            Self::And => f.write_str("\"and\""),
            Self::Or => f.write_str("\"or\""),
            Self::Not => f.write_str("\"not\""),
            Self::In => f.write_str("\"in\""),
            Self::True => f.write_str("\"true\""),
            Self::False => f.write_str("\"false\""),
            Self::Null => f.write_str("\"null\""),
            Self::Sign(sign) => write!(f, "{sign:?}"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Longer signs first, so that `<=` is not read as `<`.
const SIGNS: [&str; 15] = ["<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "(", ")", "[", "]", ","];

fn tokenise(expr: &str) -> Result<Vec<(Token, usize)>, BadRule> {
    let chars: Vec<char> = expr.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let rest = chars.get(at..).unwrap_or_default();
        let (token, length) = if c == ' ' || c == '\t' || c == '\n' || c == '\r' {
            at += 1;
            continue;
        } else if c == '"' || c == '\'' {
            read_text(rest, c, at)?
        } else if c.is_ascii_digit() {
            read_number(rest, at)?
        } else if c.is_ascii_alphabetic() || c == '_' {
            read_name(rest)
        } else if let Some(sign) =
            SIGNS.iter().find(|sign| sign.chars().eq(rest.iter().copied().take(sign.len())))
        {
            (Token::Sign(sign), sign.len())
        } else {
            let expected = if c == '=' { "\"==\" to compare" } else { "a name, a value or an operator" };
            return Err(BadRule::Unexpected { expected, found: format!("{c:?}"), at: at + 1 });
        };
        tokens.push((token, at + 1));
        at += length;
    }
    tokens.push((Token::End, chars.len() + 1));
    Ok(tokens)
}

fn read_text(rest: &[char], quote: char, at: usize) -> Result<(Token, usize), BadRule> {
    let inside = rest.iter().skip(1).position(|c| *c == quote).ok_or(BadRule::OpenString { at: at + 1 })?;
    Ok((Token::Text(rest.iter().skip(1).take(inside).collect()), inside + 2))
}

/// `digits [ "." digits ] [ ("e" | "E") [ "+" | "-" ] digits ]`, the form of a JSON number.
fn read_number(rest: &[char], at: usize) -> Result<(Token, usize), BadRule> {
    let digits = |from: usize| rest.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
    let is = |index: usize, wanted: &[char]| rest.get(index).is_some_and(|c| wanted.contains(c));
    let mut taken = digits(0);
    if is(taken, &['.']) {
        taken += match digits(taken + 1) {
            0 => {
                let found = "\".\"".to_owned();
                return Err(BadRule::Unexpected {
                    expected: "digits after the point",
                    found,
                    at: at + taken + 1,
                });
            }
            fraction => 1 + fraction,
        };
    }
    if is(taken, &['e', 'E']) {
        let sign = usize::from(is(taken + 1, &['+', '-']));
        taken += match digits(taken + 1 + sign) {
            0 => 0,
            exponent => 1 + sign + exponent,
        };
    }
    let text: String = rest.iter().take(taken).collect();
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((Token::Number(number), taken)),
        _ => Err(BadRule::NumberRange { at: at + 1 }),
    }
}

fn read_name(rest: &[char]) -> (Token, usize) {
    let name: String = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
    let length = name.len();
    let token = match name.as_str() {
        "and" => Token::And,
        "or" => Token::Or,
        "not" => Token::Not,
        "in" => Token::In,
        "true" | "True" => Token::True,
        "false" | "False" => Token::False,
        "null" | "None" => Token::Null,
        _ => Token::Name(name),
    };
    (token, length)
}

// ---------------------------------------------------------------------------------------------------------------- parser

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Le,
    Lt,
    Ge,
    Gt,
    Eq,
    Ne,
    In,
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Abs,
    Min,
    Max,
    Len,
}

/// Chains are flat lists, so the depth of a tree follows the brackets and not the length of the text.
#[derive(Clone, Debug)]
enum Node {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Name(String),
    List(Vec<Node>),
    Call(Function, Vec<Node>),
    Negate(Box<Node>),
    Arithmetic(Box<Node>, Vec<(Operation, Node)>),
    Compare(Box<Node>, Comparison, Box<Node>),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

struct Parser<'a> {
    tokens: Vec<(Token, usize)>,
    next: usize,
    levels: usize,
    names: &'a [&'a str],
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(token, _)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(1, |(_, at)| *at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == token && *token != Token::End;
        self.next += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &'static str) -> bool {
        self.take(&Token::Sign(sign))
    }

    fn unexpected(&self, expected: &'static str) -> BadRule {
        BadRule::Unexpected { expected, found: self.peek().to_string(), at: self.at() }
    }

    fn or(&mut self) -> Result<Node, BadRule> {
        let mut operands = vec![self.and()?];
        while self.take(&Token::Or) {
            operands.push(self.and()?);
        }
        Ok(single(operands, Node::Or))
    }

    fn and(&mut self) -> Result<Node, BadRule> {
        let mut operands = vec![self.not()?];
        while self.take(&Token::And) {
            operands.push(self.not()?);
        }
        Ok(single(operands, Node::And))
    }

    fn not(&mut self) -> Result<Node, BadRule> {
        if self.take(&Token::Not) { Ok(Node::Not(Box::new(self.compare()?))) } else { self.compare() }
    }

    fn compare(&mut self) -> Result<Node, BadRule> {
        let left = self.sum()?;
        let Some(comparison) = self.comparison() else { return Ok(left) };
        let right = self.sum()?;
        Ok(Node::Compare(Box::new(left), comparison, Box::new(right)))
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let not_in = matches!(self.tokens.get(self.next + 1), Some((Token::In, _)));
        let (comparison, tokens) = match self.peek() {
            Token::Sign("<=") => (Comparison::Le, 1),
            Token::Sign("<") => (Comparison::Lt, 1),
            Token::Sign(">=") => (Comparison::Ge, 1),
            Token::Sign(">") => (Comparison::Gt, 1),
            Token::Sign("==") => (Comparison::Eq, 1),
            Token::Sign("!=") => (Comparison::Ne, 1),
            Token::In => (Comparison::In, 1),
            Token::Not if not_in => (Comparison::NotIn, 2),
            _ => return None,
        };
        self.next += tokens;
        Some(comparison)
    }

    fn sum(&mut self) -> Result<Node, BadRule> {
        self.chain(Self::term, [("+", Operation::Add), ("-", Operation::Subtract)])
    }

    fn term(&mut self) -> Result<Node, BadRule> {
        self.chain(Self::unary, [("*", Operation::Multiply), ("/", Operation::Divide)])
    }

    fn chain(
        &mut self,
        operand: fn(&mut Self) -> Result<Node, BadRule>,
        operations: [(&'static str, Operation); 2],
    ) -> Result<Node, BadRule> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some((_, operation)) = operations.iter().find(|(sign, _)| self.sign(sign)) {
            rest.push((*operation, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Node::Arithmetic(Box::new(first), rest) })
    }

    fn unary(&mut self) -> Result<Node, BadRule> {
        if self.sign("-") { Ok(Node::Negate(Box::new(self.atom()?))) } else { self.atom() }
    }

    fn atom(&mut self) -> Result<Node, BadRule> {
        const EXPECTED: &str = "a value";
        let at = self.at();
        let node = match self.peek().clone() {
            Token::Number(number) => Node::Number(number),
            Token::Text(text) => Node::Text(text),
            Token::True => Node::Bool(true),
            Token::False => Node::Bool(false),
            Token::Null => Node::Null,
            Token::Name(name) => {
                self.next += 1;
                return if self.sign("(") { self.call(&name, at) } else { self.name(name, at) };
            }
            Token::Sign("[") => {
                self.next += 1;
                return Ok(Node::List(self.list("]", at)?));
            }
            Token::Sign("(") => {
                self.next += 1;
                return self.inside(at, |parser| {
                    let node = parser.or()?;
                    if parser.sign(")") { Ok(node) } else { Err(parser.unexpected("an operator or \")\"")) }
                });
            }
            _ => return Err(self.unexpected(EXPECTED)),
        };
        self.next += 1;
        Ok(node)
    }

    fn name(&self, name: String, at: usize) -> Result<Node, BadRule> {
        if self.names.contains(&name.as_str()) {
            Ok(Node::Name(name))
        } else {
            Err(BadRule::UnknownName { name, at })
        }
    }

    fn call(&mut self, name: &str, at: usize) -> Result<Node, BadRule> {
        let (function, shown) = match name {
            "abs" => (Function::Abs, "abs"),
            "min" => (Function::Min, "min"),
            "max" => (Function::Max, "max"),
            "len" => (Function::Len, "len"),
            _ => return Err(BadRule::UnknownFunction { name: name.to_owned(), at }),
        };
        let arguments = self.list(")", at)?;
        let takes = match function {
            Function::Abs | Function::Len if arguments.len() != 1 => "one value",
            Function::Min | Function::Max if arguments.is_empty() => "at least one value",
            _ => return Ok(Node::Call(function, arguments)),
        };
        Err(BadRule::Arguments { function: shown, takes, at })
    }

    /// The rest of a list whose opening bracket has been taken.
    fn list(&mut self, close: &'static str, at: usize) -> Result<Vec<Node>, BadRule> {
        self.inside(at, |parser| {
            let mut items = Vec::new();
            if parser.sign(close) {
                return Ok(items);
            }
            loop {
                items.push(parser.or()?);
                if parser.sign(close) {
                    return Ok(items);
                }
                if !parser.sign(",") {
                    return Err(parser.unexpected(if close == ")" {
                        "\",\" or \")\""
                    } else {
                        "\",\" or \"]\""
                    }));
                }
            }
        })
    }

    fn inside<T>(
        &mut self,
        at: usize,
        parse: impl FnOnce(&mut Self) -> Result<T, BadRule>,
    ) -> Result<T, BadRule> {
        if self.levels >= MAX_LEVELS {
            return Err(BadRule::TooDeep { at });
        }
        self.levels += 1;
        let parsed = parse(self)?;
        self.levels -= 1;
        Ok(parsed)
    }
}

fn single(mut operands: Vec<Node>, many: fn(Vec<Node>) -> Node) -> Node {
    match (operands.pop(), operands.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            operands.extend(last);
            many(operands)
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ evaluation

/// A value on the way. Borrows from the parameters, so that a large array is not copied to look into it.
#[derive(Clone, Debug)]
enum Operand<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    List(Vec<Operand<'a>>),
    Array(&'a [Value]),
    Object(&'a Map<String, Value>),
}

impl<'a> Operand<'a> {
    fn from_json(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            // NaN, which breaks whatever is computed with it, stands for a number that no double can hold.
            Value::Number(number) => Self::Number(number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::Array(items),
            Value::Object(members) => Self::Object(members),
        }
    }

    fn to_json(&self) -> Result<Value, Broken> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(number) => Value::Number(Number::from_f64(*number).ok_or(Broken::NumberRange)?),
            Self::Text(text) => Value::from(*text),
            Self::List(items) => Value::Array(items.iter().map(Self::to_json).collect::<Result<_, _>>()?),
            Self::Array(items) => Value::from(items.to_vec()),
            Self::Object(members) => Value::Object((*members).clone()),
        })
    }

    fn number(&self) -> Result<f64, Broken> {
        if let Self::Number(number) = self { finite(*number) } else { Err(Broken::NotANumber) }
    }

    fn boolean(&self) -> Result<bool, Broken> {
        if let Self::Bool(value) = self { Ok(*value) } else { Err(Broken::NotABoolean) }
    }

    /// The items of a list, `None` for anything else.
    fn items(&self) -> Option<Vec<Operand<'a>>> {
        match self {
            Self::List(items) => Some(items.clone()),
            Self::Array(items) => Some(items.iter().map(Self::from_json).collect()),
            _ => None,
        }
    }

    /// Equality over all kinds: numbers by value, lists and objects by content, different kinds never.
    fn equals(&self, other: &Self, levels: usize) -> Result<bool, Broken> {
        let levels = levels.checked_sub(1).ok_or(Broken::TooDeep)?;
        match (self, other) {
            (Self::Null, Self::Null) => return Ok(true),
            (Self::Bool(a), Self::Bool(b)) => return Ok(a == b),
            (Self::Number(a), Self::Number(b)) => return Ok(finite(*a)?.total_cmp(&finite(*b)?).is_eq()),
            (Self::Text(a), Self::Text(b)) => return Ok(a == b),
            (Self::Object(a), Self::Object(b)) => return same_members(a, b, levels),
            _ => {}
        }
        let (Some(a), Some(b)) = (self.items(), other.items()) else { return Ok(false) };
        if a.len() != b.len() {
            return Ok(false);
        }
        for (a, b) in a.iter().zip(&b) {
            if !a.equals(b, levels)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn order(&self, other: &Self) -> Result<std::cmp::Ordering, Broken> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => {
                finite(*a)?.partial_cmp(&finite(*b)?).ok_or(Broken::NumberRange)
            }
            // By code point, which is what bytes of UTF-8 compare as.
            (Self::Text(a), Self::Text(b)) => Ok(a.cmp(b)),
            _ => Err(Broken::Kinds),
        }
    }

    fn is_in(&self, container: &Self) -> Result<bool, Broken> {
        if let (Self::Text(part), Self::Text(whole)) = (self, container) {
            return Ok(whole.contains(part));
        }
        for item in container.items().ok_or(Broken::NotAContainer)? {
            if self.equals(&item, MAX_COMPARED_LEVELS)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn same_members(a: &Map<String, Value>, b: &Map<String, Value>, levels: usize) -> Result<bool, Broken> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (key, value) in a {
        let Some(other) = b.get(key) else { return Ok(false) };
        if !Operand::from_json(value).equals(&Operand::from_json(other), levels)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The number, with one zero instead of two.
fn finite(number: f64) -> Result<f64, Broken> {
    if number.is_finite() { Ok(number + 0.0) } else { Err(Broken::NumberRange) }
}

impl Node {
    fn evaluate<'a>(&'a self, values: &'a Map<String, Value>) -> Result<Operand<'a>, Broken> {
        Ok(match self {
            Self::Null => Operand::Null,
            Self::Bool(value) => Operand::Bool(*value),
            Self::Number(number) => Operand::Number(*number),
            Self::Text(text) => Operand::Text(text),
            Self::Name(name) => values.get(name).map_or(Operand::Null, Operand::from_json),
            Self::List(items) => Operand::List(evaluate_all(items, values)?),
            Self::Call(function, arguments) => function.apply(&evaluate_all(arguments, values)?)?,
            Self::Negate(node) => Operand::Number(-node.evaluate(values)?.number()?),
            Self::Arithmetic(first, rest) => {
                let mut total = first.evaluate(values)?.number()?;
                for (operation, node) in rest {
                    total = operation.apply(total, node.evaluate(values)?.number()?)?;
                }
                Operand::Number(total)
            }
            Self::Compare(left, comparison, right) => {
                Operand::Bool(comparison.apply(&left.evaluate(values)?, &right.evaluate(values)?)?)
            }
            Self::Not(node) => Operand::Bool(!node.evaluate(values)?.boolean()?),
            Self::And(nodes) => Operand::Bool(!any(nodes, values, false)?),
            Self::Or(nodes) => Operand::Bool(any(nodes, values, true)?),
        })
    }
}

fn evaluate_all<'a>(nodes: &'a [Node], values: &'a Map<String, Value>) -> Result<Vec<Operand<'a>>, Broken> {
    nodes.iter().map(|node| node.evaluate(values)).collect()
}

/// Whether one of the nodes is `wanted`. Stops there, so that `x == null or x > 2` is safe to write.
fn any(nodes: &[Node], values: &Map<String, Value>, wanted: bool) -> Result<bool, Broken> {
    for node in nodes {
        if node.evaluate(values)?.boolean()? == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Operation {
    fn apply(self, left: f64, right: f64) -> Result<f64, Broken> {
        finite(match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide if right == 0.0 => return Err(Broken::DivisionByZero),
            Self::Divide => left / right,
        })
    }
}

impl Comparison {
    fn apply(self, left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, Broken> {
        Ok(match self {
            Self::Le => left.order(right)?.is_le(),
            Self::Lt => left.order(right)?.is_lt(),
            Self::Ge => left.order(right)?.is_ge(),
            Self::Gt => left.order(right)?.is_gt(),
            Self::Eq => left.equals(right, MAX_COMPARED_LEVELS)?,
            Self::Ne => !left.equals(right, MAX_COMPARED_LEVELS)?,
            Self::In => left.is_in(right)?,
            Self::NotIn => !left.is_in(right)?,
        })
    }
}

impl Function {
    fn apply<'a>(self, arguments: &[Operand<'a>]) -> Result<Operand<'a>, Broken> {
        match (self, arguments) {
            (Self::Abs, [value]) => Ok(Operand::Number(value.number()?.abs())),
            (Self::Len, [value]) => value.length(),
            (Self::Min | Self::Max, [only]) if let Some(items) = only.items() => self.extreme(&items),
            (Self::Min | Self::Max, several) => self.extreme(several),
            (Self::Abs | Self::Len, _) => Err(Broken::Empty), // compile has counted the arguments
        }
    }

    fn extreme<'a>(self, candidates: &[Operand<'_>]) -> Result<Operand<'a>, Broken> {
        let mut best = None;
        for candidate in candidates {
            let number = candidate.number()?;
            best = Some(best.map_or(number, |best: f64| {
                if self == Self::Min { best.min(number) } else { best.max(number) }
            }));
        }
        best.map(Operand::Number).ok_or(Broken::Empty)
    }
}

impl<'a> Operand<'a> {
    fn length(&self) -> Result<Operand<'a>, Broken> {
        let length = match self {
            Self::Text(text) => text.chars().count(),
            Self::List(items) => items.len(),
            Self::Array(items) => items.len(),
            Self::Object(members) => members.len(),
            _ => return Err(Broken::NotAContainer),
        };
        // Through u32: no body holds more items than that, and the conversion to a double is exact.
        Ok(Operand::Number(u32::try_from(length).map_err(|_| Broken::NumberRange)?.into()))
    }
}

//! JMESPath: questions to JSON, as templates and conditions of pipelines ask them.
//!
//! The language of jmespath.org with its standard functions; like the Python library, `<` and its kin compare strings too. It
//! is our own because whoever may make a task may write an expression: each has a greatest length, depth and number of
//! parts, and each evaluation pays from [`Fuel`] for what it looks at and makes, so that none overflows a stack or a memory.
//! `parse` makes the tree, `eval` answers, `value` holds what comes about on the way.

mod eval;
mod functions;
mod lexer;
mod parser;
mod value;

use serde_json::Value;

pub use eval::EvalError;

/// Longest expression, bytes.
pub const LONGEST: usize = 1_024;
/// Most parts of an expression.
const MOST_NODES: usize = 512;
/// How deep an expression may nest.
const DEEPEST: usize = 48;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    root: parser::Node,
    text: String,
}

/// A text is no expression. A sentence that may be shown to whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}, at character {at}")]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where, counted in characters from 1.
    pub at: usize,
}

/// What evaluations may still cost. A unit is one part of an expression applied once, one value looked at, or 64 bytes of text.
#[derive(Debug)]
pub struct Fuel(u64);

impl Fuel {
    /// This much.
    pub const fn of(units: u64) -> Self {
        Self(units)
    }

    /// How much is left.
    pub const fn left(&self) -> u64 {
        self.0
    }

    fn spend(&mut self, units: usize) -> Result<(), EvalError> {
        let units = u64::try_from(units).unwrap_or(u64::MAX);
        let left = self.0.checked_sub(units);
        self.0 = left.unwrap_or(0);
        if left.is_some() { Ok(()) } else { Err(EvalError::TooMuch) }
    }

    fn spend_text(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.spend(bytes / 64 + 1)
    }
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong and where; also for more than [`LONGEST`] bytes and for deep nesting.
    pub fn compile(text: &str) -> Result<Self, SyntaxError> {
        if text.len() > LONGEST {
            let message = format!("the expression has {} bytes: it may have {LONGEST}", text.len());
            return Err(SyntaxError { message, at: 1 });
        }
        let tokens = lexer::tokens(text)?;
        Ok(Self { root: parser::parse(tokens)?, text: text.to_owned() })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The answer for `data`.
    ///
    /// # Errors
    /// A function was given what it does not take, or the fuel is spent.
    pub fn search(&self, data: &Value, fuel: &mut Fuel) -> Result<Value, EvalError> {
        eval::eval(&self.root, &value::Val::Ref(data), fuel)?.into_value(fuel)
    }

    /// Whether the answer counts as yes. No are null, false, 0, and what is empty.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub fn holds(&self, data: &Value, fuel: &mut Fuel) -> Result<bool, EvalError> {
        let answer = eval::eval(&self.root, &value::Val::Ref(data), fuel)?;
        Ok(answer.is_true() && answer.as_f64() != Some(0.0))
    }
}

#[cfg(test)]
mod tests;

//! What the texts of requests may be: one rule for each kind of text, which parser and API document both take from here.
//!
//! A rule is bounds and the characters that a text may have. Whoever reads a request checks by it ([`Text`], [`Rule::check`]),
//! and the API document tells it ([`Rule::schema`]), so the two cannot differ. What a rule cannot say (that a zone exists, that
//! an expression can be read) is behind it, in the type that the text becomes.
//!
//! *Declared free text* says anything: prose, and secrets as somebody gives them. It has a bound and no more; the document
//! marks it with `x-free-text`.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::grant::{GrantType, KeyMethod};
use crate::run::RunState;
use crate::screen::Place;
use crate::secret::Secret;
use crate::task::{ApprovalState, Backoff, Misfire, ScheduleKind, TaskRunState, TaskStatus};

/// Which characters a text may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// These: single ones and ranges, as between the brackets of a regular expression; `\` before one that would mean something.
    Only(&'static str),
    /// Everything but control characters, so that it is one line.
    Line,
    /// Everything but U+0000, which no database keeps.
    Any,
    /// Everything.
    All,
}

impl Class {
    fn has(self, c: char) -> bool {
        match self {
            Self::All => true,
            Self::Any => c != '\0',
            Self::Line => !c.is_control(),
            Self::Only(listed) => {
                let mut rest = listed.chars();
                let mut found = false;
                while let Some(from) = literal(&mut rest) {
                    let mut after = rest.clone();
                    // A hyphen that means itself stands last.
                    let to = match (after.next(), literal(&mut after)) {
                        (Some('-'), Some(to)) => {
                            rest = after;
                            to
                        }
                        _ => from,
                    };
                    found |= (from..=to).contains(&c);
                }
                found
            }
        }
    }

    /// As the brackets of a regular expression (ECMA-262, as JSON Schema has it).
    fn pattern(self) -> String {
        match self {
            Self::All => r"[\s\S]".to_owned(),
            Self::Any => r"[^\u0000]".to_owned(),
            Self::Line => r"[^\u0000-\u001f\u007f-\u009f]".to_owned(),
            Self::Only(listed) => format!("[{listed}]"),
        }
    }
}

/// The next character of a class, without the `\` that may stand before it.
fn literal(rest: &mut std::str::Chars<'_>) -> Option<char> {
    rest.next().and_then(|c| if c == '\\' { rest.next() } else { Some(c) })
}

/// What a text may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which the API document's tables refer to.
    pub name: &'static str,
    /// Fewest characters.
    pub shortest: usize,
    /// Most characters.
    pub longest: usize,
    /// What it begins with, literally.
    pub prefix: &'static str,
    /// What the first character after that may be, if it may be less than the others.
    pub first: Option<Class>,
    /// What the others may be.
    pub rest: Class,
    /// There is more in it than white space.
    pub filled: bool,
    /// Where it stands, for the screening; `None`: a secret, which nothing looks at.
    pub place: Option<Place>,
    /// Declared free text.
    pub free: bool,
    /// The `format` of JSON Schema, if there is one.
    pub format: Option<&'static str>,
}

/// Why a text does not hold to its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Too short, too long, or nothing but white space.
    #[error("must have {0} to {1} characters")]
    Length(usize, usize),
    /// A character that it may not have, or another beginning.
    #[error("has a character that it may not have; the API document says which it may")]
    Form,
}

impl Breach {
    /// As errors of fields name it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Length(..) => "length",
            Self::Form => "format",
        }
    }
}

/// Where a text is one of some characters and nothing else is said.
const PLAIN: Rule = Rule {
    name: "",
    shortest: 1,
    longest: 64,
    prefix: "",
    first: None,
    rest: Class::Line,
    filled: false,
    place: Some(Place::Id),
    free: false,
    format: None,
};

const LABEL: Rule = Rule { filled: true, place: Some(Place::Label), ..PLAIN };
const FREE: Rule = Rule { shortest: 0, rest: Class::Any, place: Some(Place::FreeText), free: true, ..PLAIN };
/// What only its own check can tell from a wrong one: the form keeps out what cannot be one.
const SECRET: Rule = Rule { place: None, format: Some("password"), ..PLAIN };

impl Rule {
    /// # Errors
    /// [`Breach`].
    pub fn check(&self, text: &str) -> Result<(), Breach> {
        // Characters have one byte at least and four at most: most texts need no counting.
        let length = if text.len() > self.longest { text.chars().count() } else { text.len() };
        if length < self.shortest || length > self.longest || (self.filled && text.trim().is_empty()) {
            return Err(Breach::Length(self.shortest, self.longest));
        }
        let mut rest = text.strip_prefix(self.prefix).ok_or(Breach::Form)?.chars();
        let first = self.first.is_none_or(|first| rest.clone().next().is_none_or(|c| first.has(c)));
        if first && rest.all(|c| self.rest.has(c)) { Ok(()) } else { Err(Breach::Form) }
    }

    /// Whether a text holds to it.
    pub fn holds(&self, text: &str) -> bool {
        self.check(text).is_ok()
    }

    /// The same as JSON Schema.
    pub fn schema(&self) -> Value {
        let rest = self.rest.pattern();
        let pattern = match self.first {
            Some(first) => format!("^{}{}{rest}*$", self.prefix, first.pattern()),
            None => format!("^{}{rest}*$", self.prefix),
        };
        let mut schema = json!({ "type": "string", "maxLength": self.longest, "pattern": pattern });
        if self.shortest > 0 {
            schema["minLength"] = self.shortest.into();
        }
        if let Some(format) = self.format {
            schema["format"] = format.into();
        }
        if self.free {
            schema["x-free-text"] = true.into();
        }
        schema
    }
}

/// A kind of text.
pub trait Form {
    /// What it may be.
    const RULE: Rule;
}

macro_rules! forms {
    ($($(#[$doc:meta])* $name:ident = $rule:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum $name {}

            impl Form for $name {
                const RULE: Rule = Rule { name: stringify!($name), ..$rule };
            }
        )*

        /// Every rule.
        pub const RULES: &[Rule] = &[$($name::RULE),*];
    };
}

forms! {
    /// The name that a person signs in with. Case does not matter.
    UserName = Rule { first: Some(Class::Only("A-Za-z0-9")), rest: Class::Only("A-Za-z0-9._@-"), ..PLAIN };
    /// A user's name or an agent's id.
    Principal = UserName::RULE;
    /// The name of a role of the installation's own.
    RoleName = Rule { longest: 32, rest: Class::Only("a-z0-9_-"), ..PLAIN };
    /// The name of an agent, for people.
    AgentName = Rule { longest: 100, ..LABEL };
    /// The name of an API key, for people.
    KeyName = Rule { longest: 100, filled: false, ..LABEL };
    /// The name of a second factor, for people.
    FactorName = LABEL;
    /// What a device without a browser calls itself.
    ClientName = Rule { place: Some(Place::Label), ..PLAIN };
    /// A scope; `scope::Scope` is behind it.
    ScopeText = Rule { longest: crate::scope::MAX_BYTES, first: Some(Class::Only("a-z")), rest: Class::Only("A-Za-z0-9_.:/*-"), ..PLAIN };
    /// Scopes with spaces between (RFC 6749 section 3.3).
    ScopeList = Rule { shortest: 0, longest: crate::scope::MAX_SCOPES * (crate::scope::MAX_BYTES + 1), rest: Class::Only("A-Za-z0-9_.:/* -"), ..PLAIN };
    /// A part of the name of an agent.
    NamePart = Rule { shortest: 0, longest: 100, place: Some(Place::Label), ..PLAIN };
    /// A part of a scope.
    ScopePart = Rule { shortest: 0, longest: crate::scope::MAX_BYTES, rest: Class::Only("A-Za-z0-9_.:/*-"), ..PLAIN };
    /// Where an agent is told outcomes: characters of RFC 3986; the host is checked behind it.
    WebhookUrl = Rule { shortest: 9, longest: 500, prefix: "https://", rest: Class::Only(r"A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-"), ..PLAIN };
    /// Whom a client certificate names: `dns:` or `uri:` and the name.
    CertificateName = Rule { shortest: 5, longest: 255, rest: Class::Only(r"!#-;=?-Z\[\]^_`a-~"), ..PLAIN };
    /// An id of our own making: of a token, session, key, invitation or factor.
    ShortId = Rule { rest: Class::Only("A-Za-z0-9._-"), ..PLAIN };
    /// Of an account with guesses, by its id or its name.
    LockoutId = Rule { longest: 128, place: Some(Place::Label), ..PLAIN };
    /// A UUID (RFC 9562), hyphenated or plain.
    Uuid = Rule { shortest: 32, longest: 36, rest: Class::Only("0-9A-Fa-f-"), ..PLAIN };
    /// A run of a device.
    RunIdText = Rule { shortest: 36, longest: 36, prefix: "run_", rest: Class::Only("0-9a-f"), ..PLAIN };
    /// An address, or a network in CIDR notation.
    Network = Rule { shortest: 2, longest: 64, rest: Class::Only("0-9A-Fa-f:./ -"), ..PLAIN };
    /// The same, or `user:NAME` or `agent:ID`.
    BanSubject = Rule { longest: 70, rest: Class::Only("0-9A-Za-z:./@_ -"), ..PLAIN };
    /// The name of an action of a device: an identifier.
    ActionName = Rule { first: Some(Class::Only("A-Za-z_")), rest: Class::Only("A-Za-z0-9_"), ..PLAIN };
    /// The name of a file that a run produced.
    FileName = Rule { longest: 255, ..PLAIN };
    /// A name that a list is narrowed to: of an action, an act, a rule, a route, a result.
    Sought = Rule { longest: 128, ..PLAIN };
    /// Whom, to what or from where, in the audit trail.
    AuditSubject = Rule { longest: 256, ..PLAIN };
    /// Title of a task.
    Title = Rule { longest: 200, ..LABEL };
    /// Topic of an event.
    Topic = Rule { longest: 100, ..LABEL };
    /// A name of the IANA time zone database; whether it is there is checked behind it.
    Zone = Rule { rest: Class::Only("A-Za-z0-9_+/-"), ..PLAIN };
    /// Cron, a recurrence rule, a time, a topic or a condition, each with a grammar of its own behind this; empty is as none.
    ScheduleExpr = Rule { shortest: 0, longest: crate::schedule::LONGEST_EXPRESSION, place: Some(Place::FreeText), rest: Class::Any, ..PLAIN };
    /// What keeps a task or its runs single.
    DedupeKey = Rule { longest: 100, filled: true, place: Some(Place::FreeText), ..PLAIN };
    /// A part of a public JSON Web Key (RFC 7517): base64url, at most the modulus of an RSA key of 8192 bits, or the name of a curve.
    KeyMember = Rule { longest: 1_366, rest: Class::Only("A-Za-z0-9_-"), ..PLAIN };
    /// The name that somebody gives a key.
    KeyId = Rule { longest: 1_366, ..PLAIN };
    /// A part of what a device says at a sign-in with a passkey: base64url, or a word.
    CredentialPart = Rule { longest: 16_384, rest: Class::Only("!-~"), place: None, ..PLAIN };
    /// Whom a token is to be for (RFC 8693 section 2.1).
    Audience = Rule { longest: 500, rest: Class::Only("!-~"), ..PLAIN };
    /// A position in the stream of events.
    Position = Rule { shortest: 3, longest: 37, rest: Class::Only("0-9-"), ..PLAIN };
    /// SHA-256 in hexadecimal digits.
    Sha256 = Rule { shortest: 64, longest: 64, rest: Class::Only("0-9A-Fa-f"), ..PLAIN };
    /// The code that a device without a browser shows.
    UserCodeText = Rule { longest: 16, rest: Class::Only("A-Za-z -"), ..PLAIN };
    /// What a client gives a request that it may repeat.
    IdempotencyKey = Rule { longest: 255, rest: Class::Only("!-~"), ..PLAIN };
    /// A time (RFC 3339); `Timestamp` is behind it.
    Time = Rule { shortest: 20, longest: crate::time::LONGEST, rest: Class::Only("0-9TtZz:. +-"), format: Some("date-time"), ..PLAIN };
    /// A preference (RFC 7240). Unknown ones are ignored, as that has it.
    Preference = Rule { longest: 1_024, rest: Class::Only(" -~"), place: Some(Place::Header), free: true, ..PLAIN };

    /// A token of ours, or of a provider: the JSON Web Token is behind it.
    TokenText = Rule { longest: 4_096, rest: Class::Only("A-Za-z0-9._~+/=-"), ..SECRET };
    /// A code for one use: of an authenticator app, a recovery code, or of a sign-in.
    CodeText = Rule { shortest: 0, longest: 128, rest: Class::Only("A-Za-z0-9 _-"), ..SECRET };
    /// A new password or secret; how good it is, is checked behind it.
    NewPasswordText = Rule { longest: 1_024, ..SECRET };
    /// A password or secret as somebody gives it to prove who he is. It is compared and nothing else.
    GivenSecret = Rule { shortest: 0, longest: 1_024, free: true, rest: Class::All, ..SECRET };

    /// Why somebody does something to a device, on one line.
    ReasonText = Rule { longest: 200, rest: Class::Line, ..FREE };
    /// Why a network is refused, on one line.
    BanReason = Rule { shortest: 1, filled: true, ..ReasonText::RULE };
    /// What a role is for, on one line.
    RoleDescription = Rule { longest: 500, ..ReasonText::RULE };
    /// Why somebody moves, skips or cancels a task's run.
    Remark = Rule { longest: 200, ..FREE };
    /// What somebody says to a decision.
    Note = Rule { longest: 500, ..FREE };
    /// What a task is for.
    Description = Rule { shortest: 1, longest: 2_000, filled: true, ..FREE };
}

fn one_of(words: impl Iterator<Item = &'static str>) -> Value {
    let words: Vec<&str> = words.collect();
    json!({ "type": "string", "enum": words })
}

/// What the API document says of a kind of text or of a set of words, by its name; `None` if there is none of this name.
pub fn schema_of(name: &str) -> Option<Value> {
    if let Some(rule) = RULES.iter().find(|rule| rule.name == name) {
        return Some(rule.schema());
    }
    Some(match name {
        "ScheduleKind" => one_of(ScheduleKind::ALL.iter().map(|word| word.as_str())),
        "TaskStatus" => one_of(TaskStatus::ALL.iter().map(|word| word.as_str())),
        "Backoff" => one_of(Backoff::ALL.iter().map(|word| word.as_str())),
        "Misfire" => one_of(Misfire::ALL.iter().map(|word| word.as_str())),
        "TaskRunState" => one_of(TaskRunState::ALL.iter().map(|word| word.as_str())),
        "ApprovalState" => one_of(ApprovalState::ALL.iter().map(|word| word.as_str())),
        "RunState" => one_of(RunState::ALL.iter().map(|word| word.as_str())),
        "GrantType" => one_of(GrantType::ALL.iter().map(|word| word.name())),
        "KeyMethod" => one_of(KeyMethod::ALL.iter().map(|word| word.name())),
        "KnownScope" => one_of(crate::scope::KNOWN.iter().copied()),
        _ => return None,
    })
}

/// Whether every text in a JSON value holds to a rule, names of members left out.
pub fn each_holds(rule: &Rule, value: &Value) -> bool {
    match value {
        Value::String(text) => rule.holds(text),
        Value::Array(items) => items.iter().all(|item| each_holds(rule, item)),
        Value::Object(members) => members.values().all(|member| each_holds(rule, member)),
        _ => true,
    }
}

/// A text that holds to the rule of its kind.
pub struct Text<F>(String, PhantomData<fn() -> F>);

impl<F: Form> Text<F> {
    /// # Errors
    /// [`Breach`].
    pub fn new(text: String) -> Result<Self, Breach> {
        F::RULE.check(&text).map(|()| Self(text, PhantomData))
    }

    /// A text of the program's own.
    ///
    /// # Panics
    /// When it does not hold to the rule.
    pub fn fixed(text: &'static str) -> Self {
        Self::new(text.to_owned()).expect("the program's own texts hold to their rules")
    }

    /// The text itself.
    pub fn into_string(self) -> String {
        self.0
    }

    /// Texts without their rule.
    pub fn into_strings(texts: Vec<Self>) -> Vec<String> {
        texts.into_iter().map(Self::into_string).collect()
    }
}

impl<F> Deref for Text<F> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<F> AsRef<str> for Text<F> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<F> fmt::Debug for Text<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stands between the name of a rule and the text that does not hold to it.
const BEFORE_TEXT: char = '\n';

/// The error is the name of the rule and the text: see [`broken`].
impl<'de, F: Form> Deserialize<'de> for Text<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let error = F::RULE.check(&text).err().map(|_| format!("{}{BEFORE_TEXT}{text}", F::RULE.name));
        error.map_or(Ok(Self(text, PhantomData)), |error| Err(serde::de::Error::custom(error)))
    }
}

/// A secret that holds to the rule of its kind.
pub struct SecretText<F>(Secret, PhantomData<fn() -> F>);

impl<F> SecretText<F> {
    /// The secret itself.
    pub fn into_secret(self) -> Secret {
        self.0
    }
}

impl<F> fmt::Debug for SecretText<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, F: Form> Deserialize<'de> for SecretText<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = Secret::deserialize(deserializer)?;
        let held = F::RULE.check(secret.expose());
        held.map(|()| Self(secret, PhantomData)).map_err(|_| serde::de::Error::custom(F::RULE.name))
    }
}

/// The rule that an error of a deserializer tells to be broken, and by which text if it is no secret. Such an error is never
/// shown to anybody.
pub fn broken(error: &str) -> Option<(&'static Rule, Option<&str>)> {
    let (name, text) = error.split_once(BEFORE_TEXT).map_or((error, None), |(name, text)| (name, Some(text)));
    RULES.iter().find(|rule| rule.name == name).map(|rule| (rule, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds<F: Form>(text: &str) -> bool {
        F::RULE.holds(text)
    }

    #[test]
    fn a_text_of_one_too_many_is_refused_and_one_of_just_enough_is_not() {
        for rule in RULES {
            let one =
                ["a", "7", ":"].into_iter().find(|one| rule.rest.has(one.chars().next().unwrap_or('a')));
            let fill = |count: usize| {
                let one = one.expect("every class has one of these");
                format!("{}{}", rule.prefix, one.repeat(count - rule.prefix.chars().count()))
            };

            assert_eq!(rule.check(&fill(rule.longest)), Ok(()), "{}", rule.name);
            let refused = Err(Breach::Length(rule.shortest, rule.longest));
            assert_eq!(rule.check(&fill(rule.longest + 1)), refused, "{}", rule.name);
            assert_eq!(rule.check("").is_ok(), rule.shortest == 0, "{}", rule.name);
        }
    }

    #[test]
    fn none_but_a_given_secret_takes_a_nul_and_none_but_free_text_takes_control_characters() {
        for rule in RULES {
            let with = |c: char| format!("{}a{c}a", rule.prefix);

            assert!(!rule.holds(&with('\0')) || rule.rest == Class::All, "{}", rule.name);
            let many_lines = rule.free || rule.name == "ScheduleExpr";
            for c in ['\u{1}', '\u{7f}', '\u{85}'] {
                assert!(!rule.holds(&with(c)) || many_lines, "{} {c:?}", rule.name);
            }
        }
    }

    #[test]
    fn characters_are_counted_not_bytes() {
        assert!(holds::<Title>(&"é".repeat(200)) && !holds::<Title>(&"é".repeat(201)));
    }

    #[test]
    fn each_kind_keeps_to_its_grammar() {
        assert!(
            holds::<UserName>("ana.li@lab-2") && !holds::<UserName>("-ana") && !holds::<UserName>("ana li")
        );
        assert!(holds::<RoleName>("night-shift_2") && !holds::<RoleName>("Night"));
        assert!(
            holds::<ActionName>("_mix2") && !holds::<ActionName>("2mix") && !holds::<ActionName>("mix-2")
        );
        assert!(holds::<Title>("plate 4") && !holds::<Title>("  ") && !holds::<Title>("a\nb"));
        assert!(holds::<Description>("one\ntwo") && !holds::<Description>(" \n "));
        assert!(
            holds::<WebhookUrl>("https://[::1]/a?b=c~d_e#f")
                && !holds::<WebhookUrl>("https://D}+L")
                && !holds::<WebhookUrl>("http://lab.example")
        );
        for bad in ["\"", "<", ">", "\\", "`", " ", "é"] {
            assert!(!holds::<WebhookUrl>(&format!("https://lab.example/{bad}")), "{bad}");
        }
        assert!(holds::<IdempotencyKey>("!~[\\]-") && !holds::<IdempotencyKey>("a b"));
        assert!(holds::<Network>("2001:db8::/32") && !holds::<Network>("lab.example"));
    }

    #[test]
    fn the_document_says_what_the_parser_does() {
        let name = schema_of("RoleName").expect("there is such a rule");

        assert_eq!(name["pattern"], "^[a-z0-9_-]*$");
        assert_eq!((name["minLength"].as_u64(), name["maxLength"].as_u64()), (Some(1), Some(32)));
        assert_eq!(
            schema_of("UserName").map(|user| user["pattern"].clone()),
            Some("^[A-Za-z0-9][A-Za-z0-9._@-]*$".into())
        );
        assert_eq!(schema_of("Time").map(|time| time["format"].clone()), Some("date-time".into()));
        assert_eq!(schema_of("Note").map(|note| note["x-free-text"].clone()), Some(true.into()));
        assert_eq!(schema_of("Misfire").map(|words| words["enum"].is_array()), Some(true));
        assert_eq!(schema_of("nothing"), None);
    }

    #[test]
    fn an_error_names_the_rule_and_never_a_secret() {
        let read = serde_json::from_value::<Text<RoleName>>(json!("Hunter2"));

        let error = read.expect_err("a role has small letters").to_string();
        assert_eq!(broken(&error), Some((&RoleName::RULE, Some("Hunter2"))));
        let read = serde_json::from_value::<SecretText<NewPasswordText>>(json!("a\0b"));
        assert_eq!(
            broken(&read.expect_err("not a password").to_string()),
            Some((&NewPasswordText::RULE, None))
        );
    }
}

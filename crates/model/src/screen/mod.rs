//! Threat detection: whether a text looks like an attack, by the grammar of what it would be injected into.
//!
//! A tripwire, not the defence: queries are bound, JSON is JSON, pages escape. Nothing may rely on a text having passed here.
//! The text is decoded once into a canonical form ([`decode`]); the characters that occur in it choose which probes run; each
//! probe reads windows of at most [`WINDOW`] bytes; the strongest hit is the [`Verdict`]. The work is linear in the length of
//! the text, whatever stands in it. What a hit leads to depends on the [`Place`]: structured places and labels refuse, free
//! text is only observed. Rules and their scores live with their probes.

pub mod decode;
mod ldap;
mod markup;
mod markup_names;
mod nosql;
pub mod scanner;
mod shell;
mod shell_names;
mod sql;
mod sql_conditions;
mod sql_statements;
mod sql_tokens;
mod template;
mod text;
mod traversal;
mod xxe;

/// Version of the rules: the day of their last change, and which change of that day. A test notices when they change without it.
pub const RULES: &str = "2026-11-23.1";
/// Bytes that a probe sees at once.
pub const WINDOW: usize = 4_096;
/// How far two windows overlap: an attack that is longer than this may be cut in two.
const OVERLAP: usize = 512;
/// Bytes of one text that are looked at; structured places are bounded by the size of a request's head anyway.
pub const MOST: usize = 65_536;

/// Where a text stands in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The path of the URL.
    Path,
    /// A name or value of the query.
    Query,
    /// A header that is meant for machines.
    Header,
    /// An id, an enum, a name with a grammar of its own.
    Id,
    /// A short text that people read: title, name, topic.
    Label,
    /// Prose, code, data: description, reason, notes, payload, action parameters.
    FreeText,
}

impl Place {
    /// Name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
            Self::Id => "id",
            Self::Label => "label",
            Self::FreeText => "free_text",
        }
    }

    /// Whether the place has a grammar in which an attack has no business.
    pub const fn is_structured(self) -> bool {
        matches!(self, Self::Path | Self::Query | Self::Header | Self::Id)
    }

    /// The score from which a hit in this place is told at all.
    const fn threshold(self) -> u8 {
        match self {
            Self::Path | Self::Query | Self::Id | Self::Label => 50,
            // Other people's software fills headers.
            Self::Header => 65,
            Self::FreeText => 70,
        }
    }
}

/// What kind of attack a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// SQL fragments.
    Sql,
    /// HTML, event handlers, script URLs, script.
    Markup,
    /// Ways out of a folder, files of the system.
    Traversal,
    /// Commands of a shell.
    Shell,
    /// Expressions of template engines.
    Template,
    /// Operators of document databases.
    NoSql,
    /// Filters of directories.
    Ldap,
    /// XML documents with declarations.
    Xxe,
    /// NUL and control characters.
    Control,
    /// Encodings that hide something.
    Encoding,
    /// Names of scanning programs.
    Scanner,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 11] = [
        Self::Sql,
        Self::Markup,
        Self::Traversal,
        Self::Shell,
        Self::Template,
        Self::NoSql,
        Self::Ldap,
        Self::Xxe,
        Self::Control,
        Self::Encoding,
        Self::Scanner,
    ];

    /// Name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Markup => "markup",
            Self::Traversal => "traversal",
            Self::Shell => "shell",
            Self::Template => "template",
            Self::NoSql => "nosql",
            Self::Ldap => "ldap",
            Self::Xxe => "xxe",
            Self::Control => "control",
            Self::Encoding => "encoding",
            Self::Scanner => "scanner",
        }
    }
}

/// How sure a hit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// A sign at most.
    Low,
    /// Refused where it stands, but an honest client may have sent it.
    Medium,
    /// No honest client sends this: counts towards a ban.
    High,
}

impl Confidence {
    const fn of(score: u8) -> Self {
        match score {
            80.. => Self::High,
            50.. => Self::Medium,
            _ => Self::Low,
        }
    }
}

/// The strongest thing that was found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// 0 to 100.
    pub score: u8,
    /// Stable name, `family.rule`. For logs, never for the caller.
    pub rule: &'static str,
    /// What kind of attack.
    pub family: Family,
    /// How sure.
    pub confidence: Confidence,
    /// Where.
    pub place: Place,
}

/// What a probe has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hit {
    score: u8,
    rule: &'static str,
    family: Family,
}

/// The best of several hits.
#[derive(Debug, Default)]
struct Best(Option<Hit>);

impl Best {
    fn put(&mut self, score: u8, rule: &'static str, family: Family) {
        if score > self.score() {
            self.0 = Some(Hit { score, rule, family });
        }
    }

    fn score(&self) -> u8 {
        self.0.map_or(0, |hit| hit.score)
    }
}

/// Counts the steps of a detection, so that tests can hold it to linear work.
#[derive(Debug, Default)]
pub struct Meter {
    steps: u64,
}

impl Meter {
    fn add(&mut self, steps: usize) {
        self.steps += steps as u64;
    }

    /// Steps so far: bytes and tokens that were looked at, as often as they were.
    pub const fn steps(&self) -> u64 {
        self.steps
    }
}

/// Looks at a text. `None` when there is nothing that this place minds.
///
/// `raw` is as it came: percent-encoded in a path, query or header, otherwise the value that a body's parser gave.
pub fn inspect(place: Place, raw: &[u8], meter: &mut Meter) -> Option<Verdict> {
    let raw = &raw[..raw.len().min(MOST)];
    let decoded = decode::decode(place, raw, meter);
    let mut best = Best::default();
    control(place, &decoded.text, &mut best);
    if place.is_structured() && place != Place::Header {
        if decoded.double {
            best.put(70, "encoding.double", Family::Encoding);
        }
        if decoded.overlong {
            best.put(80, "encoding.overlong", Family::Encoding);
        }
        if decoded.unstable {
            best.put(70, "encoding.deep", Family::Encoding);
        }
    }
    let mut start = 0;
    loop {
        let end = decoded.text.len().min(start + WINDOW);
        window(place, &decoded.text[start..end], start == 0, &mut best, meter);
        if end == decoded.text.len() {
            break;
        }
        start = end - OVERLAP;
    }
    let hit = best.0.filter(|hit| hit.score >= place.threshold())?;
    Some(Verdict {
        score: hit.score,
        rule: hit.rule,
        family: hit.family,
        confidence: Confidence::of(hit.score),
        place,
    })
}

/// Looks at every name and value of a raw query string; the strongest verdict.
pub fn inspect_query(raw: &[u8], meter: &mut Meter) -> Option<Verdict> {
    let raw = &raw[..raw.len().min(MOST)];
    let pairs = raw.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty());
    let verdicts = pairs.flat_map(|pair| {
        let mut parts = pair.splitn(2, |&byte| byte == b'=');
        [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>()
    });
    verdicts.filter_map(|part| inspect(Place::Query, part, meter)).max_by_key(|verdict| verdict.score)
}

/// Runs the probes that the characters of a window call for.
fn window(place: Place, bytes: &[u8], first: bool, best: &mut Best, meter: &mut Meter) {
    let seen = text::Seen::of(bytes);
    meter.add(bytes.len());
    if seen.any(text::LESS | text::EQUALS | text::COLON | text::PAREN | text::TICK) {
        markup::probe(place, bytes, seen, best, meter);
    }
    // A label is refused for live markup and control characters, for nothing else that it says.
    if place == Place::Label {
        return;
    }
    if seen.any(text::LESS) {
        xxe::probe(bytes, best, meter);
    }
    if seen.any(text::SQL) {
        sql::probe(bytes, best, meter);
    }
    if seen.any(text::DOT | text::SLASH | text::COLON) {
        traversal::probe(place, bytes, first, best, meter);
    }
    if seen.any(text::SHELL) {
        shell::probe(bytes, best, meter);
    }
    if seen.any(text::BRACE | text::LESS | text::UNDERSCORE | text::HASH | text::AT) {
        template::probe(bytes, best, meter);
    }
    if seen.any(text::DOLLAR | text::QUOTE | text::DOT) {
        nosql::probe(bytes, best, meter);
    }
    if seen.any(text::PAREN) {
        ldap::probe(bytes, best, meter);
    }
}

/// NUL and control characters, which no place but free text has a use for.
fn control(place: Place, bytes: &[u8], best: &mut Best) {
    let mut line_break = false;
    for &byte in bytes {
        match byte {
            0 if place == Place::FreeText => best.put(70, "control.nul", Family::Control),
            0 => best.put(75, "control.nul", Family::Control),
            b'\t' | b'\n' | b'\r' if place == Place::FreeText => {}
            b'\n' | b'\r' => {
                line_break = true;
                best.put(60, "control.line_break", Family::Control);
            }
            // RFC 9110 section 5.5: a field value may hold tabs.
            b'\t' if place == Place::Header => {}
            0x01..=0x1f | 0x7f if place != Place::FreeText => {
                best.put(60, "control.character", Family::Control);
            }
            _ => {}
        }
    }
    if line_break && place.is_structured() && header_follows(bytes) {
        best.put(90, "control.header_injection", Family::Control);
    }
}

/// Whether a line break is followed by what looks like a header that an attacker wants to add.
fn header_follows(bytes: &[u8]) -> bool {
    const FIELDS: [&[u8]; 9] = [
        b"set-cookie",
        b"location",
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"x-forwarded-",
        b"host:",
        b"http/1.",
        b"refresh",
    ];
    bytes.split(|&byte| matches!(byte, b'\n' | b'\r')).skip(1).any(|line| {
        let line = line.trim_ascii_start();
        FIELDS.iter().any(|field| line.starts_with(field))
    })
}

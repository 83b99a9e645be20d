//! Rules that the administrator adds to those of the program, from a file that a running server reads again.
//!
//! They only add: what the program refuses, no file allows. A rule is a few literals that are looked for, in any case, in the canonical text of
//! some places. Its hits are of medium confidence at most, so that a careless rule refuses requests and bans nobody; in free text and
//! where only observing is on they are told. One automaton for each place, so the work is linear in the text whatever the rules are.
//! See `docs/reference/threat-rules.md`.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use arc_swap::ArcSwap;
use interlock_model::screen::{self, Family, Meter, Place, decode};
use serde::Deserialize;

/// How often the file is looked at.
const LOOKING: Duration = Duration::from_secs(5);
/// Bytes of the file.
const LARGEST: u64 = 65_536;
/// Rules, literals of all rules together, names of scanners.
const MOST_RULES: usize = 200;
const MOST_LITERALS: usize = 1_000;
const MOST_SCANNERS: usize = 200;
/// Bytes of a literal or a name. Shorter ones are in honest texts.
const LITERAL: std::ops::RangeInclusive<usize> = 4..=128;
/// Bytes of a `User-Agent` that are read for a name; programs say it early.
const HEAD: usize = 200;
const PLACES: [Place; 6] =
    [Place::Path, Place::Query, Place::Header, Place::Id, Place::Label, Place::FreeText];

/// The rules in force, and the file that they are from.
#[derive(Default)]
pub struct AddedRules {
    source: Option<PathBuf>,
    rules: ArcSwap<Rules>,
    seen: Mutex<Seen>,
}

/// What the file was when it was last read, and what was wrong with it.
#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    failure: Option<String>,
}

type Stamp = (SystemTime, u64);

/// Rules of one reading.
#[derive(Default)]
struct Rules {
    version: String,
    all: Vec<Rule>,
    /// For each of [`PLACES`]: what is looked for, and which rule each literal is of.
    places: [Option<(AhoCorasick, Vec<usize>)>; 6],
    /// Names of programs, and as what each is told.
    scanners: Option<(AhoCorasick, Vec<String>)>,
}

struct Rule {
    name: String,
    family: Family,
}

/// What an added rule has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) rule: String,
    pub(crate) family: Family,
    pub(crate) place: Place,
}

/// A file that cannot be taken, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct RulesError {
    path: PathBuf,
    reason: String,
}

impl fmt::Debug for AddedRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddedRules({:?}, {})", self.source, self.rules.load().all.len())
    }
}

impl AddedRules {
    /// Reads the rules of a file.
    ///
    /// # Errors
    /// [`RulesError`] when the file cannot be read or a rule breaks a bound. Nothing of it is taken then.
    pub fn open(path: &Path) -> Result<Self, RulesError> {
        let (rules, stamp) = load(path)?;
        let seen = Seen { stamp: Some(stamp), failure: None };
        let added = Self {
            source: Some(path.to_owned()),
            rules: ArcSwap::from_pointee(rules),
            seen: Mutex::new(seen),
        };
        Ok(added)
    }

    /// Version that the file says, and number of rules and names. Empty and 0 without a file.
    pub fn in_force(&self) -> (String, usize) {
        let rules = self.rules.load();
        let names = rules.scanners.as_ref().map_or(0, |(_, names)| names.len());
        (rules.version.clone(), rules.all.len() + names)
    }

    /// Looks at the file every five seconds until dropped. Run it as a background task.
    pub async fn watch(self: Arc<Self>) {
        self.tell();
        if self.source.is_none() {
            return;
        }
        loop {
            tokio::time::sleep(LOOKING).await;
            let added = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || added.refresh()).await.is_err() {
                tracing::error!("looking at the added rules failed; those in force stay");
            }
        }
    }

    /// Takes what the file holds now, if it is something else and can be taken; tells what is to be told.
    pub fn refresh(&self) {
        let Some(path) = &self.source else { return };
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = std::fs::metadata(path).ok().and_then(|file| Some((file.modified().ok()?, file.len())));
        if now.is_some() && now == seen.stamp {
            return;
        }
        match load(path) {
            Ok((rules, stamp)) => {
                *seen = Seen { stamp: Some(stamp), failure: None };
                self.untell();
                self.rules.store(Arc::new(rules));
                self.tell();
                metrics::counter!("interlock_added_rules_reloads_total", "result" => "done").increment(1);
                let (version, count) = self.in_force();
                tracing::info!(path = %path.display(), version, count, "the added rules were read again");
            }
            Err(error) => {
                // One that cannot be read has no stamp, and is tried each time; it is told once.
                seen.stamp = now;
                let error = error.to_string();
                if seen.failure.as_ref() != Some(&error) {
                    metrics::counter!("interlock_added_rules_reloads_total", "result" => "failed")
                        .increment(1);
                    tracing::error!(%error, "the added rules cannot be taken; those in force stay");
                    seen.failure = Some(error);
                }
            }
        }
    }

    fn told(&self, value: f64) {
        let version = self.rules.load().version.clone();
        metrics::gauge!("interlock_screening_rules_info", "program" => screen::RULES, "added" => version)
            .set(value);
    }

    fn untell(&self) {
        self.told(0.0);
    }

    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    fn tell(&self) {
        self.told(1.0);
        metrics::gauge!("interlock_added_rules").set(self.in_force().1 as f64);
    }

    /// Whether anything is looked for in a place.
    pub(crate) fn mind(&self, place: Place) -> bool {
        self.rules.load().places[index(place)].is_some()
    }

    /// The first literal of a rule in a text, which is as it came.
    pub(crate) fn find(&self, place: Place, raw: &[u8]) -> Option<Added> {
        let rules = self.rules.load();
        let (automaton, of) = rules.places[index(place)].as_ref()?;
        let raw = &raw[..raw.len().min(screen::MOST)];
        let decoded = decode::decode(place, raw, &mut Meter::default());
        let rule = &rules.all[of[automaton.find(&decoded.text)?.pattern().as_usize()]];
        Some(Added { rule: rule.name.clone(), family: rule.family, place })
    }

    /// The added name that a `User-Agent` carries.
    pub(crate) fn scanner(&self, agent: &[u8]) -> Option<String> {
        let rules = self.rules.load();
        let (automaton, names) = rules.scanners.as_ref()?;
        let head = &agent[..agent.len().min(HEAD)];
        let found = automaton
            .find_iter(head)
            .find(|found| found.start() == 0 || !head[found.start() - 1].is_ascii_alphanumeric())?;
        Some(names[found.pattern().as_usize()].clone())
    }
}

fn index(place: Place) -> usize {
    PLACES.iter().position(|one| *one == place).unwrap_or(0)
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: String,
    #[serde(default)]
    scanners: Vec<String>,
    #[serde(default)]
    rule: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    id: String,
    family: String,
    places: Vec<String>,
    literals: Vec<String>,
}

fn load(path: &Path) -> Result<(Rules, Stamp), RulesError> {
    let wrong = |reason: String| RulesError { path: path.to_owned(), reason };
    let unreadable = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    let stamp = (about.modified().map_err(unreadable)?, about.len());
    let mut text = String::new();
    file.by_ref().take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(format!("has more than {LARGEST} bytes")));
    }
    Ok((parse(&text).map_err(wrong)?, stamp))
}

/// Rules of a text. An error says which rule breaks which bound.
fn parse(text: &str) -> Result<Rules, String> {
    let written: Written = toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        format!("line {line}: {}", error.message())
    })?;
    if !is_word(&written.version) {
        return Err("version is 1 to 40 letters, digits, '.', '-' and '_'".to_owned());
    }
    if written.rule.len() > MOST_RULES || written.scanners.len() > MOST_SCANNERS {
        return Err(format!("there are at most {MOST_RULES} rules and {MOST_SCANNERS} scanners"));
    }
    let count: usize = written.rule.iter().map(|rule| rule.literals.len()).sum();
    if count > MOST_LITERALS {
        return Err(format!("there are {count} literals, and at most {MOST_LITERALS} are taken"));
    }
    let mut rules = Rules { version: written.version, ..Rules::default() };
    let mut sought: [(Vec<String>, Vec<usize>); 6] = Default::default();
    let mut ids = BTreeSet::new();
    for (number, rule) in written.rule.into_iter().enumerate() {
        let WrittenRule { id, family, places, literals } = rule;
        if !is_word(&id) {
            return Err(format!("rule {}: id is 1 to 40 letters, digits, '.', '-' and '_'", number + 1));
        }
        let family = Family::ALL.into_iter().find(|known| known.name() == family).ok_or_else(|| {
            let known = Family::ALL.map(Family::name).join(", ");
            format!("rule {id}: family is one of {known}")
        })?;
        if places.is_empty() || literals.is_empty() {
            return Err(format!("rule {id}: it needs places and literals"));
        }
        for literal in &literals {
            checked(literal).map_err(|reason| format!("rule {id}: {reason}"))?;
        }
        for place in places.iter().collect::<BTreeSet<_>>() {
            let place = PLACES.iter().position(|known| known.name() == place).ok_or_else(|| {
                let known = PLACES.map(Place::name).join(", ");
                format!("rule {id}: places are among {known}")
            })?;
            sought[place].0.extend(literals.iter().cloned());
            sought[place].1.extend(literals.iter().map(|_| number));
        }
        rules.all.push(Rule { name: format!("added.{id}"), family });
        if !ids.insert(id.clone()) {
            return Err(format!("rule {id}: the id stands there twice"));
        }
    }
    for (place, (literals, of)) in sought.into_iter().enumerate() {
        if !literals.is_empty() {
            rules.places[place] = Some((automaton(&literals)?, of));
        }
    }
    for name in &written.scanners {
        checked(name).map_err(|reason| format!("scanners: {reason}"))?;
    }
    if !written.scanners.is_empty() {
        let names =
            written.scanners.iter().map(|name| format!("added.{}", name.to_ascii_lowercase())).collect();
        rules.scanners = Some((automaton(&written.scanners)?, names));
    }
    Ok(rules)
}

fn automaton(literals: &[String]) -> Result<AhoCorasick, String> {
    let mut builder = AhoCorasick::builder();
    // A table of all states would take a hundred times the memory of the literals.
    builder.ascii_case_insensitive(true).kind(Some(AhoCorasickKind::ContiguousNFA));
    builder.build(literals).map_err(|error| format!("the literals cannot be looked for: {error}"))
}

/// Reads a text as rules and, if it holds some, looks for them in that text.
pub(crate) fn try_out(text: &str) {
    let Ok(rules) = parse(text) else { return };
    let added = AddedRules { rules: ArcSwap::from_pointee(rules), ..AddedRules::default() };
    for place in PLACES {
        let found = added.find(place, text.as_bytes());
        assert!(
            found.is_none_or(|found| found.place == place && added.mind(place)),
            "a rule of another place"
        );
    }
    let _ = added.scanner(text.as_bytes());
}

fn is_word(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=40).contains(&text.len()) && text.bytes().all(good)
}

fn checked(literal: &str) -> Result<(), String> {
    let honest = |byte: u8| byte.is_ascii_alphanumeric() || byte == b' ';
    if !LITERAL.contains(&literal.len()) {
        return Err(format!("a literal has {} to {} bytes", LITERAL.start(), LITERAL.end()));
    }
    if literal.bytes().any(|byte| byte.is_ascii_control()) {
        return Err("a literal has no control characters; the program refuses those by itself".to_owned());
    }
    if literal.len() < 6 && literal.bytes().all(honest) {
        return Err(format!(
            "{literal:?} is in honest texts: a literal of letters, digits and spaces alone has 6 bytes or more"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        version = "2026-11-24"
        scanners = ["acmescan"]
        [[rule]]
        id = "acme-console"
        family = "traversal"
        places = ["path", "query"]
        literals = ["/acme/console", "acmectl="]
        [[rule]]
        id = "beacon"
        family = "shell"
        places = ["free_text"]
        literals = ["beacon://"]
    "#;

    fn rules(text: &str) -> AddedRules {
        AddedRules { rules: ArcSwap::from_pointee(parse(text).expect("good rules")), ..AddedRules::default() }
    }

    #[test]
    fn a_literal_is_found_in_its_places_in_any_case_and_encoding() {
        let added = rules(GOOD);
        let hit = added
            .find(Place::Path, b"/tasks/%2541CME/../acme/console")
            .or_else(|| added.find(Place::Path, b"/x/ACME/Console"));
        assert_eq!(hit.expect("a hit").rule, "added.acme-console");
        for raw in ["/acme/console/", "/%61cme%2fconsole", "/AcMe/CONSOLE"] {
            let hit = added.find(Place::Path, raw.as_bytes()).expect(raw);
            assert_eq!((hit.family, hit.place), (Family::Traversal, Place::Path));
        }
        assert_eq!(
            added.find(Place::Query, b"a=1&acmectl=2").map(|hit| hit.rule).as_deref(),
            Some("added.acme-console")
        );
        assert_eq!(added.find(Place::Id, b"/acme/console"), None, "another place");
        assert_eq!(added.find(Place::FreeText, b"see beacon://x").map(|hit| hit.family), Some(Family::Shell));
        assert!(!added.mind(Place::Label) && added.mind(Place::FreeText));
        assert_eq!(added.in_force(), ("2026-11-24".to_owned(), 3));
    }

    #[test]
    fn a_name_is_found_where_a_word_begins() {
        let added = rules(GOOD);
        assert_eq!(added.scanner(b"AcmeScan/2.0").as_deref(), Some("added.acmescan"));
        assert_eq!(added.scanner(b"Mozilla (compatible; acmescan)").as_deref(), Some("added.acmescan"));
        assert_eq!(added.scanner(b"notacmescan"), None);
        assert_eq!(AddedRules::default().scanner(b"acmescan"), None);
    }

    #[test]
    fn what_breaks_a_bound_is_refused_with_its_reason() {
        let with = |rule: &str| format!("version = \"1\"\n[[rule]]\n{rule}");
        let good = "id = \"a\"\nfamily = \"sql\"\nplaces = [\"path\"]\n";
        let many: Vec<String> = (0..=MOST_LITERALS).map(|number| format!("\"/literal/{number}\"")).collect();
        for (text, part) in [
            (String::new(), "version"),
            ("version = \"\"".to_owned(), "version is"),
            ("version = \"1\"\nallow = []".to_owned(), "line 2"),
            (with("id = \"a\""), "family"),
            (with("id = \"a b\"\nfamily = \"sql\"\nplaces = [\"path\"]\nliterals = [\"/x/y/z\"]"), "id is"),
            (
                with("id = \"a\"\nfamily = \"magic\"\nplaces = [\"path\"]\nliterals = [\"/x/y/z\"]"),
                "family is one of sql, markup",
            ),
            (
                with("id = \"a\"\nfamily = \"sql\"\nplaces = [\"body\"]\nliterals = [\"/x/y/z\"]"),
                "places are among path, query",
            ),
            (with("id = \"a\"\nfamily = \"sql\"\nplaces = []\nliterals = [\"/x/y/z\"]"), "needs places"),
            (with(&format!("{good}literals = [\"abc\"]")), "4 to 128 bytes"),
            (with(&format!("{good}literals = [\"tasks\"]")), "honest texts"),
            (with(&format!("{good}literals = [\"{}\"]", "x".repeat(129))), "4 to 128 bytes"),
            (with(&format!("{good}literals = [\"a\\u0000bcd\"]")), "control characters"),
            (with(&format!("{good}literals = [{}]", many.join(","))), "at most 1000"),
            (with(&format!("{good}literals = [\"/x/y\"]\n[[rule]]\n{good}literals = [\"/x/y\"]")), "twice"),
            ("version = \"1\"\nscanners = [\"x\"]".to_owned(), "scanners:"),
        ] {
            let told = parse(&text).err().unwrap_or_else(|| panic!("taken: {text}"));
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn the_most_that_is_taken_is_looked_for_in_linear_time() {
        let literals: Vec<String> =
            (0..MOST_LITERALS).map(|number| format!("\"{}{number}\"", "aaaaaaaa/".repeat(4))).collect();
        let text = format!(
            "version = \"1\"\n[[rule]]\nid = \"a\"\nfamily = \"sql\"\nplaces = [\"free_text\"]\nliterals = [{}]",
            literals.join(",")
        );
        let added = rules(&text);
        let cost = |length: usize| {
            let raw = b"aaaaaaaa/".iter().copied().cycle().take(length).collect::<Vec<_>>();
            (0..5)
                .map(|_| {
                    let begun = std::time::Instant::now();
                    assert_eq!(added.find(Place::FreeText, &raw), None);
                    begun.elapsed()
                })
                .min()
                .expect("five")
        };
        let (short, long) = (cost(8_192), cost(65_536));
        assert!(
            long < short * 40 + Duration::from_millis(1),
            "8 times the text cost {long:?} after {short:?}"
        );
    }

    #[test]
    fn a_bad_file_leaves_the_rules_in_force_and_a_good_one_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rules.toml");
        std::fs::write(&path, GOOD).expect("written");
        let added = AddedRules::open(&path).expect("good rules");
        std::fs::write(&path, "version = 1").expect("written");
        added.refresh();
        assert_eq!(added.in_force().0, "2026-11-24");
        std::fs::write(&path, "version = \"next\"").expect("written");
        added.refresh();
        assert_eq!(added.in_force(), ("next".to_owned(), 0));
        std::fs::remove_file(&path).expect("removed");
        added.refresh();
        assert_eq!(added.in_force().0, "next");
        assert!(AddedRules::open(&path).is_err());
        std::fs::write(&path, " ".repeat(70_000)).expect("written");
        assert!(AddedRules::open(&path).expect_err("too large").to_string().contains("65536"));
    }
}

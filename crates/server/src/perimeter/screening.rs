//! Request screening: what looks like an attack is refused where it has no business, and observed elsewhere.
//!
//! A tripwire in front of strict parsing and bound parameters; no other code may rely on it. Path, query and headers are
//! looked at here, before authentication; the texts of a body after it, through [`Screened`], which every typed body
//! implements: a text field whose place nobody has stated does not compile. What the rules are is in
//! `interlock_model::screen`. The caller never learns which rule it was; the log and the audit trail never hold the text.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use interlock_engine::auth::{Caller, Origin};
use interlock_engine::security::{self, Event};
use interlock_model::screen::{self, Confidence, Family, Meter, Place, Verdict};
use serde_json::{Map, Value, json};

use super::added::{Added, AddedRules};
use super::bans;
use crate::config::ScreeningMode;
use crate::error::ApiError;
use crate::routes::bearer;
use crate::state::AppState;

/// Longest `User-Agent` in bytes. Real ones have a few hundred.
const USER_AGENT: usize = 2_048;
/// Bytes of a body's free text that are observed; each text counts a few more, because looking at it costs something.
const BUDGET: usize = 262_144;
const EACH: usize = 32;

/// Headers whose grammar is checked by whoever reads them, or whose content is opaque.
const SKIPPED: [&str; 33] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "baggage",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "dnt",
    "expect",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "pragma",
    "priority",
    "proxy-authorization",
    "range",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
];

/// Where the texts of a body stand. Secrets are not told: nothing looks at them.
pub(crate) trait Screened {
    /// Calls `look` with the place and text of every field that holds one.
    fn texts(&self, look: &mut dyn FnMut(Place, &str));
}

/// Looks at path, query and headers.
pub(super) fn request(state: &AppState, origin: &Origin, request: &Request) -> Result<(), ApiError> {
    if state.config.screening.mode == ScreeningMode::Off {
        return Ok(());
    }
    let mut meter = Meter::default();
    let uri = request.uri();
    let path = look(Place::Path, uri.path().as_bytes(), &mut meter);
    let query = uri.query().and_then(|query| screen::inspect_query(query.as_bytes(), &mut meter));
    let scanner = request
        .headers()
        .get(header::USER_AGENT)
        .filter(|agent| !is_in_order(Place::Header, agent.as_bytes()))
        .and_then(|agent| screen::scanner::named(agent.as_bytes()));
    let verdicts = [path, query, headers(request.headers(), &mut meter)];
    let worst = verdicts.into_iter().flatten().max_by_key(|verdict| verdict.score);
    match (worst, scanner) {
        (Some(verdict), scanner) => {
            // A program that calls itself a scanner is no honest mistake.
            let certain = scanner.is_some() || verdict.confidence == Confidence::High;
            let caller = || state.guard.recognise(bearer(request.headers()), origin);
            let strike = if certain { Strike::By(caller()) } else { Strike::None };
            return refuse(state, &Met { origin, route: &Route::of(request) }, verdict.into(), &strike);
        }
        (None, Some(name)) => {
            let met = Met { origin, route: &Route::of(request) };
            observed(state, &met, Family::Scanner, Place::Header, name);
        }
        (None, None) => {}
    }
    by_added_rules(state, origin, request)
}

/// The same by the rules of the administrator. They never count towards a ban.
fn by_added_rules(state: &AppState, origin: &Origin, request: &Request) -> Result<(), ApiError> {
    let (rules, uri) = (&state.added, request.uri());
    let agent = request.headers().get(header::USER_AGENT);
    if let Some(name) = agent.and_then(|agent| rules.scanner(agent.as_bytes())) {
        observed(state, &Met { origin, route: &Route::of(request) }, Family::Scanner, Place::Header, &name);
    }
    let in_headers = || {
        let minded = rules.mind(Place::Header);
        let mut looked_at = request.headers().iter().filter(|(name, _)| minded && !skipped(name));
        looked_at.find_map(|(_, value)| rules.find(Place::Header, value.as_bytes()))
    };
    let found = rules
        .find(Place::Path, uri.path().as_bytes())
        .or_else(|| rules.find(Place::Query, uri.query()?.as_bytes()))
        .or_else(in_headers);
    found.map_or(Ok(()), |found| {
        refuse(state, &Met { origin, route: &Route::of(request) }, (&found).into(), &Strike::None)
    })
}

/// A request that is told about.
#[derive(Clone, Copy)]
pub(crate) struct Met<'a> {
    pub(crate) origin: &'a Origin,
    pub(crate) route: &'a Route,
}

/// Method and template of a request's route: never what the client wrote.
pub(crate) struct Route(Method, Option<MatchedPath>);

impl Route {
    pub(crate) fn of(request: &Request) -> Self {
        Self(request.method().clone(), request.extensions().get::<MatchedPath>().cloned())
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let template = self.1.as_ref().map_or("unmatched", MatchedPath::as_str);
        write!(f, "{} {template}", super::method_name(&self.0))
    }
}

fn headers(headers: &HeaderMap, meter: &mut Meter) -> Option<Verdict> {
    let mut worst: Option<Verdict> = None;
    for (name, value) in headers {
        if skipped(name) {
            continue;
        }
        let place = if name == "idempotency-key" { Place::Id } else { Place::Header };
        let verdict = if name == header::USER_AGENT && value.len() > USER_AGENT {
            let (rule, family) = ("header.user_agent_length", Family::Control);
            Some(Verdict { score: 60, rule, family, confidence: Confidence::Medium, place })
        } else if name == header::USER_AGENT {
            look(place, value.as_bytes(), meter)
        } else {
            screen::inspect(place, value.as_bytes(), meter)
        };
        worst = worst.into_iter().chain(verdict).max_by_key(|verdict| verdict.score);
    }
    worst
}

/// Paths and names of programs that were looked at and are in order: a client says nearly the same with every request, and what
/// a look finds depends on the place and the text alone. Other headers may hold secrets, which are not to be remembered.
#[derive(Default)]
struct InOrder(HashMap<Place, HashSet<Box<[u8]>>>);

/// Texts that a thread remembers of each place.
const REMEMBERED: usize = 64;
/// Bytes of the longest of them.
const LONGEST: usize = 256;

thread_local! {
    static IN_ORDER: RefCell<InOrder> = RefCell::default();
}

impl InOrder {
    fn has(&self, place: Place, text: &[u8]) -> bool {
        self.0.get(&place).is_some_and(|texts| texts.contains(text))
    }

    fn put(&mut self, place: Place, text: &[u8]) {
        if text.len() > LONGEST {
            return;
        }
        let texts = self.0.entry(place).or_default();
        if texts.len() >= REMEMBERED {
            // Whoever sends many different ones pays for the look, as before.
            texts.clear();
        }
        texts.insert(text.into());
    }
}

fn is_in_order(place: Place, text: &[u8]) -> bool {
    IN_ORDER.with_borrow(|known| known.has(place, text))
}

/// What there is to be found in a path or the name of a program.
fn look(place: Place, text: &[u8], meter: &mut Meter) -> Option<Verdict> {
    if is_in_order(place, text) {
        return None;
    }
    let verdict = screen::inspect(place, text, meter);
    // The name of a scanner is looked for in headers alone, and by others.
    if verdict.is_none() && (place != Place::Header || screen::scanner::named(text).is_none()) {
        IN_ORDER.with_borrow_mut(|known| known.put(place, text));
    }
    verdict
}

fn skipped(name: &HeaderName) -> bool {
    name.as_str().starts_with("sec-") || SKIPPED.binary_search(&name.as_str()).is_ok()
}

/// Looks at the texts of a typed body.
pub(crate) fn body(
    state: &AppState,
    met: Met<'_>,
    caller: Option<Arc<Caller>>,
    body: &impl Screened,
) -> Result<(), ApiError> {
    let screening = state.config.screening;
    if screening.mode == ScreeningMode::Off {
        return Ok(());
    }
    let mut meter = Meter::default();
    let mut worst: Option<Verdict> = None;
    let mut added: Option<Added> = None;
    body.texts(&mut |place, text| {
        let place = if place == Place::FreeText && screening.text_as_labels { Place::Label } else { place };
        if added.as_ref().is_none_or(|added| added.place == Place::FreeText) {
            added = state.added.find(place, text.as_bytes()).or(added.take());
        }
        let verdict = screen::inspect(place, text.as_bytes(), &mut meter);
        worst = worst.into_iter().chain(verdict).max_by_key(|verdict| (refuses(*verdict), verdict.score));
    });
    match worst {
        Some(verdict) if refuses(verdict) => {
            let certain = verdict.confidence == Confidence::High;
            return refuse(
                state,
                &met,
                verdict.into(),
                &if certain { Strike::By(caller) } else { Strike::None },
            );
        }
        Some(verdict) => observed(state, &met, verdict.family, verdict.place, verdict.rule),
        None => {}
    }
    match added {
        Some(added) if added.place != Place::FreeText => refuse(state, &met, (&added).into(), &Strike::None),
        Some(added) => {
            observed(state, &met, added.family, added.place, &added.rule);
            Ok(())
        }
        None => Ok(()),
    }
}

const fn refuses(verdict: Verdict) -> bool {
    !matches!(verdict.place, Place::FreeText)
}

/// Looks at what has no form of ours, such as the parameters of an action. Never refuses.
pub(crate) fn observe(state: &AppState, met: Met<'_>, object: &Map<String, Value>) {
    if state.config.screening.mode == ScreeningMode::Off {
        return;
    }
    let rules = &*state.added;
    let mut looking =
        Looking { left: BUDGET, unread: 0, worst: None, added: None, rules, meter: Meter::default() };
    for (name, value) in object {
        looking.text(name);
        looking.value(value);
    }
    if looking.unread > 0 {
        metrics::counter!("interlock_unscreened_bytes_total").increment(looking.unread as u64);
    }
    if let Some(verdict) = looking.worst {
        observed(state, &met, verdict.family, verdict.place, verdict.rule);
    }
    if let Some(added) = looking.added {
        observed(state, &met, added.family, added.place, &added.rule);
    }
}

/// Looks at one text. Never refuses.
pub(crate) fn observe_text(state: &AppState, met: Met<'_>, text: &str) {
    if state.config.screening.mode == ScreeningMode::Off {
        return;
    }
    if let Some(verdict) = screen::inspect(Place::FreeText, text.as_bytes(), &mut Meter::default()) {
        observed(state, &met, verdict.family, verdict.place, verdict.rule);
    }
    if let Some(added) = state.added.find(Place::FreeText, text.as_bytes()) {
        observed(state, &met, added.family, added.place, &added.rule);
    }
}

struct Looking<'a> {
    left: usize,
    unread: usize,
    worst: Option<Verdict>,
    added: Option<Added>,
    rules: &'a AddedRules,
    meter: Meter,
}

impl Looking<'_> {
    fn text(&mut self, text: &str) {
        let cost = text.len().min(screen::MOST) + EACH;
        if cost > self.left {
            self.unread += text.len();
            return;
        }
        self.left -= cost;
        if self.added.is_none() {
            self.added = self.rules.find(Place::FreeText, text.as_bytes());
        }
        let verdict = screen::inspect(Place::FreeText, text.as_bytes(), &mut self.meter);
        self.worst = self.worst.into_iter().chain(verdict).max_by_key(|verdict| verdict.score);
    }

    /// The parser has bounded how deep this can go.
    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.text(name);
                    self.value(value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// Whether a refused request counts as an attack.
enum Strike {
    /// An honest client may have sent it.
    None,
    /// It is one by this caller, or by whoever is at the address.
    By(Option<Arc<Caller>>),
}

/// What is told of a hit: of which rule, never what was in the text.
#[derive(Clone, Copy)]
struct Hit<'a> {
    rule: &'a str,
    family: Family,
    place: Place,
}

impl From<Verdict> for Hit<'static> {
    fn from(Verdict { rule, family, place, .. }: Verdict) -> Self {
        Self { rule, family, place }
    }
}

impl<'a> From<&'a Added> for Hit<'a> {
    fn from(Added { rule, family, place }: &'a Added) -> Self {
        Self { rule, family: *family, place: *place }
    }
}

/// Refuses a request, or only says that it would have been refused.
fn refuse(state: &AppState, met: &Met<'_>, hit: Hit<'_>, strike: &Strike) -> Result<(), ApiError> {
    if state.config.screening.mode != ScreeningMode::Block {
        observed(state, met, hit.family, hit.place, hit.rule);
        return Ok(());
    }
    let (family, place) = (hit.family.name(), hit.place.name());
    let Met { origin, route } = *met;
    let details = json!({
        "rule": hit.rule, "family": family, "place": place, "route": route.to_string(),
        "strike": matches!(strike, Strike::By(_)),
    });
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => family).increment(1);
    let caller = match strike {
        Strike::By(Some(caller)) => Some(&**caller),
        Strike::By(None) | Strike::None => None,
    };
    let who = caller.map(Caller::name);
    state.recorder.note(origin, who, "request.blocked", None, details.clone());
    security::event(Event::RequestBlocked, who, Some(origin), details);
    if matches!(strike, Strike::By(_)) {
        bans::strike(state, origin, caller);
    }
    Err(ApiError::client(
        StatusCode::BAD_REQUEST,
        "request_blocked",
        "Part of the request looks like an attack, so nothing was done.",
    ))
}

fn observed(state: &AppState, met: &Met<'_>, family: Family, place: Place, rule: &str) {
    let Met { origin, route } = *met;
    let (family, place) = (family.name(), place.name());
    let details = json!({ "rule": rule, "family": family, "place": place, "route": route.to_string() });
    metrics::counter!("interlock_observed_patterns_total", "family" => family, "place" => place).increment(1);
    state.recorder.note(origin, None, "request.observed", None, details.clone());
    security::event(Event::PatternObserved, None, Some(origin), details);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_skipped_headers_can_be_searched() {
        assert!(SKIPPED.is_sorted());
        for (name, skip) in [("accept", true), ("cookie", true), ("sec-fetch-site", true), ("referer", false)]
        {
            assert_eq!(skipped(&HeaderName::from_static(name)), skip, "{name}");
        }
    }

    #[test]
    fn a_text_is_looked_at_again_unless_it_was_in_order_in_the_same_place() {
        let mut meter = Meter::default();
        let attack = b"/tasks/../../etc/passwd";
        for _ in 0..3 {
            assert!(look(Place::Path, attack, &mut meter).is_some());
        }
        let text = b"drop table reagents; --";
        assert!(look(Place::Label, text, &mut meter).is_none());
        assert!(look(Place::Id, text, &mut meter).is_some(), "in order elsewhere says nothing here");
        assert!(look(Place::Header, b"sqlmap/1.7", &mut meter).is_none());
        assert!(!is_in_order(Place::Header, b"sqlmap/1.7"), "the name of a scanner is told every time");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut known = InOrder::default();
        for number in 0..1000 {
            known.put(Place::Header, format!("client/{number}").as_bytes());
        }
        known.put(Place::Header, &[b'x'; LONGEST + 1]);

        assert!(known.0[&Place::Header].len() <= REMEMBERED);
        assert!(known.has(Place::Header, b"client/999") && !known.has(Place::Header, &[b'x'; LONGEST + 1]));
    }
}

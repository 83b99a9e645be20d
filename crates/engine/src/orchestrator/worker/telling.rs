//! What runs tell those who follow them: gathered for a moment, written in batches, bounded. Losing some of it harms nobody, and nobody
//! waits for it; a run that is over within a moment and used nothing outside costs no write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use interlock_model::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::keep::Keeper;
use crate::pipeline::Note;

/// How often what runs tell is written, and how old it is at least by then.
const PERIOD: Duration = Duration::from_millis(500);
/// Notes of one attempt that are kept.
const MOST: usize = 1_000;
/// Longest message of a note, in characters.
const LONGEST: usize = 2_000;
/// Largest note, in bytes of JSON.
const LARGEST: usize = 16_384;

/// What one attempt tells.
#[derive(Default)]
pub(super) struct Telling(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Vec<(Timestamp, Value)>,
    told: usize,
    lost: u64,
    /// Something is kept of this attempt, or should be.
    worth: bool,
}

/// The text, or its begin.
fn shortened(value: &mut Value) {
    if let Value::String(text) = value
        && let Some((end, _)) = text.char_indices().nth(LONGEST)
    {
        text.truncate(end);
        text.push('…');
    }
}

impl Telling {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, at: Timestamp, note: Note) {
        let Note { kind, mut data, outside } = note;
        for name in ["message", "error"] {
            data.get_mut(name).map(shortened);
        }
        let step = data.get("step").cloned();
        let said = json!({ "kind": kind, "data": data });
        let too_large = outside && said.to_string().len() > LARGEST;
        let mut inner = self.lock();
        inner.worth |= outside;
        // How far a step was a moment ago is of no use to anybody.
        if kind == "progress"
            && let Some((_, last)) = inner.waiting.last_mut()
            && last["kind"] == "progress"
            && Some(&last["data"]["step"]) == step.as_ref()
            && !too_large
        {
            *last = said;
        } else if too_large || inner.told >= MOST {
            inner.lost += 1;
        } else {
            inner.told += 1;
            inner.waiting.push((at, said));
        }
    }

    /// What has waited since `before`, with all that came after it.
    fn due(&self, before: Timestamp) -> Vec<(Timestamp, Value)> {
        let mut inner = self.lock();
        if inner.waiting.first().is_none_or(|(at, _)| *at > before) {
            return Vec::new();
        }
        inner.worth = true;
        std::mem::take(&mut inner.waiting)
    }

    /// The rest, if anything of this attempt is worth keeping.
    pub(super) fn rest(&self, now: Timestamp) -> Vec<(Timestamp, Value)> {
        let mut inner = self.lock();
        if !inner.worth {
            return Vec::new();
        }
        let mut rest = std::mem::take(&mut inner.waiting);
        let lost = std::mem::take(&mut inner.lost);
        if lost > 0 {
            let message = format!("{lost} more were told and not kept");
            rest.push((now, json!({ "kind": "log", "data": { "level": "warning", "message": message } })));
        }
        rest
    }
}

impl Worker {
    /// Writes what runs tell until `over`. Run it as a background task.
    pub(super) async fn tell_followers(self: Arc<Self>, over: CancellationToken) {
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            let telling: Vec<Arc<Keeper>> = {
                let mut all = self.telling();
                all.retain(|keeper| keeper.strong_count() > 0);
                all.iter().filter_map(Weak::upgrade).collect()
            };
            let before = self.orchestrator.now().minus(PERIOD);
            for keeper in telling {
                keeper.say(|telling| telling.due(before)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_780_000_000);

    fn note(kind: &'static str, step: u32, message: &str, outside: bool) -> Note {
        let data = json!({ "step": step, "message": message });
        Note { kind, data: data.as_object().cloned().unwrap_or_else(Map::new), outside }
    }

    fn messages(notes: &[(Timestamp, Value)]) -> Vec<&str> {
        notes.iter().map(|(_, said)| said["data"]["message"].as_str().unwrap_or("")).collect()
    }

    #[test]
    fn a_short_run_that_used_nothing_outside_costs_no_write() {
        let telling = Telling::default();
        telling.push(NOW, note("step", 0, "started", false));
        assert_eq!(telling.due(NOW.minus(PERIOD)), []);
        assert_eq!(telling.rest(NOW), []);
        telling.push(NOW, note("log", 0, "from a device", true));
        assert_eq!(messages(&telling.rest(NOW)), ["started", "from a device"]);
    }

    #[test]
    fn what_has_waited_is_written_and_then_the_rest_is_too() {
        let telling = Telling::default();
        telling.push(NOW.minus(PERIOD), note("step", 0, "started", false));
        telling.push(NOW, note("step", 0, "finished", false));
        assert_eq!(messages(&telling.due(NOW.minus(PERIOD))), ["started", "finished"]);
        telling.push(NOW, note("step", 1, "started", false));
        assert_eq!(messages(&telling.rest(NOW)), ["started"]);
    }

    #[test]
    fn the_newest_progress_of_a_step_stands_for_those_before() {
        let telling = Telling::default();
        for (step, message) in [(0, "1"), (0, "2"), (1, "3"), (1, "4")] {
            telling.push(NOW, note("progress", step, message, true));
        }
        assert_eq!(messages(&telling.rest(NOW)), ["2", "4"]);
    }

    #[test]
    fn what_is_too_much_or_too_large_is_counted() {
        let telling = Telling::default();
        for _ in 0..MOST + 5 {
            telling.push(NOW, note("log", 0, "again", true));
        }
        let rest = telling.rest(NOW);
        assert_eq!(rest.len(), MOST + 1);
        assert_eq!(rest[MOST].1["data"]["message"], "5 more were told and not kept");
        let long = Telling::default();
        long.push(NOW, note("log", 0, &"é".repeat(LONGEST * 5), true));
        assert_eq!(messages(&long.rest(NOW))[0].chars().count(), LONGEST + 1);
        let mut large = note("metric", 0, "", true);
        large.data.insert("labels".to_owned(), json!("x".repeat(LARGEST)));
        long.push(NOW, large);
        assert_eq!(messages(&long.rest(NOW)), ["1 more were told and not kept"]);
    }
}

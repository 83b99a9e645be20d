//! The journal's promise, tried with every cut, with damage, with both boots, and with random histories.

mod caller;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::device::{Call, Journaled, NotStarted, Outcome, Rung};
use interlock_model::time::{TestClock, TestEntropy};
use interlock_model::{RunId, Timestamp};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

struct Bench {
    folder: TempDir,
    clock: Arc<TestClock>,
}

struct Open {
    journal: Journal,
    events: UnboundedReceiver<JournalEvent>,
    number: u64,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), clock: Arc::new(TestClock::at(START)) }
    }

    fn recover(&self, boot: &str) -> Recovered {
        Recovered::read(self.folder.path(), boot, self.clock.now()).expect("reads")
    }

    fn open_at(&self, boot: &str, compact_bytes: u64) -> Open {
        let (sender, events) = unbounded_channel();
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let journal =
            Journal::open_with(self.recover(boot), None, clock, sender, compact_bytes).expect("opens");
        Open { journal, events, number: 0 }
    }

    fn open(&self, boot: &str) -> Open {
        self.open_at(boot, COMPACT_BYTES)
    }

    /// The folder as it would be after the files had been cut to this.
    fn copy(&self) -> Self {
        let copy = Self::new();
        for entry in fs::read_dir(self.folder.path()).expect("readable").flatten() {
            fs::copy(entry.path(), copy.folder.path().join(entry.file_name())).expect("copied");
        }
        copy
    }

    fn file(&self) -> std::path::PathBuf {
        recover::journal_path(self.folder.path())
    }

    fn marks(&self) -> std::path::PathBuf {
        let entries = fs::read_dir(self.folder.path()).expect("readable").flatten();
        let mut marks = entries.map(|entry| entry.path()).filter(|path| is_marks(path));
        let found = marks.next().expect("a file of marks");
        assert_eq!(marks.next(), None, "one file of marks");
        found
    }
}

fn is_marks(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sent-"))
}

impl Open {
    fn arm(&mut self, run: RunId) {
        self.number += 1;
        self.journal.arm(run, Journal::armed_line(&call(run)), self.number);
        loop {
            match self.events.blocking_recv().expect("an answer") {
                JournalEvent::Armed { through } if through >= self.number => return,
                JournalEvent::ArmFailed { .. } => panic!("not armed"),
                _ => {}
            }
        }
    }

    fn send(&self, run: RunId) {
        loop {
            match self.journal.mark_sent(run) {
                Ok(()) => return,
                Err(SentError::Wait) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn finish(&self, run: RunId, outcome: &Outcome) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = move |outcome, durable| sender.send((outcome, durable)).expect("heard");
        self.journal.finish(run, outcome.clone(), Box::new(reply));
        assert_eq!(receiver.recv().expect("an answer"), (outcome.clone(), true));
    }

    /// Waits until everything asked so far is done.
    fn settle(&self) {
        self.finish(run(u64::MAX), &outcome(0));
    }

    fn rewrite(&mut self) {
        self.journal.rewrite();
        self.settle();
    }
}

fn run(seed: u64) -> RunId {
    RunId::new(START, &TestEntropy::seeded(seed))
}

fn call(run: RunId) -> Call {
    Call {
        run,
        action: "mix".to_owned(),
        parameters: serde_json::Map::new(),
        simulated: false,
        timeout: Duration::from_secs(1),
        queue_limit: None,
    }
}

fn outcome(value: u64) -> Outcome {
    Outcome::Returned {
        result: serde_json::json!({ "value": value, "text": "two\nlines" }),
        duration_ms: 1.5,
    }
}

/// Run 1 ended, run 2 was sent, run 3 is armed.
fn three(bench: &Bench) -> Open {
    let mut open = bench.open("boot");
    for seed in [1, 2, 3] {
        open.arm(run(seed));
    }
    open.send(run(1));
    open.send(run(2));
    open.finish(run(1), &outcome(1));
    open
}

#[test]
fn each_state_is_told_apart_in_the_same_boot() {
    let bench = Bench::new();
    three(&bench).journal.close();

    let open = bench.open("boot");

    assert_eq!(open.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    assert_eq!(open.journal.journaled(run(2)), Journaled::Started);
    assert_eq!(open.journal.journaled(run(3)), Journaled::NeverStarted);
    assert_eq!(open.journal.journaled(run(4)), Journaled::NeverStarted);
}

#[test]
fn after_another_boot_what_was_armed_may_have_been_sent() {
    let bench = Bench::new();
    three(&bench).journal.close();
    // The power cut took the marks.
    fs::write(bench.marks(), "").expect("cut");

    let recovered = bench.recover("other");

    let mut expected = vec![run(2), run(3)];
    expected.sort_unstable();
    assert_eq!(recovered.unfinished, expected);
    let open = bench.open("other");
    assert_eq!(open.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    for seed in [2, 3] {
        assert_eq!(open.journal.journaled(run(seed)), Journaled::Started);
    }
    assert_eq!(open.journal.journaled(run(4)), Journaled::NeverStarted);
}

#[test]
fn a_lost_file_of_marks_proves_nothing() {
    let bench = Bench::new();
    three(&bench).journal.close();
    fs::remove_file(bench.marks()).expect("removed");

    let open = bench.open("boot");

    assert_eq!(open.journal.journaled(run(3)), Journaled::Started);
}

#[test]
fn an_unfinished_run_is_news_once_and_stays_known() {
    let bench = Bench::new();
    three(&bench).journal.close();

    assert_eq!(bench.recover("boot").unfinished, [run(2)]);
    bench.open("boot").journal.close();
    for boot in ["boot", "other"] {
        assert_eq!(bench.recover(boot).unfinished, []);
        assert_eq!(bench.open(boot).journal.journaled(run(2)), Journaled::Started);
    }
}

#[test]
fn the_journal_cut_at_any_byte_never_calls_a_sent_run_unsent() {
    let bench = Bench::new();
    three(&bench).journal.close();
    let whole = fs::read(bench.file()).expect("there");

    for cut in 0..=whole.len() {
        let copy = bench.copy();
        fs::write(copy.file(), &whole[..cut]).expect("cut");
        let header = whole.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        // A torn end is not damage; a torn header is: it was on disk before the file had its name.
        assert_eq!(copy.recover("boot").was_damaged(), cut < header, "{cut}");
        let open = copy.open("boot");
        assert_eq!(open.journal.journaled(run(2)), Journaled::Started, "{cut}");
        assert_ne!(open.journal.journaled(run(1)), Journaled::NeverStarted, "{cut}");
        open.journal.close();
    }
}

#[test]
fn the_marks_cut_at_any_byte_keep_what_is_whole() {
    let bench = Bench::new();
    three(&bench).journal.close();
    let path = bench.marks();
    let whole = fs::read(&path).expect("there");
    let ends: Vec<usize> =
        whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();

    for cut in 0..=whole.len() {
        let copy = bench.copy();
        fs::write(copy.marks(), &whole[..cut]).expect("cut");
        let open = copy.open("boot");
        let verdict = open.journal.journaled(run(3));
        // Header gone: the marks prove nothing. Header there: run 3 was never marked.
        let expected = if cut < ends[0] { Journaled::Started } else { Journaled::NeverStarted };
        assert_eq!(verdict, expected, "{cut}");
        if cut == whole.len() {
            assert_eq!(open.journal.journaled(run(2)), Journaled::Started);
        }
        open.journal.close();
    }
}

#[test]
fn damage_in_the_middle_keeps_what_is_sound_and_doubts_the_rest() {
    let bench = Bench::new();
    three(&bench).journal.close();
    let mut bytes = fs::read(bench.file()).expect("there");
    let second_line = bytes.iter().position(|byte| *byte == b'\n').expect("a line") + 30;
    bytes[second_line] ^= 1;
    fs::write(bench.file(), &bytes).expect("damaged");

    assert!(bench.recover("boot").was_damaged());
    let open = bench.open("boot");

    assert_eq!(open.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    for seed in [2, 3, 99] {
        assert_eq!(open.journal.journaled(run(seed)), Journaled::Started, "{seed}");
    }
    let later = RunId::new(START.plus(Duration::from_secs(1)), &TestEntropy::seeded(5));
    assert_eq!(open.journal.journaled(later), Journaled::NeverStarted);
    let kept = fs::read_dir(bench.folder.path()).expect("readable").flatten();
    assert!(
        kept.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("journal.damaged-"))
    );
    open.journal.close();
    assert_eq!(bench.open("boot").journal.journaled(run(99)), Journaled::Started, "the doubt is remembered");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let bench = Bench::new();
    bench.open("boot").journal.close();
    let mut line = Vec::new();
    record::header(&mut line, &record::Header { version: 2, ..record::Header::default() });
    fs::write(bench.file(), &line).expect("written");

    let refused = Recovered::read(bench.folder.path(), "boot", START);

    assert!(matches!(refused, Err(JournalError::Newer { version: 2, .. })));
    assert_eq!(fs::read(bench.file()).expect("there"), line);
}

#[test]
fn a_withdrawn_call_is_not_doubted_after_another_boot() {
    let bench = Bench::new();
    let mut open = bench.open("boot");
    open.arm(run(1));
    let withdrawn = Outcome::NotStarted { reason: NotStarted::Busy };
    open.journal.withdraw(run(1), withdrawn.clone());
    open.journal.close();

    assert_eq!(bench.open("other").journal.journaled(run(1)), Journaled::Finished(withdrawn));
}

#[test]
fn rewriting_keeps_every_state_and_drops_what_is_dead() {
    let bench = Bench::new();
    let mut open = three(&bench);
    for seed in 10..110 {
        open.finish(run(seed), &outcome(seed));
    }
    let forgotten: Vec<RunId> = (10..110).map(run).collect();
    open.journal.forget(&forgotten);
    open.settle();
    let before = fs::metadata(bench.file()).expect("there").len();

    open.rewrite();

    assert!(fs::metadata(bench.file()).expect("there").len() < before / 10);
    assert_eq!(open.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    assert_eq!(open.journal.journaled(run(2)), Journaled::Started);
    assert_eq!(open.journal.journaled(run(3)), Journaled::NeverStarted);
    open.send(run(3));
    open.journal.close();
    let mut expected = vec![run(2), run(3)];
    expected.sort_unstable();
    assert_eq!(bench.recover("boot").unfinished, expected, "a run that was under way stays news");
    bench.marks();
}

#[test]
fn it_rewrites_itself_when_enough_is_dead() {
    let bench = Bench::new();
    let open = bench.open_at("boot", 10_000);
    for seed in 0..500 {
        open.finish(run(seed), &outcome(seed));
        open.journal.forget(&[run(seed)]);
    }
    open.finish(run(1000), &outcome(1000));

    open.journal.close();

    assert!(fs::metadata(bench.file()).expect("there").len() < 20_000);
    assert_eq!(bench.open("boot").journal.journaled(run(1000)), Journaled::Finished(outcome(1000)));
}

#[test]
fn an_outcome_that_nobody_fetched_is_kept_a_day_and_then_doubted() {
    let bench = Bench::new();
    let open = bench.open("boot");
    open.finish(run(1), &outcome(1));
    open.journal.close();

    bench.clock.advance(Duration::from_hours(23));
    let open = bench.open("boot");
    assert_eq!(open.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    open.journal.close();

    bench.clock.advance(Duration::from_hours(2));
    let open = bench.open("boot");
    assert_eq!(open.journal.journaled(run(1)), Journaled::Started, "never: not started");
    open.journal.close();
    assert_eq!(bench.open("boot").journal.journaled(run(1)), Journaled::Started);
}

#[test]
fn many_writers_share_a_flush() {
    let bench = Bench::new();
    let mut open = bench.open("boot");
    for number in 1..=2000 {
        let line = Journal::armed_line(&call(run(number)));
        open.journal.arm(run(number), line, number);
    }

    let mut answers = 0;
    loop {
        answers += 1;
        match open.events.blocking_recv().expect("an answer") {
            JournalEvent::Armed { through: 2000 } => break,
            JournalEvent::Armed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    // One answer per flush; had each record its own, there would be 2000.
    assert!(answers < 500, "{answers}");
}

#[test]
fn marks_written_during_rewrites_are_not_lost() {
    let bench = Bench::new();
    let mut open = bench.open("boot");
    let runs: Vec<RunId> = (0..400).map(run).collect();
    for run in &runs {
        open.arm(*run);
    }
    std::thread::scope(|scope| {
        let journal = &open.journal;
        scope.spawn(move || (0..20).for_each(|_| journal.rewrite()));
        for run in &runs {
            open.send(*run);
        }
    });
    open.settle();
    open.journal.close();

    let mut expected = runs;
    expected.sort_unstable();
    assert_eq!(bench.recover("boot").unfinished, expected);
}

#[test]
fn nothing_waits_for_ever_after_the_end() {
    let bench = Bench::new();
    let open = bench.open("boot");
    open.journal.close();
    let (sender, receiver) = std::sync::mpsc::channel();

    open.journal.finish(run(1), outcome(1), Box::new(move |_, durable| sender.send(durable).expect("heard")));

    assert_eq!(receiver.recv(), Ok(false));
}

#[derive(Clone, Debug)]
enum Step {
    Arm(u64),
    Send(u64),
    Finish(u64),
    Withdraw(u64),
    Forget(u64),
    Rewrite,
    /// The process is killed; the machine goes on.
    Restart,
    /// The machine loses power: marks since the last start may be gone.
    PowerCut {
        marks_kept: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_u64).prop_map(Step::Arm),
        (0..6_u64).prop_map(Step::Send),
        (0..6_u64).prop_map(Step::Finish),
        (0..6_u64).prop_map(Step::Withdraw),
        (0..6_u64).prop_map(Step::Forget),
        Just(Step::Rewrite),
        Just(Step::Restart),
        any::<bool>().prop_map(|marks_kept| Step::PowerCut { marks_kept }),
    ]
}

/// What really happened to a run, in the order that the supervisor keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Truth {
    #[default]
    Nothing,
    Armed,
    Sent,
    Finished,
    Withdrawn,
    Forgotten,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_history_makes_the_journal_lie(steps in proptest::collection::vec(step(), 1..40)) {
        let bench = Bench::new();
        let mut boot = 0;
        let mut open = bench.open("boot 0");
        let mut truth: HashMap<u64, Truth> = HashMap::new();
        let withdrawn = Outcome::Cancelled { rung: Rung::Kill };
        for step in steps {
            match step {
                Step::Arm(seed) if !truth.contains_key(&seed) => {
                    open.arm(run(seed));
                    truth.insert(seed, Truth::Armed);
                }
                Step::Send(seed) if truth.get(&seed) == Some(&Truth::Armed) => {
                    open.send(run(seed));
                    truth.insert(seed, Truth::Sent);
                }
                Step::Finish(seed) if truth.get(&seed) == Some(&Truth::Sent) => {
                    open.finish(run(seed), &outcome(seed));
                    truth.insert(seed, Truth::Finished);
                }
                Step::Withdraw(seed) if truth.get(&seed) == Some(&Truth::Armed) => {
                    open.journal.withdraw(run(seed), withdrawn.clone());
                    open.settle();
                    truth.insert(seed, Truth::Withdrawn);
                }
                Step::Forget(seed) if matches!(truth.get(&seed), Some(Truth::Finished | Truth::Withdrawn)) => {
                    open.journal.forget(&[run(seed)]);
                    open.settle();
                    truth.insert(seed, Truth::Forgotten);
                }
                Step::Rewrite => open.rewrite(),
                Step::Restart => {
                    open.journal.close();
                    open = bench.open(&format!("boot {boot}"));
                    // Never sent, and the server knows: it may send it again.
                    truth.retain(|_, truth| *truth != Truth::Armed);
                    // What was sent stays so for ever: nobody can finish it any more.
                    truth.values_mut().filter(|truth| **truth == Truth::Sent).for_each(|truth| *truth = Truth::Nothing);
                }
                Step::PowerCut { marks_kept } => {
                    open.journal.close();
                    if !marks_kept {
                        fs::write(bench.marks(), "").expect("cut");
                    }
                    boot += 1;
                    open = bench.open(&format!("boot {boot}"));
                    for truth in truth.values_mut() {
                        if matches!(truth, Truth::Armed | Truth::Sent) {
                            *truth = Truth::Nothing;
                        }
                    }
                }
                _ => {}
            }
            for (seed, truth) in &truth {
                let said = open.journal.journaled(run(*seed));
                let expected = match truth {
                    // An earlier host started it, or may have.
                    Truth::Nothing | Truth::Sent => Journaled::Started,
                    Truth::Armed | Truth::Forgotten => Journaled::NeverStarted,
                    Truth::Finished => Journaled::Finished(outcome(*seed)),
                    Truth::Withdrawn => Journaled::Finished(withdrawn.clone()),
                };
                prop_assert_eq!(said, expected, "run {}", seed);
            }
        }
    }
}

//! The journal of a caller that makes runs durable itself.

use super::*;

impl Bench {
    fn open_by_caller(&self, boot: &str) -> Open {
        let (sender, events) = unbounded_channel();
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let recovered = self.recover(boot).by_caller();
        let journal = Journal::open_with(recovered, None, clock, sender, COMPACT_BYTES).expect("opens");
        Open { journal, events, number: 0 }
    }
}

#[test]
fn with_a_durable_caller_a_kill_leaves_no_doubt() {
    let bench = Bench::new();
    let first = bench.open_by_caller("boot");
    first.send(run(1));
    first.finish(run(1), &outcome(1));
    first.send(run(2));
    first.settle();
    first.journal.close();

    let second = bench.open_by_caller("boot");

    assert_eq!(second.journal.journaled(run(1)), Journaled::Finished(outcome(1)));
    assert_eq!(second.journal.journaled(run(2)), Journaled::Started);
    assert_eq!(second.journal.journaled(run(3)), Journaled::NeverStarted);
}

#[test]
fn with_a_durable_caller_small_and_large_outcomes_are_kept_whoever_writes_them() {
    let bench = Bench::new();
    let first = bench.open_by_caller("boot");
    let large = Outcome::Returned { result: vec!["x".repeat(1000); 50].into(), duration_ms: 1.5 };
    for number in 1..=40 {
        first.send(run(number));
    }
    let rewriting = {
        let journal = first.journal.clone();
        std::thread::spawn(move || (0..10).for_each(|_| journal.rewrite()))
    };
    for number in 1..=40 {
        let ended = if number % 3 == 0 { large.clone() } else { outcome(number) };
        first.finish(run(number), &ended);
    }
    rewriting.join().expect("asked");
    // Half of them are no longer wanted, in the order in which they would be told.
    first.journal.forget(&(1..=20).map(run).collect::<Vec<_>>());
    first.journal.close();

    let second = bench.open_by_caller("boot");

    assert_eq!(second.journal.journaled(run(20)), Journaled::NeverStarted);
    assert_eq!(second.journal.journaled(run(21)), Journaled::Finished(large));
    assert_eq!(second.journal.journaled(run(40)), Journaled::Finished(outcome(40)));
}

#[test]
fn with_a_durable_caller_a_small_outcome_is_written_before_it_is_told() {
    let bench = Bench::new();
    let first = bench.open_by_caller("boot");
    first.send(run(1));
    first.settle();
    let (sender, written) = std::sync::mpsc::channel();
    let path = bench.folder.path().join("journal.log");

    first.journal.finish(
        run(1),
        outcome(1),
        Box::new(move |_, _| sender.send(fs::read_to_string(&path)).expect("heard")),
    );

    let journal = written.recv().expect("told").expect("readable");
    assert!(journal.contains(&run(1).to_string()), "{journal}");
}

#[test]
fn a_closed_journal_takes_no_outcome() {
    let bench = Bench::new();
    let first = bench.open_by_caller("boot");
    first.send(run(1));
    first.journal.close();
    let before = fs::read(bench.folder.path().join("journal.log")).expect("readable");

    first.journal.finish(run(1), outcome(1), Box::new(|_, _| {}));

    assert_eq!(fs::read(bench.folder.path().join("journal.log")).expect("readable"), before);
}

#[test]
fn with_a_durable_caller_a_power_cut_makes_every_open_run_count_as_started() {
    let bench = Bench::new();
    let first = bench.open_by_caller("boot");
    first.send(run(1));
    first.journal.close();

    let second = bench.open_by_caller("another boot");

    // Nobody flushed: what is missing may have been lost with the power.
    assert_eq!(second.journal.journaled(run(3)), Journaled::Started);
    // A call of this host is new all the same.
    assert_eq!(second.journal.known(run(3)), Known::New);
}

#[test]
fn a_journal_that_was_removed_proves_nothing() {
    let bench = Bench::new();

    assert_eq!(bench.open_by_caller("boot").journal.journaled(run(1)), Journaled::Started);
    assert_eq!(bench.open_by_caller("boot").journal.journaled(run(1)), Journaled::NeverStarted);
}

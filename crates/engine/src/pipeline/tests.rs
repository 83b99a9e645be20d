//! Pipelines from start to end over tools that count: what is done once, tried again, taken up again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use interlock_model::time::{TestClock, TestEntropy};

use super::*;
use crate::tools::{Simulated, Tool, Tools};

/// What happens outside: calls that reached the world, and where everything ends.
#[derive(Default)]
struct World {
    /// Keys of the calls, in order.
    calls: Mutex<Vec<String>>,
    /// After so many events nothing happens any more, as if the process were killed. 0: never.
    fuse: AtomicUsize,
}

impl World {
    /// An event. Never returns if the process is "killed" here.
    async fn event(&self) {
        if self.fuse.load(Ordering::SeqCst) > 0 && self.fuse.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::future::pending::<()>().await;
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("calls").clone()
    }
}

/// A store in memory that survives what the fuse kills.
#[derive(Default)]
struct Host {
    world: Arc<World>,
    records: Mutex<BTreeMap<u32, StepRecord>>,
    decisions: Mutex<BTreeMap<(u32, String), Decision>>,
    published: Mutex<BTreeMap<u32, (EventId, String)>>,
    told: Mutex<Vec<Note>>,
    lost: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl RunHost for Host {
    async fn keep(&self, record: &StepRecord) -> Result<(), Lost> {
        self.world.event().await;
        if self.lost.load(Ordering::SeqCst) {
            return Err(Lost);
        }
        // As the store does it: through JSON.
        let text = serde_json::to_string(record).expect("JSON");
        let record: StepRecord = serde_json::from_str(&text).expect("a record");
        self.records.lock().expect("records").insert(record.step, record);
        self.world.event().await;
        Ok(())
    }

    async fn decision(&self, step: u32, digest: &str) -> Result<Option<Decision>, Lost> {
        Ok(self.decisions.lock().expect("decisions").get(&(step, digest.to_owned())).cloned())
    }

    fn tell(&self, note: Note) {
        self.told.lock().expect("told").push(note);
    }

    async fn publish(&self, step: u32, topic: &str, _: Map<String, Value>) -> Result<EventId, PublishError> {
        self.world.event().await;
        let mut published = self.published.lock().expect("published");
        let id = EventId::from_bytes([u8::try_from(step).expect("few steps"); 16]);
        Ok(published.entry(step).or_insert((id, topic.to_owned())).0)
    }
}

/// How a tool of the tests behaves.
#[derive(Clone, Copy)]
enum Act {
    Echo,
    FailTwice,
    Fail(bool),
    Refuse,
    Unknown,
    Hang,
    Panic,
    Large,
    /// Knows a repeated key, and answers it without doing anything.
    Keyed,
}

struct Probe {
    world: Arc<World>,
    effect: Effect,
    act: Act,
}

#[async_trait]
impl Tool for Probe {
    fn description(&self) -> String {
        "A tool of the tests".to_owned()
    }

    fn check(&self, _: Known<'_>) -> Result<Effect, Misuse> {
        Ok(self.effect)
    }

    fn remembers(&self) -> Duration {
        if matches!(self.act, Act::Keyed) { Duration::from_hours(1) } else { Duration::ZERO }
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        self.world.event().await;
        if matches!(self.act, Act::Keyed) && self.world.calls().contains(&call.key) {
            return Ok(Done::Value(json!("done before")));
        }
        self.world.calls.lock().expect("calls").push(call.key.clone());
        self.world.event().await;
        let earlier = self.world.calls().iter().filter(|key| **key == call.key).count();
        match self.act {
            Act::Keyed => Ok(Done::Value(json!("done now"))),
            Act::Echo => Ok(Done::Value(json!({ "step": call.step, "input": call.input }))),
            Act::FailTwice if earlier <= 2 => {
                Err(Failure::Failed { message: "not yet".to_owned(), again: true })
            }
            Act::FailTwice => Ok(Done::Value(json!(earlier))),
            Act::Fail(again) => Err(Failure::Failed { message: "broken".to_owned(), again }),
            Act::Refuse => Err(Failure::Refused("no".to_owned())),
            Act::Unknown => Err(Failure::Unknown("the line went dead".to_owned())),
            Act::Hang => std::future::pending().await,
            Act::Panic => panic!("a bug with a secret"),
            Act::Large => Ok(Done::Value(json!("x".repeat(50_000_000)))),
        }
    }
}

struct Probes(BTreeMap<String, Arc<dyn Tool>>);

impl Toolbox for Probes {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        self.0.get(address).cloned()
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        self.0.clone()
    }
}

fn toolbox(world: &Arc<World>) -> Tools {
    let acts = [
        ("echo", Act::Echo),
        ("fail_twice", Act::FailTwice),
        ("fail", Act::Fail(false)),
        ("fail_again", Act::Fail(true)),
        ("refuse", Act::Refuse),
        ("unknown", Act::Unknown),
        ("hang", Act::Hang),
        ("panic", Act::Panic),
        ("large", Act::Large),
        ("keyed", Act::Keyed),
    ];
    let effects = [("none", Effect::None), ("idempotent", Effect::Idempotent), ("once", Effect::Once)];
    let mut all: BTreeMap<String, Arc<dyn Tool>> = BTreeMap::new();
    for (name, act) in acts {
        for (kind, effect) in effects {
            all.insert(format!("{kind}.{name}"), Arc::new(Probe { world: Arc::clone(world), effect, act }));
        }
    }
    Tools::new(vec![Arc::new(Probes(all))])
}

fn scopes(texts: &[&str]) -> Vec<Scope> {
    texts.iter().map(|text| text.parse().expect("a scope")).collect()
}

const NOW: i64 = 1_768_471_200;

/// What people read of an output that was kept.
fn shown(output: &RunOutput) -> Value {
    let kept = serde_json::from_str(&output.kept()).expect("JSON");
    RunOutput::shown(kept, TaskId::from_bytes([1; 16]), Some(Timestamp::from_seconds(NOW)))
}

struct Bench {
    world: Arc<World>,
    host: Host,
    tools: Tools,
    ambient: Ambient,
    clock: Arc<TestClock>,
    scopes: Vec<Scope>,
    pipeline: Pipeline,
}

impl Bench {
    fn new(steps: &Value) -> Self {
        Self::with(steps, &["tool:*", "events:publish"])
    }

    fn with(steps: &Value, held: &[&str]) -> Self {
        let world = Arc::new(World::default());
        let tools = toolbox(&world);
        let payload = json!({ "params": { "n": 3 }, "pipeline": steps });
        let all = scopes(&["tool:*", "events:publish"]);
        let pipeline =
            Pipeline::compile(payload.as_object().expect("an object"), &Allowed::new(&tools, &all));
        let clock = Arc::new(TestClock::at(Timestamp::from_seconds(NOW)));
        Self {
            host: Host { world: Arc::clone(&world), ..Host::default() },
            world,
            tools,
            ambient: Ambient { clock: clock.clone(), entropy: Arc::new(TestEntropy::seeded(7)) },
            clock,
            scopes: scopes(held),
            pipeline: pipeline.unwrap_or_else(|errors| panic!("{errors:?}")),
        }
    }

    fn job(&self, cancel: CancellationToken) -> Job {
        Job {
            task: TaskId::from_bytes([1; 16]),
            title: "A task".to_owned(),
            run: TaskRunId::from_bytes([2; 16]),
            lineage: TaskRunId::from_bytes([3; 16]),
            owner: "ada".to_owned(),
            scopes: self.scopes.clone().into(),
            started_at: Timestamp::from_seconds(NOW),
            event: None,
            records: self.host.records.lock().expect("records").values().cloned().collect(),
            cancel,
        }
    }

    async fn run(&self) -> End {
        self.run_until(CancellationToken::new()).await
    }

    async fn run_until(&self, cancel: CancellationToken) -> End {
        execute(&self.pipeline, self.job(cancel), &self.host, &self.tools, &self.ambient).await
    }

    /// Runs until the fuse has blown; then the run is somebody else's to take up.
    async fn run_and_be_killed(&self, after: usize) -> Option<End> {
        self.world.fuse.store(after, Ordering::SeqCst);
        let end = tokio::time::timeout(Duration::from_secs(1), self.run()).await.ok();
        self.world.fuse.store(0, Ordering::SeqCst);
        end
    }
}

fn bad(end: End) -> Ended {
    match end {
        End::Failed(ended) | End::TimedOut(ended) | End::Cancelled(ended) | End::Uncertain(ended) => ended,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn results_go_from_step_to_step_and_into_the_output() {
    let bench = Bench::new(&json!([
        { "uses": "none.echo", "with": { "a": "${params.n}" }, "save_as": "first" },
        { "uses": "none.echo", "if": "steps.first.input.a == '4'", "save_as": "never" },
        { "uses": "once.echo", "with": { "b": { "$expr": "steps.first.step" } }, "save_as": "third" },
    ]));

    let End::Succeeded { output } = bench.run().await else { panic!("it succeeds") };

    let output = shown(&output);

    assert_eq!(output["steps"]["first"]["input"], json!({ "a": "3" }));
    assert_eq!(output["steps"]["third"]["input"], json!({ "b": 0 }));
    assert!(output["steps"].get("never").is_none());
    assert_eq!(output["params"], json!({ "n": 3 }));
    assert_eq!(output["_task_title"], "A task");
    assert_eq!(output["_task_id"], "01010101-0101-0101-0101-010101010101");
    assert_eq!(output["now"], output["_execution_start"]);
    let summary = json!({ "success": true, "total_steps": 3, "executed_steps": 2, "skipped_steps": 1, "execution_time_seconds": 0.0 });
    assert_eq!(output["_execution_summary"], summary);
}

#[tokio::test(start_paused = true)]
async fn wherever_a_worker_dies_nothing_is_done_twice_and_nothing_finished_is_repeated() {
    let steps = json!([
        { "uses": "none.echo", "save_as": "a" },
        { "uses": "idempotent.echo", "save_as": "b" },
        { "uses": "none.echo", "if": "params.missing" },
        { "uses": "once.echo", "with": { "b": { "$expr": "steps.b.step" } }, "save_as": "c" },
        { "uses": "event.publish", "with": { "topic": "t", "payload": {} } },
        { "uses": "once.echo", "save_as": "d" },
    ]);
    let End::Succeeded { output: whole } = Bench::new(&steps).run().await else { panic!("it succeeds") };
    let whole = shown(&whole);
    let (mut finished, mut uncertain) = (0, 0);
    for first in 1..40 {
        for second in 1..40 {
            let bench = Bench::new(&steps);
            let mut end = bench.run_and_be_killed(first).await;
            let mut repeated = Vec::new();
            if end.is_none() {
                let records = bench.host.records.lock().expect("records").clone();
                let before = bench.world.calls().len();
                end = bench.run_and_be_killed(second).await;
                repeated = bench.world.calls()[before..].to_vec();
                repeated.retain(|key| {
                    records.values().any(|record| {
                        record.state == StepState::Finished && key.ends_with(&format!("-{}", record.step))
                    })
                });
            }
            let end = match end {
                Some(end) => end,
                None => bench.run().await,
            };

            assert!(repeated.is_empty(), "{first} {second}: {repeated:?}");
            let calls = bench.world.calls();
            for once in [3, 5] {
                let times = calls.iter().filter(|key| key.ends_with(&format!("-{once}"))).count();
                assert!(times <= 1, "{first} {second}: step {once} was done {times} times");
            }
            match end {
                End::Succeeded { output } => {
                    let output = shown(&output);
                    assert_eq!(output["steps"], whole["steps"], "{first} {second}");
                    assert_eq!(output["_execution_summary"], whole["_execution_summary"], "{first} {second}");
                    finished += 1;
                }
                End::Uncertain(ended) => {
                    let record = bench.host.records.lock().expect("records")[&ended.step].clone();
                    assert_eq!((record.state, record.effect), (StepState::Started, Effect::Once));
                    assert!(!ended.retryable);
                    uncertain += 1;
                }
                other => panic!("{first} {second}: {other:?}"),
            }
        }
    }
    assert!(finished > 300 && uncertain > 300, "{finished} {uncertain}");
}

#[tokio::test(start_paused = true)]
async fn a_step_is_tried_again_as_often_as_it_says() {
    let step = |retries| json!([{ "id": "x", "uses": "idempotent.fail_twice", "max_retries": retries, "backoff_strategy": "linear", "save_as": "r" }]);

    let begun = tokio::time::Instant::now();
    let End::Succeeded { output } = Bench::new(&step(2)).run().await else { panic!("it succeeds") };
    let output = shown(&output);
    assert_eq!(output["steps"]["r"], 3);
    assert_eq!(begun.elapsed().as_secs(), 1 + 2);

    let ended = bad(Bench::new(&step(1)).run().await);
    assert_eq!(ended.error, "step 1 (x, idempotent.fail_twice): not yet");
    assert!(ended.retryable);
    assert_eq!(shown(&ended.output)["_execution_summary"]["success"], false);
    assert_eq!(shown(&ended.output)["_execution_summary"]["failed_step"]["id"], "x");
}

#[tokio::test(start_paused = true)]
async fn how_a_step_fails_decides_what_the_run_is() {
    for (uses, expected, retryable) in [
        ("none.fail", "failed", false),
        ("none.fail_again", "failed", true),
        ("once.fail_again", "failed", false),
        ("idempotent.refuse", "failed", false),
        ("idempotent.unknown", "failed", true),
        ("once.unknown", "uncertain", false),
        ("none.hang", "timed_out", true),
        ("idempotent.hang", "timed_out", true),
        ("once.hang", "uncertain", false),
        ("none.panic", "failed", true),
        ("once.panic", "uncertain", false),
        ("none.large", "failed", false),
        ("once.large", "failed", false),
    ] {
        let bench = Bench::new(&json!([{ "uses": uses, "timeout_seconds": 5 }, { "uses": "none.echo" }]));
        let end = bench.run().await;
        let kind = match &end {
            End::Failed(_) => "failed",
            End::TimedOut(_) => "timed_out",
            End::Uncertain(_) => "uncertain",
            other => panic!("{uses}: {other:?}"),
        };
        let ended = bad(end);
        assert_eq!((kind, ended.retryable), (expected, retryable), "{uses}: {}", ended.error);
        assert!(!ended.error.contains("secret") && ended.error.len() < 300, "{}", ended.error);
        assert_eq!(bench.world.calls().len(), 1, "{uses}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_stays_uncertain_however_often_the_run_is_taken_up() {
    let bench = Bench::new(&json!([{ "uses": "once.unknown" }]));
    for _ in 0..3 {
        assert!(matches!(bench.run().await, End::Uncertain(_)));
    }
    assert_eq!(bench.world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_knows_a_call_by_its_key_is_asked_what_became_of_it() {
    let steps = json!([{ "uses": "once.keyed", "save_as": "r" }]);
    let mut answers = Vec::new();
    for after in 1..8 {
        let bench = Bench::new(&steps);
        if bench.run_and_be_killed(after).await.is_none() {
            let End::Succeeded { output } = bench.run().await else { panic!("{after}: it succeeds") };
            let output = shown(&output);
            answers.push(output["steps"]["r"].as_str().expect("a text").to_owned());
        }
        assert_eq!(bench.world.calls().len(), 1, "{after}");
    }
    assert!(answers.contains(&"done before".to_owned()), "{answers:?}");

    let bench = Bench::new(&steps);
    assert!(bench.run_and_be_killed(4).await.is_none());
    bench.clock.advance(Duration::from_hours(1));
    assert!(matches!(bench.run().await, End::Uncertain(_)), "the key is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_everything_before_the_effect() {
    let bench = Bench::new(&json!([{ "uses": "none.echo" }, { "uses": "once.echo" }]));
    bench.host.lost.store(true, Ordering::SeqCst);

    assert_eq!(bench.run().await, End::Lost);
    assert_eq!(bench.world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_stops_between_steps_and_is_uncertain_within_an_effect() {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let bench = Bench::new(&json!([{ "uses": "once.echo" }]));
    assert!(matches!(bench.run_until(cancel).await, End::Cancelled(_)));
    assert!(bench.world.calls().is_empty());

    for (uses, uncertain) in [("once.hang", true), ("idempotent.hang", false), ("orchestrator.sleep", false)]
    {
        let with = if uses == "orchestrator.sleep" { json!({ "seconds": 1 }) } else { json!({}) };
        let bench = Bench::new(&json!([{ "uses": uses, "with": with }]));
        let cancel = CancellationToken::new();
        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            cancel.cancel();
        };
        let (end, ()) = tokio::join!(bench.run_until(cancel.clone()), later);
        assert_eq!(matches!(end, End::Uncertain(_)), uncertain, "{uses}: {end:?}");
        assert_eq!(matches!(end, End::Cancelled(_)), !uncertain, "{uses}: {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_may_not_be_used_any_more_is_not_used() {
    let bench = Bench::with(&json!([{ "uses": "none.echo" }, { "uses": "once.echo" }]), &["tool:none.*"]);

    let ended = bad(bench.run().await);

    assert_eq!(ended.step, 1);
    assert!(!ended.retryable && ended.error.contains("may use now"), "{}", ended.error);
    assert_eq!(bench.world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_sleep_gives_the_worker_back_and_ends_at_its_time() {
    let bench = Bench::new(&json!([
        { "uses": "once.echo" }, { "uses": "orchestrator.sleep", "with": { "seconds": "${params.n}600" } }, { "uses": "none.echo" },
    ]));
    let until = Timestamp::from_seconds(NOW + 3_600);

    assert_eq!(bench.run().await, End::Later { at: until });
    bench.clock.set(Timestamp::from_seconds(NOW + 1_800));
    // Taken up too early, and with a clock of its own: the time stays what it was.
    assert_eq!(bench.run().await, End::Later { at: until });
    bench.clock.set(until);
    assert!(matches!(bench.run().await, End::Succeeded { .. }));
    assert_eq!(bench.world.calls().len(), 2);
}

fn approval() -> Value {
    json!([
        { "uses": "orchestrator.request_approval", "with": { "reason": "mix?", "parameters": { "ul": { "$expr": "params.n" } } }, "save_as": "ok" },
        { "uses": "once.echo", "with": { "who": "${steps.ok.approved_by}", "n": "${params.n}" } },
    ])
}

async fn asked(bench: &Bench) -> Question {
    match bench.run().await {
        End::Waiting(question) => question,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_stands_until_a_person_answers_it() {
    for (state, done) in [
        (ApprovalState::Pending, None),
        (ApprovalState::Approved, Some(true)),
        (ApprovalState::Denied, Some(false)),
        (ApprovalState::Expired, Some(false)),
        (ApprovalState::Withdrawn, Some(false)),
    ] {
        let bench = Bench::new(&approval());
        let question = asked(&bench).await;
        assert_eq!(question.subject["parameters"], json!({ "ul": 3 }));
        assert_eq!(question.subject["next_steps"][0]["with"]["n"], "3");
        assert_eq!(question.expires_at, Timestamp::from_seconds(NOW + 86_400));
        let decision = Decision { state, by: Some("grace".to_owned()), first: None, note: None, at: None };
        bench.host.decisions.lock().expect("decisions").insert((0, question.digest.clone()), decision);

        let end = bench.run().await;

        match done {
            None => assert!(matches!(end, End::Waiting(again) if again == question)),
            Some(true) => assert!(matches!(end, End::Succeeded { .. }), "{end:?}"),
            Some(false) => assert!(!bad(end).retryable),
        }
        assert_eq!(bench.world.calls().len(), usize::from(done == Some(true)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_approval_is_bound_to_what_was_asked_and_to_what_follows() {
    let one = asked(&Bench::new(&approval())).await;
    let mut other_step = approval();
    other_step[1]["with"]["n"] = json!("4");
    let mut other_input = approval();
    other_input[0]["with"]["parameters"] = json!({ "ul": 4 });

    assert_eq!(one.digest, asked(&Bench::new(&approval())).await.digest);
    assert_ne!(one.digest, asked(&Bench::new(&other_step)).await.digest);
    assert_ne!(one.digest, asked(&Bench::new(&other_input)).await.digest);
}

#[tokio::test(start_paused = true)]
async fn simulated_tools_do_nothing_and_say_so() {
    let bench = Bench::new(&json!([{ "uses": "once.echo", "with": { "a": 1 }, "save_as": "r" }]));
    let tools = Simulated(toolbox(&bench.world));
    let job = bench.job(CancellationToken::new());

    let end = execute(&bench.pipeline, job, &bench.host, &tools, &bench.ambient).await;

    let End::Succeeded { output } = end else { panic!("{end:?}") };

    let output = shown(&output);
    let result = &output["steps"]["r"];
    assert_eq!((&result["status"], &result["tool_address"]), (&json!("simulated"), &json!("once.echo")));
    assert_eq!(result["input_args"], json!({ "a": 1 }));
    assert!(bench.world.calls().is_empty());
}

#[test]
fn tools_are_listed_and_found_by_whoever_may_use_them() {
    let tools = toolbox(&Arc::default());
    for (held, address, expected) in [
        ("tool:once.echo", "once.echo", true),
        ("tool:once.*", "once.echo", true),
        ("tool:none.*", "once.echo", false),
        ("tasks:create", "orchestrator.sleep", true),
        ("tool:*", "event.publish", false),
        ("events:publish", "event.publish", true),
    ] {
        let scopes = scopes(&[held]);
        let allowed = Allowed::new(&tools, &scopes);
        assert_eq!(allowed.tool(address).is_some(), expected, "{held} {address}");
        assert_eq!(allowed.listing().get(address).is_some(), expected, "{held} {address}");
    }
    let listing = Allowed::new(&tools, &[]).listing();
    assert!(listing["orchestrator.sleep"]["description"].is_string());
}

#[test]
fn the_built_in_tools_say_what_is_wrong() {
    let tools = toolbox(&Arc::default());
    let all = scopes(&["admin", "tool:*", "events:publish"]);
    for (uses, with, part) in [
        ("orchestrator.sleep", json!({}), "seconds is missing"),
        ("orchestrator.sleep", json!({ "seconds": -1 }), "from 0 to"),
        ("orchestrator.sleep", json!({ "seconds": "soon" }), "from 0 to"),
        ("orchestrator.sleep", json!({ "second": 1 }), "knows seconds"),
        ("orchestrator.request_approval", json!({}), "reason is missing"),
        ("orchestrator.request_approval", json!({ "reason": "" }), "1 to 2000"),
        ("orchestrator.request_approval", json!({ "reason": "a", "expires_in_seconds": 1 }), "from 60"),
        ("event.publish", json!({ "payload": {} }), "topic is missing"),
        ("event.publish", json!({ "topic": "t", "payload": 1 }), "an object"),
    ] {
        let payload = json!({ "pipeline": [{ "uses": uses, "with": with }] });
        let errors = Pipeline::compile(payload.as_object().expect("an object"), &Allowed::new(&tools, &all));
        let errors = errors.expect_err(part);
        assert!(errors[0].message.contains(part), "{uses}: {errors:?}");
    }
}

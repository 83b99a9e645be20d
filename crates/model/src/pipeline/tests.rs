//! What is a pipeline, and what is refused with its place.

use super::*;

/// Tools for the tests: what begins with `http.` may be repeated, what begins with `device.` must not.
struct Tools;

impl Catalogue for Tools {
    fn check(&self, uses: &str, known: Known<'_>) -> Result<Effect, Misuse> {
        match uses {
            "http.request" if !known.has("url") => Err(Misuse::Input(None, "url is missing".to_owned())),
            "http.request" if known.fixed.get("url").is_some_and(|url| !url.is_string()) => {
                Err(Misuse::Input(Some("url".to_owned()), "url is a string".to_owned()))
            }
            "http.request" => Ok(Effect::Idempotent),
            "device.ot2.mix" => Ok(Effect::Once),
            "none" => Ok(Effect::None),
            _ => Err(Misuse::Unknown),
        }
    }
}

fn compile(payload: &Value) -> Result<Pipeline, Vec<PipelineError>> {
    Pipeline::compile(payload.as_object().expect("an object"), &Tools)
}

fn now() -> Timestamp {
    "2026-01-15T10:00:00Z".parse().expect("a time")
}

/// What one step with this `with` is given.
fn render(with: &Value) -> Result<Value, StepError> {
    let payload = json!({ "params": { "n": 3, "list": [1, "a"], "who": "Ada", "yes": true, "none": null },
        "pipeline": [{ "uses": "none", "with": with }] });
    let pipeline = compile(&payload).unwrap_or_else(|errors| panic!("{with}: {errors:?}"));
    let mut context = Context::new(&pipeline, now(), Some(json!({ "topic": "t", "payload": { "ph": 7.5 } })));
    context.save("weather", json!({ "temp": 21.5, "city": "Bern" })).expect("small");
    pipeline.steps()[0].input(&context).map(Value::Object)
}

#[test]
fn holes_are_written_as_text_and_typed_ones_keep_their_type() {
    let with = json!({
        "text": "Hello ${params.who}: ${steps.weather.temp} in ${steps.weather.city}, ${params.yes}, ${params.none}, ${params.list}",
        "only": "${params.n}",
        "typed": { "$expr": "params.n" },
        "list": ["${event.payload.ph}", { "$expr": "event.payload" }, 5, null],
        "brace": "${ {a: params.n}.a }${'}'}",
        "dollar": "costs $5 or $${params.n}",
        "now": "${now}", "tomorrow": "${now+24h}", "before": { "$expr": "now - 1h" },
        "plain": { "deep": [true] },
    });

    assert_eq!(
        render(&with).expect("rendered"),
        json!({
            "text": "Hello Ada: 21.5 in Bern, true, null, [1,\"a\"]",
            "only": "3",
            "typed": 3,
            "list": ["7.5", { "ph": 7.5 }, 5, null],
            "brace": "3}",
            "dollar": "costs $5 or $3",
            "now": "2026-01-15T10:00:00.000000Z", "tomorrow": "2026-01-16T10:00:00.000000Z",
            "before": "2026-01-15T09:00:00.000000Z",
            "plain": { "deep": [true] },
        })
    );
}

#[test]
fn what_a_template_gives_is_not_a_template() {
    let payload = json!({ "params": { "evil": "${params.secret}", "secret": "s", "typed": { "$expr": "params.secret" } },
        "pipeline": [{ "uses": "none", "with": { "a": "${params.evil}", "b": { "$expr": "params.typed" } } }] });
    let pipeline = compile(&payload).expect("a pipeline");
    let context = Context::new(&pipeline, now(), None);

    let input = pipeline.steps()[0].input(&context).expect("rendered");

    assert_eq!(input["a"], "${params.secret}");
    assert_eq!(input["b"], json!({ "$expr": "params.secret" }));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let payload = json!({ "params": [], "pipeline": [
        { "with": {} },
        { "uses": "" },
        { "uses": "unknown.tool" },
        { "uses": "none", "with": { "a": ["ok", { "b": "${1 +}" }] }, "if": "a b" },
        { "uses": "none", "id": "x", "with": { "a": "${open" } },
        { "uses": "none", "id": "x", "save_as": "" },
        { "uses": "http.request" },
        { "uses": "http.request", "with": { "url": 5 } },
        { "uses": "device.ot2.mix", "max_retries": 1 },
        { "uses": "none", "timeout_seconds": 0, "max_retries": 11, "backoff_strategy": "soon" },
        { "uses": "none", "with": { "$expr": "params" } },
        { "uses": "none", "with": { "a": { "$expr": 5 } } },
        "no step",
        { "uses": "none", "with": "text", "if": 5 },
    ] });
    let errors = compile(&payload).expect_err("mistakes");
    let told: Vec<(String, &str)> = errors
        .iter()
        .map(|error| (serde_json::to_string(&error.loc).expect("JSON"), error.message.as_str()))
        .collect();

    for (loc, part) in [
        (r#"["params"]"#, "object"),
        (r#"["pipeline",0,"uses"]"#, "names the tool"),
        (r#"["pipeline",1,"uses"]"#, "1 to 200"),
        (r#"["pipeline",2,"uses"]"#, "GET /tools"),
        (r#"["pipeline",3,"with","a",1,"b"]"#, "at character 3"),
        (r#"["pipeline",3,"if"]"#, "at character 3"),
        (r#"["pipeline",4,"with","a"]"#, "not closed"),
        (r#"["pipeline",5,"id"]"#, "used once"),
        (r#"["pipeline",5,"save_as"]"#, "1 to 100"),
        (r#"["pipeline",6,"with"]"#, "url is missing"),
        (r#"["pipeline",7,"with","url"]"#, "url is a string"),
        (r#"["pipeline",8,"max_retries"]"#, "twice"),
        (r#"["pipeline",9,"timeout_seconds"]"#, "at most 86400"),
        (r#"["pipeline",9,"max_retries"]"#, "0 to 10"),
        (r#"["pipeline",9,"backoff_strategy"]"#, "exponential_jitter"),
        (r#"["pipeline",10,"with"]"#, "not for with itself"),
        (r#"["pipeline",11,"with","a"]"#, "as a string"),
        (r#"["pipeline",12]"#, "object with uses"),
        (r#"["pipeline",13,"if"]"#, "as a string"),
        (r#"["pipeline",13,"with"]"#, "with is an object"),
    ] {
        assert!(
            told.iter().any(|(at, message)| at == loc && message.contains(part)),
            "{loc} {part}: {told:#?}"
        );
    }
    assert_eq!(told.len(), 20);
}

#[test]
fn a_payload_without_steps_or_with_too_many_is_refused() {
    let step = json!({ "uses": "none" });
    for (payload, part) in [
        (json!({}), "holds pipeline"),
        (json!({ "pipeline": {} }), "holds pipeline"),
        (json!({ "pipeline": [] }), "1 to 200"),
        (json!({ "pipeline": vec![step.clone(); 10_000] }), "this one has 10000"),
        (json!({ "pipeline": [step], "params": { "a": "x".repeat(LARGEST_PAYLOAD) } }), "bytes"),
    ] {
        let errors = compile(&payload).expect_err(part);
        assert!(errors[0].message.contains(part), "{errors:?}");
    }
}

#[test]
fn a_pipeline_has_a_greatest_number_of_expressions() {
    let payload = json!({ "pipeline": [{ "uses": "none", "with": { "a": "${now}".repeat(10_000) } }] });
    let errors = compile(&payload).expect_err("too many");
    assert!(errors[0].message.contains("at most 1000 expressions"), "{errors:?}");
}

#[test]
fn a_condition_skips_a_step() {
    let payload = json!({ "params": { "n": 0, "on": true }, "pipeline": [
        { "uses": "none", "if": "params.n" }, { "uses": "none", "if": "params.on && steps.a.b == 'x'" },
        { "uses": "none" }, { "uses": "none", "if": "length(params.n)" },
    ] });
    let pipeline = compile(&payload).expect("a pipeline");
    let mut context = Context::new(&pipeline, now(), None);
    context.save("a", json!({ "b": "x" })).expect("small");
    let applies = |at: usize| pipeline.steps()[at].applies(&context);

    assert_eq!((applies(0), applies(1), applies(2)), (Ok(false), Ok(true), Ok(true)));
    assert!(applies(3).expect_err("no length").to_string().contains("length(params.n)"));
}

#[test]
fn templates_that_explode_end_the_step_and_nothing_else() {
    let doubling = vec!["[@,@]"; 100].join("|");
    for with in [
        json!({ "a": format!("${{{doubling}}}") }),
        json!({ "a": { "$expr": doubling } }),
        json!({ "a": { "$expr": format!("'x'|{}", vec!["join('',[@,@])"; 60].join("|")) } }),
    ] {
        let error = render(&with).expect_err("too much");
        assert!(error.to_string().contains("may"), "{error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
}

#[test]
fn results_of_50_mb_are_refused() {
    let large = json!({ "body": "x".repeat(50_000_000) });
    assert!(check_result(&large).expect_err("too large").to_string().contains("50000"));
    check_result(&json!({ "body": "x".repeat(1_000_000) })).expect("small enough");

    let pipeline = compile(&json!({ "pipeline": [{ "uses": "none" }] })).expect("a pipeline");
    let mut context = Context::new(&pipeline, now(), None);
    let one = json!("x".repeat(1_000_000));
    let kept = (0..20).take_while(|at| context.save(&format!("s{at}"), one.clone()).is_ok()).count();
    assert_eq!(kept, 8);
}

#[test]
fn a_template_cannot_write_more_than_a_step_may_be_given() {
    let payload = json!({ "params": { "big": "x".repeat(500_000) },
        "pipeline": [{ "uses": "none", "with": { "a": "${params.big}${params.big}${params.big}" } }] });
    let pipeline = compile(&payload).expect("a pipeline");
    let error = pipeline.steps()[0].input(&Context::new(&pipeline, now(), None)).expect_err("too large");
    assert!(error.to_string().contains("at most 1048576 bytes"), "{error}");
}

#[test]
fn a_condition_on_events_holds_or_does_not_and_never_costs_much() {
    let event = json!({ "topic": "plate.read", "payload": { "ph": 7.5 }, "event_id": "e" });
    for (text, expected) in [
        ("event.payload.ph > `7`", true),
        ("event.topic == 'other'", false),
        ("length(event.payload.ph)", false),
        ("event.payload.missing", false),
    ] {
        assert_eq!(Condition::compile(text).expect("a condition").holds(&event), expected, "{text}");
    }
    assert!(!Condition::compile(&vec!["[@,@][]"; 100].join("|")).expect("a condition").holds(&event));
    assert!(Condition::compile("event..x").expect_err("no condition").contains("at character 7"));
}

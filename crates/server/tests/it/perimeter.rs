//! What every answer carries, and what is refused before any route.

use axum::http::Method;
use interlock_server::config::Hsts;
use serde_json::json;

use tower::ServiceExt as _;

use crate::lab::{Answer, Lab};

const API_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

#[track_caller]
fn assert_headers(answer: &Answer) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("x-xss-protection", "0"),
        ("referrer-policy", "strict-origin-when-cross-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "geolocation=(), microphone=(), camera=()"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name} on {}", answer.status);
        assert_eq!(answer.headers.get_all(name).iter().count(), 1, "{name} on {}", answer.status);
    }
    assert!(
        answer
            .header("content-security-policy")
            .is_some_and(|policy| policy.contains("frame-ancestors 'none'"))
    );
    let id = answer.header("x-request-id").expect("a request id");
    assert!(
        (1..=64).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c)),
        "{id}"
    );
    assert_eq!(answer.header("server"), None);
}

#[tokio::test]
async fn every_status_carries_id_and_security_headers() {
    let lab = Lab::with(|config| config.connections.in_flight = 1).await;
    let (operator, viewer) = (lab.token("ana").await, lab.token("vic").await);

    lab.device.panics(true);
    let mut answers =
        vec![lab.get("/device").signed(&viewer).send().await, lab.post("/stop").signed(&viewer).send().await];
    lab.device.panics(false);
    for answer in &answers {
        answer.refused(500, "internal");
        assert!(!answer.text().contains("0815"), "{}", answer.text());
    }
    lab.store.fail();
    answers.push(lab.get("/runs").signed(&viewer).send().await);
    lab.store.mend();
    answers.extend([
        lab.get("/health").send().await,
        lab.get("/tasks").send().await,
        lab.get("/users").signed(&viewer).send().await,
        lab.get("/nothing").send().await,
        lab.ask(Method::DELETE, "/tasks").send().await,
        lab.post("/execute/mix").signed(&operator).text("{").send().await,
        lab.post("/execute/mix").signed(&operator).typed("text/plain", "x").send().await,
        lab.post("/execute/mix").signed(&operator).send().await,
        lab.post("/execute/mix").header("content-length", "99999999").send().await,
        lab.get("/health").without_host().header("host", "evil.example").send().await,
        lab.post("/users")
            .signed(&lab.token("ada").await)
            .json(&json!({ "name": "new", "password": "seven purple pipettes", "roles": ["viewer"] }))
            .send()
            .await,
        lab.get("/docs").send().await,
        lab.get("/docs/app.js").send().await,
        lab.get("/metrics").from("127.0.0.1").send().await,
    ]);
    lab.device.hold();
    let mut busy = Box::pin(lab.mix("ana").await.send());
    tokio::select! {
        _ = &mut busy => panic!("the device was told to wait"),
        () = crate::lab::eventually("the device was called", || async { !lab.device.calls().is_empty() }) => {}
    }
    let shed = lab.get("/tasks").signed(&viewer).send().await;
    shed.refused(503, "unavailable");
    assert_eq!(shed.header("retry-after"), Some("1"));
    answers.push(shed);
    lab.device.let_go();
    answers.push(busy.await);

    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    answers.iter().for_each(assert_headers);
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 201, 400, 401, 403, 404, 405, 413, 415, 422, 500, 503]);
}

#[tokio::test]
async fn no_cache_keeps_what_depends_on_who_asks() {
    let lab = Lab::start().await;
    let token = lab.token("ada").await;

    for path in [
        "/",
        "/auth/me",
        "/auth/sessions",
        "/users",
        "/runs",
        "/tasks",
        "/actions",
        "/device",
        "/audit",
        "/bans",
        "/health",
    ] {
        let answer = lab.get(path).signed(&token).send().await;
        assert_eq!((path, answer.header("cache-control")), (path, Some("no-store")));
    }
    // A name behind a page is not the page.
    for path in ["/docs/nothing.css", "/auth/me/nothing.css", "/docs/app.js/nothing.css"] {
        let answer = lab.get(path).signed(&token).send().await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("cache-control")),
            (404, Some("no-store")),
            "{path}"
        );
    }
    for path in ["/docs", "/docs/app.js"] {
        assert_eq!(lab.get(path).send().await.header("cache-control"), Some("no-cache"), "{path}");
    }
}

#[tokio::test]
async fn a_good_request_id_is_kept_and_a_bad_one_replaced() {
    let lab = Lab::start().await;

    for good in ["a", "A-z_0.9", &"x".repeat(64)] {
        let answer = lab.get("/nothing").header("x-request-id", good).send().await;
        assert_eq!(answer.header("x-request-id"), Some(good));
        assert_eq!(answer.json()["request_id"], good);
    }
    let mut made = Vec::new();
    for bad in ["", "with space", "a;b", "<script>", &"x".repeat(65), "é"] {
        let answer = lab.get("/nothing").header("x-request-id", bad).send().await;
        let id = answer.header("x-request-id").expect("an id").to_owned();
        assert!(id.starts_with("req-") && id.len() > 12, "{id}");
        assert_eq!(answer.json()["request_id"], id.as_str());
        made.push(id);
    }
    made.push(lab.get("/health").send().await.header("x-request-id").expect("an id").to_owned());
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 7);
}

#[tokio::test]
async fn an_error_has_the_media_type_that_was_asked_for() {
    let lab = Lab::start().await;

    for (accept, media_type) in [
        (None, "application/problem+json"),
        (Some("*/*"), "application/problem+json"),
        (Some("application/json"), "application/json"),
        (Some("text/html,application/json"), "application/problem+json"),
    ] {
        let ask = lab.get("/nothing");
        let answer = match accept {
            Some(accept) => ask.header("accept", accept),
            None => ask,
        };
        assert_eq!(answer.send().await.header("content-type"), Some(media_type), "{accept:?}");
    }
}

#[tokio::test]
async fn hsts_is_sent_where_the_setting_says() {
    for (hsts, plain, secure) in
        [(Hsts::Secure, false, true), (Hsts::Always, true, true), (Hsts::Never, false, false)]
    {
        let lab = Lab::with(|config| {
            config.hsts = hsts;
            config.trusted_proxies = vec!["10.9.0.0/16".parse().expect("a network")];
        })
        .await;
        let expected = |sent: bool| sent.then_some("max-age=63072000; includeSubDomains");

        let over_http = lab.get("/nothing").send().await;
        let over_tls = lab.get("/nothing").encrypted().send().await;
        let by_proxy = lab.get("/nothing").from("10.9.0.1").header("x-forwarded-proto", "https").send().await;
        let by_stranger = lab.get("/nothing").header("x-forwarded-proto", "https").send().await;

        assert_eq!(over_http.header("strict-transport-security"), expected(plain), "{hsts:?}");
        assert_eq!(over_tls.header("strict-transport-security"), expected(secure), "{hsts:?}");
        assert_eq!(by_proxy.header("strict-transport-security"), expected(secure), "{hsts:?}");
        assert_eq!(by_stranger.header("strict-transport-security"), expected(plain), "{hsts:?}");
    }
}

#[tokio::test]
async fn hsts_is_on_every_kind_of_answer_over_tls() {
    let lab = Lab::with(|config| config.rate.enabled = true).await;
    let viewer = lab.token("vic").await;
    lab.device.panics(true);
    let mut answers = vec![
        lab.get("/health/live").encrypted().send().await,
        lab.get("/tasks").encrypted().send().await,
        lab.get("/users").encrypted().signed(&viewer).send().await,
        lab.get("/nothing").encrypted().send().await,
        lab.get("/device").encrypted().signed(&viewer).send().await,
        lab.get("/health").encrypted().without_host().header("host", "evil.example").send().await,
    ];
    for _ in 0..61 {
        answers.push(lab.get("/nothing").encrypted().from("10.0.0.9").send().await);
    }

    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 400, 401, 403, 404, 429, 500]);
    for answer in &answers {
        let sent: Vec<_> = answer.headers.get_all("strict-transport-security").iter().collect();
        assert_eq!(sent, ["max-age=63072000; includeSubDomains"], "{}", answer.status);
    }
}

#[tokio::test]
async fn the_compatible_header_is_a_switch() {
    let lab = Lab::with(|config| config.compat_headers = true).await;

    assert_eq!(lab.get("/health").send().await.header("x-xss-protection"), Some("1; mode=block"));
}

#[tokio::test]
async fn plain_http_is_sent_to_https_or_refused() {
    let lab = Lab::with(|config| config.force_https = true).await;
    let login = json!({ "username": "ana", "password": crate::lab::password("ana").expose() });

    for method in [Method::GET, Method::HEAD] {
        let answer = lab.ask(method, "/tasks?x=1").send().await;
        assert_eq!(answer.status.as_u16(), 308);
        assert_eq!(answer.header("location"), Some("https://localhost/tasks?x=1"));
        assert_headers(&answer);
    }
    let answer = lab.post("/auth/login").json(&login).send().await;
    answer.refused(403, "forbidden");
    lab.post("/auth/login").encrypted().json(&login).send().await.ok();
    for page in ["/", "/panel", "/docs"] {
        assert_eq!(lab.get(page).send().await.status.as_u16(), 308, "{page}");
    }
}

#[tokio::test]
async fn what_carries_a_secret_over_plain_http_is_refused_and_on_record() {
    let lab = Lab::with(|config| config.force_https = true).await;
    let logged = crate::service::Capture::default();
    let _guard = logged.install();
    let challenges = interlock_server::challenge_router(lab.app.clone());

    for path in ["/tasks", "/panel", "/"] {
        for method in [Method::GET, Method::HEAD] {
            for (name, value) in
                [("authorization", "Bearer x"), ("cookie", "a=b"), ("proxy-authorization", "Basic eA==")]
            {
                let answer = lab.ask(method.clone(), path).header(name, value).send().await;
                assert_eq!(answer.status.as_u16(), 403, "{method} {path} {name}");
                assert_eq!(answer.header("location"), None);
            }
        }
        let answer = lab.get(&format!("{path}?access_token=x")).send().await;
        answer.refused(400, "invalid_request");
    }
    let request =
        axum::extract::Request::get("/tasks").header("host", "localhost").header("authorization", "Bearer x");
    let answer = challenges
        .oneshot(request.body(axum::body::Body::empty()).expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(answer.status().as_u16(), 403, "beside ACME");
    let told = logged.text();
    assert_eq!(told.matches("credentials_in_the_clear").count(), 19);
    assert!(!told.contains("Bearer"));
}

#[tokio::test]
async fn what_browsers_report_of_our_pages_is_on_record_bounded_and_counted_apart() {
    let lab = Lab::with(|config| {
        config.rate.enabled = true;
        config.max_request_size = 1024 * 1024;
    })
    .await;
    let logged = crate::service::Capture::default();
    let _guard = logged.install();
    let page = lab.get("/panel").send().await;
    assert!(
        page.header("content-security-policy")
            .expect("a policy")
            .ends_with("report-uri /page-reports; report-to pages")
    );
    assert_eq!(page.header("reporting-endpoints"), Some("pages=\"/page-reports\""));
    let old = r#"{"csp-report":{"document-uri":"https://localhost/panel","effective-directive":"script-src-elem",
        "blocked-uri":"https://evil.example/secret.js","script-sample":"secret"}}"#;
    let new = r#"[{"type":"csp-violation","body":{"documentURL":"https://localhost/docs","effectiveDirective":"style-src-attr",
        "blockedURL":"inline"}}]"#;
    let send = |kind: &'static str, body: &str| lab.post("/page-reports").typed(kind, body.to_owned()).send();

    assert_eq!(send("application/csp-report", old).await.status.as_u16(), 204);
    assert_eq!(send("application/reports+json; charset=utf-8", new).await.status.as_u16(), 204);
    for (kind, body, status) in [
        ("application/json", old, 415),
        ("text/plain", old, 415),
        ("application/reports+json", old, 422),
        ("application/csp-report", new, 422),
        ("application/csp-report", "{", 422),
        ("application/csp-report", &format!("{{\"x\":\"{}\"}}", "x".repeat(20_000)), 413),
    ] {
        assert_eq!(send(kind, body).await.status.as_u16(), status, "{kind}");
    }
    let told = logged.text();
    assert_eq!(told.matches("page_policy_violated").count(), 2, "{told}");
    for word in ["script-src-elem", "evil.example", "/panel", "style-src-attr", "inline"] {
        assert!(told.contains(word), "{word}");
    }
    assert!(!told.contains("secret"), "{told}");
    let mut last = 0;
    for _ in 0..3 {
        last = send("application/csp-report", old).await.status.as_u16();
    }
    assert_eq!(last, 429, "ten a minute");
    lab.get("/panel").send().await;
    assert_eq!(lab.get("/nothing").send().await.status.as_u16(), 404, "its owner goes on");
}

#[tokio::test]
async fn a_redirect_to_https_goes_to_our_names_only() {
    let lab = Lab::with(|config| config.force_https = true).await;
    let redirected = |host: &'static str| lab.get("/tasks").without_host().header("host", host).send();

    redirected("evil.example").await.refused(400, "invalid_request");
    assert_eq!(
        redirected("ot2.lab.example:8000").await.header("location"),
        Some("https://ot2.lab.example/tasks")
    );
    assert_eq!(redirected("[::1]:8000").await.header("location"), Some("https://[::1]/tasks"));
}

#[tokio::test]
async fn only_our_host_names_are_answered() {
    let lab = Lab::start().await;
    let with = |host: &'static str| lab.get("/health").without_host().header("host", host).send();

    for good in ["localhost", "LOCALHOST:8000", "ot2.lab.example", "127.0.0.1:8000", "[::1]:8000"] {
        with(good).await.ok();
    }
    for bad in [
        "evil.example",
        "lab.example",
        "evillab.example",
        ".lab.example",
        "localhost.evil.example",
        "",
        "127.0.0.2",
        "@localhost@evil.example",
    ] {
        let answer = with(bad).await;
        answer.refused(400, "invalid_request");
        assert!(bad.is_empty() || !answer.text().contains(bad), "{}", answer.text());
    }
    lab.get("/health").without_host().send().await.refused(400, "invalid_request");
    lab.get("/health")
        .header("host", "localhost")
        .without_host()
        .header("host", "localhost")
        .send()
        .await
        .refused(400, "invalid_request");
}

#[tokio::test]
async fn an_origin_may_call_only_if_it_is_listed() {
    let lab = Lab::with(|config| config.cors_origins = vec!["https://lims.example".to_owned()]).await;
    let preflight = |origin: &'static str| {
        lab.ask(Method::OPTIONS, "/execute/mix")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .send()
    };
    let simple = |origin: &'static str| lab.get("/health").header("origin", origin).send();

    let answer = preflight("https://lims.example").await;
    assert_eq!(answer.status.as_u16(), 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://lims.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST, PATCH, DELETE"));
    assert!(
        answer
            .header("access-control-allow-headers")
            .is_some_and(|headers| headers.contains("authorization") && headers.contains("idempotency-key"))
    );
    assert!(answer.header("vary").is_some_and(|vary| vary.to_ascii_lowercase().contains("origin")));
    assert_headers(&answer);

    let answer = simple("https://lims.example").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://lims.example"));
    assert!(
        answer
            .header("access-control-expose-headers")
            .is_some_and(|headers| headers.contains("interlock-run"))
    );
    // Errors can be read across origins too.
    let refused = lab.get("/tasks").header("origin", "https://lims.example").send().await;
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://lims.example"));

    for stranger in [
        "https://evil.example",
        "http://lims.example",
        "https://lims.example.evil.example",
        "https://LIMS.example",
        "null",
        "*",
    ] {
        for answer in [preflight(stranger).await, simple(stranger).await] {
            assert!(
                answer.headers.keys().all(|name| !name.as_str().starts_with("access-control-")),
                "{stranger}: {:?}",
                answer.headers
            );
        }
    }
}

#[tokio::test]
async fn pages_of_other_origins_use_the_methods_that_are_set() {
    let lab = Lab::with(|config| {
        config.cors_origins = vec!["https://lims.example".to_owned()];
        config.cors_methods = vec![Method::GET, Method::POST];
    })
    .await;
    let preflight = |method: &'static str| {
        lab.ask(Method::OPTIONS, "/agents/018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d")
            .header("origin", "https://lims.example")
            .header("access-control-request-method", method)
            .send()
    };

    for method in ["GET", "POST"] {
        let answer = preflight(method).await;
        assert_eq!(answer.status.as_u16(), 204, "{method}");
        assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST"));
    }
    for method in ["DELETE", "PUT", "PATCH", "delete", "BREW"] {
        let answer = preflight(method).await;
        answer.refused(403, "forbidden");
        assert_eq!(answer.header("access-control-allow-methods"), None, "{method}");
    }
}

#[tokio::test]
async fn without_listed_origins_none_may_call_and_a_star_means_nothing() {
    for origins in [vec![], vec!["*".to_owned()]] {
        let lab = Lab::with(|config| config.cors_origins = origins).await;

        let answer = lab.get("/health").header("origin", "https://lims.example").send().await;

        assert_eq!(answer.header("access-control-allow-origin"), None);
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn an_unknown_path_is_not_found_whoever_asks() {
    let lab = Lab::unscreened().await;
    let admin = lab.token("zoe").await;

    for path in [
        "/nothing",
        "/execute",
        "/runs/a/b/c",
        "/%2e%2e/etc/passwd",
        "//tasks",
        "/TASKS",
        "/docs/other.js",
        "/Stop",
    ] {
        for ask in [lab.get(path), lab.get(path).signed(&admin), lab.post(path).signed("garbage")] {
            let answer = ask.send().await;
            let body = answer.refused(404, "not_found");
            assert_eq!(body["detail"], "Not found");
        }
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_which_are_right() {
    let lab = Lab::start().await;

    for (method, path, allowed) in [
        ("DELETE", "/tasks", vec!["GET", "HEAD"]),
        ("GET", "/auth/login", vec!["POST"]),
        ("GET", "/execute/mix", vec!["POST"]),
        ("PUT", "/users", vec!["GET", "HEAD", "POST"]),
        ("GET", "/users/ana", vec!["PATCH"]),
        ("GET", "/stop", vec!["POST"]),
        ("BREW", "/health", vec!["GET", "HEAD"]),
        ("OPTIONS", "/health", vec!["GET", "HEAD"]),
        ("TRACE", "/health", vec!["GET", "HEAD"]),
    ] {
        for signed in [false, true] {
            let ask = lab.ask(method.parse().expect("a method"), path);
            let answer = if signed { ask.signed(&lab.token("zoe").await) } else { ask }.send().await;
            answer.refused(405, "method_not_allowed");
            let mut told: Vec<&str> =
                answer.header("allow").expect("Allow").split(',').map(str::trim).collect();
            told.sort_unstable();
            assert_eq!(told, allowed, "{method} {path}");
            assert_headers(&answer);
        }
    }
}

#[tokio::test]
async fn head_works_wherever_get_does() {
    let lab = Lab::start().await;
    let token = lab.token("zoe").await;

    for path in [
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/tasks",
        "/actions",
        "/runs",
        "/users",
        "/audit",
        "/device",
        "/auth/me",
        "/docs",
        "/openapi.json",
    ] {
        let get = lab.get(path).signed(&token).send().await;
        let head = lab.ask(Method::HEAD, path).signed(&token).send().await;
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_headers(&head);
    }
    assert_eq!(lab.ask(Method::HEAD, "/tasks").send().await.status.as_u16(), 401);
}

#[tokio::test]
async fn answers_of_the_interface_allow_no_content_to_run() {
    let lab = Lab::start().await;

    for path in ["/health", "/nothing", "/openapi.json", "/docs/app.js"] {
        assert_eq!(lab.get(path).send().await.header("content-security-policy"), Some(API_POLICY), "{path}");
    }
    for path in ["/docs", "/panel"] {
        let page = lab.get(path).send().await;
        let policy = page.header("content-security-policy").expect("a policy");
        for forbidden in ["unsafe-inline", "unsafe-eval", "http:", "https:", "*"] {
            assert!(!policy.contains(forbidden), "{policy}");
        }
        assert!(policy.contains("script-src 'self'"));
        // A name space is a name, not an address.
        let text = page.text().replace("http://www.w3.org/2000/svg", "");
        assert!(
            !text.contains("http://")
                && !text.contains("https://")
                && !text.contains("<script>")
                && !text.contains(" style="),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_proxy_s_pair_of_headers_is_served() {
    let lab = Lab::with(|config| {
        config.trusted_proxies = vec!["10.9.0.0/16".parse().expect("a network")];
        config.rate.enabled = true;
    })
    .await;

    for peer in ["10.9.0.1", "10.0.0.1"] {
        let answer = lab
            .get("/health")
            .from(peer)
            .header("x-real-ip", "203.0.113.7")
            .header("x-forwarded-for", "203.0.113.7")
            .send()
            .await;
        answer.ok();
    }
    let anonymous = lab.get("/health").from("10.9.0.1").send().await;
    anonymous.ok();
}

#[tokio::test]
async fn the_address_in_the_audit_trail_is_the_client_s() {
    let lab =
        Lab::with(|config| config.trusted_proxies = vec!["10.9.0.0/16".parse().expect("a network")]).await;
    let bad = |peer: &'static str| {
        lab.get("/tasks").signed("bad").from(peer).header("x-forwarded-for", "6.6.6.6, 203.0.113.7").send()
    };

    bad("10.9.0.1").await.refused(401, "unauthorized");
    bad("198.51.100.9").await.refused(401, "unauthorized");

    let trail = lab.trail_of("authentication.failed").await;
    let addresses: Vec<_> = trail.iter().filter_map(|entry| entry.draft.client_ip.as_deref()).collect();
    assert_eq!(addresses, ["203.0.113.7", "198.51.100.9"]);
}

/// A request that is wrong in every way is told one thing; without that, the next.
#[tokio::test]
async fn the_checks_of_a_request_come_in_the_documented_order() {
    const REFERENCE: &str = include_str!("../../../../docs/reference/device-http.md");
    let lab = Lab::with(|config| {
        config.rate.enabled = true;
        config.rate.per_minute = 2;
    })
    .await;
    let (viewer, operator) = (lab.token("vic").await, lab.token("ana").await);
    for _ in 0..2 {
        lab.get("/nothing").from("10.0.1.0").send().await;
    }
    let mut told = Vec::new();
    for wrong in 0..8 {
        let attack = if wrong > 3 { "" } else { "?x=';%20DROP%20TABLE%20tasks;%20--" };
        let ask = lab.post(&format!("/execute/mix{attack}")).from(&format!("10.0.1.{wrong}"));
        let ask = if wrong > 1 { ask } else { ask.without_host().header("host", "evil.example") };
        let ask = if wrong > 2 { ask } else { ask.header("content-length", "99999999") };
        let ask = match wrong {
            0..=4 => ask,
            5 => ask.signed(&viewer),
            _ => ask.signed(&operator),
        };
        let media_type = if wrong > 6 { "application/json" } else { "text/plain" };
        let answer = ask.typed(media_type, "{\"volume\":\"x\"}").send().await;
        told.push(answer.json()["code"].as_str().expect("a code").to_owned());
    }

    assert_eq!(
        told,
        [
            "rate_limited",
            "invalid_request",
            "payload_too_large",
            "request_blocked",
            "unauthorized",
            "forbidden",
            "unsupported_media_type",
            "invalid_parameters",
        ]
    );
    let order = REFERENCE.split_once("## Order of checks").expect("the order is documented").1;
    let mut rest = order;
    for code in &told {
        let found = rest.split_once(&format!("`{code}`"));
        rest = found.unwrap_or_else(|| panic!("{code} is not documented, or not in this place")).1;
    }
}

//! What a request body may be.

use axum::body::Body;
use bytes::Bytes;
use serde_json::json;

use crate::lab::Lab;

const LIMIT: usize = 10 * 1024 * 1024;

/// A body of unknown length.
fn chunked(chunks: Vec<Bytes>) -> Body {
    Body::from_stream(futures::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
}

#[tokio::test]
async fn what_is_not_strict_json_is_refused_without_an_echo() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let nested = |depth: usize| format!("{{\"plate\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));

    for body in [
        r#"{"volume": NaN}"#.to_owned(),
        r#"{"volume": Infinity}"#.to_owned(),
        r#"{"volume": -Infinity}"#.to_owned(),
        r#"{"volume": 1e999}"#.to_owned(),
        r#"{"volume": 5, "volume": 500}"#.to_owned(),
        r#"{"volume": 5, "vol\u0075me": 500}"#.to_owned(),
        nested(65),
        nested(100_000),
        r#"{"volume": 5} sentinel"#.to_owned(),
        r#"{"volume": "sentinel"#.to_owned(),
        "[1]".to_owned(),
        "null".to_owned(),
        "\"sentinel\"".to_owned(),
        " ".to_owned(),
        "\u{feff}{}".to_owned(),
        "{'volume': 5}".to_owned(),
    ] {
        let answer = lab.post("/execute/mix").signed(&token).text(body.clone()).send().await;
        let problem = answer.refused(422, "invalid_request");
        let shown = &body[..body.len().min(40)];
        assert_eq!(problem["errors"][0]["loc"], json!(["body"]), "{shown}");
        assert!(!answer.text().contains("sentinel"), "{}", answer.text());
    }
    let no_text = lab
        .post("/execute/mix")
        .signed(&token)
        .typed("application/json", &b"{\"volume\": \"\xff\"}"[..])
        .send()
        .await;
    no_text.refused(422, "invalid_request");
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn sixty_four_levels_pass_the_parser() {
    let lab = Lab::start().await;
    let body = format!("{{\"plate\":{}{}}}", "[".repeat(63), "]".repeat(63));

    let answer = lab.post("/execute/layout").signed(&lab.token("ana").await).text(body).send().await;

    // Past the parser, the declared type refuses it.
    answer.refused(400, "invalid_parameters");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_announced_or_not() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let announced =
        |length: usize| lab.post("/execute/mix").signed(&token).header("content-length", length.to_string());
    let padded = |length: usize| {
        let mut text = r#"{"volume": 5"#.to_owned();
        text.push_str(&" ".repeat(length - text.len() - 1));
        text.push('}');
        text
    };

    announced(LIMIT + 1).send().await.refused(413, "payload_too_large");
    announced(usize::MAX).send().await.refused(413, "payload_too_large");
    let whole = Bytes::from(padded(LIMIT + 1));
    let in_pieces = vec![whole.slice(..LIMIT / 2), whole.slice(LIMIT / 2..)];
    lab.post("/execute/mix")
        .signed(&token)
        .typed("application/json", chunked(in_pieces))
        .send()
        .await
        .refused(413, "payload_too_large");
    assert!(lab.device.calls().is_empty());

    let fits = Bytes::from(padded(LIMIT));
    lab.post("/execute/mix").signed(&token).typed("application/json", chunked(vec![fits])).send().await.ok();
}

#[tokio::test]
async fn an_announced_giant_is_refused_before_the_token_is_looked_at() {
    let lab = Lab::start().await;

    let answer = lab.post("/auth/login").header("content-length", (LIMIT + 1).to_string()).send().await;

    answer.refused(413, "payload_too_large");
}

#[tokio::test]
async fn only_json_is_read() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let good = r#"{"volume": 5}"#;
    let send =
        |media_type: &'static str| lab.post("/execute/mix").signed(&token).typed(media_type, good).send();

    for media_type in [
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "json",
        "",
        "application/json; charset=utf-16",
    ] {
        send(media_type).await.refused(415, "unsupported_media_type");
    }
    let packed =
        lab.post("/execute/mix").signed(&token).header("content-encoding", "gzip").text(good).send().await;
    packed.refused(415, "unsupported_media_type");
    assert!(lab.device.calls().is_empty());

    for media_type in ["application/json", "Application/JSON; Charset=\"UTF-8\"", "application/vnd.lab+json"]
    {
        send(media_type).await.ok();
    }
    lab.post("/execute/mix").signed(&token).bare(good).send().await.ok();
}

#[tokio::test]
async fn what_comes_twice_has_no_meaning() {
    let lab = Lab::start().await;
    let (admin, operator) = (lab.token("ada").await, lab.token("ana").await);

    // Neither the first nor the last counts, and a query does not stand in for a body.
    lab.get("/runs?limit=1&limit=2")
        .signed(&lab.token("vic").await)
        .send()
        .await
        .refused(422, "invalid_request");
    for query in ["actor=ana&actor=ben", "act%6Fr=ana&actor=ana"] {
        lab.get(&format!("/audit?{query}")).signed(&admin).send().await.refused(422, "invalid_request");
    }
    let body = r#"{"volume": 5, "volume": 6}"#;
    lab.post("/execute/mix").signed(&operator).text(body).send().await.refused(422, "invalid_request");
    lab.post("/execute/mix?volume=5")
        .signed(&operator)
        .text("{}")
        .send()
        .await
        .refused(400, "invalid_parameters");
    let form = "username=ana&password=x&username=ada";
    lab.post("/auth/login")
        .typed("application/x-www-form-urlencoded", form)
        .send()
        .await
        .refused(422, "invalid_request");
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_form_of_unknown_length_is_no_json() {
    let lab = Lab::start().await;
    let body = chunked(vec![Bytes::from_static(br#"{"volume": 5}"#)]);

    let answer = lab
        .post("/execute/mix")
        .signed(&lab.token("ana").await)
        .typed("application/x-www-form-urlencoded", body)
        .send()
        .await;

    // Browsers send forms across origins without asking first.
    answer.refused(415, "unsupported_media_type");
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_body_that_breaks_off_does_nothing() {
    let lab = Lab::start().await;
    let pieces =
        vec![Ok(Bytes::from_static(br#"{"volume": 5"#)), Err(std::io::Error::other("the line went dead"))];
    let body = Body::from_stream(futures::stream::iter(pieces));

    let answer =
        lab.post("/execute/mix").signed(&lab.token("ana").await).typed("application/json", body).send().await;

    answer.refused(400, "invalid_request");
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_body_that_never_ends_has_a_deadline() {
    let lab = Lab::with(|config| config.connections.body = std::time::Duration::from_millis(50)).await;
    let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());

    let answer =
        lab.post("/execute/mix").signed(&lab.token("ana").await).typed("application/json", body).send().await;

    answer.refused(408, "timeout");
    assert!(lab.device.calls().is_empty());
}

#[tokio::test]
async fn a_refusal_of_authority_comes_before_the_body_is_read() {
    let lab = Lab::start().await;

    lab.post("/execute/mix").text("{broken").send().await.refused(401, "unauthorized");
    lab.post("/execute/mix")
        .signed("garbage")
        .typed("text/plain", "x")
        .send()
        .await
        .refused(401, "unauthorized");
    lab.post("/execute/mix")
        .signed(&lab.token("vic").await)
        .text("{broken")
        .send()
        .await
        .refused(403, "forbidden");
    lab.post("/users").signed(&lab.token("ana").await).text("{broken").send().await.refused(403, "forbidden");
}

#[tokio::test]
async fn legacy_clients_can_have_their_array_of_refused_fields() {
    let lab = Lab::with(|config| config.legacy_errors = true).await;
    let token = lab.token("ana").await;

    let answer = lab.post("/execute/mix").signed(&token).text("{").send().await;

    assert_eq!(answer.status.as_u16(), 422);
    let body = answer.json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1));
    let field = body["detail"][0].as_object().expect("an object");
    assert_eq!(field.keys().map(String::as_str).collect::<Vec<_>>(), ["loc", "msg", "type"]);

    // A 422 without refused fields says what is wrong all the same.
    lab.mix("ana").await.header("idempotency-key", "k").send().await.ok();
    let reused = lab
        .post("/execute/mix")
        .signed(&token)
        .json(&json!({ "volume": 9 }))
        .header("idempotency-key", "k")
        .send()
        .await;
    assert_eq!(reused.status.as_u16(), 422);
    assert!(reused.text().contains("Idempotency-Key"), "{}", reused.text());
}

#[tokio::test]
async fn unknown_members_are_ignored_unless_strictness_is_preferred() {
    let lab = Lab::start().await;
    let body = json!({ "reason": "a look was taken", "surplus": 1 });
    let clear = || lab.post("/device/attention/clear").json(&body);
    let token = lab.token("ana").await;

    clear().signed(&token).send().await.ok();

    let strict = clear().signed(&token).header("prefer", "handling=strict").send().await;
    strict.refused(422, "invalid_request");
    assert_eq!(lab.device.releases().len(), 1);
}

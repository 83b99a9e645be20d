//! Requests to where they may go, and nowhere else.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::Shelf;
use crate::testing::{Bench, Seen, answer, check, serve};

fn tool(hosts: &[String], networks: &[&str]) -> HttpRequest {
    let networks: Vec<String> = networks.iter().map(|network| (*network).to_owned()).collect();
    let reach = Reach::new(hosts, &networks).expect("a reach");
    HttpRequest::new(Arc::new(reach), None).expect("a client")
}

/// A tool that may reach these ports of loopback.
fn local(ports: &[u16]) -> Shelf {
    let hosts: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    Shelf::default().with("http.request", tool(&hosts, &["127.0.0.1"]))
}

async fn ask(shelf: &Shelf, input: Value) -> Result<Value, Failure> {
    Bench::default().call(shelf, "http.request", &input).await
}

#[tokio::test]
async fn a_request_is_sent_as_it_was_asked_for_and_answered() {
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let log = Arc::clone(&seen);
    let port = serve(move |request| {
        log.lock().expect("log").push(request);
        answer(
            201,
            "content-type: application/json; charset=utf-8\r\nset-cookie: a=b\r\n",
            r#"{"ok": [1, 2]}"#,
        )
    })
    .await;

    let result = ask(
        &local(&[port]),
        json!({
            "url": format!("http://127.0.0.1:{port}/a?x=1#part"), "method": "post", "query": { "y": "a b", "n": 3 },
            "headers": { "Authorization": "Bearer s" }, "json": { "plate": 7 },
        }),
    )
    .await
    .expect("an answer");

    assert_eq!((&result["status"], &result["body"]), (&json!(201), &json!({ "ok": [1, 2] })));
    assert!(result["headers"].get("set-cookie").is_none());
    let request = seen.lock().expect("log")[0].clone();
    assert_eq!(request.line, "POST /a?x=1&n=3&y=a+b HTTP/1.1");
    assert_eq!(request.body, r#"{"plate":7}"#);
    assert_eq!(request.header("idempotency-key"), Some("key-1"));
    assert_eq!(request.header("authorization"), Some("Bearer s"));
    assert_eq!(request.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn statuses_are_told_apart() {
    let port = serve(|request| {
        let status =
            request.line.split('/').nth(1).and_then(|rest| rest.split(' ').next()).expect("a status");
        answer(status.parse().expect("a number"), "", "secret of the service")
    })
    .await;
    let shelf = local(&[port]);
    for (status, method, expected) in [
        (404, "GET", "failed"),
        (500, "GET", "again"),
        (503, "POST", "again"),
        (429, "POST", "unreached"),
        (502, "POST", "unknown"),
        (504, "POST", "unknown"),
        (307, "POST", "failed"),
    ] {
        let input = json!({ "url": format!("http://127.0.0.1:{port}/{status}"), "method": method });
        let failure = ask(&shelf, input).await.expect_err("no success");
        let kind = match &failure {
            Failure::Failed { again: true, .. } => "again",
            Failure::Failed { .. } => "failed",
            Failure::Unreached(_) => "unreached",
            Failure::Unknown(_) => "unknown",
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, expected, "{status}: {failure:?}");
        assert!(failure.to_string().contains(&status.to_string()) && !failure.to_string().contains("secret"));
    }
    let accepted = json!({ "url": format!("http://127.0.0.1:{port}/404"), "accept_status": [404] });
    assert_eq!(ask(&shelf, accepted).await.expect("accepted")["body"], "secret of the service");
}

#[tokio::test]
async fn redirects_of_reading_are_followed_and_checked_each_time() {
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let log = Arc::clone(&seen);
    let other = serve(move |request| {
        log.lock().expect("log").push(request);
        answer(200, "", "there")
    })
    .await;
    let elsewhere = serve(|_| answer(200, "", "must not be reached")).await;
    let port = serve(move |request| {
        let to = match request.line.split(' ').nth(1).expect("a path") {
            "/ok" => format!("http://127.0.0.1:{other}/x"),
            "/relative" => "/ok".to_owned(),
            "/unlisted" => format!("http://127.0.0.1:{elsewhere}/"),
            "/private" => "http://169.254.169.254/latest/meta-data/".to_owned(),
            "/file" => "file:///etc/passwd".to_owned(),
            "/long" => format!("/{}", "x".repeat(9_000)),
            _ => "/loop".to_owned(),
        };
        answer(302, &format!("location: {to}\r\n"), "")
    })
    .await;
    let shelf = local(&[port, other]);
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");

    let result =
        ask(&shelf, json!({ "url": url("/relative"), "headers": { "x-token": "s" } })).await.expect("there");
    assert_eq!((&result["body"], &result["redirects"]), (&json!("there"), &json!(2)));
    assert_eq!(
        seen.lock().expect("log")[0].header("x-token"),
        None,
        "another origin is not told what was meant for the first"
    );

    for path in ["/unlisted", "/private", "/file"] {
        let failure = ask(&shelf, json!({ "url": url(path) })).await.expect_err(path);
        assert!(matches!(failure, Failure::Refused(_)), "{path}: {failure:?}");
    }
    let failure = ask(&shelf, json!({ "url": url("/loop") })).await.expect_err("a loop");
    assert!(failure.to_string().contains("more than 5 times"), "{failure}");
    let failure = ask(&shelf, json!({ "url": url("/long") })).await.expect_err("a long address");
    assert!(failure.to_string().contains("too long"), "{failure}");
}

/// Answers with the next list each time it is asked.
struct Rebinding(Vec<Vec<IpAddr>>, Arc<AtomicUsize>);

impl Lookup for Rebinding {
    fn lookup(
        &self,
        _: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        let at = self.1.fetch_add(1, Ordering::SeqCst);
        let found = self.0[at.min(self.0.len() - 1)].clone();
        Box::pin(async move { Ok(found) })
    }
}

#[tokio::test]
async fn a_name_that_turns_to_an_inner_address_is_not_followed_there() {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    let port = serve(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        answer(200, "", "inner")
    })
    .await;
    let inner: IpAddr = "127.0.0.1".parse().expect("an address");
    // TEST-NET-3 is not routed; to the policy of this test it is where the name pointed when it was looked at.
    let outer: IpAddr = "203.0.113.7".parse().expect("an address");
    for lists in [
        vec![vec![inner]],
        vec![vec![outer, inner]],
        vec![vec!["::ffff:127.0.0.1".parse().expect("an address")]],
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let reach = Reach::new(&[format!("http://rebind.example:{port}")], &["203.0.113.7".to_owned()])
            .expect("a reach");
        let lookup = Arc::new(Rebinding(lists.clone(), Arc::clone(&asked)));
        let tool = HttpRequest::resolving(Arc::new(reach), None, lookup).expect("a client");
        let shelf = Shelf::default().with("http.request", tool);

        let failure = ask(&shelf, json!({ "url": format!("http://rebind.example:{port}/") }))
            .await
            .expect_err("refused");

        assert!(
            matches!(&failure, Failure::Refused(why) if why.contains("HTTP_TOOL_NETWORKS")),
            "{lists:?}: {failure:?}"
        );
        assert!(!failure.to_string().contains("127.0.0.1"), "{failure}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "what was checked is what is connected to");
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn large_answers_are_cut_off_before_they_are_held() {
    let announced = serve(|_| b"HTTP/1.1 200 x\r\ncontent-length: 50000000\r\n\r\nx".to_vec()).await;
    let unannounced = serve(|_| {
        let mut all = b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n".to_vec();
        all.resize(50_000_000, b'x');
        all
    })
    .await;
    let shelf = local(&[announced, unannounced]);
    for port in [announced, unannounced] {
        let failure =
            ask(&shelf, json!({ "url": format!("http://127.0.0.1:{port}/") })).await.expect_err("too large");
        assert!(failure.to_string().contains("more than 524288 bytes"), "{failure}");
        let posted = json!({ "url": format!("http://127.0.0.1:{port}/"), "method": "POST", "max_bytes": 10 });
        let failure = ask(&shelf, posted).await.expect_err("too large");
        assert!(matches!(failure, Failure::Failed { again: false, .. }), "it was done: {failure:?}");
    }
}

#[tokio::test]
async fn what_never_arrived_and_what_may_have_are_told_apart() {
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let cut = serve(|_| Vec::new()).await;
    let half = serve(|_| b"HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\nhalf".to_vec()).await;
    let lying = serve(|_| answer(200, "content-type: application/json\r\n", "{nonsense")).await;
    let shelf = local(&[closed, cut, half, lying]);
    let post = |port: u16| json!({ "url": format!("http://127.0.0.1:{port}/"), "method": "POST" });

    assert!(matches!(ask(&shelf, post(closed)).await, Err(Failure::Unreached(_))));
    assert!(matches!(ask(&shelf, post(cut)).await, Err(Failure::Unknown(_))));
    assert!(matches!(ask(&shelf, post(half)).await, Err(Failure::Failed { again: false, .. })));
    assert!(matches!(ask(&shelf, post(lying)).await, Err(Failure::Failed { again: false, .. })));
}

#[test]
fn what_a_method_does_to_the_world_is_known() {
    let tool = tool(&["*".to_owned()], &[]);
    for (input, expected) in [
        (json!({ "url": "https://a.example" }), Effect::None),
        (json!({ "url": "https://a.example", "method": "head" }), Effect::None),
        (json!({ "url": "https://a.example", "method": "PUT" }), Effect::Idempotent),
        (json!({ "url": "https://a.example", "method": "POST" }), Effect::Once),
        (json!({ "url": "https://a.example", "method": "PATCH", "idempotent": true }), Effect::Idempotent),
    ] {
        assert_eq!(check(&tool, &input), Ok(expected), "{input}");
    }
    let fixed = Map::new();
    let open = ["url".to_owned(), "method".to_owned()];
    assert_eq!(tool.check(Known { fixed: &fixed, open: &open }).expect("valid"), Effect::Once);
}

#[test]
fn bad_input_is_refused_when_the_task_is_made() {
    let tool = tool(&["*".to_owned()], &[]);
    for (input, part) in [
        (json!({}), "url is missing"),
        (json!({ "url": "example.org" }), "whole address"),
        (json!({ "url": "https://a.example", "verb": "GET" }), "this tool knows"),
        (json!({ "url": "https://a.example", "method": "TRACE" }), "method is"),
        (json!({ "url": "https://a.example", "method": "POST", "json": 1, "body": "x" }), "exclude"),
        (json!({ "url": "https://a.example", "body": "x" }), "carry no body"),
        (json!({ "url": "https://a.example", "headers": { "Host": "x" } }), "set by the request"),
        (json!({ "url": "https://a.example", "headers": { "a": "x\r\ny: z" } }), "without line breaks"),
        (json!({ "url": "https://a.example", "headers": { "a b": "x" } }), "without line breaks"),
        (json!({ "url": "https://a.example", "accept_status": [99] }), "from 200 to 599"),
        (json!({ "url": "https://a.example", "max_bytes": 10_000_000 }), "from 1 to"),
        (json!({ "url": "https://a.example", "query": 1 }), "query is"),
        (json!({ "url": "http://a.example" }), "HTTP_TOOL_HOSTS"),
        (json!({ "url": "https://127.0.0.1" }), "HTTP_TOOL_NETWORKS"),
        (json!({ "url": format!("https://a.example/{}", "x".repeat(9_000)) }), "at most 8192"),
        (json!({ "url": "https://a.example", "query": { "q": "x".repeat(9_000) } }), "with its query"),
        (json!({ "url": "https://a.example", "query": { "q": "é".repeat(1_500) } }), "percent-encoded"),
        (
            json!({ "url": "https://a.example", "headers": { "cookie": "x".repeat(9_000) } }),
            "without line breaks",
        ),
        (
            json!({ "url": "https://a.example", "headers": { "cookie": "x".repeat(8_000), "x-more": "x".repeat(8_000) } }),
            "12288 bytes together",
        ),
    ] {
        let told = check(&tool, &input).expect_err(part);
        assert!(told.contains(part), "{input}: {told}");
    }
    let closed = HttpRequest::new(Arc::new(Reach::default()), None).expect("a client");
    assert!(
        check(&closed, &json!({ "url": "https://a.example" }))
            .expect_err("closed")
            .contains("HTTP_TOOL_HOSTS")
    );
}

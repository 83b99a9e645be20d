//! Entries on a real Redis (`INTERLOCK_TEST_REDIS`, see `tools/redis`): in order, once, whoever sends them how often.

use interlock_model::secret::Secret;

use super::*;

/// A stream of an empty database, with a connection to look at it.
async fn stream(db: u8, name: &str) -> (Stream, MultiplexedConnection) {
    let told = std::env::var("INTERLOCK_TEST_REDIS")
        .expect("INTERLOCK_TEST_REDIS must hold what `tools/redis start DIR` prints");
    let from = told.find("\"url\": \"").expect("a URL") + 8;
    let url = told[from..].split('"').next().expect("its end");
    let config = RedisConfig::new(&Secret::new(format!("{url}/{db}")), None, false).expect("a URL");
    let client = config.client().expect("a client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await.expect("emptied");
    (Stream::new(&config, name, 1_000_000).expect("a stream"), connection)
}

fn entries(numbers: std::ops::Range<u64>) -> Vec<Entry> {
    numbers
        .map(|number| Entry { id: (number / 3 + 1, number % 3), fields: vec![("n", number.to_string())] })
        .collect()
}

async fn there(connection: &mut MultiplexedConnection, name: &str) -> Vec<(String, Vec<String>)> {
    redis::cmd("XRANGE").arg(name).arg("-").arg("+").query_async(connection).await.expect("a stream")
}

#[tokio::test]
async fn what_is_there_already_stays_as_it_is() {
    let (stream, mut connection) = stream(1, "one").await;
    assert_eq!(stream.last().await.expect("asked"), (0, 0));
    stream.add(&entries(0..7)).await.expect("added");
    stream.add(&entries(3..10)).await.expect("added");

    let found = there(&mut connection, "one").await;
    let numbers: Vec<u64> = found.iter().map(|(_, fields)| fields[1].parse().expect("a number")).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<u64>>());
    assert_eq!(found[4].0, "2-1");
    assert_eq!(stream.last().await.expect("asked"), (4, 0));
    redis::cmd("XTRIM")
        .arg("one")
        .arg("MAXLEN")
        .arg(0)
        .query_async::<()>(&mut connection)
        .await
        .expect("trimmed");
    assert_eq!(stream.last().await.expect("asked"), (4, 0), "what was trimmed was there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_copy_the_same_make_one_copy_in_order() {
    let (first, mut connection) = stream(2, "many").await;
    let first = std::sync::Arc::new(first);
    let copying = (0..4_u64).map(|who| {
        let stream = std::sync::Arc::clone(&first);
        tokio::spawn(async move {
            for portion in 0..40_u64 {
                let from = portion * 5 + who % 2;
                stream.add(&entries(portion * 5..portion * 5 + 5)).await.expect("added");
                stream.add(&entries(from..portion * 5 + 5)).await.expect("added");
            }
        })
    });
    for one in copying.collect::<Vec<_>>() {
        one.await.expect("copied");
    }
    let found = there(&mut connection, "many").await;
    let numbers: Vec<u64> = found.iter().map(|(_, fields)| fields[1].parse().expect("a number")).collect();
    assert_eq!(numbers, (0..200).collect::<Vec<u64>>());
}

#[tokio::test]
async fn large_entries_go_in_portions_and_the_length_is_kept() {
    let (mut stream, mut connection) = stream(3, "large").await;
    stream.length = 3;
    let large: Vec<Entry> = (1..=6)
        .map(|n| Entry { id: (n, 0), fields: vec![("payload", "x".repeat(PORTION * 2 / 3))] })
        .collect();
    stream.add(&large).await.expect("added");
    assert_eq!(stream.last().await.expect("asked"), (6, 0));
    // Redis trims whole nodes of its list; entries of this size have a node each.
    let kept = there(&mut connection, "large").await.len();
    assert!((3..=4).contains(&kept), "{kept}");
}

#[tokio::test]
async fn what_is_no_stream_is_an_error_and_stays() {
    let (stream, mut connection) = stream(4, "text").await;
    redis::cmd("SET").arg("text").arg("kept").query_async::<()>(&mut connection).await.expect("set");
    stream.last().await.expect_err("no stream");
    stream.add(&entries(0..1)).await.expect_err("no stream");
    let text: String = redis::cmd("GET").arg("text").query_async(&mut connection).await.expect("there");
    assert_eq!(text, "kept");
}

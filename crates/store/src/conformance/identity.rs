//! Identity records and their feed.

use std::sync::Arc;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{after, at_once, put};
use crate::Store;
use crate::identity::{self, Document, Put, Record, Versioned};

fn record(id: &str) -> Record {
    Record {
        kind: "agent".to_owned(),
        id: id.to_owned(),
        alias: Some(format!("name of {id}")),
        owner: Some("ana".to_owned()),
        data: json!({ "text": "é\u{1F9EA}", "list": [1, 2.5, null] }),
        version: 1,
        expires_at: None,
        changed: 0,
    }
}

async fn store_one(store: &dyn Store, row: Record) -> Put {
    put(store, move |tx| async move { tx.put_record(&row).await }.boxed()).await
}

/// What is stored is read back, by id, by kind and by owner.
pub async fn a_record_is_read_back(store: Arc<dyn Store>) {
    let other = Record { kind: "key".to_owned(), owner: Some("bo".to_owned()), alias: None, ..record("1") };
    assert_eq!(store_one(&*store, record("1")).await, Put::Done);
    assert_eq!(store_one(&*store, other.clone()).await, Put::Done);

    let stored = store.record("agent", "1").await.expect("readable").expect("there");
    assert_eq!(Record { changed: 0, ..stored }, record("1"));
    assert_eq!(store.record("agent", "2").await.expect("readable"), None);
    assert_eq!(store.record("agent", "1\0").await.expect("readable"), None);
    assert_eq!(store.records("agent", None).await.expect("readable").len(), 1);
    assert_eq!(store.records("key", Some("bo")).await.expect("readable").len(), 1);
    assert!(store.records("key", Some("ana")).await.expect("readable").is_empty());
}

/// Of all who want an id or an alias, one gets it; other kinds do not mind.
pub async fn an_id_and_an_alias_are_taken_once(store: Arc<dyn Store>) {
    let taken = at_once(&store, 20, |store, number| async move {
        store_one(&*store, Record { id: number.to_string(), alias: Some("robot".to_owned()), ..record("x") })
            .await
    })
    .await;

    assert_eq!(taken.iter().filter(|put| **put == Put::Done).count(), 1);
    assert!(taken.iter().all(|put| matches!(put, Put::Done | Put::Taken)));
    let other = Record { kind: "role".to_owned(), alias: Some("robot".to_owned()), ..record("x") };
    assert_eq!(store_one(&*store, other).await, Put::Done);
    assert_eq!(store_one(&*store, record("y")).await, Put::Done);
    let renamed = Record { alias: Some("robot".to_owned()), version: 2, ..record("y") };
    assert_eq!(store_one(&*store, renamed).await, Put::Taken);
}

/// Of all who change the same version, one does.
pub async fn a_record_is_changed_by_one_of_many(store: Arc<dyn Store>) {
    store_one(&*store, record("1")).await;

    let outcomes = at_once(&store, 20, |store, number| async move {
        store_one(&*store, Record { data: json!(number), version: 2, ..record("1") }).await
    })
    .await;

    assert_eq!(outcomes.iter().filter(|put| **put == Put::Done).count(), 1);
    assert_eq!(outcomes.iter().filter(|put| **put == Put::Stale).count(), 19);
    assert_eq!(store_one(&*store, Record { version: 2, ..record("none") }).await, Put::Stale);
}

/// Whoever asks again from the last mark it saw misses nothing and hears of nothing twice.
pub async fn the_feed_misses_nothing(store: Arc<dyn Store>) {
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            at_once(&store, 100, |store, number| async move {
                let row = Record { id: format!("{number:03}"), alias: None, ..record("x") };
                store_one(&*store, row.clone()).await;
                store_one(&*store, Record { version: 2, ..row }).await;
            })
            .await;
        })
    };
    let mut seen: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
    let mut mark = 0;
    loop {
        let over = writer.is_finished();
        let part = store.records_since(mark, 7).await.expect("readable");
        for row in &part {
            assert!(row.changed > mark, "marks rise");
            mark = row.changed;
            assert!(seen.insert(row.id.clone(), row.version).is_none_or(|before| before < row.version));
        }
        if over && part.is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    writer.await.expect("written");

    assert_eq!(seen.len(), 100);
    assert!(seen.values().all(|version| *version == 2));
}

/// A record with an end is forgotten after it, others stay.
pub async fn a_record_is_forgotten_after_its_end(store: Arc<dyn Store>) {
    store_one(&*store, Record { expires_at: Some(after(10)), ..record("ends") }).await;
    store_one(&*store, record("stays")).await;

    let early = put(&*store, |tx| async move { tx.delete_expired(after(10)).await }.boxed()).await;
    let late = put(&*store, |tx| async move { tx.delete_expired(after(11)).await }.boxed()).await;

    assert_eq!((early, late), (0, 1));
    assert_eq!(store.records("agent", None).await.expect("readable").len(), 1);
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Robot {
    name: String,
    until: Option<Timestamp>,
}

impl Document for Robot {
    const KIND: &'static str = "robot";

    fn id(&self) -> String {
        self.name.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.until
    }
}

/// Documents keep their type through the storage.
pub async fn a_document_keeps_its_type(store: Arc<dyn Store>) {
    let robot = Robot { name: "ot2".to_owned(), until: Some(after(5)) };
    let (made, found, changed) = put(&*store, {
        let robot = robot.clone();
        move |tx| {
            async move {
                let made = identity::insert(tx, &robot).await?;
                let found = identity::get::<Robot>(tx, "ot2").await?.expect("there");
                let later = Versioned { document: Robot { until: None, ..robot }, version: found.version };
                Ok((made, found, identity::update(tx, &later).await?))
            }
            .boxed()
        }
    })
    .await;

    assert_eq!((made, changed), (Put::Done, Put::Done));
    assert_eq!(found, Versioned { document: robot.clone(), version: 1 });
    let read = identity::read::<Robot>(&*store, "ot2").await.expect("readable").expect("there");
    assert_eq!(read, Versioned { document: Robot { until: None, ..robot }, version: 2 });
    assert_eq!(identity::list::<Robot>(&*store, None).await.expect("readable").len(), 1);
}
